"""Calls are timed in turns, in an order that is random and can be repeated."""

import functools
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nonet.compare import measure
from nonet.compare.measure import decode, growth, in_turns, least
from nonet.model import NonetForCausalLM, preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return NonetForCausalLM(preset("tiny", vocab_size=257, position="learned", max_position_embeddings=64))


def order_of(seed, repeats=6, calls=4):
    done = []
    timings = in_turns([functools.partial(done.append, i) for i in range(calls)], repeats, CPU, seed)
    assert len(timings) == calls
    return [tuple(done[i : i + calls]) for i in range(0, len(done), calls)]


def test_each_round_makes_every_call_once_in_an_order_that_the_seed_decides():
    rounds = order_of(0)
    assert [sorted(calls) for calls in rounds] == [[0, 1, 2, 3]] * 6
    assert len(set(rounds)) > 1
    assert order_of(0) == rounds
    assert order_of(1) != rounds


def test_a_timing_holds_its_spread(monkeypatch):
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 6.0, 6.0, 10.0, 10.0, 15.0, 15.0, 21.0])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(measure, "Waiting", lambda: nullcontext(SimpleNamespace(share=0.5)))
    assert in_turns([lambda: None], 6, CPU, 0) == [{"median": 3.5, "low": 1.0, "high": 5.0, "runs": 6}]


@pytest.mark.parametrize(
    ("ran", "waited", "share"), [(2.0, 0.0, 1.0), (2.0, 6.0, 0.4), (8.0, 9.0, 0.8), (0.0, 0.0, 1.0)]
)
def test_waiting_for_other_programs_is_told_from_working(monkeypatch, ran, waited, share):
    begin = {"1": (10**9, 10**9), "2": (0, 0)}
    end = {"1": (int(1e9 * (1 + ran)), 10**9), "3": (10**9, int(1e9 * waited))}  # 2 ended, and 3 began
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=iter([0.0, 10.0]).__next__))
    monkeypatch.setattr(measure, "_threads", iter([begin, end]).__next__)
    with measure.Waiting() as found:
        pass
    assert found.share == pytest.approx(share)


def test_a_system_that_does_not_count_waiting_leaves_times_as_they_are(monkeypatch):
    monkeypatch.setattr(measure, "_threads", dict)
    with measure.Waiting() as found:
        pass
    assert found.share == 1.0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count waiting")
def test_the_system_counts_work_and_waiting():
    before = measure._threads()
    sum(range(10**6))
    after = measure._threads()
    mine = str(threading.get_native_id())
    assert after[mine][0] > before[mine][0]
    assert after[mine][1] >= before[mine][1]


def test_the_least_of_several_calls_counts(monkeypatch):
    ticks = iter([0.0, 5.0, 5.0, 5.5])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert least(lambda: None, 2, CPU) == 0.5


def test_lengths_are_timed_in_turns_and_what_a_table_cannot_reach_is_missing(model, monkeypatch):
    read = []
    embed = model.model.embed_tokens
    hook = embed.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    rows = growth(model, (16, 32, 64, 128), 3, 0, patience=60.0)
    hook.remove()
    assert [row["length"] for row in rows] == [16, 32, 64, 128]
    assert read[:3] == [16, 32, 64]  # each is warmed up once
    turns = [read[i : i + 3] for i in range(3, 12, 3)]
    assert [sorted(turn) for turn in turns] == [[16, 32, 64]] * 3
    for row in rows:
        for name in ("forward", "backward"):
            assert (row[name] is None) == (row["length"] == 128)
    assert rows[0]["forward"]["low"] <= rows[0]["forward"]["median"] <= rows[0]["forward"]["high"]
    assert not model.training


def test_lengths_beyond_the_first_slow_one_are_left_out(model):
    rows = growth(model, (16, 32, 64), 2, 0, patience=0.0)
    assert [row["forward"] is None for row in rows] == [False, True, True]
    assert [row["backward"] is None for row in rows] == [False, True, True]


def test_contexts_are_decoded_in_turns(model):
    seen = []
    embed = model.model.embed_tokens
    hook = embed.register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape[1]) if args[0].shape[1] > 1 else None
    )
    rows = decode(model, (8, 40, 64), 2, 0)
    hook.remove()
    assert seen == [8, 40]  # both caches are there before a token is timed
    assert [row["step"] is None for row in rows] == [False, False, True]
    assert rows[0]["step"]["runs"] == 6
    assert 0 < rows[0]["cache_bytes"] < rows[1]["cache_bytes"]
    assert rows[2]["cache_bytes"] is None
