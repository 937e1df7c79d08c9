"""Every instruction set that this processor has gives right results; the widest is the suite's own."""

import outside
import pytest

from nonet import native
from nonet.testing.checks import outputs_and_gradients

CASES = [pytest.param(case, op, id=f"{op.name}-{case.label}") for case, op in outside.kernel_cases()]
pytestmark = outside.needs_library


@pytest.fixture(params=native.ISAS)
def _isa(request):
    library = native.library()
    if request.param not in library.isas():
        pytest.skip(f"this processor has no {request.param}")
    before = library.isa
    library.use_isa(request.param)
    yield
    library.use_isa(before)


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize(("case", "op"), CASES)
def test_kernels_conform(case, op):
    outputs_and_gradients(case, outside.named(op, "cpu"), outside.named(op, "reference"))
