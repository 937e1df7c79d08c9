"""Conversations as a model's chat template writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

Message: TypeAlias = tuple[str, str]  # role and content


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Returns the ids after which a model answers a conversation.

    Raises:
        ValueError: the tokenizer has no chat template, or its template does not take the messages.
    """
    return _ids(tokenizer, render(tokenizer, messages, ask=True))


def turns(tokenizer: Any, messages: Sequence[Message]) -> list[tuple[list[int], bool]]:
    """Returns the ids of a conversation in stretches, with whether the assistant says them.

    Before each answer stand the ids after which :func:`chat_ids` asks for it. What follows the last answer is
    left out.

    Raises:
        ValueError: as :func:`chat_ids` does, or the template changes earlier turns when later ones follow.
    """
    found: list[tuple[list[int], bool]] = []
    done = ""
    for i, message in enumerate(messages):
        if message[0] != "assistant":
            continue
        asked = render(tokenizer, messages[:i], ask=True)
        said = render(tokenizer, messages[: i + 1], ask=False)
        if not (asked.startswith(done) and said.startswith(asked)):
            raise ValueError(
                f"message {i + 1} of a conversation: the chat template changes the turns before it; give "
                "conversations with one answer each"
            )
        found += [
            (_ids(tokenizer, asked[len(done) :]), False),
            (_ids(tokenizer, said[len(asked) :]), True),
        ]
        done = said
    return found


def render(tokenizer: Any, messages: Sequence[Message], *, ask: bool) -> str:
    """Returns a conversation as text; ``ask`` adds what comes before the assistant's next answer."""
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise ValueError(
            f"the tokenizer of {name} has no chat template; give an instruct model, or ask without --chat"
        )
    from jinja2 import TemplateError  # which Transformers needs for templates, and for nothing else

    try:
        said = [{"role": role, "content": content} for role, content in messages]
        return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        raise ValueError(f"the chat template does not take these messages ({error})") from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
