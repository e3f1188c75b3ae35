"""SLA's functions, against loops and the figures of the published code."""

import numpy as np
import pytest
import torch
from ltcore_sla import aggregated, changed_copies, distillation_loss, joint_labels
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy

#: For the same images, labels and classifiers: the published code's whole loss at temperatures 1 and 2, and the sums of
#: its aggregated logits over the images.
PUBLISHED = {
    (4, 1): (5.220321, 5.254075, [0.20116, -0.0665, -0.07584]),
    (2, 1): (3.968104, 3.993229, [-0.20709, -0.03895, 0.19384]),
    (1, 6): (5.790659, 5.821083, [0.07116, 0.04102, -0.11138]),
    (1, 3): (5.431779, 5.511414, [0.28322, 0.03754, -0.32113]),
    (2, 3): (5.816608, 5.848048, [0.11429, 0.03427, -0.14791]),
    (4, 3): (6.367297, 6.393756, [0.08632, -0.02331, -0.06212]),
    (4, 6): (7.535539, 7.56059, [0.03796, 0.02758, -0.06339]),
}


def pattern(shape, pace):
    return torch.sin(torch.arange(float(np.prod(shape))) * pace).reshape(shape)


@pytest.mark.parametrize("kind", PUBLISHED, ids=str)
def test_the_losses_of_the_published_code(kind):
    rotations, colours = kind
    changes, images, labels = rotations * colours, pattern((4, 3, 3, 3), 1.1), torch.tensor([2, 0, 1, 2])
    pixels = torch.cat([images, changed_copies(images, rotations, colours)]).flatten(1)
    assert len(pixels) == 4 * changes
    joint, plain = pixels @ pattern((27, 3 * changes), 0.7), pixels[:4] @ pattern((27, 3), 1.9)
    answer = aggregated(joint, changes)
    *losses, sums = PUBLISHED[kind]
    torch.testing.assert_close(answer.sum(0), torch.tensor(sums), atol=2e-5, rtol=0)
    for temperature, loss in zip((1.0, 2.0), losses, strict=True):
        whole = cross_entropy(joint, joint_labels(labels, changes)) + cross_entropy(plain, labels)
        whole += distillation_loss(plain, answer, temperature)
        assert whole.item() == pytest.approx(loss, abs=2e-5)


@pytest.mark.parametrize("kind", PUBLISHED, ids=str)
def test_every_copy_is_another_and_has_another_label(kind):
    rotations, colours = kind
    changes, images = rotations * colours, torch.rand(2, 3, 4, 4)
    copies = torch.cat([images, changed_copies(images, rotations, colours)]).view(changes, 2, 3, 4, 4)
    assert len({copy.numpy().tobytes() for copy in copies}) == changes
    for copy in copies:  # the same pixels
        torch.testing.assert_close(copy.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    labels = joint_labels(torch.tensor([0, 5]), changes).view(changes, 2)
    assert sorted(labels.T.flatten().tolist()) == [*range(changes), *range(5 * changes, 6 * changes)]


def test_aggregation_and_distillation_are_loops():
    rng = np.random.default_rng(0)
    logits, student = rng.normal(size=(3 * 4, 5 * 3)), rng.normal(size=(4, 5))
    expected = np.zeros((4, 5))
    for image in range(4):
        for label in range(5):
            expected[image, label] = np.mean([logits[j * 4 + image, label * 3 + j] for j in range(3)])
    found = aggregated(torch.from_numpy(logits), 3)
    np.testing.assert_allclose(found.numpy(), expected)
    wanted, given = log_softmax(expected / 1.5, 1), log_softmax(student / 1.5, 1)
    loss = 1.5**2 * (np.exp(wanted) * (wanted - given)).sum(1).mean()
    leaf = torch.from_numpy(expected).requires_grad_()
    value = distillation_loss(torch.from_numpy(student).requires_grad_(), leaf, 1.5)
    assert value.item() == pytest.approx(loss)
    value.backward()
    assert leaf.grad is None
    assert distillation_loss(found, found).abs() < 1e-12
