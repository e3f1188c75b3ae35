from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltcore import Backbone, Batch, Features, Method, hookimpl
from ltcore.contract.model import Model
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError
from ltcore.training.step import StepForward, classification_loss

CLASSES, ROWS = 3, 6
WEIGHTS = torch.tensor([1.0, 4.0, 0.25])


class Net(Backbone):
    inner_taps = ("early", "late")
    feature_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 5, 1)

    def forward_maps(self, images: Tensor) -> Tensor:
        return self.late(self.early(images))


class Act(Method):
    """Calls `change` at `tap`, and adds `terms` as auxiliary losses."""

    def __init__(self, tap: str = "pooled", change=lambda features: features) -> None:
        super().__init__()
        self.place, self.change = tap, change

    @property
    def tap(self) -> str:
        return self.place

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        return self.change(features)


def hooks_of(*methods: Method) -> Hooks:
    entries = [Entry(f"m{i}", Offer("m", "x:M", "d", "1"), method) for i, method in enumerate(methods)]
    return Hooks(implementations(entries), {})


def batch_of(**changes) -> Batch:
    torch.manual_seed(0)
    targets = torch.arange(ROWS) % CLASSES
    return replace(Batch(torch.randn(ROWS, 2, 4, 4), targets, torch.arange(ROWS)), **changes)


def forward_of(*methods: Method, start="images", classification=True, autocast=None) -> StepForward:
    torch.manual_seed(1)
    model = Model(Net(), nn.Linear(5, CLASSES), {})
    return StepForward(model, hooks_of(*methods), start, classification, autocast)


def test_by_default_the_mean_cross_entropy():
    forward, batch = forward_of(), batch_of()
    terms = forward(batch, None)
    assert list(terms) == ["classification"]
    assert torch.equal(terms["classification"], cross_entropy(forward.model(batch.images), batch.targets))


def test_class_weights_give_torchs_weighted_mean():
    forward, batch = forward_of(), batch_of()
    expected = cross_entropy(forward.model(batch.images), batch.targets, WEIGHTS)
    torch.testing.assert_close(forward(batch, WEIGHTS)["classification"], expected)


MIXED = {
    "partner_targets": torch.tensor([2, 2, 0, 1, 0, 1]),
    "target_weight": torch.tensor([0.9, 0.5, 0.0, 1.0, 0.3, 0.6]),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("appended", [0, 2])
def test_a_mixed_batch_counts_for_both_labels_by_share(weights, appended):
    def append(features: Features) -> Features:
        return features.append(features.features[:appended] + 1, torch.tensor([1, 2]), torch.tensor([0, 1]))

    forward, batch = forward_of(*([Act("pooled", append)] if appended else [])), batch_of(**MIXED)
    pooled = forward.model.backbone(batch.images)
    rows, labels, partners = list(pooled), batch.targets.tolist(), MIXED["partner_targets"].tolist()
    shares = MIXED["target_weight"].tolist()
    if appended:
        rows, labels, partners, shares = [*rows, *(pooled[:2] + 1)], [*labels, 1, 2], [*partners, 1, 2], [*shares, 1, 1]
    total, mass = 0.0, 0.0
    for row, label, partner, share in zip(rows, labels, partners, shares, strict=True):  # by hand
        log = forward.model.classifier(row).log_softmax(0)
        for target, part in ((label, share), (partner, 1 - share)):
            weight = part * (1.0 if weights is None else float(weights[target]))
            total, mass = total - weight * log[target], mass + weight
    torch.testing.assert_close(forward(batch, weights)["classification"], total / mass)


OWN = torch.tensor([1.0, 0.2, 0.0, 3.0, 0.5, 1.0])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("mixed", [{}, MIXED], ids=["plain", "mixed"])
def test_rows_count_for_their_own_weight_and_appended_ones_for_one(weights, mixed):
    def weigh(features: Features) -> Features:
        weighed = replace(features, loss_weight=OWN)
        return weighed.append(features.features[:2] + 1, torch.tensor([1, 2]), torch.tensor([0, 1]))

    forward, batch = forward_of(Act("pooled", weigh)), batch_of(**mixed)
    pooled = forward.model.backbone(batch.images)
    rows, labels = [*pooled, *(pooled[:2] + 1)], [*batch.targets.tolist(), 1, 2]
    partners = [*mixed["partner_targets"].tolist(), 1, 2] if mixed else labels
    shares = [*mixed["target_weight"].tolist(), 1, 1] if mixed else [1] * len(rows)
    total, mass = 0.0, 0.0
    for row, label, partner, share, own in zip(rows, labels, partners, shares, [*OWN.tolist(), 1, 1], strict=True):
        log = forward.model.classifier(row).log_softmax(0)
        for target, part in ((label, share), (partner, 1 - share)):
            weight = part * own * (1.0 if weights is None else float(weights[target]))
            total, mass = total - weight * log[target], mass + weight
    torch.testing.assert_close(forward(batch, weights)["classification"], total / mass)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_weight_that_all_rows_share_changes_nothing(weights):
    def weigh(features: Features) -> Features:
        return replace(features, loss_weight=torch.full((ROWS,), 0.25))

    with_it, without = (forward_of(*methods)(batch_of(), weights) for methods in ([Act("pooled", weigh)], []))
    torch.testing.assert_close(with_it["classification"], without["classification"])


def test_the_fold_and_the_loss_see_each_of_the_two_labels():
    seen = []

    class Shift(Method):
        @hookimpl
        def adjust_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
            seen.append(targets.tolist())
            return logits + targets[:, None]  # changes no softmax

    forward, batch = forward_of(Shift()), batch_of(**MIXED)
    mixed = forward(batch, None)["classification"]
    assert seen == [batch.targets.tolist(), MIXED["partner_targets"].tolist()]
    torch.testing.assert_close(mixed, forward_of()(batch, None)["classification"])


def test_rows_that_are_sources_only_must_be_dropped():
    batch = batch_of(source_only=torch.arange(ROWS) > 3)
    with pytest.raises(PluginError, match="sources only, and no method's augment_features used and dropped them"):
        forward_of()(batch, None)

    def drop(features: Features) -> Features:
        kept = {name: getattr(features, name)[:4] for name in ("features", "targets", "source_index", "synthetic")}
        return replace(features, source_only=None, **kept)

    forward = forward_of(Act("maps", drop))
    expected = cross_entropy(forward.model(batch.images[:4]), batch.targets[:4])
    torch.testing.assert_close(forward(batch, None)["classification"], expected)


def test_taps_are_met_in_the_networks_order_and_see_appended_rows():
    seen = []

    def look(name: str, extra: int):
        def change(features: Features) -> Features:
            seen.append((name, tuple(features.features.shape), len(features.targets), int(features.synthetic.sum())))
            assert features.images is not None and len(features.images) == ROWS
            return features.append(features.features[:extra], features.targets[:extra], features.source_index[:extra])

        return change

    methods = [Act(tap, look(tap, extra)) for tap, extra in (("pooled", 1), ("late", 3), ("early", 2))]
    forward = forward_of(Act("early", look("first", 0)), *methods)
    logits = []
    forward.model.classifier.register_forward_hook(lambda module, inputs, output: logits.append(output.shape))
    terms = forward(batch_of(), None)
    assert seen == [
        ("first", (6, 4, 4, 4), 6, 0),
        ("early", (6, 4, 4, 4), 6, 0),
        ("late", (8, 5, 4, 4), 8, 2),
        ("pooled", (11, 5), 11, 5),
    ]
    assert logits == [(12, CLASSES)] and terms["classification"].isfinite()


def test_a_cached_batch_starts_at_its_tap():
    forward, batch = forward_of(start="maps"), batch_of()
    maps = forward.model.backbone.forward_maps(batch.images)
    cached = forward(replace(batch, images=maps), None)["classification"]
    torch.testing.assert_close(cached, forward_of()(batch, None)["classification"])
    seen = []
    forward = forward_of(Act("pooled", lambda features: seen.append(features.images) or features), start="pooled")
    pooled = forward(replace(batch, images=maps.mean((2, 3))), None)["classification"]
    torch.testing.assert_close(pooled, cached)
    assert seen == [None]  # there are no images


class Own(Method):
    auxiliary = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    @hookimpl
    def auxiliary_losses(self, features: Features, logits: Tensor) -> dict[str, Tensor]:
        assert logits.dtype == torch.float32
        return {"size": self.layer(features.features).mean()}


@pytest.mark.parametrize("classification", [True, False])
def test_bf16_gives_float32_losses(classification):
    forward = forward_of(Act("maps"), Own(), autocast=torch.bfloat16, classification=classification)
    dtypes = []
    forward.model.classifier.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    terms = forward(batch_of(), WEIGHTS)
    assert dtypes == [torch.bfloat16]
    assert list(terms) == (["classification"] if classification else []) + ["m1/size"]
    assert all(term.dtype == torch.float32 and term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    exact = forward_of(Act("maps"), Own(), classification=classification)(batch_of(), WEIGHTS)
    assert not classification or (terms["classification"] - exact["classification"]).abs() < 0.05


def test_the_loss_is_one_value_a_sample():
    class Reduced(Method):
        @hookimpl
        def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(logits, targets)

    record = Features.of(batch_of(), torch.randn(ROWS, 5), None)
    with pytest.raises(PluginError, match=r"compute_loss returned shape \[\] for 6 samples"):
        classification_loss(hooks_of(Reduced()), torch.randn(ROWS, CLASSES), record, None)
