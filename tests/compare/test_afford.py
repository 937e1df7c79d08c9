"""A budget shrinks what is measured, says what it leaves out, and is refused only when nothing fits."""

from dataclasses import asdict, replace

import pytest
from compare_helpers import make_work

from nonet.compare import asked, cost
from nonet.compare.afford import Offer, fullest, left_out, offers, suggested
from nonet.compare.cost import Step, estimate, probes
from nonet.compare.plan import AROUND, INSIDE, cells, choose
from nonet.compare.scale import RECALL, recall_tokens, scales, with_less_recall


def make(scale, **changes):
    """The work of a scale, for models made anew."""
    return make_work(**{k: v for k, v in asdict(scale).items() if k != "seeds"}, **changes)


def make_around(scale):
    return make(scale, size="", model="m", layers=1)


def fit(budget, seconds, *, choices=None, quick=False, seeds=None, around=False):
    """The fullest comparison where a step takes ``seconds``, and what it costs."""
    choices = choices or [choose(AROUND if around else INSIDE, None)]
    offered = list(offers(choices, make_around if around else make, quick=quick, seeds=seeds))
    found = {c.combo for offer, _ in offered for c in offer.cells()}
    steps = {combo: Step(seconds, 1, 1, seconds / 3, seconds / 50) for combo in found}
    offer, least = fullest(budget, offered, steps)
    return offer, least if offer is None else estimate(offer.cells(), steps)["seconds"]


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("budget", [600.0, 1800.0, 7200.0, 86400.0])
def test_a_budget_is_filled_and_never_exceeded(budget, seconds, around):
    offer, cost = fit(budget, seconds, around=around)
    if offer is None:
        assert cost > budget  # no smaller one would have fitted
    else:
        assert 0.4 * budget < cost <= budget
        assert around or recall_tokens(offer.work) <= RECALL * offer.work.tokens


def test_less_time_means_less_is_measured_and_never_more():
    found = [fit(budget, 0.1)[0] for budget in (86400.0, 7200.0, 1800.0, 600.0, 300.0)]
    assert None not in found
    for name in ("evaluations", "validation_windows", "repeats", "task_steps"):
        sizes = [getattr(offer.work, name) for offer in found]
        assert sizes == sorted(sizes, reverse=True), name
    assert [offer.seeds for offer in found] == sorted((offer.seeds for offer in found), reverse=True)
    assert (found[0].seeds, found[0].work.lengths[-1]) == (3, 4096)
    assert (found[-1].seeds, found[-1].work.tasks) == (1, ())


def test_a_machine_ten_times_as_slow_still_gets_a_comparison_in_ten_minutes():
    assert fit(600.0, 0.1)[0].work.tokens > fit(600.0, 1.0)[0].work.tokens


def test_what_a_user_names_is_not_dropped():
    offer, _ = fit(3600.0, 0.1, seeds=2)
    assert offer.seeds == 2
    offer, least = fit(60.0, 0.1, seeds=2)
    assert offer is None
    assert least > 60.0
    assert fit(86400.0, 0.1, quick=True)[0].work.lengths == scales(INSIDE)[1].lengths


def test_cells_are_dropped_last_and_only_when_nothing_else_helps():
    chosen = choose(INSIDE, None)
    choices = [chosen, {"mixer": chosen["mixer"]}]
    assert tuple(fit(600.0, 0.3, choices=choices)[0].chosen) == INSIDE
    offer, _ = fit(150.0, 0.3, choices=choices)
    assert tuple(offer.chosen) == ("mixer",)


@pytest.mark.parametrize(
    ("slots", "methods", "kept"),
    [(None, None, [INSIDE, ("mixer",)]), (INSIDE, None, [INSIDE]), (None, ("axial",), [("position",)])],
)
def test_slots_that_the_user_named_are_not_dropped(slots, methods, kept):
    chosen = choose(slots or INSIDE, methods)
    choices = asked._choices(chosen, asked.Asked(slots=slots, methods=methods))
    assert [tuple(choice) for choice in choices] == kept


def test_what_is_left_out_is_said_in_words():
    chosen = choose(INSIDE, ["axial", "mamba"])
    full, _, short, _ = scales(INSIDE)
    got = replace(make(with_less_recall(short)[-1]), tokens=1024)
    words = left_out(Offer(chosen, make(full), 3), Offer({"mixer": chosen["mixer"]}, got, 1))
    assert words[:2] == ["1 seed instead of 3", "no comparison of position"]
    assert "24 windows of validation text instead of 64" in words
    assert "3 repeats of each timing instead of 5" in words
    assert "no passes over 2,048 or 4,096 tokens" in words
    assert any(line.startswith("no recall by selective copying, ") for line in words)
    assert not any("recall task" in line for line in words)  # said once
    same = Offer(chosen, make(full), 3)
    assert left_out(same, replace(same, work=replace(same.work, tokens=1))) == []


def test_recall_costs_no_more_than_its_share_of_the_training():
    full, quick, *_ = scales(INSIDE)
    assert asked._with_recall(full, full.tokens) == full
    assert asked._with_recall(quick, quick.tokens) == quick
    assert asked._with_recall(full, 200_000).tasks == quick.tasks
    assert asked._with_recall(full, 40_000).tasks == ()
    none = make(asked._with_recall(full, 40_000))
    assert {c.kind for c in cells(choose(("mixer",), None), none, (0,))} == {"language"}


@pytest.mark.parametrize(
    ("seconds", "words"), [(10.0, "15s"), (31.0, "45s"), (84.0, "105s"), (85.0, "2m"), (600.0, "13m")]
)
def test_a_suggested_budget_is_enough_and_can_be_typed(seconds, words):
    assert suggested(seconds) == words
    assert asked.parse_seconds(words) >= 1.2 * seconds


# Probes


def probed(monkeypatch, seconds, clock=lambda: 0.0):
    """Runs probes that take these seconds, round by round; returns the steps and the order of the probes."""
    order = []

    class Fake:
        @staticmethod
        def probe(cell):
            order.append(cell.linear)
            done = order.count(cell.linear) - 1
            return Step(seconds[cell.linear][done], 8, 4)

    monkeypatch.setattr(cost, "home", lambda cell: Fake)
    monkeypatch.setattr(cost.time, "monotonic", clock)
    return probes(cells(choose(("linear",), None), make_work(), (0, 1))), order


def test_the_least_of_interleaved_probes_counts(monkeypatch):
    noisy = {"dense": (5.0, 0.1, 0.2), "ternary": (0.3, 4.0, 0.2)}
    steps, order = probed(monkeypatch, noisy)
    assert {combo[2]: step.seconds for combo, step in steps.items()} == {"dense": 0.1, "ternary": 0.2}
    assert all((step.bytes, step.trained) == (8, 4) for step in steps.values())
    assert len(order) == 6
    assert [set(order[i : i + 2]) for i in (0, 2, 4)] == [{"dense", "ternary"}] * 3


def test_slow_models_are_probed_in_fewer_rounds(monkeypatch):
    ticks = iter(range(0, 1000, 21))
    _, order = probed(monkeypatch, {"dense": (9.0,) * 3, "ternary": (9.0,) * 3}, lambda: next(ticks))
    assert len(order) == 2
