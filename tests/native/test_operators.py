"""The kernels as operators of torch: schemas, shapes for the compiler, gradients, compiled callers."""

import pytest
import torch
from torch.library import opcheck

from nonet import methods, native
from nonet.registry import load
from nonet.testing.case import call, cases, cast

pytestmark = pytest.mark.skipif(native.absence() is not None, reason="there is no C library")

COMPILED = [
    pytest.param(case, method.op(case.op), id=f"{case.op}-{case.label}")
    for method in methods()
    for case in cases(method)
    if any(i.name == "cpu" for i in method.op(case.op).implementations)
]
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


def arguments(case, dtype, transposed):
    found = cast(case.make(case.lengths[0] if len(case.lengths) == 1 else 7, torch.Generator()), dtype)
    if transposed:
        for name, value in found.items():
            if isinstance(value, torch.Tensor) and value.dim() > 1:
                found[name] = value.mT.contiguous().mT
    return found


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operators of nonet that are called, and with what."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "nonet":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("case", "op"), COMPILED)
def test_operators_pass_opcheck(case, op, transposed):
    given = arguments(case, torch.float32, transposed)
    if "gradient" not in op.implementations[0].refuses:
        given = {
            name: value.requires_grad_()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in given.items()
        }
    with Recorder() as recorder:
        outs = call(load(op.api), {**given, "impl": "cpu"})
        if any(out.requires_grad for out in outs):
            sum(out.sum() for out in outs if out.requires_grad).backward()
    assert recorder.calls
    for function, args in recorder.calls:
        opcheck(function, [a.detach() if isinstance(a, torch.Tensor) else a for a in args], test_utils=TESTS)


@pytest.mark.parametrize(("case", "op"), COMPILED)
def test_compiled_callers_need_one_graph(case, op):
    given = arguments(case, torch.float32, transposed=False)
    api = load(op.api)

    def caller(**tensors):
        return tuple(out * 2 for out in call(api, {**tensors, "impl": "cpu"}))

    torch.compiler.reset()
    compiled = torch.compile(caller, fullgraph=True, backend="aot_eager")
    for fast, plain in zip(compiled(**given), caller(**given), strict=True):
        assert torch.equal(fast, plain)
