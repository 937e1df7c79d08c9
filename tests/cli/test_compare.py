"""``nonet compare`` as a person runs it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from nonet.compare import asked, command, cost
from nonet.extras import pip_install

SMALL = ["--slots", "linear", "--tokens", "4096", "--lengths", "32,64"]


def _a_tenth_of_a_second(cells):
    """What probes would say if a step of every model took so long."""
    return {cell.combo: cost.Step(0.1, 1, 1) for cell in cells}


@pytest.fixture(autouse=True)
def _few_probes(monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # and the command's own is undone with it


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails a test in which anything is measured or run."""
    monkeypatch.setattr(asked, "probes", lambda cells: pytest.fail("models were measured"))
    monkeypatch.setattr(command.runner, "run", lambda *arguments: pytest.fail("cells were run"))


def test_a_dry_run_shows_the_plan_and_writes_nothing(invoke, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("compare", text, *SMALL, "--dry-run", "--json")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    assert [(c["linear"], c["kind"]) for c in plan["cells"]][:2] == [
        ("dense", "language"),
        ("ternary", "language"),
    ]
    assert plan["tokens"] == 4096
    assert plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["bytes"] > 0
    assert "cells" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert os.environ["OMP_WAIT_POLICY"] == "passive"  # for the workers too


@pytest.mark.parametrize("budget", ["4m", "2h"])
def test_a_budget_is_filled_and_not_exceeded(budget, invoke, text, monkeypatch):
    monkeypatch.setattr(asked, "probes", _a_tenth_of_a_second)
    done = invoke("compare", text, "--slots", "linear", "--budget", budget, "--dry-run", "--json")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    seconds = {"4m": 240, "2h": 7200}[budget]
    assert 0.4 * seconds < plan["estimate"]["seconds"] <= seconds
    assert 1 <= len(plan["seeds"]) <= 3
    told = [line for line in plan["left_out"] if line.startswith(f"To fit --budget {budget}: ")]
    assert bool(told) == (len(plan["seeds"]) < 3)
    assert all(" ".join(line.split()) in " ".join(done.stderr.split()) for line in told)


def test_a_short_training_has_no_recall_that_takes_longer(invoke, text):
    done = invoke("compare", text, "--methods", "mamba", "--tokens", "40000", "--dry-run", "--json")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    assert {cell["kind"] for cell in plan["cells"]} == {"language"}
    [line] = plan["left_out"]
    assert line.startswith(
        "To fit --tokens 40000, recall trains on at most 2 times the tokens of a model: no"
    )


def test_a_text_that_ends_before_the_places_beyond_the_window_is_said(invoke, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    done = invoke("compare", path, *SMALL, "--dry-run", "--json")
    [line] = json.loads(done.stdout)["left_out"]
    assert line.startswith("No loss beyond the trained length of 256 tokens: the validation text has ")


def test_the_libraries_of_the_report_are_asked_for_first_and_not_by_a_dry_run(
    invoke, text, tmp_path, monkeypatch, unmeasured
):
    actual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vl_convert" else actual(name)
    )
    done = invoke("compare", text, *SMALL, "--out", tmp_path / "out")
    assert isinstance(done.exception, ImportError)
    assert pip_install("report") in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(asked, "probes", _a_tenth_of_a_second)
    assert invoke("compare", text, *SMALL, "--dry-run").exit_code == 0


def test_a_folder_that_is_in_use_is_refused_before_anything_is_measured(refused, text, tmp_path, unmeasured):
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "plan.json").write_text("{}")
    file.write_text("")
    for arguments in ([], ["--dry-run"]):
        code, told = refused("compare", text, *SMALL, "--out", used, *arguments)
        assert (code, "holds plan.json of another comparison; continue that one with --resume" in told) == (
            1,
            True,
        )
        code, told = refused("compare", text, *SMALL, "--out", file / "out", *arguments)
        assert (code, "is a file; name a folder" in told) == (1, True)


def test_cells_that_diverge_or_fail_are_counted(invoke, text, tmp_path, monkeypatch):
    make = command.make_plan

    def wild(asked, people):
        plan, steps = make(asked, people)
        first, *rest = plan.cells
        return replace(plan, cells=(replace(first, learning_rate=1e30), *rest)), steps

    monkeypatch.setattr(command, "make_plan", wild)
    out = tmp_path / "out"
    done = invoke("compare", text, *SMALL, "--seeds", "1", "--out", out, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (found["exit"], found["failed"]) == (1, 1)
    assert [row["state"] for row in found["rows"]] == ["diverged", "done"]
    told = " ".join(done.stderr.split())
    assert "1 of 2 cells failed; the report says why. To try again: nonet compare --resume --out" in told
    page = (out / "report.html").read_text()
    assert "Training of Dense diverged" in page
    assert "DivergedError: the " in page


def test_a_comparison_is_not_resumed_on_another_text(invoke, refused, tmp_path, unmeasured, monkeypatch):
    path, out = tmp_path / "mine.txt", tmp_path / "out"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 900)
    monkeypatch.setattr(asked, "probes", _a_tenth_of_a_second)
    monkeypatch.setattr(command.runner, "run", lambda *arguments: 0)
    assert invoke("compare", path, *SMALL, "--seeds", "1", "--out", out).exit_code == 0
    shown = invoke("compare", "--resume", "--out", out, "--dry-run", "--json")
    assert len(json.loads(shown.stdout)["cells"]) == 2
    path.write_text("something else\n" * 900)
    monkeypatch.setattr(command.runner, "run", lambda *arguments: pytest.fail("cells were run"))
    code, told = refused("compare", "--resume", "--out", out)
    assert (code, "has changed since the comparison was planned" in told) == (1, True)
    path.unlink()
    code, told = refused("compare", "--resume", "--out", out)
    assert (code, "there is no text at" in told) == (1, True)


def test_ctrl_c_leaves_a_report_and_resume_finishes(invoke, refused, text, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", str(text), *SMALL, "--seeds", "1", "--out", str(out)]
    started = [sys.executable, "-m", "nonet", *arguments]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("[1/2]"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 3, rest
    assert "--resume" in rest
    assert "<html" in (out / "report.html").read_text()
    assert len((out / "rows.jsonl").read_text().splitlines()) == 1

    code, told = refused(*arguments)
    assert code == 1
    assert "--resume" in told

    shown = invoke("compare", "--resume", "--out", out, "--dry-run")
    assert shown.exit_code == 0, shown.exception
    assert "1 of 2 cells are done" in shown.stdout
    assert len((out / "rows.jsonl").read_text().splitlines()) == 1

    done = invoke("compare", "--resume", "--out", out, "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert [row["cell"]["linear"] for row in found["rows"]] == ["dense", "ternary"]
    assert "1 of 2 cells are done" in done.stderr
    assert found["report"].endswith("report.html")


def test_adapters_and_pairings_are_compared_around_a_pretrained_model(invoke, text, model, tmp_path):
    asked = ["compare", text, "--slots", "adapter,pairing", "--model", model, "--quick", "--json"]
    done = invoke(*asked, "--dry-run")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    assert [c["adapter"] or c["pairing"] for c in plan["cells"]] == [
        *("full", "prompt", "prefix", "ptuning", "lora", "untuned"),
        *("alone", "tandem", "speculative", "assisted"),
    ]
    assert (plan["model"], plan["work"]["layers"], plan["slots"]) == (str(model), 1, ["adapter", "pairing"])
    assert plan["estimate"]["seconds"] > 100

    out = tmp_path / "out"
    few = ["--methods", "untuned,alone", "--tokens", "1024", "--out", str(out)]
    done = invoke(*asked, *few)
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert [row["cell"]["adapter"] for row in found["rows"]] == ["full", "untuned", ""]
    assert [row["state"] for row in found["rows"]] == ["done"] * 3
    assert found["rows"][0]["train"]["tokens"] == 1024
    assert found["rows"][2]["blocks"][0]["texts"] >= 1
    assert "No tuning" in done.stderr
    assert "<html" in (out / "report.html").read_text()


def _short(path):
    path.write_text("too short\n" * 30)


def _binary(path):
    path.write_bytes(b"text\x00more")


@pytest.mark.parametrize(
    ("make", "arguments", "code", "message"),
    [
        (None, ["missing.txt"], 1, "missing.txt"),
        (lambda path: path.write_text(""), ["bad.txt"], 1, "empty"),
        (_binary, ["bad.txt"], 1, "is no text: byte 4 is NUL"),
        (_short, ["bad.txt"], 1, "window"),
        (None, ["--methods", "gpt"], 1, "choose from"),
        (None, ["--slots", "mixer,pairing"], 1, "mixer, pairing are not of one model"),
        (None, ["--slots", "adapter", "--model", "nowhere"], 1, "nowhere is no directory"),
        (None, ["--slots", "adapter", "--size", "tiny"], 1, "--size: only for models that are made anew"),
        (None, ["--model", "smollm2"], 1, "--model is for the slots adapter and pairing"),
        (None, ["--size", "huge"], 1, "choose from tiny, small, base"),
        (None, ["--budget", "soon"], 1, "write 90s, 10m or 2h"),
        (None, ["--budget", "1m", "--tokens", "5"], 1, "not both"),
        (None, ["--tokens", "0"], 1, "--tokens must be at least 1"),
        (None, ["--lengths", "a"], 2, "whole numbers"),
        (None, ["--slots", ","], 2, "--slots takes names"),
        (None, ["--resume"], 2, "--resume needs --out"),
        (None, ["--resume", "--out", "x", "--quick"], 2, "drop --quick"),
        (None, ["--resume", "--out", "x"], 1, "holds no plan.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_says_what_to_do_and_writes_nothing(
    make, arguments, code, message, refused, tmp_path, monkeypatch, unmeasured
):
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path / "bad.txt")
    before = sorted(tmp_path.iterdir())
    found, told = refused("compare", *arguments)
    assert found == code, told
    assert message in told
    assert sorted(tmp_path.iterdir()) == before


def test_a_budget_in_which_nothing_fits_is_refused_with_one_that_does(refused, invoke, text, monkeypatch):
    monkeypatch.setattr(asked, "probes", _a_tenth_of_a_second)
    code, told = refused("compare", text, "--slots", "linear", "--budget", "5s", "--seeds", "2")
    assert code == 1
    assert told.startswith("--budget 5s is too short: the smallest comparison of these methods takes about ")
    assert "or drop --seeds, or name fewer with --methods" in told
    enough = told.partition("type --budget ")[2].partition(",")[0]
    arguments = ["--slots", "linear", "--budget", enough, "--seeds", "2", "--dry-run", "--json"]
    plan = json.loads(invoke("compare", text, *arguments).stdout)
    assert (len(plan["seeds"]), plan["work"]["lengths"]) == (2, [256, 512])
