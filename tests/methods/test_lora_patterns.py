"""Regular expressions of adapter files: they mean what Python takes them for, and none runs for ever."""

import random
import re
import time

import pytest

from nonet.lora.patterns import Patterns

PIECES = [
    "a",
    "b",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    "[a-c1]",
    r"\d",
    r"\w",
    r"\b",
    "^",
    "$",
    "(?=a)",
    "(?!b)",
]
TIMES = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{,2}", "{2,}", "{0}"]
TEXTS = ["", "a", "ab", "a.b", "b.a.1", "aab.ab", "abc.12"]
# As Unsloth and ms-swift write them.
WRITTEN = [
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp|ffn).*?(?:k_proj|v_proj|q_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))",
    r"^(model)(?!.*(lm_head|output|emb|wte)).*(?<!x)$",
    r"model\.layers\.(1[0-9]|2[0-3])\..*(q_proj|v_proj)",
]
PATHS = [
    f"model.{tower}layers.{i}.{inner}"
    for tower in ("", "language_model.")
    for i in range(0, 30, 7)
    for inner in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "emb")
]


def drawn(depth):
    kind = random.random()
    if depth == 0 or kind < 0.4:
        return random.choice(PIECES)
    if kind < 0.6:
        return drawn(depth - 1) + drawn(depth - 1)
    if kind < 0.75:
        return f"(?:{drawn(depth - 1)}|{drawn(depth - 1)})"
    return f"({drawn(depth - 1)}){random.choice(TIMES)}"


def test_drawn_patterns_mean_what_they_mean_to_python():
    compared = 0
    for _ in range(1500):
        pattern = drawn(4)
        expected = [re.fullmatch(pattern, text) is not None for text in TEXTS]
        assert [Patterns("file").fits(pattern, text) for text in TEXTS] == expected, pattern
        compared += any(expected) and not all(expected)
    assert compared > 300


@pytest.mark.parametrize("pattern", WRITTEN)
def test_patterns_that_people_write_are_served(pattern):
    patterns = Patterns("file")
    found = [patterns.fits(pattern, path) for path in PATHS]
    assert found == [re.fullmatch(pattern, path) is not None for path in PATHS]
    assert any(found)
    assert not all(found)


def test_a_match_can_begin_at_other_places():
    patterns = Patterns("file")
    assert patterns.fits("q_proj", "0.q_proj", (0, 2))
    assert not patterns.fits("q_proj", "0.q_proj", (0, 1))
    assert patterns.fits(".*proj", "0.q_proj", (2,))
    assert not patterns.fits("^q_proj", "0.q_proj", (0, 2))
    assert not patterns.fits("^q.*", "0.q_proj", (0, 2))


ENDLESS = ["(a|aa)+b", "(a{1,1000}){1,1000}b", "((a{1,50}){1,50}){1,50}b"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_takes_for_ever_is_refused_by_name(pattern, monkeypatch):
    monkeypatch.setattr("nonet.lora.patterns.SECONDS", 0.1)
    patterns = Patterns("the file")
    with pytest.raises(ValueError, match=re.escape(f"the file: the pattern {pattern!r} takes too long")):
        patterns.fits(pattern, "a" * 70)


def test_the_time_is_that_of_all_patterns_of_a_file(monkeypatch):
    monkeypatch.setattr("nonet.lora.patterns.SECONDS", 0.2)
    patterns, began = Patterns("the file"), time.process_time()
    for _ in range(20):
        with pytest.raises(ValueError, match="takes too long"):
            patterns.fits("(a|aa)+b", "a" * 70)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("(", "missing )"), ("(" * 5000, ""), ("a{3,1}", "min repeat"), ("[b-a]", "bad character range")],
)
def test_what_is_no_pattern_is_refused_by_name(pattern, why):
    with pytest.raises(ValueError, match="is no regular expression: .*" + re.escape(why)) as caught:
        Patterns("the file").fits(pattern, "ab")
    assert str(caught.value).startswith("the file: ")
    assert repr(pattern[:90])[:-1] in str(caught.value)
    assert len(str(caught.value)) < 300
