"""Docstrings of packages: balanced, without the answer in the text, the same each time."""

from collections import Counter

import pytest

from nonet.data.topics import PACKAGES, library_topics


def test_every_package_gives_as_many_and_none_names_itself():
    found = library_topics()
    every = found.train + found.validation + found.test
    counts = Counter(example.label for example in every)
    assert set(counts) == set(PACKAGES) == set(found.labels)
    assert len(set(counts.values())) == 1
    assert min(counts.values()) >= 50
    assert len({example.text for example in every}) == len(every)
    assert not [e for e in every if any(name in e.text.lower() for name in PACKAGES)]
    assert all("\n" not in e.text for e in every)
    assert library_topics() == found


def test_few_are_the_first_to_learn_from():
    few = library_topics(few=10)
    assert Counter(e.label for e in few.train) == dict.fromkeys(PACKAGES, 2)
    assert len(few.test) > 300


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no source of no_such_package"):
        library_topics(("asyncio", "no_such_package"))
