"""What a training rests on, as hashes that change when it changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def of_model(model: nn.Module) -> str:
    """Returns a hash of a model's configuration and of every weight, about a gigabyte a second."""
    config = getattr(model, "config", None)
    about = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "name_or_path", "transformers_version"):  # say nothing of what it computes
        about.pop(name, None)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """Returns a hash of the rules of a tokenizer, its vocabulary, special tokens and chat template."""
    rules: Any = sorted(tokenizer.get_vocab().items())
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for passing in ("truncation", "padding"):  # left from the last call
            rules.pop(passing, None)
    about = [rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def of_rows(rows: Iterable[object]) -> str:
    """Returns a hash of values by how they print, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode() + b"\0")
    return digest.hexdigest()
