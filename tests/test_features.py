import pytest
import torch

from ltcore import Context, Method, hookimpl
from ltcore.contract.model import evaluating
from ltcore.errors import RunError
from ltcore.evaluation.outputs import pooled_features
from ltcore.seeding import generator_for
from ltcore.training.cache import FeatureCache

SEEN: dict = {}
DATA = "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, holdout: 1}"
MOVING = DATA[:-1] + ", transform: {crop_padding: 1, flip: true}}"


@pytest.fixture
def run(make_run):
    """A run whose norms have statistics of their own."""
    run = make_run(data=MOVING)
    with torch.no_grad():
        for step in range(3):
            run.assembly.model(run.assembly.data.loaders["train"].eval_batch(16 * step, 16 * step + 16))
    return run


def features_at(run, tap, images):
    seen = []
    with evaluating(run.assembly.model):
        run.assembly.model.backbone.run(images, at={tap: lambda x: seen.append(x) or x})
    return seen[0]


@pytest.mark.parametrize("tap", ["layer1", "layer3", "maps", "pooled"])
def test_features_of_a_split_are_the_eval_modes_at_any_tap(run, tap):
    for split in ("train", "val"):
        loader = run.assembly.data.loaders[split]
        expected = features_at(run, tap, loader.eval_batch(0, len(loader)))
        found = pooled_features(run.assembly.model, loader, 7, tap)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(run.assembly.provider.features(split, tap), found)
        assert run.assembly.provider.feature_shape(tap) == expected.shape[1:]
    assert all(module.training for module in run.assembly.model.modules())


@pytest.mark.parametrize("ask", [lambda p: p.features("train", "layer9"), lambda p: p.feature_shape("layer9")])
def test_a_tap_that_is_not_there(run, ask):
    with pytest.raises(RunError, match=r"no tap 'layer9'; did you mean 'layer3'\? it has 'layer1', 'layer2'"):
        ask(run.assembly.provider)


@pytest.mark.parametrize("tap", ["maps", "pooled"])
def test_an_eval_cache_holds_what_the_backbone_gives(run, tap):
    loader = run.assembly.data.loaders["train"]
    cache = FeatureCache(run.assembly.model, loader, tap, None, 10, (0,))
    indices = torch.tensor([5, 0, 5, 47, 31])
    everything = features_at(run, tap, loader.eval_batch(0, len(loader)))
    torch.testing.assert_close(cache.train_batch(indices, generator_for("cpu", 1)), everything[indices])


@pytest.mark.parametrize("tap", ["maps", "pooled"])
def test_a_cache_of_views_holds_random_views_of_each_image(run, tap):
    loader, views, seed = run.assembly.data.loaders["train"], 3, (0, "cache", "s")
    cache = FeatureCache(run.assembly.model, loader, tap, views, 20, seed)
    expected = []
    for view in range(views):
        generator = generator_for("cpu", *seed, "view", view)
        parts = torch.arange(len(loader)).split(20)
        expected.append(torch.cat([features_at(run, tap, loader.train_batch(part, generator)) for part in parts]))
    indices = torch.arange(len(loader)).repeat(4)
    drawn = cache.train_batch(indices, generator_for("cpu", 1))
    distance = torch.stack([(drawn - view[indices]).flatten(1).norm(dim=1) for view in expected])
    assert float(distance.min(0).values.max()) < 1e-4  # each row is one of the views of its own image
    assert torch.bincount(distance.argmin(0), minlength=views).min() > len(indices) / views / 2
    assert not torch.allclose(expected[0], expected[1])
    again = FeatureCache(run.assembly.model, loader, tap, views, 20, seed)
    assert torch.equal(again.train_batch(indices, generator_for("cpu", 1)), drawn)


@pytest.mark.parametrize("cache", ["eval", "views:2"])
def test_a_stage_that_caches_trains_the_classifier_alone(make_run, cache):
    common = {"batch_size": 16, "optimizer": {"lr": 0.05}}
    second = {"name": "two", "epochs": 2, "trainable": ["classifier"], "cache": cache, **common}
    run = make_run(data=MOVING, stages=[{"name": "one", "epochs": 1, **common}, second])
    run.execute()
    frozen = run.assembly.provider.frozen_model("one")
    for name, value in run.assembly.model.backbone.state_dict().items():
        assert torch.equal(value, frozen.backbone.state_dict()[name]), name
    assert not torch.equal(run.assembly.model.classifier.weight, frozen.classifier.weight)


def test_an_eval_cache_trains_as_the_images_do(make_run):
    """Where images are not changed at random, the cache alters nothing but the speed."""
    common = {"batch_size": 16, "optimizer": {"lr": 0.05}}
    weights = []
    for cache in ("eval", "off"):
        second = {"name": "two", "epochs": 2, "trainable": ["classifier"], "cache": cache, **common}
        run = make_run(stages=[{"name": "one", "epochs": 1, **common}, second])
        run.execute()
        weights.append(run.assembly.model.classifier.weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


class Look(Method):
    @hookimpl
    def on_stage_start(self, context: Context) -> None:
        self.look("stage", context)

    @hookimpl
    def on_epoch_start(self, context: Context) -> None:
        self.look("start", context)

    @hookimpl
    def on_epoch_end(self, context: Context) -> None:
        self.look("end", context)

    def look(self, when: str, context: Context) -> None:
        features = context.training_features()
        assert torch.equal(features, context.training_features())
        SEEN[context.stage, context.epoch, when] = features
        loader = SEEN["run"].assembly.data.loaders["train"]
        torch.testing.assert_close(features, pooled_features(context.model, loader, 500))
        if context.stage_index:
            frozen = context.frozen_model()
            assert frozen is context.frozen_model("one") and not frozen.training
            assert not any(p.requires_grad for p in frozen.parameters())
            SEEN.setdefault("frozen", []).append({k: v.clone() for k, v in frozen.state_dict().items()})
            assert context.validation_features("maps").shape == (4, 16, 2, 2)
        else:
            with pytest.raises(RunError, match="there is no earlier stage here; there is none"):
                context.frozen_model()


@pytest.mark.parametrize("trainable", [["backbone", "classifier"], ["classifier"]])
def test_methods_see_features_of_the_model_as_it_is(offer_methods, make_run, trainable):
    offer_methods({"look": Look})
    SEEN.clear()
    common = {"epochs": 2, "batch_size": 16, "methods": ["look"], "optimizer": {"lr": 0.05}}
    stages = [{"name": "one", **common}, {"name": "two", "trainable": trainable, **common}]
    SEEN["run"] = run = make_run(data=DATA, methods={"look": {}}, stages=stages)
    run.execute()
    start, end = SEEN["one", 1, "start"], SEEN["one", 1, "end"]
    assert not torch.allclose(start, end)
    moved = not torch.allclose(SEEN["two", 0, "start"], SEEN["two", 1, "end"])
    assert moved == ("backbone" in trainable)
    for frozen in SEEN["frozen"]:  # later training leaves it alone
        assert all(torch.equal(value, SEEN["frozen"][0][name]) for name, value in frozen.items())
    assert not torch.equal(run.assembly.model.classifier.weight, SEEN["frozen"][0]["classifier.weight"])
    with pytest.raises(RunError, match="there is no earlier stage 'three' here; there is 'one', 'two'"):
        run.assembly.contexts["look"].frozen_model("three")
