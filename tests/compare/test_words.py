import pytest
from rows_factory import make_plan

from nonet.compare import units
from nonet.compare.axes import log_ticks
from nonet.compare.looks import looks
from nonet.compare.summary import summarise
from nonet.learn import LOOKS

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def _slots(plan):
    return {slot.name: slot for slot in summarise(plan, [])}


def test_methods_look_different_within_a_slot_and_have_one_colour_everywhere():
    slots = _slots(make_plan(seeds=(0,)))
    for slot in slots.values():
        found = looks(slot).values()
        assert (
            len({look.colour for look in found}) == len({look.shape for look in found}) == len(slot.entries)
        )
    assert looks(slots["mixer"])["mlgru"].colour == looks(slots["linear"])["ternary"].colour
    assert all(looks(slots["mixer"])[name].colour == LOOKS[name].colour for name in ("flash", "mamba"))
    assert looks(slots["linear"])["dense"].colour == LOOKS["baseline"].colour


def test_a_look_does_not_depend_on_what_else_is_compared():
    plan = make_plan(seeds=(0,))
    whole = looks(_slots(plan)["mixer"])
    plan["cells"] = [cell for cell in plan["cells"] if cell["mixer"] in ("mamba", "linformer")]
    assert looks(_slots(plan)["mixer"]) == {name: whole[name] for name in ("mamba", "linformer")}


def test_a_mixer_that_the_registry_does_not_know_has_its_name_for_a_title():
    plan = make_plan(seeds=(0,), slots=("linear",))
    plan["cells"].append({**plan["cells"][0], "id": "x", "linear": "bespoke"})
    entry = _slots(plan)["linear"].entries[-1]
    assert (entry.title, entry.role) == ("bespoke", "variant")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (0.006, 0.2, [0.01, 0.02, 0.05, 0.1, 0.2]),
        (2.6e-3, 5.3e-3, [3e-3, 4e-3, 5e-3]),
        (20.0, 31.0, [20.0, 30.0]),
        (1.01, 1.05, [1.01, 1.02, 1.03, 1.04, 1.05]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low, high, ticks):
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (units.bits(2.4104), "2.410"),
        (units.bits(None), DASH),
        (units.seconds(4.51e-3), "4.51 ms"),
        (units.seconds(9.996e-4), "1000 µs"),
        (units.seconds(41.2), "41.2 s"),
        (units.seconds(0.0), "0 µs"),
        (units.seconds(600), "10.0 min"),
        (units.memory(8 * 2**20), "8.00 MiB"),
        (units.memory(512), "512 B"),
        (units.memory(None), DASH),
        (units.count(524288), "524,288"),
        (units.rounded(8561.0), "8,560"),
        (units.rounded(None), DASH),
        (units.share(0.0625), "6 %"),
        (units.times(0.00391), f"0.0039{TIMES}"),
        (units.ratio(1.3149), f"1.31{TIMES}"),
        (units.ratio(None), DASH),
        (units.rate(28.37), "28.4"),
        (units.rate(None), DASH),
        (units.part(0.0000857), "0.0086 %"),
        (units.part(1.0), "100 %"),
        (units.times(14.2), f"14{TIMES}"),
        (units.listed(["a", "b", "c"]), "a, b and c"),
        (units.listed([]), ""),
    ],
)
def test_numbers_as_words(words, expected):
    assert words == expected.replace(" µ", f"{units.GAP}µ").replace(
        " ", units.GAP if words[:1].isdigit() else " "
    )
