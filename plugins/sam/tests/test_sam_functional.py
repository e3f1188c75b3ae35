"""The ascent against slow loops in double precision, written from the papers' formulas."""

import math

import pytest
import torch
from ltcore_sam import ascent


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
