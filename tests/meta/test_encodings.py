"""Every text file that is written or read, and every pipe, names its encoding: a locale may be anything."""

import ast
import re

import project
import pytest

_METHODS = {"read_text", "write_text"}
_OPENERS = {"open", "fdopen", "TemporaryFile", "NamedTemporaryFile"}


def unnamed(tree):
    """Lines that leave the encoding of text to the locale."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        words = {word.arg: word.value for word in call.keywords}
        if "encoding" in words or ast.unparse(call.func) == "os.open":  # which gives bytes
            continue
        modes = [value.value for value in (*call.args, *words.values()) if isinstance(value, ast.Constant)]
        binary = any(isinstance(mode, str) and re.fullmatch("[rwaxt+]*b[+]?", mode) for mode in modes)
        if name in _OPENERS and name.endswith("File") and not any(isinstance(mode, str) for mode in modes):
            binary = True  # a temporary file is binary by default
        method = name in _METHODS and isinstance(call.func, ast.Attribute)
        method = method and not (name == "read_text" and call.args)  # its only argument is the encoding
        decoded = any(
            getattr(words.get(name), "value", None) is True for name in ("text", "universal_newlines")
        )
        if method or decoded or (name in _OPENERS and not binary):
            found.append(call.lineno)
    return found


def test_every_encoding_is_named():
    code = project.python("src", "docs", "benchmarks")
    assert not {(project.name(f), line) for f in code for line in unnamed(project.tree(f))}


@pytest.mark.parametrize(
    "text",
    [
        "path.read_text()",
        "path.write_text(text)",
        "open(path)",
        "path.open('w')",
        "tempfile.TemporaryFile('w+')",
        "subprocess.run(command, text=True)",
    ],
)
def test_a_missing_encoding_is_noticed(text):
    assert unnamed(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "path.read_text(encoding='utf-8')",
        "path.open('rb')",
        "os.open(path, flags)",
        "read_text(work)",
        "tempfile.TemporaryFile()",
    ],
)
def test_a_named_encoding_is_enough(text):
    assert not unnamed(ast.parse(text))
