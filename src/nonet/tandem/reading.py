"""How the secondary reads the primary: states are picked from layers, and become keys and values.

The secondary's own layers make those keys and values, whatever their architecture: a layer is given the
projected states as its input, and is left as soon as it hands keys and values to the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from nonet.derived import Derived
from nonet.ecosystem import CACHE


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Returns a model's list of layers; raises ValueError when it has none of its configuration's depth."""
    depth = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {depth} layers, which Tandem reads or writes")


def evenly_spaced(layers: int, depth: int) -> tuple[int, ...]:
    """Returns for each of ``layers`` how many of ``depth`` layers lie below, the last of them all."""
    return tuple(round((j + 1) * depth / layers) for j in range(layers))


@contextmanager
def tapped(model: PreTrainedModel, depths: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Lets every pass of a model leave its states (B, T, E) at some depths in the dictionary it returns.

    Hooks on these layers alone; asking the model for all hidden states costs more, and gives the last of
    them behind the final norm.
    """
    found: dict[int, Tensor] = {}
    layers = decoder_layers(model)

    def before(depth: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        found[depth] = args[0] if args else kwargs["hidden_states"]

    def behind(module: nn.Module, args: Any, output: Any) -> None:
        found[len(layers)] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layers[-1].register_forward_hook(behind)
        if depth == len(layers)
        else layers[depth].register_forward_pre_hook(functools.partial(before, depth), with_kwargs=True)
        for depth in sorted(set(depths))
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class _Made(Exception):  # noqa: N818  (nothing has gone wrong)
    """Carries keys and values out of the layer that made them."""


class TandemCache(Cache):
    """A cache that readable layers can fill with keys and values of states that are not their own.

    While ``states`` holds one tensor (B, T, E) a layer, a pass of the model fills the cache and does
    nothing else.
    """

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self.states: Sequence[Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns all keys and values of a layer, with the new ones behind the others."""
        if self.states is not None:
            raise _Made(key_states, value_states)
        keys, values = self.layers[layer_idx].update(key_states, value_states)
        return keys, values


def make_readable(model: PreTrainedModel) -> None:
    """Gives a model's layers a class that fills a :class:`TandemCache`, and that else is their own.

    Nothing is added to a layer but its index, so that parameters, state dict and deep copies stay as they
    are; the class keeps its name, by which device maps and FSDP know layers.
    """
    for index, layer in enumerate(decoder_layers(model)):
        layer.tandem_index = index  # type: ignore[assignment]
        layer.__class__ = _readable(type(layer))  # type: ignore[arg-type]


class _Readable(Derived):
    """Marks the classes that :func:`_readable` makes."""


@functools.cache
def _readable(own: type[nn.Module]) -> type[nn.Module]:
    if issubclass(own, _Readable):
        return own

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = next((a for a in (*args, *kwargs.values()) if isinstance(a, TandemCache)), None)
        if cache is None or cache.states is None:
            return own.forward(self, hidden_states, *args, **kwargs)
        try:
            own.forward(self, cache.states[self.tandem_index], *args, **kwargs)
        except _Made as made:
            cache.layers[self.tandem_index].update(*made.args)
        return hidden_states

    made = {"forward": forward, "derived_by": _readable, "derived_from": own, "__module__": own.__module__}
    return type(own.__name__, (_Readable, own), made)


def fill(model: PreTrainedModel, cache: TandemCache, states: Sequence[Tensor], places: Tensor) -> None:
    """Appends to a cache the keys and values that a readable model's layers make of states.

    Args:
        model: its layers are readable.
        cache: of the model.
        states: one tensor (B, T, E) a layer.
        places: positions (B or 1, T) of these tokens.

    Raises:
        ValueError: a layer handed no keys and values to the cache.
    """
    before = [layer.get_seq_length() for layer in cache.layers]
    cache.states = states
    try:
        model.base_model(
            inputs_embeds=states[0],
            position_ids=places,
            attention_mask=torch.ones(
                1, 1, 1, 1, dtype=torch.bool, device=places.device
            ),  # spares making one
            use_cache=True,
            **{CACHE: cache},
        )
    finally:
        cache.states = None
    new = states[0].shape[1]
    if any(layer.get_seq_length() != old + new for layer, old in zip(cache.layers, before, strict=True)):
        raise ValueError(
            f"the layers of {type(model).__name__} do not hand keys and values to their cache, "
            "by which Tandem fills it; choose another secondary, or reading='keys_values'"
        )


def block_mask(places: Tensor, real: Tensor | None, block: int) -> Tensor:
    r"""Returns what each token may see, of the primary's states and of the secondary's own.

    With the block of token i beginning at :math:`k = \lfloor p_i / \gamma \rfloor \gamma`, it sees the
    primary's states of places before k, and its own model's from k up to itself.

    Args:
        places: :math:`p` ``(B or 1, T)``, counted from a row's first real token.
        real: ``(B, T)``, false on padding, which nobody sees; None when there is none.
        block: :math:`\gamma`.

    Returns:
        Booleans ``(B or 1, 1, T, 2 T)``: keys of the primary's states, then own keys.

    Source: Tandem transformers (2402.08644), equation 2, with the block's start of figure 4.
    """
    query, key = places[:, :, None], places[:, None, :]
    start = query // block * block
    theirs, own = key < start, (key >= start) & (key <= query)
    if real is not None:
        theirs, own = theirs & real[:, None, :], own & real[:, None, :]
        own = own | torch.eye(places.shape[1], dtype=torch.bool, device=places.device)  # padding sees itself
    return torch.cat([theirs, own], dim=-1)[:, None]
