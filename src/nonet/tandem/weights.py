"""Linear layers that read their weights at the speed of memory when they are given few rows."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nonet import native
from nonet.operators import learns
from nonet.select import implementation
from nonet.tandem import METHOD
from nonet.tandem.impl.cpu import linear_rows, prepared
from nonet.tandem.ops import plain, product

Model = TypeVar("Model", bound=nn.Module)

_ROWS = 16  # with more the weight's way from memory is no longer what the time goes into


def stream_weights(model: Model) -> Model:
    """Lets :func:`nonet.tandem.linear_rows` compute a model's linear layers on few rows; returns the model.

    A pass over a drafted block then takes little more time than one over a single token, and these layers
    give each token the very bits that it gets alone. Every ``nn.Linear`` on the CPU gets another forward
    pass, the output head too: with up to 16 rows and no gradient asked it is that product, else the layer's
    own.
    Beside a float32 weight whose values are exact in bfloat16, as those of most checkpoints are, a copy in
    bfloat16 is kept and read: the same result from half the memory traffic, for half as much memory again.

    Parameters, state dict, dtype, device and what is saved stay as they are. The copy of a weight that was
    changed is made anew, in the next pass that wants it; only what is written into ``weight.data`` goes
    unseen, since PyTorch does not count it, and takes another call of this function, which does nothing else.
    :func:`restore_weights` undoes it. Layers of other classes, adapted ones among them, are left as they are,
    and so is everything where the C library was not built; a warning then says so.

    Args:
        model: any module; the primary of a pairing, and its secondary.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
    """
    _check(model)
    implementation(METHOD.op("linear_rows"), "auto", torch.empty(0))  # warns where there is no library
    if native.absence() is not None:
        return model
    copies: dict[int, Copy] = {}
    module: Any
    for module in model.modules():
        if type(module) is StreamedLinear or _is_plain(module):
            module.__class__ = StreamedLinear
            module.nonet_copy = copies.setdefault(id(module.weight), Copy())
            module.nonet_copy.of(module.weight)
    return model


def restore_weights(model: Model) -> Model:
    """Gives linear layers back the forward pass that :func:`stream_weights` replaced; returns the model.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: a layer's forward pass was wrapped since, so that its own cannot be put back.
    """
    _check(model)
    streamed: dict[str, Any] = {name: m for name, m in model.named_modules() if type(m) is StreamedLinear}
    if wrapped := [name for name, module in streamed.items() if "forward" in vars(module)]:
        raise ValueError(f"first remove the hooks of {wrapped[0]}, which hold nonet's forward pass")
    for module in streamed.values():
        del module.nonet_copy
        module.__class__ = nn.Linear
    return model


class Copy:
    """A weight as the kernel reads it: itself, or a copy in bfloat16 where that is exact.

    It is neither pickled nor copied along with its layer, but made anew.
    """

    def __init__(self) -> None:
        self._made_of: tuple[object, ...] | None = None
        self._kept: tuple[Tensor, ...] = ()
        self._beginning: bytes | None = None

    def of(self, weight: Tensor) -> bytes | None:
        """Returns what the kernel is told of a weight, or None where it cannot read it."""
        try:
            made_of = weight.data_ptr(), weight._version, weight.shape, weight.stride()
        except RuntimeError:  # made in inference mode, where changes are not counted
            return None
        if made_of != self._made_of:
            read = _narrowed(weight)
            # The weight is kept, too: another in its place in memory could not be told from it.
            self._kept = () if read is None else (read, weight.detach())
            self._beginning = None if read is None else prepared(weight, read)
            self._made_of = made_of
        return self._beginning

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Copy, ()


class StreamedLinear(nn.Linear):
    """A linear layer that reads its weight once for up to 16 rows, in bfloat16 where that is exact."""

    nonet_copy: Copy

    def forward(self, input: Tensor) -> Tensor:
        """Returns ``(..., out_features)``."""
        # By its name a module would search for it in Python.
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if (
            type(input) is Tensor
            and type(weight) is nn.Parameter
            and input.dtype is weight.dtype
            and input.is_cpu
            and (shape := weight.shape)[1] == input.shape[-1]
            and 0 < (numbers := input.numel()) <= _ROWS * shape[1]
            and (bias is None or len(bias) == shape[0])
            and not learns(input, weight, bias)
            and not torch.is_autocast_enabled("cpu")
        ):
            x, b = input.contiguous(), plain(bias)
            if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
                # A graph would keep the copy when the weight changes; the weight gives the same bits.
                return product(x, weight, b) if _is_readable(weight) else super().forward(input)
            if (beginning := self.nonet_copy.of(weight)) is not None:
                out = x.new_empty((*x.shape[:-1], shape[0]))
                linear_rows(out, beginning, numbers // shape[1], x, b)
                return out
        return super().forward(input)


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")


def _is_plain(module: nn.Module) -> bool:
    """Says whether a module is a linear layer on the CPU whose call is the product with its weight."""
    return (
        type(module) is nn.Linear
        and type(module._parameters.get("weight")) is nn.Parameter
        and module.weight.is_cpu
        and "forward" not in vars(module)
    )


def _is_readable(weight: Tensor) -> bool:
    """Says whether the kernel can read a weight."""
    dtypes = torch.float32, torch.bfloat16
    return weight.is_cpu and weight.dtype in dtypes and weight.stride(1) == 1


@torch.no_grad()
def _narrowed(weight: Tensor) -> Tensor | None:
    """Returns what to read for a weight: a copy in bfloat16 if that is exact, itself, or nothing."""
    if not _is_readable(weight):
        return None
    narrow = weight.to(torch.bfloat16)  # itself if it is bfloat16
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight
