"""Rows: what is in them, what they cost, where they are kept."""

import json
from types import SimpleNamespace

import pytest
import torch
from bench_helpers import SCAN, TINY, row

from nonet import native
from nonet.bench import limits, memory, results
from nonet.bench.cost import cost
from nonet.bench.run import FAMILIES, measure
from nonet.bench.timing import QUICK
from nonet.bench.workloads import KERNELS, Workload, workloads

here = pytest.mark.filterwarnings("ignore:.*run on torch")  # where the C library was not built


@here
def test_a_row_says_what_was_measured_and_where_it_comes_from():
    threads = torch.get_num_threads()
    made = measure(SCAN, 1, peers=True, quick=True)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(made)) == made
    assert set(row()) == set(made)
    assert made["state"] == "done", made["reason"]
    ours, *others = made["contenders"]
    assert ours["name"] == "nonet"
    assert {c["name"] for c in others} >= {"transformers", "mambapy"}
    for contender in made["contenders"]:
        assert contender["low"] <= contender["median"] <= contender["high"]
        assert contender["rounds"] >= QUICK.rounds
    assert all(c["ratio"]["low"] <= c["ratio"]["median"] <= c["ratio"]["high"] for c in others)
    share = made["cost"]["bytes"]["count"] / ours["median"] / made["limits"]["bytes"]
    assert made["shares"]["bytes"] == share
    assert made["implementations"]["selective_scan"]["reason"]
    assert set(row()["provenance"]) == set(made["provenance"])
    assert set(made["provenance"]["peers"]) == {"transformers", "mambapy"}


@here
def test_training_tells_its_memory_and_forward_does_not():
    kept = measure(TINY["selective_scan training forward C48 T48"], 1, peers=True, quick=True)
    assert all(contender["kept"] > 0 for contender in kept["contenders"])
    states = 4 * 48 * 48 * 16  # bytes of those of every token
    assert kept["contenders"][0]["kept"] < states
    theirs = [c["kept"] for c in kept["contenders"] if c["package"]]
    assert min(theirs) > 2 * states
    plain = measure(SCAN, 1, peers=False, quick=True)
    assert not {"kept", "peak"} & {key for c in plain["contenders"] for key in c}


@here
def test_a_point_of_a_series_is_timed_alone():
    [series] = [w for w in TINY.values() if w.series and w.sizes["T"] == 24]
    assert [c["name"] for c in measure(series, 1, peers=True, quick=True)["contenders"]] == ["nonet"]


def test_autograd_keeps_a_block_once_and_whole_and_not_what_was_given():
    x = torch.ones(1000, requires_grad=True)
    assert memory.kept(lambda: x.log(), [x]) == 0  # saves its input
    assert memory.kept(lambda: x.log(), []) == 4000
    assert memory.kept(lambda: x.exp(), [x]) == 0  # saves its output
    assert memory.kept(lambda: x.exp().log(), [x]) == 4000  # both save what lies between
    assert memory.kept(lambda: x.exp()[:10].log(), [x]) == 4000


def test_peak_sees_what_a_call_takes_and_gives_back():
    rise = memory.peak(lambda: torch.ones(2**24).sum())
    if rise is None:
        pytest.skip("this system does not tell")
    assert rise > 2**25


def test_formulas_count():
    small = Workload("selective_scan", "", "forward", {"B": 1, "C": 2, "N": 3, "T": 5})
    assert {kind: c["count"] for kind, c in cost(small).items()} == {
        "bytes": 4 * (4 * 10 + 2 * 15) + 4 * 2 * 5,
        "operations": 180,
        "exponentials": 50,
    }
    half = Workload("hgrn_scan", "", "forward", {"B": 1, "C": 2, "T": 5}, dtype="bfloat16")
    assert cost(half)["bytes"] == {"formula": "3*s*B*C*T", "count": 60}


@pytest.mark.parametrize("quick", [True, False])
def test_every_workload_has_a_name_a_cost_and_enough_to_check(quick):
    found = workloads(quick=quick)
    assert len({w.name for w in found}) == len(found)
    assert {w.kernel for w in found} == set(KERNELS)
    for workload in found:
        assert workload.name.startswith(f"{workload.kernel} {workload.what} ")
        family = FAMILIES.get(workload.kernel)
        letters = {"P": family.weights(workload)} if family else {}
        assert all(counted["count"] > 0 for counted in cost(workload, **letters).values())


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel='attention' is not known; choose from selective_scan"):
        workloads(["attention"])


def test_limits_are_a_dash_without_the_library(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "not built")
    found = limits.limits.__wrapped__(1, quick=True)
    assert found["bytes"] > 0
    assert found["operations"] is found["exponentials"] is None


def test_limits_ask_the_library_for_so_many_threads(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: None)
    library = SimpleNamespace(fma_rate=lambda threads: 10.0 * threads, exp_rate=lambda threads: 1.0 * threads)
    monkeypatch.setattr(native, "library", lambda: library)
    found = limits.limits.__wrapped__(3, quick=True)
    assert (found["operations"], found["exponentials"]) == (30.0, 3.0)


def test_the_buffer_exceeds_the_caches(monkeypatch):
    monkeypatch.setattr(limits, "_largest_cache", lambda: 2**27)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    assert limits._buffer() == 2**29
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    assert limits._buffer() == 2**27


def test_rows_are_only_added_and_a_half_line_is_cut(tmp_path):
    first, second = row(), row(threads=1)
    results.append(tmp_path / "new", first)
    path = tmp_path / "new" / "hgrn_scan.jsonl"
    before = path.read_bytes()
    with path.open("a") as file:
        file.write('{"format": 1, "ker')
    results.append(tmp_path / "new", second)
    assert path.read_bytes().startswith(before)
    assert results.load(tmp_path / "new") == [first, second]


def test_the_newest_row_of_a_workload_counts_machine_by_machine():
    old, new, other = row(date="2026-11-20"), row(date="2026-11-22"), row(date="2026-11-21", threads=1)
    elsewhere = row(date="2026-11-23", cpu="another", name="hgrn_scan forward T16")
    found = results.newest([old, other, new, elsewhere, row(date="2026-11-30", quick=True)])
    assert found == [[new, other], [elsewhere]]
    assert results.newest([]) == []


def test_rows_go_to_the_checkout_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NONET_CACHE", str(tmp_path / "cache"))
    assert results.folder() == tmp_path / "cache" / "benchmarks"
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert results.folder().resolve() == tmp_path / "benchmarks" / "results"
    assert results.folder(tmp_path / "mine") == tmp_path / "mine"
