"""MaxNorm against loops and figures of the authors' code, and the method in a run."""

import json

import pytest
import torch
from ltcore_weight_balancing import MaxNorm, MaxNormOptions, max_norm_radius, project_rows
from pydantic import ValidationError

import ltcore
from ltcore import RecipeError

WEIGHT = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.5, 2.0], [-0.6, 0.8, 2.0]])


#: What the authors' code makes of it, with its threshold of 0.1.
RADIUS = 1.399999976158142
PROJECTED = [
    [0.8400000333786011, 1.1200000047683716, 0.0],
    [1.0, 0.0, 0.0],
    [0.0, 0.8400000333786011, 1.1200000047683716],
    [-0.37565940618515015, 0.5008792281150818, 1.2521979808807373],
]


def test_values_are_those_of_the_authors_code():
    radius = max_norm_radius(WEIGHT, 0.1)
    assert radius.item() == pytest.approx(RADIUS, rel=1e-6)
    torch.testing.assert_close(project_rows(WEIGHT, radius), torch.tensor(PROJECTED))


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_is_the_nearest_point_of_the_ball(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = project_rows(weight, 1.5)
    for row, put in zip(weight, found, strict=True):
        norm = sum(value**2 for value in row.tolist()) ** 0.5
        if norm <= 1.5:
            assert torch.equal(put, row)
        else:
            torch.testing.assert_close(put, row * 1.5 / norm)
        others = torch.randn(200, 3, generator=generator, dtype=torch.float64)
        others = 1.5 * others / others.norm(dim=1, keepdim=True).clamp(min=1.5)
        assert (row - put).norm() <= (row - others).norm(dim=1).min() + 1e-12
    torch.testing.assert_close(project_rows(found, 1.5), found)


def test_the_ends_of_the_threshold_and_rows_of_zeros():
    assert max_norm_radius(WEIGHT, 0) == 1 and max_norm_radius(WEIGHT, 1) == 5
    assert torch.equal(project_rows(WEIGHT, max_norm_radius(WEIGHT, 1)), WEIGHT)
    zeros = torch.zeros(2, 3)
    assert torch.equal(project_rows(zeros, max_norm_radius(zeros)), zeros)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="threshold must be in"):
            max_norm_radius(WEIGHT, wrong)
        with pytest.raises(ValidationError):
            MaxNormOptions(threshold=wrong)
    assert MaxNorm().options.model_dump() == {"threshold": 0.1}
    assert all(field.description for field in MaxNormOptions.model_fields.values())


def recipe(tmp_path, second):
    stage = {"batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    content = {
        "data": {"use": "digits_lt"},
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8}},
        "methods": {"max_norm": {}},
        "stages": [{**stage, "name": "network", "epochs": 2}, {**stage, "name": "balancing", "epochs": 2, **second}],
        "diagnostics": "off",
        "threads": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def test_in_a_run_no_norm_leaves_the_ball_of_the_stages_beginning(tmp_path, look_on):
    norms = []
    look_on(step_ended=lambda run, loop, *_: norms.append(loop.model.classifier.weight.detach().norm(dim=1)))
    run = ltcore.run(recipe(tmp_path, {"methods": ["max_norm"], "trainable": ["classifier"]}), out=tmp_path, seed=1)
    steps = len(norms) // 2
    before, after = norms[steps - 1], torch.stack(norms[steps:])
    radius = before.min() + 0.1 * (before.max() - before.min())
    assert (after <= radius * (1 + 1e-5)).all() and before.max() > radius * 1.01
    torch.testing.assert_close(ltcore.load(run.path).model.classifier.weight.norm(dim=1), norms[-1])


def test_a_stage_that_trains_no_classifier_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"method 'max_norm' bounds a classifier's weights.*'balancing'"):
        ltcore.run(recipe(tmp_path, {"methods": ["max_norm"], "trainable": ["backbone"]}), out=tmp_path, seed=1)
