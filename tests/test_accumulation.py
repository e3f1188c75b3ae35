"""Stages whose batches go through the backbone in parts train as those whose batches do not."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ltcore import Backbone, Batch, Context, Features, Method, Objective, hookimpl
from ltcore.contract.model import Model
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer
from ltcore.errors import PluginError, RecipeError
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe, render
from ltcore.recipe.identity import digest, settings
from ltcore.recipe.loading import load_recipe
from ltcore.training.accumulation import Accumulation
from ltcore.training.loop import Observer
from ltcore.training.run import Run
from ltcore.training.step import StepForward

STAGE = {"name": "joint", "epochs": 2, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
#: Recipes with what acts on a batch in different ways; their 52 images are five batches of 10 and one of 2.
RECIPES = {
    "ce": {},
    "mixup": {"methods": {"mixup": {}}},
    "ldam": {"methods": {"ldam": {}, "drw": {"options": {"start_epoch": 1}}}},
    "safa": {"methods": {"safa": {"options": {"tap": "layer2", "start_epoch": 0, "head_ratio": 0.5}}}},
    "ofa": {"methods": {"ofa": {"options": {"tap": "maps", "head_ratio": 0.5, "augmented": 1}}}, "batch_size": 12},
    "ride": {"methods": {"ride": {"options": {"temperature_epoch": 0}}}, "adapt": ["ride"]},
    "bcl": {"methods": {"bcl": {}}},
    "sam": {"methods": {"sam": {}}},
    "imbsam": {"methods": {"imbsam": {}}},
    "two taps": {"methods": {"safa": {"options": {"tap": "layer2", "start_epoch": 0}}, "feature_noise": {}}},
}


class Act(Method):
    """Calls `change` at `tap`."""

    def __init__(self, tap: str, change=lambda features: features) -> None:
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


class Seen(Observer):
    """In float64; keeps the losses of every step, and how many parts and bytes there were."""

    def __init__(self):
        self.losses = []

    def stage_started(self, loop):
        loop.model.double()

    def losses_computed(self, loop, losses):
        self.losses.append({name: value.item() for name, value in losses.items()})


@pytest.fixture
def float64(monkeypatch):
    """All that is computed is float64, and batch norm normalises with what it has, the same for every part."""

    def fixed(self, x):
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", fixed)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def counted(monkeypatch):
    """How many parts each batch has gone in, where it did not go as a whole."""
    found = []
    number = Accumulation.number

    def counting(self, rows):
        found.append((rows, number(self, rows)))
        return found[-1][1]

    monkeypatch.setattr(Accumulation, "number", counting)
    return found


def recipe_of(methods=None, adapt=(), accumulate=1, **changes):
    """The parts of a recipe: a plain stage, and one with the methods."""
    methods = methods or {}
    trained = ["backbone", "classifier", *({"safa", "bcl"} & methods.keys())]
    second = STAGE | {"name": "second", "methods": list(methods), "trainable": trained, "accumulate": accumulate}
    parts = {"methods": methods, "stages": [STAGE | {"epochs": 1}, second | changes]}
    if adapt:
        parts["backbone"] = {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}, "adapt": list(adapt)}
    return parts


def trained(make_run, **parts):
    """Losses of every step, and the model at the end."""
    seen = Seen()
    run = make_run(**parts)
    run._others = [seen]
    run.train()
    return seen.losses, {name: tensor.clone() for name, tensor in run.assembly.model.state_dict().items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", RECIPES)
def test_in_parts_it_is_the_same_experiment(make_run, float64, counted, name):
    """Ten steps that change the weights, so gradients are compared, too."""
    (losses, model) = trained(make_run, **recipe_of(**RECIPES[name]))
    assert not counted
    found, same = trained(make_run, **recipe_of(**RECIPES[name], accumulate=4))
    assert {parts for _, parts in counted} >= {4}
    assert len(found) == len(losses) and losses[-1] != losses[-2]
    for mine, theirs in zip(losses, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-12, abs=1e-12)
    for key, tensor in model.items():
        torch.testing.assert_close(same[key], tensor, rtol=1e-12, atol=1e-12, msg=key)


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"), [(128, 4), (127, 4), (97, 4), (96, 3), (33, 2), (32, 1), (3, 1), (1, 1), (300, 4)]
)
def test_a_part_of_a_small_batch_has_no_more_rows_than_one_of_a_whole_batch(rows, expected):
    assert Accumulation(4, 128).number(rows) == expected


def test_a_part_has_at_least_one_row_in_each_process(monkeypatch):
    monkeypatch.setattr("ltcore.ranks.size", lambda: 2)
    assert [Accumulation(4, 8).number(rows) for rows in (8, 7, 5, 3, 2, 1)] == [4, 3, 2, 1, 1, 1]


class Net(Backbone):
    """Batch norm, dropout, a parameter that is not used and one that is not trained."""

    inner_taps = ("early",)
    feature_dim = 5

    def __init__(self, dropout=0.0) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout))
        self.late = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.unused, self.fixed = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()), requires_grad=False)

    def forward_maps(self, images: Tensor) -> Tensor:
        return self.late(self.early(self.fixed * images))


def forward_of(*methods, parts=None, rows=12, dropout=0.0, autocast=None):
    torch.manual_seed(1)
    model = Model(Net(dropout), nn.Linear(5, 3), {})
    accumulation = None if parts is None else Accumulation(parts, rows)
    return StepForward(model, hooks_of(*methods), "images", True, autocast, accumulation)


def batch_of(rows=12, size=6) -> Batch:
    torch.manual_seed(2)
    return Batch(torch.randn(rows, 2, size, size), torch.arange(rows) % 3, torch.arange(rows))


def by_hand(model, batch, parts, early=False):
    """The loss where each part normalises its own rows, with all graphs held."""
    net = model.backbone
    if early:
        maps = net.late(torch.cat([net.early(net.fixed * part) for part in torch.tensor_split(batch.images, parts)]))
    else:
        maps = torch.cat([net.forward_maps(part) for part in torch.tensor_split(batch.images, parts)])
    return nn.functional.cross_entropy(model.classifier(maps.mean((2, 3))), batch.targets)


def loss_of(forward, batch):
    return sum(forward(batch, None).values())


@pytest.mark.parametrize("tap", [None, "early", "maps", "pooled"])
@pytest.mark.parametrize("parts", [2, 5, 12])
def test_each_part_normalises_its_rows_and_is_learned_from_once(tap, parts):
    forward = forward_of(*([] if tap is None else [Act(tap)]), parts=parts)
    slow, batch = forward_of().model, batch_of()
    for _ in range(2):
        loss, expected = loss_of(forward, batch), by_hand(slow, batch, parts, tap == "early")
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        for (name, mine), theirs in zip(forward.model.named_parameters(), slow.parameters(), strict=True):
            if theirs.grad is None:
                assert mine.grad is None and name in ("backbone.unused", "backbone.fixed")
            else:
                torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
    for (name, mine), theirs in zip(forward.model.named_buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)
    early = forward.model.backbone.early[1]
    assert early.num_batches_tracked == 2 * parts


def test_dropout_draws_the_same_numbers_on_the_way_back():
    """The masks of the images' gradient are those of the features; other parts and other steps have others."""
    kept = []

    def keep(features: Features) -> Features:
        kept.append(features.features.detach())
        return features

    forward = forward_of(Act("early", keep), parts=3, dropout=0.5)
    forward.model.backbone.early[1].eval()
    images = batch_of(1).images.repeat(12, 1, 1, 1).requires_grad_()  # all rows alike, but for their masks
    batch = Batch(images, torch.arange(12) % 3, torch.arange(12))
    torch.manual_seed(0)
    drawn = []
    for _ in range(2):
        torch.manual_seed(len(drawn))
        loss = loss_of(forward, batch)
        drawn.append(torch.get_rng_state())
        loss.backward()
        assert torch.equal(torch.get_rng_state(), drawn[-1]), "the way back draws nothing"
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), drawn[-1]), "methods draw as if nothing had been drawn"
    masks = [(features == 0).flatten(1) for features in kept]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0][:4], masks[0][4:8])
    # A difference quotient with the masks of the second step, of the loss in one image of the first part and one of the
    # last.
    for row in (0, 11):
        direction = torch.zeros_like(images)
        direction[row] = torch.randn_like(direction[row])
        ends = []
        for sign in (-1e-2, 1e-2):
            torch.manual_seed(1)
            with torch.no_grad():
                ends.append(loss_of(forward, Batch(images + sign * direction, batch.targets, batch.source_index)))
        torch.manual_seed(1)
        images.grad = None
        loss_of(forward, batch).backward()
        expected = (ends[1] - ends[0]) / 2e-2
        torch.testing.assert_close((images.grad * direction).sum(), expected, rtol=2e-2, atol=1e-4)


def held_bytes(forward, batch):
    """The most bytes that graphs have held at a time, parameters and images aside, in a forward and a backward pass."""
    now, most = 0, 0
    others = {of.untyped_storage().data_ptr() for of in (batch.images, *forward.model.parameters())}

    class Held:
        def __init__(self, tensor):
            nonlocal now, most
            self.tensor, size = tensor, tensor.numel() * tensor.element_size()
            now += size
            most = max(most, now)
            weakref.finalize(self, Held.gone, size)

        @staticmethod
        def gone(size):
            nonlocal now
            now -= size

    def pack(tensor):
        return tensor if tensor.untyped_storage().data_ptr() in others else Held(tensor)

    def unpack(held):
        return held.tensor if isinstance(held, Held) else held

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss_of(forward, batch).backward()
    return most


def test_less_is_held_the_more_parts_there_are():
    batch = batch_of(120, 16)
    whole = held_bytes(forward_of(), batch)
    held = {parts: held_bytes(forward_of(parts=parts, rows=120), batch) for parts in (2, 4, 8)}
    for parts, found in held.items():
        assert found < 1.15 * whole / parts, (whole, held)
    behind = held_bytes(forward_of(Act("early"), parts=8, rows=120), batch)
    assert held[8] < behind < 0.7 * whole, "what is behind an inner tap is held for all rows"


def test_nothing_of_a_step_outlives_it():
    """No circle of references that only the garbage collector would find."""
    forward, batch = forward_of(parts=4), batch_of()
    watched = batch.images.clone()
    alive = weakref.ref(watched)
    loss = loss_of(forward, Batch(watched, batch.targets, batch.source_index))
    del watched
    loss.backward()
    del loss
    assert alive() is None


def test_low_precision_gives_the_weights_their_gradients():
    """Weights that were cast without a graph must not be what the last part computes with."""
    batch = batch_of()
    whole, parts = forward_of(autocast=torch.bfloat16), forward_of(parts=3, autocast=torch.bfloat16)
    for forward in (whole, parts):
        forward.model.backbone.requires_grad_(True).eval()
        loss_of(forward, batch).backward()
    for (name, mine), theirs in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        if mine.grad is not None:
            assert torch.nn.functional.cosine_similarity(mine.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.999, (
                name
            )
            assert float(theirs.grad.norm()) == pytest.approx(float(mine.grad.norm()), rel=0.03), name


@pytest.mark.gpu
def test_on_a_gpu_less_memory_is_taken_and_dropout_draws_the_same_numbers():
    """Of 4 parts a pass takes less than half of what the whole batch does; gradients are those of a difference."""
    rows, most = 512, {}
    batch = batch_of(rows, 64)
    batch = Batch(batch.images.cuda(), batch.targets.cuda(), batch.source_index.cuda())
    for parts in (None, 4):
        forward = forward_of(parts=parts, rows=rows, dropout=0.5)
        forward.model.cuda()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.manual_seed(0)
            loss_of(forward, batch).backward()
        most[parts] = torch.cuda.max_memory_allocated() - before
        del forward
    assert most[4] < 0.5 * most[None], most
    forward = forward_of(parts=4, rows=rows, dropout=0.5)
    forward.model.cuda().double()
    forward.model.backbone.early[1].eval()
    forward.model.backbone.late[1].eval()
    images = batch.images.double().requires_grad_()
    direction = torch.zeros_like(images)
    direction[0] = 1.0
    direction[-1] = -1.0

    def at(step):
        torch.manual_seed(1)
        return loss_of(forward, Batch(images + step * direction, batch.targets, batch.source_index))

    at(0.0).backward()
    with torch.no_grad():
        expected = (at(0.1) - at(-0.1)) / 0.2
    torch.testing.assert_close((images.grad * direction).sum(), expected.double(), rtol=0.05, atol=1e-6)


# -- runs --------------------------------------------------------------------------------------------------------------


class Stop(Observer):
    """Ends the process, as it were, behind a step."""

    def __init__(self, steps):
        self.left = steps

    def checkpoint_written(self, loop):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [7, 9])
def test_stopped_and_gone_on_it_is_the_same_to_the_bit(make_run, steps):
    parts = recipe_of({"safa": {"options": {"start_epoch": 0}}}, accumulate=3) | {"checkpoint_seconds": 0}
    whole = make_run(**parts)
    whole.train()
    run = make_run(**parts)
    run._others = [Stop(steps)]
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = make_run(**parts)
    again = Run(again.assembly, run.directory, again.reporter)
    again.train()
    assert again.position.results == [
        result | {"seconds": found["seconds"], "images_per_second": found["images_per_second"]}
        for result, found in zip(whole.position.results, again.position.results, strict=True)
    ]
    for name, tensor in whole.assembly.model.state_dict().items():
        assert torch.equal(again.assembly.model.state_dict()[name], tensor), name


class Twice(Method):
    interface = "1.1"

    @hookimpl
    def compute_gradients(self, objective: Objective, context: Context) -> dict[str, Tensor]:
        objective.gradients(objective(), create_graph=True)
        return objective.gradients(objective())


def test_gradients_of_gradients_are_refused_with_the_methods_name(write_recipe, make_run, offer_methods):
    held = {"data": "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8}, holdout: 2}"}
    path = write_recipe(**held, **recipe_of({"l2rw": {}}, accumulate=2))
    with pytest.raises(RecipeError) as found:
        make_plan(load_recipe(path))
    assert str(found.value).startswith(f"{path}:3: stage 'second': 'l2rw' (ltcore-reweighting-net")
    assert str(found.value).endswith(
        "needs second_order (gradients of gradients), and accumulate: 2 computes the backbone's in parts; use "
        "accumulate: 1"
    )
    make_plan(load_recipe(write_recipe(**held, **recipe_of({"l2rw": {}}))))
    offer_methods(twice=Twice)
    with pytest.raises(
        PluginError, match=r"'twice' \(ltcore-tests 0.0\): takes gradients of gradients, and accumulate"
    ):
        make_run(**recipe_of({"twice": {}}, accumulate=2)).train()


def test_the_plan_refuses_what_saves_nothing(write_recipe):
    def refused(line, message, **changes):
        path = write_recipe(**recipe_of(**changes))
        with pytest.raises(RecipeError, match=message) as found:
            make_plan(load_recipe(path))
        assert str(found.value).startswith(f"{path}:{line}: "), found.value

    refused(
        3,
        "accumulate: 2 .* with cache 'eval' none goes through it",
        accumulate=2,
        cache="eval",
        trainable=["classifier"],
    )
    refused(3, "accumulate: 2 saves activations .* trainable is 'classifier'", accumulate=2, trainable=["classifier"])
    refused(3, "stages.second.accumulate: a batch of 10 images has no 11 parts", accumulate=11)
    refused(3, "stages.second.accumulate: should be at least 1, not 0", accumulate=0)


def test_the_plan_says_what_it_costs_and_where_it_ends(write_recipe):
    def shown(**recipe):
        plan = make_plan(load_recipe(write_recipe(**recipe_of(**recipe))))
        return describe(plan)["stages"], render(describe(plan))

    stages, text = shown(accumulate=4)
    assert [stage["accumulate"] for stage in stages] == [None, {"parts": 4, "rows": 3, "until": "pooled"}]
    assert text.count("\n  accumulate  ") == 1 and "because accumulate: 4 runs the backbone on a batch in parts" in text
    assert (
        "accumulate  4 parts of at most 3 rows up to 'pooled', one held at a time; costs 3/4 of a forward pass" in text
    )
    stages, text = shown(
        accumulate=2, methods={"feature_noise": {}, "safa": {"options": {"tap": "layer2", "start_epoch": 0}}}
    )
    assert stages[1]["accumulate"]["until"] == "layer2"
    assert "behind 'layer2' activations of all rows are held" in text


def test_only_where_it_says_something_it_is_another_experiment(write_recipe):
    plain, parts = (load_recipe(write_recipe(**recipe_of(accumulate=number))) for number in (1, 2))
    without = recipe_of()
    del without["stages"][1]["accumulate"]
    assert digest(plain) == digest(load_recipe(write_recipe(**without))) != digest(parts)
    assert "stages.second.accumulate" not in settings(plain)
    assert settings(parts)["stages.second.accumulate"] == 2 and "stages.joint.accumulate" not in settings(parts)


def test_processes_that_would_have_no_row_in_a_part_are_refused(write_recipe, monkeypatch):
    from ltcore.training.together import refuse_too_many

    loaded = load_recipe(write_recipe(**recipe_of(accumulate=4)))
    stage = loaded.recipe.stages[1]
    refuse_too_many(loaded, 1, stage)
    monkeypatch.setattr("ltcore.ranks.size", lambda: 3)
    with pytest.raises(RecipeError, match=r"10 images cannot be shared by 3 processes in 4 parts each \(accumulate\)"):
        refuse_too_many(loaded, 1, stage)
