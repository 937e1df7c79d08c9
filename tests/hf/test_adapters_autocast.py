"""Adapters, prompts and drafts of Transformers models under autocast."""

import copy

import pytest
import torch
from families import make, tokens

from nonet.lora import LoraConfig, add_lora, select_lora
from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt
from nonet.tandem import Tandem, secondary_from, speculative_generate

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ADAPTERS = {
    "lora": LoraConfig(rank=2),
    "dora": LoraConfig(rank=2, variants=("dora",)),
    "pissa, dropout": LoraConfig(rank=2, variants=("pissa",), dropout=0.1),
    "prompt": PromptTuning(3, start="random"),
    "p-tuning": PTuning(3, hidden=8),
    "lstm": PTuning(3, encoder="lstm", hidden=8),
    "prefix": PrefixTuning(3, start="random"),
    "prefix mlp": PrefixTuning(3, hidden=8),
}


@every_dtype
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_learn(config, family, dtype):
    model, ids = make(family), tokens()
    (add_lora if isinstance(config, LoraConfig) else add_prompt)(model, config)
    with torch.autocast("cpu", dtype):
        loss = model.train()(ids, labels=ids).loss
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() for p in trained)
    assert any(p.grad.abs().max() > 0 for p in trained)


@every_dtype
def test_rows_with_adapters_of_their_own(dtype):
    model, ids = make("llama"), tokens().expand(3, -1)
    for name in ("one", "two"):
        add_lora(model, LoraConfig(rank=2), name)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        for p in model.parameters():
            p.add_(0.01)
        with select_lora(model, ("one", "two", None)):
            rows = model(ids).logits
        for row, name in enumerate(("one", "two", None)):
            with select_lora(model, name):
                alone = model(ids).logits[row]
            assert (rows[row] - alone).norm() <= 16 * torch.finfo(dtype).eps * alone.norm()


@every_dtype
def test_drafts(dtype):
    primary, ids = make("llama"), tokens()
    with torch.autocast("cpu", dtype):
        out = speculative_generate(primary, copy.deepcopy(primary), ids, max_new_tokens=4, pad_token_id=0)
        tandem = Tandem(primary, secondary_from(primary, 1))
        loss = tandem(ids, labels=ids).loss
        assert out.shape == tandem.generate(ids, max_new_tokens=4, pad_token_id=0).shape
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in tandem.projections.parameters())
