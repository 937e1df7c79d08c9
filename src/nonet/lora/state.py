"""What a model records of its adapters, and whose parameters stand in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nonet.lora.config import LoraConfig
from nonet.lora.layer import Adapted, carriers

Which = str | tuple[str | None, ...] | None


@dataclass
class LoraState:
    """What :func:`nonet.lora.add_lora` keeps as ``model.nonet_lora``.

    Attributes:
        configs: options of each adapter, its seed among them.
        selected: the adapter in use, None for the bare model, or one of them for each row of the batch.
        merged: the adapter that is merged into the weights, or None.
        targets: of each adapter the paths of the modules that have factors.
        full: of each adapter the paths of the modules that are trained in full.
        trained: of each adapter its own copies of biases and of modules trained in full, by path.
        originals: the model's own parameters in whose place a selected adapter's copies stand.
        unmerged: the model's own weights in whose place merged ones stand.
        required_grad: which parameters were trained before there were adapters.
        tied: input and output embedding are one parameter in the bare model.
    """

    required_grad: dict[str, bool]
    tied: bool
    configs: dict[str, LoraConfig] = field(default_factory=dict)
    selected: Which = None
    merged: str | None = None
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    full: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trained: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)
    originals: dict[str, nn.Parameter] = field(default_factory=dict)
    unmerged: dict[str, nn.Parameter] = field(default_factory=dict)

    def check_known(self, name: object) -> None:
        """Raises ValueError when no adapter has that name."""
        if name not in self.configs:
            raise ValueError(f"adapter {name!r} is not known; the model has {', '.join(self.configs)}")


def state_of(model: nn.Module) -> LoraState:
    """Returns a model's record of its adapters; raises ValueError when it has none."""
    state = vars(model).get("nonet_lora")
    if not isinstance(state, LoraState):
        raise ValueError(f"{type(model).__name__} has no adapter; call add_lora first")
    return state


def use(model: nn.Module, which: Which) -> None:
    """Lets one adapter, none, or one of each row's own take part in the forward pass, and be trained."""
    state = state_of(model)
    trained = state.trained[which] if isinstance(which, str) else {}
    for path in [path for path in state.originals if path not in trained]:
        place(model, path, state.originals.pop(path))
    for path, parameter in trained.items():
        before = place(model, path, parameter)
        state.originals.setdefault(path, before)
    names = set(which) if isinstance(which, tuple) else {which}
    for _, module in carriers(model):
        module.lora.select(which, module.weight.device)  # type: ignore[arg-type]
        for name, factors in module.lora.items():
            factors.requires_grad_(name in names)
    state.selected = which
    settle_ties(model)


def place(model: nn.Module, path: str, parameter: nn.Parameter) -> nn.Parameter:
    """Puts a parameter into a model, where it goes to the old one's device and dtype; returns the old one."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    before: nn.Parameter = getattr(module, name)
    parameter.data = parameter.data.to(before.device, before.dtype)
    setattr(module, name, parameter)
    return before


def is_tied(model: nn.Module) -> bool:
    """Says whether a model's input and output embedding are one parameter."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    weights = [getattr(end, "weight", None) for end in ends]
    return weights[0] is not None and weights[0] is weights[1]


def settle_ties(model: nn.Module) -> None:
    """Lets the configuration say whether embeddings are tied, so that a checkpoint holds both when not."""
    if state_of(model).tied:
        model.config.tie_word_embeddings = is_tied(model)  # type: ignore[union-attr]


def adapter_modules(model: nn.Module, name: str) -> dict[str, Adapted]:
    """Returns the modules that carry factors of an adapter, by path.

    Raises:
        ValueError: a module was replaced or resized since, so that the adapter cannot act there any more.
    """
    found = {path: module for path, module in carriers(model) if name in module.lora}
    if gone := [path for path in state_of(model).targets[name] if path not in found]:
        raise ValueError(
            f"adapter {name!r} was added to {gone[0]}, and another module stands there now; its factors went "
            "with the old one. Replace modules first, and add or load the adapter after that"
        )
    for path, module in found.items():
        factors: Any = module.lora[name]
        size, now = (len(factors.b), factors.a.shape[1]), module.lora_shape()
        if size != now:
            raise ValueError(
                f"adapter {name!r} has factors for a weight of {size} at {path}, which is {now} now; resize "
                "modules first, and add or load the adapter after that"
            )
    return found
