import math

import pytest
import torch
from ltcore_reweighting_net import WeightNet, aligned_weights, balanced_draw, look_ahead, normalised


def test_weights_worked_by_hand():
    """Only images that help count; with factors of N over their sum, the mean is a weighted mean."""
    found = aligned_weights(torch.tensor([3.0, -2.0, 1.0, 0.0]))
    assert found.tolist() == [3.0, 0.0, 1.0, 0.0]
    losses = torch.tensor([2.0, 9.0, 6.0, 9.0])
    assert (found * losses).mean() == (3 * 2 + 1 * 6) / 4


@pytest.mark.parametrize("unit", [1e-20, 0.5, 1e20])
def test_the_unit_of_alignments_does_not_matter(unit):
    alignments = torch.randn(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(aligned_weights(unit * alignments), aligned_weights(alignments))


def test_where_no_image_helps_none_counts():
    assert aligned_weights(torch.tensor([-1.0, 0.0, -3.0])).tolist() == [0.0, 0.0, 0.0]
    assert normalised(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_normalised_weights_have_a_mean_of_one():
    torch.testing.assert_close(normalised(torch.tensor([0.2, 0.3, 0.7])), torch.tensor([0.5, 0.75, 1.75]))
    assert normalised(torch.tensor([1e-44, 3e-44])).sum() == 2


def test_weights_far_below_the_smallest_number_still_have_shares():
    """A network that has learned to give no loss any weight: its weights are 0 in float32, their shares are not."""
    network = WeightNet(4)
    with torch.no_grad():
        network.layers[2].bias.fill_(-200.0)
    losses = torch.rand(6, generator=torch.Generator().manual_seed(2))
    logs = network(losses)
    assert (logs.exp() == 0).all()
    shares = torch.softmax(logs, 0)
    shares[0].backward()
    found = [parameter.grad for parameter in network.parameters()]
    doubled = network.double()(losses.double()).exp()
    torch.testing.assert_close(shares.double(), doubled / doubled.sum(), rtol=1e-4, atol=0)
    assert all(gradient.isfinite().all() for gradient in found) and found[2].abs().max() > 0


def test_the_network_by_hand():
    network = WeightNet(5)
    one, two = network.layers[0], network.layers[2]
    for loss in (0.0, 0.7, 4.0):
        hidden = [max(0.0, w * loss + b) for w, b in zip(one.weight[:, 0].tolist(), one.bias.tolist(), strict=True)]
        out = sum(w * h for w, h in zip(two.weight[0].tolist(), hidden, strict=True)) + two.bias.item()
        assert network(torch.tensor([loss])).exp().item() == pytest.approx(1 / (1 + math.exp(-out)), rel=1e-5)
    assert network(torch.rand(7)).shape == (7,) and sum(p.numel() for p in WeightNet(100).parameters()) == 301


def test_a_look_ahead_is_a_plain_step_that_can_be_differentiated():
    weights = {"a": torch.ones(2), "b": torch.ones(1)}
    gradient = torch.tensor([1.0, -2.0], requires_grad=True)
    ahead = look_ahead(weights, {"a": gradient}, 0.1)
    assert list(ahead) == ["a"]
    torch.testing.assert_close(ahead["a"], torch.tensor([0.9, 1.2]))
    (found,) = torch.autograd.grad(ahead["a"].sum(), gradient)
    torch.testing.assert_close(found, torch.tensor([-0.1, -0.1]))


def drawn(targets, size, times):
    generator = torch.Generator().manual_seed(5)
    return [balanced_draw(targets, 3, size, generator) for _ in range(times)]


def test_the_draw_has_no_repetition_and_all_of_a_small_set():
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    for indices in drawn(targets, 4, 50):
        assert len(set(indices.tolist())) == 4
    assert sorted(balanced_draw(targets, 2, 100, torch.Generator()).tolist()) == list(range(6))


def test_the_draw_is_balanced_where_the_set_is_not():
    """60 images of one class and 20 of another, one drawn 4000 times: a half each, within five deviations."""
    targets = torch.tensor([0] * 60 + [1] * 20)
    counts = torch.bincount(targets[torch.cat(drawn(targets, 1, 4000))])
    assert (counts / 4000 - 0.5).abs().max() < 5 * math.sqrt(0.25 / 4000)
