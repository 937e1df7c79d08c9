import json
from dataclasses import replace

import pytest
from compare_helpers import make_work

from nonet.compare.cost import Step, tokens_for
from nonet.compare.plan import BASELINE, COMPARED, Cell, Plan, cells, choose
from nonet.registry import parts

WORK = make_work()


def test_every_method_and_baseline_is_compared_and_the_baseline_is_shared():
    chosen = choose(COMPARED, None)
    for slot in COMPARED:
        assert {p.name for p in chosen[slot]} == {p.name for p in parts(slot) if p.role != "variant"}
        assert chosen[slot][0].name == BASELINE[slot]
    planned = cells(chosen, WORK, (0, 1))
    assert len({c.id for c in planned}) == len(planned)
    shared = [c for c in planned if c.kind == "language" and c.slots == COMPARED]
    assert [c.seed for c in shared] == [0, 1]
    assert {c.combo for c in shared} == {tuple(BASELINE.values())}
    recall = [c for c in planned if c.kind == "recall"]
    assert {c.mixer for c in recall} == {p.name for p in chosen["mixer"]}


def test_models_of_a_comparison_have_equal_parameters():
    counts = [c.parameters for c in cells(choose(COMPARED, None), WORK, (0,))]
    assert max(counts) / min(counts) < 1.05


def test_a_cell_survives_json_and_its_name_is_its_content():
    cell = cells(choose(("linear",), None), WORK, (3,))[0]
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again == cell
    assert again.id == cell.id
    assert replace(cell, seed=4).id != cell.id
    assert replace(cell, slots=("linear",)).id == replace(cell, slots=("mixer",)).id


def test_a_plan_survives_json():
    planned = cells(choose(("linear",), None), WORK, (0,))
    estimate = {"seconds": 1.0, "bytes": 2.0}
    plan = Plan("nonet compare", "now", {}, ("linear",), (0,), WORK, planned, {}, estimate)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_methods_narrow_the_slots_and_bring_the_baseline_along():
    chosen = choose(COMPARED, ["mamba", "alibi"])
    assert {slot: [p.name for p in ps] for slot, ps in chosen.items()} == {
        "mixer": ["flash", "mamba"],
        "position": ["rope", "alibi"],
    }
    whole_method = choose(COMPARED, ["matmulfree"])
    assert [p.name for p in whole_method["mixer"]] == ["flash", "mlgru"]
    assert [p.name for p in whole_method["linear"]] == ["dense", "ternary"]
    assert [p.name for p in choose(("position",), ["axial"])["position"]] == ["rope", "axial"]


@pytest.mark.parametrize(
    ("slots", "methods", "message"),
    [
        (("mixers",), None, "slots: 'mixers' is not known; choose from mixer"),
        (("adapter",), None, "slots: 'adapter' is not compared yet"),
        (COMPARED, ["gpt"], "methods: 'gpt' is not known; choose from"),
        (("linear",), ["alibi"], "fill none of the slots linear"),
    ],
)
def test_wrong_names_are_refused(slots, methods, message):
    with pytest.raises(ValueError, match=message):
        choose(slots, methods)


def test_a_budget_becomes_tokens_on_a_coarse_grid():
    planned = cells(choose(("linear",), None), WORK, (0,))
    steps = {c.combo: Step(0.01, 1) for c in planned}
    tokens = tokens_for(120.0, planned, steps, WORK)
    assert tokens % (WORK.batch * WORK.window) == 0
    # A machine that measures itself 5 % slower the next time plans the same.
    slower = {c.combo: Step(0.0105, 1) for c in planned}
    assert tokens_for(120.0, planned, slower, WORK) == tokens
    assert tokens_for(1200.0, planned, steps, WORK) > tokens
    with pytest.raises(ValueError, match="too short for 2 cells"):
        tokens_for(1.0, planned, steps, WORK)
