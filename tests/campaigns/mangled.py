"""Ways to spoil a file or a folder, as accidents and enemies do."""

import json
import os
import pickle
from pathlib import Path

ESCAPE = "\x1b[31m\x1b]0;owned\x07[red]a[/y]\u202e"
JUNK = (
    None,
    True,
    -1,
    0,
    1,
    2.5,
    10**7,
    10**30,
    1e400,
    "",
    "x",
    ESCAPE,
    [],
    ["x"],
    {},
    {"a": 1},
    [[[]]],
    "../../etc/passwd",
)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return (os.system, (f"echo >'{self.proof}'",))


def mangle(place, random, proof):
    """Spoils one file at or below ``place``; returns in words what was done."""
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    file = random.choice(files)
    ways = [
        *WAYS,
        *(JSON_WAYS * 3 if file.suffix == ".json" else ()),
        *(ROW_WAYS * 2 if file.suffix in ROWS else ()),
    ]
    if file.suffix == ".safetensors":
        ways += HEADER_WAYS * 3
    if place.is_dir():
        ways += FOLDER_WAYS
    way = random.choice(ways)
    done = way(file, random, proof)
    return f"{file.name}: {way.__name__.replace('_', ' ')}{f', {done}' if done else ''}"


def emptied(file, random, proof):
    file.write_bytes(b"")


def cut(file, random, proof):
    data = file.read_bytes()
    file.write_bytes(data[: random.randrange(max(1, len(data)))])


def bytes_flipped(file, random, proof):
    data = bytearray(file.read_bytes())
    for _ in range(random.choice((1, 3, 20))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)


def start_flipped(file, random, proof):
    data = bytearray(file.read_bytes())
    for place in random.sample(range(min(12, len(data))), min(3, len(data))):
        data[place] = random.randrange(256)
    file.write_bytes(data)


def noise(file, random, proof):
    file.write_bytes(random.randbytes(random.choice((1, 100, 5000))))


def a_pickle(file, random, proof):
    file.write_bytes(pickle.dumps(Payload(proof)))


def gone(file, random, proof):
    file.unlink()


def a_folder(file, random, proof):
    file.unlink()
    file.mkdir()


def a_dangling_link(file, random, proof):
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


def a_link_to_itself(file, random, proof):
    file.unlink()
    file.symlink_to(file)


def unreadable_text(file, random, proof):
    file.write_text(ESCAPE * 3)


WAYS = [emptied, cut, cut, bytes_flipped, start_flipped, noise, a_pickle, gone, a_folder, a_dangling_link]
WAYS += [a_link_to_itself, unreadable_text]


def _nodes(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _nodes(inner, (*path, key))


def _changed(value, path, change):
    if not path:
        return change(value)
    inner = _changed(value[path[0]], path[1:], change)
    return (
        {**value, path[0]: inner}
        if isinstance(value, dict)
        else [*value[: path[0]], inner, *value[path[0] + 1 :]]
    )


def another_value(file, random, proof):
    found = json.loads(file.read_bytes())
    path, junk = random.choice([*_nodes(found)][:60]), random.choice(JUNK)
    file.write_text(json.dumps(_changed(found, path, lambda _: junk)))
    return f"{'.'.join(map(str, path))} = {junk!r}"


def a_field_less(file, random, proof):
    found = json.loads(file.read_bytes())
    if isinstance(found, dict) and found:
        key = random.choice([*found])
        del found[key]
        file.write_text(json.dumps(found))
        return key
    return None


def a_field_more(file, random, proof):
    found = json.loads(file.read_bytes())
    if isinstance(found, dict):
        key = random.choice((ESCAPE, "auto_map", "x", "quantization_config", "_name_or_path", "text_config"))
        junk = random.choice((*JUNK, {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}))
        file.write_text(json.dumps({**found, key: junk}))
        (file.parent / "code.py").write_text(f"open({str(proof)!r}, 'w')\nclass C: pass\nM = C\n")
        return f"{key} = {junk!r}"
    return None


def deep(file, random, proof):
    file.write_text("[" * 200_000)


def twice(file, random, proof):
    file.write_text(file.read_text() * 2)


def a_surrogate(file, random, proof):
    found = json.loads(file.read_bytes())
    path = random.choice([*_nodes(found)][:60])
    file.write_text(json.dumps(_changed(found, path, lambda _: "\ud800")))
    return ".".join(map(str, path))


JSON_WAYS = [
    another_value,
    another_value,
    another_value,
    a_field_less,
    a_field_more,
    deep,
    twice,
    a_surrogate,
]


def a_wide_row(file, random, proof):
    lines = file.read_text().splitlines()
    lines[random.randrange(len(lines))] = random.choice(
        (
            '{"text": "' + "x" * 300_000 + '"}',
            "a,b,c,d,e,f",
            '{"' + "k" * 100_000 + '": 1}',
            "[" * 100_000,
            '"',
            "\x00",
            "\ud7ff",
        )
    )
    file.write_text("\n".join(lines))


def another_field(file, random, proof):
    file.write_text(
        file.read_text().replace(
            "prompt", ESCAPE.replace("\x1b", "\\u001b").replace("\x07", "\\u0007"), random.choice((1, -1))
        )
    )


def a_value_of_another_type(file, random, proof):
    file.write_text(file.read_text().replace('"it is', random.choice(('["it", "is', '17, "', '"\\ud800'))))


ROWS = (".jsonl", ".csv", ".json", ".txt")
ROW_WAYS = [a_wide_row, another_field, a_value_of_another_type]


def _header(file, change):
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def another_name(file, random, proof):
    def change(header):
        name = random.choice([n for n in header if n != "__metadata__"])
        header[random.choice((ESCAPE, "x", f"{name}.x", name.upper()))] = header.pop(name)
        return header

    _header(file, change)


def another_shape(file, random, proof):
    def change(header):
        name = random.choice([n for n in header if n != "__metadata__"])
        shape = header[name]["shape"]
        header[name]["shape"] = random.choice((shape[::-1], [*shape, 1], [10**9, 10**9], [-1], [], "x"))
        return header

    _header(file, change)


def another_dtype(file, random, proof):
    def change(header):
        name = random.choice([n for n in header if n != "__metadata__"])
        header[name]["dtype"] = random.choice(("F16", "I64", "BOOL", "F8_E4M3", "X", 3))
        return header

    _header(file, change)


def a_huge_header(file, random, proof):
    data = file.read_bytes()
    file.write_bytes((2 ** random.choice((31, 40, 63))).to_bytes(8, "little") + data[8:])


def no_numbers(file, random, proof):
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:size] + b"\xff" * (len(data) - size))


HEADER_WAYS = [another_name, another_shape, another_dtype, a_huge_header, no_numbers]


def an_index_to_a_pickle(file, random, proof):
    home = file.parent
    outside = random.choice(("weights.bin", "../outside.bin", str(home.parent / "outside.bin"), "weights.pt"))
    target = Path(home, outside)
    target.write_bytes(pickle.dumps(Payload(proof)))
    names = {"model.embed_tokens.weight": outside, "lm_head.weight": outside}
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if random.random() < 0.5 and (home / "model.safetensors").exists():
        (home / "model.safetensors").rename(home / "decoy.safetensors")
    return outside


def a_pickle_beside(file, random, proof):
    name = random.choice(("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "tokenizer.pkl"))
    (file.parent / name).write_bytes(pickle.dumps(Payload(proof)))
    return name


def a_link_outside(file, random, proof):
    outside = file.parent.parent / f"outside{file.suffix}"
    file.rename(outside)
    file.symlink_to(outside)


def a_strange_name(file, random, proof):
    name = random.choice(
        (b"\xff\xfe.txt", b"\x1b[31m.txt", b"a\nb.txt", b"[red].txt", b"a[b]c.json", b"x" * 250)
    )
    Path(file.parent, os.fsdecode(name)).write_text("some text\n" * 5)


FOLDER_WAYS = [an_index_to_a_pickle, a_pickle_beside, a_link_outside, a_strange_name]
