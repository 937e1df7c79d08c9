import itertools

import pytest
import torch
from common import assert_same, normal
from torch import nn

from nonet.linformer import (
    LinformerConfig,
    LinformerMixer,
    LinformerSelfAttention,
    block_linformer_attention,
    linformer_attention,
    summarise,
)
from nonet.linformer.config import SHARING
from nonet.model import NonetConfig, NonetForCausalLM, NonetForSequenceClassification
from nonet.model.cache import StateLayer
from nonet.position import AlibiConfig, AlibiPosition, DynamicNTK, RotaryConfig, RotaryPosition
from nonet.slots import Context, Dims

IMPLS = ("torch", "reference")
BLOCK = 4
DIMS = Dims(hidden=32, heads=4, kv_heads=2, head_dim=8, layers=12, max_length=24)
POSITIONS = {
    "none": None,
    "rope": RotaryPosition(DIMS, RotaryConfig()),
    "rope of the whole": RotaryPosition(DIMS, RotaryConfig(scaling=DynamicNTK(2.0, 8))),
    "alibi": AlibiPosition(DIMS, AlibiConfig()),
}


def context_of(position, past, new, starts=None, ends=None, shared=None):
    place = POSITIONS[position]
    places = torch.arange(past, past + new)[None]
    places = places if starts is None else (places - starts[:, None]).clamp(min=0)
    return Context(
        places=places,
        past=past,
        starts=starts,
        ends=ends,
        rotation=place.rotation(past + new) if place else None,
        slopes=place.slopes(past + new) if place else None,
        shared=shared,
    )


def mixer(dims=DIMS, **options):
    """A mixer in float64, with weights of a useful size."""
    torch.manual_seed(1)
    options = LinformerConfig(**{"block_size": BLOCK, "slots": 2, **options})
    return LinformerMixer(dims, options, 0, nn.Linear).double()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("chunks", [[1] * 14, [3, 1, 4, 1, 5], [6, 8], [13, 1], [4, 4, 6]], ids=str)
def test_chunks_of_any_size_make_the_whole(impl, position, chunks):
    layer = mixer(impl=impl)
    starts = torch.tensor([0, 5, 7, 2])
    x, length = normal(4, 14, 32).double(), 14
    with torch.no_grad():
        whole = layer(x, context_of(position, 0, length, starts))
        state, outs = StateLayer(), []
        for new in chunks:
            outs.append(
                layer(
                    x[:, state.seen : state.seen + new], context_of(position, state.seen, new, starts), state
                )
            )
            state.advance(new)
    # Angles that depend on the whole length differ while the text is shorter.
    checked = chunks[-1] if position == "rope of the whole" else length
    out = torch.cat(outs, 1)
    for b, start in enumerate(starts.tolist()):
        tail = slice(max(start, length - checked), None)
        assert_same(out[b, tail], whole[b, tail], f"row {b}")


@pytest.mark.parametrize(
    ("causal", "position"),
    [(True, "none"), (True, "rope"), (True, "alibi"), (False, "none"), (False, "rope")],
)
def test_padding_changes_nothing(causal, position):
    layer = mixer(Dims(**{**DIMS.__dict__, "causal": causal}))
    x = normal(3, 11, 32).double()
    starts, ends = torch.tensor([3, 0, 1]), torch.tensor([11, 8, 9])
    padded = layer(x, context_of(position, 0, 11, starts, ends))
    for b, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        alone = layer(x[b : b + 1, start:end], context_of(position, 0, end - start))
        assert_same(padded[b : b + 1, start:end], alone, f"row {b}")


def test_the_state_ignores_padding_on_the_right():
    layer = mixer()
    x = normal(2, 12, 32).double()
    with torch.no_grad():
        state = StateLayer()
        layer(x[:, :8], context_of("rope", 0, 8, ends=torch.tensor([6, 8])), state)
        out = layer(x[:, 8:], context_of("rope", 8, 4), state)[:1]
        real = torch.cat([x[:1, :6], x[:1, 8:]], 1)
        whole = layer(real, context_of("rope", 0, 10))
    assert_same(out, whole[:, 6:])


def test_the_state_grows_by_the_slots_of_a_block():
    layer = mixer()
    state, sizes = StateLayer(), []
    with torch.no_grad():
        for token in normal(13, 1, 1, 32).double():
            layer(token, context_of("rope", state.seen, 1), state)
            state.advance(1)
            sizes.append(sum(t.numel() for t in state.tensors.values()))
    slots = 2 * DIMS.kv_heads * 2 * DIMS.head_dim  # keys and values of K = 2 slots
    assert [b - a for a, b in itertools.pairwise(sizes)] == [
        slots if seen % BLOCK == 0 else 0 for seen in range(2, 14)
    ]


def matrices(sharing, dims):
    """The number of (K, L) matrices that a model of 12 layers learns."""
    options = LinformerConfig(slots=4, sharing=sharing)
    layers = [LinformerMixer(dims, options, i, nn.Linear) for i in range(12)]
    modules = [layer.projections for layer in layers] + [
        LinformerMixer.build_shared(dims, options, nn.Linear)
    ]
    numbers = sum(p.numel() for m in modules if m is not None for p in m.parameters())
    return numbers / (4 * (32 if dims.causal else dims.max_length))


def test_slots_turn_at_the_middle_of_their_block():
    layer = mixer()
    x, length = normal(1, 14, 32).double(), 14
    turn = POSITIONS["rope"].rotation(length)

    q, k, v = (
        proj(x).unflatten(-1, (-1, 8)).transpose(1, 2) for proj in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    e, f = layer.projections()
    places, middles = torch.arange(length)[None], torch.tensor([[2, 2, 6, 6, 10, 10]])
    slot_k = turn(summarise(k, e, BLOCK).flatten(2, 3), middles).unflatten(2, (3, 2))
    slot_v = summarise(v, f, BLOCK)
    out = block_linformer_attention(
        turn(q, places), turn(k, places), v, slot_k, slot_v, block_size=BLOCK, impl="reference"
    )
    by_hand = layer.o_proj(out.transpose(1, 2).flatten(-2))
    assert_same(layer(x, context_of("rope", 0, length)), by_hand)


@pytest.mark.parametrize("causal", [True, False], ids=["language model", "encoder"])
@pytest.mark.parametrize(
    ("sharing", "expected"), [("none", 24 * 12), ("headwise", 24), ("key-value", 12), ("layerwise", 1)]
)
def test_sharing_learns_as_many_matrices_as_the_paper_counts(sharing, expected, causal):
    """Section 4 counts them for 12 layers of 12 heads."""
    dims = Dims(hidden=96, heads=12, kv_heads=12, head_dim=8, layers=12, max_length=64, causal=causal)
    assert matrices(sharing, dims) == expected


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("causal", [True, False], ids=["language model", "encoder"])
def test_every_way_of_sharing_trains(sharing, causal):
    config = NonetConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=16,
        pattern="L",
        options={"linformer": {"sharing": sharing, "block_size": BLOCK}},
        is_causal=causal,
    )
    model = (NonetForCausalLM if causal else NonetForSequenceClassification)(config)
    tokens = torch.randint(16, (4, 16))
    labels = tokens if causal else tokens[:, 5] % 2
    matrices = [p for n, p in model.named_parameters() if n.endswith((".e", ".f"))]
    first = [p.detach().clone() for p in matrices]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert matrices
    assert all(not torch.equal(p, f) for p, f in zip(matrices, first, strict=True))


def test_a_model_generates_the_same_with_and_without_a_cache():
    config = NonetConfig(
        vocab_size=32,
        hidden_size=32,
        num_key_value_heads=2,
        num_hidden_layers=2,
        pattern="L",
        options={"linformer": {"sharing": "layerwise", "block_size": BLOCK}},
        initializer_range=0.5,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = NonetForCausalLM(config).eval()
    tokens = torch.randint(1, 32, (2, 7))
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    for search in ({}, {"num_beams": 3}):
        told = [
            model.generate(
                tokens, attention_mask=mask, max_new_tokens=9, do_sample=False, use_cache=use_cache, **search
            )
            for use_cache in (True, False)
        ]
        assert torch.equal(*told)


def test_first_values_give_slots_the_size_of_tokens():
    torch.manual_seed(0)
    layer = LinformerSelfAttention(32, 4, length=256, k=64)
    for matrix in layer.mixer.projections():
        slots = matrix @ normal(256, 512)
        assert abs(slots.var().item() * (256 + 64) / 256 - 1) < 0.05


# The layer on its own.


@pytest.mark.parametrize("sharing", SHARING)
def test_the_layer_alone_ignores_padding(sharing):
    layer = LinformerSelfAttention(32, 4, length=12, k=3, sharing=sharing).double()
    x = normal(2, 10, 32).double()
    out = layer(x, lengths=torch.tensor([10, 6]))
    assert_same(out[:1], layer(x[:1]), "the whole row")
    assert_same(out[1:, :6], layer(x[1:, :6]), "the padded row")


def test_layers_alone_can_share_one_matrix():
    first = LinformerSelfAttention(32, 4, length=12, k=3, sharing="layerwise")
    second = LinformerSelfAttention(32, 4, length=12, k=3, sharing="layerwise", shared=first.shared)
    one = [p for n, p in nn.ModuleList([first, second]).named_parameters() if n.endswith((".e", ".f"))]
    assert [p.shape for p in one] == [(3, 12)]


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"e": normal(3, 8), "f": normal(3, 8)}, "e projects at most L=8 keys; got S=9"),
        ({"f": normal(2, 12)}, r"f must have the shape \(\[G=2\], K=3, L=12\)"),
        ({"e": normal(4, 3, 12)}, r"e must have the shape \(\[G=2\], K, L\)"),
        (
            {"k": normal(2, 3, 9, 8), "v": normal(2, 3, 9, 8)},
            "k must have heads G that divide the H=4 of q; got G=3",
        ),
        ({"e": normal(3, 12, dtype=torch.float64)}, "e must match q"),
        ({"key_lengths": torch.tensor([1, 2, 3])}, r"key_lengths must have the shape \(B=2\)"),
        ({"impl": "triton"}, "choose from auto, torch, reference"),
    ],
)
def test_bad_input_of_the_whole_form(change, message):
    arguments = {
        "q": normal(2, 4, 9, 8),
        "k": normal(2, 2, 9, 8),
        "v": normal(2, 2, 9, 8),
        "e": normal(3, 12),
        "f": normal(3, 12),
    }
    with pytest.raises(ValueError, match=message):
        linformer_attention(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size must be a whole number above zero; got 0"),
        ({"block_size": 2}, "slot_k must hold 4 blocks for 9 queries; got 2"),
        ({"v": normal(2, 2, 8, 8)}, r"v must have the shape \(B=2, G=2, S=9, D=8\)"),
        (
            {"k": normal(2, 2, 8, 8), "v": normal(2, 2, 8, 8)},
            "k must hold as many keys as there are queries, T=9; got 8",
        ),
        ({"slot_v": normal(2, 2, 2, 4, 8)}, r"slot_v must have the shape"),
        ({"past": torch.tensor([1])}, r"past must have the shape \(B=2\)"),
        ({"alibi_slopes": torch.ones(2)}, r"alibi_slopes must have the shape \(\[B=2\], H=4\)"),
    ],
)
def test_bad_input_of_the_block_form(change, message):
    arguments = {
        "q": normal(2, 4, 9, 8),
        "k": normal(2, 2, 9, 8),
        "v": normal(2, 2, 9, 8),
        "slot_k": normal(2, 2, 2, 3, 8),
        "slot_v": normal(2, 2, 2, 3, 8),
        "block_size": 4,
    }
    with pytest.raises(ValueError, match=message):
        block_linformer_attention(**{**arguments, **change})


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"e must have block_size=4 columns; got the shape \(3, 5\)"):
        summarise(normal(2, 2, 9, 8), normal(3, 5), 4)
    with pytest.raises(ValueError, match="sharing='all' is not known; choose from none, headwise"):
        LinformerConfig(sharing="all")
    with pytest.raises(ValueError, match="slots must be above zero"):
        LinformerConfig(slots=0)
    with pytest.raises(ValueError, match="heads=5 must divide E=32"):
        LinformerSelfAttention(32, 5, length=12, k=3)
    layer = LinformerSelfAttention(32, 4, length=12, k=3)
    with pytest.raises(ValueError, match="shared is for sharing='layerwise'"):
        LinformerSelfAttention(32, 4, length=12, k=3, shared=nn.ModuleDict())
    with pytest.raises(ValueError, match="e projects at most L=12 keys; got S=13"):
        layer(normal(1, 13, 32))
    with pytest.raises(ValueError, match=r"x must have the shape \(B, T, E=32\)"):
        layer(normal(1, 12, 30))
    with pytest.raises(ValueError, match=r"takes no linear bias \(alibi\)"):
        layer.mixer(normal(1, 9, 32), context_of("alibi", 0, 9))


@pytest.mark.parametrize("options", [{"slots": 3}, {"slots": 1, "impl": "reference"}, {"sharing": "none"}])
@pytest.mark.parametrize("length", [BLOCK, 3 * BLOCK + 2])
def test_no_token_learns_of_a_later_one(options, length):
    layer = LinformerMixer(DIMS, LinformerConfig(block_size=BLOCK, **options), 0, nn.Linear)
    x = normal(1, length, 32)
    context = Context(torch.arange(length)[None], rotation=POSITIONS["rope"].rotation(length))
    with torch.no_grad():
        before = layer(x, context)
        for changed in range(length):
            other = x.clone()
            other[:, changed] = 100 * normal(32, seed=changed)
            after = layer(other, context)
            assert torch.equal(after[:, :changed], before[:, :changed]), f"token {changed} leaks"
            assert not torch.equal(after[:, changed:], before[:, changed:])


def test_gradients_reach_both_matrices_and_every_token():
    layer = LinformerMixer(DIMS, LinformerConfig(block_size=BLOCK, slots=2), 0, nn.Linear)
    x = normal(1, 10, 32).requires_grad_()
    layer(x, Context(torch.arange(10)[None]))[:, -1].square().sum().backward()
    assert all(p.grad.abs().amax(-2).gt(0).all() for p in layer.projections.parameters())
    assert x.grad.abs().amax(-1).gt(0).all()


# The mixer: padding, state, sharing.
