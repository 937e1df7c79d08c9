"""Every implementation of every op of every method is held to every check."""

from dataclasses import replace
from functools import cache

import pytest

from nonet import methods
from nonet.registry import load
from nonet.select import absent
from nonet.testing.case import cases
from nonet.testing.checks import CHECKS


@cache  # one function an implementation: the checks know the oracle when they are to hold it
def _keyword(api, impl):
    return lambda **arguments: api(**arguments, impl=impl)


def _everything():
    for method in methods():
        for case in cases(method):
            op = method.op(case.op)
            for implementation in op.implementations:
                forward = "gradient" in implementation.refuses
                missing = absent(op, "cpu").get(implementation.name)
                yield pytest.param(
                    replace(case, gradients=()) if forward else case,
                    op,
                    implementation.name,
                    id=f"{op.name}-{case.label}-{implementation.name}",
                    marks=pytest.mark.skipif(missing is not None, reason=str(missing)),
                )


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(("case", "op", "impl"), list(_everything()))
def test_implementation_conforms(case, op, impl, check):
    api = load(op.api)
    check(case, _keyword(api, impl), _keyword(api, "reference"))


def _faults():
    for method in methods():
        for case in cases(method):
            for name, fault in case.faults.items():
                op = method.op(case.op)
                yield pytest.param(case, op, fault, id=f"{op.name}-{case.label}-{name}")


@pytest.mark.parametrize(("case", "op", "fault"), list(_faults()))
def test_planted_fault_is_rejected(case, op, fault):
    api = load(op.api)
    oracle = _keyword(api, "reference")
    rejected = []
    for name, check in CHECKS.items():
        try:
            check(case, fault(oracle), oracle)
        except (AssertionError, ValueError, RuntimeError, IndexError):
            rejected.append(name)
    assert rejected, "no check noticed the fault"


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_every_op_has_cases_and_faults(method):
    for op in method.ops:
        mine = [case for case in cases(method) if case.op == op.name]
        assert mine, f"{op.name} has no case"
        assert any(case.faults for case in mine), f"{op.name} has no planted fault"
