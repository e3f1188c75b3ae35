"""Runs from Python, and models built again without their data."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import ltcore
from ltcore.errors import DataError, LtcoreError, PluginError, RecipeError, RunError
from ltcore.evaluation import calibrated

STAGE = "{name: %s, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}, methods: [%s], trainable: [%s]}"
BOTH = "backbone, classifier"


def stages(*stages):
    return f"[{', '.join(STAGE % stage for stage in stages)}]"


@pytest.fixture(scope="module")
def digits(digits_run):
    return ltcore.load(digits_run)


def test_results_are_the_files_own(digits):
    with np.load(digits.path / "predictions.npz") as arrays:
        for name in ("targets", "logits", "calibrated_logits"):
            np.testing.assert_array_equal(getattr(digits, name), arrays[name])
    assert digits.result == json.loads((digits.path / "result.json").read_text())
    assert digits.metrics == digits.result["after_calibration"]
    assert digits.class_names == tuple("0123456789")
    assert digits.class_counts.tolist() == digits.result["class_counts"]
    assert digits.recipe.methods["focal"].options == {"gamma": 1.0}
    assert f"{100 * digits.metrics['top1']:.1f} %" in repr(digits)


def test_the_model_is_the_runs_own(digits):
    assert not digits.model.training and not any(p.requires_grad for p in digits.model.parameters())
    test = digits.read_data().test
    np.testing.assert_array_equal(digits.predict(test.images).logits, digits.calibrated_logits)
    pooled = digits.features("test")
    assert pooled.shape == (500, 64) and digits.features("test", "maps").shape == (500, 64, 2, 2)
    found = digits.model.classifier(torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(found, digits.calibrated_logits, atol=1e-5)
    assert len(digits.features("train")) == digits.class_counts.sum()


def test_what_is_not_there(digits):
    with pytest.raises(DataError, match="no 'val' images"):
        digits.features("val")
    with pytest.raises(RecipeError, match="no tap 'layer9'"):
        digits.features("test", "layer9")


def test_predictions(digits):
    images = digits.read_data().test.images[:3]
    found = digits.predict(images)
    assert found.names == ("image 0", "image 1", "image 2") and len(found) == 3
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    (first, second), *_ = found.top(2)
    assert first == (digits.class_names[found.labels[0]], pytest.approx(found.probabilities[0].max()))
    assert first[1] > second[1]
    assert len(found.top(99)[0]) == 10


def test_the_same_image_in_every_form(digits, tmp_path):
    from PIL import Image

    pixels = digits.read_data().test.images[:2]
    expected = digits.predict(pixels).logits
    grey = pixels[:, 0].numpy()
    pictures = [Image.fromarray(image) for image in grey]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    colours = np.repeat(grey[..., None], 3, axis=3)
    for images in (grey, grey[..., None], colours, pictures, tmp_path, str(tmp_path), sorted(tmp_path.iterdir())):
        np.testing.assert_allclose(digits.predict(images).logits, expected, atol=1e-5)
    assert digits.predict(tmp_path).names == (str(tmp_path / "0.png"), str(tmp_path / "1.png"))
    assert len(digits.predict(pictures[0])) == 1
    large = digits.predict(pictures[0].resize((40, 24)))
    assert large.logits.shape == (1, 10)


def test_images_in_memory_are_prepared_in_this_process(digits, monkeypatch):
    """Where a program has no `if __name__ == "__main__"`, further processes would run it again."""
    from multiprocessing.process import BaseProcess

    monkeypatch.setattr(BaseProcess, "start", lambda process: pytest.fail("a process is started"))
    assert len(digits.predict(np.zeros((3, 40, 24), np.uint8), batch_size=1)) == 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8)), r"float64 of shape \(1, 8, 8\), but should be uint8"),
        (np.zeros((8, 8), dtype=np.uint8), "should be uint8"),
        (np.array([None]), "pixels are object"),
        (torch.zeros(8, 8, dtype=torch.uint8), "should be uint8"),
        ("nowhere.png", "no such file"),
        ([1, 2], "should be paths"),
    ],
)
def test_no_images(digits, images, message):
    with pytest.raises(DataError, match=message):
        digits.predict(images)


def test_an_empty_folder_and_a_broken_file(digits, tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        digits.predict(tmp_path)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        digits.predict(tmp_path)


def test_run_and_load_leave_torch_alone_and_randomness_as_it_was(digits_run):
    program = "import sys, ltcore; assert 'torch' not in sys.modules; ltcore.run, ltcore.load, ltcore.SavedRun"
    subprocess.run([sys.executable, "-c", program], check=True)
    before = torch.get_rng_state()
    assert ltcore.load(digits_run).model
    assert torch.equal(torch.get_rng_state(), before)


# The classifiers that methods build and calibrations make: every one that a shipped plugin has.
KINDS = {
    "scaled weights": {"methods": "{tau_norm: {}}", "calibrate": "[tau_norm]"},
    "several calibrations": {
        "methods": "{count_norm: {}, logit_adjustment: {}}",
        "calibrate": "[count_norm, logit_adjustment]",
    },
    "class means": {"methods": "{ncm: {}}", "calibrate": "[ncm]"},
    "class means, scaled": {"methods": "{ncm: {}, tau_norm: {}}", "calibrate": "[ncm, tau_norm]"},
    "cosines": {"methods": "{ldam: {}}", "stages": stages(("joint", "ldam", BOTH))},
    "cosines, scaled": {
        "methods": "{ldam: {}, lws: {}, count_norm: {}}",
        "stages": stages(("joint", "ldam", BOTH), ("scale", "lws", "classifier")),
        "calibrate": "[count_norm]",
    },
    "a method with its own modules": {
        "methods": "{safa: {options: {tap: layer2, start_epoch: 0}}}",
        "stages": stages(("joint", "safa", f"{BOTH}, safa")),
    },
    "one channel and a stage with its own data": {
        "data": "{use: digits_lt}",
        "methods": "{balanced_softmax: {}}",
        "stages": stages(("joint", "balanced_softmax", BOTH)).replace(
            "methods:", "data: {imbalance: {kind: exponential, factor: 4}}, methods:"
        ),
    },
    "a network of timm": {
        "backbone": "{use: timm, options: {model: test_resnet}}",
        "methods": "{tau_norm: {}}",
        "calibrate": "[tau_norm]",
    },
    "a transformer of timm": {
        "backbone": "{use: timm, options: {model: test_vit}}",
        "data": "{use: synthetic, options: {class_counts: [8, 4], image_size: 32, test_per_class: 4}}",
    },
    "a selection": {
        "methods": "{tau_norm: {}}",
        "calibrate": "[tau_norm]",
        "select": "{holdout: 3, retrain: false, options: {methods.tau_norm.options.tau: [0.3, 0.9]}}",
    },
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_built_without_the_data(kind, write_recipe, tmp_path, monkeypatch):
    saved = ltcore.run(write_recipe(**KINDS[kind]), out=tmp_path / "runs")
    expected = saved.calibrated_logits
    assert saved.read_data().class_counts.tolist() == saved.class_counts.tolist()
    images = saved.read_data().test.images
    monkeypatch.setattr("ltcore.training.data.prepare", lambda *_: pytest.fail("the data was read"))
    again = ltcore.load(saved.path)
    np.testing.assert_allclose(again.predict(images).logits, expected, atol=1e-4 * abs(expected).max())


def test_weights_that_were_started_from_are_not_needed_again(write_recipe, tmp_path):
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "start.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    backbone = f"{{use: timm, options: {{model: test_resnet, weights: {weights}}}}}"
    saved = ltcore.run(write_recipe(backbone=backbone), out=tmp_path / "runs")
    weights.unlink()
    images = saved.read_data().test.images
    found = ltcore.load(saved.path).predict(images).logits
    np.testing.assert_allclose(found, saved.calibrated_logits, atol=1e-4)


@pytest.fixture
def copied(digits_run, tmp_path):
    """A copy of the digits run, to be spoiled."""
    return shutil.copytree(digits_run, tmp_path / "copy")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_missing_plugin(copied):
    edit(copied / "recipe.yaml", "options: {gamma: 1.0}", "use: bag_of_tricks")
    saved = ltcore.load(copied)
    assert saved.metrics["top1"] == saved.result["after_calibration"]["top1"]  # results need no plugin
    with pytest.raises(PluginError, match="'bag_of_tricks' is not installed"):
        _ = saved.model


def test_another_network(copied):
    edit(copied / "recipe.yaml", "depth: 8", "depth: 20")
    with pytest.raises(RunError, match=r"calibrated\.safetensors does not fit this recipe's model"):
        _ = ltcore.load(copied).model


def test_a_plugin_that_has_changed(write_recipe, tmp_path):
    saved = ltcore.run(write_recipe(**KINDS["cosines"]), out=tmp_path / "runs")
    edit(saved.path / "recipe.yaml", "ldam: {}", "ldam: {options: {scale: 10}}")
    edit(saved.path / "result.json", '"ltcore-ldam": "', '"ltcore-ldam": "9.')
    with pytest.raises(RunError, match=r"not the run's: .* \(since the run, ltcore-ldam was 9\..* and is 0"):
        _ = ltcore.load(saved.path).model


def test_a_classifier_that_keeps_values_outside_of_its_tensors(write_recipe, tmp_path, offer_methods):
    class Keeper(ltcore.Method):
        @ltcore.hookimpl
        def post_calibrate(self, classifier, context):
            return Scaled(classifier, float(context.training_features().norm()))

    class Scaled(torch.nn.Module):
        def __init__(self, inner, factor):
            super().__init__()
            self.inner, self.factor = inner, factor
            self.weight, self.bias = inner.weight, inner.bias

        def forward(self, pooled):
            return self.inner(pooled) * self.factor

    offer_methods(keeper=Keeper)
    saved = ltcore.run(write_recipe(methods="{keeper: {}}", calibrate="[keeper]"), out=tmp_path / "runs")
    with pytest.raises(RunError, match=r"off by .* of the largest"):
        _ = saved.model


def test_an_error_class_of_a_plugin_comes_out_of_a_saved_run(write_recipe, tmp_path, offer_methods):
    class Gone(PluginError):
        def __init__(self, what, where):
            super().__init__(f"{what} is not at {where} any more")
            self.what = what

    class Leaving(ltcore.Method):
        gone = False

        @ltcore.hookimpl
        def post_calibrate(self, classifier):
            if self.gone:
                raise Gone("the table", tmp_path)
            return classifier

    offer_methods(leaving=Leaving)
    saved = ltcore.run(write_recipe(methods="{leaving: {}}", calibrate="[leaving]"), out=tmp_path / "runs")
    edit(saved.path / "result.json", '"ltcore": "', '"ltcore": "9.')
    Leaving.gone = True
    with pytest.raises(Gone, match=r"the table is not at .* \(since the run, ltcore was 9\..* and is 0") as caught:
        _ = ltcore.load(saved.path).model
    assert caught.value.what == "the table"


def test_files_of_the_run_that_are_missing_or_damaged(copied):
    path = copied / "checkpoints" / "calibrated.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match="not a readable checkpoint"):
        _ = ltcore.load(copied).model
    path.unlink()
    with pytest.raises(RunError, match="the run's calibrated model is missing; copy it again"):
        _ = ltcore.load(copied).model


def test_no_run_that_has_ended(copied, tmp_path):
    with pytest.raises(RecipeError, match=r"holds 1; name one, such as .*copy"):
        ltcore.load(tmp_path)
    (copied / "result.json").unlink()
    with pytest.raises(RecipeError, match=r"has not ended .*--resume"):
        ltcore.load(copied)
    with pytest.raises(RecipeError, match="no such run"):
        ltcore.load(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="is no run"):
        ltcore.load(copied / "checkpoints")


def test_the_data_is_gone(write_recipe, tmp_path):
    from PIL import Image

    for split, name, number in ((s, c, i) for s in ("train", "test") for c in ("cat", "dog") for i in range(4)):
        path = tmp_path / "photos" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (60 * number, 90 if name == "cat" else 200, 30)).save(path)
    data = f"{{use: image_folder, options: {{root: {tmp_path}/photos}}, transform: {{image_size: 16}}}}"
    saved = ltcore.run(write_recipe(data=data), out=tmp_path / "runs")
    test = saved.read_data().test
    files = [test.name(index) for index in range(len(test))]
    np.testing.assert_allclose(saved.predict(files).logits, saved.calibrated_logits, atol=1e-5)
    kept = tmp_path / "kept.png"
    shutil.copyfile(files[0], kept)
    shutil.rmtree(tmp_path / "photos")
    again = ltcore.load(saved.path)
    np.testing.assert_allclose(again.predict(kept).logits, saved.calibrated_logits[:1], atol=1e-5)
    with pytest.raises(DataError, match=r"recipe\.yaml:\d+: .*photos"):
        again.read_data()


def test_the_probe_tells_models_apart(digits):
    images = calibrated.probe_images(3, 3, 24)
    assert images.shape == (calibrated.PROBES, 3, 24, 24) and images.dtype == torch.uint8
    assert torch.equal(images, calibrated.probe_images(3, 3, 24))
    assert not torch.equal(images, calibrated.probe_images(4, 3, 24))
    assert images.float().mean((1, 2, 3)).std() > 1 and images.float().std() > 30
    logits = torch.tensor([[1.0, -4.0]])
    assert calibrated.relative_difference(logits + 0.4, logits) == pytest.approx(0.1)
    assert calibrated.relative_difference(logits * float("nan"), logits) == float("inf")


def test_errors_of_a_run_are_raised(tmp_path):
    with pytest.raises(LtcoreError, match=r"none\.yaml"):
        ltcore.run(tmp_path / "none.yaml")


def test_a_run_can_be_heard(write_recipe, tmp_path, capsys):
    recipe = write_recipe()
    ltcore.run(recipe, seed=3, out=tmp_path / "runs")
    assert not capsys.readouterr().out
    again = ltcore.run(recipe, seed=3, out=tmp_path / "runs", resume=True, quiet=False)
    assert "has already ended" in capsys.readouterr().out and again.recipe.seed == 3
