"""The rules of acceptance: exact for any draft, by the formula where it is known, and never in doubt."""

import itertools

import pytest
import torch

from nonet.tandem import accept_greedy, accept_sampled, expected_tokens

V = 4


def distributions(rows, seed, sharp=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharp * torch.randn(rows, V, generator=generator, dtype=torch.float64), -1)


def chi_square(counts, expected):
    return float(((counts - expected).square() / expected).sum())


def critical(degrees):
    """Beyond this a chi-square lies once in ten thousand times (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * (2 / (9 * degrees)) ** 0.5) ** 3


def sequences(rule, samples=3000, block=2):
    """Chi-square of the first ``block + 1`` tokens that a rule writes, against the target's distribution.

    Probabilities depend on the place alone, and rounds follow each other until there are enough tokens.
    """
    p, q = distributions(block + 1, 1, 1.5), distributions(block + 1, 2, 1.5)
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros((V,) * (block + 1), dtype=torch.float64)
    for _ in range(samples):
        tokens = []
        while len(tokens) <= block:
            at = len(tokens)
            most = block - at
            draft = (
                torch.multinomial(q[at : at + most], 1, generator=generator)[:, 0]
                if most
                else q.new_empty(0).long()
            )
            count, behind = rule(draft, p[at : at + most + 1], q[at : at + most], generator)
            tokens += [*draft[: int(count)].tolist(), int(behind)]
        counts[tuple(tokens)] += 1
    expected = torch.einsum("a,b,c->abc", *p) * samples
    return chi_square(counts, expected), critical(counts.numel() - 1)


def test_sampled_sequences_follow_the_target():
    found, bound = sequences(accept_sampled)
    assert found < bound


def _sample(weights, generator):
    return torch.multinomial(weights, 1, generator=generator)


def target_after_rejection(draft, p, q, generator):
    """The fault of drawing from p, not from what q leaves of it."""
    count, _ = accept_sampled(draft, p, q, generator)
    return count, _sample(p[int(count)], generator)


def turned_quotient(draft, p, q, generator):
    count, _ = accept_sampled(draft, torch.cat([q, p[-1:]]), p[:-1], generator)
    return count, accept_sampled(draft[:0], p[int(count) :][:1], q[:0], generator)[1]


def no_rejection(draft, p, q, generator):
    return torch.tensor([len(draft)]), _sample(p[-1], generator)


@pytest.mark.parametrize("fault", [target_after_rejection, turned_quotient, no_rejection])
def test_a_wrong_rule_is_noticed(fault):
    found, bound = sequences(fault, samples=1500)
    assert found > bound


def test_acceptance_is_what_distributions_share():
    p, q = distributions(2, 1), distributions(1, 2)
    generator = torch.Generator().manual_seed(0)
    rounds, kept = 2000, 0
    for _ in range(rounds):
        draft = torch.multinomial(q, 1, generator=generator)[:, 0]
        kept += int(accept_sampled(draft, p, q, generator)[0])
    share = float(torch.minimum(p[0], q[0]).sum())
    assert abs(kept / rounds - share) < 4 * (share * (1 - share) / rounds) ** 0.5


@pytest.mark.parametrize("block", [1, 3, 5])
def test_tokens_of_a_round_follow_the_formula(block):
    """With the same two distributions at every place, each token is accepted with one probability."""
    p, q = (d.expand(block + 1, V) for d in (distributions(1, 1), distributions(1, 2)))
    share = float(torch.minimum(p[0], q[0]).sum())
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(1000):
        draft = torch.multinomial(q[:block], 1, generator=generator)[:, 0]
        found.append(float(accept_sampled(draft, p, q[:block], generator)[0]) + 1)
    found = torch.tensor(found)
    assert abs(found.mean() - expected_tokens(share, block)) < 4 * found.std() / len(found) ** 0.5


def test_formula_gives_the_papers_figures():
    """Speed-ups of Leviathan et al. where the draft costs nothing: 1.96 and 6.86."""
    assert round(expected_tokens(0.6, 2), 2) == 1.96
    assert round(expected_tokens(0.9, 10), 2) == 6.86
    assert expected_tokens(1.0, 4) == 5.0
    with pytest.raises(ValueError, match="acceptance must lie between"):
        expected_tokens(1.2, 4)
    with pytest.raises(ValueError, match="block must be a whole number from 0 up"):
        expected_tokens(0.2, -1)


def test_equal_distributions_accept_everything():
    p = distributions(4, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        draft = torch.multinomial(p[:3], 1, generator=generator)[:, 0]
        assert int(accept_sampled(draft, p, p[:3], generator)[0]) == 3


def test_a_token_that_the_target_cannot_write_is_never_accepted():
    p, q = torch.eye(V)[[1, 2]], torch.eye(V)[[0]]
    for seed in range(20):
        count, behind = accept_sampled(torch.tensor([0]), p, q, torch.Generator().manual_seed(seed))
        assert (int(count), int(behind)) == (0, 1)


def test_greedy_takes_the_longest_prefix():
    scores = torch.eye(V)[[2, 0, 3]]
    for draft in itertools.product(range(V), repeat=2):
        count, behind = accept_greedy(torch.tensor(draft), scores)
        expected = 2 if draft == (2, 0) else 1 if draft[0] == 2 else 0
        assert (int(count), int(behind)) == (expected, [2, 0, 3][expected])


def test_without_a_draft_there_is_one_token():
    none = torch.empty(0, dtype=torch.long)
    assert [int(x) for x in accept_greedy(none, torch.eye(V)[[3]])] == [0, 3]
    p = torch.eye(V)[[1]]
    assert [int(x) for x in accept_sampled(none, p, p[:0])] == [0, 1]


def test_shapes_are_checked():
    draft = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="scores must have the shape"):
        accept_greedy(draft, torch.eye(V)[:2])
    with pytest.raises(ValueError, match="p must have the shape"):
        accept_sampled(draft, torch.eye(V)[:2], torch.eye(V)[:2])
    with pytest.raises(ValueError, match="q must have the shape"):
        accept_sampled(draft, torch.eye(V)[:3], torch.eye(V)[:1])
