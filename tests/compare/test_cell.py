"""A cell is a plain function from a plain value to a row."""

import json

import pytest
import torch
from compare_helpers import make_work, write_text

from nonet.compare.cell import run_cell
from nonet.compare.plan import INSIDE, cells, choose


@pytest.fixture(autouse=True)
def _keep_global_settings():
    threads, mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "fox.txt")


def planned(text, slot, **changes):
    return cells(choose((slot,), None), make_work(text, **changes), (0,))


@pytest.mark.parametrize("slot", INSIDE)
def test_every_part_of_a_slot_trains_and_is_measured(slot, text):
    for cell in planned(text, slot):
        if cell.kind == "recall":
            continue
        row = run_cell(json.loads(json.dumps(cell.to_json())))
        assert json.loads(json.dumps(row)) == row
        curve = row["train"]["curve"]
        assert [point["tokens"] for point in curve] == [0, 384, 768]
        assert row["validation"]["bits_per_byte"] < row["train"]["first_bits_per_byte"] - 0.5
        assert row["train"]["tokens_per_second"] > 0
        assert abs(row["parameters"] / cell.parameters - 1) < 1e-9
        assert row["implementations"].keys() >= {op for op in row["implementations"] if op}
        assert all(choice["name"] and choice["reason"] for choice in row["implementations"].values())
        for entry in row["growth"]:
            beyond_a_table = cell.position == "learned" and entry["length"] > 32
            assert (entry["forward"] is None) is beyond_a_table
            assert (entry["backward"] is None) is beyond_a_table
        assert [entry["context"] for entry in row["decode"]] == [8, 48]
        last = row["places"][-1]["to"]
        assert last == (32 if cell.position == "learned" else 128)


def test_recall_tasks_are_learned_and_scored(text):
    cell = next(c for c in planned(text, "mixer", task_steps=3) if c.kind == "recall")
    row = run_cell(cell.to_json())
    assert [t["task"] for t in row["tasks"]] == list(cell.work.tasks)
    for task in row["tasks"]:
        assert 0 <= task["accuracy"] <= 1
        assert 0 < task["chance"] < 0.1


def test_one_seed_gives_the_same_figures_twice(text):
    for cell in planned(text, "mixer"):
        if cell.kind == "language":
            first, second = (run_cell(cell.to_json()) for _ in range(2))
            qualities = [[p["bits_per_byte"] for p in r["train"]["curve"]] for r in (first, second)]
            assert qualities[0] == qualities[1], cell.name
            assert first["places"] == second["places"]


def test_a_text_that_changed_since_the_plan_is_noticed(tmp_path):
    path = tmp_path / "fox.txt"
    cell = planned(write_text(path), "linear")[0]
    write_text(path, lines=900)
    with pytest.raises(ValueError, match="has changed since the comparison was planned"):
        run_cell(cell.to_json())
