"""LoRA inside a Transformers model, beside PEFT's: a step of training, and a batch with an adapter a row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.bench.correct import Outcome, judge
from nonet.bench.ops import Bound
from nonet.bench.peers import Contender
from nonet.bench.timing import Timed
from nonet.bench.workloads import Sizes, Workload
from nonet.registry import method
from nonet.select import Choice, select

_SCALE = 2.0  # alpha over rank
Factors = dict[tuple[str, str], tuple[Tensor, Tensor]]  # (linear, adapter) -> a (R, in), b (out, R)


def chosen(workload: Workload) -> dict[str, Choice]:
    """Returns what serves each operation that a layer calls."""
    return {op.name: select(op, "cpu", workload.dtype) for op in method("lora").ops}


def contenders(workload: Workload, peers: bool) -> list[Contender]:
    """Returns ours, then PEFT's; each takes a model and its adapters' factors, and returns what to call."""
    return [Contender("nonet", _ours), *([Contender("peft", _theirs, "peft")] if peers else ())]


def weights(workload: Workload) -> int:
    """Returns the numbers in the model's weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in _model(workload).parameters())


def bind(workload: Workload, contender: Contender) -> Bound:
    """Returns a pass or a step of training, ready to be timed."""
    model = _model(workload)
    run = contender.call(model, _factors(model, workload.sizes))
    ids = _tokens(workload.sizes)
    if workload.what == "training forward":
        return Bound(Timed(lambda: _first_layer(model, ids.shape)), tuple(model.parameters()))
    if workload.what == "forward":
        return Bound(Timed(torch.no_grad()(lambda: run(ids).logits)), ())
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)

    def step() -> None:
        logits = run(ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Bound(Timed(step), tuple(model.parameters()))


def _first_layer(model: nn.Module, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Calls the linears of a layer on what else would be lost: their inputs count among what is kept."""
    outs = []
    for together in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        linears: list[Any] = [
            m
            for path, m in model.named_modules()
            if path.endswith(tuple(f"layers.0.{g}.{n}" for g in ("self_attn", "mlp") for n in together))
        ]
        dtype = linears[0].weight.dtype
        x = torch.ones(*shape, linears[0].in_features, dtype=dtype, requires_grad=True) * 1.0
        outs += [linear(x) for linear in linears]
    return tuple(outs)


def check(workload: Workload, them: Sequence[Contender]) -> dict[str, Any]:
    """Holds models to one in float64 whose linears form W + s BA; returns what ``ops.check`` does."""
    small = Workload(
        workload.kernel,
        workload.name,
        workload.what,
        {**workload.sizes, **workload.checked},
        dtype=workload.dtype,
    )
    base = _model(small)
    ids = _tokens(small.sizes)

    def outcome(contender: Contender, double: bool = False) -> Outcome:
        model = copy.deepcopy(base)
        factors = _factors(model, small.sizes)
        if double:
            model = model.double()
            factors = {key: (a.double(), b.double()) for key, (a, b) in factors.items()}
        run = contender.call(model, factors)
        out = run(ids).logits
        if small.what == "forward":
            return {"out": out.detach()}
        out.backward(torch.ones_like(out) / out.numel() ** 0.5)
        return {"out": out.detach(), **_gradients(model)}

    dense = Contender("dense", _dense)
    gold, plain = outcome(dense, double=True), outcome(dense)
    return {"on": small.sizes, **judge(them, outcome, plain, gold)}


def _model(workload: Workload) -> Any:
    """A model of SmolLM2's form with random weights: time does not depend on their values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = workload.sizes
    config = LlamaConfig(
        vocab_size=sizes["V"],
        hidden_size=sizes["E"],
        intermediate_size=sizes["E"] * 8 // 3,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=9 if sizes["E"] % 9 == 0 else 4,
        num_key_value_heads=3 if sizes["E"] % 9 == 0 else 2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        dtype=getattr(torch, workload.dtype),
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(getattr(torch, workload.dtype))


def _tokens(sizes: Sizes) -> Tensor:
    return torch.randint(sizes["V"], (sizes["B"], sizes["T"]), generator=torch.Generator().manual_seed(0))


def _names(sizes: Sizes) -> list[str]:
    """One adapter a row, or one for all."""
    return [f"adapter{i}" for i in range(sizes.get("adapters", 1))]


def _factors(model: nn.Module, sizes: Sizes) -> Factors:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    return {
        (path, name): (draw(sizes["R"], linear.in_features), draw(linear.out_features, sizes["R"]))
        for path, linear in _linears(model)
        for name in _names(sizes)
    }


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            yield path, module


def _ours(model: nn.Module, factors: Factors) -> Callable[[Tensor], Any]:
    from nonet.lora import LoraConfig, add_lora, select_lora

    names = list(dict.fromkeys(name for _, name in factors))
    [rank] = {a.shape[0] for a, _ in factors.values()}
    for name in names:
        add_lora(model, LoraConfig(rank=rank, alpha=_SCALE * rank), name)
    with torch.no_grad():
        for (path, name), (a, b) in factors.items():
            adapter: Any = model.get_submodule(path).lora[name]  # type: ignore[index]
            adapter.a.copy_(a)
            adapter.b.copy_(b)
    if len(names) > 1:
        select_lora(model, names)
    return model


def _theirs(model: nn.Module, factors: Factors) -> Callable[[Tensor], Any]:
    import peft

    names = list(dict.fromkeys(name for _, name in factors))
    [rank] = {a.shape[0] for a, _ in factors.values()}
    config = peft.LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules="all-linear")
    wrapped: Any = peft.get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    with torch.no_grad():
        for (path, name), (a, b) in factors.items():
            layer: Any = model.get_submodule(path)
            layer.lora_A[name].weight.copy_(a)
            layer.lora_B[name].weight.copy_(b)
    if len(names) == 1:
        return wrapped
    wrapped.eval()  # the only mode in which PEFT mixes adapters
    return lambda ids: wrapped(ids, adapter_names=names)


class _Dense(nn.Module):
    """A linear whose weight is formed, for each row its own."""

    def __init__(self, weight: Tensor, factors: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.a = nn.ParameterList(nn.Parameter(a.to(weight.dtype)) for a, _ in factors)
        self.b = nn.ParameterList(nn.Parameter(b.to(weight.dtype)) for _, b in factors)

    def forward(self, x: Tensor) -> Tensor:
        each = [self.weight + _SCALE * b @ a for a, b in zip(self.a, self.b, strict=True)]
        rows = x.split(1) if len(each) > 1 else [x]
        return torch.cat([F.linear(row, weight) for row, weight in zip(rows, each, strict=True)])


def _dense(model: nn.Module, factors: Factors) -> Callable[[Tensor], Any]:
    model.requires_grad_(False)
    for path, linear in list(_linears(model)):
        mine = [pair for (place, _), pair in factors.items() if place == path]
        model.set_submodule(path, _Dense(linear.weight.detach(), mine))
    return model


def _gradients(model: nn.Module) -> Outcome:
    """Returns the factors' gradients, sorted so that models that name them otherwise agree."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            layer = name.split("layers.")[1].split(".lora")[0].split(".")
            wide = parameter.shape[0] < parameter.shape[1]
            found[f"d{'.'.join(layer[:3])}.{'a' if wide else 'b'}"] = parameter.grad.double()
    return found
