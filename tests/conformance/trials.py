"""How often the conformance checks reject a right result, and whether they notice every planted fault.

    python tests/conformance/trials.py --seeds 100 --only hgrn_scan

draws the inputs of every case anew for each seed. PyTorch's results are tried in every order of sums and with
every matrix library of ``orders.py``, a kernel's with every instruction set of this processor. They are held
to the drawn errors alone: plain PyTorch's own error can only allow more, and is left out, so that the counts
do not depend on it. With ``--faults``, planted faults are tried instead of right results.
"""

import argparse
import math
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


def shares(case, op, seed):
    """Yields (implementation, way, check, share of the budget used) of every right result."""
    oracle = partial(load(op.api), impl="reference")
    case = seeded(case, seed, case.lengths[:2])  # small results, where luck is greatest
    forward_alone = replace(case, gradients=())
    for implementation in op.implementations:
        if implementation.name in absent(op, "cpu"):
            continue
        mine = forward_alone if "gradient" in implementation.refuses else case
        function = partial(load(op.api), impl=implementation.name)
        for way in native.library().isas() if implementation.name == "cpu" else (*LIBRARIES, *ORDERS):
            for name, check in checks.CHECKS.items():
                with computed(way), measuring() as found:
                    check(mine, function, oracle)
                if found:
                    yield implementation.name, way, name, max(found)
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
    n, beyond = len(found), int((found > 1).sum())
    tail = found[-max(1, n // 1000) :]
    mean = (tail - tail[0]).mean().item()
    rate = len(tail) / n * math.exp(-(1 - tail[0].item()) / mean) if mean else math.nan
    return (
        f"{n} right results, {beyond} rejected; the largest share of the budget that one used is {found[-1]:.2f}. "
        f"Beyond 1 are: below {-math.log(0.05) / n:.0e} (95 % confidence, if none is rejected), "
        f"and {rate:.0e} by an exponential through the last thousandth, which begins at {tail[0]:.2f}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="ops whose names hold this")
    parser.add_argument("--faults", action="store_true", help="planted faults instead of right results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mine = [(c, m.op(c.op)) for m in methods() for c in cases(m) if arguments.only in c.op]
    everything, worst, missed = [], {}, []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for case, op in mine:
            if arguments.faults:
                for fault, is_noticed in rejected(case, op, seed):
                    everything.append(is_noticed)
                    missed += [] if is_noticed else [f"{case.op} ({case.label}): {fault}, seed {seed}"]
                continue
            for implementation, way, check, share in shares(case, op, seed):
                everything.append(share)
                worst[share] = f"{case.op} ({case.label}), {implementation}, {way}, {check}, seed {seed}"
        worst = {share: worst[share] for share in sorted(worst)[-10:]}
        print(
            f"after seed {seed}:",
            f"{sum(everything)} of {len(everything)} faults noticed"
            if arguments.faults
            else summary(everything),
            flush=True,
        )
    for line in missed:
        print(line)
    for share, what in worst.items():
        print(f"{share:.2f}  {what}")


if __name__ == "__main__":
    main()
