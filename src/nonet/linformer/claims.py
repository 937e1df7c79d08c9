"""What the paper of Linformer claims, as experiments."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.claim import Claim, Curve, Figure, Finding, Plot, judge

if TYPE_CHECKING:
    from nonet.ledger import Lab

_MIB = 2**20
_HIDDEN = 257  # the token that stands where a byte is to be guessed


class _Guesser(nn.Module):
    """An encoder that guesses hidden bytes, as RoBERTa is trained."""

    def __init__(self, lab: Lab, seed: int, length: int, **fields: Any) -> None:
        super().__init__()
        sizes = {"vocab_size": _HIDDEN + 1, "max_position_embeddings": length, "is_causal": False}
        self.encoder = lab.classifier(seed, **sizes, **fields).model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        logits = F.linear(hidden, self.encoder.embed_tokens.weight)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)}


def _collate(seed: int) -> Callable[[list[Any]], dict[str, Tensor]]:
    """Returns what hides three bytes in twenty."""
    random = torch.Generator().manual_seed(seed)

    def hide(items: list[Any]) -> dict[str, Tensor]:
        ids = torch.stack([item["input_ids"] for item in items])
        hidden = torch.rand(ids.shape, generator=random) < 0.15
        return {"input_ids": ids.masked_fill(hidden, _HIDDEN), "labels": ids.masked_fill(~hidden, -100)}

    return hide


def _maps(model: _Guesser, ids: Tensor) -> list[Tensor]:
    """Returns the matrix of attention of each layer, ``(B, H, T, T)``."""
    maps: list[Tensor] = []

    def read(mixer: Any, given: Any) -> None:
        x, context = given[:2]
        q, k = (
            context.rotation(proj(x).unflatten(-1, (-1, mixer.dims.head_dim)).transpose(1, 2), context.places)
            for proj in (mixer.q_proj, mixer.k_proj)
        )
        maps.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))

    hooks = [layer.mixer.register_forward_pre_hook(read) for layer in model.encoder.layers]
    with torch.no_grad():
        model.encoder(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return maps


def _share(maps: Tensor) -> Tensor:
    """Returns the sum of the n largest singular values over the sum of all, for every n."""
    values = torch.linalg.svdvals(maps)
    return (values.cumsum(-1) / values.sum(-1, keepdim=True)).flatten(0, -2).mean(0)


def _rank(lab: Lab) -> Finding:
    length, steps, batch = lab.scaled(128, 256), lab.scaled(200, 1500), 16
    text = lab.text()
    layers = lab.scaled(2, 4)
    learnt: list[list[Tensor]] = []
    mixed: list[float] = []
    quarter = length // 4 - 1
    for seed in lab.seeds[:2]:
        lab.say(f"training, seed {seed}")
        model = _Guesser(lab, seed, length, num_hidden_layers=layers)
        windows = lab.windows(text, length, steps * batch, seed)
        lab.train(model, windows, batch=batch, learning_rate=3e-3, seed=seed, collate=_collate(seed))
        fresh = _collate(1)([*lab.windows(text, length, 8, seed=100)])["input_ids"]
        maps = _maps(model, fresh)
        learnt.append([_share(m) for m in maps])
        order = torch.rand(maps[-1].shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
        mixed.append(_share(maps[-1].gather(-1, order))[quarter].item())
    first, last = (tuple(shares[i][quarter].item() for shares in learnt) for i in (0, -1))
    everywhere = tuple(
        sum(s[quarter].item() for s in shares) / len(shares) for shares in learnt
    )
    low, deeper = min(everywhere), all(b >= a for a, b in zip(first, last, strict=True))
    verdict = judge(low, 0.9, 0.75)
    return Finding(
        "holds in part" if verdict == "holds" and not deeper else verdict,
        "x",
    )
