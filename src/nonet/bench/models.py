"""Whole Transformers models, before and after nonet's operations are put into them."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nonet.bench.correct import Outcome, judge
from nonet.bench.ops import Bound
from nonet.bench.peers import Contender
from nonet.bench.timing import Call, Timed
from nonet.bench.workloads import Sizes, Workload
from nonet.ecosystem import cache_argument, returned_cache
from nonet.registry import method
from nonet.select import Choice, absent, select
from nonet.testing.rounding import Wide

_PROMPT = 16  # tokens read before a token is timed


def chosen(workload: Workload) -> dict[str, Choice]:
    """Returns what serves each operation that a layer calls."""
    ops = method("mamba").ops
    return {op.name: select(op, "cpu", workload.dtype, missing=absent(op, "cpu")) for op in ops}


def contenders(workload: Workload, peers: bool) -> list[Contender]:
    """Returns ours first: a model after :func:`nonet.accelerate`; then the model as it was."""
    before = [Contender("transformers", copy.deepcopy, "transformers")]
    if workload.what == "training step":
        before.append(Contender("mambapy", _with_mambapy, "mambapy"))
    return [Contender("nonet", _accelerated), *(before if peers else ())]


def weights(workload: Workload) -> int:
    """Returns the numbers in the model's weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in _model(workload.sizes).parameters())


def bind(workload: Workload, contender: Contender) -> Bound:
    """Returns a step of training, a prompt or a token, ready to be timed."""
    model = contender.call(_model(workload.sizes))
    run = _READY[workload.what](model, _tokens(workload.sizes))
    return Bound(Timed(run), tuple(model.parameters()))


def check(workload: Workload, them: Sequence[Contender]) -> dict[str, Any]:
    """Holds models to Transformers' own in float64; returns what :func:`nonet.bench.ops.check` does."""
    sizes = {**workload.sizes, **workload.checked}
    outcome = _OUTCOMES[workload.what]
    base, ids = _model(sizes), _tokens(sizes)
    with Wide():
        gold = outcome(copy.deepcopy(base).double(), ids)
    plain = outcome(copy.deepcopy(base), ids)
    return {"on": sizes, **judge(them, lambda c: outcome(c.call(base), ids), plain, gold)}


def _model(sizes: Sizes) -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=sizes["V"],
        hidden_size=sizes["E"],
        state_size=sizes["N"],
        num_hidden_layers=sizes["layers"],
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return MambaForCausalLM(config)


def _tokens(sizes: Sizes) -> Tensor:
    """Returns T tokens behind those that decoding starts from."""
    shape = sizes["B"], _PROMPT + sizes["T"]
    return torch.randint(sizes["V"], shape, generator=torch.Generator().manual_seed(0))


def _accelerated(model: nn.Module) -> nn.Module:
    from nonet.hf import accelerate  # which imports Transformers

    with contextlib.redirect_stderr(io.StringIO()):  # its report stands in the row
        return accelerate(copy.deepcopy(model))


def _with_mambapy(model: nn.Module) -> nn.Module:
    import mambapy.pscan  # noqa: F401  (without it Transformers would quietly take its loop)

    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "use_mambapy"):
            module.use_mambapy = True  # type: ignore[assignment]
    return model


def _train_ready(model: Any, ids: Tensor) -> Call:
    model.train()
    ids = ids[:, _PROMPT:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _prefill_ready(model: Any, ids: Tensor) -> Call:
    model.eval()
    return torch.no_grad()(partial(model, input_ids=ids[:, _PROMPT:], use_cache=True, logits_to_keep=1))


def _decode_ready(model: Any, ids: Tensor) -> Call:
    model.eval()
    with torch.no_grad():
        cache = returned_cache(model(input_ids=ids[:, :_PROMPT], use_cache=True))
    # The states go on changing from call to call, and cost the same.
    return torch.no_grad()(
        partial(
            model,
            input_ids=ids[:, _PROMPT : _PROMPT + 1],
            use_cache=True,
            **cache_argument(model.forward, cache),
        )
    )


def _trained(model: Any, ids: Tensor) -> Outcome:
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return {"out": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def _prefilled(model: Any, ids: Tensor) -> Outcome:
    return {"out": _prefill_ready(model, ids)().logits}


@torch.no_grad()
def _decoded(model: Any, ids: Tensor) -> Outcome:
    """Token by token behind the prompt."""
    model.eval()
    cache = returned_cache(model(input_ids=ids[:, :_PROMPT], use_cache=True))
    logits = [
        model(input_ids=token, use_cache=True, **cache_argument(model.forward, cache)).logits
        for token in ids[:, _PROMPT:].split(1, dim=1)
    ]
    return {"out": torch.cat(logits, dim=1)}


_READY: dict[str, Callable[[Any, Tensor], Call]] = {
    "training step": _train_ready,
    "prefill": _prefill_ready,
    "decode": _decode_ready,
}
_OUTCOMES: dict[str, Callable[[Any, Tensor], Outcome]] = {
    "training step": _trained,
    "prefill": _prefilled,
    "decode": _decoded,
}
