"""The model: embedding, layers whose slots any method fills, and a head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel

from nonet.ecosystem import CACHE, CACHE_NAMES, given_cache, refuse_unknown
from nonet.model.cache import StateLayer, prepare_cache
from nonet.model.config import NonetConfig
from nonet.model.padding import check_places, padding_bounds, real_lengths
from nonet.registry import RESIDUALS, load, part
from nonet.slots import Context, Dims, LinearFactory, Memo
from nonet.weights import check_index

_LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")


class SwiGLU(nn.Module):
    """The channel mixer: ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, 2002.05202, equation 6)."""

    def __init__(self, width: int, inner: int, linear: LinearFactory) -> None:
        super().__init__()
        self.gate_proj = linear(width, inner, bias=False)
        self.up_proj = linear(width, inner, bias=False)
        self.down_proj = linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, T, E) for (B, T, E)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class NonetLayer(GradientCheckpointingLayer):
    """A mixer over tokens and a mixer over channels, each behind a norm."""

    def __init__(self, config: NonetConfig, index: int, linear: LinearFactory) -> None:
        super().__init__()
        self.index = index
        mixer = config.mixers()[index]
        self.mixer_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = load(mixer.target)(dims_of(config), config.options_of(mixer), index, linear)
        self.channel_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.channel_mixer = SwiGLU(config.hidden_size, config.intermediate_size, linear)  # type: ignore[arg-type]

    def mix(self, x: Tensor, context: Context, cache: Cache | None = None) -> Tensor:
        """Returns what the tokens tell each other, to be added to ``x``."""
        state = None if cache is None else cache.layers[self.index]
        mixed = self.mixer(self.mixer_norm(x), context, state)
        if isinstance(state, StateLayer):
            state.advance(x.shape[1])
        return mixed

    def feed(self, x: Tensor) -> Tensor:
        """Returns what each token makes of itself, to be added to ``x``."""
        return self.channel_mixer(self.channel_norm(x))

    def forward(self, x: Tensor, context: Context, cache: Cache | None = None) -> Tensor:
        """Returns (B, T, E) for (B, T, E)."""
        x = x + self.mix(x, context, cache)
        return x + self.feed(x)


class NonetPreTrainedModel(PreTrainedModel):
    """What all models of this family share with Transformers."""

    config_class = NonetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NonetLayer"]  # noqa: RUF012  (the base class declares these so)
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = True, **kwargs: Any) -> Any:
        """Loads a model as Transformers does, from safetensors only; a pickle is never opened.

        Raises:
            ValueError: ``use_safetensors=False`` was asked for.
            OSError: the directory holds no safetensors.
        """
        if use_safetensors is False:
            raise ValueError(
                "use_safetensors=False: weights are read from safetensors only, never from a pickle"
            )
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if isinstance(source, str | Path) and Path(source).is_dir():
            check_index(Path(source))
        return super().from_pretrained(*args, use_safetensors=True, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Of models outside its package, Transformers would pass over modules without parameters of their own.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        own: Any = getattr(module, "init_weights", None)
        if own is not None and not isinstance(module, PreTrainedModel):
            own(self.config.initializer_range)


def dims_of(config: NonetConfig) -> Dims:
    """Returns what parts may know of a model of this configuration."""
    return Dims(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,  # type: ignore[arg-type]
        head_dim=config.head_dim,  # type: ignore[arg-type]
        layers=config.num_hidden_layers,
        max_length=config.max_position_embeddings,
        causal=config.is_causal,
        eps=config.rms_norm_eps,
    )


class NonetModel(NonetPreTrainedModel):
    """Embedding and layers: token ids to hidden states."""

    def __init__(self, config: NonetConfig) -> None:
        super().__init__(config)
        dims = dims_of(config)
        linear: LinearFactory = load(part("linear", config.linear).target)
        position = part("position", config.position)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = load(position.target)(dims, config.options_of(position))
        shared = {
            mixer.name: load(mixer.target).build_shared(dims, config.options_of(mixer), linear)
            for mixer in dict.fromkeys(config.mixers())
        }
        self.shared = nn.ModuleDict({name: module for name, module in shared.items() if module is not None})
        self.layers = nn.ModuleList(NonetLayer(config, i, linear) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        residual = RESIDUALS[config.residual]
        self.residual: Callable[..., Tensor] | None = load(residual) if residual else None
        self._stateful = tuple(mixer.cache != "full_attention" for mixer in config.mixers())
        self._is_stateful = any(self._stateful)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Returns the hidden states (B, T, E) of T tokens, which continue a cache when one is given.

        As in Transformers' models, the last of ``hidden_states`` is the output of the final norm.
        """
        refuse_unknown(type(self).__name__, kwargs)
        cache = given_cache({"cache": cache, "past_key_values": past_key_values})
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("output_attentions=True: no mixer of this model forms attention weights")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        again = (self.residual is not None and torch.is_grad_enabled()) or (
            self.gradient_checkpointing and self.training
        )
        if again or not self.config.is_causal:
            if cache is not None and cache.get_seq_length() > 0:
                raise ValueError("a cache cannot continue where layers are run again for gradients")
            use_cache, cache = False, None
        more = cache is not None  # whoever hands a cache in may hand it in again
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if cache is not None:
            prepare_cache(cache, self.config, self._stateful)

        context = self._context(x, attention_mask, position_ids, cache, more)
        embedded = self.position.embed(context.places)
        x = x if embedded is None else x + embedded.to(x.dtype)
        hidden: tuple[Tensor, ...] = (x,)
        if self.residual is not None:
            if output_hidden_states:
                raise ValueError("output_hidden_states=True: reversible layers do not keep their outputs")
            x = self._reversible(x, context, cache)
        else:
            for layer in self.layers:
                x = layer(x, context, cache=cache)
                hidden = (*hidden, x) if output_hidden_states else hidden
        last = self.norm(x)
        output = BaseModelOutputWithPast(
            last_hidden_state=last,
            hidden_states=(*hidden[:-1], last) if output_hidden_states else None,
            **{CACHE: cache},
        )
        return output if return_dict is not False else output.to_tuple()

    def _context(
        self, x: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None, more: bool
    ) -> Context:
        past = 0 if cache is None else cache.get_seq_length()
        new = x.shape[1]
        starts, ends = padding_bounds(mask, past, new, more)
        if position_ids is not None:
            check_places(position_ids, new, starts, ends, past)
            places = position_ids.to(x.device)
        else:
            places = torch.arange(past, past + new, device=x.device)[None]
            places = places if starts is None else (places - starts[:, None]).clamp(min=0)
        length = real_lengths(starts, ends, past + new)
        slopes = self.position.slopes(length)
        return Context(
            places=places,
            past=past,
            starts=starts,
            ends=ends,
            rotation=self.position.rotation(length),
            slopes=None if slopes is None else slopes.to(x.device),
            shared=self.shared,
        )

    def _reversible(self, x: Tensor, context: Context, cache: Cache | None) -> Tensor:
        def mix(layer: Any, x: Tensor, memo: Memo) -> Tensor:
            return layer.mix(x, replace(context, memo=memo), cache)

        def feed(layer: Any, x: Tensor, memo: Memo) -> Tensor:
            return layer.feed(x)

        pairs = [(functools.partial(mix, layer), functools.partial(feed, layer)) for layer in self.layers]
        parameters = [*self.layers.parameters(), *self.shared.parameters()]
        assert self.residual is not None
        return self.residual(x, pairs, parameters)


class NonetForCausalLM(NonetPreTrainedModel, GenerationMixin):
    """A language model: the next token's logits at every place."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: NonetConfig) -> None:
        if not config.is_causal:
            raise ValueError("NonetForCausalLM needs is_causal=True in its configuration")
        super().__init__(config)
        self.model = NonetModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._is_stateful = self.model._is_stateful
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Returns logits ``(B, T, V)``, and the mean cross-entropy in nats when labels are given.

        Args:
            input_ids: tokens ``(B, T)``.
            attention_mask: ``(B, past + T)``, ones on real tokens; each row's ones are contiguous.
            position_ids: places ``(B, T)``, counted from the first real token by default.
            cache: of the earlier tokens.
            inputs_embeds: ``(B, T, E)`` instead of ``input_ids``.
            labels: ``(B, T)``, shifted inside; -100 is not scored.
            use_cache: return a cache that the next call continues from.
            output_hidden_states: return the input of every layer, and the states that the head reads.
            output_attentions: only False, since no mixer forms attention weights.
            logits_to_keep: only the last so many places, or the places that a tensor names; 0 for all.
            return_dict: False for a plain tuple.
            past_key_values: ``cache``, by the name that Transformers gave it before 5.24.
            **kwargs: options of the loss: ``num_items_in_batch``, ``ignore_index``, ``shift_labels``.

        Raises:
            TypeError: an argument is not understood.
            ValueError: the mask has holes or another length, sequences are packed, or the cache does not
                fit the model.
        """
        refuse_unknown(type(self).__name__, kwargs, _LOSS_OPTIONS)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            past_key_values=past_key_values,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: outputs.get(CACHE)},
        )
        return output if return_dict is not False else output.to_tuple()


class NonetForSequenceClassification(NonetPreTrainedModel):
    """An encoder and a linear head over the mean of its hidden states."""

    def __init__(self, config: NonetConfig) -> None:
        if config.is_causal:
            raise ValueError("NonetForSequenceClassification needs is_causal=False in its configuration")
        super().__init__(config)
        self.model = NonetModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Returns logits ``(B, labels)`` of the mean over real tokens, and the loss when labels are given."""
        refuse_unknown(type(self).__name__, kwargs, _LOSS_OPTIONS)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = outputs.last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            weight = attention_mask.to(hidden.dtype)[..., None]
            pooled = (hidden * weight).sum(1) / weight.sum(1)
        logits = self.score(pooled)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if return_dict is not False else output.to_tuple()


AutoModel.register(NonetConfig, NonetModel)
AutoModelForCausalLM.register(NonetConfig, NonetForCausalLM)
AutoModelForSequenceClassification.register(NonetConfig, NonetForSequenceClassification)
