"""Several crops of each test image: which they are, what is averaged, and who averages it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import v2

import ltcore
from ltcore import ArraySplit, RecipeError
from ltcore.contract.recipe import Transform
from ltcore.data.streaming import ArrayImages, StreamingLoader, build_loader
from ltcore.data.transforms import ImageTransform
from ltcore.export import export
from ltcore.recipe.loading import load_recipe

MEAN, STD = (0.5,) * 3, (0.25,) * 3


def picture(width, height):
    """A smooth picture: resizing it before or after a crop is the same but at the crop's border."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, (x + y) / 2], 2)).astype(np.uint8))


@pytest.mark.parametrize("size", [(310, 270), (250, 410)])
@pytest.mark.parametrize("crops", [5, 10])
def test_the_crops_are_torchvisions_the_centre_first(size, crops):
    image = picture(*size)
    found = ImageTransform("imagenet", 224, crops=crops, crop_margin=24).evaluate_crops(image.copy())
    resized = F.resize(image, 248, antialias=True)
    *corners, centre = v2.FiveCrop(224)(resized)
    expected = [centre, *corners]
    if crops == 10:
        expected += [F.hflip(each) for each in expected]
        theirs = {np.asarray(each).tobytes() for each in v2.TenCrop(224)(resized)}
        assert {np.asarray(each).tobytes() for each in expected} == theirs
    assert len(found) == crops
    for mine, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(mine, dtype=int) - np.asarray(other, dtype=int)).max() <= 2


def test_a_large_jpeg_is_decoded_once_and_small_for_all_crops(tmp_path):
    picture(1600, 1200).save(tmp_path / "x.jpg", quality=95)
    transform = ImageTransform("imagenet", 64, crops=5, crop_margin=8)
    with Image.open(tmp_path / "x.jpg") as image:
        found = transform.evaluate_crops(image)
        assert image.width < 1600
    expected = transform.evaluate_crops(picture(1600, 1200))
    for mine, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(mine, dtype=int) - np.asarray(other, dtype=int)).max() <= 4


def split(count=7, size=16, channels=3):
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    return ArraySplit(images, torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["none", "imagenet"])
def test_loaders_give_the_first_crop_of_all_images_then_the_second(name, workers):
    images, transform = split(), ImageTransform(name, 16, crops=5, crop_margin=4)
    loader = build_loader(images, transform, MEAN, STD, workers, torch.device("cpu"))
    opened = ArrayImages(images)
    batches = list(loader.eval_batches(3, crops=True))
    assert [len(batch) for batch in batches] == [15, 15, 5]
    for start, batch in zip((0, 3, 6), batches, strict=True):
        rows = batch.unflatten(0, (5, -1))
        for row in range(rows.shape[1]):
            for crop, expected in enumerate(transform.evaluate_crops(opened.open(start + row))):
                pixels = (rows[crop, row] * 0.25 + 0.5).permute(1, 2, 0).mul(255).round().to(torch.uint8)
                assert np.array_equal(pixels.numpy(), np.asarray(expected))
    assert torch.equal(loader.eval_batch(3, 6, crops=True), batches[1])
    assert len(next(iter(loader.eval_batches(3)))) == 3  # without being asked for, one


def test_an_image_that_cannot_be_decoded_is_left_out_with_all_its_crops(tmp_path):
    class Broken(ArrayImages):
        def open(self, index):
            if index == 1:
                raise OSError("cut short")
            return super().open(index)

    images, transform = split(5), ImageTransform("imagenet", 16, crops=5, crop_margin=4)
    loader = StreamingLoader(Broken(images), transform, MEAN, STD)
    (found, broken), (rest, none) = loader.readable_batches(3)
    assert [each.index for each in broken] == [1] and not none and len(rest) == 10
    whole = StreamingLoader(ArrayImages(images), transform, MEAN, STD).eval_batch(0, 3, crops=True)
    assert torch.equal(found, whole.unflatten(0, (5, 3))[:, [0, 2]].flatten(0, 1))


def test_a_margin_without_crops_is_refused_with_its_place(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "data:\n  use: digits_lt\n  transform:\n    test_margin: 8\nbackbone: {use: cifar_resnet}\n"
        "stages: [{name: s, epochs: 1, optimizer: {lr: 0.1}}]\n"
    )
    with pytest.raises(RecipeError, match=r"r\.yaml:4: data\.transform\.test_margin: there is one crop"):
        load_recipe(path)
    assert Transform(test_crops=5).test_margin is None


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    whole = {
        "data": {
            "use": "synthetic",
            "options": {"class_counts": [24, 16, 8], "image_size": 16, "test_per_class": 6},
            "holdout": 2,
            "transform": {"test_crops": 5, "test_margin": 4},
        },
        "backbone": {"use": "timm", "options": {"model": "test_resnet"}},
        "methods": {"temperature": {}},
        "calibrate": ["temperature"],
        "stages": [{"name": "s", "epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}}],
        "eval_batch_size": 7,
        "device": "cpu",
    }
    (folder / "r.yaml").write_text(json.dumps(whole))
    return ltcore.run(folder / "r.yaml", out=folder / "out", quiet=True)


def averaged(saved, images):
    """Logits as a slow loop gives them: each crop of each image by itself."""
    transform, rows = saved.description.transform, []
    for image in images:
        crops = transform.evaluate_crops(Image.fromarray(image.permute(1, 2, 0).numpy()))
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)
        with torch.no_grad():
            rows.append(saved.model(saved.description.normalised(pixels.contiguous())).double().mean(0))
    return torch.stack(rows).numpy()


def test_test_figures_are_of_the_mean_logits_and_the_result_says_so(trained):
    data = trained.read_data()
    expected = averaged(trained, data.test.images)
    np.testing.assert_allclose(trained.calibrated_logits, expected, rtol=1e-3, atol=1e-4)
    told = trained.result["preparation"]
    assert (told["test_crops"], told["test_margin"]) == (5, 4)
    assert trained.metrics["top1"] == (expected.argmax(1) == data.test.targets.numpy()).mean()


def test_predictions_are_of_the_mean_logits_too(trained, tmp_path):
    images = trained.read_data().test.images
    expected = averaged(trained, images)
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(trained.predict(pixels).logits, expected, rtol=1e-3, atol=1e-4)
    for number, one in enumerate(pixels[:3]):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    np.testing.assert_allclose(trained.predict(tmp_path).logits, expected[:3], rtol=1e-3, atol=1e-4)


def test_methods_see_one_crop(trained):
    data = trained.read_data()
    assert trained.features("val").shape == (len(data.val), trained.model.backbone.feature_dim)


def test_an_export_is_checked_with_the_crops_and_says_that_it_has_none(trained, tmp_path):
    lines = export(trained, "torchscript", tmp_path / "model.pt")
    assert any("test images: logits equal" in line for line in lines)
    assert lines[-1].startswith("the run's figures are of 5 crops of each image")
