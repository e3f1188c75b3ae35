import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from ltcore_cifar_resnet import CifarResNet
from torch import nn

from ltcore import Backbone, Batch, Context, Features, Method, hookimpl
from ltcore.contract import hookspecs
from ltcore.contract.classifier import CalibratedClassifier
from ltcore.contract.hook import Kind, Moment
from ltcore.contract.samplers import PlainSampler
from ltcore.data.synthetic import Synthetic
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError, RunError

RECORD = SimpleNamespace(losses={})
LOGITS, TARGETS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), torch.tensor([0, 2])


def hooks_of(*methods: Method, weights=None, **named: Method) -> Hooks:
    named |= {f"m{index}": method for index, method in enumerate(methods)}
    entries = [Entry(key, Offer(key, f"x:{key}", f"ltcore-{key}", "1.2"), method) for key, method in named.items()]
    return Hooks(implementations(entries), {}, weights)


def method(**functions) -> Method:
    """A method of these hooks; other names are plain attributes."""
    marked = {k: hookimpl(v) if inspect.isfunction(v) and k != "helper" else v for k, v in functions.items()}
    return type("Made", (Method,), marked)()


# What the specifications say of themselves


def test_every_hook_is_documented_typed_and_has_a_kind():
    declared = {name for name, item in vars(hookspecs).items() if hasattr(item, "ltcore_spec")}
    assert declared == set(hookspecs.HOOKS)
    for name, hook in hookspecs.HOOKS.items():
        function = getattr(hookspecs, name)
        assert hook.name == name and hook.kind in get_args(Kind) and hook.called in get_args(Moment)
        assert function.__doc__.strip().endswith("."), name
        assert set(function.__annotations__) == {*inspect.signature(function).parameters, "return"}, name
        assert (function.__annotations__["return"] == "None") == (hook.kind == "all"), name


def test_a_declaration_is_whole():
    for hook in hookspecs.HOOKS.values():
        assert hook.arguments == tuple(inspect.signature(getattr(hookspecs, hook.name)).parameters)
        in_stages = hook.kind == "one" and hook.in_stages
        assert bool(hook.acts) == (hook.default is not None) == in_stages, hook.name
        assert bool(hook.declared_in) == (hook.kind == "sum"), hook.name
        if hook.default is not None:
            assert set(inspect.signature(hook.default.answer).parameters) <= set(hook.arguments), hook.name


# Kinds


def test_one_none_means_cores_default():
    core = SimpleNamespace(training_targets=torch.arange(20) % 3, num_classes=3)
    hooks = Hooks(implementations([]), {"": core})
    assert hooks.call(hookspecs.class_distribution) is None and hooks.call(hookspecs.class_weights) is None
    sampler = hooks.call(hookspecs.build_sampler, 8)
    assert isinstance(sampler, PlainSampler) and (sampler.size, sampler.batch_size) == (20, 8)
    classifier = hooks.call(hookspecs.build_classifier, 4, 3, None)
    assert isinstance(classifier, nn.Linear) and classifier.weight.shape == (3, 4) and not classifier.bias.any()
    assert hooks.call(hookspecs.adjust_logits, LOGITS, TARGETS, RECORD) is LOGITS
    assert hooks.call(hookspecs.auxiliary_losses, RECORD, LOGITS) == {} and hooks.taps == {}
    expected = nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none")
    assert torch.equal(hooks.call(hookspecs.compute_loss, LOGITS, TARGETS, RECORD), expected)


def test_one_answers():
    hooks = hooks_of(method(compute_loss=lambda self, logits: logits.sum(1)))
    assert torch.equal(hooks.call(hookspecs.compute_loss, LOGITS, TARGETS, RECORD), LOGITS.sum(1))


def test_a_fold_goes_through_the_methods_in_order():
    double, add = (
        method(adjust_logits=lambda self, logits: 2 * logits),
        method(adjust_logits=lambda self, logits: 1 + logits),
    )
    assert torch.equal(hooks_of(double, add).call(hookspecs.adjust_logits, LOGITS, TARGETS, RECORD), 2 * LOGITS + 1)
    assert torch.equal(hooks_of(add, double).call(hookspecs.adjust_logits, LOGITS, TARGETS, RECORD), 2 * (LOGITS + 1))


def test_features_fold_tap_by_tap():
    def at(place, change):
        return method(
            tap=place, augment_features=lambda self, features: replace(features, features=change(features.features))
        )

    rows = Features.of(Batch(torch.zeros(2, 3, 1, 1), TARGETS, torch.arange(2)), torch.full((2, 1), 3.0), None)
    hooks = hooks_of(at("maps", lambda x: x + 1), at("pooled", lambda x: x + 10), at("maps", lambda x: x * 2))
    assert list(hooks.taps) == ["maps", "pooled"]
    assert hooks.taps["maps"](rows).features.tolist() == [[8], [8]]
    assert hooks.taps["pooled"](rows).features.tolist() == [[13], [13]]


def test_a_product_multiplies():
    hooks = hooks_of(
        method(class_weights=lambda self: torch.tensor([1.0, 2.0])),
        method(class_weights=lambda self: torch.tensor([3.0, 0.5])),
    )
    assert hooks.call(hookspecs.class_weights).tolist() == [3, 1]


def test_a_product_leaves_out_what_is_none():
    none, some = method(class_weights=lambda self: None), torch.tensor([1.0, 2.0])
    assert hooks_of(none, none).call(hookspecs.class_weights) is None
    for methods in [(none, method(class_weights=lambda self: some)), (method(class_weights=lambda self: some), none)]:
        assert hooks_of(*methods).call(hookspecs.class_weights) is some


def test_a_sum_is_namespaced_and_weighted():
    def terms(**values):
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        return method(auxiliary=tuple(values), auxiliary_losses=lambda self: tensors)

    hooks = hooks_of(safa=terms(cycle=2.0, gan=3.0), glag=terms(cycle=5.0), weights={"safa/cycle": 10.0})
    assert hooks.call(hookspecs.auxiliary_losses, RECORD, LOGITS) == {"safa/cycle": 20, "safa/gan": 3, "glag/cycle": 5}


@pytest.mark.parametrize("returned", [{}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "typo": 2}])
def test_a_sum_is_what_was_declared(returned):
    hooks = hooks_of(safa=method(auxiliary=("a", "b"), auxiliary_losses=lambda self: returned))
    with pytest.raises(PluginError, match=r"'safa' \(ltcore-safa 1.2\) declares the auxiliary losses \['a', 'b'\]"):
        hooks.call(hookspecs.auxiliary_losses, RECORD, LOGITS)


def test_each_answer_is_its_methods_own():
    first, none, last = (method(image_transform=lambda self, value=value: value) for value in (len, None, abs))
    hooks = hooks_of(first=first, none=none, last=last)
    assert list(hooks.call(hookspecs.image_transform).items()) == [("first", len), ("last", abs)]
    assert hooks_of().call(hookspecs.image_transform) == {}


def test_all_are_called_in_order():
    seen = []
    first, second = (method(on_epoch_end=lambda self, name=name: seen.append(name)) for name in "ab")
    hooks_of(second, first).call(hookspecs.on_epoch_end)
    assert seen == ["b", "a"]


# What a method may write


def test_arguments_are_any_of_the_hooks_by_name():
    context = object()
    made = method(build_classifier=lambda self, num_classes, context, feature_dim: (feature_dim, num_classes, context))
    entry = Entry("m", Offer("m", "x:M", "d", "1"), made)
    (answer,) = implementations([entry])["build_classifier"]
    assert answer.arguments == ("num_classes", "context", "feature_dim")

    class Seen:
        begin = staticmethod(lambda hook: None)

    context = Seen()
    assert answer.bind(context)(8, 3, None) == (8, 3, context)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"compute_los": lambda self, logits: logits}, "there is no hook 'compute_los'; did you mean 'compute_loss'?"),
        ({"compute_loss": lambda self, logit: logit}, "hook compute_loss has no argument 'logit'; it has logits, targ"),
        ({"on_run_start": hookimpl(lambda self: 0, tryfirst=True)}, "hook on_run_start must not ask for tryfirst"),
        ({"on_run_start": hookimpl(lambda self: 0, trylast=True)}, "hook on_run_start must not ask for tryfirst"),
        ({"mine": hookimpl(lambda self, x: x, specname="compute_loss")}, "hook compute_loss has no argument 'x'"),
        ({"mine": hookimpl(lambda self, x: x, specname="lose")}, "there is no hook 'lose'"),
    ],
)
def test_a_wrongly_written_hook_is_an_error_that_names_the_plugin(functions, message):
    made = type("Made", (Method,), {k: v if hasattr(v, "ltcore_impl") else hookimpl(v) for k, v in functions.items()})
    with pytest.raises(PluginError) as error:
        hooks_of(bad=made())
    assert str(error.value).startswith(f"'bad' (ltcore-bad 1.2): {message}") and "tell its author" in str(error.value)


def test_a_wrong_method_leaves_nothing_behind_for_the_next_one():
    wrong = type("Wrong", (Method,), {"compute_los": hookimpl(lambda self, logits: logits)})
    right = type("Right", (Method,), {"adjust_logits": hookimpl(lambda self, logits: logits)})
    for _ in range(2):
        with pytest.raises(PluginError, match="there is no hook 'compute_los'"):
            hooks_of(bad=wrong())
        assert [answer.entry.key for answer in hooks_of(bad=right()).answers["adjust_logits"]] == ["bad"]


def test_a_wrapper_is_refused():
    def wrap(self):
        yield

    made = type("Made", (Method,), {"on_run_start": hookimpl(wrap, wrapper=True)})
    with pytest.raises(PluginError, match=r"'bad' .* hook on_run_start must not ask for .* a wrapper"):
        hooks_of(bad=made())


def test_a_hook_under_another_name_and_an_optional_one():
    def mine(self, logits):
        return logits * 2

    functions = {
        "mine": hookimpl(mine, specname="adjust_logits"),
        "a_later_cores_hook": hookimpl(lambda self: None, optionalhook=True),
    }
    hooks = hooks_of(type("Made", (Method,), functions)())
    assert torch.equal(hooks.call(hookspecs.adjust_logits, LOGITS, TARGETS, RECORD), 2 * LOGITS)


def test_what_a_method_raises_names_it_its_version_and_the_hook():
    def fail(self):
        raise KeyError("weight")

    with pytest.raises(
        RunError, match=r"^'safa' \(ltcore-safa 1.2\) failed in on_run_start: KeyError: 'weight'.*--debug"
    ):
        hooks_of(safa=method(on_run_start=fail)).call(hookspecs.on_run_start)

    def refuse(self):
        raise RecipeError("confusing is 9; use at most 3")

    with pytest.raises(RecipeError, match=r"^'ofa' \(ltcore-ofa 1.2\): confusing is 9; use at most 3$"):
        hooks_of(ofa=method(on_run_start=refuse)).call(hookspecs.on_run_start)


# A real run, seen by a method that answers every hook

CALLS: list[str] = []
CLASSES, WIDTH, BATCH = 4, 16, 26  # two batches of the 52 images


def seen(name: str, context: Context | None = None) -> None:
    CALLS.append(name)
    assert context is None or (isinstance(context, Context) and context.num_classes == CLASSES)


class RecordingData(Synthetic):
    @hookimpl
    def build_data(self):
        seen("build_data")
        return super().build_data()


class RecordingBackbone(CifarResNet):
    @hookimpl
    def build_backbone(self, in_channels, image_size):
        seen("build_backbone")
        assert in_channels == 3 and image_size in (8, 32)
        return super().build_backbone(in_channels)


def keep_image(image, target, generator):
    return image


class Recorder(Method):
    auxiliary = ("term",)
    tap = "maps"

    @hookimpl
    def adapt_backbone(self, backbone):
        seen("adapt_backbone")
        assert isinstance(backbone, Backbone) and backbone.feature_dim == WIDTH
        return backbone

    @hookimpl
    def on_run_start(self, context):
        seen("on_run_start", context)
        assert context.stage == "" and context.class_counts.tolist() == [24, 16, 8, 4]

    @hookimpl
    def build_classifier(self, feature_dim, num_classes, previous, context):
        seen("build_classifier", context)
        assert (feature_dim, num_classes) == (WIDTH, CLASSES)
        assert (previous is None) == (context.stage_index == 0)
        return nn.Linear(feature_dim, num_classes)

    @hookimpl
    def on_stage_start(self, context):
        seen("on_stage_start", context)
        assert context.epoch == -1 and context.stage == ("one", "two")[context.stage_index]

    @hookimpl
    def build_sampler(self, batch_size, context):
        seen("build_sampler", context)
        assert batch_size == BATCH
        return PlainSampler(context.training_targets, context.num_classes, batch_size)

    @hookimpl
    def on_epoch_start(self, context):
        seen("on_epoch_start", context)
        assert 0 <= context.epoch < context.epochs and context.progress.shape == ()

    @hookimpl
    def class_weights(self, context):
        seen("class_weights", context)
        return torch.ones(CLASSES)

    @hookimpl
    def class_distribution(self, context):
        seen("class_distribution", context)
        return torch.full((CLASSES,), 1 / CLASSES)

    @hookimpl
    def extra_rows(self, indices, generator, context):
        seen("extra_rows", context)
        return [batch[:0] for batch in indices]

    @hookimpl
    def image_transform(self, context):
        seen("image_transform", context)
        assert context.epoch >= 0
        return keep_image

    @hookimpl
    def mix_inputs(self, batch, context):
        seen("mix_inputs", context)
        assert len(batch.extra.targets) == 0
        assert isinstance(batch, Batch) and batch.images.shape == (BATCH, 3, 8, 8) and batch.partner_targets is None
        assert torch.equal(batch.targets, context.training_targets[batch.source_index])
        return batch

    @hookimpl
    def augment_features(self, features, context):
        seen("augment_features", context)
        assert isinstance(features, Features) and features.features.shape == (BATCH, WIDTH, 2, 2)
        assert features.synthetic.shape == (BATCH,) and not features.synthetic.any()
        assert features.images.shape == (BATCH, 3, 8, 8) and len(features.extra.features) == 0
        return features.append(features.features[:4], features.targets[:4], features.source_index[:4])

    @hookimpl
    def adjust_logits(self, logits, targets, features, context):
        seen("adjust_logits", context)
        assert torch.equal(features.targets, targets) and context.learning_rate == 0.05
        assert logits.shape == (BATCH + 4, CLASSES) and targets.shape == (BATCH + 4,)
        return logits

    @hookimpl
    def compute_loss(self, logits, targets, context):
        seen("compute_loss", context)
        assert logits.dtype == torch.float32 and targets.dtype == torch.int64
        return nn.functional.cross_entropy(logits, targets, reduction="none")

    @hookimpl
    def sample_weights(self, values, features, context):
        seen("sample_weights", context)
        assert values.shape == features.targets.shape == (BATCH + 4,)
        return torch.ones_like(values)

    @hookimpl
    def auxiliary_losses(self, features, logits, context):
        seen("auxiliary_losses", context)
        assert features.features.shape == (BATCH + 4, WIDTH) and logits.shape == (BATCH + 4, CLASSES)
        assert features.synthetic.sum() == 4
        return {"term": features.features.square().mean()}

    @hookimpl
    def compute_gradients(self, objective, context):
        seen("compute_gradients", context)
        return objective.gradients(objective())

    @hookimpl
    def after_step(self, context):
        seen("after_step", context)
        assert not torch.is_grad_enabled()

    @hookimpl
    def on_epoch_end(self, context):
        seen("on_epoch_end", context)

    @hookimpl
    def on_stage_end(self, context):
        seen("on_stage_end", context)
        assert not torch.is_grad_enabled()

    @hookimpl
    def post_calibrate(self, classifier, context):
        seen("post_calibrate", context)
        assert classifier is not context.model.classifier and not torch.is_grad_enabled()
        return CalibratedClassifier(classifier)


def test_a_real_run_calls_every_hook_in_the_documented_order(offer_methods, make_run):
    CALLS.clear()
    offer_methods({"recorder": Recorder, "rec_data": RecordingData, "rec_backbone": RecordingBackbone})
    common = {"batch_size": BATCH, "methods": ["recorder"], "optimizer": {"lr": 0.05}}
    make_run(
        data="{use: rec_data, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}",
        backbone="{use: rec_backbone, options: {depth: 8, width: 4}, adapt: [recorder]}",
        methods={"recorder": {}},
        stages=[
            {"name": "one", "epochs": 1, **common},
            {"name": "two", "iterations": 3, "classifier": "rebuild", **common},
        ],
        calibrate=["recorder"],
    ).execute()
    loss = ["adjust_logits", "compute_loss", "sample_weights", "auxiliary_losses"]
    step = ["compute_gradients", "mix_inputs", "augment_features", *loss, "after_step"]
    before = ["on_epoch_start", "class_weights", "class_distribution", "extra_rows", "image_transform"]
    begin = ["build_classifier", "on_stage_start", "build_sampler"]
    network = ["build_backbone", "adapt_backbone"]
    assert CALLS == [
        *[*network, "build_data", *network, "on_run_start"],  # the first on the meta device, for names
        *[*begin, *before, *step, *step, "on_epoch_end", "on_stage_end"],
        *[*begin, *before, *step, *step, "on_epoch_end", *before, *step, "on_epoch_end", "on_stage_end"],
        "post_calibrate",
    ]
    others = [name for name in hookspecs.HOOKS if name != "build_ensemble"]  # of a backbone with experts: test_experts
    assert list(dict.fromkeys(CALLS[2:])) == others
