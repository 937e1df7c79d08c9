import pytest
import torch

from nonet.learn import check, check_op


def doubled(x, *, impl, error=0.0):
    """An op whose fast path may be told to err in its output, and in its gradient."""
    return 2 * x if impl == "reference" else 2 * x * (1 + error)


def test_what_errs_no_more_than_the_simple_way_is_told(capsys):
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    plain = exact.float() + 1e-5
    check("sums", plain, plain, exact)
    assert (
        capsys.readouterr().out
        == "sums: at most 1.0e-05 from float64, where the simple way in float32 is 1.0e-05\n"
    )


def test_what_errs_more_than_twice_as_much_is_refused():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.raises(AssertionError, match="sums: largest error"):
        check("sums", exact.float() + 3e-5, exact.float() + 1e-5, exact)


def test_an_op_is_held_to_its_oracle_with_its_gradients(capsys):
    check_op(doubled, {"x": torch.randn(3)})
    assert capsys.readouterr().out.startswith("doubled, output and gradients: at most 0.0e+00")
    with pytest.raises(AssertionError, match="doubled, output"):
        check_op(doubled, {"x": torch.randn(3)}, error=1e-3)


def test_a_wrong_gradient_is_refused():
    def op(x, *, impl):
        return 2 * x if impl == "reference" else 2 * x + (x - x.detach())

    with pytest.raises(AssertionError, match="op, x"):
        check_op(op, {"x": torch.randn(3)})
