"""``nonet bench`` as a person runs it."""

import json
import os
import signal
import subprocess
import sys

import pytest

import nonet.mamba.api
from nonet.bench import command

QUICK = ["--quick", "--no-peers", "--threads", "1"]


def test_one_document_and_rows_that_add_up(invoke, tmp_path):
    for times in (1, 2):
        done = invoke("bench", "causal_conv1d", *QUICK, "--out", tmp_path, "--json")
        assert done.exit_code == 0, done.exception
        found = json.loads(done.stdout)
        stored = [json.loads(line) for line in (tmp_path / "causal_conv1d.jsonl").read_text().splitlines()]
        assert stored[-1:] == found["rows"]
        assert len(stored) == times
    assert [c["package"] for c in stored[-1]["contenders"]].count("torch") == 0
    assert stored[-1]["provenance"]["command"].startswith("nonet bench causal_conv1d --quick")
    assert f"1 rows added to {tmp_path}" in done.stderr


def test_without_a_checkout_rows_go_to_the_cache_and_the_page_names_all(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    done = invoke("bench", "causal_conv1d", *QUICK)
    assert done.exit_code == 0, done.exception
    assert f"added to {os.environ['NONET_CACHE']}" in done.stderr
    assert "causal_conv1d forward C48 T48" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_rows_done_and_exits_3(tmp_path):
    command = [sys.executable, "-m", "nonet", "bench", "selective_scan", *QUICK]
    command += ["--out", str(tmp_path), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        for line in process.stderr:
            if line.startswith("[3/"):
                process.send_signal(signal.SIGINT)
                break
        said, errors = process.communicate()
    assert process.returncode == 3, errors
    assert "stopped" in errors
    rows = json.loads(said)["rows"]
    assert rows
    assert len((tmp_path / "selective_scan.jsonl").read_text().splitlines()) == len(rows)


@pytest.mark.filterwarnings("ignore:.*run on torch")  # where the C library was not built
def test_a_wrong_kernel_exits_1_and_its_row_is_kept(tmp_path, monkeypatch, capsys):
    right = nonet.mamba.api.causal_conv1d

    def wrong(*args, impl="auto", **options):
        return right(*args, impl=impl, **options) + (impl != "reference")

    monkeypatch.setattr(nonet.mamba.api, "causal_conv1d", wrong)
    asked = {"threads": (1,), "peers": False, "quick": True, "keep_memory": False, "as_json": False}
    assert command.execute(["causal_conv1d"], tmp_path, **asked) == 1
    said = capsys.readouterr()
    assert "failed: wrong: nonet out" in said.err
    [stored] = (tmp_path / "causal_conv1d.jsonl").read_text().splitlines()
    assert json.loads(stored)["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["attention"], 1, "choose from selective_scan, causal_conv1d, hgrn_scan, mamba"),
        (["--threads", "two"], 2, "--threads takes numbers from 1 on"),
        (["--threads", "0"], 2, "--threads takes numbers from 1 on"),
        (["causal_conv1d", *QUICK, "--out", "file"], 1, "file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_says_what_to_do(arguments, code, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    found, told = refused("bench", *arguments)
    assert found == code, told
    assert message in told


@pytest.mark.parametrize("command", [["bench", "--quick"], ["claims"]])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(command, refused, tmp_path):
    (tmp_path / "file").touch()
    assert refused(*command, "--out", tmp_path / "file" / "out") == (
        1,
        f"{tmp_path / 'file' / 'out'}: {tmp_path / 'file'} is a file; name a folder",
    )
