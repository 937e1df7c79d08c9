"""The attentions of a model, found by the keys and values that they hand to their cache."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from nonet.ecosystem import CACHE_NAMES
from nonet.prompt.hooks import Arguments, named
from nonet.prompt.proof import probe, probing

_KINDS = ("eager", "sdpa")
_NAMES = (*CACHE_NAMES, "layer_past")  # of the cache among the arguments of a layer's forward pass


class Attention(NamedTuple):
    """One layer's attention, and what it made of some tokens."""

    path: str  # in the model
    keys: Tensor  # (1, G, n, D)
    values: Tensor


class _Noting:
    """A view of a cache, or of none, that takes down the keys and values which go into it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.noted: list[tuple[Tensor, Tensor]] = []

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.noted.append((keys, values))
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def attentions(model: PreTrainedModel, ids: Tensor) -> list[Attention]:
    """Returns the attention of every layer and what it makes of tokens ``(1, n)``, in the order of layers.

    Args:
        model: a model of Transformers.
        ids: what it reads.

    Raises:
        ValueError: a layer has no attention that takes a cache and hands it keys and values, or has several;
            or keys and values are not all of one shape.
    """
    check_kind(model)
    who = f"PrefixTuning on {type(model).__name__}"
    modules = {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "layer_idx", None), int) and cache_of_layer(module)
    }
    views: dict[str, _Noting] = {}
    handles = [
        module.register_forward_pre_hook(functools.partial(_listen, views, path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        with probing(model, who):
            model(input_ids=ids)
    finally:
        for handle in handles:
            handle.remove()
    found = [path for path, view in views.items() if view.noted]
    # A whole layer hands its view on to the attention inside, which is the one that is wanted.
    found = [path for path in found if not any(other.startswith(f"{path}.") for other in found)]
    by_layer = {modules[path].layer_idx: path for path in found}
    layers = model.config.get_text_config().num_hidden_layers
    if len(found) != layers or sorted(by_layer) != list(range(layers)):
        raise ValueError(
            f"{who}: each of its {layers} layers needs one attention that hands keys and values to a cache; "
            f"{len(found)} were found. PromptTuning and PTuning need none"
        )
    all_layers = [Attention(by_layer[i], *views[by_layer[i]].noted[0]) for i in range(layers)]
    shapes = {tuple(x.shape) for layer in all_layers for x in (layer.keys, layer.values)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise ValueError(f"{who}: keys and values must all have one shape (B, G, T, D); got {sorted(shapes)}")
    return all_layers


def kv_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Returns layers, key heads G and their width D of a model, as :func:`attentions` finds them."""
    found = attentions(model, probe(model))
    return len(found), found[0].keys.shape[1], found[0].keys.shape[3]


def check_kind(model: Any) -> None:
    """Checks that a model's attention takes a mask with columns for a prefix."""
    kind = model.config._attn_implementation
    if kind not in _KINDS:
        raise ValueError(
            f"attn_implementation={kind!r} cannot be told of a prefix; "
            f"choose from {', '.join(_KINDS)} with model.set_attn_implementation"
        )


def cache_of_layer(module: nn.Module) -> str | None:
    """Returns the name by which a layer or an attention takes its cache, or None if it takes none."""
    takes = inspect.signature(module.forward).parameters
    return next((name for name in _NAMES if name in takes), None)


def _listen(
    views: dict[str, _Noting], path: str, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments
) -> tuple[tuple[()], Arguments]:
    name = cache_of_layer(module)
    given = named(tuple(inspect.signature(module.forward).parameters), args, kwargs)
    views[path] = _Noting(given.get(name))  # type: ignore[arg-type]
    return (), {**given, name: views[path]}  # type: ignore[dict-item]
