"""Logits against a loop, the start against scikit-learn, and a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ltcore_cosine_classifier import Cosine, CosineClassifier, CosineOptions, cosine_logits, unit_rows
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestCentroid

import ltcore
from ltcore.testing import write_short_recipe


def test_defaults_and_bounds():
    assert Cosine().options.model_dump() == {"scale": 25.0, "init": "class_mean", "learn_scale": False}
    for wrong in [{"scale": 0}, {"init": "text"}, {"scal": 1}]:
        with pytest.raises(ValidationError):
            CosineOptions(**wrong)
    assert all(field.description for field in CosineOptions.model_fields.values())


def test_logits_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 6, generator=generator), 3 * torch.randn(5, 6, generator=generator)
    found = cosine_logits(x, w, 25.0)
    for i in range(4):
        for c in range(5):
            dot = sum(float(a) * float(b) for a, b in zip(x[i], w[c], strict=True))
            norms = math.sqrt(sum(float(a) ** 2 for a in x[i])) * math.sqrt(sum(float(b) ** 2 for b in w[c]))
            assert float(found[i, c]) == pytest.approx(25 * dot / norms, abs=1e-4)


def test_a_row_without_direction_gives_zero_and_a_finite_gradient():
    x = torch.zeros(1, 3, requires_grad=True)
    cosine_logits(x, torch.eye(3), 25.0).sum().backward()
    assert not cosine_logits(x, torch.eye(3), 25.0).any() and x.grad.isfinite().all()
    assert unit_rows(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_weight_and_bias_are_as_applied():
    classifier = CosineClassifier(torch.randn(3, 4), 7.0)
    x = unit_rows(torch.randn(5, 4))
    torch.testing.assert_close(classifier(x), x @ classifier.weight.T)
    assert classifier.bias is None and [name for name, _ in classifier.named_parameters()] == ["directions"]
    torch.testing.assert_close(classifier.directions.norm(dim=1), torch.ones(3))


def test_a_learned_scale_multiplies_and_learns():
    options = CosineOptions(scale=10, init="random", learn_scale=True)
    learned, features = Cosine(options).build_classifier(feature_dim=4, num_classes=3, context=None), torch.randn(5, 4)
    torch.testing.assert_close(learned(features), CosineClassifier(learned.directions, 10.0)(features))
    learned(features)[0, 0].backward()
    torch.testing.assert_close(learned.scale.grad, learned(features)[0, 0].detach() / 10)
    assert learned.scale.item() == 10


def test_it_begins_as_the_nearest_centroid_of_directions():
    """Of pixels on the unit sphere: the nearest centroid by angle, as scikit-learn finds it on normalised centroids."""
    pixels, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float()
    means = torch.stack([x[torch.from_numpy(targets == label)].mean(0) for label in range(10)])
    context = SimpleNamespace(class_means=lambda: means)
    classifier = Cosine().build_classifier(feature_dim=64, num_classes=10, context=context)
    reference = NearestCentroid().fit(pixels, targets)
    reference.centroids_ = unit_rows(torch.from_numpy(reference.centroids_)).numpy()
    unit = unit_rows(torch.from_numpy(pixels)).numpy()
    with torch.no_grad():
        found = classifier(x).argmax(1).numpy()
    assert (found == reference.predict(unit)).mean() > 0.999
    assert (found == targets).mean() > 0.85


def test_random_directions_are_random_and_of_norm_one():
    torch.manual_seed(0)
    made = Cosine(CosineOptions(init="random")).build_classifier(feature_dim=8, num_classes=3, context=None)
    assert made.directions.shape == (3, 8) and made.directions.std() > 0.1


def test_a_run_begins_at_the_class_means_and_is_opened_again(tmp_path, look_on):
    file = write_short_recipe(
        tmp_path / "r.yaml",
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={"cosine_classifier": {}},
        stages=[
            {"name": "one", "epochs": 1, "methods": []},
            {"name": "two", "epochs": 1, "trainable": ["classifier"], "cache": "eval"},
        ],
    )
    seen = {}

    def begin(run, loop):
        if loop.stage.name == "two":
            context = run.assembly.contexts["cosine_classifier"]
            seen.update(found=loop.model.classifier.directions.detach().clone(), means=context.class_means())

    look_on(stage_started=begin)
    opened = ltcore.run(file, out=tmp_path / "out")
    torch.testing.assert_close(seen["found"], unit_rows(seen["means"]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(opened.model.classifier.directions, seen["found"])
    assert np.isfinite(opened.logits).all() and np.abs(opened.logits).max() <= 25.001
