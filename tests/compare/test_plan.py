import json
from dataclasses import replace

import pytest
from compare_helpers import make_work

from nonet.compare.cost import Step, least_seconds, seconds_of, tokens_for
from nonet.compare.pairing import KINDS
from nonet.compare.plan import AROUND, BASELINE, INSIDE, Cell, Plan, cells, choose
from nonet.compare.scale import QUICK_AROUND, scales
from nonet.registry import parts
from nonet.training import finetune, pairing

WORK = make_work()


def test_every_method_and_baseline_is_compared_and_the_baseline_is_shared():
    chosen = choose(INSIDE, None)
    for slot in INSIDE:
        assert {p.name for p in chosen[slot]} == {p.name for p in parts(slot) if p.role != "variant"}
        assert chosen[slot][0].name == BASELINE[slot]
    planned = cells(chosen, WORK, (0, 1))
    assert len({c.id for c in planned}) == len(planned)
    shared = [c for c in planned if c.kind == "language" and c.slots == INSIDE]
    assert [c.seed for c in shared] == [0, 1]
    assert {c.combo for c in shared} == {tuple(BASELINE[slot] for slot in INSIDE)}
    recall = [c for c in planned if c.kind == "recall"]
    assert {c.mixer for c in recall} == {p.name for p in chosen["mixer"]}


def test_models_of_a_comparison_have_equal_parameters():
    counts = [c.parameters for c in cells(choose(INSIDE, None), WORK, (0,))]
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
    chosen = choose(INSIDE, ["mamba", "alibi"])
    assert {slot: [p.name for p in ps] for slot, ps in chosen.items()} == {
        "mixer": ["flash", "mamba"],
        "position": ["rope", "alibi"],
    }
    whole_method = choose(INSIDE, ["matmulfree"])
    assert [p.name for p in whole_method["mixer"]] == ["flash", "mlgru"]
    assert [p.name for p in whole_method["linear"]] == ["dense", "ternary"]
    assert [p.name for p in choose(("position",), ["axial"])["position"]] == ["rope", "axial"]


def test_adapters_and_pairings_are_compared_around_one_pretrained_model():
    chosen = choose(AROUND, None)
    assert [p.name for p in chosen["adapter"]] == ["full", "prompt", "prefix", "ptuning", "lora", "untuned"]
    assert [p.name for p in chosen["pairing"]] == ["alone", "tandem", "speculative", "assisted"]
    planned = cells(chosen, make_work(size="", model="m", layers=1), (0, 1))
    assert [c.name for c in planned][::10] == ["full, adapter, seed 0", "full, adapter, seed 1"]
    assert len({c.id for c in planned}) == len(planned) == 20
    assert {c.combo[0] for c in planned if not c.learning_rate} == {"untuned", "alone"}
    assert all(c.slots == (c.kind,) for c in planned)
    assert Cell.from_json(json.loads(json.dumps(planned[3].to_json()))) == planned[3]


def test_methods_narrow_what_is_around_a_model_too():
    assert [p.name for p in choose(("adapter",), ["dora"])["adapter"]] == ["full", "dora"]
    assert [p.name for p in choose(AROUND, ["lora"])["adapter"]] == ["full", "lora"]
    assert set(choose(AROUND, ["tandem"])) == {"pairing"}


def test_every_part_around_a_model_can_be_trained_or_needs_no_training():
    adapters = {p.name for p in parts("adapter") if p.causal}
    assert adapters - {"untuned"} <= set(finetune.RATES)
    assert {p.name for p in parts("pairing")} - {"alone"} == set(pairing.RATES) == set(KINDS)


@pytest.mark.parametrize(
    ("slots", "methods", "message"),
    [
        (("mixers",), None, "slots: 'mixers' is not known; choose from mixer"),
        (("linear", "adapter"), None, "slots: linear, adapter are not of one model"),
        (INSIDE, ["gpt"], "methods: 'gpt' is not known; choose from"),
        (("linear",), ["alibi"], "fill none of the slots linear; --slots position has them"),
        (INSIDE, ["lora", "tandem"], "--slots adapter,pairing has them"),
        (("adapter",), ["pet"], "fill none of the slots adapter; they do not model language"),
    ],
)
def test_wrong_names_are_refused(slots, methods, message):
    with pytest.raises(ValueError, match=message):
        choose(slots, methods)


def test_a_budget_becomes_tokens_on_a_coarse_grid():
    planned = cells(choose(("linear",), None), WORK, (0,))
    steps = {c.combo: Step(0.01, 1, 1) for c in planned}
    tokens = tokens_for(120.0, planned, steps, WORK)
    assert tokens % (WORK.batch * WORK.window) == 0
    # A machine that measures itself 5 % slower the next time plans the same.
    slower = {c.combo: Step(0.0105, 1, 1) for c in planned}
    assert tokens_for(120.0, planned, slower, WORK) == tokens
    assert tokens_for(1200.0, planned, steps, WORK) > tokens
    assert tokens_for(1.0, planned, steps, WORK) is None
    least = least_seconds(planned, steps, WORK)
    assert tokens_for(least - 0.01, planned, steps, WORK) is None
    assert tokens_for(least + 0.01, planned, steps, WORK) == 16 * WORK.batch * WORK.window


def test_a_budget_of_a_pretrained_model_counts_what_is_trained():
    work = make_work(size="", model="m", layers=1, blocks=(2, 4), texts=2, new=16, tasks=())
    planned = cells(choose(("pairing",), None), work, (0,))
    steps = {
        c.combo: Step(0.02 * bool(c.learning_rate), 1, int(c.learning_rate > 0), 0.01, 0.001) for c in planned
    }
    tokens = tokens_for(120.0, planned, steps, work)
    alone, tandem = planned[:2]
    assert seconds_of(tandem, steps["tandem",]) - seconds_of(alone, steps["alone",]) > 0.02 * 6
    whole = [replace(c, work=replace(work, tokens=tokens)) for c in planned]
    assert 60 < sum(seconds_of(c, steps[c.combo]) for c in whole) <= 120
    assert tokens_for(60.0, (alone,), steps, work) == work.tokens
    assert tokens_for(5.0, (alone,), steps, work) is None


def test_a_quick_comparison_does_less():
    for slots in (INSIDE, AROUND):
        full, quick, *_ = scales(slots)
        assert quick.tokens < full.tokens
        assert quick.seeds < full.seeds
    assert scales(("pairing",))[1] is QUICK_AROUND
