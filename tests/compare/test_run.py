"""Cells in processes of their own: one that dies is lost alone, and a stopped comparison continues."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import psutil
import pytest
from compare_helpers import make_work, write_text

from nonet.compare import run
from nonet.compare.plan import Plan, cells, choose
from nonet.compare.store import read_rows


def make_plan(tmp_path, **changes):
    work = make_work(write_text(tmp_path / "fox.txt"), **changes)
    planned = cells(choose(("linear",), None), work, (0,))
    corpus = {"name": "fox", "source": work.source}
    return Plan(
        "nonet compare", "now", corpus, ("linear",), (0,), work, planned, {}, {"seconds": 1.0, "bytes": 1.0}
    )


def test_a_killed_cell_is_lost_alone_and_resumed(tmp_path):
    plan, out = make_plan(tmp_path), tmp_path / "out"
    run.begin(plan, out)
    first = plan.cells[0].id
    killed = []

    def kill_the_first(cell, share, doing):
        if cell.id == first and not killed:
            killed.extend(p.pid for p in psutil.Process().children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    assert run.run(plan, out, kill_the_first) == 1
    rows = read_rows(out / run.ROWS)
    assert [row["state"] for row in rows] == ["failed", "done"]
    assert "SIGKILL" in rows[0]["error"]
    assert [cell.id for cell in run.pending(run.opened(out), out)] == [first]

    assert run.run(run.opened(out), out, lambda *_: None) == 0
    assert run.pending(plan, out) == []
    assert [row["cell"]["id"] for row in read_rows(out / run.ROWS)][2:] == [first]


def test_a_cell_that_raises_is_a_row_that_says_why(tmp_path):
    plan = make_plan(tmp_path)
    (tmp_path / "fox.txt").write_text("something else\n" * 500)
    row = run.run_in_process(plan.cells[0], lambda *_: None)
    assert row["state"] == "failed"
    assert row["error"].startswith("ValueError: the text")


def test_a_training_that_diverges_is_a_row_that_says_so(tmp_path):
    plan, out = make_plan(tmp_path), tmp_path / "out"
    wild, calm = (
        replace(cell, learning_rate=rate) for cell, rate in zip(plan.cells, (1e30, 1e-3), strict=True)
    )
    plan = replace(plan, cells=(wild, calm))
    run.begin(plan, out)
    assert run.run(plan, out, lambda *_: None) == 1
    first, second = read_rows(out / run.ROWS)
    assert (first["state"], second["state"]) == ("diverged", "done")
    assert first["error"].startswith("DivergedError: the gradient is nan at step 2, with")
    for line in (out / run.ROWS).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_files_in_the_current_directory_are_not_run(tmp_path, monkeypatch):
    plan = make_plan(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "jaxtyping", "random", "nonet"):
        (here / f"{name}.py").write_text("raise SystemExit('a file of the current directory was run')\n")
    monkeypatch.chdir(here)
    row = run.run_in_process(replace(plan.cells[0], learning_rate=1e30), lambda *_: None)
    assert row["state"] == "diverged", row["error"]  # far enough: it has trained


def test_what_a_library_prints_is_not_taken_for_a_row():
    code = (
        "import os\nfrom nonet.compare import worker\n"
        "def noisy(value, report):\n"
        "    print('from Python')\n    os.write(1, b'from C\\n')\n    report(0.5, 'half')\n"
        "    return {'loss': float('nan')}\n"
        "worker.run_cell = noisy\nworker.main()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        process.stdin.write("{}\n")
        process.stdin.flush()
        found = [json.loads(line, parse_constant=pytest.fail) for line in process.stdout]
        printed = process.stderr.read()
    assert found == [{"share": 0.5, "doing": "half"}, {"row": {"loss": None}}]
    assert sorted(printed.split()) == ["C", "Python", "from", "from"]


def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    plan = make_plan(tmp_path, tokens=32 * 4 * 100_000)
    (tmp_path / "cell.json").write_text(json.dumps(plan.cells[0].to_json()))
    code = (
        "import json,sys;from nonet.compare.plan import Cell;from nonet.compare.run import run_in_process;"
        f"cell=Cell.from_json(json.load(open({str(tmp_path / 'cell.json')!r})));"
        "run_in_process(cell, lambda s, d: print(d, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()  # the worker is training
        worker = psutil.Process(parent.pid).children()[0]
        parent.kill()
    deadline = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_folders_that_cannot_serve_are_refused(tmp_path):
    plan, out = make_plan(tmp_path), tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="holds no plan"):
        run.opened(out)
    run.begin(plan, out)
    with pytest.raises(ValueError, match="--resume, or name another --out"):
        run.begin(plan, out)
    whole = plan.to_json()
    older = {**whole, "cells": [{**c, "work": {"size": "tiny"}} for c in whole["cells"]]}
    for damaged, words in (
        ("{", "not valid JSON"),
        ('{"format": 99}', "of format 99, and this nonet reads format 1"),
        ('{"format": 1}', "is no plan that nonet"),
        ('{"format": 1, "cells": {}}', "is no plan that nonet"),
        (json.dumps({**whole, "cells": []}), "is no plan that nonet"),
        (json.dumps({**older, "environment": {"nonet": "0.0.9"}}), "written by nonet 0.0.9"),
    ):
        (out / run.PLAN).write_text(damaged)
        with pytest.raises(ValueError, match=words) as refused:
            run.opened(out)
        assert "--out" in str(refused.value)


def _refuse(*arguments, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; name a folder"):
        run.check_new(tmp_path / "file" / "out")
    monkeypatch.setattr(tempfile, "mkdtemp", _refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*b: Permission denied; choose another folder"):
        run.check_new(tmp_path / "a" / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_long_names_of_folders_are_served_or_refused(tmp_path):
    plan = make_plan(tmp_path)
    run.begin(plan, tmp_path / ("n" * 250))
    assert [p.name for p in (tmp_path / ("n" * 250)).iterdir()] == ["plan.json"]
    with pytest.raises(OSError, match="File name too long; choose another folder"):
        run.begin(plan, tmp_path / ("n" * 256))


@pytest.mark.parametrize("name", ["rows.jsonl", "report.html"])
def test_a_folder_with_remains_of_another_comparison_is_refused(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=f"holds {name}"):
        run.check_new(tmp_path)
