"""Adding an adapter to the weights, and taking it out again to the bit."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from nonet.lora.layer import carriers
from nonet.lora.state import adapter_modules, place, settle_ties, state_of, use

Model = TypeVar("Model", bound=nn.Module)


def merge_lora(model: Model, name: str | None = None) -> Model:
    r"""Adds an adapter's change to the weights, so that the model costs what it did bare; returns the model.

    .. math:: W \leftarrow W + s B A

    The sum is computed in float32 or wider and rounded once. A new parameter takes the weight's place; the
    old one is kept aside for :func:`unmerge_lora`. A weight that was tied to another is no longer, and
    ``config.tie_word_embeddings`` says so. Until then ``state_dict`` and ``save_pretrained`` give a plain
    model without adapters.

    Args:
        model: a model with adapters, none of them merged.
        name: the adapter, which gets selected; by default the one that is.

    Raises:
        ValueError: there is no such adapter, rows have adapters of their own and none is named, one is
            merged already, or a module does more than to multiply by its weight, as ternary ones do.

    Complexity: ``2 R in out`` operations a module, once, and a second copy of its weight. Source: Hu et al.
    2021 (2106.09685), section 4.1; Liu et al. 2024 (2402.09353), equation 5.
    """
    state = state_of(model)
    if state.merged is not None:
        raise ValueError(f"adapter {state.merged!r} is merged already; call unmerge_lora first")
    name = state.selected if name is None and isinstance(state.selected, str) else name
    if name is None:
        raise ValueError(f"merge_lora needs one adapter; selected is {state.selected!r}, so give its name")
    state.check_known(name)
    modules = adapter_modules(model, name)
    for path, module in modules.items():
        if not module.lora_mergeable:
            raise ValueError(
                f"adapter {name!r} cannot be merged into {path}: {module.derived_from.__name__} does more "
                "than to multiply by its weight"
            )
    use(model, name)
    for path, module in modules.items():
        factors = module.lora[name]
        merged = module.lora_put(factors.merged(module.lora_matrix()))  # type: ignore[operator]
        state.unmerged[f"{path}.weight"] = place(model, f"{path}.weight", nn.Parameter(merged, False))
    state.merged = name
    for _, module in carriers(model):
        module.lora.merged = True
    settle_ties(model)
    return model


def unmerge_lora(model: Model) -> Model:
    """Puts back the very parameters that :func:`merge_lora` took out, ties included; returns the model.

    Raises:
        ValueError: no adapter is merged.
    """
    state = state_of(model)
    if state.merged is None:
        raise ValueError("no adapter is merged; call merge_lora first")
    for path, weight in state.unmerged.items():
        place(model, path, weight)
    state.unmerged.clear()
    state.merged = None
    for _, module in carriers(model):
        module.lora.merged = False
    settle_ties(model)
    return model
