"""Clouded logits against loops, distributions and figures of the authors' code; and the method in a run."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_cosine_classifier import CosineClassifier
from ltcore_gcl import GCL, GCLOptions, cloud_sizes, clouded_logits, draw_noise, focal_factor
from pydantic import ValidationError
from scipy import stats
from torch import nn

import ltcore
from ltcore import DataError, RecipeError
from ltcore.testing import write_short_recipe

COUNTS = torch.tensor([60, 20, 5, 1])
COSINES = torch.tensor([[(3 * i + 5 * j) % 7 - 3.0 for j in range(4)] for i in range(4)]) / 4
NOISE = (torch.tensor([[(2 * i + 3 * j) % 9 - 4.0 for j in range(4)] for i in range(4)]) / 3).clamp(-1, 1)
TARGETS = torch.arange(4)


@pytest.mark.parametrize(
    ("scale", "margin", "gamma", "values", "gradient"),
    [
        (
            3.0,
            0.0,
            0.0,
            [3.780226469039917, 3.3905630111694336, 4.076169967651367, 2.4396891593933105],
            [0.635410487651825, 0.09480144828557968, -0.737270712852478, 0.007058773189783096],
        ),
        (
            2.0,
            0.1,
            1.0,
            [2.7894625663757324, 2.638345241546631, 3.0011205673217773, 1.8379602432250977],
            [0.3437342643737793, 0.09669335186481476, -0.4575411379337311, 0.017113521695137024],
        ),
    ],
    ids=["first stage", "second stage"],
)
def test_values_and_gradients_are_those_of_the_authors_code(scale, margin, gamma, values, gradient):
    cosines = COSINES.clone().requires_grad_()
    clouds = scale * 0.5 * cloud_sizes(COUNTS)
    losses = F.cross_entropy(
        clouded_logits(scale * cosines, TARGETS, NOISE, clouds, scale * margin), TARGETS, reduction="none"
    )
    losses = focal_factor(losses, gamma) * losses if gamma else losses
    losses.mean().backward()
    torch.testing.assert_close(losses, torch.tensor(values), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosines.grad[2], torch.tensor(gradient), rtol=1e-4, atol=1e-6)


def test_sizes():
    found = cloud_sizes(COUNTS)
    expected = [math.log(60 / n) / math.log(60) for n in COUNTS.tolist()]
    assert found.tolist() == pytest.approx(expected, rel=1e-6) and found[0] == 0 and found[3] == 1
    assert cloud_sizes(torch.tensor([7, 7])).tolist() == [0, 0]


def test_the_noise_is_a_normal_one_that_is_cut_off():
    noise = draw_noise(torch.empty(400, 100), torch.Generator().manual_seed(0))
    assert noise.abs().max() == 1
    # Of what lies inside, each value is drawn as often as of a normal distribution between the two ends.
    inside = noise[noise.abs() < 1].double().numpy()
    assert stats.kstest(inside, stats.truncnorm(-3, 3, scale=1 / 3).cdf).pvalue > 0.01
    share = 1 - len(inside) / noise.numel()
    assert share == pytest.approx(2 * stats.norm.sf(3), rel=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_its_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(6, 4, generator=generator, dtype=torch.float64) - 1
    noise = draw_noise(cosines, generator)
    targets = torch.randint(4, (6,), generator=generator)
    s, cloud, margin, gamma = 20.0, 0.5, 0.1, 1.5
    clouds = s * cloud * cloud_sizes(COUNTS).double()
    changed = clouded_logits(s * cosines, targets, noise, clouds, s * margin)
    values = F.cross_entropy(changed, targets, reduction="none")
    found = focal_factor(values, gamma) * values
    for row, shaken, y, loss in zip(cosines.tolist(), noise.tolist(), targets.tolist(), found.tolist(), strict=True):
        z = [
            s * (c - cloud * abs(e) * math.log(60 / n) / math.log(60) - margin * (k == y))
            for k, (c, e, n) in enumerate(zip(row, shaken, COUNTS.tolist(), strict=True))
        ]
        p = math.exp(z[y]) / math.fsum(map(math.exp, z))
        assert loss == pytest.approx(-((1 - p) ** gamma) * math.log(p), rel=1e-5)


def test_no_gradient_passes_through_the_focal_factor():
    logits = COSINES.double().requires_grad_()
    values = F.cross_entropy(logits, TARGETS, reduction="none")
    factor = focal_factor(values, 1.0)
    assert not factor.requires_grad
    torch.testing.assert_close(factor, 1 - logits.detach().softmax(1).diagonal())
    assert torch.autograd.gradcheck(
        lambda z: F.cross_entropy(clouded_logits(z, TARGETS, NOISE.double(), COUNTS.double(), 0.3), TARGETS), (logits,)
    )


class Run:
    """What the method asks of a context."""

    def __init__(self, context, classifier):
        self.name, self.class_counts, self.generator = "clouds", COUNTS, context.generator
        self.model = nn.Module()
        self.model.classifier = classifier


@pytest.mark.parametrize(("scale", "used"), [(None, 30.0), (20.0, 20.0)])
def test_the_scale_of_the_loss(ltcore_context, scale, used):
    context = Run(ltcore_context(counts=(60, 20, 5, 1)), CosineClassifier(torch.eye(4), 30.0))
    method = GCL(GCLOptions(cloud=0.5, margin=0.1, scale=scale))
    method.on_run_start(context=context)
    method.on_stage_start(context=context)
    assert list(method.state_dict()) == ["sizes"] and not list(method.parameters())
    state = context.generator.get_state()
    found = method.adjust_logits(logits=30 * COSINES, targets=TARGETS, context=context)
    context.generator.set_state(state)
    noise = draw_noise(COSINES, context.generator)
    lowered = COSINES - 0.5 * cloud_sizes(COUNTS) * noise.abs() - 0.1 * torch.eye(4)
    torch.testing.assert_close(found, used * lowered)
    again = method.adjust_logits(logits=30 * COSINES, targets=TARGETS, context=context)
    assert not torch.equal(found[:, 1:], again[:, 1:]) and method.sample_weights(values=found[0]) is None
    assert ((found - again)[:, 0] == 0).all()  # the most frequent class has no cloud


def test_options_and_errors(ltcore_context):
    assert GCL().options.model_dump() == {"cloud": 0.5, "margin": 0.0, "scale": None, "gamma": 0.0}
    for wrong in [{"cloud": -0.1}, {"margin": -1}, {"scale": 0}, {"gamma": -1}, {"noise": 1}]:
        with pytest.raises(ValidationError):
            GCLOptions(**wrong)
    assert all(field.description for field in GCLOptions.model_fields.values())
    with pytest.raises(DataError, match="no training images of class 1: the size of its cloud"):
        GCL().on_run_start(context=ltcore_context(counts=(3, 0)))
    context = ltcore_context(counts=(60, 20, 5, 1))
    with pytest.raises(RecipeError, match="works on the classifier of cosine_classifier"):
        GCL().on_stage_start(context=Run(context, nn.Linear(4, 4)))
    with pytest.raises(RecipeError, match="take learn_scale out"):
        GCL().on_stage_start(context=Run(context, CosineClassifier(torch.eye(4), 30.0, learn_scale=True)))


def test_in_a_run_the_second_stage_goes_on_with_its_own_scale(tmp_path):
    recipe = write_short_recipe(
        tmp_path / "r.yaml",
        methods={
            "cosine_classifier": {"options": {"scale": 20, "init": "random"}},
            "mixup": {},
            "gcl": {"options": {"scale": 30}},
            "second": {"use": "gcl", "options": {"margin": 0.1, "gamma": 1}},
        },
        stages=[
            {"name": "network", "methods": ["mixup", "cosine_classifier", "gcl"]},
            {
                "name": "classifier",
                "methods": ["mixup", "cosine_classifier", "second"],
                "trainable": ["classifier"],
                "sampler": "class_balanced",
            },
        ],
    )
    made = ltcore.run(recipe, out=tmp_path, seed=1)
    losses = [json.loads(line)["loss"] for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    learned = made.model.classifier
    assert isinstance(learned, CosineClassifier) and learned.scale == 20
