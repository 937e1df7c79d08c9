"""A prompt of vectors in front of the embeddings: prompt tuning and P-tuning inside a Transformers model.

Two hooks on the model's body do it. The first puts the prompt in front when a sequence begins; the second
takes the prompt's outputs away, so that the head, the loss and the caller see the given tokens only. A cache
holds the prompt as well, so a pass that continues one counts P more in its mask and positions.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonet.ecosystem import CACHE_NAMES, given_cache
from nonet.prompt.config import PromptTuning, PTuning
from nonet.prompt.hooks import Arguments, SoftPrompt, named
from nonet.prompt.proof import result, same

# Tensors that :meth:`InputPrompt.before` makes longer by the prompt; it refuses any other.
_LENGTHENED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


class InputPrompt(SoftPrompt):
    """P vectors that stand in front of every sequence.

    Args:
        model: the Transformers model that it is for.
        config: how it was made.
        encoder: called, returns the vectors ``(P, E)``.

    Raises:
        ValueError: the model cannot take them.
    """

    def __init__(self, model: PreTrainedModel, config: PromptTuning | PTuning, encoder: nn.Module) -> None:
        super().__init__(model, config, encoder)
        if getattr(model.base_model, "pooler", None) is not None:
            raise ValueError(
                f"{self.who}: its pooler reads the first place, where the prompt stands; use PrefixTuning"
            )
        self.added: dict[int, int] = {}  # of each thread's pass: the vectors in front of its tokens

    def attach(self, model: PreTrainedModel) -> None:
        """Puts the prompt into the model."""
        super().attach(model)
        self.handles.append(model.get_submodule(self.path).register_forward_hook(self.after))
        own = getattr(model, "prepare_inputs_for_generation", None)
        if own is not None:
            prepare = functools.update_wrapper(functools.partial(self.prepare, own), own)
            model.prepare_inputs_for_generation = prepare

    def detach(self, model: PreTrainedModel) -> None:
        """Takes the prompt out of the model."""
        super().detach(model)
        vars(model).pop("prepare_inputs_for_generation", None)

    def prove(self, model: PreTrainedModel, ids: Tensor) -> None:
        """Attaches the prompt, and holds the outputs to those of a model that is given its vectors.

        Raises:
            ValueError: the model reads more of its tokens than their embeddings, or does not call its body.
        """
        x = model.get_submodule(self.path).get_input_embeddings()(ids)
        if not same(result(model(inputs_embeds=x)), result(model(input_ids=ids))):
            raise ValueError(f"{self.who}: the model reads more of its tokens than their embeddings")
        prompt = self.encoder().to(x.device, x.dtype)[None]
        expected = result(model(inputs_embeds=torch.cat([prompt, x], 1)))
        if expected.dim() == 3:
            expected = expected[:, self.length :]
        self.attach(model)
        if not same(result(model(input_ids=ids)), expected):
            raise ValueError(f"{self.who}: the model does not read what stands before its tokens")

    def before(self, body: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of the model's body with the prompt in them."""
        given = named(self.names, args, kwargs)
        ids, x = given.get("input_ids"), given.get("inputs_embeds")
        if (ids is None) == (x is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        rows, new = (given["input_ids"] if x is None else x).shape[:2]
        _refuse_other_tensors(given)
        mask, places, cache = given.get("attention_mask"), given.get("position_ids"), given_cache(given)
        past = 0 if cache is None else int(cache.get_seq_length())
        begins, P = past == 0, self.length
        self.added[threading.get_ident()] = P if begins else 0
        _check(mask, places, 0 if begins else past - P, new, P)

        order = None
        if mask is not None:
            if begins and cache is not None and not bool(mask.bool().any(1).all()):
                raise ValueError(
                    "attention_mask has a row without a real token, so the prompt has none to stand before; "
                    "a larger prefill_chunk_size gives every row one in the first pass"
                )
            order = _order(mask, P)
            given["attention_mask"] = mask = _join(mask.new_ones(rows, P), mask, order)
        if places is not None:
            places = places + P
            if begins:
                front = torch.arange(self.first, self.first + P, device=places.device)
                places = _join(front.expand(len(places), -1), places, order)
        elif mask is not None:
            places = self.first + (mask.long().cumsum(1) - 1).clamp(min=0)[:, -(new + P * begins) :]
        if places is not None and "position_ids" in self.names:
            given["position_ids"] = places
        if begins:
            x = body.get_input_embeddings()(ids) if x is None else x
            prompt = self.encoder().to(x.device, x.dtype).expand(rows, -1, -1)
            given |= {"input_ids": None, "inputs_embeds": _join(prompt, x, order)}
            if (types := given.get("token_type_ids")) is not None:
                given["token_type_ids"] = _join(types.new_zeros(rows, P), types, order)
        return (), given

    def after(self, body: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Returns the outputs of the model's body for the given tokens alone."""
        added = self.added.pop(threading.get_ident())
        if not added:
            return output
        if isinstance(output, tuple):
            return self._of_tokens(output, added)
        for name in list(output):
            output[name] = self._of_tokens(output[name], added)
        return output

    def prepare(self, own: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Arguments:
        """Returns what ``prepare_inputs_for_generation`` does, with all the tokens that a cache lacks.

        To continue a cache, ``generate`` cuts off as many tokens as it has places, and P are the prompt's.
        """
        cache, wanted = given_cache(kwargs), kwargs.get("next_sequence_length")
        x = kwargs.get("inputs_embeds") if kwargs.get("is_first_iteration") else None
        past = 0 if cache is None else cache.get_seq_length()
        if past and wanted == (input_ids if x is None else x).shape[1] - past:
            kwargs["next_sequence_length"] = wanted + self.length
        return own(input_ids, *args, **kwargs)

    def _of_tokens(self, value: Any, added: int) -> Any:
        if isinstance(value, tuple):
            return tuple(self._of_tokens(inner, added) for inner in value)
        if isinstance(value, Tensor) and value.dim() > 2:  # hidden states (B, T, E), weights (B, H, T, S)
            return value.narrow(value.dim() - 2, added, value.shape[-2] - added)
        return value


def _refuse_other_tensors(given: Arguments) -> None:
    """Raises ValueError for a tensor that says something of each token, and nothing of the prompt."""
    for name, value in given.items():
        if isinstance(value, Tensor) and value.dim() and name not in (*_LENGTHENED, *CACHE_NAMES):
            raise ValueError(
                f"{name} describes the tokens alone, so it is wrong beside a prompt; leave it out"
            )


def _check(mask: Any, places: Tensor | None, seen: int, new: int, P: int) -> None:
    """Checks what a pass is given, where ``seen`` tokens are in the cache beside the prompt."""
    if seen < 0:
        raise ValueError(
            f"the cache holds {seen + P} places, fewer than the prompt's {P}; it was begun without the prompt"
        )
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise ValueError(
            "attention_mask must be (batch, length), so that it can be told of the prompt; "
            "generate makes others for static caches, which are not served"
        )
    if mask is not None and mask.shape[1] != seen + new:
        raise ValueError(
            f"attention_mask must cover {seen} cached and {new} new tokens; got {mask.shape[1]} columns"
        )
    if places is None:
        return
    if places.dim() != 2 or places.shape[1] != new:
        raise ValueError(f"position_ids must be (batch, {new}); got {tuple(places.shape)}")
    if mask is None and not seen and bool((places.diff(dim=1) < 0).any()):
        raise ValueError(
            "position_ids restart inside a row, so sequences are packed, and only the first would see the "
            "prompt; give each sequence a row of its own, padded with an attention_mask"
        )


def _order(mask: Tensor, P: int) -> Tensor:
    """Returns where each place of padded rows comes from, counted in the prompt and then in the row.

    Padding on the left comes first, then the prompt, then the text. So nothing lies between prompt and text,
    and a padded row is computed as the row alone, whichever way a model knows order.
    """
    start = mask.bool().int().argmax(1, keepdim=True)
    place = torch.arange(P + mask.shape[1], device=mask.device)
    return torch.where(place < start, place + P, torch.where(place < start + P, place - start, place))


def _join(front: Tensor, behind: Tensor, order: Tensor | None) -> Tensor:
    """Returns both, one behind the other along their second axis or as ``order`` has it."""
    if order is None:
        return torch.cat([front, behind], 1)
    both = torch.cat([x.expand(len(order), *x.shape[1:]) for x in (front, behind)], 1)
    return both.take_along_dim(order.view(*order.shape, *[1] * (both.dim() - 2)), 1)
