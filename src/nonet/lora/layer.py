"""How a module carries adapters: its class changes to a subclass; nothing else about it changes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from nonet.derived import Derived
from nonet.lora.api import grouped_lora
from nonet.lora.factors import Factors

PROMPT = "soft_prompt"  # where a trained prompt lies in its model; it is no part of what adapters are for


class Adapters(nn.ModuleDict):
    """The adapters of one module by name, and which of them are in use; found as its ``lora``."""

    selected: str | None = None  # the adapter of all rows
    named: tuple[str, ...] = ()  # the adapters that rows name, in the order of their indices
    places: tuple[int, ...] = ()  # the index of each row's adapter, -1 for none
    rows: Tensor | None = None  # the same (B,), or None where rows name no adapter of this module
    merged: bool = False

    def select(self, which: str | tuple[str | None, ...] | None, device: torch.device) -> None:
        """Uses one adapter, none, or one of each row's own; names without factors here stand for none."""
        self.selected, self.named, self.places, self.rows = None, (), (), None
        if not isinstance(which, tuple):
            self.selected = which if which is not None and which in self else None
            return
        self.named = tuple(dict.fromkeys(name for name in which if name is not None and name in self))
        if self.named:
            self.places = tuple(self.named.index(name) if name in self.named else -1 for name in which)
            self.rows = torch.tensor(self.places, device=device)

    def adapters(self) -> Iterable[tuple[str, Factors]]:
        """Returns the names of all adapters here with their factors."""
        return self.items()  # type: ignore[return-value]

    def current(self) -> Factors | None:
        """Returns the factors that serve all rows, or None when the module is to do without."""
        return None if self.merged or self.selected is None else self[self.selected]  # type: ignore[return-value]

    def grouped(self, x: Tensor, base: Tensor) -> Tensor:
        """Returns ``base`` with each row's term, from the input ``(B, ..., in)``."""
        rows = self.row_indices(x)
        flat = x.reshape(len(rows), -1, x.shape[-1])
        if self.training and any(rates := [self[name].dropout for name in self.named]):
            p = x.new_tensor([*rates, 0.0])[rows][:, None, None]
            flat = flat * (torch.rand_like(flat) >= p) / (1 - p)
        out = grouped_lora(flat, *self.stacked(x.dtype, rows), base.reshape(len(rows), -1, base.shape[-1]))
        return out.view(base.shape)

    def row_indices(self, x: Tensor) -> Tensor:
        """Returns the adapter of each row of ``x``; raises ValueError when there are other rows."""
        assert self.rows is not None
        if x.shape[0] != len(self.rows):
            raise ValueError(f"select_lora named {len(self.rows)} rows; a module was given {x.shape[0]}")
        return self.rows.to(x.device)

    def stacked(self, dtype: torch.dtype, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns ``(K, R, in)``, ``(K, out, R)``, scales ``(K,)`` and rows, as ``grouped_lora`` takes them.

        Nothing is kept between calls: a weight can change without a trace, as by a write through ``.data``.
        """
        parts: list[Factors] = [self[name] for name in self.named]  # type: ignore[misc]
        pairs = [(a.to(dtype), b.to(dtype)) for a, b in (part.pair() for part in parts)]
        rank = max(len(a) for a, _ in pairs)
        if any(len(a) < rank for a, _ in pairs):
            pairs = [(F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - len(a)))) for a, b in pairs]
        scales, order = [part.scale for part in parts], None
        if torch.compiler.is_compiling():
            order = rows  # a graph that serves every choice of rows
        else:  # a row's factors are copied once, without a stack of the adapters in between
            a, b = pairs[0]
            pairs.append((a.new_zeros(()).expand_as(a), b.new_zeros(()).expand_as(b)))  # for a row of none
            pairs, scales = [pairs[k] for k in self.places], [[*scales, 0.0][k] for k in self.places]
        wide = torch.promote_types(dtype, torch.float32)
        return (
            torch.stack([a for a, _ in pairs]),
            torch.stack([b for _, b in pairs]),
            torch.tensor(scales, dtype=wide, device=pairs[0][0].device),
            order,
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the factors; nothing while they are merged, so that a checkpoint is a plain model's."""
        return kwargs.get("destination", {}) if self.merged else super().state_dict(*args, **kwargs)


class Adapted(Derived, nn.Module):
    """What every module with adapters has; derived classes put it in front of the module's own class."""

    lora: Adapters
    lora_mergeable: ClassVar[bool] = True  # all it does is to multiply by its weight
    lora_embedding: ClassVar[bool] = False

    def lora_matrix(self) -> Tensor:
        """Returns the weight as ``(out, in)``."""
        return self.weight  # type: ignore[return-value]

    def lora_put(self, matrix: Tensor) -> Tensor:
        """Returns a matrix ``(out, in)`` as the module's weight lies."""
        return matrix

    def lora_shape(self) -> tuple[int, int]:
        """Returns ``(out, in)``."""
        return self.out_features, self.in_features  # type: ignore[return-value]


class _Product(Adapted):
    def forward(self, x: Tensor) -> Tensor:
        if self.lora.rows is not None:
            return self.lora.grouped(x, super().forward(x))
        factors = self.lora.current()
        return super().forward(x) if factors is None else factors(x, self.lora_matrix(), self.bias)


class _TransposedProduct(_Product):
    def lora_matrix(self) -> Tensor:
        return self.weight.mT  # type: ignore[return-value]

    def lora_put(self, matrix: Tensor) -> Tensor:
        return matrix.mT.contiguous()

    def lora_shape(self) -> tuple[int, int]:
        return self.nf, self.nx  # type: ignore[return-value]


class _OwnForward(Adapted):
    """A linear layer that does more than to multiply, such as a ternary one: its output gets the term."""

    lora_mergeable = False

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.lora.rows is not None:
            return self.lora.grouped(x, out)
        factors = self.lora.current()
        return out if factors is None else out + factors.term(x).to(out.dtype)


class _LookUp(Adapted):
    lora_embedding = True
    padding_idx: int | None

    def lora_matrix(self) -> Tensor:
        return self.weight.mT  # type: ignore[return-value]

    def lora_put(self, matrix: Tensor) -> Tensor:
        return matrix.mT.contiguous()

    def lora_shape(self) -> tuple[int, int]:
        return self.embedding_dim, self.num_embeddings  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        times = getattr(self, "embed_scale", 1.0)  # Gemma's embeddings multiply what they look up
        if self.lora.rows is not None:
            rows = self.lora.row_indices(ids).view(-1, *[1] * (out.dim() - 1))
            for k, name in enumerate(self.lora.named):
                term = self.lora_term(ids, self.lora[name], out.dtype) * times  # type: ignore[arg-type]
                out = torch.where(rows == k, out + term, out)
            return out
        factors = self.lora.current()
        if factors is None:
            return out
        out = out + self.lora_term(ids, factors, out.dtype) * times
        return out if factors.magnitude is None else out * factors.gain(self.lora_matrix()).to(out.dtype)

    def lora_term(self, ids: Tensor, factors: Factors, dtype: torch.dtype) -> Tensor:
        """Returns what an adapter adds to what is looked up, before it is scaled as that is."""
        a, b = factors.pair()
        low = F.embedding(ids, a.mT, self.padding_idx).to(dtype)  # the padding's column learns nothing
        return (factors.scale * low) @ b.to(dtype).mT


def put_on(module: Any) -> Adapted:
    """Makes a module carry adapters, if it does not yet; returns it."""
    if not isinstance(module, Adapted):
        module.__class__ = adapted(type(module))  # type: ignore[arg-type]
        module.lora = Adapters()
    return module


def take_off(module: Any) -> None:
    """Gives a module back its class."""
    del module.lora
    module.__class__ = module.derived_from


@functools.cache
def adapted(own: type) -> type[Adapted]:
    """Returns the class of modules of class ``own`` that carry adapters.

    Raises:
        ValueError: no adapter is known for such modules.
    """
    if issubclass(own, nn.Linear):
        kind: type[Adapted] = _Product if own.forward is nn.Linear.forward else _OwnForward
    elif issubclass(own, Conv1D):
        kind = _TransposedProduct
    elif issubclass(own, nn.Embedding) and (
        own.forward is nn.Embedding.forward or "ScaledWordEmbedding" in own.__name__
    ):
        kind = _LookUp
    else:
        raise ValueError(f"{own.__name__} can carry no adapter; nn.Linear, Conv1D and nn.Embedding can")
    made = {"derived_by": adapted, "derived_from": own, "__module__": __name__}
    return type(f"Lora{own.__name__}", (kind, own), made)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Returns the paths and modules of a model without its adapters and its prompt, each module once."""
    added = [path for path, m in model.named_modules() if isinstance(m, Adapters)]
    inside = tuple(f"{path}." for path in (*added, PROMPT))
    for path, module in model.named_modules():
        if not isinstance(module, Adapters) and path != PROMPT and not path.startswith(inside):
            yield path, module


def carriers(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Returns the paths and modules of a model that carry adapters."""
    return ((path, m) for path, m in model.named_modules() if isinstance(m, Adapted))
