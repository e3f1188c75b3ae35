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


class Weigh(Method):
    """Factors for the loss values: `own` for the batch's rows, 1 for those that `append` adds."""

    def __init__(self, own: Tensor | None, seen: list[list[int]] | None = None) -> None:
        super().__init__()
        self.own, self.seen = own, [] if seen is None else seen

    @hookimpl
    def sample_weights(self, values: Tensor, features: Features) -> Tensor | None:
        self.seen.append(features.targets.tolist())
        return None if self.own is None else torch.cat([self.own, torch.ones(len(values) - ROWS)])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("mixed", [{}, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("of_the_step", [False, True], ids=["a method's", "the objective's"])
def test_factors_scale_the_values_and_no_sum_of_weights(weights, mixed, of_the_step):
    def append(features: Features) -> Features:
        return features.append(features.features[:2] + 1, torch.tensor([1, 2]), torch.tensor([0, 1]))

    seen: list[list[int]] = []
    methods = [Act("pooled", append), Weigh(None if of_the_step else OWN, seen), Weigh(None)]
    forward, batch = forward_of(*methods), batch_of(**mixed)
    pooled = forward.model.backbone(batch.images)
    rows, labels = [*pooled, *(pooled[:2] + 1)], [*batch.targets.tolist(), 1, 2]
    partners = [*mixed["partner_targets"].tolist(), 1, 2] if mixed else labels
    shares = [*mixed["target_weight"].tolist(), 1, 1] if mixed else [1] * len(rows)
    total, mass = 0.0, 0.0
    for row, label, partner, share, own in zip(rows, labels, partners, shares, [*OWN.tolist(), 1, 1], strict=True):
        log = forward.model.classifier(row).log_softmax(0)
        for target, part in ((label, share), (partner, 1 - share)):
            weight = part * (1.0 if weights is None else float(weights[target]))
            total, mass = total - own * weight * log[target], mass + weight
    terms = forward(batch, weights, OWN if of_the_step else None)
    torch.testing.assert_close(terms["classification"], total / mass)
    assert seen == [labels, partners] if mixed else [labels]


def test_factors_of_zero_leave_no_loss_and_nobodys_factors_the_same_bits():
    batch = batch_of()
    assert forward_of(Weigh(torch.zeros(ROWS)))(batch, None)["classification"] == 0
    assert torch.equal(
        forward_of(Weigh(None))(batch, WEIGHTS)["classification"], forward_of()(batch, WEIGHTS)["classification"]
    )


def test_as_many_factors_as_rows():
    with pytest.raises(PluginError, match=r"sample_weights returned 'weights' as float32 \[5\] on cpu; for 6 rows"):
        forward_of(TooFew())(batch_of(), None)


class TooFew(Method):
    @hookimpl
    def sample_weights(self, values: Tensor) -> Tensor:
        return values[1:]


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


class Brings(Method):
    """Has extra rows; counts what it sees of them, and drops them at its tap."""

    def __init__(self, tap: str = "pooled", drop_at: str = "") -> None:
        super().__init__()
        self.place, self.drop_at = tap, drop_at
        self.seen: list[tuple[str, tuple[int, ...] | None]] = []

    @property
    def tap(self) -> str:
        return self.place

    def look(self, hook: str, record: Batch | Features) -> Batch | Features:
        extra = record.extra
        rows = None if extra is None else extra.images if isinstance(extra, Batch) else extra.features
        self.seen.append((hook, None if rows is None else tuple(rows.shape)))
        return replace(record, extra=None) if self.drop_at == hook else record

    @hookimpl
    def extra_rows(self) -> list[Tensor]:
        raise AssertionError("the loop calls it")

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        return self.look("mix_inputs", batch)

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        return self.look("augment_features", features)

    @hookimpl
    def adjust_logits(self, logits: Tensor, features: Features) -> Tensor:
        self.look("adjust_logits", features)
        return logits


def with_extra(**sizes: int) -> Batch:
    batch = batch_of()
    rows = {
        name: Batch(torch.full((n, 2, 4, 4), 9.0), torch.zeros(n).long(), torch.zeros(n).long())
        for name, n in sizes.items()
    }
    return replace(batch, extras=rows)


def test_extra_rows_are_their_methods_alone_and_never_reach_the_classifier():
    first, second = Brings("late"), Brings("early", drop_at="augment_features")

    class Other(Brings):
        extra_rows = None  # asks for none, and sees none

    other = Other("late")
    forward = forward_of(first, second, other)
    logits = []
    forward.model.classifier.register_forward_hook(lambda module, inputs, output: logits.append(output.shape))
    widths = []
    forward.model.backbone.late.register_forward_hook(lambda module, inputs, output: widths.append(len(inputs[0])))
    terms = forward(with_extra(m0=3, m1=2), None)
    assert first.seen == [
        ("mix_inputs", (3, 2, 4, 4)),
        ("augment_features", (3, 5, 4, 4)),
        ("adjust_logits", (3, 5)),
    ]
    assert second.seen == [
        ("mix_inputs", (2, 2, 4, 4)),
        ("augment_features", (2, 4, 4, 4)),
        ("adjust_logits", None),
    ]
    assert other.seen == [("mix_inputs", None), ("augment_features", None), ("adjust_logits", None)]
    assert logits == [(ROWS, CLASSES)] and widths == [ROWS + 3]
    torch.testing.assert_close(terms["classification"], forward_of()(batch_of(), None)["classification"])


def test_a_method_that_makes_its_record_anew_drops_nobodys_extra_rows():
    class Anew(Method):
        @hookimpl
        def mix_inputs(self, batch: Batch) -> Batch:
            assert not batch.extras and batch.extra is None
            return Batch(batch.images, batch.targets, batch.source_index)

        @hookimpl
        def augment_features(self, features: Features) -> Features:
            return Features(features.features, features.targets, features.source_index, features.synthetic)

    first = Brings()
    forward_of(Anew(), first)(with_extra(m1=3), None)
    assert first.seen == [("mix_inputs", (3, 2, 4, 4)), ("augment_features", (3, 5)), ("adjust_logits", (3, 5))]


def test_extra_rows_that_are_done_with_before_the_network_do_not_enter_it():
    forward = forward_of(Brings(drop_at="mix_inputs"))
    widths = []
    forward.model.backbone.early.register_forward_hook(lambda module, inputs, output: widths.append(len(inputs[0])))
    forward(with_extra(m0=3), None)
    assert widths == [ROWS]


@pytest.mark.parametrize("extra", [{}, {"m0": 0}])
def test_no_extra_rows_are_the_same_bits(extra):
    terms = forward_of(Brings())(with_extra(**extra), WEIGHTS)["classification"]
    assert torch.equal(terms, forward_of()(batch_of(), WEIGHTS)["classification"])


def test_terms_made_at_a_tap_are_weighed_as_all_are():
    class Made(Act):
        auxiliary = ("norm", "spread")

    def make(**terms):
        return lambda features: features.with_losses("m0", **terms)

    one, two = torch.tensor(1.0), torch.tensor(2.0)
    forward = forward_of(Made("late", make(norm=one, spread=two)))
    assert list(forward(batch_of(), None)) == ["classification", "m0/norm", "m0/spread"]
    with pytest.raises(
        PluginError, match=r"declares .* \['norm', 'spread'\] and returned \[\], and \['norm'\] with its"
    ):
        forward_of(Made("late", make(norm=one)))(batch_of(), None)
    with pytest.raises(PluginError, match="'norm' of auxiliary_losses is not a 0-d tensor"):
        forward_of(Made("late", make(norm=one[None], spread=two)))(batch_of(), None)


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
