"""How often the conformance checks reject a right result, and whether they notice every planted fault.

    python tests/conformance/trials.py --seeds 100 --only hgrn_scan

draws the inputs of every case anew for each seed. PyTorch's results are tried in every order of sums and with
every matrix library of ``orders.py``, a kernel's with every instruction set of this processor. They are held
to the drawn errors alone: plain PyTorch's own error can only allow more, and is left out, so that the counts
do not depend on it. With ``--faults``, planted faults are tried instead of right results.
"""

import argparse
import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from orders import LIBRARIES, ORDERS, Order

from nonet import methods, native
from nonet.registry import load
from nonet.select import absent
from nonet.testing import checks, expected
from nonet.testing.budget import measured
from nonet.testing.case import cases

COMPUTING = (  # the others compute what the first of these does, or compare bits
    checks.outputs_and_gradients,
    checks.the_past_stays,
    checks.parts_make_the_whole,
    checks.rows_are_alone,
)


def shares(case, op, seed):
    """Yields (implementation, way, the largest share of a budget that it uses) of every right result."""
    oracle = partial(load(op.api), impl="reference")
    case = seeded(case, seed, case.lengths[:2])  # small results, where luck is greatest
    forward_alone = replace(case, gradients=())
    for implementation in op.implementations:
        if implementation.name in absent(op, "cpu"):
            continue
        mine = forward_alone if "gradient" in implementation.refuses else case
        function = partial(load(op.api), impl=implementation.name)
        for way in native.library().isas() if implementation.name == "cpu" else (*LIBRARIES, *ORDERS):
            with computed(way), measuring() as found:
                for check in COMPUTING:
                    check(mine, function, oracle)
            yield implementation.name, way, max(found)
    expected._computed.cache_clear()


def rejected(case, op, seed):
    """Yields (fault, whether any check notices it) of every planted fault."""
    oracle = partial(load(op.api), impl="reference")
    case = seeded(case, seed, case.lengths)
    for name, fault in case.faults.items():
        yield name, any(noticed(check, case, fault(oracle), oracle) for check in checks.CHECKS.values())
    expected._computed.cache_clear()


def noticed(check, *arguments):
    """Returns whether a check fails."""
    try:
        check(*arguments)
    except (AssertionError, ValueError, RuntimeError, IndexError):
        return True
    return False


def seeded(case, seed, lengths):
    """Returns a case with other inputs, of some lengths."""

    def make(length, generator):
        return case.make(length, generator.manual_seed(1000 * seed + length))

    return replace(case, make=make, lengths=lengths)


@contextmanager
def computed(way):
    """Lets PyTorch compute in one of its orders, or kernels with one of their instruction sets."""
    if way not in native.ISAS:
        with Order(way):
            yield
        return
    library = native.library()
    before = library.isa
    library.use_isa(way)
    yield
    library.use_isa(before)


@contextmanager
def measuring():
    """Yields a list of the shares of the budget that checks find; meanwhile they raise nothing for it."""
    found = []

    def measure(*arguments):
        for error, allowed in measured(*arguments).values():
            found.append(error / allowed if allowed else math.inf if error else 0.0)

    def drawn_alone(case, function, oracle, *rest):
        return expected.expected(case, oracle, oracle, *rest)

    with mock.patch.multiple(checks, assert_within_budget=measure, expected=drawn_alone):
        yield found


def summary(found):
    """Says how often right results are rejected: as counted, and by the tail of the shares that they use."""
    found = torch.tensor(sorted(found), dtype=torch.float64)
    told = f"{len(found)} right results, {int((found > 1).sum())} rejected"
    tail = found[-max(1, len(found) // 1000) :]
    if len(tail) < 20:
        return told
    power = math.log10(1000) + (1 - tail[0].item()) / (tail - tail[0]).mean().item() / math.log(10)
    return (
        f"{told}; if none is, fewer than 1 in {len(found) // 3} with 95 % confidence. The last thousandth "
        f"use {tail[0]:.2f} to {tail[-1]:.2f} of the budget; by an exponential through them, "
        f"1 in 1e{power:.0f} is rejected"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="ops whose names hold this")
    parser.add_argument("--faults", action="store_true", help="planted faults instead of right results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [(case, m.op(case.op)) for m in methods() for case in cases(m) if asked.only in case.op]
    found, worst = [], []
    for seed in range(asked.first, asked.first + asked.seeds):
        for case, op in chosen:
            what = f"{case.op} ({case.label}), seed {seed}"
            if asked.faults:
                for fault, is_noticed in rejected(case, op, seed):
                    found.append(is_noticed)
                    worst += [] if is_noticed else [f"missed: {what}, {fault}"]
            else:
                for *how, share in shares(case, op, seed):
                    found.append(share)
                    worst = sorted([*worst, f"{share:.3f} of the budget: {what}, {', '.join(how)}"])[-10:]
        told = f"{sum(found)} of {len(found)} faults noticed" if asked.faults else summary(found)
        sys.stdout.write(f"Seeds {asked.first} to {seed}: {told}.\n")
        sys.stdout.flush()
    sys.stdout.write("".join(f"{line}\n" for line in worst))


if __name__ == "__main__":
    main()
