"""A sample of the broken files; ``make campaign`` makes them all."""

import json
from collections import Counter

import files
import mangled
import pytest
from judged import WrongError


def test_broken_files_are_refused_or_make_no_difference():
    counts = Counter(files.attempt(1, number) for number in range(60))
    assert set(counts) == {"served", "refused"}
    assert min(counts.values()) > 10


def test_code_that_runs_is_noticed(monkeypatch):
    def spoil(place, random, proof):
        proof.touch()
        return "a fault that is planted"

    monkeypatch.setattr(files, "mangle", spoil)
    with pytest.raises(WrongError, match="code of the file ran"):
        files.attempt(1, 0)


@pytest.mark.parametrize(
    "outside", ["weights.bin", "../outside.bin", "../outside.safetensors", "sub/x.safetensors"]
)
@pytest.mark.parametrize("kind", ["model", "tandem"])
def test_an_index_never_leads_elsewhere(kind, outside, tmp_path):
    copy = tmp_path / kind
    files.shutil.copytree(files.made() / kind, copy)
    home = copy if kind == "model" else copy / "secondary"
    proof = tmp_path / "proof"
    target = home / outside
    target.parent.mkdir(exist_ok=True)
    mangled.a_pickle(target, None, proof)
    names = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": outside}}
    (home / "model.safetensors.index.json").write_text(json.dumps(names))
    status, said, _, error = files.run(kind, copy, tmp_path / "out")
    assert (status, error) == (1, "")
    assert f"{home / 'model.safetensors.index.json'} names {outside}" in said
    assert not proof.exists()


def test_remote_code_is_refused_by_name(tmp_path):
    copy = tmp_path / "model"
    files.shutil.copytree(files.made() / "model", copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    status, said, _, error = files.run("model", copy, tmp_path / "out")
    assert (status, error) == (1, "")
    assert f"{copy / 'config.json'} asks to run code of its own (auto_map) for a model of type 'own'" in said
    assert not (tmp_path / "proof").exists()
