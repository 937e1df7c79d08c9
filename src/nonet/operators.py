"""What the rooms share in making operators of torch out of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonet.native import library

_library = torch.library.Library("nonet", "FRAGMENT")


def define(
    name: str, inputs: str, outputs: int, shapes: Callable[..., Any], kernel: Callable[..., None]
) -> None:
    """Defines ``nonet::name``, an operator on the CPU that returns what a kernel fills.

    Args:
        name: the operator's name.
        inputs: its arguments, in the language of torch's schemas.
        outputs: the number of tensors that it returns.
        shapes: ``(*inputs) -> tensors``, unfilled; torch.compile asks it too.
        kernel: ``(tensors, *inputs)`` fills them.
    """

    def operator(*arguments: Any) -> Any:
        outs = shapes(*arguments)
        for out in outs:
            library().expect(out)
        kernel(outs, *arguments)
        return outs

    _library.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * outputs)})")
    _library.impl(name, operator, "CPU")
    torch.library.register_fake(f"nonet::{name}", shapes)


def ends(cu_seqlens: Tensor | None) -> Tensor | None:
    """Returns where packed sequences begin and end as the kernels read it."""
    return None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64).contiguous()


def float32(tensor: Tensor | None) -> Tensor | None:
    """Returns a tensor that may be missing in float32, the dtype of states and parameters in kernels."""
    return None if tensor is None else tensor.float()


def learns(*tensors: Tensor | None) -> bool:
    """Says whether a gradient will be asked of what is made from these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
