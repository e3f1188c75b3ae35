import re

import pytest
import torch
from ltcore_decoupling import CosineClassifier, ScaledClassifier
from ltcore_ldam import NormalisedClassifier
from torch import nn

from ltcore import Method, PluginError, hookimpl
from ltcore.contract.classifier import CalibratedClassifier, scale_weights, wrong_weight

POOLED = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
SCALE, SHIFT = torch.tensor([0.5, 2.0, 3.0]), torch.tensor([1.0, -1.0, 0.25])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "shift"), [(SCALE, SHIFT), (1.0, SHIFT), (SCALE, 0.0), (2.0, torch.tensor(3.0))])
def test_weight_and_bias_are_as_applied(bias, scale, shift):
    inner = nn.Linear(4, 3, bias=bias)
    outer = CalibratedClassifier(inner, scale, shift)
    torch.testing.assert_close(outer(POOLED), inner(POOLED) * scale + shift)
    torch.testing.assert_close(POOLED @ outer.weight.T + outer.bias, outer(POOLED))
    assert outer.weight.shape == (3, 4) and outer.bias.shape == (3,)


def test_wrappers_nest():
    inner = nn.Linear(4, 3)
    outer = CalibratedClassifier(CalibratedClassifier(inner, SCALE, SHIFT), SHIFT, SCALE)
    torch.testing.assert_close(outer(POOLED), (inner(POOLED) * SCALE + SHIFT) * SHIFT + SCALE)
    torch.testing.assert_close(POOLED @ outer.weight.T + outer.bias, outer(POOLED))


def test_by_default_it_changes_nothing():
    inner = nn.Linear(4, 3)
    outer = CalibratedClassifier(inner)
    assert torch.equal(outer(POOLED), inner(POOLED)) and torch.equal(outer.weight, inner.weight)


def test_it_is_saved_with_what_it_wraps_and_follows_its_type():
    outer = CalibratedClassifier(nn.Linear(4, 3).double(), SCALE, SHIFT)
    assert outer.scale.dtype == outer.shift.dtype == torch.float64
    assert set(outer.state_dict()) == {"scale", "shift", "classifier.weight", "classifier.bias"}
    assert not outer.scale.requires_grad and outer(POOLED.double()).dtype == torch.float64


def test_a_scale_is_a_copy():
    scale = SCALE.clone()
    outer = CalibratedClassifier(nn.Linear(4, 3), scale)
    scale.zero_()
    assert torch.equal(outer.scale, SCALE)


@pytest.mark.parametrize("keep_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_scaled_and_the_bias_is_not(bias, keep_bias):
    linear, x = nn.Linear(4, 3, bias=bias).double(), torch.randn(5, 4).double()
    scale = torch.tensor([0.5, 1.0, 2.0]).double()
    expected = x @ (scale[:, None] * linear.weight).T + (linear.bias if bias and keep_bias else 0)
    found = scale_weights(linear, scale, keep_bias)
    torch.testing.assert_close(found(x), expected)
    torch.testing.assert_close(x @ found.weight.T + found.bias, expected)


# -- whether weight and bias are what is applied ----------------------------------------------------------------------


class Cosine(nn.Module):
    """Scaled cosines, with a bias or without; its `weight` is what the test says."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.raw, self.made = nn.Parameter(torch.randn(3, 4)), weight
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        logits = 16 * nn.functional.normalize(x) @ nn.functional.normalize(self.raw).T
        return logits if self.bias is None else logits + self.bias

    @property
    def weight(self):
        return self.made(self.raw)


class Tempered(Cosine):
    """Cosines in a scale that is learnt, and positive: its weight is right up to that."""

    def __init__(self):
        super().__init__(unit)
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, x):
        return self.scale * super().forward(x)


def linear(said=None, bias=True):
    """A linear layer inside a module whose weight and bias are `said` of it."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3, bias=bias)

        def forward(self, x):
            return self.inner(x)

        weight = property(lambda self: (said or (lambda inner: (inner.weight, inner.bias)))(self.inner)[0])
        bias = property(lambda self: (said or (lambda inner: (inner.weight, inner.bias)))(self.inner)[1])

    return Outer()


def unit(raw):
    return 16 * nn.functional.normalize(raw)


RIGHT = {
    "linear": lambda: nn.Linear(4, 3),
    "linear without bias": lambda: nn.Linear(4, 3, bias=False),
    "wrapped": linear,
    "calibrated": lambda: CalibratedClassifier(nn.Linear(4, 3), SCALE, SHIFT),
    "scaled": lambda: scale_weights(nn.Linear(4, 3), SCALE, keep_bias=True),
    "ldam": lambda: NormalisedClassifier(4, 3),
    "ldam, calibrated": lambda: CalibratedClassifier(NormalisedClassifier(4, 3), SCALE),
    "lws": lambda: ScaledClassifier(nn.Linear(4, 3)),
    "lws, bias scaled, all of it learning": lambda: ScaledClassifier(nn.Linear(4, 3), True, True),
    "lws on ldam": lambda: ScaledClassifier(NormalisedClassifier(4, 3)),
    "nearest class mean": lambda: CosineClassifier(nn.functional.normalize(torch.randn(3, 4))),
    "cosine": lambda: Cosine(unit),
    "cosine in another scale": lambda: Cosine(lambda raw: unit(raw) / 4),
    "cosine in a scale that is learnt": Tempered,
    "cosine with a bias": lambda: Cosine(unit, torch.ones(3)),
    "with dropout": lambda: _dropping(nn.Linear(4, 3)),
    "in double": lambda: nn.Linear(4, 3).double(),
    "not linear, and says so": lambda: _gated(),
    "lws on one that is not linear": lambda: ScaledClassifier(_gated()),
}
WRONG = {
    "no weight": (lambda: nn.Sequential(nn.Linear(4, 3)), r"'weight' is missing, and it is \[C, 4\]"),
    "transposed": (lambda: linear(lambda inner: (inner.weight.T, inner.bias)), r"'weight' is \[4, 3\], and it is"),
    "bias of one": (lambda: linear(lambda inner: (inner.weight, inner.bias.sum())), r"'bias' is \[\], and it is \[3\]"),
    "another scale": (lambda: linear(lambda inner: (3 * inner.weight, inner.bias)), r"not x @ weight.T \+ bias, up to"),
    "no bias said": (lambda: linear(lambda inner: (inner.weight, None)), "not x @ weight.T, up to a positive factor"),
    "not linear, of another width": (lambda: _gated(5), r"'weight' is \[3, 5\], and it is \[C, 4\]"),
    "another sign": (lambda: Cosine(lambda raw: -unit(raw)), "not x @ weight.T, up to a positive factor a row"),
    "rows not of one norm": (lambda: Cosine(lambda raw: raw), "not x @ weight.T, up to a positive factor a row"),
    "cosine with a bias and another scale": (
        lambda: Cosine(lambda raw: unit(raw) / 4, torch.ones(3)),
        r"\+ bias, up to",
    ),
    "kept from the beginning": (
        lambda: _kept(Cosine(unit)),
        "off by .* of the largest, once its parameters have changed",
    ),
}


def _dropping(inner):
    class Dropping(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, training=self.training))

    made = Dropping(4, 3)
    made.load_state_dict(inner.state_dict())
    return made


def _gated(width=4):
    """Logits that features shrink by themselves."""

    class Gated(nn.Linear):
        linear = False

        def forward(self, x):
            return super().forward(x) * torch.sigmoid(x[:, :1])

    return Gated(width, 3)


def _kept(cosine):
    now = cosine.weight.detach()
    cosine.made = lambda raw: now
    return cosine


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_a_classifier_that_says_what_it_applies(make):
    torch.manual_seed(0)
    classifier = make()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    drawn = torch.get_rng_state()
    assert wrong_weight(classifier, 4) is None
    assert torch.equal(torch.get_rng_state(), drawn), "it drew from the global stream"
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert classifier.training and all(parameter.requires_grad for parameter in classifier.parameters())


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_a_classifier_that_does_not(make, message):
    torch.manual_seed(0)
    wrong = wrong_weight(make(), 4)
    assert wrong and re.search(message, wrong), wrong


def test_a_run_refuses_a_false_weight_with_one_message(offer_methods, make_run):
    class False_(Method):
        @hookimpl
        def build_classifier(self, feature_dim, num_classes):
            return Wide(feature_dim, num_classes)

    class Wide(nn.Module):
        bias = None

        def __init__(self, feature_dim, num_classes):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(num_classes, feature_dim))

        def forward(self, x):
            return x.square() @ self.weight.T

    offer_methods({"mine": False_})
    stage = {"name": "joint", "epochs": 1, "batch_size": 8, "methods": ["mine"], "optimizer": {"lr": 0.1}}
    with pytest.raises(PluginError) as caught:
        make_run(methods={"mine": {}}, stages=[stage]).execute()
    message = str(caught.value)
    assert message.startswith(
        "stage 'joint': the classifier of 'mine' (ltcore-tests 0.0) says what is not so: its logits"
    )
    assert message.endswith("make them properties that compute it; tell its author") and "\n" not in message
