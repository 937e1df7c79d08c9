"""Generating with two models: plain speculative decoding, and what it shares with Tandem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_utils import PreTrainedModel

from nonet.ecosystem import given_cache
from nonet.tandem.cache import is_filled, memories
from nonet.tandem.rounds import Drafter, Plan, Rule, Stats, decode
from nonet.tandem.runner import Runner
from nonet.tandem.shortlist import Shortlist

MakeDrafter = Callable[[Runner, Plan, int], Drafter]  # (primary, plan, room) for one row


def speculative_generate(
    primary: PreTrainedModel,
    draft: PreTrainedModel | None,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    block: int = 4,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: Any = None,
    generator: torch.Generator | None = None,
    shortlist: Shortlist | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Returns the primary's own continuation of a text, in fewer passes: a draft writes ahead.

    A round drafts :math:`\gamma` tokens and judges them in one pass of the primary, which adds one more:

    .. math:: a = \#\{\text{leading } i : u_i q_i(x_i) < p_i(x_i)\}, \quad
              x_{a+1} \sim \mathrm{norm}(\max(0, p_{a+1} - q_{a+1}))

    Greedy text is the primary's token for token, and a sample has its distribution, whatever the draft. (A
    pass over several tokens rounds otherwise than one over a single token, so that a tie of two tokens may
    be broken otherwise, above all in bfloat16.)

    Args:
        primary: the causal model whose text it is; a recurrent one too.
        draft: a causal model with the same vocabulary; None lets the primary write alone, in the same loop.
        input_ids: prompts ``(B, T)``. Rows are written one after the other, since each accepts differently.
        attention_mask: ``(B, T)``, zero on padding.
        max_new_tokens: tokens to write at most.
        block: :math:`\gamma`, tokens to draft in a round.
        do_sample: draw tokens, in place of taking the likeliest.
        temperature: divides the scores of both models before drawing.
        top_k: draw from the likeliest tokens only, for both models.
        top_p: draw from the likeliest that together have this probability, for both models.
        eos_token_id: tokens that end a text; None for those of the primary's generation settings, and
            ``()`` for none.
        pad_token_id: fills rows that ended early; by default a token that ends texts, or 0.
        logits_processor: changes the scores of both models before anything else.
        stopping_criteria: ends a text, asked at every token.
        streamer: takes prompt and tokens as they come, for one row.
        generator: of random numbers, on the models' device.
        shortlist: tokens to draft from.
        return_stats: return what was drafted and accepted too.

    Returns:
        Tokens ``(B, T + n)``, prompts included, and :class:`nonet.tandem.Stats` when asked for.

    Raises:
        ValueError: an argument is wrong, or the models differ in their vocabulary.

    Cost: a round costs one pass of the primary over ``block + 1`` tokens and ``block`` passes of the draft,
    and yields ``expected_tokens(acceptance, block)`` tokens.

    Source: Leviathan et al. 2023 (2211.17192), algorithm 1.
    """
    make = None if draft is None or block == 0 else plain_drafter(primary, draft, shortlist)

    def write(ids: Tensor, mask: Tensor | None, plan: Plan) -> tuple[Tensor, Stats]:
        plan = replace(plan, streamer=streamer, rule=replace(plan.rule, generator=generator))
        return generate_rows(primary, draft, make, ids, mask, plan)

    ways = ways_of(
        primary,
        attention_mask=torch.ones_like(input_ids) if attention_mask is None else attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
    )
    ids, stats = through_generate(primary, input_ids, block, write, ways)
    return (ids, stats) if return_stats else ids


def custom_generate(
    draft: PreTrainedModel | None, *, block: int = 4, shortlist: Shortlist | None = None
) -> Callable[..., Any]:
    """Returns a function for ``model.generate(ids, custom_generate=...)`` of Transformers.

    ``generate`` then writes with a draft, and its other arguments keep their meaning. Its streamer is not
    handed on to such functions, so that text comes in one piece.

    Args:
        draft: as in :func:`speculative_generate`.
        block: tokens to draft in a round.
        shortlist: tokens to draft from.

    Raises:
        ValueError: ``generate`` is asked for something else than greedy search or sampling.
    """

    def run(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        plan = plan_of(model, input_ids, logits_processor, stopping_criteria, generation_config, block)
        make = None if draft is None or block == 0 else plain_drafter(model, draft, shortlist)
        mask = prompt_mask(model_kwargs)
        return as_asked(generate_rows(model, draft, make, input_ids, mask, plan)[0], generation_config)

    return run


def plain_drafter(
    primary: PreTrainedModel, draft: PreTrainedModel, shortlist: Shortlist | None
) -> MakeDrafter:
    """Returns what makes a drafter of a model that reads the text by itself."""
    check_vocabularies(primary, draft, "draft")
    return lambda _, plan, room: Drafter(Runner(draft, room, shortlist=shortlist), plan.rule)


@torch.no_grad()
def generate_rows(
    primary: PreTrainedModel,
    draft: nn.Module | None,
    make_drafter: MakeDrafter | None,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    plan: Plan,
) -> tuple[Tensor, Stats]:
    """Returns prompts with what follows them, row after row, and what was done for all of them."""
    if plan.streamer is not None and len(input_ids) > 1:
        raise ValueError(f"streamer takes one row; got {len(input_ids)}")
    if plan.streamer is not None:
        plan.streamer.put(input_ids.cpu())
    stats, rows = Stats(), []
    with _evaluating(primary, draft):
        for row in range(len(input_ids)):
            padding, prompt = _split(input_ids, attention_mask, row)
            own = replace(plan, rule=plan.rule.of_row(row, len(input_ids), padding))
            room = prompt.shape[1] + plan.new + plan.block
            runner = Runner(primary, room)
            drafter = None if make_drafter is None else make_drafter(runner, own, room)
            rows.append(decode(runner, drafter, prompt, own, stats))
    if plan.streamer is not None:
        plan.streamer.end()
    longest = max(map(len, rows))
    new = [tokens + [plan.pad] * (longest - len(tokens)) for tokens in rows]
    return torch.cat([input_ids, torch.tensor(new, device=input_ids.device)], dim=1), stats


def _split(input_ids: Tensor, attention_mask: Tensor | None, row: int) -> tuple[Tensor, Tensor]:
    """Returns the padding of a row and the text behind it, ``(1, n)`` each."""
    tokens, padding = input_ids[row : row + 1], 0
    if attention_mask is not None:
        real = attention_mask[row].bool()
        padding = int((~real).sum())
        if bool(real[:padding].any()) or padding == len(real):
            raise ValueError(
                f"attention_mask must have ones at the end of row {row} and zeros before them alone; "
                f"got {real.int().tolist()}"
            )
    return tokens[:, :padding], tokens[:, padding:]


def ways_of(
    primary: PreTrainedModel,
    *,
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int | None,
    **others: Any,
) -> dict[str, Any]:
    """Returns how to write, as arguments of Transformers' ``generate``; raises ValueError if they clash."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be above zero; got {max_new_tokens!r}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above zero; got {temperature!r}; do_sample=False is its limit")
    given = {"temperature": temperature != 1.0, "top_k": top_k is not None, "top_p": top_p is not None}
    if not do_sample and (wrong := [name for name, there in given.items() if there]):
        raise ValueError(f"{', '.join(wrong)} has a meaning with do_sample=True only")
    settings = primary.generation_config
    if eos_token_id is None:
        eos_token_id = settings.eos_token_id
    ends = _ends(eos_token_id)
    pads = (pad_token_id, settings.pad_token_id, *ends, 0)
    ways = {
        **others,
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "eos_token_id": ends or None,
        "pad_token_id": next(pad for pad in pads if pad is not None),
    }
    if do_sample:
        ways |= {"temperature": float(temperature), "top_k": top_k or 0, "top_p": top_p or 1.0}
    return ways


def through_generate(
    primary: PreTrainedModel,
    input_ids: Tensor,
    block: int,
    write: Callable[[Tensor, Tensor | None, Plan], tuple[Tensor, Stats]],
    ways: dict[str, Any],
) -> tuple[Tensor, Stats]:
    """Returns what ``write`` makes of the plan that the primary's own ``generate`` makes of ``ways``.

    So the primary's generation settings, such as a penalty on repetition, count here as they do there.
    """
    check_ids(input_ids, ways["attention_mask"])
    done: list[tuple[Tensor, Stats]] = []

    def run(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        plan = plan_of(model, input_ids, logits_processor, stopping_criteria, generation_config, block)
        done.append(write(input_ids, prompt_mask(model_kwargs), plan))
        return done[0][0]

    primary.generate(input_ids, custom_generate=run, **ways)
    return done[0]


def check_ids(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Checks the prompts of a call and their mask."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0 or input_ids.dtype != torch.long:
        raise ValueError(
            "input_ids must be (B, T) of int64 with at least one token; "
            f"got {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}; "
            f"got {tuple(attention_mask.shape)}"
        )


def plan_of(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    settings: GenerationConfig,
    block: int,
) -> Plan:
    """Returns the plan of a call of Transformers' ``generate``; raises ValueError for what it cannot do."""
    if (settings.num_beams or 1) > 1:
        raise ValueError(f"num_beams={settings.num_beams}: with a draft there is greedy search and sampling")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if settings.return_dict_in_generate and (asked := [n for n in wanted if getattr(settings, n)]):
        raise ValueError(f"{', '.join(asked)}: a generation with a draft returns tokens only")
    if not isinstance(block, int) or block < 0:
        raise ValueError(f"block must be a number of 0 or more; got {block!r}")
    ends = _ends(settings.eos_token_id)
    others = [c for c in stopping_criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
    return Plan(
        new=settings.max_length - input_ids.shape[1],
        block=block,
        rule=Rule(bool(settings.do_sample), LogitsProcessorList(logits_processor)),
        eos=frozenset(ends),
        pad=settings.pad_token_id if settings.pad_token_id is not None else next(iter(ends), 0),
        stopping=StoppingCriteriaList(others),
    )


def _ends(eos_token_id: int | Sequence[int] | None) -> list[int]:
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else [*eos_token_id]


def prompt_mask(model_kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the mask that ``generate`` hands on; raises ValueError for a cache that is in use."""
    cache = given_cache(model_kwargs)
    if cache is not None and any(map(is_filled, memories(cache))):
        raise ValueError("the cache holds tokens already; a generation with a draft begins with the text")
    return model_kwargs.get("attention_mask")


def as_asked(ids: Tensor, settings: GenerationConfig) -> Any:
    """Returns tokens in the form that a call of ``generate`` asks for."""
    return GenerateDecoderOnlyOutput(sequences=ids) if settings.return_dict_in_generate else ids


def check_vocabularies(primary: PreTrainedModel, other: PreTrainedModel, name: str) -> None:
    """Raises ValueError unless both models have one vocabulary and are two."""
    if other is primary:
        raise ValueError(f"{name} is the primary itself; give another model, or a copy of it")
    ours, theirs = (model.config.get_text_config().vocab_size for model in (primary, other))
    if ours != theirs:
        raise ValueError(
            f"{name} has a vocabulary of {theirs} tokens and the primary one of {ours}; "
            "both must be of one tokenizer"
        )


@contextmanager
def _evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Switches dropout off, and on again where it was."""
    training = [m for model in models if model is not None for m in model.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
