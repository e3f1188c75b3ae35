"""The ascent against slow loops in double precision, written from the papers' formulas."""

import math

import pytest
import torch
from ltcore_sam import ascent, focal_shares


def network(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (3, 2, 2, 2), "conv.bias": (3,), "norm.weight": (3,), "unused": (2,)}
    weights = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    gradients = {name: torch.randn(weights[name].shape, generator=generator, dtype=dtype) for name in list(shapes)[:3]}
    return weights, gradients


def by_hand(weights, gradients, rho, size):
    """w + rho T^2 g / |T g|, number by number; `size` gives T of a number."""
    sizes = {name: [size(name, w) for w in weights[name].flatten().tolist()] for name in gradients}
    flat = {name: gradient.flatten().tolist() for name, gradient in gradients.items()}
    length = math.sqrt(sum((t * g) ** 2 for name in flat for t, g in zip(sizes[name], flat[name], strict=True)))
    return {
        name: [
            w + rho * t * t * g / length
            for w, t, g in zip(weights[name].flatten().tolist(), sizes[name], flat[name], strict=True)
        ]
        for name in flat
    }


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"rho": 0.3}, lambda name, w: 1.0),
        ({"rho": 0.5, "adaptive": True}, lambda name, w: 1.0 if "bias" in name else abs(w) + 0.01),
        ({"rho": 2.0, "adaptive": True, "eta": 0.0}, lambda name, w: 1.0 if "bias" in name else abs(w)),
    ],
    ids=["sam", "asam", "asam without eta"],
)
def test_the_ascent_by_hand(options, size):
    weights, gradients = network()
    found = ascent(weights, gradients, **options)
    expected = by_hand(weights, gradients, options["rho"], size)
    assert list(found) == ["conv.weight", "conv.bias", "norm.weight"]  # what has no gradient does not move
    for name, values in expected.items():
        torch.testing.assert_close(found[name].flatten(), torch.tensor(values, dtype=torch.float64))
        assert found[name].is_leaf and found[name].requires_grad


def test_the_distance_is_rho():
    weights, gradients = network()
    moved = ascent(weights, gradients, 0.7)
    distance = torch.cat([(moved[name] - weights[name]).flatten() for name in moved]).norm()
    torch.testing.assert_close(distance.item(), 0.7)


def test_the_adaptive_ascent_does_not_depend_on_the_scale_of_a_layer():
    """A layer that is twice as large, with gradients half as large, moves twice as far (Kwon et al., section 3)."""
    weights, gradients = network()
    larger = {name: 2 * weight if name == "conv.weight" else weight for name, weight in weights.items()}
    smaller = {name: g / 2 if name == "conv.weight" else g for name, g in gradients.items()}
    one, two = (ascent(w, g, 0.5, adaptive=True, eta=0.0) for w, g in ((weights, gradients), (larger, smaller)))
    torch.testing.assert_close(two["conv.weight"], 2 * one["conv.weight"])
    torch.testing.assert_close(two["norm.weight"], one["norm.weight"])


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_distance_of_zero_and_a_gradient_of_zero_move_nothing(adaptive):
    weights, gradients = network(torch.float32)
    zero = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for found in (ascent(weights, gradients, 0.0, adaptive), ascent(weights, zero, 0.5, adaptive)):
        assert all(torch.equal(found[name], weights[name]) for name in gradients)
    assert ascent(weights, {}, 0.5, adaptive) == {}


@pytest.mark.parametrize(("strength", "gamma"), [(0.5, 3.0), (0.8, 3.2), (1.1, 2.0), (1.0, 0.0)])
def test_the_shares_of_focal_sam(strength, gamma):
    counts = [5000, 700, 36, 1]
    found = focal_shares(torch.tensor(counts), strength, gamma)
    expected = [strength * (1 - n / sum(counts)) ** gamma for n in counts]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert (found.diff() >= 0).all()  # the rarer, the larger


def test_the_shares_are_those_of_the_authors_code():
    found = focal_shares(torch.tensor([500, 60, 7, 5]), 0.8, 3.2)
    authors = [0.0010541112860664725, 0.5611597895622253, 0.7690909504890442, 0.777836799621582]
    assert found.tolist() == pytest.approx(authors, rel=1e-5)
