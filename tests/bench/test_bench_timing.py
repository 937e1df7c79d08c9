"""Rounds, turns and spreads, on a clock that only the timed calls move."""

import gc

import pytest

from nonet.bench import timing
from nonet.bench.timing import Effort, Timed, in_turns, spread


class Clock:
    """Calls that take a known time, and a record of which was called when."""

    def __init__(self, monkeypatch):
        self.now, self.called = 0.0, ""
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def call(self, letter, seconds):
        def call():
            self.now += seconds
            self.called += letter

        return Timed(call)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("values", "low", "median", "high"),
    [([3, 1, 2, 5, 4], 2, 3, 4), ([1, 2, 3, 4], 1.75, 2.5, 3.25), ([7], 7, 7, 7), ([1, 3], 1.5, 2, 2.5)],
)
def test_spread_is_median_and_quartiles(values, low, median, high):
    assert spread(values) == {"median": median, "low": low, "high": high}


def test_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one number"):
        spread([])


def test_calls_take_turns_until_rounds_and_seconds_are_reached(clock):
    a, b = clock.call("a", 0.5), clock.call("b", 1.5)
    first, second = in_turns([a, b], Effort(rounds=4, seconds=12.0, least=1, patience=100.0))
    assert (first, second) == ([0.5] * 6, [1.5] * 6)
    assert clock.called == "aabb" + "ab" * 6  # each twice before


def test_enough_seconds_do_not_replace_rounds(clock):
    [seconds] = in_turns([clock.call("a", 0.5)], Effort(rounds=9, seconds=0.1, patience=100.0))
    assert len(seconds) == 9


def test_a_slow_call_gets_few_rounds_and_one_warm_up(clock):
    ours, theirs = in_turns([clock.call("a", 0.01), clock.call("b", 18.0)], Effort())
    assert len(ours) == len(theirs) == Effort().least
    assert clock.called == "aab" + "ab" * Effort().least


def test_a_short_call_is_repeated_within_a_sample(clock):
    [seconds] = in_turns([clock.call("a", 2.0**-13)], Effort(rounds=1, seconds=0.0))
    assert seconds == [2.0**-13]
    assert len(clock.called) == 2 + 8


def test_what_goes_before_is_off_the_clock_once_a_sample(clock):
    def wait():
        clock.now += 3.0
        clock.called += "-"

    a = Timed(clock.call("a", 2.0**-12).call, wait)
    [seconds] = in_turns([a], Effort(rounds=2, seconds=0.0))
    assert seconds == [2.0**-12] * 2
    assert clock.called == "-a-a" + "-aaaa" * 2


def test_the_collector_comes_back(clock):
    def fail():
        raise RuntimeError

    calls = iter([lambda: None, lambda: None, fail])
    with pytest.raises(RuntimeError):
        in_turns([Timed(lambda: next(calls)())], Effort())
    assert gc.isenabled()
