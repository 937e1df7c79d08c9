"""Whether what a call gave is what the oracle gives."""

import math

import oracles
import torch
from torch import Tensor

from nonet.reformer import lsh_buckets, lsh_rotations
from nonet.testing import assert_within_budget

DRAWS = 6
HUGE = torch.finfo(torch.float32).max ** 0.5


class WrongError(Exception):
    """What a call gave is not what the oracle gives."""


def results(function, arguments, leaves):
    """Returns outputs, and gradients of a weighted sum of them, by name."""
    mine = {n: x.detach().requires_grad_() if n in leaves else x for n, x in arguments.items()}
    found = {f"output {k}": out for k, out in enumerate(_flat(function(**mine)))}
    learnt = [x for x in found.values() if isinstance(x, Tensor) and x.requires_grad]
    if learnt:
        total = sum((x.double() * _weights(x)).sum() for x in learnt)
        grads = torch.autograd.grad(total, [mine[n] for n in leaves], materialize_grads=True)
        found |= {f"gradient of {n}": grad for n, grad in zip(leaves, grads, strict=True)}
    return found


class Expected:
    """What the oracle gives in float64, and how far plain PyTorch and arguments that are moved lie."""

    def __init__(self, operation, has_oracle, arguments, leaves):
        oracle = operation if has_oracle else getattr(oracles, operation.__name__, operation)
        known = {
            n: x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x
            for n, x in arguments.items()
        }
        self.meta = any(isinstance(x, Tensor) and x.is_meta for x in known.values())
        if self.meta:  # then shapes are all there is
            known = {
                n: torch.zeros_like(x, device="cpu") if isinstance(x, Tensor) else x for n, x in known.items()
            }
        if has_oracle:
            known["impl"] = "reference"
        if operation.__name__ == "lsh_attention":
            known["buckets"] = _buckets(known)
        exact = {n: x.double() if _floating(x) else x for n, x in known.items()}
        if "dtype" in known:
            exact["dtype"] = torch.float64
        self.plain = results(oracle, known, leaves)
        self.gold = results(oracle, exact, leaves)
        # Products with weights of zero spread NaN to whoever does not see it, in tiles that need not match.
        self.broken = any(not x.isfinite().all() for x in known.values() if _floating(x))
        self.spreads = self.broken and "attention" in operation.__name__
        # Where numbers or their products pass what a dtype holds, the order of operations decides which.
        pairs = [(x, self.gold[n]) for n, x in self.plain.items() if _floating(x)]
        self.overflows = any((~x.isfinite() & y.isfinite()).any() or _largest(y) > HUGE for x, y in pairs)
        self.largest = max((_largest(x) for x in known.values() if _floating(x)), default=0.0)
        self.eps = max((torch.finfo(x.dtype).eps for x in known.values() if _floating(x)), default=0.0)
        generator = torch.Generator().manual_seed(0)
        self.draws = []
        for _ in range(DRAWS if self.eps else 0):
            moved = {n: _moved(x, self.eps, generator) if _floating(x) else x for n, x in known.items()}
            self.draws.append(results(oracle, moved, leaves))


def hold(found, expected, where=""):
    """Raises WrongError unless results are those expected."""
    if missing := expected.gold.keys() - found.keys():
        raise WrongError(f"gave no {', '.join(missing)}{where}")
    learnt = [x for name, x in expected.gold.items() if name.startswith("gradient")]
    # What cancels in a gradient is a product of another gradient with arguments.
    largest = max((_largest(x) for x in learnt), default=0.0) * max(1.0, expected.largest) ** 2
    for name, actual in found.items():
        # Where the oracle has no gradient, it is zero.
        gold = expected.gold[name] if name in expected.gold else torch.zeros_like(actual)
        plain = expected.plain.get(name, gold)
        if not isinstance(gold, Tensor):
            if not isinstance(actual, type(gold)) or not math.isclose(actual, gold):
                raise WrongError(f"{name} is {actual!r}{where}; {gold!r} is right")
        elif (actual.shape, actual.dtype) != (plain.shape, plain.dtype):
            raise WrongError(f"{name} is {_kind(actual)}{where}; {_kind(plain)} is right")
        elif actual.is_meta != expected.meta:
            raise WrongError(f"{name} is on {actual.device}{where}, which not all arguments are")
        elif actual.is_meta or expected.overflows:
            continue
        elif not _floating(actual):
            sure = plain == gold  # the dtype does not decide
            if not bool((actual == gold)[sure].all()) and not expected.broken:
                raise WrongError(f"{name} is {actual.tolist()}{where}; {gold.tolist()} is right")
        else:
            numbers = [
                x.detach() for x in (actual, plain, gold, *(d.get(name, gold) for d in expected.draws))
            ]
            scale = largest if name.startswith("gradient") else 0.0
            _hold(name + where, *numbers, scale=scale, eps=expected.eps, spreads=expected.spreads)


def _hold(name, actual, plain, gold, *draws, scale, eps, spreads):
    """Numbers are held where the oracle is finite in both dtypes; where it is in neither, they are not."""
    finite, lost = plain.isfinite() & gold.isfinite(), ~plain.isfinite() & ~gold.isfinite()
    if spreads:
        finite &= actual.isfinite()
    elif actual[lost].isfinite().any():
        raise WrongError(
            f"{name} has a number where the oracle has none: {actual[lost][:5].tolist()}, "
            f"{gold[lost][:5].tolist()}"
        )
    gold = gold[finite]
    errors = [(x.double()[finite] - gold).abs() for x in (plain, *draws)]
    largest = torch.stack(errors).nan_to_num(0, 0, 0).amax(0) if finite.any() else gold
    most = gold.abs().max().item() if gold.numel() else 0.0
    scale = max(scale, most) * max(1.0, eps / torch.finfo(actual.dtype).eps)  # of the coarsest argument
    try:
        assert_within_budget(actual[finite], gold + largest, gold, name, scale=scale)
    except AssertionError as error:
        raise WrongError(str(error)) from error


def _flat(outs):
    if isinstance(outs, tuple):
        return [x for out in outs for x in _flat(out)]
    return [outs.dequantize()] if hasattr(outs, "dequantize") and not isinstance(outs, Tensor) else [outs]


def _floating(x):
    return isinstance(x, Tensor) and x.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _largest(x):
    return x.detach().double().nan_to_num(0, 0, 0).abs().max().item() if x.numel() else 0.0


def _moved(x, eps, generator):
    """Returns numbers moved by up to a rounding, so that others are rounded on the way."""
    part = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return (x.double() * (1 + eps * (2 * part - 1))).to(x.dtype)


def _weights(x):
    """Weights of the sum that is differentiated."""
    size = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (size + 0.5).to(x.device)


def _buckets(a):
    """The buckets of a call that chooses them by its seed, in the dtype of the call."""
    if a.get("buckets") is not None:
        return a["buckets"]
    heads, length, width = a["qk"].shape[1:]
    buckets = a.get("n_buckets") or length / a["bucket_size"]
    sizes = {"heads": heads, "n_hashes": a["n_hashes"], "n_buckets": buckets, "seed": a.get("seed", 0)}
    return lsh_buckets(a["qk"], lsh_rotations(width, **sizes))


def _kind(x):
    return f"{tuple(x.shape)} of {x.dtype}"
