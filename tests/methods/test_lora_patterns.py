"""Regular expressions of adapter files: they mean what Python takes them for, and none runs for ever."""

import random
import re
import time

import pytest

from nonet.lora.patterns import STEPS, Patterns

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
    r"^(model)(?!.*(lm_head|output|emb|wte)).*(?<!x)$".replace("(?<!x)", ""),
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


ENDLESS = ["(a*)*b", "(a|a)*b", "(a|aa)+b", "((((((((((a*)*)*)*)*)*)*)*)*)*)*b", "(.*)*(.*)*(.*)*b"]
ENDLESS += ["(a?){60}a{60}b", "(?:a{1000000}){1000000}", "(a{1,4000000000})*b", "(?:a|a)" * 40 + "b"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_pattern_takes_for_ever(pattern):
    patterns, began = Patterns("file"), time.process_time()
    for length in range(60):
        assert not patterns.fits(pattern, "a" * length)
    assert time.process_time() - began < 10
    assert patterns.fits("a*", "a" * 60)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "is no regular expression: missing )"),
        ("(" * 5000, "is no regular expression"),
        ("a{99999999999999}", "is no regular expression: the repetition number is too large"),
        (r"(\w+)\1", "uses groupref, which is not supported; list the names instead"),
        ("(?<=a)b", "uses assert, which is not supported"),
        ("(?>a)b", "uses atomic_group, which is not supported"),
        ("(?i)a", "sets flags, which are not supported"),
        ("(?i:a)", "uses subpattern, which is not supported"),
    ],
)
def test_what_is_not_served_is_refused_by_name(pattern, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        Patterns("the file").fits(pattern, "ab")
    assert str(caught.value).startswith("the file: ")
    assert repr(pattern[:90])[:-1] in str(caught.value)
    assert len(str(caught.value)) < 300


def test_steps_are_counted_over_all_patterns_of_a_file():
    patterns, slow = Patterns("the file"), "(?:" * 20 + "a?" * 50 + ")*" * 20 + "b"

    def ask():
        for _ in range(STEPS):
            patterns.fits(slow, "a" * 200)

    began = time.process_time()
    with pytest.raises(ValueError, match=r"the file: the pattern '\(.*' takes too long to match"):
        ask()
    assert time.process_time() - began < 30
