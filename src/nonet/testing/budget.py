"""The one rule for how far a fast path may be from its oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_budget(
    actual: Tensor, plain: Tensor, gold: Tensor, name: str, factor: float = 2.0, scale: float = 0.0
) -> None:
    """Asserts that ``actual`` errs at most ``factor`` times as much as plain eager PyTorch does.

    The bound holds for the maximum and for the root mean square of the error. It is a property of the whole
    computation: hold whole results, never a row or a single number, whose plain error is luck. Where a few
    roundings decide, let :func:`nonet.testing.rounded` draw ``plain``.

    Args:
        actual: the path under test.
        plain: the oracle run in the same dtype as ``actual``; or several such results, on a first axis more.
        gold: the oracle run in float64 on the same inputs, rounded to that dtype first.
        name: what is compared, for the message.
        factor: how many times the plain error is allowed.
        scale: magnitude of the terms that cancel in the result, where they are larger than the result. A
            rounding of the larger of the two is allowed too, since ``plain`` may happen to be exact.

    Raises:
        AssertionError: a value is not finite where the oracle's is, or the bound is exceeded.
    """
    for kind, (error, allowed) in measured(actual, plain, gold, name, factor, scale).items():
        assert error <= allowed, f"{name}: {kind} error {error:.2e} > {allowed:.2e}"


def measured(
    actual: Tensor, plain: Tensor, gold: Tensor, name: str, factor: float = 2.0, scale: float = 0.0
) -> dict[str, tuple[float, float]]:
    """Returns the largest and the root mean square error of ``actual``, each with what is allowed.

    Takes the arguments of :func:`assert_within_budget`, and raises AssertionError for another shape or where
    values are not finite.
    """
    gold = gold.double()
    assert actual.shape == gold.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(gold.shape)}"
    finite = torch.isfinite(gold)
    assert torch.equal(torch.isfinite(actual), finite), f"{name}: not finite where the oracle is"
    assert torch.equal(actual.double()[~finite], gold[~finite]), f"{name}: another infinity"
    err, ref = (actual.double() - gold)[finite], (plain.double() - gold)[..., finite]
    gold = gold[finite]
    if not gold.numel():
        return {}
    eps = torch.finfo(actual.dtype).eps
    return {
        kind: (norm(err), factor * (norm(ref) + eps * max(scale, norm(gold))))
        for kind, norm in (("largest", _largest), ("root mean square", _rms))
    }


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _rms(x: Tensor) -> float:
    return x.square().mean(-1).sqrt().max().item()
