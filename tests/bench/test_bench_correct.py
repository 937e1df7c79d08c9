"""Ours is held to the oracle before it is timed, and peers compute what we say they do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bench_helpers import ADAPTERS, MODELS, OPS, SCAN, TINY

import nonet.hf.mamba
import nonet.mamba.api
from nonet import native
from nonet.bench import adapters, models, ops, peers
from nonet.bench.run import measure
from nonet.bench.workloads import Workload
from nonet.testing import assert_within_budget
from nonet.testing.rounding import Wide

pytestmark = pytest.mark.filterwarnings("ignore:.*run on torch")  # where the C library was not built


def eager(contender):
    """The compiled loop without its compiler, which takes half a minute."""
    return replace(contender, call=peers.eager_loop) if contender.name == "compiled loop" else contender


def judged(family, workload):
    """What is found of everybody, peers held to the budget as well."""
    them = [replace(eager(c), package=None) for c in family.contenders(workload, peers=True)]
    return family.check(workload, them)


@pytest.mark.parametrize("workload", OPS, ids=lambda w: w.name)
def test_everybody_computes_the_operation(workload):
    found = judged(ops, workload)["found"]
    if workload.kernel == "selective_scan" and workload.dtype == "bfloat16":
        assert "RuntimeError" in found.pop("mambapy")["failure"]  # it mixes dtypes
    assert {name: entry["failure"] for name, entry in found.items()} == dict.fromkeys(found)
    assert all(0 <= entry["error"] < 1 for entry in found.values())


@pytest.mark.parametrize("workload", MODELS, ids=lambda w: w.name)
def test_everybody_computes_the_model(workload):
    found = judged(models, workload)["found"]
    assert {name: entry["failure"] for name, entry in found.items()} == dict.fromkeys(found)
    assert len(found) == (3 if workload.what == "training step" else 2)


@pytest.mark.parametrize("workload", ADAPTERS, ids=lambda w: w.name)
def test_everybody_computes_the_adapted_model(workload):
    found = judged(adapters, workload)["found"]
    assert {name: entry["failure"] for name, entry in found.items()} == {"nonet": None, "peft": None}


def test_an_adapter_of_another_scale_fails(monkeypatch):
    right = adapters._ours

    def wrong(model, factors):
        return right(model, {key: (a, 1.01 * b) for key, (a, b) in factors.items()})

    monkeypatch.setattr(adapters, "_ours", wrong)
    assert measure(ADAPTERS[0], 1, peers=False, quick=True)["state"] == "failed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@pytest.mark.parametrize("length", [1, peers.STEPS, 2 * peers.STEPS + 3])
def test_the_compiled_loop_is_the_eager_one(length):
    i, f = torch.randn(2, 8, length), torch.rand(2, 8, length)
    gold = peers.eager_loop(i.double(), f.double())
    assert_within_budget(peers.compiled_loop(i, f), peers.eager_loop(i, f), gold, "compiled loop")


@pytest.mark.parametrize("what", ["forward", "forward+backward"])
def test_a_wrong_implementation_fails_and_is_not_timed(what, monkeypatch):
    right = nonet.mamba.api.selective_scan

    def wrong(*args, impl="auto", **options):
        out = right(*args, impl=impl, **options)
        return out if impl == "reference" else 1.001 * out

    monkeypatch.setattr(nonet.mamba.api, "selective_scan", wrong)
    row = measure(TINY[f"selective_scan {what} C48 T48"], 1, peers=True, quick=True)
    assert row["state"] == "failed"
    assert row["reason"].startswith("wrong: nonet out")
    assert not any("median" in contender for contender in row["contenders"])
    assert row["shares"] == {}


def test_a_wrong_gradient_fails(monkeypatch):
    right = nonet.mamba.api.selective_scan

    def wrong(u, *args, impl="auto", **options):
        out = right(u, *args, impl=impl, **options)
        return out if impl == "reference" else out + 0.01 * (u - u.detach())

    monkeypatch.setattr(nonet.mamba.api, "selective_scan", wrong)
    workload = TINY["selective_scan forward+backward C48 T48"]
    [found] = ops.check(workload, ops.contenders(workload, peers=False)[:1])["found"].values()
    assert "nonet du" in found["failure"]


@pytest.mark.parametrize("workload", MODELS[:2], ids=lambda w: w.name)
def test_a_model_whose_layers_are_wrong_fails(workload, monkeypatch):
    right = nonet.hf.mamba.selective_scan

    def wrong(*args, **options):
        out, last = right(*args, **options)
        return 1.001 * out, last

    monkeypatch.setattr(nonet.hf.mamba, "selective_scan", wrong)
    assert measure(workload, 1, peers=False, quick=True)["state"] == "failed"


def test_a_peer_that_cannot_run_is_told_and_the_row_is_done(monkeypatch):
    def missing(**arguments):
        raise ModuleNotFoundError("No module named 'mambapy'")

    them = [ops.contenders(SCAN, peers=False)[0], replace(peers.PEERS["selective_scan"][1], call=missing)]
    monkeypatch.setattr(ops, "contenders", lambda workload, peers: them)
    row = measure(SCAN, 1, peers=True, quick=True)
    assert row["state"] == "done"
    assert row["contenders"][1]["failure"] == "ModuleNotFoundError: No module named 'mambapy'"
    assert row["contenders"][0]["rounds"] >= 2


def test_without_mambapy_its_peer_does_not_quietly_become_the_loop(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mambapy.pscan", None)
    [entry] = ops.check(SCAN, [peers.PEERS["selective_scan"][1]])["found"].values()
    assert "ModuleNotFoundError" in entry["failure"] or "ImportError" in entry["failure"]


def test_the_oracle_of_a_model_is_float64_all_the_way():
    model, ids = models._model(MODELS[0].sizes).double(), models._tokens(MODELS[0].sizes)
    narrow = model(input_ids=ids).logits
    with Wide():
        wide = model(input_ids=ids).logits
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert not torch.equal(wide.float(), narrow)


def test_lower_instruction_sets_are_used_in_turn_and_given_back(monkeypatch):
    library = SimpleNamespace(isa="avx512", isas=lambda: ("portable", "avx2", "avx512"), used=[])
    library.use_isa = library.used.append
    monkeypatch.setattr(native, "library", lambda: library)
    monkeypatch.setattr(ops, "chosen", lambda workload: {workload.kernel: SimpleNamespace(name="cpu")})
    them = ops.contenders(SCAN, peers=False)
    assert [(c.name, c.isa) for c in them] == [
        ("nonet", "avx512"),
        ("nonet avx2", "avx2"),
        ("nonet portable", "portable"),
        ("nonet torch", None),
    ]
    ops.check(SCAN, them)
    assert library.used == ["avx512", "avx2", "portable", "avx512"]
    ops.bind(SCAN, them[1]).timed.before()
    assert library.used[-1] == "avx2"


def test_layout_is_the_workloads_or_the_contenders():
    last = ops._arguments(SCAN, SCAN.sizes, peers.PEERS["selective_scan"][0])
    assert last["u"].mT.is_contiguous()
    first = ops._arguments(
        Workload("causal_conv1d", "", "forward", {"B": 1, "C": 4, "W": 2, "T": 5}),
        {"B": 1, "C": 4, "W": 2, "T": 5},
        peers.PEERS["causal_conv1d"][0],
    )
    assert first["x"].is_contiguous()
