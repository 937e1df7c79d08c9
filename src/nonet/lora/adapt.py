"""Adapters of a model: adding, selecting and removing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from torch import nn

from nonet.lora.config import LoraConfig
from nonet.lora.factors import make_factors
from nonet.lora.layer import Adapters, carriers, put_on, take_off
from nonet.lora.merge import unmerge_lora
from nonet.lora.resize import follow_resizing, forget_resizing
from nonet.lora.state import LoraState, Which, adapter_modules, is_tied, state_of, use
from nonet.lora.targets import Sizes, find_copies, find_full, find_targets

RESERVED = "prompt"  # by which a trained prompt is saved
Model = TypeVar("Model", bound=nn.Module)


def add_lora(model: Model, config: LoraConfig | None = None, name: str = "default") -> Model:
    r"""Gives a model an adapter, selects it and freezes all else; returns the model.

    .. math:: h = W x + s\, B A x, \qquad s = \alpha / R

    Modules keep their paths, parameters and ties; each one reached gets a submodule ``lora`` that holds its
    factors by adapter name. First values depend on ``config.seed`` and a module's path alone; torch's global
    generator is neither read nor moved. What was added is recorded as ``model.nonet_lora``.

    Args:
        model: any module, a Transformers model for instance. Where hooks are to replace ``forward``, as for
            offloading, add adapters first.
        config: the options, :class:`LoraConfig` with its defaults when None.
        name: the adapter's name.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: the name is taken or unfit, an adapter is merged, a target fits no module or one that can
            carry no adapter.

    Complexity: ``R (in + out)`` trained numbers a module in place of ``in out``. Source: Hu et al. 2021
    (2106.09685), section 4; first values as in the authors' code.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    config = LoraConfig() if config is None else config
    check_name(model, name)
    full = find_full(model, config)
    return attach(model, config, name, find_targets(model, config, full), full)


def attach(
    model: Model, config: LoraConfig, name: str, targets: Mapping[str, Sizes], full: tuple[str, ...]
) -> Model:
    """Gives a model an adapter on modules that are known, as :func:`add_lora` does."""
    state = vars(model).get("nonet_lora")
    if state is None:
        tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False)) and is_tied(model)
        state = LoraState({path: p.requires_grad for path, p in model.named_parameters()}, tied)
        model.nonet_lora = state  # type: ignore[assignment]
        model.requires_grad_(False)
    else:
        use(model, None)  # now the parameters that are found are the model's own
    copies = find_copies(model, config, targets, full)
    state.trained[name] = {path: nn.Parameter(p.detach().clone()) for path, p in copies.items()}
    state.configs[name], state.targets[name], state.full[name] = config, tuple(targets), full
    for path, sizes in targets.items():
        module = put_on(model.get_submodule(path))
        looks_up, shape, weight = module.lora_embedding, module.lora_shape(), module.lora_matrix()
        factors = make_factors(path, shape, weight, sizes, config, looks_up)
        module.lora[name] = factors.train(module.training)
    follow_resizing(model)
    use(model, name)
    return model


class Selection(Generic[Model]):
    """What :func:`select_lora` returns; as a context manager it gives back the selection there was before."""

    def __init__(self, model: Model, before: Which) -> None:
        self.model, self.before = model, before

    def __enter__(self) -> Model:
        return self.model

    def __exit__(self, *_: object) -> None:
        select_lora(self.model, self.before)


def select_lora(model: Model, which: str | Sequence[str | None] | None) -> Selection[Model]:
    """Chooses which adapter takes part in the forward pass, for all rows of a batch or for each.

    What is selected is what can be trained. As in ``with select_lora(model, None):`` the choice can be
    limited to a block; with gradient checkpointing the backward pass has to lie in the block too.

    Args:
        model: a model with adapters, none of them merged.
        which: a name; None for the bare model; or a name or None for each row of the batch, all of which
            are then computed together. Rows that are multiplied on the way, as beam search does, count.

    Raises:
        ValueError: a name is not known, an adapter is merged, a module that carries one was replaced, or rows
            differ in adapters of which one is DoRA or trains biases or modules in full.
    """
    state = state_of(model)
    if state.merged is not None:
        raise ValueError(f"adapter {state.merged!r} is merged; call unmerge_lora first")
    chosen: Which = which if which is None or isinstance(which, str) else tuple(which)
    names = chosen if isinstance(chosen, tuple) else (chosen,)
    if not names:
        raise ValueError("which must name an adapter or None for every row; got no row")
    for name in names:
        if name is None:
            continue
        state.check_known(name)
        adapter_modules(model, name)
        if isinstance(chosen, tuple) and "dora" in state.configs[name].variants:
            raise ValueError(f"adapter {name!r} is DoRA, which cannot be chosen row by row; select it alone")
        if isinstance(chosen, tuple) and state.trained[name]:
            raise ValueError(
                f"adapter {name!r} trains biases or modules in full, so that it cannot be chosen row by row; "
                "select it alone"
            )
    before = state.selected
    use(model, chosen)
    return Selection(model, before)


def remove_lora(model: Model, name: str | None = None) -> Model:
    """Takes an adapter out of a model, or all of them; returns the model.

    A merged adapter is unmerged first. When the last is gone the model is what it was: its classes, its very
    parameters with their values and ties, and which of them are trained.

    Args:
        model: a model with adapters.
        name: the adapter; None for all.

    Raises:
        ValueError: there is no such adapter.
    """
    state = state_of(model)
    if name is not None:
        state.check_known(name)
    hooked = [path for path, module in carriers(model) if "forward" in vars(module)]
    if hooked:
        raise ValueError(f"first remove the hooks of {hooked[0]}, which hold the adapters' forward pass")
    if state.merged is not None:
        unmerge_lora(model)
    gone = list(state.configs) if name is None else [name]
    kept = state.selected
    if not {*(kept if isinstance(kept, tuple) else (kept,))}.isdisjoint(gone):
        use(model, None)
    for one in gone:
        for _, module in list(carriers(model)):
            if one in module.lora:
                del module.lora[one]
                if not module.lora:
                    take_off(module)
        for record in (state.configs, state.targets, state.full, state.trained):
            del record[one]
    if state.configs:
        use(model, state.selected)
        return model
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(state.required_grad.get(path, parameter.requires_grad))
    forget_resizing(model)
    del model.nonet_lora
    return model


def check_name(model: nn.Module, name: str) -> None:
    """Raises ValueError when a model can get no adapter of that name."""
    state = vars(model).get("nonet_lora")
    if not isinstance(name, str) or not name or "." in name or hasattr(Adapters(), name):
        raise ValueError(f"name={name!r} cannot be an adapter's name: it is empty, has a dot, or torch's own")
    if name == RESERVED:
        raise ValueError(f"name={name!r} is what a model's trained prompt is called; give another one")
    if state is not None and name in state.configs:
        raise ValueError(f"adapter {name!r} is there already; the model has {', '.join(state.configs)}")
    if state is not None and state.merged is not None:
        raise ValueError(f"adapter {state.merged!r} is merged; call unmerge_lora first")
