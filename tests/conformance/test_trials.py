"""A small part of trials.py, in which right results pass and planted faults do not, whatever the inputs."""

import pytest
import torch
from orders import LIBRARIES, ORDERS, Order
from trials import rejected, shares

from nonet import methods
from nonet.testing.case import cases

OPS = ("mamba_step", "linear_rows", "hgrn_scan", "grouped_lora")  # quick, and none without long sums or steps
CASES = [
    pytest.param(case, m.op(case.op), id=f"{case.op}-{case.label}")
    for m in methods()
    for case in cases(m)
    if case.op in OPS
]


@pytest.mark.parametrize(("case", "op"), CASES)
def test_right_results_use_part_of_the_budget(case, op):
    found = list(shares(case, op, seed=1))
    assert {way for _, way, *_ in found} >= {*LIBRARIES, *ORDERS}
    assert max(share for *_, share in found) < 1


@pytest.mark.parametrize(("case", "op"), CASES[::3])
def test_faults_are_noticed_with_other_inputs(case, op):
    assert all(noticed for _, noticed in rejected(case, op, seed=1))


def test_orders_differ_and_are_right():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 150, generator=generator), torch.randn(150, 7, generator=generator)
    exact, found = a.double() @ b.double(), set()
    for name in ORDERS:
        with Order(name):
            product, total = a @ b, a.sum(1)
        assert (product - exact).abs().max() < 1e-4
        assert (total - a.double().sum(1)).abs().max() < 1e-4
        found.add((product.tolist().__repr__(), total.tolist().__repr__()))
    assert len(found) == len(ORDERS)
