"""What is not ours is printed as it is spelled."""

import io
import logging

import pytest
from rich.table import Table

from nonet.screen import Printable, console, printable

HOSTILE = "a\x1b[31mb\x07[red]c[/y]\u202ed\x9be"
SPELLED = r"a\x1b[31mb\x07[red]c[/y]\u202ed\x9be"


def test_control_characters_are_spelled():
    assert printable(HOSTILE) == SPELLED
    assert printable("grüße 你好 \N{GRINNING FACE}\n\tnext") == "grüße 你好 \N{GRINNING FACE}\n\tnext"
    assert printable("\ud800") == r"\ud800"
    assert printable(ValueError(HOSTILE)) == SPELLED


@pytest.mark.parametrize("as_table", [False, True])
def test_nothing_is_a_mark(as_table, monkeypatch):
    people = console()
    people.file, people.width = io.StringIO(), 80
    shown = HOSTILE
    if as_table:
        shown = Table("name")
        shown.add_row(HOSTILE)
    people.print(shown)
    assert SPELLED in people.file.getvalue()


def test_lines_are_never_folded():
    people = console()
    people.file, people.width = io.StringIO(), 20
    people.print("x" * 100)
    assert people.file.getvalue() == "x" * 100 + "\n"


def test_records_are_made_printable():
    record = logging.LogRecord("nonet", logging.INFO, "", 0, "%s", (HOSTILE,), None)
    assert Printable("%(message)s").format(record) == SPELLED
