"""Models that nonet has changed are copied, pickled, kept by torch.save and sent to another process."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from lora_models import MODELS, llama, several, tokens, train
from pet_toys import bert, word_tokenizer
from test_tandem import tandem
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

import nonet
from nonet.derived import Derived
from nonet.lora import LoraConfig, add_lora, merge_lora, remove_lora, select_lora
from nonet.prompt import (
    PET,
    Pattern,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Verbalizer,
    add_prompt,
    remove_prompt,
)
from nonet.tandem import TandemConfig, stream_weights

ALL = {"variants": ("dora", "pissa"), "bias": "all"}


def adapted(kind, **options):
    return train(add_lora(MODELS[kind](), LoraConfig(rank=2, **options)))


def rows():
    model = several()
    return select_lora(model, ["one", "two"]).model


def mamba(config, model):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
    return nonet.accelerate(model(config(**sizes)).eval())


def own(pattern, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    layers = len(pattern)
    config = nonet.NonetConfig(**sizes, pattern=pattern, num_hidden_layers=layers, **options)
    return nonet.NonetForCausalLM(config).eval()


CASES = {
    **{f"LoRA on {kind}": lambda kind=kind: adapted(kind) for kind in MODELS},
    "DoRA and PiSSA": lambda: adapted("tied llama", targets=("embed_tokens", "q_proj"), **ALL),
    "a module in full": lambda: adapted("tied llama", full=("lm_head",)),
    "merged": lambda: merge_lora(adapted("tied llama", targets=("embed_tokens", "up_proj"))),
    "rows": rows,
    "LoRA on a ternary model": lambda: train(add_lora(own("GF", linear="ternary"), LoraConfig(rank=2))),
    "prompt": lambda: add_prompt(llama(), PromptTuning(length=3)),
    "P-tuning": lambda: add_prompt(llama(), PTuning(length=3, encoder="lstm")),
    "prefix": lambda: add_prompt(llama(), PrefixTuning(length=3, hidden=8)),
    "prompt and LoRA": lambda: train(add_lora(add_prompt(llama(), PromptTuning(length=3)))),
    "Mamba": lambda: mamba(MambaConfig, MambaForCausalLM),
    "FalconMamba": lambda: mamba(FalconMambaConfig, FalconMambaForCausalLM),
    "LoRA on Mamba": lambda: train(add_lora(mamba(MambaConfig, MambaForCausalLM), LoraConfig(rank=2))),
    "tandem": tandem,
    "tandem of keys": lambda: tandem(TandemConfig(reading="keys_values")),
    "streamed": lambda: stream_weights(llama()),
    "our own": lambda: own("RLM", residual="reversible", position="alibi"),
}
every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@torch.no_grad()
def outputs(model):
    """What a model computes and what it generates."""
    ids = tokens(2, 8)
    written = model.generate(ids[:1], max_new_tokens=3, do_sample=False) if model_writes(model) else ids
    return model(input_ids=ids).logits, written


def model_writes(model):
    """A batch whose rows are named has as many of them, and a masked model writes nothing."""
    selected = getattr(getattr(model, "nonet_lora", None), "selected", None)
    return not isinstance(selected, tuple) and not hasattr(model, "bert")


def all_outputs(models):
    return [outputs(model) for model in models]


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "protocol 0": lambda model: pickle.loads(pickle.dumps(model, protocol=0)),
    "torch": by_torch,
}


@every_case
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_twin_is_the_same_and_apart(make, way):
    model = make()
    expected, twin = outputs(model), way(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert list(twin.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, outputs(twin), expected))
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in model.parameters())
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(map(torch.equal, outputs(model), expected))


class Rebuilt(torch.nn.Linear):
    """A layer of someone's own that says itself how it is pickled."""

    def __reduce__(self):
        return Rebuilt, (self.in_features, self.out_features)


def test_a_class_with_a_way_of_its_own_keeps_it():
    model = add_lora(torch.nn.Sequential(Rebuilt(3, 2)), LoraConfig(rank=1, targets=("0",)))
    assert isinstance(model[0], Derived)
    twin = pickle.loads(pickle.dumps(model[0]))
    assert type(twin) is Rebuilt
    assert (twin.in_features, twin.out_features) == (3, 2)


@pytest.mark.parametrize("way", ["copy", "pickle", "torch"])
def test_a_twin_of_a_pet_scores_the_same(way):
    words, tokenizer = Verbalizer({"up": ["good"], "down": ["bad"]}), word_tokenizer()
    pet = PET(bert(len(tokenizer)), tokenizer, Pattern("{text} {blank}"), words, max_length=40)
    twin, texts = WAYS[way](pet), ["rain", "the cat sleeps"]
    assert torch.equal(twin.scores(texts), pet.scores(texts))


def test_what_was_added_can_be_taken_out_of_a_twin():
    bare, gold = llama(), outputs(llama())
    for add, remove in (
        (add_lora, remove_lora),
        (lambda model: add_prompt(model, PromptTuning(length=3)), remove_prompt),
        (lambda model: add_prompt(model, PrefixTuning(length=3)), remove_prompt),
    ):
        twin = remove(pickle.loads(pickle.dumps(add(llama()))))
        assert all(map(torch.equal, outputs(twin), gold))
        assert vars(twin).keys() == vars(bare).keys()
        assert [type(m) for m in twin.modules()] == [type(m) for m in bare.modules()]


def test_a_process_that_made_none_of_the_classes_gets_them():
    models = [make() for make in CASES.values()]
    classes = {type(module) for model in models for module in model.modules()}
    assert {c.__name__ for c in classes if issubclass(c, Derived)} >= {"LoraLinear", "LlamaDecoderLayer"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(all_outputs, (models,))
    for name, one, other in zip(CASES, found, all_outputs(models), strict=True):
        assert all(map(torch.equal, one, other)), name
