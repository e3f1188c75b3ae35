"""The hook ``image_transform`` and ``context.images``: what methods do to images one by one."""

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import ltcore
from ltcore import Context, ForExtraRows, Method, PluginError, RunError, hookimpl
from ltcore.contract.splits import ArraySplit, FileSplit
from ltcore.data.image_functions import ImageChanges, ImageFunctions, OpenedFunctions
from ltcore.data.loader import InMemoryLoader
from ltcore.data.partial import PartialLoader
from ltcore.data.streaming import ArrayImages, StreamingLoader
from ltcore.data.transforms import ImageTransform
from ltcore.errors import RecipeError
from ltcore.seeding import derive_seed, generator_for

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

# -- functions, as plugins write them ----------------------------------------------------------------------------------


def keep(image, target, generator):
    torch.rand(7, generator=generator)  # what it draws is nobody else's matter
    return image


def shift(image, target, generator, by=40):
    """Brighter by class and by chance, in place."""
    image += by * target + int(torch.randint(16, (), generator=generator))
    return image


def double(image, target, generator):
    return image * 2


def transposed(image, target, generator):
    return image.transpose(1, 2)  # shares the memory of what it was given


def fails(image, target, generator):
    raise ValueError(f"nothing for class {target}")


def refuses(image, target, generator):
    raise RecipeError("images of 1 channel are not for me")


def narrows(image, target, generator):
    return image[:, :-1]


def floats(image, target, generator):
    return image / 255


def forgets(image, target, generator):
    image.zero_()


@dataclass(frozen=True)
class Levels:
    levels: tuple[int, ...]

    def __call__(self, image, target, generator):
        return image ^ self.levels[target]


def pack(**functions):
    return ImageFunctions.pack(functions, {key: f"'{key}': " for key in functions})


# -- the functions of an epoch -----------------------------------------------------------------------------------------


def test_functions_act_in_order_each_with_its_own_draws():
    image = torch.randint(100, (3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = image.clone()
    for key, seed in [("a", 5), ("b", 5), ("a", 6)]:
        drawn = int(torch.randint(16, (), generator=generator_for("cpu", seed, key)))
        opened = OpenedFunctions(pack(**{key: shift}).pickled)
        assert torch.equal(opened(image, 1, seed), before + 40 + drawn)
    # In the recipe's order, and with others before it a method draws what it drew alone.
    both = OpenedFunctions(pack(first=keep, a=shift, then=double).pickled)
    drawn = int(torch.randint(16, (), generator=generator_for("cpu", 5, "a")))
    assert torch.equal(both(image, 1, 5), 2 * (before + 40 + drawn))
    assert torch.equal(image, before), "what came in is left alone"
    assert torch.equal(both(image, 1, 5, [True, False, True]), 2 * before)
    assert both(image, 1, 5, [False] * 3) is image
    assert torch.equal(OpenedFunctions(pack(t=transposed).pickled)(image[:, :, :4], 0, 0), before[:, :, :4].mT)


def test_rows_for_extra_rows():
    assert pack(a=keep, b=shift).rows(4, {"a": 2}) is None and ImageFunctions.pack({}, {}) is None
    functions = pack(a=keep, b=ForExtraRows(shift), c=ForExtraRows(keep))
    assert functions.rows(2).tolist() == [[True, False, False]] * 2
    found = functions.rows(2, {"c": 1, "other": 1, "b": 2})
    assert found.tolist() == [
        *[[True, False, False]] * 2,
        [True, False, True],
        [True, False, False],
        *[[True, True, False]] * 2,
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "'m': its function of image_transform failed: ValueError: nothing for class 1"),
        (refuses, "'m': images of 1 channel are not for me"),
        (narrows, r"'m': its function of image_transform gave a tensor \[3, 3, 4\] of torch.uint8 for an image \[3, 4"),
        (floats, r"gave a tensor \[3, 4, 4\] of torch.float32 for an image"),
        (forgets, "gave a NoneType for an image"),
    ],
)
def test_a_wrong_function_is_one_message(function, message):
    opened = OpenedFunctions(pack(m=function).pickled)
    with pytest.raises((PluginError, RunError, RecipeError), match=message):
        opened(torch.zeros(3, 4, 4, dtype=torch.uint8), 1, 0)


def test_what_cannot_travel_is_refused_with_the_way_out():
    method = Method()
    method.register_buffer("levels", torch.zeros(4))
    ways = "Return a function at module level, a functools.partial of one, or an instance of a small class at module"

    def inner(image, target, generator):
        return image

    for function in (lambda image, target, generator: image, inner):
        with pytest.raises(PluginError, match=rf"'m': image_transform returned what cannot be sent .*\. {ways}"):
            pack(m=function)
    with pytest.raises(PluginError, match=r"'m': image_transform returned a list, which is no function; return a fun"):
        pack(m=[keep])
    with pytest.raises(PluginError, match=r"it holds the method itself \(self\), and should hold plain values"):
        pack(m=partial(shift, by=method))
    with pytest.raises(PluginError, match=r"it holds a tensor on meta; take its `\.tolist"):
        pack(m=partial(shift, by=torch.zeros(3, device="meta")))
    assert pack(m=Levels((1, 2))) and pack(m=ForExtraRows(partial(shift, by=torch.tensor(3))))


# -- loaders -----------------------------------------------------------------------------------------------------------


def split(count=24, size=16):
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return ArraySplit(images, torch.arange(count) % 3)


@pytest.fixture
def loaders():
    """In memory; and streamed with 0, 1 and 2 workers, which end with the test."""
    whole, transform = split(), ImageTransform("cifar", 16, 2, True)
    streamed = [StreamingLoader(ArrayImages(whole), transform, MEAN, STD, workers) for workers in (0, 1, 2)]
    yield InMemoryLoader(whole, MEAN, STD, 2, True), *streamed
    for loader in streamed:
        loader._training = loader._picking = None


def epoch(loader, functions=None, extra=None, start=0):
    indices = torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(5)[start:]
    generators = (generator_for("cpu", 0, step) for step in range(start, 5))
    changes = None
    if functions is not None:
        changes = ImageChanges(functions, [functions.rows(len(index) - 2, {extra: 2}) for index in indices])
    return [batch.clone() for batch in loader.train_batches(indices, generators, changes)]


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_a_function_that_changes_nothing_changes_no_bit(loaders):
    for loader in loaders:
        assert same(epoch(loader, pack(m=keep)), epoch(loader))
        assert same(epoch(loader, pack(m=ForExtraRows(double))), epoch(loader))


def test_batches_do_not_depend_on_the_workers(loaders):
    in_memory, alone, *others = loaders
    chosen = pack(a=Levels((0, 255, 9)), b=shift, c=ForExtraRows(double))
    expected = epoch(alone, chosen, "c")
    plain, without = epoch(alone), epoch(alone, chosen, "nobody")
    for batch, ordinary in zip(expected, without, strict=True):
        assert torch.equal(batch[:-2], ordinary[:-2]) and not torch.equal(batch[-2:], ordinary[-2:])
    for loader in others:
        assert same(epoch(loader, chosen, "c"), expected)
        # The next epoch's functions reach workers that have seen others.
        assert same(epoch(loader, pack(a=Levels((1, 2, 3)))), epoch(alone, pack(a=Levels((1, 2, 3)))))
        assert same(epoch(loader), plain)
        assert same(epoch(loader, chosen, "c", start=3), expected[3:])
    assert same(epoch(in_memory, chosen, "c", start=3), epoch(in_memory, chosen, "c")[3:])


def test_what_is_done_is_what_the_function_does(loaders):
    """Of each image, against a loop over pixels as integers."""
    indices, changes = torch.arange(6), ImageChanges(pack(m=Levels((0, 255, 9))), [None])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for loader in loaders:
        (plain,) = loader.train_batches([indices], [generator_for("cpu", 0)])
        (changed,) = loader.train_batches([indices], [generator_for("cpu", 0)], changes)
        pixels, found = ((255 * (x * std + mean)).round().to(torch.uint8) for x in (plain, changed))
        for row in range(6):
            assert torch.equal(found[row], pixels[row] ^ (0, 255, 9)[row % 3])
        assert changed.is_contiguous(memory_format=torch.channels_last)


def test_a_failure_in_a_worker_is_one_message(loaders):
    for loader in loaders:
        for function, kind, message in [
            (fails, RunError, r"^'m': its function of image_transform failed: ValueError: nothing for class"),
            (
                floats,
                PluginError,
                r"^'m': its function of image_transform gave a tensor \[3, 16, 16\] of torch.float32",
            ),
            (refuses, RecipeError, r"^'m': images of 1 channel are not for me$"),
        ]:
            with pytest.raises(kind, match=message):
                epoch(loader, pack(m=function))


def test_pick_gives_any_images_in_any_preparation(loaders):
    indices = torch.tensor([7, 0, 7, 23])
    many = torch.arange(24).repeat(5)  # more than are decoded in this process
    expected = torch.cat(list(loaders[0].eval_batches(10)))
    for loader in loaders:
        assert torch.equal(loader.pick(indices), expected[indices])
        assert torch.equal(loader.pick(many), expected[many])
        assert loader.pick(indices[:0]).shape == (0, 3, 16, 16)
        changed = loader.pick(indices, generator_for("cpu", 1), pack(m=shift))
        assert not torch.equal(changed[0], changed[2])  # two draws
        assert torch.equal(loader.pick(indices, generator_for("cpu", 1), pack(m=keep)), expected[indices])
        augmented = loader.pick(indices, generator_for("cpu", 1), augmented=True)
        (trained,) = loader.train_batches([indices], [generator_for("cpu", 1)])
        assert torch.equal(augmented, trained)
        both = loader.pick(many, generator_for("cpu", 1), pack(m=shift), augmented=True)
        (trained,) = loader.train_batches([many], [generator_for("cpu", 1)], ImageChanges(pack(m=shift), [None]))
        assert torch.equal(both, trained)
    alone, *others = loaders[1:]
    for loader in others:
        assert torch.equal(
            loader.pick(many, generator_for("cpu", 1), pack(m=shift)),
            alone.pick(many, generator_for("cpu", 1), pack(m=shift)),
        )


def test_a_rehearsal_prepares_some_of_many_and_keeps_the_time():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock, inner = Clock(), InMemoryLoader(split(), MEAN, STD)
    loader, real = PartialLoader(inner, 0, clock), inner.pick

    def slow(indices, *more, **named):
        clock.now += 0.01 * len(indices)
        return real(indices, *more, **named)

    inner.pick = slow
    few = loader.pick(torch.tensor([3, 1]))  # in full, and its time is what it takes
    clock.now = 0.0
    assert torch.equal(few, real(torch.tensor([3, 1]))) and not loader.projected
    many = loader.pick(torch.arange(1024) % 24)
    assert many.shape == (1024, 3, 16, 16) and torch.equal(many[256:512], many[:256])
    assert loader.projected == pytest.approx(10.24) and clock.now == pytest.approx(2.56)
    assert loader.left_out == pytest.approx(7.68)
    assert loader.pick(torch.arange(100) % 24).shape == (100, 3, 16, 16)
    assert loader.projected == pytest.approx(11.24) and clock.now == pytest.approx(2.56), "the kind is known"
    loader.pick(torch.arange(100) % 24, generator_for("cpu", 0), augmented=True)
    assert clock.now == pytest.approx(3.56)
    assert clock.now + loader.left_out == pytest.approx(loader.projected) == 12.24


def test_a_rehearsal_counts_functions_as_decoding():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock, functions = Clock(), pack(m=shift)
    inner = StreamingLoader(ArrayImages(split()), ImageTransform("cifar", 16, 2, True), MEAN, STD, 0)
    real, asked = inner.pick, []

    def slow(indices, generator, functions=None, augmented=False):
        asked.append((len(indices), augmented))
        clock.now += len(indices) * (0.01 if functions is None else 0.035)
        return real(indices, generator, functions, augmented)

    inner.pick = slow
    indices, changes = [torch.arange(12)] * 2, ImageChanges(functions, [None] * 2)
    for workers, expected in [(2, 0.025), (0, 0.0)]:  # without workers it is seen in the step itself
        loader = PartialLoader(inner, workers, clock)
        batches = loader.train_batches(indices, (generator_for("cpu", step) for step in range(2)), changes)
        assert loader.change_seconds == pytest.approx(expected)
        plain = inner.train_batches(indices, (generator_for("cpu", step) for step in range(2)), changes)
        assert same(list(batches), list(plain))
    assert asked == [(8, True), (8, True)]
    loader.workers = 2
    loader.train_batches(indices, iter(()))
    assert loader.change_seconds == 0.0


# -- in a run ----------------------------------------------------------------------------------------------------------

SEEN = []


class Brighter(Method):
    """Brighter by class, more so in each epoch: by what a buffer has counted."""

    interface = "1.1"
    function = staticmethod(shift)

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @hookimpl
    def on_epoch_start(self) -> None:
        self.count.add_(1)

    @hookimpl
    def image_transform(self, context: Context):
        return partial(type(self).function, by=10 * int(self.count))


class Keeps(Method):
    interface = "1.1"
    answer = staticmethod(keep)

    @hookimpl
    def image_transform(self):
        return type(self).answer


class Nothing(Keeps):
    answer = None


class Fails(Keeps):
    answer = staticmethod(fails)


class OfItself(Keeps):
    @hookimpl
    def image_transform(self):
        return self.change

    def change(self, image, target, generator):
        return image


class Looks(Method):
    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        SEEN.append(context)
        self.look(context)

    look = staticmethod(lambda context: None)


def files(folder, count=24):
    folder.mkdir()
    names = []
    for number in range(count):
        names.append(f"{number}.png".encode())
        pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names[-1].decode())
    return FileSplit(folder, np.array(names), torch.arange(count) % 4)


@pytest.fixture
def train(offer_methods, tmp_path):
    """Train a small recipe; its predictions, losses and folder."""
    offer_methods(brighter=Brighter, keeps=Keeps, nothing=Nothing, fails=Fails, of_itself=OfItself, looks=Looks)

    def run(out, *methods, resume=False, streamed=None, **stage):
        data = {"use": "synthetic", "options": {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}}
        if streamed is not None:  # a transform of one image at a time, so that workers prepare it
            data |= {"transform": {"name": "cifar", "color_jitter": 0.3}, "workers": streamed}
        recipe = {
            "data": {**data, "holdout": 1},
            "backbone": {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}},
            "methods": {each: {} for each in methods},
            "stages": [
                {
                    **{"name": "joint", "epochs": 2, "batch_size": 8, "methods": list(methods)},
                    **{"optimizer": {"name": "sgd", "lr": 0.05}, **stage},
                }
            ],
            "checkpoint_seconds": 0,
            "device": "cpu",
        }
        path = tmp_path / "r.yaml"
        path.write_text(json.dumps(recipe))
        done = ltcore.run(path, out=tmp_path / out, resume=resume)
        losses = [json.loads(line)["loss"] for line in (done.path / "metrics.jsonl").read_text().splitlines()]
        return done.logits, losses

    return run


@pytest.mark.parametrize("streamed", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_is_the_same_with_what_changes_nothing(train, streamed):
    plain, losses = train("plain", streamed=streamed)
    for methods in (["keeps"], ["nothing"], ["keeps", "nothing"]):
        found, mine = train("_".join(methods), *methods, streamed=streamed)
        assert np.array_equal(found, plain) and mine == losses
    found, mine = train("other", "keeps", "brighter", streamed=streamed)
    assert not np.array_equal(found, plain) and mine != losses


def test_a_run_does_not_depend_on_the_workers(train):
    expected = train("none", "brighter", streamed=0)
    for workers in (1, 2):
        found = train(f"workers{workers}", "brighter", streamed=workers)
        assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]


@pytest.mark.parametrize("streamed", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_a_killed_run_goes_on_exactly(train, tmp_path, copy_at_checkpoint, streamed):
    copy_at_checkpoint(9, tmp_path / "killed" / "r")  # in the second epoch of six steps
    whole = train("whole", "brighter", streamed=streamed)
    copy_at_checkpoint()
    resumed = train("killed", "brighter", streamed=streamed, resume=True)
    assert np.array_equal(whole[0], resumed[0]) and whole[1] == resumed[1]


@pytest.mark.slow
def test_mistakes_are_one_message_that_names_the_method(train):
    whose = r"'{}' \(ltcore-tests 0.0\): "
    with pytest.raises(RunError, match="stage 'joint': " + whose.format("fails") + "its function of image_transform f"):
        train("a", "fails", streamed=1)
    with pytest.raises(
        PluginError, match="stage 'joint': " + whose.format("of_itself") + ".*it holds the method itself"
    ):
        train("b", "of_itself")
    refused = whose.format("keeps")[:-2] + " changes the images, which cache 'eval' skips; use cache: off"
    with pytest.raises(RecipeError, match=refused):
        train("c", "keeps", trainable=["classifier"], cache="eval")


@pytest.mark.parametrize("streamed", [pytest.param(None, marks=pytest.mark.slow), 0])
def test_the_context_gives_images_to_look_at(train, monkeypatch, streamed):
    found = []

    def look(context):
        rows = torch.tensor([4, 0, 4])
        plain = context.images("train", rows)
        assert plain.shape == (3, 3, 8, 8) and plain.dtype == torch.float32 and torch.equal(plain[0], plain[2])
        features = context.training_features()
        with torch.no_grad():
            backbone = context.model.backbone.eval()
            torch.testing.assert_close(backbone(plain), features[rows])
            backbone.train()
        assert context.images("val", torch.arange(4)).shape == (4, 3, 8, 8)
        assert torch.equal(context.images("train", rows, keep), plain)
        changed = [context.images("train", rows, shift) for _ in range(2)]
        assert not torch.equal(*changed), "each call draws anew"
        augmented = context.images("train", rows, keep, augmented=True)
        found.append((changed, augmented))
        for split, asked, message in [
            ("test", rows, "there are no images of 'test' for methods; ask for 'train' or 'val'"),
            ("train", torch.tensor([48]), "'train' has those from 0 to 47"),
            ("val", torch.tensor([-1]), "'val' has those from 0 to 3"),
            ("train", torch.tensor([0.5]), r"indices \[M\] int64, not"),
        ]:
            with pytest.raises(PluginError, match=message):
                context.images(split, asked)
        with pytest.raises(PluginError, match="cannot be sent to the processes"):
            context.images("train", rows, lambda image, target, generator: image)

    monkeypatch.setattr(Looks, "look", staticmethod(look))
    plain, losses = train("plain", streamed=streamed)
    logits, mine = train("looks", "looks", streamed=streamed)
    assert np.array_equal(logits, plain) and mine == losses, "looking changes nothing"
    first = list(found)
    train("again", "looks", streamed=streamed)
    for (a, b), (c, d) in zip(first, found[len(first) :], strict=True):
        assert all(map(torch.equal, [*a, b], [*c, d])), "the draws are a function of seed, method and epoch"


def test_without_validation_images_there_are_none(ltcore_context):
    context = ltcore_context()
    assert context.images("val", torch.arange(3)).shape == (3, 3, 8, 8)
    context._state.provider._loaders.pop("val")
    with pytest.raises(RunError, match=r"there are no validation images; set data\.holdout in the recipe"):
        context.images("val", torch.arange(1))


def test_files_are_read_for_it(tmp_path):
    found = files(tmp_path / "images")
    loader = StreamingLoader(found, ImageTransform("none", 8), MEAN, STD, 0)
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    assert loader.pick(torch.tensor([2, 5]), generator_for("cpu", 0), pack(m=Levels((1, 2, 3, 4)))).shape == (
        2,
        3,
        8,
        8,
    )
    assert derive_seed(1, "a") != derive_seed(1, "b")


@pytest.mark.gpu
def test_on_a_gpu_images_are_those_of_a_cpu():
    whole, functions = split(), pack(m=Levels((0, 255, 9)))
    cuda = InMemoryLoader(whole, MEAN, STD, 0, False, "cuda")
    (found,) = cuda.train_batches(
        [torch.arange(24)], [torch.Generator("cuda").manual_seed(0)], ImageChanges(functions, [None])
    )
    (expected,) = InMemoryLoader(whole, MEAN, STD).train_batches(
        [torch.arange(24)], [torch.Generator().manual_seed(0)], ImageChanges(functions, [None])
    )
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected)
