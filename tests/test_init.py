"""`ltcore init`: what it decides from a folder, what it writes and prints, and that the folder stays as it was."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ltcore.data import duplicates
from ltcore.discovery import catalogue
from ltcore.errors import RecipeError
from ltcore.init import choices, machine, write_recipes
from ltcore.init.choices import Wishes, choose
from ltcore.init.machine import Machine
from ltcore.init.survey import survey
from ltcore.rehearsal import rehearsal

CPU, GPU = Machine("cpu", "a CPU", 2), Machine("cuda", "a GPU", 16)


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """A machine of a known speed, 100 images a second at 64 pixels; the list is of what was measured."""
    asked = []

    def images_per_second(model, image_size, device):
        asked.append((model, image_size, device))
        speed = 100.0 * (64 / image_size) ** 2 * (50 if device == "cuda" else 1)
        return speed, 2 * speed, 3 * speed

    monkeypatch.setattr(choices, "images_per_second", images_per_second)
    monkeypatch.setattr("ltcore.init.machine.this_machine", lambda: CPU)
    return asked


def put(root, counts, size=(72, 64), mode="RGB"):
    """Folders of images by class, made with Pillow."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new(mode, size, number % 250).save(root / name / f"{number:03}.png")
    return root


def contents(root):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()}


LONG = {"cat": 40, "dog": 15, "yak": 4}
EVEN = {"cat": 12, "dog": 10}


def init(cli, folder, *words):
    """Run the command beside the folder; its result, the recipe as text and as data."""
    out = folder.parent / "own.yaml"
    result = cli("init", folder, "--out", out, *words)
    assert (result.code, result.err) == (0, ""), result
    return result, out.read_text(), yaml.safe_load(out.read_text())


def prose(text):
    """The comments as running text."""
    return " ".join(line.strip().removeprefix("#").strip() for line in text.splitlines() if line.strip()[:1] == "#")


# -- from the folder to a trained network ------------------------------------------------------------------------------


def test_the_commands_it_prints_work_and_the_folder_stays_as_it_was(cli, tmp_path, monkeypatch):
    folder = put(tmp_path / "my photos", LONG, size=(40, 34))
    before = contents(folder)
    monkeypatch.chdir(tmp_path)
    result = cli("init", "my photos", "--epochs", 1, "--model", "test_resnet", "--image-size", 32)
    assert result.code == 0 and not result.err
    lines = dict(
        line.split("   ltcore ") if "   ltcore " in line else line.split(" ltcore ")
        for line in result.out.splitlines()
        if " ltcore " in line and line.startswith(("try", "train ", "compare"))
    )
    words = {name.strip(): shlex.split(line.strip()) for name, line in lines.items()}
    assert words["try it out"] == ["rehearse", "recipe.yaml"] and words["train"] == ["run", "recipe.yaml"]
    text = Path("recipe.yaml").read_text()
    assert all(f"#   ltcore {shlex.join(line)}\n" in text for line in words.values())
    for name, folder_name, method in (("train", "recipe", True), ("compare with", "recipe_baseline", False)):
        plan = cli("plan", *words[name][1:])
        assert plan.code == 0 and ("logit_adjustment" in plan.out) is method
        trained = cli(*words[name])
        assert trained.code == 0, trained.err
        assert list(Path("runs", folder_name).glob("*/result.json"))
    assert contents(folder) == before


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_long_tailed_classes_get_logit_adjustment_and_true_figures(cli, tmp_path):
    result, text, recipe = init(cli, put(tmp_path / "photos", LONG))
    assert recipe["stages"][0]["methods"] == ["logit_adjustment"] == list(recipe["methods"])
    # 40, 15 and 4 images less a fifth: 32, 12 and 3; less a tenth for validation, but for the class of fewer than ten
    assert (recipe["data"]["options"]["val_fraction"], recipe["data"]["options"]["val_min"]) == (0.1, 10)
    assert "41 images are trained on, 12 tested on (one in five), 6 are kept for validation, none of" in prose(text)
    assert "28 in 'cat' down to 3 in 'yak', 10 in 'dog', 28 in 'cat': 9.33 to 1" in prose(text)
    assert "64 pixels (median of 41)" in prose(text)
    assert "3 in 'yak'" in result.out and "logit adjustment" in result.out


def test_nearly_balanced_classes_get_cross_entropy(cli, tmp_path):
    result, text, recipe = init(cli, put(tmp_path / "photos", EVEN))
    assert "methods" not in recipe and recipe["stages"][0]["methods"] == [] and len(recipe["stages"]) == 1
    assert "nearly balanced" in prose(text) and "compare with" not in result.out
    assert recipe["data"]["options"]["val_fraction"] == 0.1  # every class has ten images


def test_the_border_of_nearly_balanced(tmp_path):
    below = survey(put(tmp_path / "a", {"cat": 16, "dog": 5}))  # 16 less 3 and 2, and 5 less 1, to train on
    above = survey(put(tmp_path / "b", {"cat": 17, "dog": 5}))  # 17 less 3 and 2
    assert (below.counts, above.counts) == ((11, 4), (12, 4))
    assert choose(below, Wishes(), CPU).methods == ()
    assert choose(above, Wishes(), CPU).methods == ("logit_adjustment",)


def test_without_the_plugin_the_classifier_is_rebuilt(cli, tmp_path, monkeypatch):
    offers = [offer for offer in catalogue.offers() if offer.name != "logit_adjustment"]
    monkeypatch.setattr(catalogue, "offers", lambda: offers)
    result, text, recipe = init(cli, put(tmp_path / "photos", LONG), "--epochs", 1, "--model", "test_resnet")
    assert [stage["name"] for stage in recipe["stages"]] == ["train", "classifier"] and "methods" not in recipe
    assert "pip install ltcore-logit-adjustment" in result.out and "(cRT)" in prose(text)
    assert "1 epoch, " in result.out + prose(text)
    assert cli("plan", tmp_path / "own.yaml").code == 0
    (line,) = (line for line in result.out.splitlines() if line.startswith("compare with"))
    plan = cli("plan", *shlex.split(line.partition("ltcore run ")[2]))
    assert plan.code == 0 and "stage 1/1" in plan.out


def test_the_other_way_in_the_comments_works(cli, tmp_path):
    text = init(cli, put(tmp_path / "photos", LONG))[1]
    lines = text.splitlines()
    start = lines.index("  # - name: classifier")
    stage = [line.replace("# ", "", 1) for line in lines[start : start + 9]]
    kept = "\n".join(lines[:start] + stage).replace("methods: [logit_adjustment]", "methods: []")
    kept = "\n".join(line for line in kept.splitlines() if "logit_adjustment:" not in line and line != "methods:")
    (tmp_path / "other.yaml").write_text(kept)
    plan = cli("plan", tmp_path / "other.yaml")
    assert plan.code == 0 and "stage 2/2" in plan.out and "class_balanced" in plan.out


@pytest.mark.parametrize(("splits", "images"), [(("train", "val", "test"), (16, 8, 8)), (("train", "val"), (16, 0, 8))])
def test_folders_of_splits_are_taken_as_they_are(cli, tmp_path, splits, images):
    for split in splits:
        put(tmp_path / "photos" / split, {"cat": 12, "dog": 4} if split == "train" else {"cat": 4, "dog": 4})
    _, text, recipe = init(cli, tmp_path / "photos")
    assert recipe["data"]["options"] == {"root": str(tmp_path / "photos")}
    train, val, test = images
    shown = f"{train} images are trained on, {test} tested on, {val or 'none'} kept for validation"
    assert f"Your folders are the splits: {shown}" in prose(text)


def test_lists_of_images(cli, tmp_path):
    root = put(tmp_path / "photos", {"cat": 6, "dog": 3})
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        lines = [f"{name}/{n:03}.png {label}\n" for label, name in enumerate(("cat", "dog")) for n in numbers]
        (root / f"own_{split}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("Cat\nDog\n")
    (root / "readme.txt").write_text("training notes")
    _, text, recipe = init(cli, root)
    lists = {"train": "own_train.txt", "test": "own_test.txt", "class_names": "classes.txt"}
    assert recipe["data"]["use"] == "image_list" and recipe["data"]["options"] == {"root": str(root), **lists}
    assert "Your lists are the splits: 4 images are trained on, 2 tested on" in prose(text) and "'Cat'" in text
    assert cli("plan", tmp_path / "own.yaml").code == 0


def test_classes_of_one_and_two_images(cli, tmp_path):
    result, text, _ = init(cli, put(tmp_path / "photos", {"cat": 10, "dog": 2, "yak": 1}))
    assert "2 classes have a single training image, first 'dog'" in prose(text)
    assert "classes of one image, which is trained on and none tested: 1, first 'yak'" in result.out
    assert "no figure covers" not in text  # said once


def test_it_says_where_there_are_too_many_images_to_compare(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST", 15)
    _, text, _ = init(cli, put(tmp_path / "photos", EVEN))
    assert "images are more than 15: none were compared with each other" in prose(text)


def test_grey_images_and_broken_ones(cli, tmp_path):
    root = put(tmp_path / "photos", EVEN, mode="L")
    assert cli("init", root, "--out", tmp_path / "own.yaml").code == 0
    assert "16 of them are grey" in prose((tmp_path / "own.yaml").read_text())
    assert "broken" not in yaml.safe_load((tmp_path / "own.yaml").read_text())["data"]
    for path in (root / "dog").iterdir():
        path.write_text("no image")
    _, text, recipe = init(cli, root, "--force")
    assert recipe["data"]["broken"] == "skip"
    assert "7 of 16 images that were looked at cannot be read" in prose(text)


# -- network, size and epochs ------------------------------------------------------------------------------------------


def found(tmp_path, images=2000, side=64):
    """A survey with other figures: a large folder without its images."""
    small = survey(put(tmp_path / "photos", EVEN))
    return replace(small, images={"train": images, "val": 0, "test": 9}, side=side, decoding=0.0)


def test_the_largest_network_that_fits_the_time(tmp_path, speed):
    photos = found(tmp_path, side=500)
    # resnet10t trains 100 images of 64 pixels a second, resnet18 so 60: 29.7 minutes are 89 or 53 epochs of 2000
    # images, and 23.9 and 13.4 epochs of resnet18 at 96 and 128 pixels
    long = choose(photos, Wishes(), CPU)
    assert (long.rung.model, long.rung.size, long.epochs, long.transform) == ("resnet18", 96, 23, "imagenet")
    assert (long.above.rung.model, long.above.rung.size) == ("resnet18", 128) and 33 < long.above.minutes < 34
    short = choose(photos, Wishes(minutes=10), CPU)
    assert (short.rung.model, short.rung.size, short.epochs, short.transform) == ("resnet18", 64, 17, "cifar")
    assert speed == [("resnet10t", 64, "cpu")] * 2
    for made, minutes in ((long, 30), (short, 10)):
        assert minutes - made.rung.epoch < made.minutes <= minutes


def test_what_fits_no_time_is_refused_with_the_choices(cli, tmp_path):
    photos = found(tmp_path, side=500)
    with pytest.raises(
        RecipeError, match=r"nothing fits 5 minutes on a CPU: .* 15 epochs of resnet10t at 64 pixels"
    ) as told:
        choose(photos, Wishes(minutes=5), CPU)
    assert "--minutes 6" in str(told.value) and "--pretrained" in str(told.value)
    assert choose(photos, Wishes(minutes=6), CPU).epochs == 17
    with pytest.raises(RecipeError, match=r"the features of resnet18 at 64 pixels .* --image-size"):
        choose(photos, Wishes(minutes=0.1, pretrained=True), CPU)
    asked = choose(photos, Wishes(minutes=1, epochs=4), CPU)  # what is asked for by name is done
    assert (asked.rung.size, asked.epochs) == (64, 4) and asked.minutes > 1


def test_images_are_not_enlarged_and_epochs_have_a_bound(tmp_path):
    photos = found(tmp_path, images=200)
    made = choose(photos, Wishes(minutes=1000), CPU)
    assert (made.rung.size, made.epochs) == (64, 100)


def test_decoding_counts(tmp_path):
    """On a CPU the cores decode as well; beside a GPU they decode meanwhile."""
    photos = replace(found(tmp_path), decoding=0.1)
    for machine_, images in ((CPU, 1 / (0.01 + 0.05)), (GPU, 160.0)):
        made = choose(photos, Wishes(minutes=1000, model="resnet10t", image_size=64), machine_)
        assert made.rung.rate == pytest.approx(images)


def test_pretrained_weights_are_frozen_where_there_is_no_time_to_tune_them(tmp_path):
    photos = found(tmp_path, images=2000, side=500)
    # At 224 pixels 8.16 images per second train, 16.3 train the last part, and 24.5 have their features taken.
    frozen = choose(photos, Wishes(minutes=5, pretrained=True), CPU)
    assert (frozen.rung.kind, frozen.rung.size, frozen.epochs) == ("frozen", 224, 0)
    assert frozen.methods == ("linear_probe",) and frozen.minutes == pytest.approx(0.3 + 2009 / 24.49 / 60, abs=0.02)
    assert (frozen.above.rung.kind, frozen.above.rung.size) == ("last", 224)
    last = choose(photos, Wishes(minutes=13, pretrained=True), CPU)
    assert (last.rung.kind, last.epochs, last.above.rung.kind) == ("last", 5, "tuned")
    assert last.stage["trainable"] == ["backbone.layer4", "classifier"] and last.methods == ("linear_probe",)
    tuned = choose(photos, Wishes(minutes=23, pretrained=True), CPU)
    assert (tuned.rung.kind, tuned.epochs, tuned.above) == ("tuned", 5, None) and tuned.minutes <= 23
    assert tuned.methods == ("linear_probe",)  # nearly balanced
    small = choose(photos, Wishes(minutes=1, pretrained=True), CPU)
    assert (small.rung.kind, small.rung.size) == ("frozen", 128)
    named = choose(photos, Wishes(minutes=10, pretrained=True, method="cdt"), CPU)
    assert named.rung.kind == "frozen"  # methods know no parts of a network


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("resnet18", ["layer4"]),
        ("tf_efficientnet_lite0", ["blocks.6", "conv_head", "bn2"]),
        ("test_vit", ["blocks.4", "blocks.5", "norm"]),
    ],
)
def test_the_last_part_of_a_network(model, part):
    assert machine.last_part_of(model) == part


def test_a_frozen_network_is_fitted_and_tested(cli, tmp_path, monkeypatch):
    """The recipe as it is written, with weights made here; and without the plugin that fits."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    words = ("--weights", tmp_path / "w.safetensors", "--model", "test_resnet", "--image-size", 32, "--minutes", 0.304)
    folder = put(tmp_path / "photos", LONG)
    result, text, recipe = init(cli, folder, *words)
    assert recipe["methods"] == {"linear_probe": {}, "temperature": {}} and recipe["calibrate"] == ["temperature"]
    assert "fine-tuning the last part of the network" in result.out and "--minutes" in prose(text)
    monkeypatch.chdir(tmp_path)
    for line in result.out.splitlines():
        if "ltcore run" in line:
            assert cli(*shlex.split(line[line.index("ltcore ") :])[1:]).code == 0, line
    offers = [offer for offer in catalogue.offers() if offer.name not in ("linear_probe", "temperature")]
    monkeypatch.setattr(catalogue, "offers", lambda: offers)
    _, text, recipe = init(cli, folder, *words, "--force")
    assert "pip install ltcore-probe" in prose(text) and recipe["stages"][0]["cache"] == "eval"
    assert cli("run", tmp_path / "own.yaml").code == 0


def test_many_images_and_a_gpu_get_a_resnet50(tmp_path):
    made = choose(found(tmp_path, images=40_000, side=400), Wishes(minutes=600), GPU)
    assert (made.rung.model, made.rung.size) == ("resnet50", 224)
    few = choose(found(tmp_path / "few", images=3000, side=400), Wishes(minutes=600), GPU)
    assert few.rung.model == "resnet18"


def test_weights_bring_their_normalisation(cli, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    _, text, recipe = init(
        cli, put(tmp_path / "photos", LONG), "--weights", tmp_path / "w.safetensors", "--model", "test_resnet"
    )
    config = machine.pretrained_config("test_resnet")
    assert recipe["data"]["normalize"] == {"mean": list(config.mean), "std": list(config.std)}
    assert recipe["backbone"]["options"] == {"model": "test_resnet", "weights": str(tmp_path / "w.safetensors")}
    assert recipe["data"]["transform"] == {"name": "resize_crop", "image_size": config.input_size[1]}
    assert 2e-5 <= recipe["stages"][0]["optimizer"]["lr"] <= 5e-4, "a larger one spoils the weights"
    assert "starts from pre-trained weights" in prose(text) and cli("plan", tmp_path / "own.yaml").code == 0


def test_pretrained_and_what_was_asked_for(tmp_path):
    photos = found(tmp_path, side=500)
    made = choose(photos, Wishes(pretrained=True, epochs=3, image_size=80), CPU)
    assert (made.pretrained, made.epochs, made.rung.size, made.rung.model) == (True, 3, 80, "resnet18")
    assert choose(photos, Wishes(pretrained=True), GPU).rung.model == "resnet50"
    fixed = choose(photos, Wishes(pretrained=True, model="test_vit"), CPU)
    assert fixed.rung.size == 160 and fixed.normalize[0] == (0.5, 0.5, 0.5)  # the size the model was made for


def test_a_real_measurement():
    training, last, forward = machine.images_per_second("test_resnet", 32, "cpu")
    assert 0 < training < forward and training < last
    assert machine.this_machine().cores >= 1


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_message(cli, tmp_path):
    out = ("--out", tmp_path / "own.yaml")
    cli("init", tmp_path / "nowhere", *out).is_one_message(2, "nowhere is not there", "folder of your images")
    (tmp_path / "file").write_text("")
    cli("init", tmp_path / "file", *out).is_one_message(2, "file is no folder")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    cli("init", tmp_path / "empty", *out).is_one_message(2, "has no images")
    cli("init", put(tmp_path / "one", {"cat": 3}), *out).is_one_message(2, "one class folder, 'cat'", "needs two")
    root = put(tmp_path / "photos", EVEN)
    (root / "yak").mkdir()
    cli("init", root, *out).is_one_message(2, "yak has no image", "remove the folder")
    (root / "yak").rmdir()
    cli("init", root, *out, "--model", "resnet19").is_one_message(2, "no model 'resnet19'", "did you mean 'resnet")
    cli("init", root, *out, "--weights", "w.pt").is_one_message(2, "--weights needs --model")
    cli("init", root, *out, "--weights", "w.pt", "--model", "resnet18").is_one_message(2, "w.pt is not there")
    both = ("--weights", "w.pt", "--model", "resnet18", "--pretrained")
    cli("init", root, *out, *both).is_one_message(2, "keep one")
    cli("init", root, "--out", tmp_path / "own.txt").is_one_message(2, "should end in .yaml")
    cli("init", root, "--out", tmp_path / "no" / "own.yaml").is_one_message(2, "there is no folder")
    for option, value in (("--epochs", "0"), ("--minutes", "soon"), ("--image-size", "big")):
        cli("init", root, option, value).is_one_message(2, f"'{value}' is no")
    assert not (tmp_path / "own.yaml").exists()


def test_a_recipe_is_not_written_over(cli, tmp_path):
    root, out = put(tmp_path / "photos", EVEN), tmp_path / "own.yaml"
    out.write_text("mine")
    cli("init", root, "--out", out).is_one_message(2, "own.yaml is there already", "--force")
    assert out.read_text() == "mine"
    assert cli("init", root, "--out", out, "--force").code == 0 and out.read_text() != "mine"


def test_images_that_cannot_be_read_at_all(cli, tmp_path):
    root = put(tmp_path / "photos", EVEN)
    for path in root.rglob("*.png"):
        path.write_text("no image")
    result = cli("init", root, "--out", tmp_path / "own.yaml")
    result.is_one_message(2, "none of the 16 images", "are they images?")


def test_lists_that_do_not_suit(cli, tmp_path):
    root = put(tmp_path / "photos", EVEN)
    (root / "train.txt").write_text("cat/000.png 0\n")
    cli("init", root, "--out", tmp_path / "own.yaml").is_one_message(2, "'train.txt' and none to test on")
    (root / "test.txt").write_text("cat/001.png 0\n")
    cli("init", root, "--out", tmp_path / "own.yaml").is_one_message(2, "has one class")
    (root / "old_train.txt").write_text("cat/002.png 0\n")
    cli("init", root, "--out", tmp_path / "own.yaml").is_one_message(2, "several lists of train images")


def test_sizes_of_the_ladder_are_whole_strides_of_its_networks():
    """A ResNet halves its images five times; other sizes would be cut at every second layer."""
    assert [size % 32 for _, size, _, _ in choices.LADDER] == [0] * len(choices.LADDER)
    assert [size % 32 for size in choices.PRETRAINED_SIZES] == [0] * len(choices.PRETRAINED_SIZES)
    for name, size, cost, _ in choices.LADDER:  # multiplications go with the pixels
        others = [(other, work) for model, other, work, _ in choices.LADDER if model == name]
        assert all(cost / size**2 == pytest.approx(work / other**2, rel=0.01) for other, work in others)


# -- a method that is named --------------------------------------------------------------------------------------------

#: What has to stand in the recipe, by method: the stages' methods, from scratch, fine-tuned and on frozen features.
SUITED = {
    "ofa": [[], ["ofa"]],
    "safa": [["ldam", "drs", "safa"]],
    "stg": [["mixup"], ["stg"], ["stg"]],
    "glag": [["gra_loss"], ["lws", "afg", "distillation"]],
    "cdt": [["cdt"]],
    "ldam": [["ldam", "drw"]],
    "mislas": [["mixup"], ["lws", "label_aware_smoothing"]],
    "focal": [["focal"]],  # which does not say
}
COUNTS = {"a": 90, "b": 40, "c": 20, "d": 9, "e": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five classes, and the weights of a small network."""
    import timm
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("suited")
    save_file(timm.create_model("test_resnet").state_dict(), root / "w.safetensors")
    return put(root / "photos", COUNTS, size=(32, 32)), ("--weights", root / "w.safetensors", "--model", "test_resnet")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", SUITED)
@pytest.mark.parametrize("start", ["scratch", "tuned", "frozen"])
def test_a_named_method_gets_what_suits_it(cli, tmp_path, pictures, monkeypatch, method, start):
    folder, weights = pictures
    words = ["--method", method, "--image-size", 32, "--out", tmp_path / "own.yaml"]
    words += {"scratch": ("--model", "test_resnet"), "tuned": weights, "frozen": weights}[start]
    words += ["--minutes", {"scratch": 60, "tuned": 60, "frozen": 2}[start]]
    monkeypatch.setattr(rehearsal, "rehearse", lambda recipe, steps: {"seconds": 1.0})
    if start == "frozen":  # there is no time to train the network
        monkeypatch.setattr(choices, "images_per_second", lambda *_: (1.0, 2.0, 100.0))
    result = cli("init", folder, *words)
    assert (result.code, result.err) == (0, ""), result
    recipe = yaml.safe_load((tmp_path / "own.yaml").read_text())
    expected = [list(names) for names in SUITED[method]]
    if start == "frozen":
        expected = [[name for name in names if name != "mixup"] for names in expected]
        expected = expected[1:] if method == "stg" else expected
        if not expected[0]:  # a classifier is fitted in place of training one
            expected[0] = ["linear_probe"]
            assert recipe["stages"][0]["iterations"] == 1 and "schedule" not in recipe["stages"][0]
        assert not any("backbone" in stage["trainable"] for stage in recipe["stages"])
    elif start == "tuned" and "ldam" not in expected[0]:  # which has a classifier of its own
        expected[0] = ["linear_probe", *expected[0]]
        assert recipe["methods"]["linear_probe"] == {"options": {"balance": "none"}}  # the method counts rarity, once
    assert [stage["methods"] for stage in recipe["stages"]] == expected
    assert set(recipe["methods"]) == {name for names in expected for name in names}
    assert "logit_adjustment" not in recipe["methods"]
    assert cli("plan", tmp_path / "own.yaml").code == 0


def test_the_last_part_alone_is_trained(cli, tmp_path, monkeypatch, pictures):
    folder, weights = pictures
    monkeypatch.setattr(choices, "images_per_second", lambda *_: (1.0, 100.0, 200.0))
    result = cli("init", folder, *weights, "--image-size", 32, "--minutes", 4, "--out", tmp_path / "own.yaml")
    assert result.code == 0 and "of the network's last part" in result.out, result
    assert cli("run", tmp_path / "own.yaml", "--out", tmp_path / "runs", "--set", "stages.train.epochs=2").code == 0
    (run,) = (tmp_path / "runs" / "own").iterdir()
    (state,) = (run / "checkpoints").glob("stage-*.safetensors")
    before, after = load_file(weights[1]), load_file(state)
    prefix = "model/backbone.model."
    moved = {
        name
        for name, tensor in before.items()
        if f"{prefix}{name}" in after and not torch.equal(tensor, after[f"{prefix}{name}"])
    }
    assert moved and all(name.startswith("layer4") for name in moved)


def test_starts_and_shares_of_the_head_go_by_epochs_and_counts(cli, tmp_path, pictures, monkeypatch):
    folder, _ = pictures
    monkeypatch.setattr(rehearsal, "rehearse", lambda recipe, steps: {"seconds": 1.0})

    def made(method, epochs):
        words = ("--method", method, "--model", "test_resnet", "--image-size", 32, "--epochs", epochs)
        return init(cli, folder, *words, "--force", "--out", tmp_path / "own.yaml")[2]

    def init(cli, folder, *words):
        assert cli("init", folder, *words).code == 0
        return None, None, yaml.safe_load((tmp_path / "own.yaml").read_text())

    for epochs, start in ((5, 4), (10, 8), (60, 48)):
        safa = made("safa", epochs)["methods"]
        assert {safa[name]["options"]["start_epoch"] for name in ("drs", "safa")} == {start}
    # Less a fifth and a tenth: 65, 29, 15, 7 and 3 images, a mean of 23.8, which two of five classes reach.
    assert made("stg", 5)["methods"]["stg"]["options"]["head_fraction"] == 0.4
    glag = made("glag", 5)
    assert glag["methods"]["afg"]["options"]["head_images"] == 23 and glag["stages"][1]["epochs"] == 40
    assert "holdout" not in glag["data"]  # there are images to validate on
    assert made("ofa", 5)["methods"]["ofa"]["options"] == {"head_ratio": 0.9, "confusing": 3}


def test_a_method_that_needs_held_out_images_gets_some(cli, tmp_path):
    for split, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 2))):
        put(tmp_path / "photos" / split, counts, size=(32, 32))
    words = ("--model", "test_resnet", "--image-size", 32, "--epochs", 1)
    assert init(cli, tmp_path / "photos", "--method", "glag", *words)[2]["data"]["holdout"] == 1
    assert "holdout" not in init(cli, tmp_path / "photos", "--method", "stg", *words, "--force")[2]["data"]


def test_steps_that_cost_more_than_was_thought_leave_fewer_epochs(tmp_path):
    photos = found(tmp_path, side=64)
    wishes = Wishes(minutes=20, method="cdt")
    asked = []

    def measure(made):
        asked.append(made.epochs)
        return 2 * made.minutes

    plain, dear = choose(photos, wishes, CPU), choose(photos, wishes, CPU, measure)
    assert asked == [plain.epochs] and plain.epochs // 2 - 2 <= dear.epochs <= plain.epochs // 2
    assert dear.rung == plain.rung and 19 < dear.minutes <= 20
    with pytest.raises(RecipeError, match=r"nothing fits 20 minutes .*, with 'cdt', takes about 5\d\d"):
        choose(photos, wishes, CPU, lambda made: 100 * made.minutes)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("averages", ["method 'averages' is not installed"]),
        ("timm", ["a network", "`backbone`"]),
        ("digits_lt", ["a data set", "`data`"]),
        ("nonsense", ["method 'nonsense' is not installed"]),
        ("all", ["ltcore train"]),
        ("distillation", ["its recipe would be refused"]),
    ],
)
def test_what_is_no_method_to_train_with_is_refused(cli, tmp_path, pictures, method, parts):
    words = ("--model", "test_resnet", "--image-size", 32, "--epochs", 1, "--out", tmp_path / "own.yaml")
    cli("init", pictures[0], "--method", method, *words).is_one_message(2, *parts)
    assert not (tmp_path / "own.yaml").exists()


def test_what_had_too_short_a_part_is_tried_once_more(tmp_path, monkeypatch):
    """Time that the others leave is given to it; what still does not fit is left out, and is not tried for ever."""
    folder = put(tmp_path / "photos", LONG)
    asked = []

    def write(found, wishes, machine, out):
        asked.append(wishes.method)
        if wishes.method == "slow" or (wishes.method == "slower" and asked.count("slower") == 1):
            raise choices.TooShort("its share of the time is short")
        if wishes.method == "wrong":
            raise RecipeError("it is no method to train with")
        return made

    monkeypatch.setattr("ltcore.init.methods.all_suited", lambda: ["good", "slow", "slower", "wrong"])
    monkeypatch.setattr("ltcore.init._write", write)
    monkeypatch.setattr(choices, "least_minutes", lambda *_: {"slower": 1.0, "slow": 2.0, "wrong": 3.0, "good": 4.0})
    recipes = write_recipes(folder, tmp_path / "own.yaml", force=False, minutes=60, model="resnet10t")
    made = choose(survey(folder, "auto"), Wishes(minutes=60, model="resnet10t"), CPU)
    assert [name for name, *_ in recipes.written] == ["init", "good", "slower"]
    assert asked == ["slower", "slow", "wrong", "good", "slower", "slow"]
    assert set(recipes.left_out) == {"slow", "wrong"}
