"""The loop that every way to generate shares: a round drafts some tokens, and one pass judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nonet.tandem.accept import accept_greedy, accept_sampled
from nonet.tandem.runner import Runner

_ROWS_ALIKE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)  # they look at scores alone


@dataclass
class Stats:
    """What a generation did.

    Attributes:
        tokens: new tokens.
        rounds: passes of the primary that judged a draft.
        drafted_at: how often a first, second, ... token of a block was drafted.
        accepted_at: how often it was accepted.
        primary_calls: passes of the primary, over the prompt too.
        secondary_calls: passes of the draft that each wrote a token.
    """

    tokens: int = 0
    rounds: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    primary_calls: int = 0
    secondary_calls: int = 0

    @property
    def drafted(self) -> int:
        """Tokens that were drafted."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(self.accepted_at)

    def count(self, drafted: int, accepted: int) -> None:
        """Counts one round."""
        self.rounds += drafted > 0
        for name, new in (("drafted_at", drafted), ("accepted_at", accepted)):
            old = getattr(self, name)
            ones = [1] * new + [0] * (drafted - new)
            setattr(self, name, [a + b for a, b in zip_longest(old, ones, fillvalue=0)])


@dataclass(frozen=True)
class Rule:
    """How a token of one row is chosen from scores, by the primary and by the draft alike.

    Attributes:
        sample: draw from the distribution, or take the likeliest.
        processors: change scores first, those of both.
        generator: of random numbers.
        padding: what stood before the row's text ``(1, n)``; processors count it.
        row: index of the row.
        rows: number of rows that processors were made for.
    """

    sample: bool
    processors: LogitsProcessorList
    generator: torch.Generator | None = None
    padding: Tensor | None = None
    row: int = 0
    rows: int = 1

    def of_row(self, row: int, rows: int, padding: Tensor) -> Rule:
        """Returns the rule of one of several rows."""
        alike = all(type(processor) in _ROWS_ALIKE for processor in self.processors)
        row, rows = (0, 1) if alike else (row, rows)
        return replace(self, padding=padding if padding.shape[1] else None, row=row, rows=rows)

    def seen(self, text: Tensor, length: int) -> Tensor:
        """Returns the first ``length`` tokens as processors know them, behind their padding."""
        tokens = text[:, :length]
        return tokens if self.padding is None else torch.cat([self.padding, tokens], dim=1)

    def scores(self, logits: Tensor, text: Tensor, length: int) -> Tensor:
        """Returns processed scores ``(k, V)`` of the places from ``length`` on."""
        if self.sample or self.processors:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not self.processors:
            return logits
        done = []
        for i in range(len(logits)):
            seen = self.seen(text, length + i).expand(self.rows, -1)
            # A processor may treat each row in its own way, so that it must find as many as it was made for.
            done.append(self.processors(seen, logits[i : i + 1].expand(self.rows, -1))[self.row])
        return torch.stack(done)

    def pick(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns a token ``(1,)`` for scores ``(1, V)``, and the probabilities that it was drawn from."""
        if not self.sample:
            return scores.argmax(-1), None
        q = scores.softmax(-1)
        return torch.multinomial(q, 1, generator=self.generator)[:, 0], q

    def judge(self, draft: Tensor, scores: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns how many drafted tokens stand, and the token behind them."""
        if not self.sample:
            return accept_greedy(draft, scores)
        p = scores.softmax(-1)
        return accept_sampled(draft, p, p[:0] if q is None else q, self.generator)


class Drafter:
    """Writes a few tokens ahead of the primary, with a model that keeps its own memory.

    Args:
        runner: the model that drafts.
        rule: chooses tokens.
        stops: whether to stop behind a token that was drawn from these scores ``(1, V)``; None never stops.
    """

    def __init__(self, runner: Runner, rule: Rule, stops: Callable[[Tensor], bool] | None = None) -> None:
        self.runner, self._rule, self._stops = runner, rule, stops

    def draft(self, text: Tensor, length: int, most: int) -> tuple[int, Tensor | None]:
        """Writes up to ``most`` tokens into ``text`` (1, S) from place ``length`` on.

        Returns:
            How many, and the probabilities ``(n, V)`` that they were drawn from.
        """
        found: list[Tensor] = []
        drafted = 0
        while drafted < most:
            raw = self.runner.run(text[:, self.runner.length : length + drafted], 1)
            if drafted == 0:
                self.runner.mark()
            token, q = self._rule.pick(self._rule.scores(raw, text, length + drafted))
            text[0, length + drafted] = token[0]
            drafted += 1
            if q is not None:
                found.append(q)
            if self._stops is not None and drafted < most and self._stops(raw):
                break
        return drafted, torch.cat(found) if found else None

    def verified(self, start: int, length: int) -> None:
        """Takes note that the first ``length`` tokens stand, which the primary has read from ``start`` on."""
        self.runner.rollback(length)


@dataclass(frozen=True)
class Plan:
    """What one call of a generating function asks for.

    Attributes:
        new: tokens to write at most.
        block: tokens to draft at most in a round.
        rule: chooses tokens.
        eos: tokens that end a text.
        pad: fills rows that ended early.
        stopping: further reasons to end a text.
        streamer: takes tokens as they come.
        verify: let the primary judge every drafted token.
        free_token: without judging, let the primary write the first token of each block.
    """

    new: int
    block: int
    rule: Rule
    eos: frozenset[int]
    pad: int
    stopping: StoppingCriteriaList
    streamer: Any = None
    verify: bool = True
    free_token: bool = True


def decode(primary: Runner, drafter: Drafter | None, prompt: Tensor, plan: Plan, stats: Stats) -> list[int]:
    """Returns the new tokens behind a prompt ``(1, n)``."""
    length = prompt.shape[1]
    text = torch.cat([prompt, prompt.new_zeros(1, plan.new)], dim=1)
    if plan.verify or drafter is None:
        rounds = _judged(primary, drafter, text, length, plan, stats)
    else:
        rounds = _trusted(primary, drafter, text, length, plan)
    new: list[int] = []
    for tokens in rounds:
        known = len(new)
        done = False
        for token in tokens:
            new.append(token)
            done = token in plan.eos
            if plan.stopping and not done:
                done = bool(plan.stopping(plan.rule.seen(text, length + len(new)), None).all())
            if done:
                break
        if plan.streamer is not None:
            plan.streamer.put(torch.tensor(new[known:]))
        if done:
            break
    stats.tokens += len(new)
    stats.primary_calls += primary.calls
    stats.secondary_calls += 0 if drafter is None else drafter.runner.calls
    return new


def _judged(
    primary: Runner, drafter: Drafter | None, text: Tensor, length: int, plan: Plan, stats: Stats
) -> Iterator[list[int]]:
    """Yields the tokens of each round: drafted ones that stand, and the primary's own behind them."""
    end = text.shape[1]
    drafted, q = 0, None  # the pass over the prompt judges nothing
    while True:
        if drafted and primary.length < length - 1:  # a recurrence that was taken back reads again
            primary.run(text[:, primary.length : length - 1], 1)
        start = primary.length
        if drafted:
            primary.mark()
        logits = primary.run(text[:, start : length + drafted], drafted + 1)
        draft = text[0, length : length + drafted]
        count, token = plan.rule.judge(draft, plan.rule.scores(logits, text, length), q)
        *tokens, accepted, last = torch.cat([draft, count, token]).tolist()  # the round's one wait
        primary.rollback(length + accepted)
        stats.count(drafted, accepted)
        text[0, length + accepted] = last
        length += accepted + 1
        yield [*tokens[:accepted], last]
        if length == end:
            return
        if drafter is not None:
            drafter.verified(start, length - 1)
            drafted, q = drafter.draft(text, length, min(plan.block, end - length - 1))


def _trusted(primary: Runner, drafter: Drafter, text: Tensor, length: int, plan: Plan) -> Iterator[list[int]]:
    """Yields the tokens of each block: with ``free_token`` the primary's own first, then the drafted ones."""
    end, free = text.shape[1], int(plan.free_token)
    while length < end:
        start, stop = primary.length, length - 1 + free
        if stop > start:
            logits = primary.run(text[:, start:stop], 1)
            drafter.verified(start, stop)
            if free:
                token, _ = plan.rule.pick(plan.rule.scores(logits, text, length))
                text[0, length] = token[0]
        drafted, _ = drafter.draft(text, length + free, min(plan.block, end - length - free))
        yield text[0, length : length + free + drafted].tolist()
        length += free + drafted
