"""A tandem of two models: training in blocks, and generation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import PreTrainedModel

from nonet.ecosystem import CACHE
from nonet.files import reading
from nonet.tandem.cache import RollbackLayer, rollback_cache
from nonet.tandem.config import TandemConfig
from nonet.tandem.drafter import TandemDrafter
from nonet.tandem.generate import (
    as_asked,
    check_vocabularies,
    generate_rows,
    plan_of,
    prompt_mask,
    through_generate,
    ways_of,
)
from nonet.tandem.loss import Head, head_loss
from nonet.tandem.projections import Projections
from nonet.tandem.reading import TandemCache, block_mask, fill, make_readable, tapped
from nonet.tandem.rounds import Plan, Stats
from nonet.tandem.router import Router
from nonet.tandem.runner import Runner
from nonet.tandem.saved import PROJECTIONS, drop_what_is_not_trained, load_tandem, save_tandem
from nonet.tandem.shortlist import Shortlist


class Tandem(nn.Module):
    r"""A primary that reads in blocks, and a secondary that writes from what the primary has read.

    For token i in the block that begins at k, with the primary's states x and the secondary's y:

    .. math::
        \hat y^{(j)}_m &= F^{(j)} x^{(\ell(j))}_m \\
        \tilde y^{(j+1)}_i &= \mathrm{Attention}^{(j+1)}(y^{(j)}_i \mid \hat y^{(j)}_{<k}, y^{(j)}_{k..i}) \\
        y^{(j+1)}_i &= \mathrm{FF}^{(j+1)}(\tilde y^{(j+1)}_i)

    Args:
        primary: any causal model; it is frozen and stays in evaluation mode.
        secondary: a causal model with the same vocabulary, whose layers all have full attention and hand keys
            and values to the ``update`` of their cache, as Llama's and GPT-2's do. It is trained with the
            projections. Its layers get a class that can also read states (see :mod:`nonet.tandem.reading`).
        options: :class:`TandemConfig`.

    Attributes:
        router: set it to a :class:`nonet.tandem.Router` to use ``block="adaptive"``.

    Raises:
        ValueError: the models do not fit each other or the options.

    Source: Tandem transformers (2402.08644), equations 1 to 3.
    """

    accepts_loss_kwargs = False  # Trainer divides by accumulated steps itself

    def __init__(
        self, primary: PreTrainedModel, secondary: PreTrainedModel, options: TandemConfig | None = None
    ) -> None:
        super().__init__()
        check_vocabularies(primary, secondary, "secondary")
        self.options = TandemConfig() if options is None else options
        self.primary, self.secondary = primary.requires_grad_(False).eval(), secondary
        self.router: Router | None = None
        if not all(isinstance(layer, RollbackLayer) for layer in rollback_cache(secondary, 1).layers):
            raise ValueError(
                f"secondary {type(secondary).__name__} has layers without full attention (a recurrence or a "
                "sliding window); Tandem reads through keys and values of all places"
            )
        self.projections = Projections(primary, secondary, self.options)
        if self.options.reading == "states":
            make_readable(secondary)
            self._check_reading()
        drop_what_is_not_trained(self)

    def train(self, mode: bool = True) -> Tandem:
        """Switches the secondary's mode; the primary stays in evaluation."""
        super().train(mode)
        self.primary.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> CausalLMOutput:
        """Returns the secondary's loss when labels are given, else its logits ``(B, T, V)``.

        One pass of the primary and one of the secondary serve all blocks at once.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, zero on padding at either end of a row. Blocks begin at the first real
                token.
            labels: ``(B, T)``, shifted inside; -100 is not scored.

        Raises:
            ValueError: the secondary uses gradient checkpointing, which cannot keep the cache that it reads,
                or an attention that takes no mask.
        """
        states, known = self.hidden_states(input_ids, attention_mask, self.options.block)
        if labels is None:
            return CausalLMOutput(logits=self.secondary.get_output_embeddings()(states))
        scored = labels[:, 1:] >= 0
        teacher = None
        if self.options.loss == "distil":
            teacher = Head.of(self.primary, known[:, :-1][scored])
        head = Head.of(self.secondary, states[:, :-1][scored])
        return CausalLMOutput(loss=head_loss(head, labels[:, 1:][scored], teacher, self.options.balance))

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, block: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the states before the head ``(B, T, E)``, the secondary's in blocks, and the primary's."""
        self._refuse_prompts()
        if any(getattr(m, "gradient_checkpointing", False) for m in self.secondary.modules()):
            raise ValueError(
                "the secondary uses gradient checkpointing, which forgets the cache that it reads through; "
                "switch it off for this model"
            )
        real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if real is not None:
            places = (real.cumsum(1) - 1).clamp(min=0)
        cache = rollback_cache(self.primary, input_ids.shape[1])  # of keys and values, when they are read
        with torch.no_grad(), tapped(self.primary, self.projections.depths) as found:
            options = {"attention_mask": attention_mask, "use_cache": False}
            if self.options.reading == "keys_values":
                options |= {CACHE: cache, "use_cache": True}
            base = self.primary.base_model
            if real is not None and "position_ids" in inspect.signature(base.forward).parameters:
                options["position_ids"] = places
            known = base(input_ids=input_ids, **options).last_hidden_state
        own = TandemCache([DynamicLayer() for _ in self.projections.depths])
        self.read(own, self.projections.pick(found, cache, 0, input_ids.shape[1]), places)
        states = self.secondary.base_model(
            input_ids=input_ids,
            attention_mask=self._mask(block_mask(places, real, block)),
            position_ids=places,
            use_cache=True,
            **{CACHE: own},
        ).last_hidden_state
        return states, known

    def read(self, cache: TandemCache, picked: Sequence[Tensor], places: Tensor) -> None:
        """Appends to the secondary's cache what the primary knows of some tokens.

        Args:
            cache: of the secondary.
            picked: from the primary, one tensor a layer of the secondary.
            places: positions ``(B or 1, T)`` of the tokens.
        """
        projected = self.projections(picked)
        if self.options.reading == "states":
            fill(self.secondary, cache, projected, places)
        else:
            for layer, both in zip(cache.layers, projected, strict=True):
                layer.update(*self.projections.split(both))

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 64,
        block: int | Literal["adaptive"] = 4,
        max_block: int = 16,
        verify: bool = True,
        free_token: bool = True,
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
        r"""Returns a continuation that the secondary drafts and, by default, the primary verifies.

        Verified text is the primary's own, as :func:`nonet.tandem.speculative_generate` says. Otherwise it is
        the tandem's: the primary only reads each finished block.

        Args:
            input_ids: prompts ``(B, T)``.
            attention_mask: as in :func:`nonet.tandem.speculative_generate`, like all that is not named here.
            max_new_tokens: tokens to write at most.
            block: :math:`\gamma`, tokens to draft in a round; ``"adaptive"`` lets the router end each block.
            max_block: the longest adaptive block.
            verify: let the primary judge every drafted token.
            free_token: without verifying, begin each block with the token that the primary predicts behind
                what it read; it then reads one token more a block, and reads the last of the prompt.
            do_sample: draw tokens.
            temperature: divides scores.
            top_k: draw from the likeliest tokens only.
            top_p: draw from the likeliest with this probability together.
            eos_token_id: tokens that end a text.
            pad_token_id: fills rows.
            logits_processor: changes the scores of both models first.
            stopping_criteria: ends a text.
            streamer: takes tokens as they come.
            generator: of random numbers.
            shortlist: tokens to draft from, made of the secondary.
            return_stats: return what was drafted and accepted too.

        Returns:
            Tokens ``(B, T + n)``, and :class:`nonet.tandem.Stats` when asked for.

        Raises:
            ValueError: an argument is wrong, or there is no router for ``"adaptive"``.
        """
        most = max_block if block == "adaptive" else block
        if not verify and most == 0:
            raise ValueError(f"block must be a number of 1 or more with verify=False; got {block!r}")

        def write(ids: Tensor, mask: Tensor | None, plan: Plan) -> tuple[Tensor, Stats]:
            rule = replace(plan.rule, generator=generator)
            plan = replace(plan, rule=rule, streamer=streamer, verify=verify, free_token=free_token)
            return self._write(ids, mask, plan, shortlist, block == "adaptive")

        ways = ways_of(
            self.primary,
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
        ids, stats = through_generate(self.primary, input_ids, most, write, ways)
        return (ids, stats) if return_stats else ids

    def custom_generate(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        block: int | Literal["adaptive"] = 4,
        max_block: int = 16,
        shortlist: Shortlist | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Serves ``primary.generate(ids, custom_generate=tandem.custom_generate)`` of Transformers.

        ``generate`` takes ``block``, ``max_block`` and ``shortlist`` then, and hands them on.

        Raises:
            ValueError: ``model`` is not this tandem's primary, or ``generate`` is asked for something else
                than greedy search or sampling.
        """
        if model is not self.primary:
            raise ValueError("custom_generate: call generate of the tandem's own primary")
        most = max_block if block == "adaptive" else block
        plan = plan_of(model, input_ids, logits_processor, stopping_criteria, generation_config, most)
        ids, _ = self._write(input_ids, prompt_mask(model_kwargs), plan, shortlist, block == "adaptive")
        return as_asked(ids, generation_config)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes options, projections, router and secondary into a directory; the primary is not written.

        All files are written before one is put in place, ``config.json`` last, so that a directory with it is
        whole. Weights are safetensors; ``secondary/`` is a model of Transformers.

        Raises:
            OSError: a file cannot be written; what the directory held before is still there.
        """
        save_tandem(self, Path(directory))

    @classmethod
    def from_pretrained(cls, directory: str | Path, primary: PreTrainedModel) -> Tandem:
        """Returns the tandem of a directory, together with the primary that it was trained with.

        Raises:
            ValueError: the directory holds no tandem, or one of another primary.
        """
        options, secondary, weights, router = load_tandem(Path(directory), primary)
        with reading(Path(directory) / PROJECTIONS):
            tandem = cls(primary, secondary, options)
            tandem.projections.load_state_dict(weights)
        tandem.router = router
        return tandem.eval()

    def _write(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        plan: Plan,
        shortlist: Shortlist | None,
        adaptive: bool,
    ) -> tuple[Tensor, Stats]:
        self._refuse_prompts()
        stops, router = None, self.router
        if adaptive:
            if router is None:
                raise ValueError("block='adaptive' needs a router; set tandem.router, and train it first")
            embedding = self.secondary.get_input_embeddings().weight
            stops = functools.partial(router.stops, embedding=embedding)
        if plan.block == 0:
            return generate_rows(self.primary, None, None, input_ids, attention_mask, plan)
        with tapped(self.primary, self.projections.depths) as found:

            def make(primary: Runner, plan: Plan, room: int) -> TandemDrafter:
                return TandemDrafter(self, primary, found, plan.rule, room, shortlist, stops)

            return generate_rows(self.primary, self, make, input_ids, attention_mask, plan)

    def _refuse_prompts(self) -> None:
        for name, model in (("primary", self.primary), ("secondary", self.secondary)):
            if hasattr(model, "soft_prompt"):
                raise ValueError(
                    f"the {name} has a soft prompt, whose places a tandem does not count; "
                    "nonet.prompt.remove_prompt takes it out"
                )

    def _mask(self, seen: Tensor) -> Tensor:
        """Returns a mask in the form that the secondary's attention takes."""
        kind = self.secondary.config._attn_implementation
        if kind == "sdpa":
            return seen
        if kind == "eager":
            dtype = self.secondary.dtype
            return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        raise ValueError(f"the secondary's attention {kind!r} takes no mask of blocks; use sdpa or eager")

    def _check_reading(self) -> None:
        """Lets the secondary read one token, so that one that cannot is refused now."""
        embedding = self.secondary.get_input_embeddings().weight
        states = [embedding.new_zeros(1, 1, embedding.shape[1]) for _ in self.projections.depths]
        cache = TandemCache([DynamicLayer() for _ in states])
        place = torch.zeros(1, 1, dtype=torch.long, device=embedding.device)
        try:
            with torch.no_grad():
                fill(self.secondary, cache, states, place)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"secondary {type(self.secondary).__name__} cannot read another model's states, for which "
                f"its layers must take a cache and a mask (B, 1, T, S), as those of Llama do: {error}"
            ) from error
