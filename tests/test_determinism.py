"""One seed, one result; and every draw depends on what it is for, not on what was drawn before."""

import json

import numpy as np
import pytest
import torch

import ltcore
from ltcore import EpochBatches, Method, hookimpl
from ltcore.contract.context import Context, RunState
from ltcore.contract.samplers import PlainSampler, class_balanced_distribution, square_root_distribution
from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import InMemoryLoader
from ltcore.errors import PluginError
from ltcore.files import checkpoint
from ltcore.seeding import derive_seed, generator_for, seed_globally

SGD = "optimizer: {name: sgd, lr: 0.05, momentum: 0.9}"


@pytest.fixture(autouse=True)
def one_thread():
    """Steps as small as these are slower on two threads, and much slower where other processes are at work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(path, out, *sets, seed=None, resume=False):
    """Train a recipe in this process; returns what must be equal: metrics.jsonl, predictions.npz and result.json."""
    done = ltcore.run(path, sets, seed, out, resume)
    result, directory = done.result, done.path
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    with np.load(directory / "predictions.npz") as arrays:
        predictions = {name: arrays[name].tobytes() for name in arrays}
    calibrated = json.dumps([result["before_calibration"], result["after_calibration"]])
    return [(line["stage"], line["epoch"], line["loss"], line["lr"]) for line in lines], predictions, calibrated


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def write(write_recipe):
    """``write("focal", gamma=0)``: two stages, in which all core's randomness has a part, with one more method."""

    def write(method="", **options):
        more = f", {method}: {{options: {json.dumps(options)}}}" if method else ""
        return write_recipe(
            data="{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, "
            "transform: {crop_padding: 1, flip: true}}",
            methods=f"{{ofa: {{options: {{head_ratio: 0.7}}}}, tau_norm: {{}}{more}}}",
            stages=f"[{{name: one, epochs: 2, batch_size: 10, methods: [{method}], {SGD}}},"
            f" {{name: two, iterations: 9, batch_size: 8, methods: [{method}{', ' * bool(method)}ofa],"
            f" trainable: [classifier], classifier: rebuild, cache: 'views:2', {SGD}}}]",
            calibrate="[tau_norm]",
        )

    return write


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(write, tmp_path):
    recipe = write()
    first = train(recipe, tmp_path / "a")
    torch.manual_seed(99)  # what the process did before has no say
    torch.rand(7)
    assert train(recipe, tmp_path / "b") == first
    assert train(recipe, tmp_path / "c", seed=0) == first
    other = train(recipe, tmp_path / "d", seed=1)
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


@pytest.mark.parametrize(("method", "off"), [("focal", {"gamma": 0.0}), ("logit_adjustment", {"tau": 0.0})])
def test_a_method_that_its_options_switch_off_changes_nothing(method, off, write, tmp_path):
    without = train(write(), tmp_path / "without")
    assert train(write(method), tmp_path / "on") != without
    assert train(write(method, **off), tmp_path / "off") == without


def test_a_method_that_draws_does_not_disturb_the_others(offer_methods, write, tmp_path):
    class Idle(Method):
        """Draws much, in a step and outside, and changes nothing."""

        @hookimpl
        def on_stage_start(self, context):
            torch.rand(5, generator=context.generator)

        @hookimpl
        def on_epoch_start(self, context):
            torch.rand(3)

        @hookimpl
        def adjust_logits(self, logits, context):
            torch.rand(len(logits), generator=context.generator)
            return logits

    offer_methods(idle=Idle)
    without = train(write(), tmp_path / "without")
    assert train(write("idle"), tmp_path / "with") == without


# ---------------------------------------------------------------- what methods draw and look at


class Curious(Method):
    """Looks at everything there is, draws in every hook, and lets all of it change the training."""

    def __init__(self, options=None):
        super().__init__(options)
        self.register_buffer("seen", torch.zeros(3))

    def look(self, context):
        drawn = torch.rand(3, generator=context.generator) + torch.rand(3)  # its own randomness, and torch's
        features = context.training_features().mean() + context.progress + context.epochs + context.stage_index
        self.seen.mul_(0.5).add_(drawn * features.tanh())

    @hookimpl
    def on_stage_start(self, context):
        self.look(context)

    @hookimpl
    def on_epoch_start(self, context):
        self.look(context)

    @hookimpl
    def on_epoch_end(self, context):
        self.look(context)

    @hookimpl
    def build_classifier(self, feature_dim, num_classes, context):
        classifier = torch.nn.Linear(feature_dim, num_classes)
        classifier.weight.data += torch.rand(classifier.weight.shape, generator=context.generator) - 0.5
        return classifier

    @hookimpl
    def build_sampler(self, batch_size, context):
        offset = int(torch.randint(20, (), generator=context.generator) + torch.randint(20, ()))

        class Rolled(PlainSampler):
            def draw(self, *arguments):
                return EpochBatches([(i + offset) % self.size for i in super().draw(*arguments).indices])

        return Rolled(context.training_targets, context.num_classes, batch_size)

    @hookimpl
    def class_weights(self, context):
        return 1 + torch.rand(context.num_classes, generator=context.generator) + torch.rand(()) + context.progress

    @hookimpl
    def adjust_logits(self, logits, context):
        noise = torch.rand(logits.shape, generator=context.generator) + torch.rand_like(logits)
        return logits + noise * self.seen.mean()

    @hookimpl
    def post_calibrate(self, classifier, context):
        self.look(context)
        classifier.weight.mul_(1 + self.seen.mean() + torch.rand(classifier.weight.shape))
        return classifier


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_methods_see_and_draw_the_same_wherever_a_run_stopped(
    offer_methods, write_recipe, tmp_path, monkeypatch, every
):
    offer_methods(curious=Curious)
    stage = f"epochs: 2, batch_size: 26, methods: [curious], {SGD}"
    path = write_recipe(
        checkpoint_seconds=0,
        methods="{curious: {}}",
        # The second stage has the name that calibration has in the context.
        stages=f"[{{name: one, {stage}}}, {{name: calibration, classifier: rebuild, {stage}}}]",
        calibrate="[curious]",
    )
    real, left = checkpoint.save, 0

    def save(*arguments):
        nonlocal left
        real(*arguments)
        left -= 1
        if left == 0:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save", save)
    whole = train(path, tmp_path / "whole")
    saves = -left
    # Two steps in each of two epochs, the stage's file, and twice the stage's end; and the calibrated model.
    assert saves == 2 * (2 * 2 + 3) + 1
    for stop in range(1, saves + 1, every):
        left = stop
        with pytest.raises(Stopped):
            train(path, tmp_path / str(stop))
        assert train(path, tmp_path / str(stop), resume=True) == whole, f"stopped after {stop} checkpoints"


def test_a_buffer_that_could_not_be_restored_is_refused(offer_methods, write_recipe, tmp_path):
    class Late(Method):
        """Makes a buffer when it is too late."""

        @hookimpl
        def on_stage_start(self):
            self.register_buffer("table", torch.zeros(2))

    offer_methods(late=Late)
    path = write_recipe(methods="{late: {}}", stages=f"[{{name: one, epochs: 1, methods: [late], {SGD}}}]")
    with pytest.raises(PluginError, match=r"stage 'one': on_stage_start made or resized late\.table, which a resumed"):
        train(path, tmp_path / "out")


# ---------------------------------------------------------------- the parts


TARGETS = torch.tensor([0] * 9 + [1] * 4 + [2] * 2)


@pytest.mark.parametrize("distribution", [None, class_balanced_distribution, square_root_distribution])
def test_a_samplers_epoch_is_a_function_of_seed_stage_and_epoch(distribution):
    shares = distribution and distribution(torch.bincount(TARGETS))

    def draw(*purpose, steps=4):
        sampler = PlainSampler(TARGETS, 3, 4)  # a new one: there is no state that a resumed run would miss
        return sampler.draw(steps, shares, generator_for("cpu", *purpose)).indices

    def same(a, b):
        return len(a) == len(b) and all(map(torch.equal, a, b))

    first = draw(0, "sampler", "one", 3)
    draw(0, "sampler", "one", 4)
    assert same(draw(0, "sampler", "one", 3), first)
    assert same(draw(0, "sampler", "one", 3, steps=2), first[:2])
    for other in [(1, "sampler", "one", 3), (0, "sampler", "two", 3), (0, "sampler", "one", 4)]:
        assert not same(draw(*other), first)


def test_a_batch_of_images_is_a_function_of_its_purpose():
    images = torch.randint(256, (15, 1, 8, 8), dtype=torch.uint8)
    loader = InMemoryLoader(ArraySplit(images, TARGETS), [0.5], [0.5], crop_padding=2, flip=True)

    def batch(*purpose):
        return loader.train_batch(torch.arange(15), generator_for("cpu", *purpose))

    first = batch(0, "images", 0, "one", 2, 5)
    assert torch.equal(batch(0, "images", 0, "one", 2, 5), first)
    assert not torch.equal(batch(0, "images", 0, "one", 2, 6), first)
    assert not torch.equal(batch(0, "images", 0, "one", 3, 5), first)


def context_of(owner, stage="one", epoch=1, step=2, seed=0):
    empty = torch.zeros(0)
    state = RunState(seed, torch.device("cpu"), 0, empty, empty, None, None, None, stage, 0, epoch, 9, step)
    return Context(state, owner)


def test_a_methods_generator_in_a_step():
    context = context_of("safa")
    first, second = torch.rand(4, generator=context.generator), torch.rand(4, generator=context.generator)
    assert not torch.equal(first, second)  # one after the other, they go on
    assert torch.equal(torch.rand(4, generator=context_of("safa").generator), first)
    for other in [{"owner": "stg"}, {"stage": "two"}, {"epoch": 2}, {"step": 3}, {"seed": 1}]:
        assert not torch.equal(torch.rand(4, generator=context_of(**{"owner": "safa", **other}).generator), first)


def test_a_methods_randomness_in_a_hook_outside_of_a_step():
    def draws(context, hook):
        context.begin(hook)
        return torch.cat([torch.rand(4, generator=context.generator), torch.rand(4)])

    context = context_of("safa", step=-1)
    first = draws(context, "on_epoch_start")
    assert not torch.equal(draws(context, "class_weights"), first)
    assert torch.equal(draws(context, "on_epoch_start"), first)
    assert not torch.equal(draws(context_of("stg", step=-1), "on_epoch_start"), first)
    assert not torch.equal(draws(context_of("safa", epoch=2, step=-1), "on_epoch_start"), first)


def test_seeds_of_purposes_that_look_alike_differ():
    purposes = [(0, "a", 1), (0, "a", "1"), (0, "a1"), ("0", "a", 1), (0, "a", 1, ""), (1, "a", 0), (0, 1, "a")]
    assert len({derive_seed(*purpose) for purpose in purposes}) == len(purposes)
    assert derive_seed(0, "crop", 3) == 327255700847384673  # not Python's hash(), which differs in each process


@pytest.mark.parametrize("there", [False, True])
def test_seeding_globally_is_what_torch_does(monkeypatch, there):
    torch.manual_seed(20260713)
    expected = torch.rand(3)
    seeded = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seed_globally(20260713)
    assert torch.equal(torch.rand(3), expected) and torch.initial_seed() == 20260713
    assert seeded == [20260713] * there
