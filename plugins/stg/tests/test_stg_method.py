"""The method in a small run: what it learns, what it changes, and what a resumed run keeps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ltcore_stg import STG, STGOptions
from ltcore_stg.functional import augmented, class_strength, partly_kept
from pydantic import ValidationError
from torch import nn

import ltcore
from ltcore import Batch, DataError, Features, Model, RecipeError
from ltcore.contract.model import set_trainable
from ltcore.testing import make_context, move_context, write_short_recipe

COUNTS = (40, 25, 8, 5, 2)  # with head_fraction 0.4 the head is 0 and 1


class Run:
    """What a trainer keeps, as far as STG asks, for features that are given rather than computed."""

    def __init__(self, features=None, targets=None, device="cpu", **options):
        torch.manual_seed(0)
        counts = COUNTS if targets is None else torch.bincount(targets).tolist()
        self.x = torch.randn(sum(counts), 4).relu() + 0.1 if features is None else features
        self.x = self.x.to(device)
        self.method = STG(STGOptions(**{"head_fraction": 0.4, "memory": 30, **options}))
        self.model = Model(nn.Identity(), nn.Linear(4, len(counts)), {"stg": self.method})
        given = {"targets": targets, "model": self.model, "features": lambda split, tap: self.x}
        self.context = make_context(counts, seed=3, owner="stg", device=device, **given)
        self.targets = self.context.training_targets
        self.method.on_run_start(self.context)
        self.model.to(device)

    def stage(self, name, train):
        move_context(self.context, name)
        names = {n for n, _ in self.model.named_parameters() if n.startswith("methods." if train else "classifier")}
        set_trainable(self.model, names)
        self.method.on_stage_start(self.context)
        return self

    def batch(self, step, size=16):
        move_context(self.context, epoch=0, step=step)
        return torch.randint(len(self.x), (size,), generator=torch.Generator().manual_seed(step))

    def record(self, index):
        device = self.x.device
        batch = Batch(self.x, self.targets[index].to(device), index.to(device))
        return Features.of(batch, self.x[index.to(device)], None)

    def learn(self, steps, size=16, rate=1e-3, first=0):
        optimizer = torch.optim.Adam(self.method.parameters(), rate)
        for step in range(first, first + steps):
            loss = self.method.auxiliary_losses(self.record(self.batch(step, size)))["statistics"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss


# Options, and stages that cannot be.


def test_defaults_are_the_papers():
    assert STGOptions().model_dump() == {
        "head_fraction": 0.2,
        "memory": 1200,
        "momentum": 0.9,
        "statistics_dtype": "float32",
        "hidden": None,
        "strength": 1.5,
        "threshold": 0.5,
        "mean": "use",
    }
    assert STG.requires == {"hard_labels", "one_network"} and STG.auxiliary == ("statistics",) and STG().tap == "pooled"


def test_a_hidden_layer_may_have_a_single_unit():
    assert STGOptions(hidden=1).hidden == 1


@pytest.mark.parametrize(
    "options",
    [
        {"head_fraction": 0},
        {"head_fraction": 1},
        {"memory": -1},
        {"momentum": 1},
        {"statistics_dtype": "bfloat16"},
        {"hidden": 0},
        {"strength": -1},
        {"threshold": 1.1},
        {"lambda": 1.5},
        {"mean": "zero"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        STGOptions(**options)


def test_one_class_has_no_tail():
    with pytest.raises(DataError, match="no head and tail in 1 classes"):
        Run(targets=torch.zeros(5, dtype=torch.int64))


def test_a_generator_that_no_stage_trained_does_not_augment():
    with pytest.raises(RecipeError, match="stage 'classifier' would augment with a generator that no stage has train"):
        Run().stage("classifier", train=False)


def test_a_stage_in_which_nothing_can_train_is_refused():
    stage = SimpleNamespace(classification=False, trainable=["backbone.layer1", "classifier"])
    with pytest.raises(RecipeError, match="name the method in the stage's trainable"):
        STG().check_stage(stage)
    STG().check_stage(SimpleNamespace(classification=False, trainable=["mine"], batch_size=2))
    STG().check_stage(SimpleNamespace(classification=True, trainable=["classifier"]))


def test_a_generator_that_would_learn_from_single_images_is_refused():
    with pytest.raises(RecipeError, match="batch_size 1 gives the generator's batch norm no variance"):
        STG().check_stage(SimpleNamespace(classification=True, trainable=["classifier", "stg"], batch_size=1))
    STG().check_stage(SimpleNamespace(classification=True, trainable=["classifier"], batch_size=1))


# Learning.


def slow_stage(run, batches, memory, momentum):
    """Eq. 1 with the dictionary and the smoothing, image by image in float64: the last batch's targets."""
    queue, kept = [], {}
    for index in batches:
        rows = [(i, int(run.targets[i]), run.x[i].double()) for i in index.tolist()]
        rows = [row for row in rows if run.method.head[row[1]]]
        found = []
        for i, label, a in rows:
            others = [b - a for j, other, b in [*rows, *queue] if other == label and j != i]
            if not others:
                found.append((i, None, None))
                continue
            moved = torch.stack(others)
            mean, variance = moved.mean(0), moved.var(0, correction=0)
            if i in kept:
                mean = momentum * kept[i][0] + (1 - momentum) * mean
                variance = momentum * kept[i][1] + (1 - momentum) * variance
            found.append((i, mean, variance))
        kept |= {i: (mean, variance) for i, mean, variance in found if mean is not None}
        queue = [*queue, *rows][len(queue) + len(rows) - memory if len(queue) + len(rows) > memory else 0 :]
    return found


@pytest.mark.parametrize(("memory", "momentum"), [(30, 0.9), (5, 0.5), (0, 0.9), (30, 0.0)])
def test_targets_over_several_batches_equal_a_slow_loop(memory, momentum):
    run = Run(memory=memory, momentum=momentum).stage("generator", train=True)
    batches = [run.batch(step) for step in range(8)]
    for index in batches:
        record = run.record(index)
        wanted = run.method.head[record.targets]
        mean, std, counted = run.method._targets(record.features, record.targets, record.source_index, wanted)
    expected = slow_stage(run, batches, memory, momentum)
    assert wanted.sum() == len(expected) and not wanted.all()
    for row, (_, true_mean, true_variance) in zip(wanted.nonzero()[:, 0].tolist(), expected, strict=True):
        assert counted[row] == (true_mean is not None)
        if true_mean is not None:
            torch.testing.assert_close(mean[row].double(), true_mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(std[row].double(), true_variance.sqrt(), atol=1e-4, rtol=1e-4)


def test_the_dictionary_holds_the_last_head_features():
    run = Run(memory=20).stage("generator", train=True)
    run.learn(6)
    seen = torch.cat([run.batch(step) for step in range(6)])
    seen = seen[run.method.head[run.targets[seen]]][-20:]
    order = torch.roll(torch.arange(20), -int(run.method.pointer))
    assert torch.equal(run.method.queue_sources[order], seen)
    assert torch.equal(run.method.queue_labels[order], run.targets[seen])
    assert torch.equal(run.method.queue[order], run.x[seen])


def test_half_precision_statistics_are_close_and_half_as_large():
    whole, half = Run(), Run(statistics_dtype="float16")
    for run in (whole, half):
        run.stage("generator", train=True).learn(20)
    head = sum(COUNTS[:2])
    assert whole.method.statistics.shape == (head + 1, 2, 4)
    assert half.method.statistics.nbytes * 2 == whole.method.statistics.nbytes
    assert torch.equal(half.method.seen, whole.method.seen) and whole.method.seen[:-1].sum() > head / 2
    torch.testing.assert_close(half.method.statistics.float(), whole.method.statistics, atol=2e-3, rtol=2e-3)


def test_without_smoothing_nothing_is_kept():
    assert Run(momentum=0).method.statistics.shape == (1, 2, 4)


def test_tail_rows_and_rows_of_other_methods_teach_nothing():
    """Their features could be anything: loss, dictionary and batch norm stay the same."""
    losses, states = [], []
    for value in (0.0, 1e4):
        run = Run().stage("generator", train=True)
        record = run.record(run.batch(0))
        made = record.synthetic | (torch.arange(16) == int(run.method.head[record.targets].nonzero()[0]))
        ignored = made | ~run.method.head[record.targets]
        record = replace(record, features=torch.where(ignored[:, None], value, record.features), synthetic=made)
        losses.append(run.method.auxiliary_losses(record)["statistics"])
        states.append(run.method.state_dict())
    assert losses[0] > 0 and torch.equal(*losses)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_batch_without_head_rows_gives_a_loss_of_zero():
    run = Run().stage("generator", train=True)
    loss = run.method.auxiliary_losses(run.record(torch.arange(70, 80)))["statistics"]
    loss.backward()
    assert loss == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in run.method.parameters())


def test_gradients_reach_the_generator_and_not_the_features():
    run = Run().stage("generator", train=True)
    record = run.record(run.batch(0, 40))
    x = record.features.requires_grad_()
    run.method.auxiliary_losses(replace(record, features=x))["statistics"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.method.generator.parameters() if p.dim() > 1)
    assert x.grad is None
    assert run.method.augment_features(record, run.context) is record, "while it learns, it changes nothing"


def test_a_stage_begins_with_an_empty_memory():
    run = Run().stage("generator", train=True)
    run.learn(5)
    run.stage("again", train=True)
    assert (run.method.queue_labels == -1).all() and not run.method.seen.any() and run.method.pointer == 0


def test_features_in_bf16_under_autocast_are_taken_in_float32():
    run = Run().stage("generator", train=True)
    record = run.record(run.batch(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = run.method.auxiliary_losses(replace(record, features=record.features.bfloat16()))["statistics"]
    assert loss.dtype == torch.float32
    run.stage("classifier", train=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = run.method.augment_features(replace(record, features=record.features.bfloat16()), run.context)
    assert after.features.dtype == torch.bfloat16 and after.features.isfinite().all()


# Gaussian classes with a known answer.


def gaussian_classes(seed):
    """Two large classes and a small one in 4 channels; how a feature moves depends on the feature: towards the mean."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([[2.0, 0, 1, 3], [-1, 1, 0, 2], [0, 4, 2, 0]])
    spread = torch.tensor([[0.5, 1.0, 0.2, 0.8], [1.0, 0.3, 0.6, 0.1], [0.4, 0.4, 0.4, 0.4]])
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([300, 200, 5]))
    x = centre[targets] + spread[targets] * torch.randn(505, 4, generator=generator)
    return x, targets, centre, spread


def test_unseen_samples_are_predicted_and_better_than_by_their_class():
    """Root mean square errors over samples that the generator never saw.

    The mean of a sample's transformations is what leads from it to the mean of its class; all that a class-level
    estimate can say is the average of that, zero.
    """
    x, targets, centre, spread = gaussian_classes(0)
    run = Run(x, targets, memory=300, hidden=64, head_fraction=0.6).stage("generator", train=True)
    run.learn(300, size=128, rate=5e-3)
    unseen, labels, *_ = gaussian_classes(1)
    unseen, labels = unseen[labels < 2], labels[labels < 2]
    run.method.generator.eval()
    with torch.no_grad():
        mean, variance = run.method.generator(unseen, run.method.token[labels])
    truth = centre[labels] - unseen
    error, class_level = ((m - truth).square().mean().sqrt() for m in (mean, torch.zeros_like(truth)))
    assert error < 0.15 and error < 0.25 * class_level
    assert (variance.sqrt() - spread[labels]).square().mean().sqrt() < 0.08


def test_samples_of_two_clusters_of_a_class_are_told_apart():
    """What leads away from a sample of one cluster leads towards the other; for the class as a whole it is nowhere."""
    x, targets, *_ = gaussian_classes(0)
    x[:150] += torch.tensor([6.0, 0, 0, 0])
    run = Run(x, targets, memory=300, hidden=64, head_fraction=0.6).stage("generator", train=True)
    run.learn(300, size=128, rate=5e-3)
    run.method.generator.eval()
    with torch.no_grad():
        mean, _ = run.method.generator(x[:300], run.method.token[targets[:300]])
    assert (mean[:150, 0] < -1).all() and (mean[150:300, 0] > 1).all()


# Augmentation.


@pytest.fixture
def ready():
    run = Run().stage("generator", train=True)
    run.learn(10)
    return run.stage("classifier", train=False)


def test_tail_rows_move_as_equations_3_and_4_say_with_the_nearest_token(ready):
    record = ready.record(ready.batch(5, 60))
    after = ready.method.augment_features(record, ready.context)
    generator = move_context(ready.context).generator
    noise, uniform = (draw(60, 4, generator=generator) for draw in (torch.randn, torch.rand))
    means = torch.stack([ready.x[ready.targets == label].mean(0) for label in (0, 1)])
    torch.testing.assert_close(ready.method.means, means)
    tails = 0
    for i, (a, label) in enumerate(zip(record.features, record.targets.tolist(), strict=True)):
        if label < 2:
            assert torch.equal(after.features[i], a)
            continue
        tails += 1
        token = torch.stack([torch.cosine_similarity(a, mean, dim=0) for mean in means]).argmax()
        with torch.no_grad():
            mean, variance = ready.method.generator(a[None], token[None])
        scale = 1.5 * class_strength(torch.tensor(COUNTS))[label : label + 1]
        moved = augmented(a[None], mean, variance, noise[i : i + 1], scale)
        torch.testing.assert_close(after.features[i], partly_kept(a[None], moved, uniform[i : i + 1], 0.5)[0])
    assert tails > 3
    assert torch.equal(after.synthetic, record.targets >= 2)
    assert torch.equal(after.targets, record.targets) and torch.equal(after.source_index, record.source_index)


def test_about_half_of_the_channels_are_changed(ready):
    index = torch.arange(65, 80).repeat(20)
    changed = ready.method.augment_features(ready.record(index), ready.context).features != ready.x[index]
    assert 0.45 < changed.float().mean() < 0.55  # 1,200 draws: 0.5 within 3.5 deviations


def test_rows_of_other_methods_and_head_rows_stay_bit_for_bit(ready):
    record = ready.record(ready.batch(1, 40))
    made = torch.arange(40) % 2 == 0
    after = ready.method.augment_features(replace(record, synthetic=made), ready.context)
    still = made | (record.targets < 2)
    assert torch.equal(after.features[still], record.features[still])
    assert not torch.equal(after.features[~still], record.features[~still])


def test_a_threshold_of_0_changes_nothing():
    run = Run(threshold=0).stage("generator", train=True)
    run.learn(3)
    run.stage("classifier", train=False)
    record = run.record(run.batch(0))
    assert run.method.augment_features(record, run.context) is record
    assert run.method.auxiliary_losses(record)["statistics"] == 0


@pytest.mark.parametrize("mean", ["use", "drop"])
def test_without_the_mean_a_generated_sample_is_the_sample_on_average(mean):
    """Eq. 3 and 4 over 60,000 draws: with it, the average lies off by t * lambda * beta * mu."""
    run = Run(mean=mean).stage("generator", train=True)
    run.learn(200, rate=1e-2)
    run.stage("classifier", train=False)
    row, draws = 76, 60_000  # of the class with 5 images
    index = torch.full((draws,), row)
    made = run.method.augment_features(run.record(index), run.context).features
    a, label = run.x[row], run.targets[row]
    token = torch.stack([torch.cosine_similarity(a, each, dim=0) for each in run.method.means]).argmax()
    with torch.no_grad():
        mu, _ = run.method.generator(a[None], token[None])
    offset = 0.5 * 1.5 * class_strength(torch.tensor(COUNTS))[label] * mu[0] * (mean == "use")
    error = (made.double().mean(0) - a - offset).abs() / (made.double().std(0) / draws**0.5)
    assert (error < 5).all()
    moved = (made.double().mean(0) - a).abs() / (made.double().std(0) / draws**0.5)
    assert (moved > 20).any() == (mean == "use")


def rows_of_their_own_class(mean, seed):
    """Of generated rows of two small classes, what share lies nearest to the mean of their own class.

    Made data: three classes of 200 and two of 4, in 8 channels, unit spread around centres that lie about 6 apart.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(5, 8, generator=generator) + 5
    targets = torch.repeat_interleave(torch.arange(5), torch.tensor([200, 200, 200, 4, 4]))
    x = centres[targets] + torch.randn(len(targets), 8, generator=generator)
    run = Run(x, targets, memory=400, hidden=64, head_fraction=0.6, mean=mean).stage("generator", train=True)
    run.learn(300, size=128, rate=5e-3)
    run.stage("classifier", train=False)
    index = torch.arange(600, 608).repeat(50)
    made = run.method.augment_features(run.record(index), run.context).features
    return (torch.cdist(made, centres).argmin(1) == targets[index]).double().mean().item()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_mean_term_takes_rare_samples_to_the_head(seed):
    use, drop = rows_of_their_own_class("use", seed), rows_of_their_own_class("drop", seed)
    assert drop > 0.75 and use < drop - 0.2


def test_gradients_pass_to_features_and_not_to_the_generator(ready):
    record = ready.record(torch.arange(60, 80))
    x = record.features.requires_grad_()
    ready.method.augment_features(replace(record, features=x), ready.context).features.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x)), "what is added does not depend on the feature, for the gradient"
    assert all(p.grad is None or not p.requires_grad for p in ready.method.parameters())


def test_adapting_batch_norm_leaves_the_generators_alone(ready):
    record = ready.record(torch.arange(60, 80))
    plain = ready.method.augment_features(record, move_context(ready.context))
    state = {name: tensor.clone() for name, tensor in ready.method.state_dict().items()}
    set_trainable(ready.model, {"classifier.weight"}, adapt_batch_norm=True)
    assert ready.method.generator.mean[1].training
    again = ready.method.augment_features(record, move_context(ready.context))
    assert torch.equal(again.features, plain.features)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ready.method.state_dict().items())


def tail_accuracy(run, threshold, unseen, labels):
    """Of a linear classifier trained for 150 class-balanced steps on features that the method augments."""
    run.method.options = run.method.options.model_copy(update={"threshold": threshold})
    torch.manual_seed(1)
    classifier = nn.Linear(16, 6)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-2)
    pools = [(run.targets == label).nonzero()[:, 0] for label in range(6)]
    for step in range(150):
        move_context(run.context, epoch=0, step=step)
        generator = torch.Generator().manual_seed(step)
        index = torch.cat([pool[torch.randint(len(pool), (10,), generator=generator)] for pool in pools])
        features = run.method.augment_features(run.record(index), run.context)
        loss = nn.functional.cross_entropy(classifier(features.features), features.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (classifier(unseen).argmax(1) == labels)[labels >= 4].float().mean()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_helps_a_tail_that_varies_as_the_head_does(seed):
    """Four classes of 200 and two of 3; all vary most in four of 16 channels, which 3 images cannot show."""
    centre = 0.3 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    spread = torch.where(torch.arange(16) % 4 == 0, 2.3, 0.3)

    def draw(counts, seed):
        targets = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))
        noise = torch.randn(len(targets), 16, generator=torch.Generator().manual_seed(seed))
        return centre[targets] + spread * noise, targets

    run = Run(*draw([200] * 4 + [3] * 2, 10 + seed), memory=400, hidden=64, head_fraction=0.67)
    run.stage("generator", train=True).learn(300, size=128, rate=5e-3)
    run.stage("classifier", train=False)
    unseen = draw([200] * 6, 99)
    assert tail_accuracy(run, 0.5, *unseen) > tail_accuracy(run, 0.0, *unseen) + 0.05


# What an inner loop must not do.


def test_no_step_waits_for_the_device(no_sync):
    run = Run().stage("generator", train=True)
    record = run.record(run.batch(0))
    with no_sync():
        run.method.auxiliary_losses(record)["statistics"].backward()
    run.stage("classifier", train=False)
    with no_sync():
        run.method.augment_features(record, run.context)


@pytest.mark.gpu
def test_no_step_synchronises_a_gpu():
    run = Run(device="cuda").stage("generator", train=True)
    record = run.record(run.batch(0))
    for _ in range(2):  # the first round may set libraries up
        run.method.auxiliary_losses(record)["statistics"].backward()
        torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
    run.stage("classifier", train=False)
    run.method.augment_features(record, run.context)
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = run.method.augment_features(record, run.context)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert after.features.isfinite().all()


# Whole runs.


def recipe(path, threshold=0.5, generates=True, acting=("stg",)):
    """STG's three stages; without the generator's training where it does not generate."""
    data = {"class_counts": [60, 40, 8, 4], "image_size": 8, "test_per_class": 10, "noise": 20}
    learning = {"methods": ["stg"], "classification": False, "trainable": ["stg"]}
    last = {"name": "classifier", "methods": list(acting), "classifier": "rebuild", "sampler": "class_balanced"}
    stages = [
        {"name": "representation", "methods": [], "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        {"name": "generator", "methods": [], "trainable": ["classifier"], "cache": "views:2"}
        | {"optimizer": {"name": "adam", "lr": 0.001}, **(learning if generates else {})},
        {**last, "trainable": ["classifier"], "cache": "views:2", "optimizer": {"name": "adam", "lr": 0.01}},
    ]
    return write_short_recipe(
        path,
        name="r",
        data={"use": "synthetic", "options": data},
        backbone={"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
        methods={"stg": {"options": {"head_fraction": 0.5, "memory": 40, "threshold": threshold}}},
        stages=[{"batch_size": 32, **stage} for stage in stages],
        checkpoint_seconds=0,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return ltcore.run(recipe(folder / "r.yaml"), out=folder)


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.mark.parametrize("hook", ["auxiliary_losses", "augment_features"])
def test_a_run_killed_inside_a_stage_ends_as_one_that_was_not(whole, tmp_path, monkeypatch, hook):
    file = recipe(tmp_path / "r.yaml")
    real, seen = getattr(STG, hook), 0
    stage = {"auxiliary_losses": "generator", "augment_features": "classifier"}[hook]

    def counting(self, features, context=None):
        nonlocal seen
        inside = self.learning == (stage == "generator")
        seen += inside
        if inside and seen == 6:  # in the second of two epochs of four steps
            raise Killed
        return real(self, features, context) if hook == "augment_features" else real(self, features)

    def armed(self, features, context):
        return counting(self, features, context)

    armed.ltcore_impl = real.ltcore_impl
    with monkeypatch.context() as patch:
        patch.setattr(STG, hook, armed)
        with pytest.raises(Killed):
            ltcore.run(file, out=tmp_path / "cut")
    resumed = ltcore.run(file, out=tmp_path / "cut", resume=True)
    assert resumed.metrics == whole.metrics
    for name in ("stage-1-generator", "stage-2-classifier"):
        (first,), (second,) = ([*p.glob(f"checkpoints/{name}*")] for p in (whole.path, resumed.path))
        assert first.read_bytes() == second.read_bytes()


def test_a_threshold_of_0_is_crt_bit_for_bit(whole, tmp_path):
    off = ltcore.run(recipe(tmp_path / "off.yaml", threshold=0), out=tmp_path)
    crt = ltcore.run(recipe(tmp_path / "crt.yaml", threshold=0, acting=()), out=tmp_path)
    assert off.metrics == crt.metrics != whole.metrics


def test_a_recipe_without_a_generator_stage_is_one_message(tmp_path):
    file = recipe(tmp_path / "r.yaml", generates=False)
    with pytest.raises(RecipeError, match=r"stage 'classifier' would augment .* no stage has trained"):
        ltcore.run(file, out=tmp_path)


def test_a_report_compares_transformations_of_one_tail_class():
    run = Run()
    run.stage("generator", True)
    run.learn(30)
    assert run.method.reported([2, 3], run.context) == []  # it is learning
    run.stage("classifier", False)
    run.context.images = lambda split, indices: run.x[indices]
    (table,) = run.method.reported([0, 3, 2], run.context)  # 0 is of the head
    assert table.columns == ["", *(f"sample {number}" for number in range(1, 6))]
    *body, last = table.rows
    assert "class number 3, which has 5" in table.text and last[0] == "nearest head class"
    values = torch.tensor([row[1:] for row in body])
    rows = run.x[run.targets == 3]
    means = torch.stack([run.x[run.targets == label].mean(0) for label in (0, 1)])
    near = torch.cosine_similarity(rows[:, None], means[None], dim=2).argmax(1)
    mean, variance = run.method.generator(rows, near)
    pairs = [(i, j) for i in range(5) for j in range(5)]
    wanted = torch.stack([_kl(mean[i], variance[i], mean[j], variance[j]) for i, j in pairs])
    assert sorted(values.flatten().tolist()) == pytest.approx(sorted(wanted.tolist()), rel=1e-4, abs=1e-9)
    assert sorted(last[1:]) == sorted(map(str, near.tolist()))
    (table,) = run.method.reported([4], run.context)  # two images are too few, so the largest tail class
    assert "class number 2, which has 8" in table.text


def _kl(mean, variance, other_mean, other_variance):
    one = torch.distributions.Normal(mean.double(), variance.double().sqrt())
    other = torch.distributions.Normal(other_mean.double(), other_variance.double().sqrt())
    return torch.distributions.kl_divergence(one, other).sum().detach()
