"""Keys and values in front of every layer's: prefix tuning inside a Transformers model.

A hook on each attention hands it a cache that puts the prefix in front of what it gives, and a mask with P
more columns. So the model's own cache holds real tokens only, and since it happens inside the layer, it is
repeated when gradient checkpointing runs the layer again. One more hook lets positions begin at P.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonet.ecosystem import given_cache
from nonet.prompt.attentions import attentions, cache_of_layer, check_kind
from nonet.prompt.config import PrefixTuning
from nonet.prompt.hooks import Arguments, SoftPrompt, named
from nonet.prompt.proof import probe

_BIASES = ("alibi", "position_bias")


class Prefix(SoftPrompt):
    """P keys and values for every layer.

    Args:
        model: the Transformers model that it is for.
        config: how it was made.
        encoder: called with a slice of columns, returns those of ``(P, layers * 2 * G * D)``; a layer's keys
            come before its values.

    Raises:
        ValueError: the model cannot take them.
    """

    def __init__(self, model: PreTrainedModel, config: PrefixTuning, encoder: nn.Module) -> None:
        super().__init__(model, config, encoder)
        if "position_ids" not in self.names:
            raise ValueError(f"{self.who}: it must take position_ids, since those of tokens begin at P")
        found = attentions(model, probe(model))
        _, self.heads, _, self.head_dim = found[0].keys.shape
        if biases := [name for name in _names(model.get_submodule(found[0].path)) if name in _BIASES]:
            raise ValueError(
                f"{self.who}: its attention takes {biases[0]}, which has no columns for a prefix"
            )
        self.paths = [layer.path for layer in found]
        self._mask: tuple[Tensor | None, Tensor] | None = None  # one for all layers of a pass

    def attach(self, model: PreTrainedModel) -> None:
        """Puts the prefix into the model."""
        super().attach(model)
        for path in self.paths:
            attention = model.get_submodule(path)
            self.handles.append(attention.register_forward_pre_hook(self.attend, with_kwargs=True))

    def prove(self, model: PreTrainedModel, ids: Tensor) -> None:
        """Attaches the prefix and lets the model read a few tokens.

        Raises:
            ValueError: the model does not call its body, where it is told of positions.
        """
        calls: list[int] = []
        count = model.get_submodule(self.path).register_forward_pre_hook(lambda *_: calls.append(1))
        self.attach(model)
        try:
            model(input_ids=ids)
        finally:
            count.remove()
        if len(calls) != 1:
            raise ValueError(
                f"{self.who}: a pass calls {self.path!r}, where positions are told, {len(calls)} times"
            )

    def before(self, body: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of the model's body with positions that begin at P."""
        check_kind(body)
        self._mask = None
        given = named(self.names, args, kwargs)
        places = given.get("position_ids")
        if places is None:
            x = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
            if x is None:
                raise ValueError("give exactly one of input_ids and inputs_embeds")
            mask, cache = given.get("attention_mask"), given_cache(given)
            if isinstance(mask, Tensor) and mask.dim() == 2:
                places = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
            else:
                past = 0 if cache is None else cache.get_seq_length()
                places = torch.arange(x.shape[1], device=x.device)[None] + past
            places = places + self.first
        given["position_ids"] = places + self.length
        return (), given

    def attend(self, attention: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of one layer's attention with the prefix in its cache and its mask."""
        names, name = _names(attention), cache_of_layer(attention) or ""
        given = named(names, args, kwargs)
        x, layer = given[names[0]], attention.layer_idx
        mask, cache = given.get("attention_mask"), given.get(name)
        causal = given.get("is_causal")
        causal = getattr(attention, "is_causal", True) if causal is None else causal
        if mask is not None:
            given["attention_mask"] = self._widened(mask)
        elif causal and x.shape[1] > 1:
            size = x.shape[1] if cache is None else cache.get_mask_sizes(x.shape[1], layer)[0]
            given["attention_mask"] = self._causal(x, size)
        given[name] = _WithPrefix(cache, *self._keys_values(layer))
        return (), given

    def _keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values ``(G, P, D)`` of a layer.

        Each layer computes its own, so that gradient checkpointing can run it again alone. Nothing is kept
        between calls: a parameter can change without a trace, as by a write through ``.data``.
        """
        width = 2 * self.heads * self.head_dim
        rows = self.encoder(slice(layer * width, (layer + 1) * width))
        keys, values = rows.view(-1, 2, self.heads, self.head_dim).permute(1, 2, 0, 3)
        return keys, values

    def _widened(self, mask: Tensor) -> Tensor:
        """Returns a model's mask with P columns in front that every query sees."""
        known = self._mask  # read once, since other threads may be in other passes
        if known is None or known[0] is not mask:
            seen = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
            known = self._mask = (mask, torch.cat([seen(*mask.shape[:-1], self.length), mask], -1))
        return known[1]

    def _causal(self, x: Tensor, size: int) -> Tensor:
        """Returns the mask that a model leaves to SDPA, which cannot be told of the prefix.

        Models do so only where the first query is the first of all tokens.
        """
        shape = (1, 1, x.shape[1], self.length + size)
        known = self._mask
        if known is None or known[0] is not None or known[1].shape != shape:
            known = self._mask = (
                None,
                torch.ones(shape, dtype=torch.bool, device=x.device).tril(self.length),
            )
        return known[1].to(x.device)


class _WithPrefix:
    """One layer's view of the cache: keys and values come out with the prefix, which it does not keep."""

    def __init__(self, cache: Any, keys: Tensor, values: Tensor) -> None:
        self._cache, self._keys, self._values = cache, keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, *args, **kwargs)
        return _join(self._keys, keys), _join(self._values, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def made_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Returns what the attentions of a model make of P tokens, the ``(P, layers * 2 * G * D)`` of a prefix.

    With them as its prefix the model reads a text as if these tokens stood before it.
    """
    found = attentions(model, ids[None].to(model.device))
    # (2, G, P, D) a layer, keys before values, to (P, 2, G, D)
    pairs = [torch.cat([layer.keys, layer.values]).permute(2, 0, 1, 3) for layer in found]
    return torch.cat([pair.flatten(1) for pair in pairs], 1).to(
        "cpu", torch.promote_types(model.dtype, torch.float32)
    )


def _names(attention: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(attention.forward).parameters)


def _join(prefix: Tensor, own: Tensor) -> Tensor:
    return torch.cat([prefix.to(own.device, own.dtype).expand(len(own), -1, -1, -1), own], dim=2)
