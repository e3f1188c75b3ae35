"""Images are prepared as pre-trained weights want them, unless the recipe says otherwise, and then it is told."""

import json

import pytest
import timm
from safetensors.torch import save_file

import ltcore
from ltcore import Pretraining
from ltcore.contract.recipe import Data, Normalize, Transform
from ltcore.data.pretraining import as_pretrained

WEIGHTS = Pretraining("net", (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "bicubic")


def asked(**said):
    return Data(use="x", **said)


def test_without_weights_nothing_changes():
    said = asked()
    assert as_pretrained(said, None) == (said, [])


def test_what_the_recipe_leaves_open_is_as_the_weights_want_it():
    used, notes = as_pretrained(asked(), WEIGHTS)
    assert used.normalize == Normalize(mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    assert used.transform.interpolation == "bicubic"
    assert notes == [
        "images are normalised with mean [0.4, 0.5, 0.6] and standard deviation [0.1, 0.2, 0.3] and resized with "
        "bicubic interpolation, as the weights of 'net' were trained"
    ]


def test_what_the_recipe_says_is_used_and_told():
    said = asked(
        normalize=Normalize(mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.9]), transform=Transform(interpolation="bilinear")
    )
    used, notes = as_pretrained(said, WEIGHTS)
    assert used == said and len(notes) == 2
    assert notes[0].startswith("data.normalize says mean [0.4, 0.5, 0.6] and standard deviation [0.1, 0.2, 0.9], but")
    assert "data.transform.interpolation says bilinear, but the weights of 'net' were trained with bicubic" in notes[1]


def test_what_agrees_is_not_told():
    said = asked(normalize=Normalize(mean=[0.4, 0.5, 0.6003], std=[0.1, 0.2, 0.3]))
    used, notes = as_pretrained(said, WEIGHTS)
    assert used.normalize == said.normalize
    assert notes == ["images are resized with bicubic interpolation, as the weights of 'net' were trained"]


def test_grey_images_take_the_mean_over_the_channels_and_other_numbers_the_data_sets():
    used, _ = as_pretrained(asked(), WEIGHTS, channels=1)
    assert used.normalize.mean == [pytest.approx(0.5)] and used.normalize.std == [pytest.approx(0.2)]
    used, notes = as_pretrained(asked(), WEIGHTS, channels=4)
    assert used.normalize is None and "were trained on 3 channels, which says nothing of 4" in notes[1]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def written(write_recipe, weights, **data):
    return write_recipe(
        data={"use": "synthetic", "options": {"class_counts": [12, 8], "image_size": 32, "test_per_class": 2}, **data},
        backbone={"use": "timm", "options": {"model": "test_resnet", "weights": str(weights)}},
    )


@pytest.mark.parametrize("normalize", [None, {"mean": [0.1] * 3, "std": [0.4] * 3}])
def test_in_a_run_and_its_result_and_when_it_is_opened_again(cli, write_recipe, weights, tmp_path, normalize):
    path = written(write_recipe, weights, **({"normalize": normalize} if normalize else {}))
    ended = cli("run", path, "--out", tmp_path / "runs")
    assert ended.code == 0, ended
    config = timm.get_pretrained_cfg("test_resnet")
    wanted = normalize or {"mean": list(config.mean), "std": list(config.std)}
    said = "data.normalize says mean 0.1 and" if normalize else "images are normalised with mean 0.5 and"
    assert said in ended.out + ended.err and said in cli("plan", path).out
    (result,) = (tmp_path / "runs").glob("r/*/result.json")
    assert json.loads(result.read_text())["preparation"] == {
        "transform": "none",
        "image_size": 32,
        "interpolation": config.interpolation,
        **wanted,
    }
    saved = ltcore.load(result.parent)
    assert list(saved.description.mean) == wanted["mean"] == list(saved.read_data().mean)


def test_from_random_weights_the_data_set_decides(cli, write_recipe, weights):
    path = written(write_recipe, weights)
    assert "normalised" not in cli("plan", path, "--set", "backbone.options.weights=null").out


def test_interpolation_changes_pixels_and_nothing_else(tmp_path):
    from PIL import Image

    from ltcore.data.transforms import ImageTransform

    image = Image.effect_noise((50, 40), 60).convert("RGB")
    one, other = (
        ImageTransform("imagenet", 16, interpolation=kind).evaluate(image) for kind in ("bilinear", "bicubic")
    )
    assert one.size == other.size == (16, 16) and one.tobytes() != other.tobytes()


def test_candidates_whose_weights_want_other_images_are_refused(write_recipe, weights, tmp_path, cli):
    path = written(write_recipe, weights)
    options = "select={holdout: 1, options: {backbone.options.model: [test_resnet, resnet10t]}}"
    save = {"backbone.options.weights": "null", "backbone.options.pretrained": "true"}
    sets = [option for key, value in save.items() for option in ("--set", f"{key}={value}")]
    refused = cli("run", path, *sets, "--set", options, "--out", tmp_path / "runs")
    refused.is_one_message(2, "--set select", "prepared in different ways; say data.normalize")
