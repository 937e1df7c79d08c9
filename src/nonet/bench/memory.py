"""What a training step has to remember."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nonet.bench.timing import Call
from nonet.compare.measure import Peak


def kept(call: Call, given: Iterable[Tensor]) -> int:
    """Returns the bytes that autograd keeps for the backward pass beyond inputs and output.

    Each block of memory counts once and whole, however many saved tensors lie in it, as it stays as a whole.
    Temporaries of the pass itself are not in it: :func:`peak` sees those.

    Args:
        call: the forward pass; returns its output.
        given: its inputs.
    """
    # The storages are held, so that no address is given away twice.
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    known = {tensor.untyped_storage().data_ptr() for tensor in (*given, *_tensors(out))}
    return sum(storage.nbytes() for address, storage in found.items() if address not in known)


def peak(call: Call) -> int | None:
    """Returns by how much the process's resident memory rises during a call, results included.

    The call has run before, so that what it sets up once is there already. None where nothing tells.
    """
    with Peak(torch.device("cpu")) as found:
        call()
    return found.bytes


def _tensors(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(t for t in out if isinstance(t, Tensor))
