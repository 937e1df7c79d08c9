import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from rows_factory import fail, make_plan, make_rows, write

from nonet.compare import store
from nonet.compare.store import append_row, as_json, finished, read_plan, read_rows


def _row(number):
    return {"format": 1, "cell": {"id": str(number)}, "state": "done", "text": "häß\n\u2028"}


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [_row(n) for n in range(3)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_a_half_last_line_is_left_out_and_cut_off_by_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, _row(0))
    with path.open("a") as file:
        file.write('{"format": 1, "ce')
    assert read_rows(path) == [_row(0)]
    append_row(path, _row(1))
    assert read_rows(path) == [_row(0), _row(1)]


def test_a_file_that_holds_only_a_half_line_is_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{")
    assert read_rows(path) == []
    append_row(path, _row(0))
    assert read_rows(path) == [_row(0)]


@pytest.mark.parametrize("line", ["{nonsense", "", "[1]", '{"format": 2}', "\udcff"])
def test_a_wrong_line_is_named_with_what_to_do(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    append_row(path, _row(0))
    with path.open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    append_row(path, _row(1))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2, .*delete the line.*--out"):
        read_rows(path)


def test_numbers_that_are_not_finite_are_missing(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {**_row(0), "values": [1.5, float("nan"), {"x": float("inf")}]})
    assert read_rows(path)[0]["values"] == [1.5, None, {"x": None}]
    path.write_text('{"format": 1, "x": NaN}\n')
    assert read_rows(path) == [{"format": 1, "x": None}]


def test_json_is_what_every_parser_accepts():
    text = as_json({"x": [float("nan"), 1.5], "y": float("-inf")}, indent=1)
    assert json.loads(text, parse_constant=pytest.fail) == {"x": [None, 1.5], "y": None}


def test_a_full_disk_says_where_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_row(path, _row(0))

    def half_a_write(descriptor, data):
        os_write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    os_write = os.write
    monkeypatch.setattr(store.os, "write", half_a_write)
    with pytest.raises(
        OSError, match=r"^cannot write rows\.jsonl in .*No space left.*choose another folder"
    ) as raised:
        append_row(path, _row(1))
    assert str(tmp_path) in str(raised.value)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert path.read_bytes().endswith(b"}\n")
    assert read_rows(path) == [_row(0)]
    append_row(path, _row(2))
    assert read_rows(path) == [_row(0), _row(2)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_writer_leaves_rows_that_can_be_read_and_continued(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys, itertools\nfrom pathlib import Path\nfrom nonet.compare.store import append_row\n"
        "for n in itertools.count():\n"
        "    append_row(Path(sys.argv[1]), {'format': 1, 'n': n, 'pad': 'x' * 100_000})\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        written = [int(process.stdout.readline()) for _ in range(5)]
        process.kill()
    rows = read_rows(path)
    assert [row["n"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= len(written)
    append_row(path, {"format": 1, "n": -1})
    assert read_rows(path)[-1]["n"] == -1


def test_the_last_finished_row_of_a_cell_counts():
    plan = make_plan(seeds=(0,))
    first, second = make_rows(plan)[:2]
    later = {**first, "seconds": 1.0}
    rows = [first, fail(second["cell"], "no"), later, fail(first["cell"], "no")]
    assert finished(rows) == {first["cell"]["id"]: later}


def test_a_plan_is_read_or_its_absence_is_plain(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no plan\.json.*--out"):
        read_plan(tmp_path)
    plan = make_plan()
    assert read_plan(write(tmp_path, plan, [])) == plan
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "format": 3}))
    with pytest.raises(ValueError, match=r"plan\.json is of format 3"):
        read_plan(tmp_path)


def test_storing_and_reporting_do_without_torch():
    code = (
        "import sys\nimport nonet.compare.store, nonet.compare.summary, nonet.compare.report\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
