"""The rule that every fast path is held to must itself be able to fail."""

import pytest
import torch

from nonet.testing import assert_within_budget, assert_within_rounding, rounded

GOLD = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PLAIN = GOLD.float() * (1 + 1e-6)


def test_as_good_as_plain_passes():
    assert_within_budget(PLAIN, PLAIN, GOLD, "x")
    assert_within_budget(GOLD.float(), PLAIN, GOLD, "x")


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (GOLD.float() * (1 + 3e-6), "largest error"),
        (GOLD.float().flip(0), "largest error"),
        (GOLD.float().index_fill(0, torch.tensor([3]), torch.nan), "not finite"),
        (GOLD.float()[:-1], "shape"),
    ],
    ids=["three times the error", "other order", "a NaN", "a row less"],
)
def test_worse_fails(actual, message):
    with pytest.raises(AssertionError, match=message):
        assert_within_budget(actual, PLAIN, GOLD, "x")


def test_a_small_error_everywhere_fails_though_the_largest_is_allowed():
    plain = GOLD.float()
    plain[0, 0] += 1e-3  # plain has one bad value; the path under test is bad in all
    with pytest.raises(AssertionError, match="root mean square"):
        assert_within_budget(GOLD.float() + 1e-3, plain, GOLD, "x")


def test_infinities_must_be_the_oracles():
    gold = GOLD.clone()
    gold[0, 0] = -torch.inf
    assert_within_budget(gold.float(), gold.float(), gold, "x")
    other = gold.float()
    other[0, 0] = torch.inf
    with pytest.raises(AssertionError, match="another infinity"):
        assert_within_budget(other, gold.float(), gold, "x")


def test_terms_that_cancel_are_measured_by_their_size():
    nothing = torch.zeros(4, dtype=torch.float64)
    residue = torch.full((4,), 1e-7)
    with pytest.raises(AssertionError):
        assert_within_budget(residue, nothing.float(), nothing, "x")
    assert_within_budget(residue, nothing.float(), nothing, "x", scale=1.0)


def test_the_worst_of_several_plain_results_counts():
    plain = torch.stack([GOLD.float(), PLAIN, GOLD.float()])
    assert_within_budget(GOLD.float() * (1 + 2e-6), plain, GOLD, "x")
    with pytest.raises(AssertionError, match="largest error"):
        assert_within_budget(GOLD.float() * (1 + 3e-6), plain, GOLD, "x")


# What rounding does.

EPS = torch.finfo(torch.float32).eps


def errors(compute, dtype=torch.float32):
    """The drawn errors, in units of eps."""
    gold, plain = rounded(compute, dtype)
    return (plain - gold) / torch.finfo(dtype).eps


def test_draws_are_the_same_again_and_differ_among_themselves():
    one, two = (rounded(GOLD.exp, torch.float32)[1] for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (8, *GOLD.shape)
    assert len(one.flatten(1).unique(dim=0)) == 8


def test_a_result_errs_by_a_rounding_and_what_follows_by_its_slope():
    assert 0.5 < (errors(GOLD.exp) / GOLD.exp()).abs().max() <= 1
    base = GOLD.abs() + 1
    assert 50 < (errors(lambda: base.sqrt() ** 100) / base**50).abs().max() <= 101


def test_terms_that_cancel_err_as_their_size():
    assert 1e5 < errors(lambda: (GOLD + 1e6) - 1e6).abs().max() < 2e6
    row = torch.tensor([[1e6, 1.0, -1e6]], dtype=torch.float64)
    assert 1e5 < errors(lambda: row @ torch.ones(3, 1, dtype=torch.float64)).abs().max() < 4e6


def test_long_sums_err_more_unless_they_are_taken_in_a_wider_dtype():
    ones = torch.ones(64, 4096, dtype=torch.float64)
    wide, half = (
        errors(lambda: ones.sum(1), d).square().mean().sqrt() for d in (torch.float32, torch.bfloat16)
    )
    assert wide > 20 * half


def test_choices_and_copies_are_exact():
    assert not errors(lambda: (3 * GOLD).round()).any()
    assert not errors(lambda: torch.cat([GOLD, GOLD.abs()]).clamp(max=1)[::2]).any()


def test_gradients_are_drawn_too():
    x = GOLD[0].clone().requires_grad_()
    assert errors(lambda: torch.autograd.grad(x.softmax(0)[3], x)[0]).any()


def test_float32_that_is_asked_for_on_the_way_stays_float64():
    assert torch.equal(rounded(lambda: GOLD.float().to(torch.float32).exp(), torch.float32)[0], GOLD.exp())


def test_a_result_is_held_to_the_roundings_of_its_dtype():
    x = GOLD.bfloat16()
    assert_within_rounding(x.exp() @ x, lambda: x.double().exp() @ x.double())
    assert_within_rounding([x.exp()], lambda: [x.double().exp()])
    with pytest.raises(AssertionError, match="x: largest error"):
        assert_within_rounding(1.1 * x.exp(), lambda: x.double().exp(), "x")
    with pytest.raises(AssertionError, match="x: largest error"):
        assert_within_rounding(x.exp().float(), lambda: x.double().exp(), "x")
    assert_within_rounding(x.exp().float(), lambda: x.double().exp(), "x", torch.bfloat16)
