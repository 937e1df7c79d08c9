"""Command lines that documents and docstrings show are ones that the program and the Makefile take."""

import re
import shlex

import project
import pytest
import typer

from nonet.cli import app

FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = typer.main.get_command(app)


def shown(text, program):
    """Command lines of a program in a text: in code spans, code blocks, and indented lines."""
    blocks = "\n".join(FENCE.findall(text))
    spans = [" ".join(span.split()) for span in re.findall(rf"`({program}\s[^`]+)`", FENCE.sub("", text))]
    return spans + re.findall(rf"^{program} .*", blocks, re.M) + re.findall(rf"^ +({program} .*)", text, re.M)


def complaint(line):
    """Says what is wrong with a command line of nonet, or returns None."""
    words = shlex.split(line, comments=True)[1:]
    command, name = PROGRAM, None
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *rest = words
        if name not in command.commands:
            return f"{name} is no command"
        command, words = command.commands[name], rest
    known = {
        "--help",
        *(o for parameter in command.params for o in parameter.opts + parameter.secondary_opts),
    }
    given = {word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("-")}
    if given - known:
        return f"{name} has no {', '.join(sorted(given - known))}"
    if name is not None and words and not re.search(r"[\[|]|\.\.\.$", line):  # no placeholders
        try:
            command.make_context(name, words)
        except Exception as error:  # noqa: BLE001  (the classes of the parser are private)
            return str(error)
    return None


def test_shown_commands_are_taken():
    lines = {(project.name(path), line) for path, text in project.prose() for line in shown(text, "nonet")}
    wrong = {(path, line, complaint(line)) for path, line in lines}
    assert not {(path, line, why) for path, line, why in wrong if why}


@pytest.mark.parametrize(
    "text",
    [
        "run `nonet bewail` first",
        "run `nonet compare [TEXT] --sloths` first",
        "```bash\nnonet compare --seeds many   # seeds is a number\n```",
        "Examples:\n  nonet doctor extra-word",
        "run `nonet tandem fly` first",
        "run `nonet tandem generate --sloths` first",
    ],
)
def test_a_wrong_command_is_noticed(text):
    [line] = shown(text, "nonet")
    assert complaint(line)


def test_readme_shows_every_command():
    lines = shown(project.read(project.ROOT / "README.md"), "nonet")
    assert set(PROGRAM.commands) <= {line.split()[1] for line in lines}


def test_shown_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", project.read(project.ROOT / "Makefile"), re.M))
    asked = {
        (project.name(path), line.split()[1])
        for path, text in project.prose()
        for line in shown(text, "make")
    }
    assert {target for _, target in asked} >= {"test", "compare", "clean"}
    assert not {(path, target) for path, target in asked if target not in targets}
