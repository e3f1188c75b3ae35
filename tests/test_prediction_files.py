"""``ltcore predict`` on every kind of image."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

import ltcore
from ltcore.runs.prediction_files import predict_into

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def digits(digits_run):
    return ltcore.load(digits_run)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A run on colour images."""
    path = tmp_path_factory.mktemp("colours")
    (path / "r.yaml").write_text("""
data: {use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 16, test_per_class: 4}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
stages: [{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]
""")
    return ltcore.run(path / "r.yaml", out=path / "runs")


def picture(mode="RGB"):
    """Sixteen pixels a side, no two rows or columns alike."""
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def over_white(image):
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def transparent(mode):
    image = picture("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)))
    return image.convert(mode)


def sixteen_bits():
    """The grey picture, with noise in the lower half of each value."""
    low = np.random.default_rng(1).integers(0, 256, (16, 16))
    return Image.fromarray((np.asarray(picture("L")).astype(np.uint16) << 8 | low).astype(np.uint16))


def one_colour_clear():
    image = picture("L").convert("P")
    image.info["transparency"] = image.getpixel((3, 3))
    return image


def turned():
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown turned by a quarter to the right
    return exif


# What is saved, as what, and what a viewer shows. All are kept without loss.
KINDS = {
    "grey.png": (picture("L"), {}, picture("L")),
    "black and white.png": (picture("1"), {}, picture("1")),
    "grey, 16 bits.png": (sixteen_bits(), {}, picture("L")),
    "grey, 16 bits.tif": (sixteen_bits(), {}, picture("L")),
    "colour.png": (picture(), {}, picture()),
    "colour.webp": (picture(), {"lossless": True}, picture()),
    "colour.BMP": (picture(), {}, picture()),
    "palette.png": (picture("P"), {}, picture("P").convert("RGB")),
    "palette.gif": (picture("P"), {}, picture("P").convert("RGB")),
    "opaque.png": (picture("RGBA"), {}, picture()),
    "transparent.png": (transparent("RGBA"), {}, over_white(transparent("RGBA"))),
    "grey, transparent.png": (transparent("LA"), {}, over_white(transparent("LA"))),
    "clear colour.png": (one_colour_clear(), {}, over_white(one_colour_clear())),
    "cmyk.tif": (picture("CMYK"), {}, picture("CMYK").convert("RGB")),
    "cmyk.jpg": (picture("CMYK"), {}, None),
    "colour.avif": (picture(), {"quality": 95}, None),
    "turned.png": (picture(), {"exif": turned()}, picture().transpose(Image.Transpose.ROTATE_270)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_image(cli, digits, colours, tmp_path, name):
    image, options, shown = KINDS[name]
    path = tmp_path / name
    image.save(path, **options)
    if shown is None:  # lossy
        with Image.open(path) as opened:
            shown = opened.convert("RGB")
    for run in (digits, colours):
        result = cli("predict", run.path, path, "--json", "--workers", "1")
        assert (result.code, result.err) == (0, "")
        (found,) = json.loads(result.out)
        expected = run.predict(shown)
        assert found["image"] == str(path)
        labels, probabilities = zip(*expected.top(5)[0], strict=True)
        assert [entry["class"] for entry in found["top"]] == list(labels)
        assert [entry["probability"] for entry in found["top"]] == pytest.approx(probabilities, abs=2e-6)
        mean = np.asarray(shown.convert("RGB" if run is colours else "L")).mean()
        assert 20 < mean < 250 and len(set(probabilities)) > 1


def test_heic_with_the_extra(cli, colours, tmp_path):
    """In this process, and in workers, which have to learn it for themselves."""
    heif = pytest.importorskip("pillow_heif")
    smooth = picture().resize((64, 48), Image.Resampling.BICUBIC)
    for number in range(3):
        heif.from_pillow(smooth).save(tmp_path / f"{number}.HEIC", quality=95)
    probability = colours.predict(smooth).probabilities[0].max()
    for workers in ("1", "2"):
        result = cli("predict", colours.path, tmp_path, "--json", "--batch-size", "1", "--workers", workers)
        found = json.loads(result.out)
        assert result.code == 0 and len(found) == 3 and result.err == ""
        # A lossy format: near to the picture, and not another one.
        assert found[0]["top"][0]["probability"] == pytest.approx(float(probability), abs=0.03)
    assert [entry["image"] for entry in found] == [str(tmp_path / f"{number}.HEIC") for number in range(3)]


@pytest.fixture
def folder(tmp_path):
    """Seven images at several depths, and what is none."""
    path = tmp_path / "photos"
    for number in range(7):
        file = path / ["", "a", "a/b"][number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9 + number, 12), 60).save(file)
    (path / "notes.txt").write_text("not an image")
    (path / ".hidden.png").write_text("not looked at")
    return path


def test_a_folder(cli, digits, folder):
    files = [str(folder / name) for name in ("0.png", "3.png", "6.png", "a/1.png", "a/4.png", "a/b/2.png", "a/b/5.png")]
    expected = digits.predict(folder)
    assert list(expected.names) == files
    result = cli("predict", digits.path, folder, "--top", "2", "--batch-size", "2")
    assert (result.code, result.err) == (0, "")
    lines = [
        f"{name}: {first} {100 * p:.1f} %, {second} {100 * q:.1f} %"
        for name, [(first, p), (second, q)] in zip(files, expected.top(2), strict=True)
    ]
    assert result.out.splitlines() == lines
    again = cli("predict", digits.path, files[4], folder, "--top", "2", "--batch-size", "3", "--workers", "2")
    assert again.out.splitlines() == [lines[4], *lines]


def test_broken_files_are_named_and_left_out(cli, digits, folder, tmp_path):
    whole = (folder / "0.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(folder / "floats.tif")
    for words in ([], ["--batch-size", "1"], ["--batch-size", "2", "--workers", "2"]):
        result = cli("predict", digits.path, folder, *words)
        assert result.code == 1
        assert len(result.out.splitlines()) == 7
        *named, last = result.err.splitlines()
        assert last == "4 of 11 files could not be decoded"
        broken = [str(folder / name) for name in ("a/cut.png", "floats.tif", "gone.png", "text.jpg")]
        assert [line.split(" (")[0] for line in named] == broken
        assert all(line.endswith("cannot be decoded, left out") for line in named)
    found = json.loads(cli("predict", digits.path, folder, "--json").out)
    assert len(found) == 11 and sum("error" in entry for entry in found) == 4
    assert "UnidentifiedImageError" in next(e for e in found if e["image"].endswith("text.jpg"))["error"]
    alone = cli("predict", digits.path, folder / "text.jpg", "--json")
    assert alone.code == 1 and len(json.loads(alone.out)) == 1


def test_a_table(cli, digits, folder, tmp_path):
    out = tmp_path / "p.csv"
    result = cli("predict", digits.path, folder, "--top", "3", "--out", out)
    assert result.code == 0 and result.out.startswith("7 images in ") and str(out) in result.out
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == ["image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    expected = digits.predict(folder)
    for row, name, classes in zip(rows, expected.names, expected.top(3), strict=True):
        assert row["image"] == name
        assert [row["class"], row["class_2"], row["class_3"]] == [label for label, _ in classes]
        assert float(row["probability_3"]) == pytest.approx(classes[2][1], abs=2e-6)
    cli("predict", digits.path, folder, "--top", "99", "--out", tmp_path / "p.json", "--json")
    assert all(len(entry["top"]) == 10 for entry in json.loads((tmp_path / "p.json").read_text()))


def test_mistakes(cli, digits, folder, tmp_path):
    cli("predict", digits.path, tmp_path / "nowhere").is_one_message(2, "nowhere: there is no such file or folder")
    (tmp_path / "empty").mkdir()
    cli("predict", digits.path, tmp_path / "empty").is_one_message(2, "there is no image in this folder")
    cli("predict", tmp_path, folder).is_one_message(2, "is no run")
    cli("predict", digits.path, folder, "--top", "0").is_one_message(2, "'0' is no whole number above 0")
    out = tmp_path / "no" / "p.csv"
    cli("predict", digits.path, folder, "--out", out).is_one_message(2, str(out), "there is no folder")


def test_a_run_on_images_that_no_file_holds(tmp_path, folder):
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 2), dtype=np.uint8)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "d.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    (tmp_path / "r.yaml").write_text(f"""
data: {{use: npz, options: {{path: {tmp_path}/d.npz}}}}
backbone: {{use: cifar_resnet, options: {{depth: 8, width: 4}}}}
stages: [{{name: joint, epochs: 1, batch_size: 8, optimizer: {{name: sgd, lr: 0.05}}}}]
""")
    run = ltcore.run(tmp_path / "r.yaml", out=tmp_path / "runs")
    np.testing.assert_allclose(run.predict(pixels).logits, run.calibrated_logits, atol=1e-5)
    assert run.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2)).logits.shape == (20, 2)
    with pytest.raises(ltcore.DataError, match=r"2 channels, which files cannot hold; .*\[N, 8, 8, 2\]"):
        predict_into(run, [folder], 1, None, False, 4, 1)
