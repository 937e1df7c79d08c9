"""Ways to teach a pretrained model: adapters, prompts, patterns, or every weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonet.hf.adapters import save_adapter
from nonet.hf.card import card, code_of_model
from nonet.hf.positions import check_room
from nonet.lora import LoraConfig, add_lora
from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt
from nonet.shapes import check_choice, check_positive

# What each way of tuning learns at by default, with AdamW: customary values, not searched for any model.
RATES = {
    "full": 5e-5,
    "lora": 5e-4,
    "dora": 5e-4,
    "prompt": 1e-2,
    "prefix": 1e-2,
    "ptuning": 1e-3,
    "pet": 2e-5,
}
WHOLE = ("full", "pet")  # what these learn is a model of its own
PATTERN = "{text}\nLabel: {blank}"


@dataclass(frozen=True)
class Tuning:
    """All that decides what a fine-tuning gives."""

    model: str
    source: str | None
    method: str
    steps: int
    window: int
    batch: int
    learning_rate: float | None
    seed: int
    rank: int = 8
    length: int = 20
    pattern: str = PATTERN
    few: int | None = None
    dtype: str = "float32"
    chat: bool = False

    def __post_init__(self) -> None:
        check_choice("method", self.method, RATES)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(steps=self.steps, window=self.window, batch=self.batch)
        check_positive(learning_rate=self.learning_rate)

    @property
    def rate(self) -> float:
        """The learning rate asked for, or the method's own."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


def adapter(tuning: Tuning) -> LoraConfig | PromptTuning | PrefixTuning | PTuning | None:
    """Returns the adapter that the method trains, None where it trains the model's own weights."""
    if tuning.method in ("lora", "dora"):
        variants = ("dora",) if tuning.method == "dora" else ()
        return LoraConfig(rank=tuning.rank, alpha=2.0 * tuning.rank, variants=variants, seed=tuning.seed)
    prompts = {"prompt": PromptTuning, "prefix": PrefixTuning, "ptuning": PTuning}
    if tuning.method in prompts:
        return prompts[tuning.method](length=tuning.length, seed=tuning.seed)
    return None


def adapt(model: Any, tokenizer: Any, tuning: Tuning) -> Any:
    """Puts what the method trains on a model, everything else frozen; returns the model.

    Raises:
        ValueError: the model has fewer positions than a window has tokens, or cannot take the adapter.
    """
    config = adapter(tuning)
    if config is None:
        train_every_weight(model)
    elif isinstance(config, LoraConfig):
        add_lora(model, config)
    else:
        add_prompt(model, config, tokenizer)
    check_room(model, tuning.window, "window")
    return model


def train_every_weight(model: Any) -> Any:
    """Returns the model with all of it to be trained: full fine-tuning."""
    return model.requires_grad_(True)


def train_nothing(model: Any) -> Any:
    """Returns the model frozen, as it is."""
    return model.requires_grad_(False)


def keep(model: Any, tuning: Tuning, place: Path, about: dict[str, Any]) -> None:
    """Writes what was learned, an adapter or a whole model, with a card that says what it is about."""
    if tuning.method in WHOLE:
        model.save_pretrained(place)
        text = card(f"{tuning.model}, fine-tuned with nonet", about, code_of_model(model))
        (place / "README.md").write_text(text, encoding="utf-8")
    else:
        save_adapter(model, place, about=about)
