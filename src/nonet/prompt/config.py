"""Options of the three prompts that are vectors."""

from dataclasses import dataclass
from typing import Literal

from nonet.shapes import check_choice, check_positive, freeze_lists

STARTS = ("vocabulary", "random", "text", "labels")
PREFIX_STARTS = ("vocabulary", "random", "text")
ENCODERS = ("mlp", "lstm")


@dataclass(frozen=True)
class PromptTuning:
    """Trained vectors in front of the input's embeddings (Lester et al. 2021, 2104.08691).

    Attributes:
        length: P, vectors of the prompt.
        start: what they are at first: ``"vocabulary"``, embeddings of sampled tokens, of the 5000 most
            frequent ones where the tokenizer's order tells them; ``"random"``, uniform in (-0.5, 0.5);
            ``"text"``, those of a text, repeated up to the length; ``"labels"``, one for each class, the
            mean over its sub-tokens, and sampled ones behind.
        text: a string for ``start="text"``, a tuple or list of words for ``start="labels"``.
        seed: of what is drawn.
    """

    length: int = 20
    start: Literal["vocabulary", "random", "text", "labels"] = "vocabulary"
    text: str | tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_positive(length=self.length)
        check_choice("start", self.start, STARTS)
        if self.text is None:
            return
        if self.start not in ("text", "labels"):
            raise ValueError(f"text has no effect with start={self.start!r}; got {self.text!r}")
        wanted, called = (str, "a string") if self.start == "text" else (tuple, "a tuple or list of words")
        if not isinstance(self.text, wanted):
            raise TypeError(f"text must be {called} with start={self.start!r}; got {self.text!r}")


@dataclass(frozen=True)
class PrefixTuning:
    """Trained keys and values in front of every layer's (Li and Liang 2021, 2101.00190).

    These are also the deep prompts of P-Tuning v2 (Liu et al. 2021, 2110.07602).

    Attributes:
        length: P, keys and values of each layer.
        hidden: width of the MLP (Linear, Tanh, Linear) through which they are trained; None trains them
            directly. The MLP is dropped when the prefix is saved.
        start: what they are at first without an MLP (section 7.4): ``"vocabulary"``, what the model's own
            layers make of sampled tokens, chosen as for :class:`PromptTuning`; ``"text"``, of a text,
            repeated up to the length; ``"random"``, normal numbers.
        text: for ``start="text"``.
        seed: of what is drawn.
    """

    length: int = 20
    hidden: int | None = None
    start: Literal["vocabulary", "random", "text"] = "vocabulary"
    text: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(length=self.length, hidden=self.hidden)
        check_choice("start", self.start, PREFIX_STARTS)
        if self.text is not None and (self.start != "text" or self.hidden is not None):
            given = f"start={self.start!r}, hidden={self.hidden}"
            raise ValueError(f"text has an effect with start='text' and hidden=None alone; got {given}")


@dataclass(frozen=True)
class PTuning:
    """Vectors in front of the input that an encoder makes of others (Liu et al. 2021, 2103.10385).

    Attributes:
        length: P, vectors of the prompt.
        encoder: ``"mlp"``, three layers with ReLU; ``"lstm"``, a bidirectional LSTM and two layers. It is
            dropped when the prompt is saved.
        hidden: width of the encoder, of each direction for an LSTM; None for the model's width.
        layers: of the LSTM.
        seed: of what is drawn.
    """

    length: int = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: int | None = None
    layers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(length=self.length, hidden=self.hidden, layers=self.layers)
        check_choice("encoder", self.encoder, ENCODERS)
        if self.encoder == "mlp" and self.layers != 2:
            raise ValueError(
                f"layers counts those of an LSTM; with encoder='mlp' it stays 2, got {self.layers}"
            )
