import pytest
import torch
from ltcore_averages import average_into, ema_share, put_back, swa_share
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def steps(number, seed=0):
    """A small network's parameters after each of some random steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for _ in range(number):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        yield network


def averaged(shares, number=7):
    """Our average of those parameters, as tensors."""
    average = torch.zeros(40)
    for done, network in enumerate(steps(number)):
        average_into(average, list(network.parameters()), shares(torch.tensor(done)))
    found = [torch.empty_like(parameter) for parameter in network.parameters()]
    put_back(average, found)
    return found


@pytest.mark.parametrize(
    ("shares", "reference"),
    [
        (lambda done: ema_share(done, 0.9, False), {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}),
        (swa_share, {}),
    ],
    ids=["ema", "swa"],
)
def test_averages_are_those_of_torch(shares, reference):
    model = None
    for network in steps(7):
        model = model or AveragedModel(network, **reference)
        model.update_parameters(network)
    for ours, theirs in zip(averaged(shares), model.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("decay", "warmup"), [(0.5, False), (0.9, True), (0.15, True)])
def test_the_exponential_average_against_a_loop_in_float64(decay, warmup):
    expected = None
    for done, network in enumerate(steps(7)):
        kept = min(decay, (1 + done) / (10 + done)) if warmup else decay
        values = [parameter.detach().double() for parameter in network.parameters()]
        expected = values if done == 0 else [kept * a + (1 - kept) * b for a, b in zip(expected, values, strict=True)]
    found = averaged(lambda done: ema_share(done, decay, warmup))
    for ours, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), slow, rtol=1e-5, atol=1e-6)


def test_a_decay_of_zero_keeps_the_newest_bit_for_bit():
    *_, last = steps(7)
    for ours, newest in zip(averaged(lambda done: ema_share(done, 0.0, True)), last.parameters(), strict=True):
        assert torch.equal(ours, newest)
