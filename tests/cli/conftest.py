"""Commands run in the tests' process, and a text for them to work on."""

import sys

import pytest
from transformers.utils import logging
from typer.testing import CliRunner

from nonet.cli import app


@pytest.fixture(autouse=True)
def _as_it_was():
    """Gives back what a command sets for its process, which here is the tests' own."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def invoke():
    """Runs a command in this process: starting one takes longer than all else that most tests do."""

    def run(*arguments):
        words = [str(a) for a in arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["nonet", *words])  # which is kept with what was measured
            return CliRunner().invoke(app, words)

    return run


@pytest.fixture(scope="session")
def refused(invoke):
    """Runs a command that is to fail, and returns its exit status and what a user is told."""

    def run(*arguments):
        done = invoke(*arguments)
        if done.exit_code == 1:  # the program makes one line of it
            assert isinstance(done.exception, ValueError | OSError)
            return 1, str(done.exception)
        return done.exit_code, " ".join(done.stderr.replace("│", " ").split())

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of a text that is quickly learned."""
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text("".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(900)))
    return path
