"""Continuing a prompt with any causal model of Transformers, with or without an adapter."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import TextStreamer, set_seed
from transformers.utils import logging

from nonet.hf.adapters import load_adapter
from nonet.hf.pretrained import load_pretrained


def write(
    name: str,
    prompt: str,
    *,
    adapter: Path | None,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stream: bool,
    as_json: bool,
) -> None:
    """Writes the continuation of a prompt to standard output, token by token or as one JSON document.

    Args:
        name: of the model, as :func:`nonet.hf.load_pretrained` takes it.
        prompt: the text to continue; when empty, the model begins at its end-of-text token.
        adapter: the directory of an adapter for it.
        tokens: how many to write at most.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of sampling.
        stream: write each token as it comes, and not all at the end.
        as_json: one document with the text and figures in place of the text.

    Raises:
        ValueError: the model or the adapter cannot be read.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, tokenizer = load_pretrained(name)
    if adapter is not None:
        model = load_adapter(model, adapter)
    set_seed(seed)
    inputs = tokenizer(prompt or tokenizer.eos_token, return_tensors="pt").to(model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    stream = stream and not as_json
    if stream:
        sys.stdout.write(prompt)
    began = time.perf_counter()
    with torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
            **({"do_sample": False} | sampling),
        )
    seconds = time.perf_counter() - began
    new = out[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    if as_json:
        figures = {
            "tokens": len(new),
            "seconds": seconds,
            "tokens_per_second": len(new) / seconds,
            "seed": seed,
        }
        sys.stdout.write(json.dumps({"prompt": prompt, "text": text, **figures}, indent=1) + "\n")
    elif not stream:
        sys.stdout.write(f"{prompt}{text}\n")
