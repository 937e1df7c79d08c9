import pytest
from rows_factory import fail, find, make_plan, make_rows, set_quality, set_ratio, set_seconds

from nonet.compare import units
from nonet.compare.advice import advise
from nonet.compare.summary import summarise

TIMES = "\N{MULTIPLICATION SIGN}"


def _slots(plan, rows):
    return {slot.name: slot for slot in summarise(plan, rows)}


def _advice(qualities, seconds=None, seeds=3):
    plan = make_plan(seeds=tuple(range(seeds)), slots=("mixer",))
    rows = make_rows(plan)
    for name in ("flash", "mlgru", "mamba", "reformer", "linformer"):
        set_quality(rows, "mixer", name, qualities.get(name, (3.0, 3.01, 3.02)[:seeds]))
        set_seconds(rows, "mixer", name, (seconds or {}).get(name, 50.0))
    return advise(_slots(plan, rows)["mixer"], plan)


def test_a_clear_leader_is_recommended():
    found = _advice({"mamba": (2.40, 2.41, 2.42), "flash": (2.50, 2.51, 2.52)})
    assert (found.standing, found.chosen, found.choice) == ("clear", ("mamba",), "Use Mamba.")
    assert "2.410 bits per byte, 0.100 below FlashAttention" in found.reason
    assert found.level == (frozenset({"mamba"}), frozenset({"mamba"}))
    assert f"Mamba 2.410{units.GAP}±{units.GAP}0.025 bits per byte" in found.because[0]


def test_a_difference_within_the_spread_is_a_tie_and_speed_decides():
    qualities = {"mamba": (2.40, 2.45, 2.50), "flash": (2.42, 2.47, 2.52)}
    found = _advice(qualities)
    assert (found.standing, set(found.chosen)) == ("tie", {"flash", "mamba"})
    same = "their speeds of training differ by no more than the spread"
    assert found.reason == f"They tie in quality, and {same}."
    assert any("may part Mamba and FlashAttention" in line for line in found.unless)
    level = {"flash": (2.3, 2.45, 2.6), "mamba": (2.3, 2.45, 2.6)}
    fast = _advice(level, {"flash": 50.0, "mamba": 41.0}, seeds=3)
    assert fast.choice == "Use Mamba."
    assert f"it trains fastest, 1.2{TIMES} as fast as FlashAttention" in fast.reason


@pytest.mark.parametrize(("gap", "standing"), [(0.019, "tie"), (0.021, "clear")])
def test_with_one_seed_less_than_two_hundredths_is_a_tie(gap, standing):
    found = _advice({"mamba": (2.4,), "flash": (2.4 + gap,)}, seeds=1)
    assert found.standing == standing
    assert any(line.startswith("With one seed there is no interval") for line in found.because)
    assert any(line.startswith("More seeds: one does not tell") for line in found.unless)


def test_text_and_time_may_want_different_methods():
    found = _advice({"mamba": (2.40, 2.41, 2.42), "flash": (2.50, 2.51, 2.52)}, {"mamba": 200.0})
    assert (found.standing, found.chosen) == ("depends", ("mamba", "flash"))
    assert found.choice == "Use Mamba where text to train on is scarce, and FlashAttention where time is."
    assert any(line.startswith("Slower methods were read before") for line in found.unless)


def test_a_tie_at_equal_tokens_is_decided_by_equal_time():
    found = _advice({"mamba": (2.4,), "flash": (2.41,)}, {"mamba": 200.0}, seeds=1)
    assert (found.standing, found.chosen) == ("clear", ("flash",))
    assert "level with Mamba at equal tokens, and is ahead at equal time" in found.reason


def test_nothing_is_recommended_from_fewer_than_two():
    plan = make_plan(seeds=(0,), slots=("linear",))
    rows = make_rows(plan)
    slot = _slots(plan, [])["linear"]
    assert advise(slot, plan).reason == "No training has finished."
    found = advise(_slots(plan, find(rows, "linear", "dense"))["linear"], plan)
    assert (found.standing, found.chosen) == ("open", ())
    assert (found.choice, found.reason) == ("Nothing to recommend yet.", "Only Dense has finished.")


def test_what_would_change_it_names_the_other_method_and_its_numbers():
    plan = make_plan()
    slots = _slots(plan, make_rows(plan))
    mixer, position = (advise(slots[name], plan) for name in ("mixer", "position"))
    assert any(line.startswith("Longer contexts: a forward pass costs less") for line in mixer.unless)
    assert any("Mamba from about 1,200 tokens" in line for line in mixer.unless)
    assert any(line.startswith("Less memory in generating: MatMul-free (MLGRU)") for line in mixer.unless)
    assert any(line.startswith("Faster generating, one more token: MatMul-free") for line in mixer.unless)
    assert any(
        line.startswith("Text beyond the trained length of 256 tokens: ALiBi") for line in position.unless
    )


def test_a_mixer_that_is_dearer_at_short_lengths_says_so():
    found = _advice({"mamba": (2.40, 2.41, 2.42)})
    assert any(line.startswith("Shorter contexts: below about 1,200 tokens") for line in found.unless)


def test_recall_speaks_against_a_forgetful_choice():
    found = _advice({"mlgru": (2.40, 2.41, 2.42)})
    assert any(line.startswith("Text that must be found again: associative recall") for line in found.unless)


@pytest.mark.parametrize("slot", ["mixer", "adapter", "pairing"])
def test_what_diverged_is_never_recommended(slot):
    plan = make_plan(slots=(slot,))
    rows = make_rows(plan)
    best = {"mixer": "mamba", "adapter": "lora", "pairing": "tandem"}[slot]
    if slot == "pairing":
        set_ratio(rows, best, 3.0)
    else:
        set_quality(rows, slot, best, (0.1, 0.1, 0.1))
    title = next(e.title for e in _slots(plan, rows)[slot].entries if e.name == best)
    assert advise(_slots(plan, rows)[slot], plan).chosen == (best,)

    one = find(rows, slot, best)[1]
    kept = [fail(row["cell"], "DivergedError: no", "diverged") if row is one else row for row in rows]
    found = advise(_slots(plan, kept)[slot], plan)
    assert best not in found.chosen
    said = (found.choice, found.reason, *found.unless)
    assert not any(title in line for line in said), said
    because = " ".join(found.because)
    assert f"Training of {title} diverged, which is why it is not recommended." in because
    assert f"Runs of {title}" not in because


def test_a_fastest_training_is_faster_than_all_that_tie_with_it():
    level = dict.fromkeys(("flash", "mamba", "mlgru"), (2.3, 2.45, 2.6))
    found = _advice(level, {"flash": 50.0, "mamba": 41.0, "mlgru": 41.5})
    assert found.choice == "Use Mamba or MatMul-free (MLGRU)."
    assert found.reason == (
        "In quality they tie with FlashAttention, and they train fastest, "
        f"1.2{TIMES} as fast as FlashAttention."
    )


def test_times_whose_repeats_overlap_are_not_told_apart():
    plan = make_plan(seeds=(0,), slots=("mixer",))
    rows = make_rows(plan)
    set_quality(rows, "mixer", "flash", [2.0])
    begin = "Faster generating, one more token"
    assert _begins(advise(_slots(plan, rows)["mixer"], plan).unless, begin)
    for row in rows:
        for found in row.get("decode", ()):
            found["step"] |= {"low": found["step"]["median"] / 3, "high": found["step"]["median"] * 3}
        for found in row.get("growth", ()):
            for name in ("forward", "backward"):
                found[name] |= {"low": found[name]["median"] / 30, "high": found[name]["median"] * 30}
    slot = _slots(plan, rows)["mixer"]
    noisy = advise(slot, plan)
    assert not _begins(noisy.unless, begin)
    assert not _begins(noisy.unless, "Longer contexts")
    times = [found[name] for found in slot.crossings.values() for name in ("forward", "backward", "step")]
    assert {found.kind for found in times} == {"level"}
    assert {str(found) for found in times} == {"level from 128 to 2,048", "level from 256 to 2,048"}


def test_a_busy_machine_tells_no_speeds_apart_and_the_report_says_so():
    plan = make_plan(seeds=(0,), slots=("position",))
    rows = make_rows(plan)
    for name in ("rope", "alibi", "sinusoidal", "learned", "none"):
        set_quality(rows, "position", name, [2.0 if name in ("rope", "alibi") else 2.5])
        set_seconds(rows, "position", name, 45.0 if name == "rope" else 25.0)
    assert advise(_slots(plan, rows)["position"], plan).chosen == ("alibi",)
    (rope,) = find(rows, "position", "rope")
    rope["train"]["least_seconds"] = 20.0
    found = advise(_slots(plan, rows)["position"], plan)
    assert set(found.chosen) == {"rope", "alibi"}
    assert any(
        f"on an idle one a training might have been up to 2.2{TIMES} as fast" in line
        for line in found.because
    )


def test_with_one_seed_a_speed_within_its_own_spread_decides_no_tie():
    plan = make_plan(seeds=(0,), slots=("linear",))
    rows = make_rows(plan)
    for name, seconds in (("dense", 40.0), ("ternary", 50.0)):
        set_quality(rows, "linear", name, [2.0])
        set_seconds(rows, "linear", name, seconds)
    assert advise(_slots(plan, rows)["linear"], plan).choice == "Use Dense."
    for row in rows:
        curve = row["train"]["curve"]
        for i, point in enumerate(curve):  # every other stretch takes five times as long
            point["seconds"] *= 1.0 if i % 2 == 0 else 0.6
        row["validation"]["bits_per_byte"] = curve[-1]["bits_per_byte"] = 2.0
    noisy = advise(_slots(plan, rows)["linear"], plan)
    assert "their speeds of training differ by no more than the spread" in noisy.reason


# Around a pretrained model


def _tuned(qualities, seeds=3):
    plan = make_plan(seeds=tuple(range(seeds)), slots=("adapter",))
    rows = make_rows(plan)
    for name, values in qualities.items():
        set_quality(rows, "adapter", name, values)
        set_seconds(rows, "adapter", name, 100.0)
    return advise(_slots(plan, rows)["adapter"], plan)


def _begins(lines, words):
    return any(line.startswith(words) for line in lines)


def test_an_adapter_is_recommended_by_what_it_learns_and_others_by_what_they_cost():
    found = _tuned({"lora": (0.90, 0.901, 0.902), "full": (0.95, 0.951, 0.952)})
    assert (found.standing, found.choice) == ("clear", "Use LoRA.")
    assert _begins(found.unless, "Fewer trained parameters: Prompt tuning 11,520, LoRA 2,442,240.")
    assert _begins(found.unless, "A smaller file: Prompt tuning 45.0")
    assert _begins(found.unless, "Less memory in training: Pr")
    assert _begins(found.unless, "Faster generating, one more token: Full fine-tuning")
    assert not any("parameters:" in line for line in found.because)
    assert not any("No tuning" in line for line in found.unless)  # which costs nothing and learns nothing


def test_where_nothing_is_learned_the_model_is_left_as_it_is():
    rises = dict.fromkeys(("full", "prompt", "prefix", "ptuning", "lora"), (1.1, 1.11, 1.12))
    found = _tuned(rises)
    assert (found.chosen, found.choice) == (("untuned",), "Leave the model as it is.")
    found = _tuned({**rises, "lora": (1.03, 1.035, 1.04)})
    assert found.standing == "tie"
    assert (found.chosen[0], found.choice) == ("untuned", "Leave the model as it is.")
    assert found.reason == "What LoRA learned lies within the spread."


def _written(ratios, seeds=1, identical=4):
    plan = make_plan(seeds=tuple(range(seeds)), slots=("pairing",))
    rows = make_rows(plan)
    for name, ratio in ratios.items():
        set_ratio(rows, name, ratio, identical if name == "tandem" else 4)
    return advise(_slots(plan, rows)["pairing"], plan)


def test_the_fastest_pairing_is_recommended_with_its_block():
    found = _written({"tandem": 1.5, "speculative": 1.2, "assisted": 0.9})
    assert (found.standing, found.chosen) == ("clear", ("tandem",))
    assert found.choice == "Use Tandem with blocks of 4."
    own = "and all 4 texts are the primary's own."
    assert found.reason == f"It writes at 1.50{TIMES} the speed of the primary alone, {own}"
    assert found.because[0] == (
        f"Beside the primary alone, text by text: Tandem with blocks of 4 at 1.50{TIMES}, Speculative "
        f"decoding with blocks of 4 at 1.20{TIMES} and Assisted generation with blocks of 4 at 0.90{TIMES}."
    )
    assert "Drafts come from 3 of the primary's layers, trained on 524,288 tokens." in found.because
    assert any("would give 5 tokens a pass in place of" in line for line in found.unless)


@pytest.mark.parametrize(("other", "standing"), [(1.46, "tie"), (1.43, "tie"), (1.41, "clear")])
def test_with_one_seed_pairings_tie_where_quartiles_overlap(other, standing):
    found = _written({"tandem": 1.5, "speculative": other, "assisted": 0.9})
    assert found.standing == standing
    assert found.choice.startswith("Use Tandem with blocks of 4")
    assert ("or Speculative decoding" in found.choice) == (standing == "tie")


def test_a_pairing_that_changes_a_text_is_not_recommended_but_named():
    found = _written({"tandem": 1.9, "speculative": 1.2, "assisted": 0.9}, identical=3)
    assert found.chosen == ("speculative",)
    assert "Tandem gave 3 of 4 texts unchanged." in found.because
    assert _begins(found.unless, "Texts that need not be the primary's own to the letter: Tandem")


@pytest.mark.parametrize("best", [0.9, 1.03])  # the last within the texts' quartiles
def test_where_no_draft_pays_the_primary_writes_alone(best):
    found = _written({"tandem": best, "speculative": 0.8, "assisted": 0.5})
    assert (found.chosen, found.choice) == (("alone",), "Let the primary write alone.")
    assert found.reason == (
        "No draft that keeps its texts makes it faster beyond the spread: "
        f"Tandem with blocks of 4 at {best:.2f}{TIMES} its speed."
    )


def test_with_several_seeds_faster_means_by_more_than_their_interval():
    plan = make_plan(seeds=(0, 1), slots=("pairing",))
    rows = make_rows(plan)
    for name in ("speculative", "assisted"):
        set_ratio(rows, name, 0.8)
    for seconds, chosen in ((0.9, "alone"), (1.39, "tandem")):
        set_ratio(rows, "tandem", 1.4)
        set_ratio([row for row in rows if row["cell"]["seed"]], "tandem", seconds)
        assert advise(_slots(plan, rows)["pairing"], plan).chosen == (chosen,)


def test_nothing_is_said_of_pairings_before_one_has_written():
    plan = make_plan(seeds=(0,), slots=("pairing",))
    rows = make_rows(plan)
    slot = _slots(plan, find(rows, "pairing", "alone"))["pairing"]
    found = advise(slot, plan)
    assert (found.standing, found.reason) == ("open", "Only Primary alone has finished.")
    assert any("are not finished" in line for line in found.unless)
