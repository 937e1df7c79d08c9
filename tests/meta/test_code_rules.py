"""Rules for code that no linter has: length, tolerances, method names in shared tests, pickles."""

import ast
import re

import project
import pytest

from nonet import methods

LONGEST = 500
LONGEST_REFERENCE = 120


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def tolerances(tree):
    return [
        word.arg
        for call in calls(tree)
        for word in call.keywords
        if word.arg in ("atol", "rtol")
        or (word.arg in ("abs", "rel") and ast.unparse(call.func).endswith("approx"))
    ]


def unpickles(tree):
    """Lines that can read a pickle, which can run code."""
    found = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
        & {*(name.name for name in node.names), getattr(node, "module", None)}
    ]
    for call in calls(tree):
        if ast.unparse(call.func) in ("torch.load", "torch.hub.load", "pandas.read_pickle"):
            safe = any(
                word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords
            )
            found += [] if safe else [call.lineno]
    return found


def names_of_methods():
    records = [(m.name, *(part.name for part in m.parts if part.role != "baseline")) for m in methods()]
    return sorted({name for record in records for name in record})


def test_no_file_is_long():
    long = {project.name(f): n for f in project.python() if (n := project.read(f).count("\n")) > LONGEST}
    assert not long


def test_no_oracle_is_long():
    oracles = [f for f in project.python("src") if f.name == "reference.py"]
    assert len(oracles) >= len(methods())
    assert not {project.name(f) for f in oracles if project.read(f).count("\n") > LONGEST_REFERENCE}


def test_no_tolerance_is_tuned_by_hand():
    code = [*project.python("tests"), *project.python("src/nonet/testing")]
    assert not {(project.name(f), word) for f in code for word in tolerances(project.tree(f))}


@pytest.mark.parametrize("text", ["torch.allclose(a, b, atol=1)", "pytest.approx(1.0, rel=2)"])
def test_a_tolerance_is_noticed(text):
    assert tolerances(ast.parse(text))


def test_shared_tests_name_no_method():
    code = project.python("tests/conformance")
    assert code
    word = re.compile(rf"\b({'|'.join(names_of_methods())})\b")
    assert word.search("for flash in")
    assert not {(project.name(f), found) for f in code for found in word.findall(project.read(f))}


def test_no_pickle_is_read():
    code = project.python("src", "docs", "benchmarks")
    assert not {(project.name(f), line) for f in code for line in unpickles(project.tree(f))}


@pytest.mark.parametrize(
    "text", ["import pickle", "from joblib import load", "torch.load(p)", "torch.load(p, weights_only=False)"]
)
def test_a_pickle_is_noticed(text):
    assert unpickles(ast.parse(text))


# A comparison hands its values on as they are, and its store writes what is not finite as null.
_HANDED_ON = ("src/nonet/compare/", "src/nonet/ledger/run.py")


def loose(tree):
    """Lines that can write NaN or Infinity, which is no JSON; what is only hashed may hold them."""
    encoded = {id(node.value) for node in ast.walk(tree) if getattr(node, "attr", "") == "encode"}
    return [
        call.lineno
        for call in calls(tree)
        if ast.unparse(call.func) in ("json.dumps", "json.dump")
        and id(call) not in encoded
        and not any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in call.keywords)
    ]


def test_json_never_holds_nan():
    code = [f for f in project.python("src") if not project.name(f).startswith(_HANDED_ON)]
    assert not {(project.name(f), line) for f in code for line in loose(project.tree(f))}


def test_loose_json_is_noticed():
    assert loose(ast.parse("json.dumps(value)"))
    assert not loose(ast.parse("json.dumps(value, allow_nan=False)"))


_PLACING = {"rename", "move", "rmtree", "mkdtemp", "mkstemp", "mktemp", "NamedTemporaryFile"}


def placing(tree):
    """Lines that put a file in place of another, or make a temporary one that others can find."""
    found = []
    for call in calls(tree):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        paths = name == "replace" and len(call.args) == 1 and not call.keywords  # a string's takes two
        if name in _PLACING or paths or ast.unparse(call.func) == "os.replace":
            found.append(call.lineno)
    return found


def test_one_module_puts_files_in_place():
    code = [f for f in project.python("src") if project.name(f) != "src/nonet/writing.py"]
    assert placing(project.tree(project.SOURCE / "writing.py"))
    assert not {(project.name(f), line) for f in code for line in placing(project.tree(f))}


@pytest.mark.parametrize(
    "text", ["fresh.replace(place)", "os.replace(a, b)", "shutil.rmtree(old)", "tempfile.mkdtemp(dir=place)"]
)
def test_a_file_that_is_put_in_place_is_noticed(text):
    assert placing(ast.parse(text))


@pytest.mark.parametrize(
    "text", ["name.replace('a', 'b')", "replace(plan, cells=())", "when.replace(hour=0)"]
)
def test_other_replacing_is_allowed(text):
    assert not placing(ast.parse(text))


def test_reading_weights_only_is_allowed():
    assert not unpickles(ast.parse("torch.load(p, weights_only=True)"))
