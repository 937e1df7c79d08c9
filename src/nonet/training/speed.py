"""How fast two models write together, against the large one alone, text by text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonet.data import EncodedCorpus, validation_windows
from nonet.ecosystem import given_cache
from nonet.tandem import speculative_generate
from nonet.tandem.rounds import Stats

Way = Callable[[Tensor], tuple[Tensor, Stats]]  # a prompt (1, T) -> the text (1, T + n), and what was done
PROMPT = 64  # tokens


@dataclass(frozen=True)
class Speed:
    """How fast one way to write was.

    Attributes:
        tokens_per_second: median over the texts.
        ratio: median over the texts of the time of the first way over this one's.
        low: first quartile of the ratios.
        high: third quartile.
        identical: of how many texts the tokens are those of the first way.
        texts: how many were written.
        acceptance: drafted tokens that the primary accepted; None where none was drafted.
        accepted_at: the same for each place in the block, of the times that its place was reached; None where
            it never was.
        tokens_per_round: tokens that one pass of the primary gives.
    """

    tokens_per_second: float
    ratio: float
    low: float
    high: float
    identical: int
    texts: int
    acceptance: float | None
    accepted_at: tuple[float | None, ...]
    tokens_per_round: float


def speeds(
    ways: Mapping[str, Way], prompts: Sequence[Tensor], told: Callable[[int], None] = lambda done: None
) -> dict[str, Speed]:
    """Times ways to continue texts, in turns within each text; the first way is what others are held to.

    Args:
        ways: by name, the primary alone first.
        prompts: ``(1, T)`` each.
        told: called with the number of texts that are done.
    """
    for way in ways.values():
        way(prompts[0])  # what is set up once is not timed
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[Tensor]] = {name: [] for name in ways}
    done: dict[str, list[Stats]] = {name: [] for name in ways}
    for number, prompt in enumerate(prompts, 1):
        for name, way in ways.items():
            began = time.perf_counter()
            ids, stats = way(prompt)
            seconds[name].append(time.perf_counter() - began)
            texts[name].append(ids)
            done[name].append(stats)
        told(number)
    first = next(iter(ways))
    return {
        name: _speed(
            seconds[name],
            [a / b for a, b in zip(seconds[first], seconds[name], strict=True)],
            [torch.equal(a, b) for a, b in zip(texts[first], texts[name], strict=True)],
            done[name],
        )
        for name in ways
    }


def _speed(seconds: list[float], ratios: list[float], same: list[bool], done: list[Stats]) -> Speed:
    several = ratios if len(ratios) > 1 else ratios * 2
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    longest = max(len(stats.drafted_at) for stats in done)
    at = [
        tuple(sum(counts[i] for counts in kind if i < len(counts)) for i in range(longest))
        for kind in ([s.drafted_at for s in done], [s.accepted_at for s in done])
    ]
    reached = (at[0][0], *at[1][:-1]) if longest else ()
    drafted = sum(at[0])
    return Speed(
        statistics.median(s.tokens / t for s, t in zip(done, seconds, strict=True)),
        middle,
        low,
        high,
        sum(same),
        len(same),
        sum(at[1]) / drafted if drafted else None,
        tuple(a / r if r else None for a, r in zip(at[1], reached, strict=True)),
        sum(s.tokens for s in done) / sum(s.primary_calls for s in done),
    )


def make_prompts(text: EncodedCorpus, count: int, device: torch.device, length: int = PROMPT) -> list[Tensor]:
    """Returns beginnings of texts ``(1, length)``, out of the part kept for the end."""
    tests = validation_windows(text.test, length, count, text.lead)
    return [tests[i]["input_ids"][None].to(device) for i in range(len(tests))]


def write_alone(primary: Any, ids: Tensor, *, new: int) -> tuple[Tensor, Stats]:
    """Returns a text continued by the primary alone, in the loop that writes with a draft too."""
    return speculative_generate(primary, None, ids, max_new_tokens=new, return_stats=True)


def write_assisted(primary: Any, draft: Any, ids: Tensor, *, new: int, block: int) -> tuple[Tensor, Stats]:
    """Returns a text continued by Transformers' own assisted generation, greedily.

    Its drafts end after ``block`` tokens, or sooner, where the draft is not sure enough of a token for
    Transformers' own threshold. What was drafted and accepted is read off the passes of the primary.
    """
    settings = draft.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = block, "constant"
    ends = primary.generation_config.eos_token_id
    pad = ends[0] if isinstance(ends, list) else ends
    passes: list[tuple[int, int]] = []  # tokens that the primary knew before, and that it read

    def note(module: Any, args: Any, kwargs: Any) -> None:
        passes.append((given_cache(kwargs).get_seq_length(), kwargs["input_ids"].shape[1]))

    hook = primary.register_forward_pre_hook(note, with_kwargs=True)
    try:
        out = primary.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=draft,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=pad,
        )
    finally:
        hook.remove()
    # Before every pass but the first the primary has read the text but for its last token.
    lengths = [ids.shape[1], *(known + 1 for known, _ in passes[1:]), out.shape[1]]
    stats = Stats(tokens=out.shape[1] - ids.shape[1], primary_calls=len(passes))
    for (known, read), length, longer in zip(passes, lengths, lengths[1:], strict=False):
        drafted = known + read - length
        stats.count(drafted, min(drafted, longer - length - 1))
    return out, stats
