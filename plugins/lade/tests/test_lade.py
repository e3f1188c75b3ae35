"""LADE's regulariser against loops and figures of the authors' code, the PC softmax, and the method in a run."""

import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_lade import LADE, LADEOptions, lader_loss, post_compensated
from ltcore_logit_adjustment import LogitAdjustment, class_log_prior
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import DataError
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([60, 20, 5, 1])
LOGITS = torch.tensor([[(3 * i + 5 * j) % 7 - 3.0 for j in range(4)] for i in range(5)]) / 2
OPTIMIZER = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
TARGETS = torch.tensor([0, 1, 1, 0, 2])  # class 3 has no row


@pytest.mark.parametrize(
    ("regularizer", "value", "gradient"),
    [
        (0.1, 0.7824323177337646, [-0.3330977, 0.1113568, 0.0089552, 0.0009421]),
        (0.01, 0.7340909242630005, [-0.3317471, 0.1066277, 0.006599, 0.0005928]),
        (0.5, 0.9972826838493347, [-0.3391003, 0.1323752, 0.0194272, 0.0024944]),
    ],
)
def test_values_and_gradients_are_those_of_the_authors_code(regularizer, value, gradient):
    logits = LOGITS.clone().requires_grad_()
    loss = lader_loss(logits, TARGETS, class_log_prior(COUNTS), regularizer)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(logits.grad[0], torch.tensor(gradient), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_regulariser_is_its_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 500, (6,), generator=generator)
    logits = 3 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (9,), generator=generator)
    shares = [n / sum(counts.tolist()) for n in counts.tolist()]
    expected = 0.0
    for c in range(6):
        own = [logits[i, c].item() for i in range(9) if targets[i] == c]
        first = sum(own) / len(own) if own else 0.0
        second = math.log(sum(math.exp(logits[i, c].item()) / 6 / shares[c] for i in range(9)) / 9)
        expected -= shares[c] * (first - second - 0.3 * second**2)
    found = lader_loss(logits, targets, class_log_prior(counts).double(), 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lader_loss(z, targets, class_log_prior(counts).double(), 0.3), (logits,))


def test_the_bound_is_met_by_the_density_ratio():
    # A finite x with known p(x | c) and balanced sampling of the batch: z_c(x) = log p(x | c) / p(x) makes the second
    # term 0, and no other logits give a smaller loss.
    joint = torch.tensor([[6, 1, 1], [1, 4, 1], [1, 3, 6]])  # x by c: how often each pair occurs
    rows, targets = (torch.tensor(each) for each in zip(*[(x, c) for x in range(3) for c in range(3)], strict=True))
    times = joint.flatten()
    rows, targets = rows.repeat_interleave(times), targets.repeat_interleave(times)
    share = joint / joint.sum()
    best = (share / share.sum(0) / share.sum(1, keepdim=True)).double().log()
    prior = torch.full((3,), 1 / 3).double().log()
    assert torch.allclose(torch.logsumexp(best[rows], 0), torch.tensor(len(rows)).double().log())
    optimum = lader_loss(best[rows], targets, prior, 0.1)
    for seed in range(20):
        moved = best + 0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
        assert lader_loss(moved[rows], targets, prior, 0.1) > optimum


def test_the_pc_softmax_for_uniform_classes_is_logit_adjustment_after_training(ltcore_context):
    torch.manual_seed(0)
    classifier, pooled = nn.Linear(6, 4), torch.randn(5, 6)
    uniform = torch.full((4,), 0.25).log()
    ours = post_compensated(classifier(pooled), class_log_prior(COUNTS), uniform)
    method = LogitAdjustment()
    method.on_run_start(context=ltcore_context(counts=(60, 20, 5, 1)))
    adjusted = method.post_calibrate(classifier=classifier)(pooled)
    torch.testing.assert_close(ours.softmax(1), adjusted.softmax(1))
    # As Bayes' rule has it, probability by probability.
    target = torch.tensor([0.1, 0.2, 0.3, 0.4])
    probabilities = classifier(pooled).softmax(1) * target / (COUNTS / COUNTS.sum())
    found = post_compensated(classifier(pooled), class_log_prior(COUNTS), target.log()).softmax(1)
    torch.testing.assert_close(found, probabilities / probabilities.sum(1, keepdim=True))


def test_without_the_regulariser_it_is_logit_adjustment_and_all_options_are_described(ltcore_context):
    context = ltcore_context(counts=(60, 20, 5, 1))
    method, other = LADE(LADEOptions(weight=0)), LogitAdjustment()
    for each in (method, other):
        each.on_run_start(context=context)
    assert torch.equal(method.adjust_logits(logits=LOGITS), other.adjust_logits(logits=LOGITS))
    assert method.auxiliary_losses(features=None, logits=LOGITS)["lader"] == 0
    assert LADE().options.model_dump() == {"weight": 0.1, "regularizer": 0.1}
    for wrong in [{"weight": -1}, {"regularizer": -0.1}, {"alpha": 1}]:
        with pytest.raises(ValidationError):
            LADEOptions(**wrong)
    assert all(field.description for field in LADEOptions.model_fields.values())
    with pytest.raises(DataError, match="method 'lade': no training images of class 1: "):
        LADE().on_run_start(context=ltcore_context(counts=(3, 0)))
    with pytest.raises(ValueError, match="regularizer must be at least 0, not -1"):
        lader_loss(LOGITS, TARGETS, class_log_prior(COUNTS), -1)


def test_logits_whose_exponentials_overflow_have_finite_gradients():
    logits = (1e4 * LOGITS).requires_grad_()
    loss = lader_loss(logits, TARGETS, class_log_prior(COUNTS), 0.0)
    (F.cross_entropy(logits + class_log_prior(COUNTS), TARGETS) + loss).backward()
    assert logits.grad.isfinite().all()


def test_in_a_run_it_lifts_rare_classes(tmp_path):
    def few(name, methods):
        recipe = write_short_recipe(
            tmp_path / f"{name}.yaml",
            data={"use": "digits_lt"},
            backbone={"use": "cifar_resnet", "options": {"depth": 8}},
            methods=methods,
            stages=[{"epochs": 12, "batch_size": 64, "optimizer": OPTIMIZER, "schedule": {"name": "cosine"}}],
            diagnostics="off",
            threads=1,
        )
        return ltcore.run(recipe, out=tmp_path, seed=1).result["after_calibration"]["few"]

    assert few("with", {"lade": {}}) > few("without", {}) + 0.1
