"""The loss against a loop over its definition, and against figures that the authors' code gave for the same inputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_bcl import balanced_contrastive_loss
from torch.nn.functional import normalize

#: Images, classes, width, stride of the labels, temperature: the loss, and the norms of its gradients in the first
#: views, the second views and the prototypes. From the authors' class BalSCL (FlamieZhu/Balanced-Contrastive-Learning,
#: loss/contrastive.py at f72d070), run in float64 on `inputs`.
PUBLIC = [
    ((6, 4, 8, 1, 0.1), (6.619925843328812, 3.5706385690656774, 3.1407577337411654, 1.5015195855110686)),
    ((6, 4, 8, 1, 0.07), (9.676586366285921, 5.355159445397133, 4.72648377948463, 1.9623390610914304)),
    ((1, 3, 5, 1, 0.5), (2.399891716693187, 1.0057284054743145, 1.6023596127415947, 0.7943514511676109)),
    ((12, 10, 16, 3, 0.1), (11.566164989323047, 2.874885004387533, 3.201483398210732, 1.2430165014717438)),
    ((8, 5, 4, 0, 1.0), (1.698637006014451, 0.15079135432954874, 0.14361504484376858, 0.10880633221239976)),
    ((16, 20, 32, 7, 0.07), (10.996632319667977, 2.4461643063173697, 2.09057824794748, 2.2643402588914574)),
]


def inputs(batch, classes, width, stride):
    """Unit rows of two views and of the prototypes, and labels: from a formula, so that no generator matters."""
    i = torch.arange((2 * batch + classes) * width, dtype=torch.float64)
    rows = normalize(torch.sin(1.7 * i + 0.3 * i.sqrt()).view(-1, width), dim=1)
    return rows[:batch], rows[batch : 2 * batch], rows[2 * batch :], torch.arange(batch) * stride % classes


@pytest.mark.parametrize(("case", "figures"), PUBLIC)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_loss_and_gradients_are_those_of_the_authors_code(case, figures, dtype, tolerance):
    *sizes, temperature = case
    *rows, targets = inputs(*sizes)
    first, second, prototypes = (x.to(dtype).requires_grad_() for x in rows)
    loss = balanced_contrastive_loss(torch.cat([first, second]), targets.repeat(2), prototypes, temperature)
    loss.backward()
    found = (loss.item(), *(x.grad.norm().item() for x in (first, second, prototypes)))
    assert loss.dtype == dtype and found == pytest.approx(figures, rel=tolerance)


def slow(embeddings, targets, prototypes, temperature):
    rows = [
        *zip(embeddings.tolist(), targets.tolist(), strict=True),
        *zip(prototypes.tolist(), range(99), strict=False),
    ]
    total, anchors = 0.0, len(targets)
    for i, (anchor, label) in enumerate(rows[:anchors]):
        near = [math.fsum(a * b for a, b in zip(anchor, row, strict=True)) / temperature for row, _ in rows]
        positives = [j for j, (_, other) in enumerate(rows) if other == label and j != i]
        denominator = 0.0
        for j, (_, other) in enumerate(rows):
            if j != i:
                size = sum(each == other for _, each in rows)
                denominator += math.exp(near[j]) / (size - (j in positives))
        total += sum(math.log(denominator) - near[p] for p in positives) / len(positives)
    return total / anchors


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_against_a_loop_in_float64(labels, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    rows = normalize(torch.randn(2 * len(labels) + 4, 5, generator=generator, dtype=torch.float64), dim=1)
    targets = torch.tensor(labels).repeat(2)
    embeddings, prototypes = rows[:-4], rows[-4:]
    found = balanced_contrastive_loss(embeddings, targets, prototypes, temperature)
    assert found.item() == pytest.approx(slow(embeddings, targets, prototypes, temperature), rel=1e-9)


def test_the_order_of_the_rows_does_not_matter():
    first, second, prototypes, targets = inputs(12, 10, 16, 3)
    embeddings, labels = torch.cat([first, second]), targets.repeat(2)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        balanced_contrastive_loss(embeddings, labels, prototypes, 0.1),
        balanced_contrastive_loss(embeddings[order], labels[order], prototypes, 0.1),
    )


def test_large_similarities_stay_finite():
    rows = torch.eye(4)[[0, 0, 1, 1]].requires_grad_()
    loss = balanced_contrastive_loss(rows, torch.tensor([0, 0, 1, 1]), torch.eye(4), 1e-3)
    loss.backward()
    assert loss.isfinite() and rows.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_must_be_above_0(temperature):
    first, _, prototypes, targets = inputs(2, 2, 4, 1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        balanced_contrastive_loss(first, targets, prototypes, temperature)
