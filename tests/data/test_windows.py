"""Windows: equal lengths, no overlap, an order that the seed fixes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from nonet.data import training_windows, validation_windows

SIZES = st.tuples(st.integers(1, 40), st.integers(0, 300)).map(lambda x: (x[0], x[0] + x[1]))


def _starts(windows):
    return [int(windows[i]["input_ids"][0]) for i in range(len(windows))]  # tokens count from zero


def test_an_item_is_the_text_and_its_labels():
    tokens = np.arange(1000, dtype=np.uint16)
    windows = training_windows(tokens, 16, seed=3)
    for i in range(len(windows)):
        item = windows[i]
        start = int(item["input_ids"][0])
        assert torch.equal(item["input_ids"], torch.arange(start, start + 16))
        assert torch.equal(item["labels"], item["input_ids"])
        assert item["input_ids"].dtype == torch.int64


@given(SIZES, st.integers(0, 5), st.integers(1, 200))
@settings(deadline=None)
def test_each_pass_shows_windows_that_do_not_overlap(sizes, seed, count):
    length, total = sizes
    windows = training_windows(np.arange(total), length, seed, count)
    assert len(windows) == count
    starts = _starts(windows)
    first = starts[: len(training_windows(np.arange(total), length, seed))]
    assert all(b - a >= length for a, b in zip(sorted(first), sorted(first)[1:], strict=False))
    assert all(0 <= start <= total - length for start in starts)


def test_the_seed_fixes_the_order_and_a_longer_run_begins_like_a_shorter():
    tokens = np.arange(2000)
    one = _starts(training_windows(tokens, 32, seed=1, count=100))
    assert one == _starts(training_windows(tokens, 32, seed=1, count=300))[:100]
    assert one != _starts(training_windows(tokens, 32, seed=2, count=100))
    assert one != sorted(one)


def test_passes_are_cut_at_different_phases():
    starts = _starts(training_windows(np.arange(2000), 64, seed=0, count=300))
    assert len({start % 64 for start in starts}) > 3


@given(SIZES, st.integers(1, 50))
@settings(deadline=None)
def test_validation_is_spread_evenly(sizes, count):
    length, total = sizes
    windows = validation_windows(np.arange(total), length, count)
    starts = _starts(windows)
    assert len(starts) == min(count, total // length)
    assert all(start % length == 0 and start + length <= total for start in starts)
    gaps = np.diff([*starts, total // length * length]) // length  # the last reaches to the text's end
    assert starts[0] == 0
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_a_loader_stacks_them():
    loader = DataLoader(validation_windows(np.arange(100), 10, 10), batch_size=4)
    assert [tuple(batch["input_ids"].shape) for batch in loader] == [(4, 10), (4, 10), (2, 10)]


@pytest.mark.parametrize("windows", [training_windows, validation_windows])
def test_wrong_numbers_are_refused(windows):
    tokens = np.arange(10)
    with pytest.raises(
        ValueError, match="has 10 tokens and one window needs 11 \\(length=11\\); give a longer text"
    ):
        windows(tokens, 11, count=1)
    with pytest.raises(ValueError, match="length must be above zero; got 0"):
        windows(tokens, 0, count=1)
    with pytest.raises(ValueError, match="count must be above zero; got 0"):
        windows(tokens, 5, count=0)
