"""Pattern-exploiting training: a text is classified by the word that a language model puts into a blank."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.prompt.pattern import Example, Pattern
from nonet.prompt.verbalizer import Verbalizer

Sides: TypeAlias = tuple[list[int], list[int]]  # tokens before the blank, and behind it
Places: TypeAlias = list[tuple[int, int]]  # row, column

_ASKED, _HIDDEN, _RANDOM = 0.15, 0.8, 0.1  # BERT's share of tokens to predict; of these masked, or random


class PET(nn.Module):
    r"""A masked or causal language model, one pattern and one verbalizer, which together classify texts.

    .. math::
        s(l \mid x) = \frac{1}{|v(l)|} \sum_{w \in v(l)} \log M(w \mid P(x)), \qquad
        q(l \mid x) = \frac{e^{s(l \mid x)}}{\sum_{l'} e^{s(l' \mid x)}}

    The softmax runs over labels alone. Where a word is several tokens, its log-probability is their sum: a
    masked model is given as many masks as tokens and fills each on its own; a causal model reads the word
    token by token. With one token a word, a log-probability differs from the paper's raw logit by a constant
    that the softmax takes out.

    Whatever parameters of the model require a gradient are trained: all of them, or an adapter's alone.

    Args:
        model: a ``...ForMaskedLM`` or a causal language model of Transformers; used as it is, not copied.
        tokenizer: the model's tokenizer.
        pattern: the question; for a causal model one that ends in the blank.
        verbalizer: the words of each label.
        alpha: weight of the language model's loss against that of the labels, from 0 to 1.
        max_length: tokens of a row; a longer text is cut, see :meth:`nonet.prompt.Pattern.encode`.
        offset: added to the scores ``(L,)``, as :func:`nonet.prompt.calibrate` finds it; None for zero.

    Raises:
        TypeError: the model is neither masked nor causal.
        ValueError: the pattern does not suit the model, the tokenizer lacks a mask token or a word, or a
            number is out of range.

    Complexity: one forward pass a batch. A causal model reads a text once for every distinct beginning (all
    tokens but the last) of the words, a masked one once for every number of tokens that words have. Only
    places of the blank meet the vocabulary.
    Source: Schick and Schuetze 2020 (2001.07676), sections 3.1 and 3.2.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pattern: Pattern,
        verbalizer: Verbalizer,
        *,
        alpha: float = 1e-4,
        max_length: int = 256,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        core = (
            model.get_base_model() if hasattr(model, "get_base_model") else model
        )  # inside of PEFT's wrapper
        self.causal = _is_causal(core)
        name = type(core).__name__
        if self.causal and not pattern.ends_in_blank:
            raise ValueError(
                f"pattern must end in {{blank}} for a causal model such as {name}; got {pattern.template!r}"
            )
        if not self.causal and tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer must have a mask token for a masked model such as {name}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1; got {alpha!r}")
        longest = getattr(model.config, "max_position_embeddings", None) or max_length
        if not 0 < max_length <= longest:
            raise ValueError(f"max_length must be from 1 to the model's {longest} places; got {max_length!r}")
        labels = len(verbalizer.labels)
        if offset is not None and offset.shape != (labels,):
            raise ValueError(f"offset must have the shape ({labels},); got {tuple(offset.shape)}")
        self.model, self.tokenizer = model, tokenizer
        self.pattern, self.verbalizer = pattern, verbalizer
        self.alpha, self.max_length = alpha, max_length
        self.offset = torch.zeros(labels) if offset is None else offset
        self._takes = set(inspect.signature(core.forward).parameters)

        coded = verbalizer.encode(tokenizer, pattern.lead)
        words = [(label, word) for label, several in enumerate(coded) for word in several]
        # What stands in the blank while the model is asked; words that share it share a row.
        fillers = [word[:-1] if self.causal else (tokenizer.mask_token_id,) * len(word) for _, word in words]
        self._fillers = sorted(set(fillers))
        self._room = max(map(len, fillers))
        # One question for each token of each word: in which row of the text, at which place of the blank.
        questions = [
            (self._fillers.index(filler), j)
            for (_, word), filler in zip(words, fillers, strict=True)
            for j in range(len(word))
        ]
        self._places = sorted(set(questions))
        self._place = [self._places.index(question) for question in questions]
        self._token = [token for _, word in words for token in word]
        # (tokens, L): sums over the tokens of a word, and means over the words of a label.
        owner = torch.tensor([label for label, word in words for _ in word])
        self._mean = F.one_hot(owner, labels).double() / torch.tensor([len(several) for several in coded])

    def forward(
        self, examples: Sequence[Example], labels: Sequence[str], unlabelled: Sequence[Example] = ()
    ) -> dict[str, Tensor]:
        """Returns ``{"loss": self.loss(...)}``, as Transformers' Trainer asks for it."""
        return {"loss": self.loss(examples, labels, unlabelled)}

    def loss(
        self, examples: Sequence[Example], labels: Sequence[str], unlabelled: Sequence[Example] = ()
    ) -> Tensor:
        r"""Returns the loss of a batch, to be differentiated.

        .. math:: L = (1 - \alpha) L_{CE} + \alpha L_{LM}

        :math:`L_{CE}` is the cross-entropy of q over labels. :math:`L_{LM}` is the language model's own loss
        on the unlabelled texts in the pattern: a masked model predicts 15 in 100 of their tokens, never the
        blank; a causal one each next token before the blank. Without unlabelled texts L is :math:`L_{CE}`.

        Args:
            examples: texts, or mappings from the fields of the pattern to texts.
            labels: the label of each example.
            unlabelled: further examples, in any number.

        Raises:
            ValueError: a label is not known, or there is not one for each example.
        """
        target = torch.tensor(self.index(examples, labels), device=self.model.device)
        loss = F.cross_entropy(self._scores([self._encode(x) for x in examples]), target)
        if not unlabelled or not self.alpha:
            return loss
        return (1 - self.alpha) * loss + self.alpha * self._language_loss(unlabelled)

    @torch.no_grad()
    def scores(self, examples: Sequence[Example], batch: int = 16) -> Tensor:
        """Returns the score of every label for every example, ``(n, L)``, with dropout off.

        Args:
            examples: texts, or mappings from the fields of the pattern to texts.
            batch: examples that the model is given at once; those of like length go together.

        Raises:
            ValueError: there is no example, or one lacks a field.
            TypeError: ``examples`` is itself a text.
        """
        _check_examples(examples)
        sides = [self._encode(x) for x in examples]
        order = sorted(range(len(sides)), key=lambda i: len(sides[i][0]) + len(sides[i][1]))
        was_training = self.model.training
        self.model.eval()
        try:
            parts = [
                self._scores([sides[i] for i in order[start : start + batch]])
                for start in range(0, len(order), batch)
            ]
        finally:
            self.model.train(was_training)
        sorted_scores = torch.cat(parts)
        scores = torch.empty_like(sorted_scores)
        scores[order] = sorted_scores
        return scores

    def predict(self, examples: Sequence[Example], batch: int = 16) -> list[str]:
        """Returns the label of highest score for every example."""
        return [self.verbalizer.labels[i] for i in self.scores(examples, batch).argmax(-1).tolist()]

    def index(self, examples: Sequence[Example], labels: Sequence[str]) -> list[int]:
        """Returns the place of each label among the verbalizer's; raises ValueError for one that it lacks."""
        _check_examples(examples)
        if len(labels) != len(examples):
            raise ValueError(f"labels must be one for each of {len(examples)} examples; got {len(labels)}")
        known = self.verbalizer.labels
        for label in labels:
            if label not in known:
                raise ValueError(f"label {label!r} is not known; choose from {', '.join(map(str, known))}")
        return [known.index(label) for label in labels]

    def _encode(self, example: Example) -> Sides:
        before, after = self.pattern.encode(
            self.tokenizer, example, room=self._room, max_length=self.max_length
        )
        if not self.causal:
            return before, after
        if not before:
            raise ValueError(f"a causal model needs a token before the blank; {example!r} gives none")
        return before, []  # a closing token of the tokenizer would follow the blank

    def _scores(self, sides: Sequence[Sides]) -> Tensor:
        """The scores (n, L) of one batch."""
        rows = [[*before, *filler, *after] for before, after in sides for filler in self._fillers]
        places = [
            (i * len(self._fillers) + row, len(before) + j)
            for i, (before, _) in enumerate(sides)
            for row, j in self._places
        ]
        log_p = self._logits(rows, places).log_softmax(-1).unflatten(0, (len(sides), -1))
        return log_p[:, self._place, self._token] @ self._mean.to(log_p) + self.offset.to(log_p)

    def _language_loss(self, texts: Sequence[Example]) -> Tensor:
        sides = [self._encode(x) for x in texts]
        if self.causal:
            rows = [before for before, _ in sides]
            places = [(i, j) for i, row in enumerate(rows) for j in range(1, len(row))]
            tokens = [rows[i][j] for i, j in places]
        else:
            rows, places, tokens = self._spoilt(sides)
        if not places:
            raise ValueError("unlabelled must hold texts of more than a token")
        return F.cross_entropy(self._logits(rows, places), torch.tensor(tokens, device=self.model.device))

    def _spoilt(self, sides: Sequence[Sides]) -> tuple[list[list[int]], Places, list[int]]:
        """Rows as BERT was trained on, the places to predict, and the tokens that stood there.

        Chance is torch's own generator, as of dropout.
        """
        mask, special = self.tokenizer.mask_token_id, set(self.tokenizer.all_special_ids)
        rows, places, tokens = [], [], []
        for i, (before, after) in enumerate(sides):
            row = [*before, mask, *after]
            free = [j for j, token in enumerate(row) if token not in special]  # so never the blank
            for k in torch.randperm(len(free))[: max(1, round(_ASKED * len(free)))].tolist():
                j, chance = free[k], torch.rand(()).item()
                places.append((i, j))
                tokens.append(row[j])
                if chance < _HIDDEN:
                    row[j] = mask
                elif chance < _HIDDEN + _RANDOM:
                    row[j] = int(torch.randint(self.model.config.vocab_size, ()))
            rows.append(row)
        return rows, places, tokens

    def _logits(self, rows: Sequence[Sequence[int]], places: Places) -> Tensor:
        """The logits (places, V) of what stands at each place, in float32 or better.

        They are counted from the end of a row, where a soft prompt in front of the rows changes nothing.
        """
        inputs = self._inputs(rows)
        width = inputs["input_ids"].shape[1]
        row = torch.tensor([i for i, _ in places], device=self.model.device)
        if self.causal:  # what comes before a token predicts it
            back = [j - 1 - len(rows[i]) for i, j in places]
            inputs |= {"logits_to_keep": -min(back), "use_cache": False}
            inputs = {name: value for name, value in inputs.items() if name in self._takes}
            logits = self.model(**inputs).logits[row, back]
        else:
            logits = self._picked(inputs, row, [j - width for _, j in places])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Rows of one width; a causal model has its padding on the left, so that all end at the blank."""
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        ids, mask = [], []
        for row in rows:
            real, gap = [1] * len(row), [0] * (width - len(row))
            ids.append([*[pad] * len(gap), *row] if self.causal else [*row, *[pad] * len(gap)])
            mask.append([*gap, *real] if self.causal else [*real, *gap])
        device = self.model.device
        seen = torch.tensor(mask, device=device)
        inputs = {"input_ids": torch.tensor(ids, device=device), "attention_mask": seen}
        if self.causal:
            inputs["position_ids"] = (seen.cumsum(1) - 1).clamp(min=0)
        return inputs

    def _picked(self, inputs: Mapping[str, Tensor], row: Tensor, back: list[int]) -> Tensor:
        """The logits of a masked model at some places; only these meet the head where it can be reached."""
        head = self.model.get_output_embeddings()
        if getattr(head, "out_features", None) != self.model.config.vocab_size:
            return self.model(**inputs).logits[row, back]
        found: list[Tensor] = []
        hooks = (
            head.register_forward_pre_hook(lambda _, args: (args[0][row, back],)),
            head.register_forward_hook(lambda _, args, output: found.append(output)),
        )
        try:
            self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0]


def _is_causal(model: Any) -> bool:
    if any(kind.__name__.endswith("ForMaskedLM") for kind in type(model).__mro__):
        return False
    if getattr(model, "can_generate", bool)() and not model.config.is_encoder_decoder:
        return True
    raise TypeError(
        "model must be a ...ForMaskedLM or a causal language model of Transformers; "
        f"got {type(model).__name__}"
    )


def _check_examples(examples: Sequence[Example]) -> None:
    if isinstance(examples, (str, Mapping)):
        raise TypeError(f"examples must be a sequence of examples; got one, {examples!r}")
    if not examples:
        raise ValueError("examples must hold one example or more")
