"""DisAlign's logits and weights against loops, and the method in runs."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_disalign import AlignedClassifier, DisAlign, DisAlignOptions, aligned_logits, reweighting
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import ltcore
from ltcore import CalibratedClassifier, DataError, RecipeError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def case(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits, scale, shift, gate = (
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in [(5, 3), (3,), (3,), (5, 1)]
    )
    return logits, scale, shift, gate.sigmoid()


@pytest.mark.parametrize("form", ["paper", "released"])
def test_aligned_logits_are_what_is_printed(form):
    logits, scale, shift, confidence = case(0)
    found = aligned_logits(logits, scale, shift, confidence, form)
    for n in range(5):
        for c in range(3):
            z, a, b, s = (t.item() for t in (logits[n, c], scale[c], shift[c], confidence[n, 0]))
            printed = s * (a * z + b) + (1 - s) * z if form == "paper" else (1 + s * a) * z + s * b
            assert found[n, c].item() == pytest.approx(printed, rel=1e-12)
    arguments = [t.requires_grad_() for t in (logits, scale, shift, confidence)]
    assert torch.autograd.gradcheck(lambda *t: aligned_logits(*t, form), arguments)


@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-20, 1.0, 1e20]))
def test_the_released_form_is_the_papers_with_one_more_and_scale_one_changes_nothing(seed, size):
    logits, scale, shift, confidence = case(seed, torch.float32)
    released = aligned_logits(logits, scale, shift, confidence, "released")
    torch.testing.assert_close(released, aligned_logits(logits, scale + 1, shift, confidence), rtol=1e-4, atol=1e-4)
    same = aligned_logits(size * logits, torch.ones(3), torch.zeros(3), confidence)
    assert torch.equal(same, size * logits)


def test_weights_are_powers_of_the_share_and_a_divergence():
    counts = torch.tensor([100, 20, 5])
    for rho in (0.0, 0.3, 1.0, 1.2):
        found = reweighting(counts, rho)
        printed = np.array([(125 / n) ** rho for n in (100, 20, 5)])
        np.testing.assert_allclose(found.numpy(), printed / printed.sum() * 3, rtol=1e-6)
    # Cross-entropy with them is the divergence from w_y at the label, but for a constant of the labels.
    weights, logits, targets = reweighting(counts, 1.2), X[:, :3], torch.tensor([0, 1, 2, 2, 1, 0])
    for z, y in zip(logits, targets, strict=True):
        w = weights[y].item()
        divergence = w * (math.log(w) - F.log_softmax(z, 0)[y].item())
        loss = w * F.cross_entropy(z[None], y[None]).item()
        assert divergence - w * math.log(w) == pytest.approx(loss, rel=1e-5)
    assert reweighting(torch.tensor([10**9, 1]), 50.0).isfinite().all()
    with pytest.raises(ValueError, match="rho must be at least 0, not -1"):
        reweighting(counts, -1.0)
    with pytest.raises(ValueError, match="no training images of class 1: "):
        reweighting(torch.tensor([3, 0]), 1.0)


class Normalised(nn.Linear):
    """Unit rows and features, as LDAM's, with the weight as it is."""

    def __init__(self):
        super().__init__(4, 3, bias=False)

    def forward(self, x):
        return F.normalize(x) @ self.weight.T


PREVIOUS = {
    "linear": lambda: nn.Linear(4, 3),
    "normalised": Normalised,
    "calibrated": lambda: CalibratedClassifier(nn.Linear(4, 3), torch.tensor([1.0, 2.0, 3.0]), 0.5),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "aligned": lambda: AlignedClassifier(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", PREVIOUS)
def test_it_begins_as_the_frozen_classifier(kind):
    torch.manual_seed(0)
    previous = PREVIOUS[kind]()
    made = DisAlign().build_classifier(previous=previous)
    assert torch.equal(made(X), previous(X))
    names = ["scale", "shift", "confidence.weight", "confidence.bias"]
    assert [name for name, _ in made.named_parameters()] == names
    F.cross_entropy(made(X), torch.tensor([0, 1, 2, 2, 1, 0])).backward()
    assert made.scale.grad.any() and made.shift.grad.any() and all(p.grad is None for p in previous.parameters())
    # Trained somehow, it is the formula on the classifier's own logits, and comes back from its state.
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape))
    gate = 1 / (1 + torch.exp(-(X @ made.confidence.weight[0] + made.confidence.bias)))[:, None]
    expected = gate * (made.scale * previous(X) + made.shift) + (1 - gate) * previous(X)
    torch.testing.assert_close(made(X), expected)
    again = DisAlign().build_classifier(previous=PREVIOUS[kind]())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(X), made(X))


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("bias", [True, False])
def test_weight_and_bias_are_those_of_an_open_gate(form, bias):
    torch.manual_seed(0)
    made = AlignedClassifier(nn.Linear(4, 3, bias=bias), form)
    with torch.no_grad():
        made.scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
        made.shift.copy_(torch.tensor([0.1, 0.0, -2.0]))
        made.confidence.weight.zero_()
        made.confidence.bias.fill_(100.0)
    torch.testing.assert_close(made(X), F.linear(X, made.weight, made.bias))


def test_options_and_errors():
    assert DisAlign().options.model_dump() == {"rho": 1.2, "form": "paper"}
    for wrong in [{"rho": -0.1}, {"form": "other"}, {"tau": 1.0}]:
        with pytest.raises(ValidationError):
            DisAlignOptions(**wrong)
    assert all(field.description for field in DisAlignOptions.model_fields.values())
    with pytest.raises(RecipeError, match="'disalign' aligns a trained classifier"):
        DisAlign().build_classifier(previous=None)


def test_class_weights_of_the_method(ltcore_context):
    context = ltcore_context(counts=(26, 18, 10, 6))
    assert torch.equal(DisAlign().class_weights(context=context), reweighting(torch.tensor([26, 18, 10, 6]), 1.2))
    assert DisAlign(DisAlignOptions(rho=0)).class_weights(context=context) is None
    with pytest.raises(DataError, match="method 'disalign': no training images of class 3"):
        DisAlign().class_weights(context=ltcore_context(counts=(26, 18, 10, 0)))


def test_in_a_run_it_lifts_rare_classes_and_leaves_the_network(tmp_path):
    stage = {"epochs": 12, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    stage["schedule"] = {"name": "cosine"}
    second = {"epochs": 4, "name": "alignment", "methods": ["disalign"], "trainable": ["classifier"]}
    content = {
        "data": {"use": "digits_lt"},
        "backbone": {"use": "cifar_resnet", "options": {"depth": 8}},
        "methods": {"disalign": {}},
        "stages": [{**stage, "name": "network"}, {**stage, **second}],
        "diagnostics": "off",
        "threads": 1,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    run = ltcore.run(path, out=tmp_path, seed=1)
    before, after = (stage["test"] for stage in json.loads((run.path / "result.json").read_text())["stages"])
    assert after["few"] > before["few"] + 0.1
    made = ltcore.load(run.path).model.classifier
    assert isinstance(made, AlignedClassifier) and (made.scale != 1).all() and made.confidence.weight.any()
