"""The share of the branches, the reversed distribution, and how features are joined."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_bbn import branch_share, join, rebalancing_distribution, stack_pairs

RULES = ["parabolic", "linear", "cosine", "increment", "equal", "separate"]


def test_rules_are_the_papers():
    expected = {
        "parabolic": [1.0, 0.75, 0.4375, 0.0],
        "linear": [1.0, 0.5, 0.25, 0.0],
        "cosine": [1.0, math.sqrt(0.5), math.cos(0.375 * math.pi), 0.0],
        "increment": [0.0, 0.25, 0.5625, 1.0],
        "equal": [0.5] * 4,
        "separate": [1.0, 1.0, 0.0, 0.0],
    }
    for rule, values in expected.items():
        found = [branch_share(rule, epoch, 200, separate=120) for epoch in (0, 100, 150, 200)]
        assert found == pytest.approx(values, abs=1e-12), rule
    assert [branch_share("separate", epoch, 200, separate=120) for epoch in (119, 120)] == [1, 0]


@given(st.integers(0, 300), st.integers(0, 50))
def test_shares_are_shares(epoch, more):
    for rule in RULES:
        assert 0 <= branch_share(rule, epoch, max(1, epoch + more)) <= 1


def test_the_beta_rule_is_the_beta_distribution():
    draws = torch.tensor([branch_share("beta", 0, 1, beta=0.2, seed=seed) for seed in range(4000)])
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)  # of Beta(b, b)
    assert branch_share("beta", 0, 1, seed=7) == branch_share("beta", 90, 200, seed=7) != branch_share("beta", 0, 1)


def test_distributions():
    counts = torch.tensor([8, 4, 0, 2])
    assert rebalancing_distribution(counts, "reversed").tolist() == pytest.approx([1 / 7, 2 / 7, 0, 4 / 7])
    assert rebalancing_distribution(counts, "balanced").tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert rebalancing_distribution(counts, "uniform").tolist() == pytest.approx([4 / 7, 2 / 7, 0, 1 / 7])


def test_features_are_joined_as_in_the_loops():
    features = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joined = join(features, 0.3)
    for n in range(3):
        for d in range(8):
            factor = 2 * 0.3 if d < 4 else 2 * 0.7
            assert float(joined[n, d]) == pytest.approx(factor * float(features[n, d]))
    assert torch.equal(join(features, 0.5), features)  # evaluation


def test_pairs_are_stacked():
    first, second = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    pairs = stack_pairs(first, second)
    assert pairs.shape == (2, 3, 8, 4)
    assert torch.equal(pairs[:, :, :4], first) and torch.equal(pairs[:, :, 4:], second)
