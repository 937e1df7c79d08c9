"""Claims are well formed, experiments become rows, and rows become the ledger."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nonet import methods
from nonet.claim import VERDICTS, Claim, Curve, Figure, Finding, Plot, Untestable, judge
from nonet.cli import app
from nonet.ledger import Lab, claims, newest, origin, read_ledger, run

ROOT = Path(__file__).resolve().parents[2]
PLOT = Plot("tokens", "MiB", (Curve("a", (1.0, 2.0), (3.0, 4.0), (2.0, 3.0), (4.0, 5.0)),), log_x=True)
FOUND = Finding("holds in part", "Three of four.", (Figure("share", (0.75, 0.5)),), PLOT)


def claim(name, test):
    return Claim(name, "It is said.", "0000.00000, table 1", "It is tried.", test)


def missing(lab):
    raise Untestable("no such thing here")


def broken(lab):
    raise RuntimeError("it broke")


def invoke(*words):
    return CliRunner().invoke(app, ["claims", *map(str, words)])


@pytest.fixture
def three(monkeypatch):
    made = {"flash": (claim("a", lambda lab: FOUND), claim("b", missing), claim("c", lambda lab: FOUND))}
    monkeypatch.setattr(run, "claims", lambda name: made.get(name, ()))
    return made


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_every_method_has_claims_with_a_source(method):
    found = claims(method.name)
    assert len(found) >= 2
    assert len({c.name for c in found}) == len(found)
    for c in found:
        assert c.name == c.name.lower().replace(" ", "-")
        assert c.statement.endswith(".")
        assert c.experiment.endswith(".")
        assert any(paper in c.source for paper in method.papers) or c.source[:4].isdigit()


def test_a_verdict_follows_from_its_thresholds():
    assert [judge(x, 2, 1) for x in (2.0, 1.0, 0.9)] == list(VERDICTS[:3])


def test_rows_hold_what_was_found_and_where(three, tmp_path):
    done = invoke("flash", "--out", tmp_path, "--json")
    assert done.exit_code == 0
    a, b, _ = read_ledger(tmp_path)
    assert json.loads(done.stdout)["rows"][0] == a
    assert (a["method"], a["claim"], a["verdict"], a["evidence"]) == (
        "flash",
        "a",
        FOUND.verdict,
        FOUND.evidence,
    )
    assert a["figures"] == [{"name": "share", "values": [0.75, 0.5], "unit": ""}]
    assert a["plot"]["curves"][0]["high"] == [4.0, 5.0]
    assert {"cpu", "threads", "commit", "torch", "date"} <= set(a["provenance"])
    assert (b["verdict"], b["evidence"]) == ("cannot be tested here", "no such thing here")


def test_a_broken_experiment_is_told_and_leaves_no_row(three, tmp_path):
    three["flash"] = (claim("a", broken), claim("b", lambda lab: FOUND))
    done = invoke("flash", "--out", tmp_path)
    assert done.exit_code == 1
    assert "RuntimeError: it broke" in done.stderr
    assert [row["claim"] for row in read_ledger(tmp_path)] == ["b"]


def test_a_stopped_run_is_resumed(three, tmp_path):
    def stop(lab):
        raise KeyboardInterrupt

    whole = three["flash"]
    three["flash"] = (whole[0], claim("b", stop))
    assert invoke("flash", "--out", tmp_path).exit_code == 3
    three["flash"] = whole
    assert invoke("flash", "--out", tmp_path, "--resume").exit_code == 0
    assert [row["claim"] for row in read_ledger(tmp_path)] == ["a", "b", "c"]
    assert invoke("flash", "--out", tmp_path, "--full", "--resume").exit_code == 0
    assert len(read_ledger(tmp_path)) == 6


def test_the_full_size_counts_before_the_quick_and_the_last_before_the_first(three, tmp_path):
    for words in (["--full"], [], ["--full"]):
        invoke("flash", "--out", tmp_path, *words)
    rows = read_ledger(tmp_path)
    assert newest(rows) == rows[-3:]
    assert "3 claims, 3 of them at the full size" in origin(newest(rows))


def test_an_unknown_method_is_refused():
    done = invoke("flush")
    assert done.exit_code == 1
    assert "choose from flash" in str(done.exception)


def test_the_ledger_has_a_line_a_claim():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    stored = newest(read_ledger(tables.RESULTS))
    assert {(r["method"], r["claim"]) for r in stored} >= {
        (m.name, c.name) for m in methods() for c in claims(m.name)
    }
    assert {row["verdict"] for row in stored} <= set(VERDICTS)


def test_the_lab_trains_and_measures():
    lab = Lab()
    task = lab.task("induction_heads", 16, vocab_size=6)
    model = lab.language_model(vocab_size=6, hidden_size=32, num_hidden_layers=1)
    before, looks = lab.accuracy(model, task, 64), []
    seconds = lab.train(
        model, lab.sequences(task, 64), batch=8, learning_rate=1e-3, times=2, look=looks.append
    )
    assert seconds > 0
    assert looks == [4, 8]
    assert 0 <= before <= 1
    found = lab.seconds({"a": lambda: None, "b": lambda: sum(range(1000))}, repeats=3)
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert lab.peak(lambda: bytearray(64 * 2**20)) >= 60 * 2**20
    assert (Lab(True).scaled(1, 2), lab.scaled(1, 2), len(Lab(True).seeds)) == (2, 1, 3)
