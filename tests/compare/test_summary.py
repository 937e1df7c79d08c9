import math

import pytest
from rows_factory import WINDOW, fail, find, make_plan, make_rows, set_quality, set_ratio, set_seconds

from nonet import registry
from nonet.compare.advice import advise
from nonet.compare.crossover import Point, crossover
from nonet.compare.spread import Estimate, band, differ, estimate, half_of_difference, student_t
from nonet.compare.summary import summarise


def _slots(plan, rows):
    return {slot.name: slot for slot in summarise(plan, rows)}


def _entry(slot, name):
    return next(entry for entry in slot.entries if entry.name == name)


def _points(values):
    return [Point(x, y, y, y) for x, y in values.items()]


# Intervals


def _below(t, degrees):
    """Student's distribution up to t, by the midpoint rule."""
    n, steps = degrees, 4_000
    scale = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
    squares = ((t * (i + 0.5) / steps) ** 2 for i in range(steps))
    return 0.5 + t / steps * sum(scale * (1 + square / n) ** (-(n + 1) / 2) for square in squares)


@pytest.mark.parametrize("degrees", range(1, 31))
def test_student_t_leaves_a_fortieth_above(degrees):
    t = student_t(degrees)
    assert _below(t - 0.001, degrees) < 0.975 < _below(t + 0.001, degrees)


def test_an_estimate_has_the_textbook_interval():
    found = estimate([1.0, 2.0, None, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([None]) is None
    assert estimate([2.0]).half is None


def test_a_difference_counts_when_it_exceeds_its_interval():
    a, b = Estimate((2.40, 2.42, 2.41)), Estimate((2.44, 2.46, 2.45))
    assert half_of_difference(a, b) == pytest.approx(
        2.776 * 0.01 * math.sqrt(2 / 3)
    )  # four degrees of freedom
    assert differ(a, b, floor=1.0)
    assert not differ(a, Estimate((2.41, 2.43, 2.42)), floor=0.0)
    assert not differ(a, Estimate((2.429,)), floor=0.02)
    assert differ(a, Estimate((2.431,)), floor=0.02)
    assert differ(Estimate((1.0, 1.0)), Estimate((1.1, 1.1)), floor=0.5)
    assert not differ(Estimate((1.0,)), Estimate((1.0,)))


@pytest.mark.parametrize(("low", "apart"), [(1.25, True), (1.2, False), (1.1, False)])
def test_with_one_seed_ranges_of_repeats_must_not_overlap(low, apart):
    slow, fast = Estimate((1.4,), low, 1.5), Estimate((1.0,), 0.9, 1.2)
    assert differ(slow, fast) == differ(fast, slow) == apart
    assert not differ(slow, fast, floor=0.5)
    several = [Estimate((e.mean, e.mean), e.low, e.high) for e in (slow, fast)]
    assert differ(*several)  # which say by themselves how far a repetition differs


def test_a_band_goes_from_the_20th_to_the_80th_percentile():
    assert band([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (2.0, 5.0)
    assert band([1.0]) == (1.0, 1.0)


# Crossover lengths


def test_crossover_is_where_two_powers_of_the_length_meet():
    lengths = (64, 128, 256, 512)
    found = crossover(_points({n: 300.0 * n for n in lengths}), _points({n: float(n * n) for n in lengths}))
    assert (found.kind, found.longest, found.level, found.dearer) == ("from", 512, None, 256)
    assert found.length == pytest.approx(300)
    assert found.ratio == pytest.approx(300 / 512)
    assert str(found) == "from about 300"


def test_crossover_must_last_to_the_end():
    reference = _points({1: 2.0, 2: 2.0, 4: 2.0, 8: 2.0})
    assert crossover(_points({1: 1.0, 2: 3.0, 4: 1.0, 8: 1.0}), reference).length > 2
    late = crossover(_points({1: 1.0, 2: 1.0, 4: 1.0, 8: 3.0}), reference)
    assert (late.kind, str(late)) == ("never", "none up to 8")


def test_crossover_always_never_and_unknown():
    reference = _points({128: 1.0, 1024: 2.0})
    assert str(crossover(_points({128: 0.5, 1024: 0.5}), reference)) == "always"
    assert str(crossover(_points({128: 1.1, 1024: 2.1}), reference)) == "none up to 1,024"
    assert str(crossover(_points({128: 1.0, 1024: 2.0}), reference)) == "level from 128 to 1,024"
    assert crossover(_points({256: 1.0}), reference) is None
    assert crossover([], reference) is None


def _timed(values, spread=0.1):
    return [Point(x, y, y * (1 - spread), y * (1 + spread)) for x, y in values.items()]


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ({256: 1.0, 512: 1.0, 1024: 1.0, 2048: 0.9}, "level from 256 to 2,048"),
        ({256: 2.0, 512: 2.0, 1024: 2.0, 2048: 0.9}, "level at 2,048"),
        ({256: 2.0, 512: 1.1, 1024: 0.95, 2048: 0.5}, "from 2,048, level from 512 to 1,024"),
        ({256: 1.0, 512: 0.5, 1024: 0.5, 2048: 0.5}, "from 512, level at 256"),
        ({256: 2.0, 512: 2.0, 1024: 0.5, 2048: 0.5}, "from about 720"),
        ({256: 0.5, 512: 0.5, 1024: 0.5, 2048: 0.5}, "always"),
        ({256: 0.5, 512: 0.5, 1024: 0.5, 2048: 2.0}, "none up to 2,048"),
    ],
)
def test_no_crossover_is_stated_within_the_spread(mine, words):
    assert str(crossover(_timed(mine), _timed(dict.fromkeys(mine, 1.0)))) == words


def test_decoding_that_seems_to_fall_with_the_context_is_noise_and_gives_no_crossover():
    exact = [Point(256, 7e-4, 6e-4, 9e-4), Point(1024, 9e-4, 7e-4, 1.5e-3), Point(2048, 1.1e-3, 8e-4, 1.6e-3)]
    mine = [Point(256, 9e-4, 8e-4, 1.3e-3), Point(1024, 1.4e-3, 8e-4, 2e-3), Point(2048, 8e-4, 7e-4, 1.4e-3)]
    assert str(crossover(mine, exact)) == "level from 256 to 2,048"


def test_several_seeds_decide_by_their_interval_and_not_by_the_widest_range():
    wide = (0.5, 3.0)
    mine = [Point(8, 1.0, *wide, (0.99, 1.0, 1.01))]
    assert crossover(mine, [Point(8, 2.0, *wide, (1.99, 2.0, 2.01))]).kind == "always"
    assert crossover(mine, [Point(8, 2.0, *wide, (0.5, 2.0, 3.5))]).kind == "level"


# Numbers


def test_the_shared_baseline_is_in_all_three_tables():
    plan = make_plan()
    slots = _slots(plan, make_rows(plan))
    cells = [_entry(slots[s], n).numbers["quality"] for s, n in (("mixer", "flash"), ("position", "rope"))]
    assert cells[0] == cells[1] == _entry(slots["linear"], "dense").numbers["quality"]
    assert [e.name for e in slots["mixer"].entries] == ["flash", "mlgru", "mamba", "reformer", "linformer"]
    assert slots["mixer"].question == registry.SLOTS["mixer"]


def test_numbers_are_means_over_seeds():
    plan = make_plan()
    rows = make_rows(plan)
    mine = find(rows, "mixer", "mamba")
    entry = _entry(_slots(plan, rows)["mixer"], "mamba")
    assert entry.number("quality") == pytest.approx(sum(r["validation"]["bits_per_byte"] for r in mine) / 3)
    assert entry.number("peak") == pytest.approx(sum(r["peak_bytes"] for r in mine) / 3)
    assert entry.number("step") == pytest.approx(sum(r["decode"][-1]["step"]["median"] for r in mine) / 3)
    assert entry.number("cache") == mine[0]["decode"][-1]["cache_bytes"]
    point = entry.series["forward"][0]
    assert point.low == min(r["growth"][0]["forward"]["low"] for r in mine)
    assert point.high == max(r["growth"][0]["forward"]["high"] for r in mine)
    far = [p["bits_per_byte"] for r in mine for p in r["places"] if p["from"] >= WINDOW]
    assert entry.number("beyond") == pytest.approx(sum(far) / len(far))
    assert (entry.title, entry.planned, entry.done) == ("Mamba", 6, 6)


def test_equal_time_is_read_where_the_fastest_ends():
    plan = make_plan(seeds=(0,), slots=("linear",))
    rows = make_rows(plan)
    set_quality(rows, "linear", "dense", [2.0])
    set_quality(rows, "linear", "ternary", [2.0])
    set_seconds(rows, "linear", "dense", 10.0)
    set_seconds(rows, "linear", "ternary", 40.0)
    slot = _slots(plan, rows)["linear"]
    assert slot.budget == 10.0
    assert _entry(slot, "dense").number("timed") == pytest.approx(2.0)
    assert _entry(slot, "ternary").number("timed") == pytest.approx(2.75)  # a quarter of its way
    find(rows, "linear", "dense")[0]["train"]["curve"][-1]["seconds"] = 12.0
    between = _entry(_slots(plan, rows)["linear"], "ternary").number("timed")
    assert between == pytest.approx(2.75 - 0.125 * math.log(12 / 10) / math.log(15 / 10))


def test_numbers_that_rest_on_time_carry_the_range_of_their_repeats():
    plan = make_plan(seeds=(0,), slots=("linear",))
    rows = make_rows(plan)
    set_quality(rows, "linear", "ternary", [2.0])
    set_seconds(rows, "linear", "dense", 20.0)
    set_seconds(rows, "linear", "ternary", 40.0)
    (row,) = find(rows, "linear", "ternary")
    step = row["decode"][-1]["step"]
    even = _entry(_slots(plan, rows)["linear"], "ternary").numbers
    assert (even["step"].low, even["step"].high) == (step["low"], step["high"])
    assert even["speed"].low == pytest.approx(even["speed"].high)
    assert even["timed"].low == pytest.approx(even["timed"].high)
    assert (even["quality"].low, even["quality"].high) == (None, None)
    for point in row["train"]["curve"][2:]:  # one stretch took three times as long as the others
        point["seconds"] += 10.0
    for point in row["train"]["curve"][3:]:
        point["seconds"] += 10.0
    uneven = _entry(_slots(plan, rows)["linear"], "ternary").numbers
    assert uneven["speed"].low < uneven["speed"].mean <= uneven["speed"].high
    assert uneven["timed"].low <= uneven["timed"].mean < uneven["timed"].high


def test_parameters_are_held_to_the_median():
    plan = make_plan(seeds=(0,))
    rows = make_rows(plan)
    find(rows, "mixer", "reformer")[0]["parameters"] = 500_000
    slot = _slots(plan, rows)["mixer"]
    assert [e.name for e in slot.entries if not e.matched] == ["reformer"]
    assert any("Reformer (500,000)" in line for line in advise(slot, plan).because)


def test_missing_failed_and_repeated_cells():
    plan = make_plan(seeds=(0, 1))
    rows = make_rows(plan)
    gone = find(rows, "mixer", "mamba") + find(rows, "mixer", "mamba", "recall")
    broken, again = find(rows, "mixer", "reformer")
    kept = [row for row in rows if row not in gone and row is not broken]
    kept += [fail(broken["cell"], "\nRuntimeError: no\nmore"), fail(again["cell"], "later"), again]
    slot = _slots(plan, kept)["mixer"]
    mamba, reformer = _entry(slot, "mamba"), _entry(slot, "reformer")
    assert (mamba.done, mamba.errors, mamba.numbers["quality"], mamba.recall) == (0, (), None, {})
    assert (reformer.done, reformer.errors) == (3, ("RuntimeError: no",))
    assert len(reformer.numbers["quality"].values) == 1
    assert slot.crossings["mamba"] == dict.fromkeys(slot.crossings["mamba"])
    lines = advise(slot, plan).because
    assert "Runs of Reformer failed." in lines
    assert "Runs of Mamba are not finished." in lines


def test_values_that_are_null_stay_missing():
    plan = make_plan(seeds=(0,))
    rows = make_rows(plan)
    (row,) = find(rows, "mixer", "linformer")
    row |= {"peak_bytes": None, "growth": None, "decode": [], "places": []}
    row["train"] |= {"curve": None, "tokens_per_second": None}
    entry = _entry(_slots(plan, rows)["mixer"], "linformer")
    assert {name for name, found in entry.numbers.items() if found} == {"quality"}
    assert not any(entry.series.values())


def test_crossovers_need_exact_attention_and_the_mixer_slot():
    plan = make_plan(seeds=(0,))
    rows = make_rows(plan)
    assert set(_slots(plan, rows)["mixer"].crossings) == {"mlgru", "mamba", "reformer", "linformer"}
    assert _slots(plan, rows)["position"].crossings == {}
    plan["cells"] = [cell for cell in plan["cells"] if cell["mixer"] != "flash"]
    assert _slots(plan, rows)["mixer"].crossings == {}


def test_recall_is_by_task_and_length():
    plan = make_plan(seeds=(0, 1))
    slot = _slots(plan, make_rows(plan))["mixer"]
    assert slot.chance["selective_copying", 128] == 1 / 8
    assert len(_entry(slot, "mamba").recall["induction_heads", 64].values) == 2
    assert _slots(plan, [])["mixer"].chance == {}


# Around a pretrained model


def test_adapters_are_not_matched_in_parameters_and_no_tuning_stays_as_it_is():
    plan = make_plan(seeds=(0, 1), slots=("adapter",))
    rows = make_rows(plan)
    slot = _slots(plan, rows)["adapter"]
    assert [e.name for e in slot.entries] == ["prompt", "prefix", "ptuning", "lora", "full", "untuned"]
    assert {e.matched for e in slot.entries} == {None}
    lora, untuned = _entry(slot, "lora"), _entry(slot, "untuned")
    assert lora.number("trained") == 2_442_240
    assert lora.number("file") == 4 * 2_442_240
    assert lora.number("optimizer") == 8 * 2_442_240
    assert [point.x for point in lora.series["trained"]] == [2_442_240]
    assert slot.budget == min(r["train"]["seconds"] for r in rows if r["train"]["seconds"])
    assert untuned.number("timed") == untuned.number("quality") == pytest.approx(1.034)
    assert untuned.number("trained") == 0
    assert (untuned.numbers["peak"], untuned.series["trained"]) == (None, ())
    assert (lora.numbers["rate"], lora.series["ratio"]) == (None, ())


def test_a_pairing_is_read_at_its_best_block():
    plan = make_plan(seeds=(0, 1), slots=("pairing",))
    rows = make_rows(plan)
    set_ratio(rows, "tandem", 1.4)
    for row in find(rows, "pairing", "assisted"):
        row["blocks"][-1]["accepted_at"] = [0.5, 0.0, *[None] * 6]
    slot = _slots(plan, rows)["pairing"]
    tandem, alone = _entry(slot, "tandem"), _entry(slot, "alone")
    assert (tandem.number("block"), tandem.number("ratio")) == (4, 1.4)
    at = [b for r in find(rows, "pairing", "tandem") for b in r["blocks"] if b["block"] == 4]
    assert tandem.number("accepted") == pytest.approx(sum(b["acceptance"] for b in at) / 2)
    assert sum(tandem.numbers["texts"].values) == 8
    assert [point.x for point in tandem.series["ratio"]] == [2, 3, 4, 6, 8]
    assert [point.x for point in tandem.series["accepted_at"]] == list(range(1, 9))
    assert [(p.x, p.y) for p in _entry(slot, "assisted").series["accepted_at"]] == [(1, 0.5), (2, 0.0)]
    assert (alone.number("block"), alone.number("ratio"), alone.number("rate")) == (0, 1.0, 24.3)
    assert alone.series["ratio"] == ()
    assert (tandem.numbers["quality"], slot.budget) == (None, None)
