"""Networks with several experts: rows of all of them in training, one classifier each, their mean in evaluation."""

from dataclasses import fields, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ltcore
from ltcore import Batch, CalibratedClassifier, ExpertClassifiers, Features, Method, hookimpl, row_logits
from ltcore.contract.experts import MeanOfExperts, as_rows, by_image
from ltcore.contract.model import Model
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError
from ltcore.evaluation.diagnostics import diagnose
from ltcore.evaluation.outputs import logits_of, pooled_features
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe, render
from ltcore.recipe.loading import load_recipe
from ltcore.testing.parts import CheckBackbone, CheckBackboneOptions
from ltcore.training.step import StepForward

E, ROWS, CLASSES, WIDTH = 3, 6, 4, 8
SPLIT = f"{{use: split, options: {{experts: {E}}}}}"
STAGE = {"batch_size": 12, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}


@pytest.fixture(autouse=True)
def offered(offer_methods):
    offer_methods(split=CheckBackbone, calls=Calls, trained=Trained, alone=Alone)


class Calls(Method):
    """Keeps what it is told while classifiers are built and calibrated, and at other times."""

    seen: ClassVar[dict] = {}

    @hookimpl
    def build_classifier(self, feature_dim, num_classes, previous, context):
        if context.stage_index:
            self.seen.setdefault("previous", []).append(previous)
            self.seen.setdefault("means", []).append(context.class_means())
        return nn.Linear(feature_dim, num_classes)

    @hookimpl
    def on_stage_start(self, context):
        self.seen["all"] = {
            "training": context.training_features(),
            "validation": context.validation_features(),
            "means": context.class_means(),
            "shared": context.training_features("layer2"),
            "shape": context.feature_shape("pooled"),
        }

    @hookimpl
    def post_calibrate(self, classifier, context):
        self.seen.setdefault("calibrated", []).append(context.training_features())
        assert context.validation_features().ndim == 2 and context.training_features("layer2").ndim == 4
        return CalibratedClassifier(classifier, shift=torch.rand(CLASSES, generator=context.generator))


class Weighted(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(experts))

    def forward(self, pooled, logits):
        return (logits * self.scores.softmax(0)[:, None]).sum(1)


class Trained(Method):
    """Combines experts by weights that it trains on the loss of the combined logits."""

    requires = frozenset({"experts"})
    auxiliary = ("combined",)

    @hookimpl
    def build_ensemble(self, feature_dim, num_classes, experts):
        assert (feature_dim, num_classes, experts) == (WIDTH, CLASSES, E)
        return Weighted(experts)

    @hookimpl
    def auxiliary_losses(self, features, logits, context):
        targets, each = by_image(features.targets, E)[:, 0], by_image(logits, E)
        return {"combined": cross_entropy(context.model.classifier.ensemble(None, each), targets)}


class Alone(Method):
    requires = frozenset({"one_network"})

    @hookimpl
    def adjust_logits(self, logits):
        return logits


def network(experts=E, seed=0):
    torch.manual_seed(seed)
    return CheckBackbone(CheckBackboneOptions(experts=experts)).build_backbone(3)


def model_of(experts=E):
    backbone = network(experts)
    return Model(backbone, ExpertClassifiers((nn.Linear(WIDTH, CLASSES) for _ in range(experts)), MeanOfExperts()), {})


def batch_of(**changes):
    torch.manual_seed(1)
    return replace(Batch(torch.randn(ROWS, 3, 8, 8), torch.arange(ROWS) % CLASSES, torch.arange(ROWS)), **changes)


def hooks_of(*methods):
    entries = [Entry(f"m{i}", Offer("m", "x:M", "d", "1"), method) for i, method in enumerate(methods)]
    return Hooks(implementations(entries), {})


def at(tap, change):
    def augment_features(self, features):
        return change(features)

    return type("At", (Method,), {"tap": tap, "augment_features": hookimpl(augment_features)})()


def forward_of(model, *methods):
    return StepForward(model, hooks_of(*methods), "images", True, None)


# -- rows


def test_rows_stand_expert_by_expert():
    rows = torch.arange(E * ROWS * 5).view(E * ROWS, 5)
    found = by_image(rows, E)
    assert found.shape == (ROWS, E, 5) and found[2, 1].equal(rows[ROWS + 2])
    assert as_rows(found).equal(rows) and by_image(rows, 1) is rows


def test_a_split_repeats_every_field_of_a_row():
    record = Features.of(batch_of(), torch.randn(ROWS, 2), None)
    record = replace(
        record,
        partner_targets=record.targets.flip(0),
        target_weight=torch.rand(ROWS),
        kept={"a": 1},
        layout="blocks",
    )
    found = record.split(torch.randn(E * ROWS, 3), E)
    assert found.expert.tolist() == [k for k in range(E) for _ in range(ROWS)]
    assert found.features.shape == (E * ROWS, 3) and (found.kept, found.layout) == (record.kept, "blocks")
    known = {"features", "images", "layout", "extra", "extras", "losses", "kept", "expert", "expert_rows"}
    for field in fields(Features):
        if field.name not in known:
            value = getattr(record, field.name)
            assert by_image(getattr(found, field.name), E).equal(value[:, None].expand(-1, E)), field.name


def test_each_expert_is_changed_as_if_alone():
    plain = replace(Features.of(batch_of(), torch.randn(ROWS, 2), None), partner_targets=torch.arange(ROWS).flip(0))
    plain = replace(plain, target_weight=torch.rand(ROWS))
    split = plain.split(torch.randn(E * ROWS, 2), E)
    extra = replace(plain, features=plain.features[:2], targets=plain.targets[:2]).split(torch.randn(2 * E, 2), E)
    before = split.append(torch.randn(1, 2), torch.tensor([3]), torch.tensor([0]), torch.tensor([1]))
    before, seen = replace(before, extra=extra), []

    def change(record, number):
        seen.append((record, number))
        record = replace(record, features=record.features + number, synthetic=~record.synthetic, extra=None)
        return record.append(record.features[:2], record.targets[:2], record.source_index[:2]).with_losses(
            "m", term=torch.tensor(float(number))
        )

    found = before.each_expert(change)
    assert [number for _, number in seen] == list(range(E))
    for record, number in seen:
        assert record.expert is None and not record.expert_rows
        assert record.features.equal(split.features[number * ROWS : (number + 1) * ROWS])
        assert record.extra.features.equal(extra.features[2 * number : 2 * number + 2])
        for name in ("targets", "source_index", "synthetic", "partner_targets", "target_weight"):
            assert getattr(record, name).equal(getattr(plain, name)), name
    numbers = torch.arange(E).repeat_interleave(ROWS)
    torch.testing.assert_close(found.features[: E * ROWS], split.features + numbers[:, None])
    assert found.features[E * ROWS].equal(before.features[E * ROWS]), "an earlier method's row"
    assert found.expert[E * ROWS :].tolist() == [1, 0, 0, 1, 1, 2, 2] and found.extra is None
    assert found.targets[E * ROWS + 1 :].tolist() == [0, 1] * E and found.expert_rows == split.expert_rows
    assert found.synthetic.all() and found.losses["m"]["term"] == 1.0
    assert plain.each_expert(lambda record, number: replace(record, layout=number)).layout == 0


def test_appended_rows_say_whose_they_are():
    plain = Features.of(batch_of(), torch.randn(ROWS, 2), None)
    split = plain.split(torch.randn(E * ROWS, 2), E)
    more = (torch.randn(2, 2), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert split.append(*more, torch.tensor([2, 0])).expert.tolist()[-3:] == [2, 2, 0]
    with pytest.raises(PluginError, match=r"expert=features.expert\[rows\]"):
        split.append(*more)
    with pytest.raises(PluginError, match="has not split into any"):
        plain.append(*more, torch.tensor([2, 0]))


def test_logits_of_rows_are_those_of_their_own_experts():
    classifier, rows = model_of().classifier, torch.randn(5, WIDTH)
    expert = torch.tensor([2, 0, 1, 1, 2])
    expected = torch.stack([classifier.experts[k](row) for k, row in zip(expert.tolist(), rows, strict=True)])
    torch.testing.assert_close(row_logits(classifier, rows, expert), expected)
    assert row_logits(classifier.experts[0], rows, None).equal(classifier.experts[0](rows))


# -- a step


def test_a_step_trains_every_expert_as_if_alone():
    model, batch, weights = model_of(), batch_of(), torch.tensor([1.0, 3.0, 0.5, 2.0])
    model.eval()  # the norms' statistics would differ between batches
    pooled = model.backbone(batch.images)
    losses = [
        cross_entropy(model.classifier.experts[k](pooled[k * ROWS : (k + 1) * ROWS]), batch.targets, weights)
        for k in range(E)
    ]
    torch.testing.assert_close(forward_of(model)(batch, weights)["classification"], torch.stack(losses).mean())
    forward_of(model)(batch, weights)["classification"].backward()
    for k in range(E):
        expected = torch.autograd.grad(losses[k], list(model.classifier.experts[k].parameters()), retain_graph=True)
        for found, wanted in zip(model.classifier.experts[k].parameters(), expected, strict=True):
            torch.testing.assert_close(found.grad, wanted / E)


def test_rows_appended_before_and_behind_the_split_reach_their_classifiers():
    seen = {}

    def before(features):
        assert features.expert is None and len(features.targets) == ROWS
        return features.append(features.features[:1], features.targets[:1], features.source_index[:1])

    def behind(features):
        assert features.expert.tolist() == [k for k in range(E) for _ in range(ROWS + 1)]
        assert features.synthetic.view(E, ROWS + 1)[:, -1].all() and features.synthetic.sum() == E
        rows = torch.tensor([0, ROWS + 1])
        return features.append(
            features.features[rows], features.targets[rows], features.source_index[rows], features.expert[rows]
        )

    def auxiliary_losses(self, features, logits):
        seen.update(features=features, logits=logits)
        return {}

    looks = type("Looks", (Method,), {"auxiliary_losses": hookimpl(auxiliary_losses)})()
    model = model_of().eval()
    forward_of(model, at("layer2", before), at("maps", behind), looks)(batch_of(), None)
    assert len(seen["logits"]) == E * (ROWS + 1) + 2
    torch.testing.assert_close(seen["logits"][-2:], seen["logits"][[0, ROWS + 1]])
    torch.testing.assert_close(seen["logits"][ROWS], seen["logits"][0])  # the same features, by the same expert
    assert not torch.allclose(seen["logits"][0], seen["logits"][ROWS + 1])


def test_extra_rows_are_each_experts_too():
    """Before the split behind the batch's rows; behind it every method's own, expert by expert; never classified."""
    seen = {}

    def looks(tap):
        def look(features):
            seen[tap] = features
            return features

        return at(tap, look)

    shared, split = looks("layer1"), looks("maps")
    type(split).extra_rows = hookimpl(lambda self, indices: None)
    model = model_of().eval()
    extra = batch_of(images=torch.randn(2, 3, 8, 8), targets=torch.tensor([3, 1]), source_index=torch.tensor([7, 8]))
    batch = batch_of(extras={"m1": extra})
    forward_of(model, shared, split)(batch, None)
    mine = seen["maps"].extra
    assert seen["layer1"].extra is None and len(seen["layer1"].features) == ROWS
    assert mine.targets.tolist() == [3, 1] * E and mine.expert.tolist() == [0, 0, 1, 1, 2, 2]
    with torch.no_grad():
        torch.testing.assert_close(mine.features, model.backbone.forward_maps(extra.images))
        torch.testing.assert_close(seen["maps"].features, model.backbone.forward_maps(batch.images))


def test_weights_of_a_batchs_rows_are_those_of_every_expert():
    """`objective(sample_weights=w)`, w [N]; rows that methods have appended count as they are."""

    def one_more(features):
        rows = {} if features.expert is None else {"expert": features.expert[:1]}
        return features.append(features.features[:1], features.targets[:1], features.source_index[:1], **rows)

    model, batch, factors = model_of().eval(), batch_of(), torch.rand(ROWS)
    methods = at("layer2", one_more), at("pooled", one_more)
    pooled = by_image(model.backbone(batch.images), E)
    values = torch.stack(
        [cross_entropy(model.classifier.experts[k](pooled[:, k]), batch.targets, reduction="none") for k in range(E)]
    )
    expected = (values * factors).sum() + values[:, 0].sum() + values[0, 0]
    found = forward_of(model, *methods)(batch, None, factors)["classification"]
    torch.testing.assert_close(found, expected / (E * (ROWS + 1) + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: replace(f, expert=None), "augment_features dropped 'expert'"),
        (lambda f: replace(f, expert=f.expert[1:]), f"{E * ROWS} rows of features and {E * ROWS - 1} in 'expert'"),
    ],
)
def test_a_method_keeps_whose_rows_are(change, message):
    with pytest.raises(PluginError, match=message):
        forward_of(model_of(), at("pooled", change))(batch_of(), None)


def test_a_backbone_gives_as_many_rows_as_it_says():
    model = model_of()
    model.backbone.heads = model.backbone.heads[:2]
    with pytest.raises(PluginError, match=f"it has {E} experts, and gave {2 * ROWS} rows of features for {ROWS}"):
        forward_of(model)(batch_of(), None)


# -- evaluation


def test_evaluation_is_the_mean_of_the_experts_logits():
    model, images = model_of().eval(), batch_of().images
    each = [model.classifier.experts[k](rows) for k, rows in enumerate(model.backbone(images).chunk(E))]
    torch.testing.assert_close(model(images), torch.stack(each).mean(0))


def test_diagnostics_of_experts():
    model, targets = model_of(), torch.arange(ROWS) % CLASSES
    pooled = by_image(model.eval().backbone(batch_of().images), E).detach()
    split = (pooled, logits_of(model.classifier, pooled, 4), targets)
    found = diagnose(model.classifier, split, split, CLASSES, torch.Generator().manual_seed(0))
    norms = torch.stack([one.weight.norm(dim=1) for one in model.classifier.experts]).mean(0)
    torch.testing.assert_close(torch.tensor(found["classifier_norm"]), norms.detach())
    assert len(found["feature_deviation"]) == CLASSES


# -- a run


def recipe_with(write_recipe, name="r", **parts):
    data = {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}
    stages = [{"name": "joint", "epochs": 2, **STAGE}]
    given = {"data": {"use": "synthetic", "options": data, "holdout": 1}, "backbone": SPLIT, "stages": stages}
    return write_recipe(name, **{**given, **parts})


def train(path, out, resume=False):
    return ltcore.run(path, out=out, resume=resume).path


def test_each_experts_classifier_is_built_and_calibrated_by_itself(write_recipe, tmp_path):
    Calls.seen.clear()
    stages = [{"name": "joint", "epochs": 1, "methods": ["calls"], **STAGE}]
    stages.append(
        {"name": "again", "epochs": 1, "classifier": "rebuild", "methods": ["calls"], "trainable": ["classifier"]}
    )
    stages[1] |= STAGE
    path = recipe_with(write_recipe, methods={"calls": {}}, stages=stages, calibrate=["calls"])
    run = ltcore.load(train(path, tmp_path / "runs"))
    seen = dict(Calls.seen)
    images = len(seen["all"]["training"])
    assert seen["all"]["training"].shape == (images, E, WIDTH) and seen["all"]["validation"].shape == (4, E, WIDTH)
    assert seen["all"]["means"].shape == (CLASSES, E, WIDTH) and seen["all"]["shape"] == (WIDTH,)
    assert seen["all"]["shared"].shape[:2] == (images, 8)
    for k in range(E):
        torch.testing.assert_close(seen["means"][k], seen["all"]["means"][:, k])
        torch.testing.assert_close(seen["calibrated"][k], seen["all"]["training"][:, k])
    assert len({id(previous) for previous in seen["previous"]}) == E
    model = run.model  # built again without the data, and compared with the run's own logits
    assert isinstance(model.classifier, ExpertClassifiers) and len(model.classifier.experts) == E
    shifts = torch.stack([one.shift for one in model.classifier.experts])
    assert len(shifts.unique(dim=0)) == E, "each expert's calibration draws its own numbers"
    np.testing.assert_array_equal(run.predict(run.read_data().test.images).logits, run.calibrated_logits)
    assert run.features("test").shape == (16, E, WIDTH) and run.features("test", "layer2").shape[:2] == (16, 8)


@pytest.mark.parametrize("methods", [{}, {"calls": {}}])
def test_experts_begin_differently(make_run, methods):
    stage = {"name": "joint", "epochs": 1, "methods": list(methods), **STAGE}
    run = make_run(backbone=SPLIT, methods=methods, stages=[stage])
    run.assembly.start()
    run.assembly.enter("joint", 0)
    run.assembly.prepare(0, run.assembly.hooks(0))
    weights = torch.stack([one.weight for one in run.assembly.model.classifier.experts])
    assert len(weights.flatten(1).unique(dim=0)) == E


def test_a_run_that_is_killed_goes_on_to_the_same_bits(write_recipe, tmp_path, copy_at_checkpoint):
    """With a second stage that trains what combines the experts, on a frozen network."""
    router = {"name": "combine", "epochs": 2, "classification": False, "methods": ["trained"]}
    router |= {"trainable": ["classifier.ensemble"], **STAGE}
    stages = [{"name": "joint", "epochs": 2, "methods": ["ldam"], **STAGE}, router]
    path = recipe_with(
        write_recipe,
        methods={"ldam": {}, "trained": {}, "tau_norm": {}},
        stages=stages,
        calibrate=["tau_norm"],
        checkpoint_seconds=0,
    )
    for number, stage in enumerate(("joint", "combine")):
        copy_at_checkpoint(3, tmp_path / str(number) / "r", stage)
        whole = ltcore.load(train(path, tmp_path / f"runs{number}"))
        copy_at_checkpoint()
        again = ltcore.load(train(path, tmp_path / str(number), resume=True))
        np.testing.assert_array_equal(whole.calibrated_logits, again.calibrated_logits)
    scores = whole.model.classifier.ensemble.scores
    assert scores.abs().max() > 0 and not torch.allclose(scores, scores[0].expand(E))
    first, second = (stage["test"]["top1"] for stage in whole.result["stages"])
    assert whole.result["before_calibration"]["top1"] == second
    assert first is not None


@pytest.mark.parametrize("cache", ["eval", "views:2"])
@pytest.mark.parametrize("tap", ["maps", "pooled"])
def test_cached_features_are_the_rows_of_the_network(make_run, offer_methods, cache, tap):
    rows = {}

    def augment_features(self, features):
        rows.setdefault(tap, features)
        return features

    looks = type("Looks", (Method,), {"tap": tap, "augment_features": hookimpl(augment_features)})
    offer_methods(looks=looks)
    stage = {"name": "last", "epochs": 1, "trainable": ["classifier"], "methods": ["looks"], "cache": cache, **STAGE}
    run = make_run(backbone=SPLIT, methods={"looks": {}}, stages=[stage])
    run.train()
    record, model, loader = rows[tap], run.assembly.model, run.assembly.data.loaders["train"]
    whole = pooled_features(model, loader, 7, tap)
    assert len(record.features) == E * 12 and record.expert.tolist() == [k for k in range(E) for _ in range(12)]
    expected = whole[record.source_index, record.expert]
    torch.testing.assert_close(record.features, expected)


def test_a_network_of_one_expert_is_a_plain_one(write_recipe, tmp_path, offer_methods):
    """The same names and bits as a backbone that knows nothing of experts."""

    class Plain(Method):
        @hookimpl
        def build_backbone(self, in_channels):
            backbone = network(1)
            del backbone.experts  # the class's own
            return backbone

    class One(Method):
        @hookimpl
        def build_backbone(self, in_channels):
            return network(1)

    offer_methods(plain=Plain, one=One)
    logits = []
    for name in ("plain", "one"):
        run = ltcore.load(train(recipe_with(write_recipe, name, backbone=f"{{use: {name}}}"), tmp_path / "runs"))
        assert set(dict(run.model.classifier.named_parameters())) == {"weight", "bias"}
        logits.append(run.calibrated_logits)
    np.testing.assert_array_equal(*logits)


# -- plan


def test_the_plan_tells_of_experts(write_recipe):
    stages = [
        {"name": "joint", "epochs": 1, **STAGE},
        {"name": "combine", "epochs": 1, "methods": ["trained"], "trainable": ["classifier.ensemble"], **STAGE},
        {"name": "last", "epochs": 1, "trainable": ["classifier.experts.1"], **STAGE},
    ]
    described = describe(make_plan(load_recipe(recipe_with(write_recipe, methods={"trained": {}}, stages=stages))))
    assert described["backbone"]["experts"] == E
    answers = [stage["hooks"]["build_ensemble"] for stage in described["stages"]]
    assert [answer.get("core") for answer in answers] == [
        "the mean of the experts' logits",
        None,
        "kept from the stage before",
    ]
    assert f"{E} experts, each with its classifier" in render(described)
    plain = describe(make_plan(load_recipe(recipe_with(write_recipe, "one", backbone="{use: split}"))))
    assert "build_ensemble" not in plain["stages"][0]["hooks"] and "experts, each" not in render(plain)


@pytest.mark.parametrize(
    ("method", "backbone", "parts"),
    [
        ("alone", SPLIT, ["'alone'", "needs one_network (a backbone without experts, ", f"'split' has {E}, whose"]),
        ("trained", "{use: split}", ["'trained'", "needs experts (a backbone with experts)", "'split' has none"]),
    ],
)
def test_what_does_not_fit_is_refused(write_recipe, method, backbone, parts):
    stages = [{"name": "joint", "epochs": 1, "methods": [method], **STAGE}]
    with pytest.raises(RecipeError) as error:
        make_plan(load_recipe(recipe_with(write_recipe, backbone=backbone, methods={method: {}}, stages=stages)))
    assert all(part in str(error.value) for part in parts), error.value


def test_before_the_split_there_is_one_network(write_recipe, offer_methods):
    class Shared(Alone):
        tap = "layer2"

    offer_methods(shared=Shared)
    stages = [{"name": "joint", "epochs": 1, "methods": ["shared"], **STAGE}]
    make_plan(load_recipe(recipe_with(write_recipe, methods={"shared": {}}, stages=stages)))


def test_a_combination_of_experts_that_are_not_there_is_a_warning(write_recipe, offer_methods):
    class Combines(Method):
        @hookimpl
        def build_ensemble(self):
            return MeanOfExperts()

    offer_methods(combines=Combines)
    stages = [{"name": "joint", "epochs": 1, "methods": ["combines"], **STAGE}]
    path = recipe_with(write_recipe, backbone="{use: split}", methods={"combines": {}}, stages=stages)
    warning = make_plan(load_recipe(path)).warnings[-1]
    assert "stage 'joint': 'combines'" in warning and "'split' has none" in warning


def test_groups_and_trainable_know_the_experts_classifiers(write_recipe):
    groups = {"classifier.experts.0": {"lr": 0.1}, "classifier": {"lr": 0.2}}
    stage = {"name": "joint", "epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05, "groups": groups}}
    make_plan(load_recipe(recipe_with(write_recipe, stages=[stage])))
    stage["trainable"] = ["classifier.weight"]
    with pytest.raises(RecipeError, match=r"'classifier\.weight' matches nothing"):
        make_plan(load_recipe(recipe_with(write_recipe, stages=[stage])))
