"""Broken and hostile files: each is refused in one line that names it, or makes no difference.

A small model, adapters, a tandem, labels and tables are written once. An attempt copies what a command reads,
spoils one file, and runs the command in this process. Code in a file that ran, a traceback, a screen with an
escape sequence on it, and memory or time without bounds are failures.
"""

import contextlib
import functools
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random
from unittest import mock

import torch
from judged import WrongError
from mangled import mangle
from transformers import LlamaConfig, LlamaForCausalLM

from nonet import NonetConfig, NonetForCausalLM, cli
from nonet.data import byte_tokenizer
from nonet.hf import save_adapter
from nonet.hf.labels import Question
from nonet.lora import LoraConfig, add_lora
from nonet.prompt import PromptTuning, add_prompt
from nonet.tandem import Tandem, TandemConfig

COUNT = 1_200
LIMIT = 120  # seconds until the worker is given up
PATIENCE = 30  # seconds that a command may take
ROOM = 2 * 2**30  # bytes that it may take beside what is in use
TEXT = "".join(f"line {n}: the quick brown fox jumps over the lazy dog\n" for n in range(60))
WRITE = ("--tokens", "3", "--temperature", "0", "--json", "--prompt", "the")
SMALL = ("--steps", "1", "--window", "16", "--batch", "1")

# What is spoilt -> the command that reads it: ``{}`` is its copy, ``{made}`` holds all, ``{out}`` is new.
READERS = {
    "model": ("generate", "{}", *WRITE),
    "lora": ("generate", "{made}/model", "--adapter", "{}", *WRITE),
    "prompt": ("generate", "{made}/model", "--adapter", "{}", *WRITE),
    "labels": ("predict", "{made}/model", "{made}/table.csv", "--adapter", "{}", "--json"),
    "tandem": ("tandem", "generate", "{made}/model", "{}", *WRITE),
    "folder": ("train", "{}", "--out", "{out}", *SMALL),
    "text.txt": ("train", "{}", "--out", "{out}", *SMALL),
    "texts.txt": ("predict", "{made}/model", "{}", "--adapter", "{made}/labels", "--json"),
    "table.csv": ("predict", "{made}/model", "{}", "--adapter", "{made}/labels", "--json"),
    "rows.jsonl": ("finetune", "{made}/model", "{}", "--out", "{out}", *SMALL),
    "rows.json": ("finetune", "{made}/model", "{}", "--out", "{out}", *SMALL),
}


def attempt(seed, number):
    """Spoils a file and runs the command that reads it; returns ``"served"`` or ``"refused"``."""
    random = Random(f"{seed} {number}")
    kind = random.choice([*READERS])
    with tempfile.TemporaryDirectory(prefix="files-") as scratch:
        copy, out, proof = Path(scratch, "given", kind), Path(scratch, "out"), Path(scratch, "proof")
        source = made() / kind
        copy.parent.mkdir()
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy)
        how = f"{kind}: {mangle(copy, random, proof)}"
        status, said, seconds, error = run(kind, copy, out)
        if proof.exists():
            raise WrongError(f"code of the file ran\n    {how}")
        if error:
            raise WrongError(f"{how}\n{error}")
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said.replace("\r\n", "\n")):
            raise WrongError(f"a control character reached the screen: {said[-300:]!r}\n    {how}")
        if seconds > PATIENCE:
            raise WrongError(f"took {seconds:.0f} seconds\n    {how}")
        if status == 0:
            return "served"
        last = said.strip().splitlines()[-1:] or [""]
        if status != 1 or not last[0].startswith("nonet: "):
            raise WrongError(f"ended with {status} and {last[0][:300]!r}\n    {how}")
        if not any(part in last[0] for part in (str(copy), kind, "the text has", "window=")):
            raise WrongError(f"names no file: {last[0][:300]}\n    {how}")
        if out.exists() and any(out.iterdir()):
            raise WrongError(f"left {[p.name for p in out.iterdir()]} behind\n    {how}")
        return "refused"


def run(kind, copy, out):
    """Returns the exit status of a command, what it said, and the traceback of what escaped it."""
    words = [w.replace("{}", str(copy)).format(made=made(), out=out) for w in READERS[kind]]
    screen, error, status = io.StringIO(), "", 0
    timer = signal.signal(signal.SIGALRM, _late)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    signal.alarm(PATIENCE)
    try:
        with (
            mock.patch.object(sys, "argv", ["nonet", *words]),
            mock.patch.object(sys, "stdin", io.StringIO("y\n" * 20)),
            contextlib.redirect_stdout(screen),
            contextlib.redirect_stderr(screen),
        ):
            cli.main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # noqa: BLE001  (whatever escapes is what is looked for)
        error = traceback.format_exc(limit=-8)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, timer)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return status, screen.getvalue(), 0.0, error


def _late(*_):
    raise TimeoutError(f"took more than {PATIENCE} seconds")


@functools.cache
def made():
    """The folder of what is spoilt, sound."""
    folder = Path(tempfile.mkdtemp(prefix="sound-"))
    torch.manual_seed(0)
    config = NonetConfig(vocab_size=257, hidden_size=16, num_hidden_layers=2, max_position_embeddings=512)
    model, tokenizer = NonetForCausalLM(config), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_adapter(add_lora(_again(folder), LoraConfig(rank=2)), folder / "lora")
    save_adapter(add_prompt(_again(folder), PromptTuning(length=2)), folder / "prompt")
    shutil.copytree(folder / "lora", folder / "labels")
    words = {"praise": ["good"], "blame": ["bad"]}
    Question("{text}\nLabel: {blank}", words, 64).save(folder / "labels")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    draft = LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=16, **sizes))
    Tandem(_again(folder), draft, TandemConfig(block=2)).save_pretrained(folder / "tandem")
    (folder / "folder").mkdir()
    for n in range(3):
        (folder / "folder" / f"{n}.txt").write_text(TEXT)
    (folder / "text.txt").write_text(TEXT)
    (folder / "texts.txt").write_text("a good day\nit broke\n")
    (folder / "table.csv").write_text('text,other\na good day,1\n"it, broke",2\n')
    rows = [{"prompt": f"say {n} ", "completion": f"it is {n}"} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return folder


def _again(folder):
    return NonetForCausalLM.from_pretrained(folder / "model")
