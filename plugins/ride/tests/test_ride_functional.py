"""Losses and routing against the figures that the authors' code gave on the same inputs, and against slow loops.

The figures are of frank-xwang/RIDE-LongTailRecognition at ab8be5c: its RIDELoss on the logits below, with LDAM's
margins and effective-number weights, and its ResNet_s of model/ldam_drw_resnets/ea_resnet_cifar.py, whose experts were
made to give the features and logits below. All in float64.
"""

import math

import pytest
import torch
from ltcore_deferred import effective_number_weights
from ltcore_ldam import ldam_margins, subtract_margin
from ltcore_ride import (
    RoutedExperts,
    class_temperatures,
    diversity_loss,
    gate_loss,
    gate_targets,
    mean_of_used,
    running_means,
    used_experts,
)
from torch.nn.functional import cross_entropy

COUNTS = torch.tensor([100, 50, 20, 10, 4])
N, E, C, D, TOP = 7, 3, 5, 4, 3


def wave(*shape, step, scale):
    """``scale * sin(step * n)`` for n from 1 on."""
    return (scale * torch.sin(step * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64))).view(*shape)


#: (factor of the diversity, ratio of the temperatures, epoch behind the re-weighting) -> the loss, and the squared norm
#: of its gradient by each expert's logits.
PUBLIC = {
    (0.45, 0.05, False): (37.17432779540173, 0.24635328073641968, 0.18138448204104304, 0.2143708857591557),
    (0.45, 0.05, True): (47.42677678077919, 0.7186622156792366, 0.6012213666828214, 0.5624578341953073),
    (0.45, 0.3, True): (48.0196314625336, 0.7253868344674306, 0.6189951639530411, 0.554882685087847),
    (0.2, 0.05, False): (39.29524038416566, 0.23855579511559635, 0.21922414822761674, 0.23554885739528258),
    (0.2, 0.05, True): (49.41556226998349, 0.6939236659821717, 0.64622954313095, 0.5871886731769878),
    (0.2, 0.3, True): (49.67905323965212, 0.6975306817588253, 0.6557956550136229, 0.583969087248203),
}


@pytest.mark.parametrize(("case", "figures"), PUBLIC.items(), ids=str)
def test_the_whole_loss_is_the_authors(case, figures):
    """As core puts it together: the weighted mean over the rows of all experts, times E, and the auxiliary term."""
    factor, ratio, late = case
    logits, targets = wave(N, E, C, step=0.7, scale=6.0).requires_grad_(), torch.arange(N) % C
    rows = logits.transpose(0, 1).reshape(E * N, C)
    repeated = targets.repeat(E)
    adjusted = subtract_margin(rows, repeated, 30 * ldam_margins(COUNTS).double())
    values = cross_entropy(adjusted, repeated, reduction="none") * E
    weights = effective_number_weights(COUNTS, 0.9999).double()[repeated] if late else torch.ones(E * N)
    loss = (weights * values).sum() / weights.sum()
    loss = loss + factor * diversity_loss(logits, class_temperatures(COUNTS, ratio).double() if late else 1.0)
    loss.backward()
    found = torch.cat([loss.detach()[None], logits.grad.square().sum((0, 2))])
    # The authors' margins, weights and temperatures are rounded to float32.
    torch.testing.assert_close(found, torch.tensor(figures, dtype=torch.float64), rtol=2e-6, atol=0)


def test_diversity_against_a_loop():
    logits, temperatures = wave(N, E, C, step=1.1, scale=3.0), torch.tensor([1.0, 0.9, 0.8, 0.7, 0.5]).double()
    total = 0.0
    for i in range(N):
        mean = (logits[i].mean(0) / temperatures).softmax(0)
        for k in range(E):
            own = (logits[i, k] / temperatures).softmax(0)
            total += sum(float(mean[c] * (mean[c] / own[c]).log()) for c in range(C)) / N
    expected = -(float(temperatures.mean()) ** 2) * total
    assert float(diversity_loss(logits, temperatures)) == pytest.approx(expected, rel=1e-12) and expected < 0
    assert float(diversity_loss(logits[:, :1], 1.0)) == pytest.approx(0, abs=1e-15)


def test_the_mean_of_the_experts_carries_no_gradient():
    logits = wave(N, E, C, step=0.6, scale=2.0).requires_grad_()
    diversity_loss(logits, 1.0).backward()
    own, common = logits.detach().softmax(2), logits.detach().mean(1, keepdim=True).softmax(2)
    torch.testing.assert_close(logits.grad, -(own - common) / N)


def test_rare_classes_have_the_smaller_temperature():
    found = class_temperatures(COUNTS, 0.3)
    shares = (COUNTS / COUNTS.sum()).double()
    values = 5 * shares * 0.3 + 0.7
    torch.testing.assert_close(found, (values / values[0]).float())
    assert found[0] == 1 and (found.diff() < 0).all()
    assert class_temperatures(COUNTS, 0.0).equal(torch.ones(5))


def gates():
    module = RoutedExperts(D, C, E, TOP, 16).double()
    with torch.no_grad():
        for number, layer in enumerate(module.hidden):
            layer.weight.copy_(wave(16, D, step=0.37 + number, scale=0.8))
            layer.bias.copy_(wave(16, step=0.21 + number, scale=0.3))
        # The authors' gates read the largest logits first, too.
        module.last.weight.copy_(wave(1, 16 + TOP, step=0.53, scale=0.5))
        module.last.bias.copy_(wave(1, step=0.4, scale=0.2) - 2)
    return module


def experts():
    """Pooled features [N, E, D] and logits [N, E, C]."""
    pooled = wave(E, N, D, step=0.9, scale=2.0) + 0.5
    return pooled.transpose(0, 1), wave(E, N, C, step=2.3, scale=4.0).transpose(0, 1)


def test_the_gates_loss_is_the_authors():
    module, (pooled, logits) = gates(), experts()
    targets = torch.tensor([4, 1, 1, 4, 2, 0, 3])
    loss = gate_loss(module.scores(pooled, logits), gate_targets(logits, targets), 100.0)
    loss.backward()
    layers = [*module.hidden, module.last]
    found = [
        float(loss.detach()),
        *(float(p.grad.square().sum()) for layer in layers for p in (layer.weight, layer.bias)),
    ]
    expected = [51.01332539714329, 97.11240677153006, 252.7392849320812, 80.50866504760343]
    expected += [153.9657574288569, 20556.447481479023, 1130.4122834194002]
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_answer_of_the_gates_is_the_authors():
    module, (pooled, logits) = gates(), experts()
    used = used_experts(module.scores(pooled, logits))
    assert used.sum(1).tolist() == [3, 1, 3, 3, 2, 1, 2]
    expected = [
        [2.1098856092573968, -0.641466244111453, -1.255098455433627, 2.3139502545129886, -1.8283606825990912],
        [3.774782677776417, -1.5282856687360233, -1.738262488287587, 3.844610898008466, -3.3848816167006825],
        [-1.9915382823110728, 2.251073109091707, -1.0081337871601497, -0.907682371838038, 2.2176677857482994],
        [-2.047475365779617, 0.5106996950118865, 1.3669414440569472, -2.332220308349408, 1.7408634915331138],
        [-1.8356370520214518, -0.8418233893123116, 2.9574105289240675, -3.0990800516928703, 1.1722749240151384],
        [-0.43807781141480484, -2.6729974036328814, 3.9999859613824262, -2.6571920594171727, -0.4591392551327489],
        [3.321279832906007, -2.2710050315560526, -0.29504743944279754, 2.664171099637516, -3.255099201107579],
    ]
    torch.testing.assert_close(
        module(pooled, logits), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_targets_of_the_gates_against_a_loop():
    torch.manual_seed(0)
    logits, targets = torch.randn(200, 4, 3), torch.randint(3, (200,))
    found = gate_targets(logits, targets)
    for i in range(200):
        right = [int(logits[i, : k + 1].mean(0).argmax()) == int(targets[i]) for k in range(4)]
        assert found[i].tolist() == [not right[k] and any(right[k + 1 :]) for k in range(3)]
    assert found.any() and not found.all()


def test_running_means_and_the_mean_of_the_used():
    logits = torch.randn(4, 3, 2)
    torch.testing.assert_close(running_means(logits)[:, 1], logits[:, :2].mean(1))
    used = used_experts(torch.tensor([[-1.0, 5.0], [1.0, -1.0], [1.0, 1.0], [0.0, 1.0]]))
    assert used.tolist() == [[True, False, False], [True, True, False], [True, True, True], [True, False, False]]
    for i, count in enumerate((1, 2, 3, 1)):
        torch.testing.assert_close(mean_of_used(logits, used)[i], logits[i, :count].mean(0))
