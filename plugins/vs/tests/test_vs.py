"""The VS loss against loops, its special cases and figures of the authors' code; and the method in a run."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_cdt import CDT, CDTOptions, temperatures
from ltcore_logit_adjustment import LogitAdjustment, LogitAdjustmentOptions, class_log_prior
from ltcore_vs import VS, VSOptions, vs_logits
from pydantic import ValidationError

import ltcore
from ltcore import DataError
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([60, 20, 5, 1])
LOGITS = torch.tensor([[(3 * i + 5 * j) % 7 - 3.0 for j in range(4)] for i in range(4)]) / 2
OPTIMIZER = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
TARGETS = torch.arange(4)

counts_of = st.lists(st.integers(1, 10**6), min_size=1, max_size=12)


def started(method, context):
    method.on_run_start(context=context)
    return method


@pytest.mark.parametrize(
    ("gamma", "tau", "published"),
    [
        (0.3, 1.0, [1.5031739473342896, 2.119028091430664, 4.3387250900268555, 3.9556148052215576]),
        (0.05, 0.75, [1.9247372150421143, 2.371175527572632, 3.972834587097168, 3.1965889930725098]),
    ],
)
def test_values_are_those_of_the_authors_code(gamma, tau, published):
    found = vs_logits(LOGITS, temperatures(COUNTS, gamma), class_log_prior(COUNTS), tau)
    losses = F.cross_entropy(found, TARGETS, reduction="none")
    torch.testing.assert_close(losses, torch.tensor(published), rtol=1e-6, atol=1e-6)


@given(counts=counts_of, seed=st.integers(0, 2**31), gamma=st.floats(0, 1), tau=st.floats(0, 3))
def test_the_loss_is_its_definition(counts, seed, gamma, tau):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, len(counts), generator=generator)
    targets = torch.randint(len(counts), (3,), generator=generator)
    divisors, shares = temperatures(torch.tensor(counts), gamma), class_log_prior(torch.tensor(counts))
    losses = F.cross_entropy(vs_logits(logits, divisors, shares, tau), targets, reduction="none")
    for row, y, loss in zip(logits.tolist(), targets.tolist(), losses.tolist(), strict=True):
        changed = [
            (n / max(counts)) ** gamma * z + tau * math.log(n / sum(counts)) for n, z in zip(counts, row, strict=True)
        ]
        expected = math.log(math.fsum(math.exp(each - changed[y]) for each in changed))
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("counts", [(60, 20, 5, 1), (500, 477, 3), (7, 7)])
@pytest.mark.parametrize("strength", [0.0, 0.15, 1.0, 1.7])
def test_at_gamma_0_it_is_logit_adjustment_and_at_tau_0_it_is_cdt_to_the_bit(ltcore_context, counts, strength):
    context = ltcore_context(counts=counts)
    logits = 3 * torch.randn(50, len(counts), generator=torch.Generator().manual_seed(0))
    ours = started(VS(VSOptions(gamma=0, tau=strength)), context).adjust_logits(logits=logits, context=context)
    adjustment = started(LogitAdjustment(LogitAdjustmentOptions(tau=strength)), context)
    assert torch.equal(ours, adjustment.adjust_logits(logits=logits))
    ours = started(VS(VSOptions(gamma=strength, tau=0)), context).adjust_logits(logits=logits, context=context)
    cdt = started(CDT(CDTOptions(gamma=strength)), context)
    assert torch.equal(ours, cdt.adjust_logits(logits=logits, context=context))


def test_both_together_are_cdt_and_then_logit_adjustment(ltcore_context):
    context = ltcore_context(counts=(60, 20, 5, 1))
    logits = started(CDT(CDTOptions(gamma=0.2)), context).adjust_logits(logits=LOGITS, context=context)
    logits = started(LogitAdjustment(LogitAdjustmentOptions(tau=1.2)), context).adjust_logits(logits=logits)
    ours = started(VS(VSOptions(gamma=0.2, tau=1.2)), context)
    assert torch.equal(ours.adjust_logits(logits=LOGITS, context=context), logits)
    assert list(ours.state_dict()) == ["temperature", "log_prior"] and not list(ours.parameters())


def test_gradients():
    logits = LOGITS.double().requires_grad_()
    divisors, shares = temperatures(COUNTS, 0.3).double(), class_log_prior(COUNTS).double()
    assert torch.autograd.gradcheck(lambda z: F.cross_entropy(vs_logits(z, divisors, shares), TARGETS), (logits,))


def test_options_and_errors(ltcore_context):
    assert VS().options.model_dump() == {"gamma": 0.3, "tau": 1.0, "start_epoch": 0}
    for wrong in [{"gamma": -0.1}, {"tau": -1}, {"tau": math.inf}, {"start_epoch": -1}, {"Gamma": 1}]:
        with pytest.raises(ValidationError):
            VSOptions(**wrong)
    assert all(field.description for field in VSOptions.model_fields.values())
    with pytest.raises(DataError, match="method 'vs': no training images of class 1: "):
        VS().on_run_start(context=ltcore_context(counts=(3, 0)))
    later = ltcore_context(counts=(60, 20, 5, 1), epoch=4)
    waiting = started(VS(VSOptions(start_epoch=5)), later)
    assert waiting.adjust_logits(logits=LOGITS, context=later) is LOGITS


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

    assert few("with", {"vs": {}}) > few("without", {}) + 0.1
