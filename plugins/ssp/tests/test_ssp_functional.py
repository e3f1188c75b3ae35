"""SSP's functions, against loops, NumPy and the figures of the published codes."""

import numpy as np
import pytest
import torch
from ltcore_ssp import balanced_turns, enqueue, follow, momentum_contrast_loss, projection, turned
from scipy.special import log_softmax
from torch import nn
from torch.nn.functional import normalize

#: Four steps of SSP's published MoCo at temperature 0.2, momentum 0.9 and a queue of 8: the losses, then the sums of
#: the queue over its entries and of the keys' network over its parameters.
PUBLISHED_STEPS = [1.061856, 1.105334, 1.548287, 1.942792]
PUBLISHED_QUEUE, PUBLISHED_NETWORK = [-2.77328, -6.893, -2.93874], -2.19434
#: The contrast with other classes alone, by temperature, as SSD's published code has it.
PUBLISHED_OTHER_CLASSES = {0.07: 3.2351, 0.2: 2.144925, 1.0: 1.956107}


def pattern(shape, pace):
    return torch.sin(torch.arange(float(np.prod(shape))) * pace).reshape(shape)


def unit(rows, width, pace):
    return normalize(pattern((rows, width), pace), dim=1)


def test_four_steps_are_those_of_the_published_code():
    encoders = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), projection(5, 5, 3)) for _ in range(2)]
    ours, keys = encoders
    with torch.no_grad():
        for number, parameter in enumerate(ours.parameters()):
            parameter.copy_(0.5 * pattern(parameter.shape, 0.7 + number))
    keys.load_state_dict(ours.state_dict())
    queue, pointer = unit(8, 3, 1.3), torch.zeros((), dtype=torch.int64)
    optimizer, losses = torch.optim.SGD(ours.parameters(), lr=0.5), []
    for step in range(4):
        queries, positives = ours(pattern((4, 6), 1.1 + step)), keys(pattern((4, 6), 1.15 + step)).detach()
        positives = normalize(positives, dim=1)
        loss = momentum_contrast_loss(normalize(queries, dim=1), positives, queue, 0.2)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        enqueue(queue, pointer, positives)
        if step < 3:  # there the keys' network follows at the beginning of a step
            follow(keys.parameters(), ours.parameters(), 0.9)
    assert losses == pytest.approx(PUBLISHED_STEPS, abs=2e-6)
    assert queue.sum(0).tolist() == pytest.approx(PUBLISHED_QUEUE, abs=2e-5)
    assert sum(each.sum().item() for each in keys.parameters()) == pytest.approx(PUBLISHED_NETWORK, abs=2e-5)


@pytest.mark.parametrize("temperature", PUBLISHED_OTHER_CLASSES)
def test_classes_of_their_own_are_spared_as_in_ssds_published_code(temperature):
    labels, of_queue = torch.tensor([0, 2, 1, 0, 2]), torch.tensor([0, 1, 2, 2, 0, 1, 1, 2, 0])
    queries, keys, queue = unit(5, 4, 0.9), unit(5, 4, 1.7), unit(9, 4, 2.3)
    found = momentum_contrast_loss(queries, keys, queue, temperature, labels[:, None] == of_queue)
    assert found.item() == pytest.approx(PUBLISHED_OTHER_CLASSES[temperature], abs=2e-6)


def test_the_loss_is_a_loop():
    rng = np.random.default_rng(0)
    queries, keys, queue = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.normal(size=(11, 5))
    spared = rng.random((6, 11)) < 0.4
    spared[0] = True  # nothing is left to be told from
    values = []
    for row in range(6):
        others = [queue[j] @ queries[row] for j in range(11) if not spared[row, j]]
        values.append(-log_softmax(np.array([keys[row] @ queries[row], *others]) / 0.3)[0])
    given = map(torch.from_numpy, (queries, keys, queue))
    found = momentum_contrast_loss(*given, 0.3, torch.from_numpy(spared))
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12) and values[0] == 0
    with pytest.raises(ValueError, match="temperature must be above 0"):
        momentum_contrast_loss(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), 0)


def test_a_ring_forgets_the_oldest():
    queue, pointer, expected = torch.full((7,), -1), torch.zeros((), dtype=torch.int64), [-1] * 7
    place = 0
    for size in (3, 3, 5, 7, 9, 1):
        rows = torch.randint(100, (size,))
        enqueue(queue, pointer, rows)
        for row in rows.tolist():
            expected[place] = row
            place = (place + 1) % 7
        assert queue.tolist() == expected and pointer.item() == place


@pytest.mark.parametrize("rows", [1, 4, 7, 64])
def test_turns_are_balanced_and_turn_the_image(rows):
    turns = balanced_turns(torch.rand(rows))
    assert sorted(turns.bincount(minlength=4).tolist(), reverse=True) == [(rows + 3 - turn) // 4 for turn in range(4)]
    images = torch.rand(rows, 3, 5, 5)
    expected = [np.rot90(image, turn, (1, 2)) for image, turn in zip(images.numpy(), turns.tolist(), strict=True)]
    assert np.array_equal(turned(images, turns).numpy(), np.stack(expected))


def test_every_image_gets_every_turn_as_often():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([balanced_turns(torch.rand(6, generator=generator)) for _ in range(4000)])
    shares = torch.stack([(drawn == turn).float().mean(0) for turn in range(4)])
    expected = torch.tensor([2, 2, 1, 1])[:, None] / 6
    assert (shares - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5  # four standard deviations
