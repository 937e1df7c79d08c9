"""The configuration of the model: sizes, and a name in each slot."""

from __future__ import annotations

import json
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from nonet.ecosystem import CACHE_NAMES
from nonet.registry import RESIDUALS, Part, load, method_of, part, parts
from nonet.shapes import check_choice, check_positive, divides
from nonet.slots import Position


@strict
class NonetConfig(PreTrainedConfig):
    """Sizes of a model, and what fills its slots.

    A layer is a mixer and a channel mixer. ``pattern`` holds one letter a layer and is repeated whole:
    ``"F"`` is FlashAttention everywhere, ``"MMF"`` two Mamba layers before each of attention, in a model of
    3, 6, 9, ... layers. ``nonet methods`` lists letters and names.

    Attributes:
        vocab_size: number of tokens V.
        hidden_size: width E.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads H.
        num_key_value_heads: key and value heads G, a divisor of H; H by default.
        head_dim: width D of a head; E / H by default.
        intermediate_size: width of the channel mixer; by default 8 E / 3, rounded up to a multiple of 32.
        max_position_embeddings: the length that tables and fixed projections are made for.
        pattern: letters of the mixers, from the first layer on; their number divides that of the layers.
        position: name of the part in the position slot.
        linear: name of the part in the linear slot, which makes every projection inside the layers.
        residual: ``"standard"``, or ``"reversible"`` to train in memory that does not grow with depth.
        options: for each part in use that needs other than its defaults, the fields of its dataclass, as
            values that JSON holds.
        is_causal: a token sees no later one; False for encoders.
        initializer_range: standard deviation of first weights; by default ``sqrt(2 / (5 E))`` (Nguyen and
            Salazar 2019, 1910.05895, section 2.2), which suits narrow models too.
        rms_norm_eps: epsilon of the norms.
        tie_word_embeddings: the head's weight is the embedding's.
        use_cache: keep a cache while generating.

    Raises:
        ValueError: a name is not known, a size does not fit another, or an option is wrong.
    """

    model_type = "nonet"
    keys_to_ignore_at_inference = list(CACHE_NAMES)  # noqa: RUF012  (the base class declares it so)

    vocab_size: int = 257
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 512
    pattern: str = "F"
    position: str = "rope"
    linear: str = "dense"
    residual: str = "standard"
    options: dict[str, dict[str, Any]] | None = None
    is_causal: bool = True
    initializer_range: float | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_positive(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.max_position_embeddings,
        )
        if self.head_dim is None:
            self.head_dim = divides(
                "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        divides(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        if self.intermediate_size is None:
            self.intermediate_size = 32 * -(-8 * self.hidden_size // (3 * 32))
        if self.initializer_range is None:
            self.initializer_range = math.sqrt(0.4 / self.hidden_size)
        self.options = self.options or {}
        check_choice("residual", self.residual, RESIDUALS)
        for name, given in self.options.items():
            try:
                json.dumps(given, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"options of {name} cannot be saved as JSON ({error}); give finite numbers, texts, lists "
                    "and dictionaries, such as dataclasses.asdict makes"
                ) from None
        for used in self.parts():
            self.options_of(used)
        unused = set(self.options) - {p.name for p in self.parts()}
        if unused:
            raise ValueError(
                f"options names {', '.join(sorted(unused))}, which no slot of this model holds; "
                f"it holds {', '.join(sorted(p.name for p in self.parts()))}"
            )
        super().__post_init__(**kwargs)

    def mixers(self) -> list[Part]:
        """Returns the mixer of every layer, as ``pattern`` spells them."""
        known = {p.letter: p for p in parts("mixer")}
        strange = set(self.pattern) - set(known)
        if strange or not self.pattern:
            letters = ", ".join(f"{p.letter} ({p.name})" for p in known.values())
            raise ValueError(f"pattern={self.pattern!r} must be spelled with the letters {letters}")
        if self.num_hidden_layers % len(self.pattern):
            whole = round_up(self.num_hidden_layers, len(self.pattern))
            raise ValueError(
                f"pattern={self.pattern!r} has {len(self.pattern)} letters, which do not divide "
                f"num_hidden_layers={self.num_hidden_layers}; give num_hidden_layers={whole}, or a pattern "
                "whose number of letters divides the layers"
            )
        mixers = [known[self.pattern[i % len(self.pattern)]] for i in range(self.num_hidden_layers)]
        for mixer in mixers:
            if not (mixer.causal if self.is_causal else mixer.bidirectional):
                kind = "causal" if self.is_causal else "bidirectional (is_causal=False)"
                raise ValueError(f"the mixer {mixer.name} cannot be {kind}; change pattern={self.pattern!r}")
        return mixers

    @property
    def idle_position(self) -> bool:
        """Whether the position slot changes nothing: recurrences read neither rotation nor slopes."""
        position = load(part("position", self.position).target)
        beside = position.rotation is not Position.rotation or position.slopes is not Position.slopes
        return beside and all(mixer.recurrent for mixer in self.mixers())

    def parts(self) -> list[Part]:
        """Returns every part in use, each once."""
        used = [*self.mixers(), part("position", self.position), part("linear", self.linear)]
        return list(dict.fromkeys(used))

    def options_of(self, part: Part) -> Any:
        """Returns the options of a part in use as its dataclass, or None when it has none."""
        given = (self.options or {}).get(part.name, {})
        if part.config is None:
            if given:
                raise ValueError(f"{part.slot} {part.name} takes no options; got {given}")
            return None
        try:
            return load(part.config)(**given)
        except TypeError as error:
            raise ValueError(f"options of {part.slot} {part.name}: {error}") from error

    @property
    def layer_types(self) -> list[str]:
        """The kind of cache of every layer, by which Transformers builds one."""
        return [mixer.cache for mixer in self.mixers()]

    def validate_layer_type(self) -> None:
        """Does nothing: the registry says which kinds there are, where Transformers asks for its own."""

    def implementations(self, device: str, dtype: str) -> dict[str, tuple[str, str]]:
        """Returns, for every op that the parts in use call, which implementation runs and why."""
        from nonet.select import absent, select

        chosen: dict[str, tuple[str, str]] = {}
        for used in self.parts():
            method = method_of(used)
            impl = getattr(self.options_of(used), "impl", "auto")
            for name in used.ops:
                assert method is not None
                op = method.op(name)
                chosen[name] = select(op, device, dtype, impl=impl, missing=absent(op, device))
        return chosen


def round_up(layers: int, letters: int) -> int:
    """Returns the least number of layers, from ``layers`` on, that repeats a pattern whole."""
    return letters * -(-layers // letters)


AutoConfig.register(NonetConfig.model_type, NonetConfig)
