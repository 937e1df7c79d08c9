from nonet.compare.plan import Work
from nonet.data import byte_tokenizer, encode_corpus, load_corpus


def make_work(source=None, **changes):
    """A comparison that takes a second or two a cell."""
    fields = {
        "source": source,
        "tokenizer": "bytes",
        "fingerprint": "0" * 32 if source is None else encode_corpus(load_corpus(source)).folder.name,
        "vocab_size": 257,
        "size": "tiny",
        "model": "",
        "layers": 0,
        "window": 32,
        "tokens": 32 * 4 * 6,
        "batch": 4,
        "evaluations": 2,
        "validation_windows": 4,
        "lengths": (16, 64),
        "contexts": (8, 48),
        "places": 128,
        "tasks": ("associative_recall", "selective_copying", "induction_heads", "duplication"),
        "task_length": 32,
        "task_steps": 2,
        "blocks": (),
        "texts": 0,
        "new": 0,
        "repeats": 2,
        "threads": 1,
        "device": "cpu",
    }
    return Work(**{**fields, **changes})


def write_text(path, lines=800):
    path.write_text("".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(lines)))
    return str(path)


def make_work_around(model, source, **changes):
    """The same around a pretrained model, a directory."""
    fields = {
        "size": "",
        "model": str(model),
        "layers": 1,
        "fingerprint": encode_corpus(load_corpus(source), byte_tokenizer()).folder.name,
        "lengths": (),
        "contexts": (8,),
        "places": 0,
        "tasks": (),
        "blocks": (2, 4),
        "texts": 2,
        "new": 8,
    }
    return make_work(source, **{**fields, **changes})
