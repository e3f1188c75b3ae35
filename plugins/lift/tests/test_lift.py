"""LIFT: parameters by hand, the start against the nearest class mean, texts against CLIP's own logits, and runs."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from ltcore_cosine_classifier import CosineClassifier, unit_rows
from ltcore_lift import Lift, LiftOptions, bottleneck_width, feature_directions, prompts, text_directions
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestCentroid

import ltcore
from ltcore import DataError, RecipeError
from ltcore.export import export
from ltcore.networks.timm_backbone import Timm, TimmOptions
from ltcore.plan.plan import make_plan
from ltcore.plan.text import describe
from ltcore.recipe.loading import load_recipe
from ltcore.rehearsal.rehearsal import rehearse

RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = {"model": "test_vit", "arguments": {"patch_size": 4, "depth": 2}}
CLASSES = {"cifar100_lt_lift": 100, "cifar100_lt_lift_in21k": 100, "imagenet_lt_lift": 1000, "places_lt_lift": 365}
CLASSES |= {"inaturalist2018_lift": 8142}


def test_defaults_and_bounds():
    assert Lift().options.model_dump() == {
        "bottleneck": None,
        "scale": 25.0,
        "tau": 1.0,
        "pretrained": None,
        "template": "a photo of a {}.",
    }
    for wrong in [{"bottleneck": 0}, {"scale": 0}, {"tau": -1}, {"pretrained": "ViT-B-16"}, {"template": "a photo"}]:
        with pytest.raises(ValidationError):
            LiftOptions(**wrong)
    assert all(field.description for field in LiftOptions.model_fields.values())


@pytest.mark.parametrize("blocks", [2, 12, 24])
def test_a_bottlenecks_width_is_the_power_of_two_of_lifts_formula(blocks):
    for classes in (1, 10, 47, 48, 100, 365, 1000, 8142):
        expected = 2 ** max(0, math.floor(math.log2(classes / (2 * blocks))))
        assert bottleneck_width(classes, blocks) == expected
    assert [bottleneck_width(classes) for classes in (10, 100, 365, 1000, 8142)] == [1, 4, 8, 32, 256]


# -- parameters --------------------------------------------------------------------------------------------------------


def by_hand(blocks, width, inner):
    """Of each block: down and up with their biases, the layer norm's weight and bias, and the scale."""
    return blocks * (2 * inner * width + inner + width + 2 * width + 1)


@pytest.mark.parametrize("name", CLASSES)
def test_the_recipes_plan_with_lifts_numbers_of_parameters(name):
    described = describe(make_plan(load_recipe(RECIPES / f"{name}.yaml")))
    (stage,), (adapter,) = described["stages"], described["backbone"]["adapt"]
    expected = by_hand(12, 768, bottleneck_width(CLASSES[name]))
    assert adapter["parameters"] == stage["trained_backbone_parameters"] == expected
    # As the paper's tables have them, in millions.
    printed = {100: 0.10, 365: 0.18, 1000: 0.62, 8142: 4.75}
    assert round(expected / 1e6, 2) == printed[CLASSES[name]]


def test_of_a_small_network_the_bottlenecks_and_the_classifier_train_and_nothing_else(trained):
    width, classes = 64, 4
    model = trained.model
    added = sum(parameter.numel() for name, parameter in model.backbone.named_parameters() if ".adapter." in name)
    assert added == by_hand(2, width, 3)
    assert [tuple(parameter.shape) for parameter in model.classifier.parameters()] == [(classes, width)]
    (stage,) = describe(make_plan(trained.loaded))["stages"]
    assert stage["trained_backbone_parameters"] == added


def test_the_bottlenecks_begin_with_normal_values_and_change_nothing():
    torch.manual_seed(0)
    plain = Timm(TimmOptions(**SMALL)).build_backbone(3, 16)
    images = torch.randn(2, 3, 16, 16)
    before = plain(images)
    adapted = Lift(LiftOptions(bottleneck=48)).adapt_backbone(backbone=plain)
    assert torch.equal(adapted(images), before)
    down = adapted.model.blocks[0].adapter.down.weight
    # Kaiming's deviation with a = sqrt(5) is 1 / sqrt(3 * 64); uniform values would end at sqrt(3) times that.
    assert down.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.05)
    assert down.abs().max() > 3 * (3 * 64) ** -0.5


def test_under_adapt_the_width_is_needed_and_the_message_says_which():
    backbone = Timm(TimmOptions(**SMALL)).build_backbone(3, 16)
    with pytest.raises(RecipeError, match=r"needs the option bottleneck.*4 for 100") as error:
        Lift().adapt_backbone(backbone=backbone)
    assert "\n" not in str(error.value)


# -- a run: a small transformer with weights made here -----------------------------------------------------------------


def recipe(
    folder, options=None, network=None, adapt=("lift",), methods=None, trainable=("lift", "classifier"), data=None
):
    whole = {
        "backbone": {"use": "timm", "options": {**SMALL, **(network or {})}, "adapt": list(adapt)},
        "data": data
        or {
            "use": "synthetic",
            "options": {"class_counts": [24, 16, 8, 4], "image_size": 16, "test_per_class": 6},
        },
        "methods": {"lift": {"options": {"bottleneck": 3} if options is None else options}, **(methods or {})},
        "stages": [
            {
                "name": "adapt",
                "epochs": 1,
                "methods": ["lift"],
                "trainable": list(trainable),
                "batch_size": 16,
                "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
            }
        ],
        "device": "cpu",
    }
    path = folder / "r.yaml"
    path.write_text(json.dumps(whole))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of the small network, for images of its own size."""
    torch.manual_seed(3)
    model = timm.create_model("test_vit", patch_size=4, depth=2)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("lift")
    return ltcore.run(recipe(folder, network={"weights": weights}), out=folder / "out", quiet=True)


def test_before_training_it_is_the_nearest_class_mean_by_angle(tmp_path, weights, look_on):
    """The classifier's answers on test images, beside scikit-learn's nearest centroid of features on the sphere."""
    seen = {}

    def begin(run, loop):
        data, model = run.assembly.data, loop.model
        features, targets = run.assembly.contexts["lift"].training_features(), data.whole.train.targets
        tested, logits, _ = run.evaluation.outputs("test")
        seen.update(features=features.cpu(), targets=targets, tested=tested[0].cpu(), logits=logits.cpu())
        seen.update(directions=model.classifier.directions.detach().clone())

    look_on(stage_started=begin)
    saved = ltcore.run(recipe(tmp_path, network={"weights": weights}), out=tmp_path / "out", quiet=True)
    reference = NearestCentroid().fit(seen["features"].numpy(), seen["targets"].numpy())
    means = torch.from_numpy(reference.centroids_).float()
    torch.testing.assert_close(seen["directions"], unit_rows(means), rtol=1e-4, atol=1e-5)
    reference.centroids_ = unit_rows(means).numpy()
    expected = reference.predict(unit_rows(seen["tested"]).numpy())
    assert (seen["logits"].argmax(1).numpy() == expected).all() and len(set(expected)) > 1
    assert not torch.equal(saved.model.classifier.directions, seen["directions"])


def test_logits_are_adjusted_as_the_logarithm_of_class_shares(ltcore_context):
    lift = Lift(LiftOptions(tau=2.0))
    lift.on_run_start(context=ltcore_context(counts=(30, 10)))
    found = lift.adjust_logits(logits=torch.zeros(1, 2))
    np.testing.assert_allclose(found, [[2 * math.log(0.75), 2 * math.log(0.25)]], rtol=1e-6)


def test_a_run_is_opened_and_exported_with_its_bottlenecks(trained, tmp_path):
    images = torch.randn(5, 3, 16, 16)
    assert torch.equal(ltcore.load(trained.path).model(images), trained.model(images))
    assert trained.model.backbone.model.blocks[1].adapter.up.weight.any()
    assert "checked on" in export(trained, "torchscript", tmp_path / "model.pt")[-1]
    program = torch.jit.load(tmp_path / "model.pt")
    torch.testing.assert_close(program(images), trained.model(images))


def test_with_lora_as_the_adapter_exports_merge(tmp_path, weights):
    """The exported network has no more parameters than the plain one, and gives the same logits."""
    pytest.importorskip("ltcore_lora")
    path = recipe(
        tmp_path,
        options={},
        network={"weights": weights},
        adapt=["lora"],
        methods={"lora": {"options": {"rank": 2}}},
        trainable=["lora", "classifier"],
    )
    saved = ltcore.run(path, out=tmp_path / "out", quiet=True)
    assert any("lora" in name for name, _ in saved.model.named_parameters())
    export(saved, "safetensors", tmp_path / "model.safetensors")
    exported = load_file(tmp_path / "model.safetensors")
    plain = timm.create_model("test_vit", patch_size=4, depth=2, num_classes=0, img_size=16)
    expected = sum(value.numel() for value in plain.parameters()) + 4 * 64
    assert sum(value.numel() for value in exported.values()) == expected
    plain.load_state_dict(
        {
            name.removeprefix("backbone.model."): value
            for name, value in exported.items()
            if "." in name and name.startswith("backbone.model.")
        }
    )
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        features = plain.eval()(images)
        torch.testing.assert_close(saved.model.classifier(features), saved.model(images), rtol=1e-4, atol=1e-4)


def test_a_recipe_is_rehearsed_without_its_weights(tmp_path):
    path = recipe(tmp_path, {"bottleneck": 3, "pretrained": "ViT-B-16/openai"}, network={"pretrained": True})
    found = rehearse(path)
    assert any(note.startswith("methods.lift.options.pretrained: no weights are fetched") for note in found["notes"])
    assert any(note.startswith("backbone.options.pretrained: no weights are fetched") for note in found["notes"])


# -- class names -------------------------------------------------------------------------------------------------------


def test_prompts_have_spaces_for_underscores():
    assert prompts(["aquarium_fish", "bee"], "a photo of a {}.") == ["a photo of a aquarium fish.", "a photo of a bee."]


def test_directions_of_texts_give_clips_own_order():
    """CLIP compares projected features with texts; so do the directions, up to a factor a text."""
    generator = torch.Generator().manual_seed(0)
    texts, projection = torch.randn(5, 6, generator=generator), torch.randn(8, 6, generator=generator)
    features = torch.randn(7, 8, generator=generator)
    found = feature_directions(texts, projection)
    own = (features @ projection) @ unit_rows(texts).T
    factor = (unit_rows(texts) @ projection.T).norm(dim=1)
    torch.testing.assert_close(features @ found.T * factor, own)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_where_open_clip_is_missing_one_message_says_so_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("ltcore_lift.text.find_spec", lambda name: None)
    path = recipe(tmp_path, {"bottleneck": 3, "pretrained": "ViT-B-16/openai"})
    with pytest.raises(RecipeError, match=r"'ltcore-lift\[text\]'") as error:
        ltcore.run(path, out=tmp_path / "out", quiet=True)
    assert "\n" not in str(error.value) and "'lift'" in str(error.value)


def test_classes_that_are_called_by_numbers_are_refused(monkeypatch):
    context = SimpleNamespace(class_names=("n01440764", "tench"), class_counts=torch.tensor([2, 1]))
    monkeypatch.setattr("ltcore_lift.method.check_open_clip", lambda: None)
    with pytest.raises(DataError, match="such as 'n01440764', which a text encoder cannot read"):
        Lift(LiftOptions(pretrained="ViT-B-16/openai")).on_run_start(context=context)


@pytest.fixture
def small_clip(tmp_path, monkeypatch):
    """A small CLIP of open_clip with a file of weights, `lift_small/weights.pt` from its folder."""
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 4, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "lift_small.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "lift_small.json")
    torch.manual_seed(5)
    model = open_clip.create_model("lift_small")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    return model.eval()


@pytest.mark.slow
def test_texts_of_open_clip_against_its_own_zero_shot_logits(small_clip):
    import open_clip

    names = ["aquarium_fish", "bee", "cat"]
    found = text_directions("lift_small/weights.pt", names, "a photo of a {}.", 64)
    sentences = ["a photo of a aquarium fish.", "a photo of a bee.", "a photo of a cat."]
    with torch.no_grad():
        texts = small_clip.encode_text(open_clip.get_tokenizer("lift_small")(sentences), normalize=True)
        features = torch.randn(6, 64)
        expected = (features @ small_clip.visual.proj) @ texts.T
        factor = (texts @ small_clip.visual.proj.T).norm(dim=1)
    torch.testing.assert_close(features @ found.T * factor, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RecipeError, match="features of width 64, and the network's features have the width 32"):
        text_directions("lift_small/weights.pt", names, "{}", 32)
    with pytest.raises(RecipeError, match="open_clip could not make 'lift_none/tag'"):
        text_directions("lift_none/tag", names, "{}", 64)


@pytest.mark.slow
def test_a_run_begins_with_texts_and_is_opened_without_them(small_clip, tmp_path, monkeypatch, look_on):
    seen = {}
    look_on(stage_started=lambda run, loop: seen.update(found=loop.model.classifier.directions.detach().clone()))
    for number, name in enumerate(["aquarium_fish", "bee", "cat"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for copy in range(4):
            picture = Image.new("RGB", (16, 16), (60 * number, 50 * copy, 100))
            picture.save(tmp_path / "images" / name / f"{copy}.png")
    data = {"use": "image_folder", "options": {"root": str(tmp_path / "images"), "test_fraction": 0.25}}
    data["transform"] = {"name": "none", "image_size": 16}
    path = recipe(tmp_path, {"bottleneck": 3, "pretrained": "lift_small/weights.pt"}, data=data)
    saved = ltcore.run(path, out=tmp_path / "out", quiet=True)
    expected = text_directions("lift_small/weights.pt", saved.class_names, "a photo of a {}.", 64)
    torch.testing.assert_close(seen["found"], expected)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    opened = ltcore.load(saved.path)
    assert isinstance(opened.model.classifier, CosineClassifier)
    assert torch.equal(opened.model.classifier.directions, saved.model.classifier.directions)
