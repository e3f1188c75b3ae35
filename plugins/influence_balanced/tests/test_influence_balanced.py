"""The influence-balanced loss against autograd, loops and figures of the authors' code; and the method in a run."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_influence_balanced import (
    InfluenceBalanced,
    InfluenceBalancedOptions,
    class_factors,
    influence,
    influence_balanced_loss,
)
from pydantic import ValidationError

import ltcore
from ltcore import DataError

COUNTS = torch.tensor([60, 20, 5, 1])
LOGITS = torch.tensor([[(3 * i + 5 * j) % 7 - 3.0 for j in range(4)] for i in range(4)]) / 2
FEATURES = torch.tensor([[(2 * i + 3 * j) % 5 - 1.0 for j in range(3)] for i in range(4)])
TARGETS = torch.arange(4)


@pytest.mark.parametrize(
    ("weighting", "gamma", "values", "of_logits", "of_features"),
    [
        (
            "inverse",
            0,
            [27.385103225708008, 62.56173324584961, 168.811279296875, 766.294921875],
            [8.542496681213379, 3.142608404159546, -12.110408782958984, 0.42530593276023865],
            8.439638137817383,
        ),
        (
            "effective",
            0,
            [27.4630069732666, 62.61442565917969, 168.8268280029297, 766.212158203125],
            [8.54328441619873, 3.1428980827331543, -12.111525535583496, 0.4253450930118561],
            8.440415382385254,
        ),
        (
            "inverse",
            1,
            [3.951547622680664, 23.6944637298584, 132.66372680664062, 759.8815307617188],
            [10.38843822479248, 3.8216922283172607, -14.727338790893555, 0.5172099471092224],
            6.632458686828613,
        ),
    ],
)
def test_values_and_gradients_are_those_of_the_authors_code(weighting, gamma, values, of_logits, of_features):
    logits, features = LOGITS.clone().requires_grad_(), FEATURES.clone().requires_grad_()
    losses = influence_balanced_loss(logits, TARGETS, features, class_factors(COUNTS, weighting), gamma=gamma)
    losses.mean().backward()
    torch.testing.assert_close(losses, torch.tensor(values), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad[2], torch.tensor(of_logits), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.grad[2].abs(), torch.full((3,), of_features), rtol=1e-5, atol=0)


def test_influence_is_the_norm_of_the_last_layers_gradient():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    features = FEATURES.double()
    logits = features @ weight.T
    found = influence(logits, TARGETS, features)
    for row in range(4):
        loss = F.cross_entropy(logits[row : row + 1], TARGETS[row : row + 1])
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert found[row].item() == pytest.approx(gradient.abs().sum().item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_loss_is_its_definition(gamma):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    features = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    factors = class_factors(COUNTS).double()
    found = influence_balanced_loss(logits, targets, features, factors, 10.0, 0.1, gamma)
    for z, h, y, loss in zip(logits.tolist(), features.tolist(), targets.tolist(), found.tolist(), strict=True):
        p = [math.exp(each) / math.fsum(map(math.exp, z)) for each in z]
        moved = sum(abs(q - (c == y)) for c, q in enumerate(p)) * sum(map(abs, h))
        weighted = -factors[y].item() * math.log(p[y])
        expected = 10.0 / (moved + 0.1) * (1 - math.exp(-weighted)) ** gamma * weighted
        assert loss == pytest.approx(expected, rel=1e-9)
    both = (logits.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda z, h: influence_balanced_loss(z, targets, h, factors, 10.0, 0.1, gamma), both
    )


def test_a_constant_influence_makes_all_gradients_alike():
    logits = torch.tensor([[4.0, 0, 0, 0], [0.5, 0, 0, 0], [-3.0, 0, 0, 0]], requires_grad=True)
    targets, features = torch.zeros(3, dtype=torch.int64), torch.tensor([[1.0, -1.0]]).expand(3, 2)
    ones = class_factors(COUNTS, "none")
    influence_balanced_loss(logits, targets, features, ones, 1.0, 1e-9, constant=True).sum().backward()
    # The gradient p - y over its own norm, and that of the features, 2.
    torch.testing.assert_close(logits.grad.abs().sum(1), torch.full((3,), 0.5))


def test_factors():
    found = class_factors(COUNTS)
    inverse = [1 / n for n in COUNTS.tolist()]
    torch.testing.assert_close(found, torch.tensor([4 * each / sum(inverse) for each in inverse]))
    effective = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS.tolist()]
    torch.testing.assert_close(
        class_factors(COUNTS, "effective"), torch.tensor([4 * each / sum(effective) for each in effective])
    )


def test_samples_that_are_certain_or_without_features_are_finite():
    logits = torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0], [1.0, 0, 0, 0]], requires_grad=True)
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    targets = torch.zeros(3, dtype=torch.int64)
    for gamma in (0.0, 0.5, 1.0):
        losses = influence_balanced_loss(logits, targets, features, class_factors(COUNTS), gamma=gamma)
        gradients = torch.autograd.grad(losses.sum(), (logits, features))
        assert losses.isfinite().all() and all(each.isfinite().all() for each in gradients)
        assert losses[0] == 0


def test_options_and_errors(ltcore_context):
    assert InfluenceBalanced().options.model_dump() == {
        "start_epoch": 100,
        "alpha": 1000.0,
        "weighting": "inverse",
        "gamma": 0.0,
        "epsilon": 1e-3,
        "constant": False,
    }
    for wrong in [{"alpha": 0}, {"epsilon": 0}, {"gamma": -1}, {"weighting": "other"}, {"start_epoch": -1}]:
        with pytest.raises(ValidationError):
            InfluenceBalancedOptions(**wrong)
    assert all(field.description for field in InfluenceBalancedOptions.model_fields.values())
    assert InfluenceBalanced().balances and not InfluenceBalanced(InfluenceBalancedOptions(weighting="none")).balances
    with pytest.raises(DataError, match="method 'influence_balanced': no training images of class 1: "):
        InfluenceBalanced().on_run_start(context=ltcore_context(counts=(3, 0)))


def test_in_a_run_it_begins_at_its_epoch(tmp_path):
    def run(name, epochs, methods):
        stage = {"name": "network", "epochs": epochs, "batch_size": 64, "methods": methods}
        stage["optimizer"] = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
        content = {
            "data": {"use": "digits_lt"},
            "backbone": {"use": "cifar_resnet", "options": {"depth": 8}},
            "methods": {each: {"options": {"start_epoch": 1, "alpha": 10.0}} for each in methods},
            "stages": [stage],
            "diagnostics": "off",
            "threads": 1,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        made = ltcore.run(path, out=tmp_path / name, seed=1)
        return [json.loads(line)["loss"] for line in (made.path / "metrics.jsonl").read_text().splitlines()]

    plain, balanced = run("plain", 2, []), run("balanced", 2, ["influence_balanced"])
    assert plain[0] == balanced[0] and plain[1] != balanced[1]
