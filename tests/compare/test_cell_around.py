"""Cells around a pretrained model: how it is taught, and how fast it writes with a draft."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from compare_helpers import make_work_around, write_text
from transformers.utils import logging

from nonet.compare import pairing
from nonet.compare.cell import run_cell
from nonet.compare.cost import probes, seconds_of
from nonet.compare.plan import cells, choose
from nonet.hf import load_pretrained
from nonet.testing import assert_within_rounding
from nonet.training.speed import write_alone, write_assisted


@pytest.fixture(autouse=True)
def _keep_global_settings():
    threads, mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode)
    torch.utils.deterministic.fill_uninitialized_memory = True
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("around") / "fox.txt")


@pytest.fixture
def planned(model, text):
    def made(slot, methods=None, **changes):
        return cells(choose((slot,), methods), make_work_around(model, text, **changes), (0,))

    return made


def run(cell):
    row = run_cell(json.loads(json.dumps(cell.to_json())))
    assert json.loads(json.dumps(row)) == row
    return row


def test_every_adapter_learns_and_is_measured(planned):
    rows = {}
    for cell in (*planned("adapter"), *planned("adapter", ["dora"])[1:]):
        row = rows[cell.adapter] = run(cell)
        curve = row["train"]["curve"]
        if cell.adapter == "untuned":
            assert [point["tokens"] for point in curve] == [0]
            assert (row["train"]["tokens_per_second"], row["peak_bytes"], row["file_bytes"]) == (
                None,
                None,
                0,
            )
        else:
            assert [point["tokens"] for point in curve] == [0, 384, 768]
            assert row["validation"]["bits_per_byte"] < row["train"]["first_bits_per_byte"]
            assert row["file_bytes"] > 0
            # AdamW keeps two moments of each number, and a count for each tensor.
            extra = row["optimizer_bytes"] - 8 * row["trained_parameters"]
            assert 0 < extra <= 4 * 64
        assert row["decode"][0]["step"]["median"] > 0
    whole = rows["untuned"]["parameters"]
    trained = {name: row["trained_parameters"] for name, row in rows.items()}
    assert (trained["full"], trained["prompt"], trained["untuned"]) == (whole, 20 * 32, 0)
    for name, row in rows.items():
        assert row["parameters"] == whole + (0 if name == "full" else trained[name])
    # An adapter that starts as nothing begins where the model stands; what is kept is what was trained.
    starts = {
        name: rows[name]["train"]["first_bits_per_byte"] for name in ("untuned", "full", "lora", "dora")
    }
    assert starts["untuned"] == starts["full"] == starts["lora"]
    assert rows["full"]["file_bytes"] > 4 * whole
    assert rows["lora"]["file_bytes"] < rows["full"]["file_bytes"]
    assert set(rows["lora"]["implementations"]) >= {"lora_linear"}
    assert rows["dora"]["settings"]["variants"] == ["dora"]
    assert rows["prompt"]["settings"]["length"] == 20


def test_every_pairing_writes_the_text_of_the_primary_alone(planned):
    rows = {cell.pairing: run(cell) for cell in planned("pairing")}
    assert [b["block"] for b in rows["alone"]["blocks"]] == [0]
    assert rows["alone"]["trained_parameters"] == 0
    assert "train" not in rows["alone"]
    for name in ("tandem", "speculative", "assisted"):
        row = rows[name]
        losses = [point["nats"] for point in row["train"]["losses"]]
        assert len(losses) == 3
        assert losses[-1] < losses[0]
        assert [b["block"] for b in row["blocks"]] == [0, 2, 4]
        for block in row["blocks"]:
            assert block["identical"] == block["texts"] == 2
            assert block["tokens_per_second"] > 0
            missed = [i for i, share in enumerate(block["accepted_at"]) if not share]
            assert all(block["accepted_at"][i] is None for i in missed[1:])  # nothing behind it was reached
            assert block["ratio"]["low"] <= block["ratio"]["median"] <= block["ratio"]["high"]
        assert row["blocks"][0]["ratio"]["median"] == 1
    # The same draft, trained the same way, whoever writes with it.
    one, other = (rows[name]["train"]["losses"] for name in ("speculative", "assisted"))
    assert [point["nats"] for point in one] == [point["nats"] for point in other]
    reads = rows["tandem"]["trained_parameters"] - rows["speculative"]["trained_parameters"]
    assert reads == 32 * 32  # the map of the primary's states into the only layer


def test_a_draft_that_reads_for_itself_is_the_plain_model(planned):
    [cell] = [c for c in planned("pairing") if c.pairing == "speculative"]
    primary, _ = load_pretrained(cell.work.model, torch.float32)
    pair, _ = pairing.pair_of(cell, primary)
    ids = torch.randint(0, 256, (2, cell.work.window))
    wide = copy.deepcopy(pair.secondary).double()
    with torch.no_grad():
        assert_within_rounding(pair(ids).logits, lambda: wide(ids).logits, "logits")
    [reading] = [c for c in planned("pairing") if c.pairing == "tandem"]
    with torch.no_grad():
        read = pairing.pair_of(reading, primary)[0](ids).logits
    with pytest.raises(AssertionError, match="logits: largest error"):
        assert_within_rounding(read, lambda: wide(ids).logits, "logits")


def test_passes_of_assisted_generation_add_up_to_its_text(model):
    primary, _ = load_pretrained(model, torch.float32)
    primary.generation_config.eos_token_id = None
    draft, _ = load_pretrained(model, torch.float32)
    with torch.no_grad():
        draft.model.layers[-1].mlp.down_proj.weight += 0.05 * torch.randn(32, 48)
    ids = torch.randint(0, 256, (1, 7))
    alone, _ = write_alone(primary, ids, new=24)
    written, stats = write_assisted(primary, draft, ids, new=24, block=3)
    assert torch.equal(written, alone)
    assert stats.tokens == 24
    assert stats.accepted + stats.primary_calls == stats.tokens
    assert 0 < stats.accepted < stats.drafted
    assert len(stats.drafted_at) <= 3
    itself, _ = load_pretrained(model, torch.float32)
    _, sure = write_assisted(primary, itself, ids, new=24, block=3)
    assert sure.accepted == sure.drafted


def test_a_probe_measures_what_an_estimate_needs(planned):
    for slot, idle in (("adapter", "untuned"), ("pairing", "alone")):
        made = planned(slot, [idle, "lora", "tandem"])
        steps = probes(made)
        assert steps[idle,].trained == 0
        assert steps[idle,].seconds == 0
        for cell in made:
            step = steps[cell.combo]
            assert step.bytes > 0
            assert step.token > 0
            longer = replace(cell, work=replace(cell.work, tokens=10 * cell.work.tokens))
            grows = seconds_of(longer, step) > seconds_of(cell, step)
            assert grows == (cell.combo != (idle,))


def test_a_text_that_changed_since_the_plan_is_noticed(model, tmp_path):
    source = write_text(tmp_path / "fox.txt")
    for slot in ("adapter", "pairing"):
        cell = cells(choose((slot,), None), make_work_around(model, source), (0,))[0]
        cell = replace(cell, work=replace(cell.work, fingerprint="0" * 32))
        with pytest.raises(ValueError, match="has changed since the comparison was planned"):
            run_cell(cell.to_json())
