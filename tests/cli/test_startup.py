"""The program answers at once, says what went wrong in one line, and exits with the promised status."""

import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

import nonet
from nonet import cli

_HEAVY = ("torch", "transformers", "numpy")
_LOADED = f"import sys; print(' '.join(name for name in {_HEAVY!r} if name in sys.modules))"


def _python(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def _main(*arguments):
    code = f"import sys; sys.argv = ['nonet', *{arguments!r}]; from nonet.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_loads_nothing_heavy():
    assert _python(f"import nonet; nonet.methods(); dir(nonet); {_LOADED}").strip() == ""


def test_a_heavy_import_would_be_noticed():
    assert _python(f"import nonet; nonet.NonetConfig; {_LOADED}").split() == list(_HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compare", "--help"], ["methods"]])
def test_the_program_starts_without_anything_heavy(arguments):
    code = f"""
import sys
from nonet.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
found = [name for name in {_HEAVY!r} if name in sys.modules]
assert not found, found
"""
    assert _python(code)


def test_start_up_time_is_printed(capsys):
    def once():
        begin = time.perf_counter()
        assert _main("--version").stdout == f"nonet {nonet.__version__}\n"
        return time.perf_counter() - begin

    times = [once() for _ in range(5)]
    with capsys.disabled():
        sys.stderr.write(f"\nnonet --version: {statistics.median(times):.2f} s, the median of 5\n")


def test_wrong_usage_exits_2():
    run = _main("methods", "--no-such-option")
    assert run.returncode == 2
    assert "--no-such-option" in run.stderr


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_expected_error_is_one_line_and_exits_1(error, monkeypatch, capsys):
    def fail():
        raise error("the text is empty")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.err == "nonet: the text is empty\n"
    assert said.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_telemetry_of_dependencies_is_off_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    cli.main()
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"


def test_every_command_has_help_and_every_option_says_what_it_does():
    program = typer.main.get_command(cli.app)
    for name, command in program.commands.items():
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0
        assert command.help, name
        for option in command.params:
            assert option.help, f"{name} {option.name}"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("command", ["train", "finetune smollm2", "tandem train smollm2", "compare"])
def test_several_processes_are_refused_before_anything_is_written(name, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "2")
    done = CliRunner().invoke(cli.app, command.split())
    assert done.exit_code == 1
    assert f"{name}=2: nonet runs in one process; start it without torchrun" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(name, "1")
    assert CliRunner().invoke(cli.app, ["methods"]).exit_code == 0


def test_labels_and_prompts_of_any_script_survive_a_terminal_without_it(model, tmp_path):
    pairs = [("سلام", "عربي"), ("hello", "latin")] * 10
    rows = [{"text": f"{text} {i}", "label": label} for i, (text, label) in enumerate(pairs)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "words.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "one.txt").write_text("سلام 1\n", encoding="utf-8")
    few = ["--steps", "1", "--window", "40", "--batch", "1", "--out", "out"]
    commands = [
        ["finetune", str(model), "words.jsonl", "--method", "pet", *few],
        ["predict", "out", "one.txt"],
        ["generate", str(model), "--prompt", "سلام", "--tokens", "2"],
    ]
    code = f"""
import sys
from nonet.cli import main
for command in {commands!r}:
    sys.argv = ["nonet", *(word.encode().decode("ascii", "surrogateescape") for word in command)]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "run.py"], capture_output=True, cwd=tmp_path, env={**os.environ, **bare}, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    assert "عربي" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert run.stdout.isascii()
    label, *written = run.stdout.decode("ascii").splitlines()
    assert label in ("latin", r"\u0639\u0631\u0628\u064a")
    assert "".join(written).startswith(r"\u0633\u0644\u0627\u0645")
