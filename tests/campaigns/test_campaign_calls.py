"""A sample of the random calls; ``make campaign`` makes them all."""

from collections import Counter

from calls import WrongError, attempt, operations

from nonet.flash.impl import torch as flash


def ends(numbers):
    """How random calls ended; a wrong one by its first word."""
    counts = Counter()
    for number in numbers:
        try:
            counts[attempt(1, number)] += 1
        except WrongError:
            counts["wrong"] += 1
    return counts


def test_operations_of_every_method_are_called():
    methods = {operation.__module__.split(".")[1] for operation, _ in operations()}
    assert methods >= {"flash", "linformer", "lora", "mamba", "matmulfree", "position", "reformer", "tandem"}


def test_random_calls_are_served_or_refused():
    counts = ends(range(400))
    assert not counts["wrong"]
    assert min(counts["served"], counts["refused"]) > 80


def test_wrong_answers_are_noticed(monkeypatch):
    right = flash.scaled_dot_product_attention
    monkeypatch.setattr(flash, "scaled_dot_product_attention", lambda *a, **k: 1.1 * right(*a, **k))
    assert ends(range(400))["wrong"] > 0
