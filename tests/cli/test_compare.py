"""``nonet compare`` as a person runs it."""

import json
import signal
import subprocess
import sys

import pytest

SMALL = ["--slots", "linear", "--tokens", "4096", "--lengths", "32,64"]


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


@pytest.mark.parametrize("budget", ["4m", "2h"])
def test_a_budget_is_filled_and_not_exceeded(budget, invoke, text):
    done = invoke("compare", text, "--slots", "linear", "--budget", budget, "--dry-run", "--json")
    assert done.exit_code == 0, done.exception
    plan = json.loads(done.stdout)
    seconds = {"4m": 240, "2h": 7200}[budget]
    assert 0.4 * seconds < plan["estimate"]["seconds"] <= seconds
    assert 1 <= len(plan["seeds"]) <= 3


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
        (None, ["--budget", "5s", "--slots", "linear"], 1, "too short for 2 cells"),
        (None, ["--budget", "soon"], 1, "write 90s, 10m or 2h"),
        (None, ["--budget", "1m", "--tokens", "5"], 1, "not both"),
        (None, ["--tokens", "0"], 1, "--tokens must be at least 1"),
        (None, ["--lengths", "a"], 2, "whole numbers"),
        (None, ["--resume"], 2, "--resume needs --out"),
        (None, ["--resume", "--out", "x", "--quick"], 2, "drop --quick"),
        (None, ["--resume", "--out", "x"], 1, "holds no plan.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_says_what_to_do_and_writes_nothing(
    make, arguments, code, message, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path / "bad.txt")
    before = sorted(tmp_path.iterdir())
    found, told = refused("compare", *arguments)
    assert found == code, told
    assert message in told
    assert sorted(tmp_path.iterdir()) == before
