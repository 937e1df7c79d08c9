"""A small made-up language whose texts have topics: what a model can learn from it is known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The first word of a topic is its name, and no more frequent than the others.
TOPICS: dict[str, tuple[str, ...]] = {
    name: (name, *words.split())
    for name, words in {
        "sport": "match team goal coach ball league race medal stadium runner score fan boxer relay",
        "music": "song choir violin drum concert melody piano opera singer rhythm album flute band tune",
        "food": "bread soup kitchen salt dinner recipe cheese oven pepper lunch baker fruit spoon sauce",
        "science": "atom theory cell planet lens proof fossil enzyme energy orbit crystal gene laser virus",
    }.items()
}
_PLAIN = """
    the a one this that some many old new good small long first last next every other same great early
    and but while so then when as for with from near under over after before in on at by to was had made
    found saw took gave went came said knew left kept year day town house friend man woman child time way
""".split()  # noqa: SIM905  (a list of so many words is no easier to read)
ENDINGS = ("it is about", "they speak of", "a story of")  # in front of a word of the text's topic
_ENDS = tuple(ending.split() for ending in ENDINGS)


class TopicTexts:
    """Texts of twelve words; three or four of them belong to a topic, and most of these to the text's own.

    In one text of two a sentence follows, such as ``it is about violin``, whose last word is any of the
    topic. Names of topics are words like all others: no text is labelled.

    Args:
        noise: the share of topical words that are drawn from all topics.
    """

    words = 12

    def __init__(self, noise: float = 0.25) -> None:
        self.noise = noise
        self.labels = tuple(TOPICS)
        used = [*_PLAIN, *(w for end in _ENDS for w in end), *(w for topic in TOPICS.values() for w in topic)]
        self.vocabulary = ("<pad>", *dict.fromkeys(used))
        ids = {word: i for i, word in enumerate(self.vocabulary)}
        self._plain = np.array([ids[word] for word in _PLAIN])
        self._topical = np.array([[ids[word] for word in words] for words in TOPICS.values()])
        self._endings = np.array([[ids[word] for word in end] for end in _ENDS])

    @property
    def vocab_size(self) -> int:
        """Words that there are, and one to pad with."""
        return len(self.vocabulary)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer of this language: a token a word."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(self.vocabulary)}, "<pad>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<pad>")

    def labelled(self, count: int, seed: int) -> tuple[list[str], list[str]]:
        """Returns texts and their topics, every topic as often as it goes."""
        random = np.random.default_rng((seed, 1))
        topics = np.arange(count) % len(TOPICS)
        texts = [" ".join(self.vocabulary[i] for i in row) for row in self._texts(random, topics)]
        return texts, [self.labels[topic] for topic in topics]

    def reading(self, count: int, seed: int = 0) -> list[dict[str, Tensor]]:
        """Returns texts without labels, to teach a language model: items of sixteen tokens."""
        random = np.random.default_rng((seed, 0))
        topics = random.integers(len(TOPICS), size=count)
        said = np.c_[self._endings[random.integers(len(ENDINGS), size=count)], self._of(random, topics)]
        plain = random.choice(self._plain, (count, said.shape[1]))
        behind = np.where(random.random((count, 1)) < 0.5, said, plain)
        ids = torch.from_numpy(np.c_[self._texts(random, topics), behind])
        return [{"input_ids": row, "labels": row} for row in ids]

    def _texts(self, random: Generator, topics: NDArray) -> NDArray:
        """Returns the tokens ``(texts, words)`` of texts of these topics."""
        shape = len(topics), self.words
        other = random.integers(len(TOPICS), size=shape)
        topic = np.where(random.random(shape) < self.noise, other, topics[:, None])
        plain = random.choice(self._plain, shape)
        return np.where(random.random(shape) < 0.3, self._of(random, topic), plain)

    def _of(self, random: Generator, topics: NDArray) -> NDArray:
        """Returns a word of each topic."""
        return self._topical[topics, random.integers(self._topical.shape[1], size=topics.shape)]
