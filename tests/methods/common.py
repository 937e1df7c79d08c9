import torch

from nonet.testing import assert_within_budget


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(actual, plain, gold, name):
    """The budget, where results of size one or less are sums of terms of size one."""
    assert_within_budget(actual, plain, gold, name, scale=1.0)


def assert_same(actual, expected, name="result"):
    """Equal to the rounding of float32, for values that were computed in float64."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.dtype == expected.dtype == torch.float64
    assert_within_budget(actual.float(), expected.float(), expected, name)
