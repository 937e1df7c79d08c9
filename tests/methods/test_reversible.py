"""Reversible layers, axial positions and feed-forward in chunks: against plain autograd and Transformers."""

import pytest
import torch
from common import assert_same
from torch import nn
from transformers import ReformerConfig as TransformersConfig
from transformers.models.reformer.modeling_reformer import AxialPositionEmbeddings

from nonet.reformer import (
    AxialConfig,
    AxialPositions,
    ReformerConfig,
    ReformerMixer,
    ReversibleStack,
    chunked,
)
from nonet.reformer.reversible import reversible
from nonet.slots import Context, Dims, Memo
from nonet.testing import assert_within_budget

B, H, D = 2, 2, 8


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def feed_forward(dropout=0.0):
    inner = (nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16))
    return nn.Sequential(*inner)


def lsh_layers(depth, dropout=0.0, dtype=torch.float64):
    """Pairs of LSH attention and feed-forward, and their parameters."""
    torch.manual_seed(0)
    dims = Dims(hidden=16, heads=H, kv_heads=H, head_dim=D, layers=depth, max_length=64)
    modules = nn.ModuleList()
    for layer in range(depth):
        attention = ReformerMixer(dims, ReformerConfig(bucket_size=4), layer, nn.Linear)
        modules.append(nn.ModuleList([nn.LayerNorm(16), attention, feed_forward(dropout)]))
    modules.to(dtype)

    def pair(norm, attention, feed):
        return (
            lambda x, memo: attention(norm(x), Context(torch.arange(x.shape[1])[None], memo=memo)),
            lambda x, memo: feed(x),
        )

    return [pair(*layer) for layer in modules], tuple(modules.parameters())


def stored_streams(x, pairs, parameters=()):
    """What reversible computes, by plain autograd."""
    x1 = x2 = x
    for f, g in pairs:
        x1 = x1 + f(x2, Memo())
        x2 = x2 + g(x1, Memo())
    return (x1 + x2) / 2


def output_and_gradients(stack, x, pairs, parameters):
    torch.manual_seed(1)
    out = stack(x, pairs, parameters)
    wanted = [t for t in (x, *parameters) if t.requires_grad]
    weight = random(*out.shape, seed=2, dtype=out.dtype)
    return out.detach(), torch.autograd.grad((out * weight).sum(), wanted)


def assert_same_gradients(found, plain, gold, depth):
    """Every one of the 2 * depth branches may round each stream once more when it is undone."""
    for i, (a, p, g) in enumerate(zip(found, plain, gold, strict=True)):
        assert_within_budget(a, p, g, f"gradient {i}", scale=2 * depth * g.abs().max().item())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("needs", [True, False])
def test_reversible_gradients_are_those_of_plain_autograd(dropout, needs):
    depth, x = 3, random(B, 40, 16, dtype=torch.float64).requires_grad_(needs)
    pairs, parameters = lsh_layers(depth, dropout)
    out, grads = output_and_gradients(reversible, x, pairs, parameters)
    plain, gold = output_and_gradients(stored_streams, x, pairs, parameters)
    assert torch.equal(out, plain)
    for i, (found, expected) in enumerate(zip(grads, gold, strict=True)):
        assert_same(found, expected, f"gradient {i}")


def test_reversible_rounds_little_at_depth():
    depth, x = 24, random(B, 20, 16).requires_grad_()
    torch.manual_seed(0)
    stack = ReversibleStack([(feed_forward(), feed_forward()) for _ in range(depth)])
    pairs = [(lambda x, memo, f=f: f(x), lambda x, memo, g=g: g(x)) for f, g in stack.blocks]

    def run(function, dtype):
        stack.to(dtype)
        inputs = x.detach().to(dtype).requires_grad_()
        return output_and_gradients(function, inputs, pairs, tuple(stack.parameters()))

    gold = run(stored_streams, torch.float64)
    plain = run(stored_streams, torch.float32)
    found = run(lambda x, pairs, parameters: stack(x), torch.float32)
    assert torch.equal(found[0], plain[0])
    assert_same_gradients(found[1], plain[1], gold[1], depth)


def test_reversible_memory_does_not_grow_with_depth():
    x = random(B, 40, 16, dtype=torch.float64)

    def stored(stack, depth):
        pairs, parameters = lsh_layers(depth)
        weights, sizes = {p.data_ptr() for p in parameters}, []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.nbytes if t.data_ptr() not in weights else 0), t)[1], lambda t: t
        ):
            stack(x, pairs, parameters)
        return sum(sizes)

    assert stored(reversible, 8) == stored(reversible, 2) == 2 * x.nbytes
    assert stored(stored_streams, 8) > 3 * stored(stored_streams, 2)


def test_choices_are_made_once_and_random_numbers_go_on():
    choices, drawn = [], []

    def branch(x, memo):
        return x * memo(lambda: (choices.append(1), 0.5)[1])

    def noise(x, memo):
        drawn.append(torch.rand(()))
        return x * drawn[-1]

    out = reversible(random(1, 3, 4).requires_grad_(), [(branch, noise)], ())
    after = torch.get_rng_state()
    out.sum().backward()
    assert len(choices) == 1
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), after)


def test_parameters_that_are_frozen_or_unused_get_no_gradient():
    pairs, parameters = lsh_layers(2)
    unused = torch.ones(3, requires_grad=True)
    parameters[0].requires_grad_(False)
    reversible(random(1, 20, 16, dtype=torch.float64), pairs, (*parameters, unused)).sum().backward()
    assert [p.grad is None for p in (*parameters, unused)] == [True, *[False] * (len(parameters) - 1), True]


def test_without_gradients_nothing_is_kept():
    pairs, parameters = lsh_layers(2)
    x = random(1, 20, 16, dtype=torch.float64)
    with torch.no_grad():
        out = reversible(x, pairs, parameters)
    assert not out.requires_grad
    assert torch.equal(out, reversible(x, pairs, parameters))


@pytest.mark.parametrize("backward_inside", [True, False])
def test_reversible_under_autocast(backward_inside):
    torch.manual_seed(0)
    depth, x = 2, random(B, 20, 16).requires_grad_()
    stack = ReversibleStack([(feed_forward(), feed_forward()) for _ in range(depth)])
    pairs = [(lambda x, memo, f=f: f(x), lambda x, memo, g=g: g(x)) for f, g in stack.blocks]

    def run(function):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x, pairs, tuple(stack.parameters()))
            if backward_inside:
                return torch.autograd.grad(out.sum(), (x, *stack.parameters()))
        return torch.autograd.grad(out.sum(), (x, *stack.parameters()))

    found, plain = run(reversible), run(stored_streams)
    stack.double()
    double = x.detach().double().requires_grad_()
    out = stored_streams(double, pairs)
    gold = torch.autograd.grad(out.sum(), (double, *stack.parameters()))
    assert_same_gradients(found, plain, gold, depth)


# Axial positions


def axial(hidden=6, max_length=12, **options):
    dims = Dims(hidden=hidden, heads=1, kv_heads=1, head_dim=hidden, layers=1, max_length=max_length)
    return AxialPositions(dims, AxialConfig(**options))


def test_axial_positions_are_those_of_transformers():
    ours = axial(shape=(3, 4), widths=(2, 4))
    config = TransformersConfig(axial_pos_shape=(3, 4), axial_pos_embds_dim=(2, 4), hidden_size=6)
    theirs = AxialPositionEmbeddings(config).eval()
    theirs.weights[0].data.copy_(ours.row[:, None])
    theirs.weights[1].data.copy_(ours.column[None])
    places = torch.tensor([[0, 1, 4, 5, 11], [3, 4, 5, 6, 7]])
    assert torch.equal(ours.embed(places), theirs(places))


@pytest.mark.parametrize(("max_length", "shape"), [(1, (1, 1)), (12, (4, 3)), (16, (4, 4)), (17, (5, 4))])
def test_axial_grid_is_about_square_and_covers_the_context(max_length, shape):
    position = axial(hidden=7, max_length=max_length)
    assert position.shape == shape
    vectors = position.embed(torch.arange(max_length)[None])
    assert vectors.shape == (1, max_length, 7)
    assert len(vectors[0].unique(dim=0)) == max_length


def test_bad_axial_options():
    with pytest.raises(
        ValueError, match=r"a context of 13 tokens is beyond the 12 places of the axial table of 3 x 4"
    ):
        axial(shape=(3, 4)).embed(torch.tensor([[12]]))
    with pytest.raises(ValueError, match=r"widths=\(2, 3\) must add up to the width of the model, 6"):
        axial(widths=(2, 3))
    with pytest.raises(ValueError, match=r"shape must be two numbers above zero; got \(3, 0\)"):
        AxialConfig(shape=(3, 0))


# Chunked feed-forward


@pytest.mark.parametrize("size", [1, 7, 20, 100])
@torch.no_grad()
def test_chunked_feed_forward_is_the_whole(size):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).double()
    x, seen = random(B, 20, 16, dtype=torch.float64), []
    out = chunked(lambda part: (seen.append(part.shape[1]), layer(part))[1], x, size)
    assert max(seen) <= size
    assert_same(out, layer(x))


def test_bad_size_of_chunks():
    with pytest.raises(ValueError, match="size must be a whole number above zero; got 0"):
        chunked(nn.Identity(), random(B, 20, 16), 0)
