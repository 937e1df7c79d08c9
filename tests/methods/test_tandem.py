"""The architecture: training in blocks and cached drafting, held against the token by token oracle."""

import copy

import pytest
import torch
from common import assert_same
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from nonet.ecosystem import CACHE, returned_cache
from nonet.tandem import Tandem, TandemConfig, secondary_from
from nonet.tandem.cache import RollbackLayer
from nonet.tandem.loss import Head, head_loss
from nonet.tandem.reading import TandemCache, tapped
from nonet.tandem.reference import layer_states, tandem_logits
from nonet.testing import assert_within_rounding

V, T = 61, 9


def llama(layers, hidden=64, seed=0, **fields):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        **fields,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(layers, hidden=32, seed=0):
    torch.manual_seed(seed)
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 64, "vocab_size": V}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.15, bos_token_id=0, eos_token_id=0)).eval()


def exact(model):
    """A copy in float64, whose norms are computed in it too; Llama's own are not."""
    model = copy.deepcopy(model).double()
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, LlamaRMSNorm):
                double = torch.nn.RMSNorm(len(norm.weight), norm.variance_epsilon, dtype=torch.float64)
                double.weight = norm.weight
                setattr(module, name, double)
    return model


def tandem(options=None):
    return Tandem(llama(3), llama(2, hidden=32, seed=1), options)


def ids(rows=1, length=T, seed=0):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def oracle(model, tokens, block, first=0):
    weights = [projection.weight for projection in model.projections]
    return tandem_logits(
        model.primary, model.secondary, tokens, block, weights, model.projections.depths, first
    )


def same_as_oracle(actual, model, tokens, block):
    model = exact(model)
    assert_within_rounding(actual, lambda: oracle(model, tokens, block), "logits")


# The oracle itself.


def test_oracle_of_one_model_is_the_model():
    """With nothing to read, the loops compute what Transformers does."""
    model, tokens = llama(2), ids()
    with torch.no_grad():
        model = exact(model)
        states = layer_states(model, tokens[0], T)
        logits = model.lm_head(model.model.norm(states[-1]))
        expected = model(tokens).logits[0]
    assert_same(logits, expected)


def test_a_secondary_that_reads_itself_is_the_primary():
    """Copies of all layers that read the states which they would have had write what the primary does."""
    primary, tokens = llama(3), ids()
    model = Tandem(
        primary, secondary_from(primary, 3), TandemConfig(layers=(0, 1, 2), start="identity", block=3)
    )
    with torch.no_grad():
        assert_same(exact(model)(tokens).logits, exact(primary)(tokens).logits)


# Training in blocks.


@pytest.mark.parametrize("block", [1, 2, 3, 16])
def test_blocks_at_once_equal_token_by_token(block):
    model, tokens = tandem(TandemConfig(block=block)), ids()
    with torch.no_grad():
        same_as_oracle(model(tokens).logits[0], model, tokens[0], block)


def _start(shift):
    def wrong(places, real, block):
        query, key = places[:, :, None], places[:, None, :]
        start = (query + shift).clamp(min=0) // block * block
        theirs, own = key < start, (key >= start) & (key <= query)
        return torch.cat([theirs, own], dim=-1)[:, None]

    return wrong


FAULTS = {
    "the last token of a block sees itself through the primary": ("block_mask", _start(1)),
    "blocks begin a token late": ("block_mask", _start(-1)),
    "positions restart in every block": ("fill", "places"),
    "states of the token before": ("fill", "shifted"),
    "swapped projections": ("projections", None),
    "states of another layer": ("depths", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_noticed(fault, monkeypatch):
    from nonet.tandem import layer

    model, tokens = tandem(TandemConfig(block=3)), ids()
    right, fill = copy.deepcopy(model), layer.fill
    where, how = FAULTS[fault]
    if where == "block_mask":
        monkeypatch.setattr(layer, "block_mask", how)
    elif how == "places":
        monkeypatch.setattr(layer, "fill", lambda m, c, s, places: fill(m, c, s, places % 3))
    elif how == "shifted":
        monkeypatch.setattr(layer, "fill", lambda m, c, s, p: fill(m, c, [x.roll(1, 1) for x in s], p))
    elif where == "projections":
        first, second = (p.weight.detach().clone() for p in model.projections)
        model.projections[0].weight.data, model.projections[1].weight.data = second, first
    else:
        model.projections.depths = tuple(d - 1 for d in model.projections.depths)
    with torch.no_grad(), pytest.raises(AssertionError):
        same_as_oracle(model(tokens).logits[0], right, tokens[0], 3)


def test_gradients_equal_the_oracles():
    tokens = ids()

    def gradients(loss_of):
        model = exact(tandem(TandemConfig(block=2))).train()
        loss = loss_of(model)
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"loss": loss}

    actual = gradients(lambda model: model(tokens, labels=tokens).loss)
    expected = gradients(lambda model: cross_entropy(oracle(model, tokens[0], 2)[:-1], tokens[0, 1:]))
    assert len(actual) == len(expected) > 20
    for name in expected:
        assert_same(actual[name], expected[name], name)


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("reading", ["states", "keys_values"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(family, reading, side):
    model = Tandem(family(3), family(2, seed=1, hidden=32), TandemConfig(block=3, reading=reading))
    tokens, padding = ids(), torch.zeros(1, 4, dtype=torch.long)
    real = torch.ones_like(tokens)
    parts = (padding, tokens) if side == "left" else (tokens, padding)
    marks = (padding, real) if side == "left" else (real, padding)
    place = slice(4, None) if side == "left" else slice(0, T)
    with torch.no_grad():
        batch = torch.cat([torch.cat(parts, 1), ids(1, T + 4, seed=2)])
        mask = torch.cat([torch.cat(marks, 1), torch.ones(1, T + 4, dtype=torch.long)])
        model = exact(model)
        assert_same(model(batch, mask).logits[0, place], model(tokens).logits[0])


@pytest.mark.parametrize("family", [llama, gpt2])
def test_eager_attention_sees_the_same(family):
    model = Tandem(family(3), family(2, seed=1, hidden=32), TandemConfig(block=3))
    tokens = ids(2)
    with torch.no_grad():
        model = exact(model)
        expected = model(tokens).logits
        model.secondary.set_attn_implementation("eager")
        assert_same(model(tokens).logits, expected)


@pytest.mark.parametrize("reading", ["states", "keys_values"])
def test_the_future_does_not_matter(reading):
    model, tokens = tandem(TandemConfig(block=2, reading=reading)), ids()
    changed = tokens.clone()
    changed[:, 5:] = ids(seed=9)[:, 5:]
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


# Cached drafting.


@pytest.mark.parametrize("read", [1, 4, 8])
def test_cached_drafting_equals_the_oracle(read):
    """The first tokens are read and the others pass one by one, behind a draft that was rolled back."""
    model, tokens = tandem(), ids()
    with torch.no_grad(), tapped(model.primary, model.projections.depths) as found:
        model.primary(tokens)
        cache = TandemCache([RollbackLayer(4) for _ in model.projections.depths])
        picked = model.projections.pick(found, cache, 0, read)
        model.read(cache, picked, torch.arange(read)[None])
        model.secondary(ids(seed=5)[:, :3], use_cache=True, **{CACHE: cache})
        for layer in cache.layers:
            layer.length = read
        steps = [
            model.secondary(tokens[:, i : i + 1], use_cache=True, **{CACHE: cache}).logits[0]
            for i in range(read, T)
        ]
    model = exact(model)
    assert_within_rounding(torch.cat(steps), lambda: oracle(model, tokens[0], T, first=read)[read:], "logits")


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("reading", ["states", "keys_values"])
def test_cached_drafting_equals_training(family, reading):
    model = Tandem(family(3), family(2, seed=1, hidden=32), TandemConfig(block=3, reading=reading))
    tokens = ids()
    with torch.no_grad(), tapped(model.primary, model.projections.depths) as found:
        remembered = returned_cache(model.primary(tokens, use_cache=True))
        cache = TandemCache([RollbackLayer(4) for _ in model.projections.depths])
        model.read(cache, model.projections.pick(found, remembered, 0, 6), torch.arange(6)[None])
        actual = model.secondary(tokens[:, 6:], use_cache=True, **{CACHE: cache}).logits[0]
    model = exact(model)
    assert_within_rounding(actual, lambda: model(tokens).logits[0, 6:], "logits")


def test_rolling_back_is_a_number_and_buffers_grow():
    layer = RollbackLayer(3)
    whole = torch.randn(2, 1, 2, 11, 4)
    for start, end in ((0, 2), (2, 3), (3, 4), (4, 11)):
        keys, values = layer.update(whole[0, :, :, start:end], whole[1, :, :, start:end])
        assert torch.equal(torch.stack([keys, values]), whole[:, :, :, :end])
    assert layer.get_seq_length() == 11
    layer.length = 5
    keys, _ = layer.update(whole[0, :, :, 9:], whole[1, :, :, 9:])
    assert torch.equal(keys, torch.cat([whole[0, :, :, :5], whole[0, :, :, 9:]], 2))
    assert layer.get_mask_sizes(3) == (10, 0)


# The loss.


@pytest.mark.parametrize("balance", [None, 0.5, 0.2])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_in_pieces_is_the_loss(balance, bias, monkeypatch):
    monkeypatch.setattr("nonet.tandem.loss.NUMBERS", 4 * V)
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((11, 8), (V, 8), (V,))]
    known, matrix = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((11, 6), (V, 6)))
    labels = torch.randint(V, (11,), generator=generator)

    def both(function):
        x, w, b = (t.clone().requires_grad_() for t in raw)
        teacher = None if balance is None else Head(known, matrix, None)
        loss = function(Head(x, w, b if bias else None), teacher)
        (3 * loss).backward()
        return [loss.detach(), x.grad, w.grad, *([b.grad] if bias else [])]

    def plain(head, teacher):
        logits = torch.nn.functional.linear(*head)
        loss = cross_entropy(logits, labels)
        if teacher is None:
            return loss
        target = torch.softmax(teacher.hidden @ teacher.weight.mT, -1)
        return balance * loss + (1 - balance) * cross_entropy(logits, target)

    def pieces(head, teacher):
        return head_loss(head, labels, teacher, balance or 1.0)

    runs = both(pieces), both(plain)
    for name, actual, expected in zip(("loss", "x", "weight", "bias"), *runs, strict=False):
        assert_same(actual, expected, name)


def test_labels_are_shifted_and_masked():
    model, tokens = tandem(), ids(2)
    labels = tokens.clone()
    labels[0, :6] = -100
    with torch.no_grad():
        model = exact(model)
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        assert_same(model(tokens, labels=labels).loss, cross_entropy(logits, labels[:, 1:].flatten()))


def test_distillation_pulls_towards_the_primary():
    model, tokens = exact(tandem()), ids(2)
    with torch.no_grad():
        ours, theirs = model(tokens).logits[:, :-1], model.primary(tokens).logits[:, :-1]
        hard = model(tokens, labels=tokens).loss
        model.options = TandemConfig(loss="distil", balance=0.25)
        both = model(tokens, labels=tokens).loss
        soft = -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1).mean()
    assert_same(both, 0.25 * hard + 0.75 * soft)
