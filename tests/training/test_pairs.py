"""What is trained has the tokens that a model is asked with later."""

from itertools import pairwise

import pytest
import torch

from nonet.data import byte_tokenizer, encode_corpus
from nonet.data.chat import chat_ids
from nonet.data.corpus import Corpus
from nonet.data.tokenizer import lead_ids, prompt_ids
from nonet.data.windows import training_windows, validation_windows
from nonet.training.pairs import IGNORED, Pairs, conversation, padded, pair
from nonet.training.speed import make_prompts

CHAT = [
    ("system", "be brief"),
    ("user", "one?"),
    ("assistant", "1"),
    ("user", "two?"),
    ("assistant", "2"),
]


def asked_and_learned(item):
    ids, labels = item["input_ids"].tolist(), item["labels"].tolist()
    assert len(ids) == len(labels)
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    return ids[:first], ids[first:]


def test_a_prompt_begins_as_the_tokenizer_begins_every_text(chat_tokenizer):
    plain = byte_tokenizer()
    assert lead_ids(plain) == []
    assert lead_ids(chat_tokenizer) == [chat_tokenizer.bos_token_id]
    for tokenizer in (plain, chat_tokenizer):
        assert prompt_ids(tokenizer, "ab") == tokenizer("ab")["input_ids"]
    assert prompt_ids(plain, "") == [plain.eos_token_id]
    assert prompt_ids(chat_tokenizer, "") == [chat_tokenizer.bos_token_id]


def test_what_ends_a_text_is_no_part_of_a_prompt(chat_tokenizer, monkeypatch):
    from tokenizers.processors import TemplateProcessing

    ends = [("<s>", chat_tokenizer.bos_token_id), ("<|end|>", chat_tokenizer.eos_token_id)]
    before = chat_tokenizer.backend_tokenizer.post_processor
    both = TemplateProcessing(single="<s> $A <|end|>", special_tokens=ends)
    chat_tokenizer.backend_tokenizer.post_processor = both
    try:
        assert chat_tokenizer("a")["input_ids"] == [257, 97, 256]
        assert prompt_ids(chat_tokenizer, "a") == [257, 97]
    finally:
        chat_tokenizer.backend_tokenizer.post_processor = before


def test_a_completion_follows_the_tokens_of_its_prompt(chat_tokenizer):
    for tokenizer in (byte_tokenizer(), chat_tokenizer):
        asked, learned = asked_and_learned(pair("2 + 2 = ", "4", tokenizer, 32))
        assert asked == prompt_ids(tokenizer, "2 + 2 = ")
        assert learned == [ord("4"), tokenizer.eos_token_id]


def test_a_long_prompt_keeps_its_first_token_and_its_end(chat_tokenizer):
    asked, learned = asked_and_learned(pair("0123456789", "ab", chat_tokenizer, 8))
    assert asked == [chat_tokenizer.bos_token_id, *b"6789"]
    assert learned == [*b"ab", chat_tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="window=4 is too short for a completion of 3 tokens"):
        pair("01", "ab", chat_tokenizer, 4)


def test_each_answer_of_a_conversation_follows_what_asks_for_it(chat_tokenizer):
    item = conversation(CHAT, chat_tokenizer, 200)
    ids, labels = item["input_ids"].tolist(), item["labels"].tolist()
    whole = [{"role": role, "content": content} for role, content in CHAT]
    assert ids == chat_tokenizer.apply_chat_template(whole, tokenize=True)["input_ids"]
    for until, answer in ((2, b"1"), (4, b"2")):
        asked = chat_ids(chat_tokenizer, CHAT[:until])
        assert ids[: len(asked)] == asked
        assert labels[len(asked) : len(asked) + 2] == [*answer, chat_tokenizer.eos_token_id]
    assert sum(label != IGNORED for label in labels) == 4


def test_a_long_conversation_loses_its_first_exchange(chat_tokenizer):
    whole = conversation(CHAT, chat_tokenizer, 200)["input_ids"]
    short = conversation(CHAT, chat_tokenizer, len(whole) - 1)["input_ids"]
    assert torch.equal(short, conversation([CHAT[0], *CHAT[3:]], chat_tokenizer, 200)["input_ids"])
    with pytest.raises(ValueError, match="window=10 is too short for an exchange of"):
        conversation(CHAT, chat_tokenizer, 10)


def test_a_template_that_cannot_serve_says_so(chat_tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="has no chat template"):
        chat_ids(byte_tokenizer(), CHAT[:1])
    changing = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(chat_tokenizer, "chat_template", changing)
    with pytest.raises(ValueError, match="message 3 of a conversation: the chat template changes the turns"):
        conversation(CHAT, chat_tokenizer, 200)
    monkeypatch.setattr(chat_tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        conversation(CHAT, chat_tokenizer, 200)


def test_windows_of_a_text_begin_as_prompts_do(chat_tokenizer, tmp_path):
    corpus = Corpus("letters", {part: [b"abcdefghij" * 20] for part in ("train", "validation", "test")})
    text = encode_corpus(corpus, chat_tokenizer, cache_dir=tmp_path)
    assert text.lead == (chat_tokenizer.bos_token_id,)
    for windows in (
        training_windows(text.train, 16, lead=text.lead),
        validation_windows(text.validation, 16, 40, text.lead),
    ):
        items = [windows[i]["input_ids"] for i in range(len(windows))]
        assert {len(item) for item in items} == {16}
        assert {item[0].item() for item in items} == {chat_tokenizer.bos_token_id}
        assert {b - a for a, b in pairwise(sorted(windows.starts.tolist()))} == {15}
    [prompt] = make_prompts(text, 1, torch.device("cpu"), 8)
    assert prompt.tolist() == [[chat_tokenizer.bos_token_id, *text.test[:7]]]
    plain = encode_corpus(corpus, byte_tokenizer(), cache_dir=tmp_path)
    assert plain.lead == ()


def test_a_batch_is_padded_and_passes_differ(chat_tokenizer):
    items = [pair("a" * n, "b", chat_tokenizer, 32) for n in (1, 3)]
    pairs = Pairs(items, seed=0, count=20)
    assert len(pairs) == 20
    orders = [pairs.order[i : i + 2] for i in range(0, 20, 2)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1)}
    assert len({tuple(order) for order in orders}) == 2
    batch = padded(256)(items)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 6)
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]
    assert batch["labels"][0, 4:].tolist() == [IGNORED, IGNORED]
