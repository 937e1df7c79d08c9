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

from nonet.prompt.config import PrefixTuning
from nonet.prompt.hooks import Arguments, SoftPrompt, named

_KINDS = ("eager", "sdpa")
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
        _, self.heads, self.head_dim = kv_shape(model)
        self.attention_names = tuple(inspect.signature(_attentions(model)[0].forward).parameters)
        _check_kind(model)
        self._mask: tuple[Tensor | None, Tensor] | None = None  # one for all layers of a pass

    def attach(self, model: PreTrainedModel) -> None:
        """Puts the prefix into the model."""
        super().attach(model)
        for attention in _attentions(model):
            self.handles.append(attention.register_forward_pre_hook(self.attend, with_kwargs=True))

    def before(self, body: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of the model's body with positions that begin at P."""
        _check_kind(body)
        self._mask = None
        given = named(self.names, args, kwargs)
        places = given.get("position_ids")
        if places is None:
            x = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
            if x is None:
                raise ValueError("give exactly one of input_ids and inputs_embeds")
            mask, cache = given.get("attention_mask"), given.get("past_key_values")
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
        given = named(self.attention_names, args, kwargs)
        x, layer = given[self.attention_names[0]], attention.layer_idx
        mask, cache = given.get("attention_mask"), given.get("past_key_values")
        causal = given.get("is_causal")
        causal = getattr(attention, "is_causal", True) if causal is None else causal
        if mask is not None:
            given["attention_mask"] = self._widened(mask)
        elif causal and x.shape[1] > 1:
            size = x.shape[1] if cache is None else cache.get_mask_sizes(x.shape[1], layer)[0]
            given["attention_mask"] = self._causal(x, size)
        given["past_key_values"] = _WithPrefix(cache, *self._keys_values(layer))
        return (), given

    def _keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values ``(G, P, D)`` of a layer.

        Each layer computes its own from the parameters, so that it can be run again alone. Nothing is kept
        between calls: a parameter can change without a trace, as by a write through ``.data``.
        """
        width = 2 * self.heads * self.head_dim
        rows = self.encoder(slice(layer * width, (layer + 1) * width))
        keys, values = rows.view(-1, 2, self.heads, self.head_dim).permute(1, 2, 0, 3)
        return keys, values

    def _widened(self, mask: Tensor) -> Tensor:
        """Returns a model's mask with P columns in front that every query sees."""
        if self._mask is None or self._mask[0] is not mask:
            seen = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
            self._mask = (mask, torch.cat([seen(*mask.shape[:-1], self.length), mask], -1))
        return self._mask[1]

    def _causal(self, x: Tensor, size: int) -> Tensor:
        """Returns the mask that a model leaves to SDPA, which cannot be told of the prefix.

        Models do so only where the first query is the first of all tokens.
        """
        shape = (1, 1, x.shape[1], self.length + size)
        if self._mask is None or self._mask[0] is not None or self._mask[1].shape != shape:
            mask = torch.ones(shape, dtype=torch.bool, device=x.device).tril(self.length)
            self._mask = (None, mask)
        return self._mask[1].to(x.device)


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


class _Record:
    """In the place of a cache: takes down the keys and values ``(1, G, P, D)`` of each layer."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.layers[layer] = keys, values
        return keys, values


@torch.no_grad()
def made_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Returns what the attentions of a model make of P tokens, the ``(P, layers * 2 * G * D)`` of a prefix.

    With them as its prefix the model reads a text as if these tokens stood before it.
    """
    _check_kind(model)
    attentions, record = _attentions(model), _Record()
    names = tuple(inspect.signature(attentions[0].forward).parameters)

    def note(attention: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        return (), {**named(names, args, kwargs), "past_key_values": record}

    handles = [attention.register_forward_pre_hook(note, with_kwargs=True) for attention in attentions]
    training = model.training
    try:
        model.eval().base_model(input_ids=ids[None].to(model.device), use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    # (2, G, P, D) a layer, keys before values, to (P, 2, G, D)
    pairs = [torch.cat(record.layers[layer]).permute(2, 0, 1, 3) for layer in sorted(record.layers)]
    return torch.cat([pair.flatten(1) for pair in pairs], 1).to(
        "cpu", torch.promote_types(model.dtype, torch.float32)
    )


def _join(prefix: Tensor, own: Tensor) -> Tensor:
    rows, heads, _, width = own.shape
    if (heads, width) != (prefix.shape[0], prefix.shape[2]):
        raise ValueError(
            f"PrefixTuning gives every layer {prefix.shape[0]} heads of width {prefix.shape[2]}; "
            f"a layer of this model has {heads} of width {width}"
        )
    return torch.cat([prefix.to(own.device, own.dtype).expand(rows, -1, -1, -1), own], dim=2)


def kv_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Returns layers, key heads G and their width D of a model, from its configuration."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise ValueError(f"PrefixTuning on {type(model).__name__}: its configuration has no number of heads")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_dim


def _attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the modules that attend, one a layer; raises ValueError where a prefix has no way in."""

    def attends(module: nn.Module) -> bool:
        known = inspect.signature(module.forward).parameters
        return isinstance(getattr(module, "layer_idx", None), int) and "past_key_values" in known

    found = [m for m in model.base_model.modules() if attends(m)]
    found = [m for m in found if not any(attends(inner) for inner in m.modules() if inner is not m)]
    who, layers = f"PrefixTuning on {type(model).__name__}", kv_shape(model)[0]
    if sorted(m.layer_idx for m in found) != list(range(layers)):
        raise ValueError(
            f"{who}: each of its {layers} layers needs an attention whose forward takes past_key_values; "
            f"found {len(found)}. PromptTuning and PTuning need none"
        )
    if biases := [name for name in inspect.signature(found[0].forward).parameters if name in _BIASES]:
        raise ValueError(f"{who}: its attention takes {biases[0]}, which has no columns for a prefix")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ValueError(f"{who}: its forward must take position_ids, since those of tokens begin at P")
    return found


def _check_kind(model: Any) -> None:
    kind = model.config._attn_implementation
    if kind not in _KINDS:
        raise ValueError(
            f"attn_implementation={kind!r} cannot be told of a prefix; "
            f"choose from {', '.join(_KINDS)} with model.set_attn_implementation"
        )
