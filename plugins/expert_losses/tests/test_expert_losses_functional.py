"""The shifts against loops over their definitions, and the losses against figures that the authors' code gave."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltcore_expert_losses import balpoe_shifts, log_prior, reversed_log_prior, sade_shifts, shifted_logits
from torch.nn.functional import cross_entropy

#: Training images of each class, strength: the loss, and the norms of its gradients in each expert's logits. From the
#: authors' class DiverseExpertLoss (Vanint/SADE-AgnosticLT, model/loss.py at cba11b8), run in float64 on `inputs`.
SADE = [
    ([90, 30, 10], 2.0, (9.114607504983123, 0.5352820531857749, 0.4829380104920915, 0.43769423036168825)),
    ([90, 30, 10], 1.0, (8.455983236888475, 0.5352820531857749, 0.4829380104920915, 0.44891384234248227)),
    (
        [120, 81, 54, 36, 24, 16, 8, 5],
        2.0,
        (13.162602648835144, 0.4593783775868013, 0.4356573987235571, 0.3854375436995581),
    ),
    ([5, 500, 50, 20], 2.0, (16.256185116861836, 0.43419131530071714, 0.5440836537701236, 0.5155387345039718)),
    ([5, 500, 50, 20], 1.0, (13.767830975948364, 0.43419131530071714, 0.5440836537701236, 0.4610314448885238)),
]
#: The same with the strengths of all experts; from the class BSExpertLoss (emasa/BalPoE-CalibratedLT, model/loss.py at
#: ca607ae). Its list of strengths is written out there.
BALPOE = [
    ([90, 30, 10], [0, 1, 2], (2.8186610791031383, 0.17842735106192498, 0.16097933683069718, 0.1496379474261883)),
    (
        [120, 81, 54, 36, 24, 16, 8, 5],
        [0, 1.25, 2.5],
        (4.248939045008004, 0.1531261258622671, 0.14603522017059467, 0.12759576685278537),
    ),
    ([5, 500, 50, 20], [-1, 1, 3], (5.6327661015359896, 0.12325621628358836, 0.18136121792337453, 0.18751852954937426)),
    ([90, 30, 10], [0.5, 1.5], (2.811013349346757, 0.2670393771096457, 0.2273362636723921)),
]
counts = st.lists(st.integers(1, 1000), min_size=2, max_size=9)


def inputs(classes, experts, rows=6):
    """Logits [E * rows, C] and labels, from a formula, so that no generator matters."""
    i = torch.arange(experts * rows * classes, dtype=torch.float64)
    logits = 3 * torch.sin(1.7 * i + 0.3 * i.sqrt()).view(experts * rows, classes)
    return logits.requires_grad_(), (torch.arange(rows) * 2 % classes).repeat(experts)


def losses_and_norms(shifts, summed):
    experts, classes = shifts.shape
    logits, targets = inputs(classes, experts)
    loss = cross_entropy(shifted_logits(logits, shifts, torch.arange(experts).repeat_interleave(6)), targets)
    (loss * experts if summed else loss).backward()
    norms = [own.norm().item() for own in logits.grad.chunk(experts)]
    return [loss.item() * (experts if summed else 1), *norms]


@pytest.mark.parametrize(("given", "strength", "figures"), SADE)
def test_sades_loss_and_gradients_are_those_of_the_authors_code(given, strength, figures):
    found = losses_and_norms(sade_shifts(torch.tensor(given), 3, strength), summed=True)
    assert found == pytest.approx(figures, rel=1e-6)


@pytest.mark.parametrize(("given", "strengths", "figures"), BALPOE)
def test_balpoes_loss_and_gradients_are_those_of_the_authors_code(given, strengths, figures):
    shifts = balpoe_shifts(torch.tensor(given), len(strengths), strengths[0], strengths[-1])
    assert losses_and_norms(shifts, summed=False) == pytest.approx(figures, rel=1e-6)


@settings(max_examples=25)
@given(counts, st.floats(0, 4))
def test_shifts_against_loops(given, strength):
    """Class by class; the place of a class among the rarer ones says whose share it has in the inverse distribution."""
    total, by_count = sum(given), sorted(range(len(given)), key=lambda c: (given[c], c))
    shares = [math.log(n / total) for n in given]
    inverse = [shares[by_count[len(given) - 1 - by_count.index(c)]] for c in range(len(given))]
    tensor = torch.tensor(given)
    assert log_prior(tensor).tolist() == pytest.approx(shares, rel=1e-12)
    assert reversed_log_prior(tensor).tolist() == pytest.approx(inverse, rel=1e-12)
    sade = sade_shifts(tensor, 3, strength).tolist()
    assert sade[0] == [0] * len(given)
    for c, (share, other) in enumerate(zip(shares, inverse, strict=True)):
        assert sade[1][c] == pytest.approx(share, rel=1e-5)
        assert sade[2][c] == pytest.approx(share - strength * other, rel=1e-5, abs=1e-5)
    for experts in (1, 2, 4):
        found = balpoe_shifts(tensor, experts, -1.0, strength).tolist()
        taus = [-1 + (strength + 1) * (k / (experts - 1) if experts > 1 else 0.5) for k in range(experts)]
        for row, tau in zip(found, taus, strict=True):
            assert row == pytest.approx([tau * share for share in shares], rel=1e-5, abs=1e-5)


def test_other_numbers_of_experts():
    """Two have the ends; of four the third has half of the strength."""
    given = torch.tensor([60, 30, 10])
    three = sade_shifts(given, 3)
    assert sade_shifts(given, 2).equal(three[[0, 2]])
    four = sade_shifts(given, 4)
    assert four[[0, 1, 3]].equal(three) and torch.allclose(four[2], three[1:].mean(0))


def test_the_mean_of_balpoes_experts_is_balanced():
    """The expected loss of each expert has no gradient where it predicts for p^(1 - tau); the mean is balanced."""
    generator = torch.Generator().manual_seed(0)
    given = torch.tensor([70, 20, 10])
    likelihood = torch.rand(5, 3, generator=generator, dtype=torch.float64)  # of 5 images, by class
    likelihood /= likelihood.sum(0)
    joint = likelihood * (given / given.sum())
    taus = [-0.5, 1.0, 2.5]
    shifts = balpoe_shifts(given, 3, taus[0], taus[-1]).double()
    best = [(likelihood.log() + (1 - tau) * log_prior(given)).requires_grad_() for tau in taus]
    for logits, shift in zip(best, shifts, strict=True):
        (-(joint * (logits + shift).log_softmax(1)).sum()).backward()
        assert logits.grad.abs().max() < 1e-7
    assert torch.allclose(torch.stack(best).mean(0).softmax(1), likelihood / likelihood.sum(1, keepdim=True))


def test_an_empty_class_is_named():
    for function in (log_prior, reversed_log_prior, lambda n: sade_shifts(n, 3), lambda n: balpoe_shifts(n, 3)):
        with pytest.raises(ValueError, match="no training images of class 1,"):
            function(torch.tensor([3, 0, 2]))
