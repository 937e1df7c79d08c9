"""Tiny runs of every command that writes, each in a forked child and in a folder of its own.

Torch and Transformers are imported once, and a child takes well under a second.
"""

import atexit
import functools
import json
import mmap
import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a device does not survive a fork

import deaths
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nonet.compare import report
from nonet.compare import run as comparison
from nonet.compare.plan import Plan, Work, cells, choose
from nonet.data import byte_tokenizer
from nonet.training import Recipe, fit, pairing, train_model
from nonet.training.checkpoint import Keeper, read_about
from nonet.training.finetune import Tuning
from nonet.training.pairing import Pairing, train_tandem
from nonet.training.teaching import finetune_model

torch.set_num_threads(1)  # nor do threads

STEPS = 3
OUT = Path("disk", "out")  # relative to the folder of a run, as is all that it uses
SIZES = {"steps": STEPS, "window": 16, "batch": 1, "learning_rate": 1e-2, "seed": 3}
KINDS = ("train", "full", "lora", "tandem", "compare")


class WrongError(Exception):
    """A run lost something, left something behind, or did not say what happened."""


@dataclass
class Shared:
    """What a child tells its parent, even where it dies: some numbers in memory that both see."""

    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 64))

    def __getitem__(self, place):
        return int.from_bytes(self.memory[8 * place : 8 * place + 8], "little")

    def __setitem__(self, place, value):
        self.memory[8 * place : 8 * place + 8] = value.to_bytes(8, "little")


POINTS, DONE = 0, 1  # places in it: operations on files, and steps or rows that are done


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, what it said at last, and how far it came."""

    status: int
    said: str
    points: int
    done: int


def train(resume):
    fields = {"pattern": "F", "position": "rope", "linear": "dense", "residual": "standard", "size": "tiny"}
    fields |= {"window": 16, "batch": 1, "tokens": STEPS * 16, "learning_rate": None, "seed": 0}
    return train_model(
        Recipe(source="text.txt", tokenizer="bytes", **fields), OUT, resume=resume, as_json=False
    )


def tune(method, resume):
    tuning = Tuning(model="model", source="text.txt", method=method, **SIZES)
    return finetune_model(tuning, OUT, resume=resume, as_json=False)


def tandem(resume):
    pairing._PROMPTS, pairing._NEW, pairing._SCORED = 1, 2, 1
    return train_tandem(
        Pairing(model="model", source="text.txt", layers=1, **SIZES), OUT, resume=resume, as_json=False
    )


def compare(resume):
    """A comparison whose cells are taken as done, as ``nonet compare`` begins or continues it."""
    plan = _plan()
    if resume:
        plan = comparison.opened(OUT)
    else:
        comparison.begin(plan, OUT)
    comparison.run(plan, OUT, lambda *_: None)
    report.write_report(OUT)
    return 0


COMMANDS = {
    "train": train,
    "full": functools.partial(tune, "full"),
    "lora": functools.partial(tune, "lora"),
    "tandem": tandem,
    "compare": compare,
}


def command(kind):
    """Gives a command again and again as a user does, with --resume where its last run says so."""
    try:
        return COMMANDS[kind](False)
    except ValueError as error:
        if "--resume" in str(error):
            return COMMANDS[kind](True)
        if "is not empty" in str(error) and (OUT / "README.md").exists():  # it was done
            return 0
        raise


def run(kind, place, *, death=deaths.NEVER, half=False, after_step=lambda step: None):
    """Runs a command in a child.

    Args:
        kind: one of KINDS.
        place: the folder of the run.
        death: the operation on a file at which the child ends.
        half: whether it then writes half of what it was to.
        after_step: is called in the child first with 0, and after every step, or row, before any of it is
            written.
    """
    shared = Shared()
    sys.stdout.flush()
    sys.stderr.flush()
    hearing, speaking = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(speaking, 1)
        os.dup2(speaking, 2)
        _child(kind, place, shared, death, half, after_step)
    os.close(speaking)
    with os.fdopen(hearing, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), said, shared[POINTS], shared[DONE])


def _child(kind, place, shared, death, half, after_step):
    status = 70
    try:
        os.chdir(place)
        os.environ.update(NONET_CACHE="disk/cache", TMPDIR=str(place / "tmp"))
        tempfile.tempdir = None
        fit.SECONDS_BETWEEN_CHECKPOINTS = 0.0
        _watch_steps(shared, after_step)
        after_step(0)
        deaths.watch(lambda number: shared.__setitem__(POINTS, number), death, half)
        status = command(kind)
    except OSError as error:  # as the program makes one line of it
        sys.stderr.write(f"nonet: {error}\n")
        status = 1
    except BaseException:  # noqa: BLE001  (the parent is told, and the process ends)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _watch_steps(shared, after_step):
    """Notes every step, and every row of a comparison, whose cells are not run."""
    saving = Keeper.on_step_end

    def done(step):
        shared[DONE] = step
        after_step(step)

    def on_step_end(keeper, args, state, control, **kwargs):
        done(keeper.first_step + state.global_step)
        saving(keeper, args, state, control, **kwargs)

    def run_in_process(cell, progress):
        done(cell.seed + 1)
        return {"format": 1, "cell": cell.to_json(), "state": "done", "error": None}

    Keeper.on_step_end = on_step_end
    comparison.run_in_process = run_in_process
    report.render = lambda plan, rows: "".join(json.dumps(row) for row in rows)


def kept(place, kind):
    """Returns how many steps, or rows, a run has on disk; all of them where it is finished."""
    out = place / OUT
    if kind == "compare":
        return len(comparison.read_rows(out / comparison.ROWS))
    about = read_about(out)
    if about is not None:
        return about["step"]
    return STEPS if (out / "README.md").exists() else 0


@functools.cache
def _source():
    """A folder with a model and a text, which every run gets a copy of."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    place = Path(folder, "run")
    place.mkdir()
    torch.manual_seed(0)
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=64, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    (place / "text.txt").write_text("".join(f"line {i} of a text\n" for i in range(200)))
    for name in ("disk", "tmp"):
        (place / name).mkdir()
    return folder


def fresh(folder):
    """Returns a new folder for a run."""
    place = Path(folder, "run")
    shutil.copytree(Path(_source(), "run"), place)
    return place


@functools.cache
def undisturbed(kind):
    """Returns how a run ended that nothing happened to, and the files that it made."""
    with tempfile.TemporaryDirectory() as folder:
        place = fresh(folder)
        ended = run(kind, place)
        if ended.status:
            raise WrongError(f"{kind}, undisturbed: {ended.said}")
        return ended, made(place)


def made(place):
    """Returns the files and folders that a run made; of a model card, which holds seconds, only the name."""
    found = {}
    for path in sorted(place.rglob("*")):
        read = path.is_file() and path.name != "README.md"
        found[str(path.relative_to(place))] = path.read_bytes() if read else None
    return found


def hold_finished(kind, place, ended, what):
    """Raises WrongError unless a run has ended as the undisturbed one, to the bit, with nothing beside."""
    _, expected = undisturbed(kind)
    found = made(place)
    if ended.status:
        raise WrongError(f"{what}: then it ended with {ended.status}: {ended.said}")
    if found != expected:
        names = {
            name for name in found.keys() | expected.keys() if found.get(name, 0) != expected.get(name, 0)
        }
        extra, lost = found.keys() - expected.keys(), expected.keys() - found.keys()
        raise WrongError(
            f"{what}: left over {sorted(extra)}, lost {sorted(lost)}, other {sorted(names)}: {ended.said}"
        )


@functools.cache
def _plan():
    """Three cells, each of which stands for a seed."""
    places = {"window": 32, "tokens": 64, "batch": 4, "evaluations": 2, "validation_windows": 4, "places": 0}
    places |= {"lengths": (), "contexts": (8,), "tasks": (), "task_length": 32, "task_steps": 2, "repeats": 1}
    places |= {"blocks": (), "texts": 0, "new": 0, "threads": 1, "device": "cpu", "layers": 0, "size": "tiny"}
    work = Work(
        source="text.txt", tokenizer="bytes", fingerprint="0" * 32, vocab_size=257, model="", **places
    )
    [cell, *_] = cells(choose(("linear",), None), work, (0,))
    every = tuple(replace(cell, seed=seed) for seed in range(STEPS))
    corpus = {"name": "text", "source": "text.txt"}
    return Plan(
        "nonet compare", "now", corpus, ("linear",), (0,), work, every, {}, {"seconds": 1.0, "bytes": 1.0}
    )
