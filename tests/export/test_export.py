"""Exported models, loaded in another process that has no ltcore, give the run's logits and know their classes."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import ltcore
from ltcore.contract.classifier import CalibratedClassifier, scale_weights
from ltcore.errors import RecipeError, RunError
from ltcore.export import FORMATS, export, formats, placing
from ltcore.export.deployed import about, deploy, folded

JOINT = "{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}, methods: [%s]}"
SYNTHETIC = "{use: synthetic, options: {class_counts: [12, 8, 4], image_size: %d, test_per_class: 20}}"
RUNS = {
    "calibrated": f"""
data: {SYNTHETIC % 8}
backbone: {{use: cifar_resnet, options: {{depth: 8, width: 4}}}}
methods: {{count_norm: {{}}, logit_adjustment: {{}}}}
calibrate: [count_norm, logit_adjustment]
stages: [{JOINT % ""}]
""",
    "cosines, calibrated": f"""
data: {SYNTHETIC % 8}
backbone: {{use: cifar_resnet, options: {{depth: 8, width: 4}}}}
methods: {{ldam: {{}}, count_norm: {{}}}}
calibrate: [count_norm]
stages: [{JOINT % "ldam"}]
""",
    "timm": f"""
description: a small network of timm
data: {SYNTHETIC % 32}
backbone: {{use: timm, options: {{model: test_resnet}}}}
methods: {{tau_norm: {{}}}}
calibrate: [tau_norm]
stages: [{JOINT % ""}]
""",
    "timm, a transformer, one channel": f"""
data: {{use: digits_lt, transform: {{image_size: 32}}}}
backbone: {{use: timm, options: {{model: test_vit}}}}
stages: [{JOINT.replace("epochs: 1", "iterations: 2") % ""}]
""",
    "timm, its stem replaced": f"""
data: {SYNTHETIC % 8}
backbone: {{use: timm, options: {{model: resnet18, layers: [1, 1, 1, 1], cifar_stem: true}}}}
stages: [{JOINT % ""}]
""",
}
#: What timm can load from the hub folder, and what is folded into a linear classifier.
BY_TIMM = {"timm", "timm, a transformer, one channel"}
OWN_CLASSIFIER = {"cosines, calibrated"}

LOAD = """
import contextlib, io, json, os, sys
sys.modules["ltcore"] = None  # not importable
import numpy as np, onnxruntime, timm, torch
from safetensors import safe_open

def predict(call, images):
    with torch.no_grad():
        return torch.cat([call(part) for part in images.split(23)]).numpy()

def load_all():
    images, found, told = torch.from_numpy(np.load("images.npy")), {}, {}
    extra = {"ltcore.json": ""}
    found["torchscript"] = predict(torch.jit.load("model.pt", _extra_files=extra), images)
    told["torchscript"] = json.loads(extra["ltcore.json"])
    extra = {"ltcore.json": ""}
    found["torch_export"] = predict(torch.export.load("model.pt2", extra_files=extra).module(), images)
    told["torch_export"] = json.loads(extra["ltcore.json"])
    session = onnxruntime.InferenceSession("model.onnx")
    found["onnx"] = predict(lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), images)
    told["onnx"] = json.loads(session.get_modelmeta().custom_metadata_map["ltcore.json"])
    with safe_open("model.safetensors", framework="pt") as file:
        told["safetensors"] = json.loads(file.metadata()["ltcore.json"])
        told["names"] = sorted(file.keys())
    config = json.load(open("hub/config.json"))
    told["hub"] = config["ltcore"]
    if "architecture" in config:
        model = timm.create_model("local-dir:hub", pretrained=True).eval()
        found["hub"] = predict(model, images)
        told["timm"] = timm.data.resolve_model_data_config(model)
        told["labels"] = model.pretrained_cfg["label_names"]
    else:
        found["hub"] = predict(torch.export.load("hub/model.pt2").module(), images)
    code = open("hub/README.md").read().split("```python\\n")[1].split("```")[0]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.chdir("hub"):
        exec(code.replace("FOLDER", os.getcwd()), {})
    told["printed"] = out.getvalue()
    np.savez("found.npz", **found)
    json.dump(told, open("told.json", "w"))

for folder in sys.argv[1:]:
    with contextlib.chdir(folder):
        load_all()
assert not any(name.startswith("ltcore.") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def saved(digits_run, tmp_path_factory):
    """A run by its name in `RUNS`, or the digits run; trained once."""
    found = {"digits": ltcore.load(digits_run)}

    def get(name):
        if name not in found:
            path = tmp_path_factory.mktemp("run")
            (path / "r.yaml").write_text(RUNS[name])
            found[name] = ltcore.run(path / "r.yaml", out=path / "runs")
        return found[name]

    return get


def export_all(run, name, folder):
    """Every format into a folder, beside images; returns the logits that the run gives on them."""
    test, size = run.read_data().test.images[:60], run.description.transform.image_size
    expected = run.calibrated_logits[: len(test)]
    if test.shape[2] != size:  # resized, as evaluation does
        test = torch.nn.functional.interpolate(test.float(), size=size, mode="bilinear").to(torch.uint8)
        expected = run.predict(test).logits
    np.save(folder / "images.npy", run.description.normalised(test).contiguous().numpy())
    for to, (ending, _) in FORMATS.items():
        first, *checked = export(run, to, folder / ("hub" if to == "hub" else f"model{ending}"))
        assert ("the method's own classifier" if name in OWN_CLASSIFIER else "calibration folded in") in first
        assert checked[0].startswith("checked on the probe") and "test images" in checked[1]
    files = ["hub", "images.npy", "model.onnx", "model.pt", "model.pt2", "model.safetensors"]
    assert sorted(os.listdir(folder)) == files
    Image.effect_noise((40, 48), 80).save(folder / "hub" / "image.jpg")
    return expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("calibrated",),
        ("digits", "timm"),
        tuple(set(RUNS) - {"calibrated", "timm"}),
    ],
)
def test_every_format_gives_the_runs_logits_where_ltcore_is_not(names, saved, tmp_path):
    expected = {}
    for name in names:
        (tmp_path / name).mkdir()
        expected[name] = export_all(saved(name), name, tmp_path / name)
    subprocess.run([sys.executable, "-c", LOAD, *names], check=True, cwd=tmp_path)
    for name in names:
        check_all(saved(name), name, tmp_path / name, expected[name])


def check_all(run, name, folder, expected):
    """What another process found of the formats in a folder."""
    with np.load(folder / "found.npz") as found:
        assert set(found) == set(FORMATS) - {"safetensors"}
        for to, logits in found.items():
            assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max(), to
    told = json.loads((folder / "told.json").read_text())
    for to in FORMATS:
        assert told[to] == about(run) and told[to]["class_names"] == list(run.class_names)
    assert {key.split(".")[0] for key in told["names"]} == {"backbone", "classifier"}
    if name not in OWN_CLASSIFIER:
        last = {key for key in told["names"] if key.startswith("classifier")}
        assert last == {"classifier.weight", "classifier.bias"}
    assert told["printed"].split()[0] in run.class_names  # by the card's code
    card, size = (folder / "hub" / "README.md").read_text(), run.description.transform.image_size
    assert f"{100 * run.metrics['top1']:.1f}" in card
    assert ("local-dir:" in card) == ("timm" in told) == (name in BY_TIMM)
    assert (folder / "hub" / "model.pt2").exists() == (name not in BY_TIMM)
    if name in BY_TIMM:
        assert told["timm"]["input_size"] == [len(run.description.mean), size, size]
        assert told["timm"]["mean"] == list(run.description.mean) and told["timm"]["std"] == list(run.description.std)
        assert int(size / told["timm"]["crop_pct"]) == run.description.transform.shorter_side
        assert told["timm"]["interpolation"] == "bilinear" and told["timm"]["crop_mode"] == "center"
        assert told["labels"] == list(run.class_names)


def test_timm_prepares_images_as_the_run_does(saved, tmp_path):
    import timm

    run = saved("timm")
    export(run, "hub", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    with torch.no_grad():
        found = model(transform(image)[None]).numpy()
    np.testing.assert_allclose(found, run.predict(image).logits, atol=0.02 * abs(found).max())


def test_what_is_there_is_replaced_only_when_asked_to(saved, tmp_path, cli, digits_run):
    out = tmp_path / "m.safetensors"
    out.write_text("mine")
    words = ("export", digits_run, "--to", "safetensors", "--out", out)
    for force in ((), ("--force",)):
        cli(*words, *force).is_one_message(2, f"{out} is there already and no earlier export; choose another")
        assert out.read_text() == "mine"
    out.unlink()
    assert cli(*words).code == 0
    out.with_name("m.safetensors.data").write_text("mine")  # the name of ONNX's second file
    cli(*words, "--force").is_one_message(2, "is there already and no earlier export")
    out.with_name("m.safetensors.data").unlink()
    cli(*words).is_one_message(2, f"{out} is there already; choose another", "or replace it with --force")
    with pytest.raises(RecipeError, match="or replace it with --force"):
        export(saved("digits"), "safetensors", out)
    result = cli(*words, "--force")
    assert (result.code, result.err) == (0, "") and "checked on the probe" in result.out
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("content", [b"", b"mine", f"about {placing.ABOUT}".encode()], ids=["empty", "mine", "ours"])
def test_only_what_an_export_wrote_is_replaced_be_it_empty(content, tmp_path):
    out, ours = tmp_path / "m.onnx", placing.ABOUT.encode() in content
    out.write_bytes(content)
    with contextlib.nullcontext() if ours else pytest.raises(RecipeError, match=r"m\.onnx is there already and no ear"):
        placing.refuse_to_replace(out, folder=False, force=True)
    out.write_bytes(placing.ABOUT.encode())
    beside = tmp_path / "m.onnx.data"  # which belongs to an export that names it
    beside.write_bytes(content)
    with pytest.raises(RecipeError, match="is there already and no earlier export"):
        placing.refuse_to_replace(out, folder=False, force=True)
    out.write_bytes(placing.ABOUT.encode() + b" m.onnx.data ")
    with pytest.raises(RecipeError, match=r"there already; choose another with --out, or replace it with --force"):
        placing.refuse_to_replace(out, folder=False, force=False)
    placing.refuse_to_replace(out, folder=False, force=True)
    out.unlink()
    with pytest.raises(RecipeError, match=r"m\.onnx\.data is there already and no earlier export"):
        placing.refuse_to_replace(out, folder=False, force=True)


def test_a_kill_leaves_no_file_without_the_one_that_it_refers_to(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "made" / name).write_text(name)
    real = type(tmp_path).replace

    def killed(path, target):
        if real(path, target):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(tmp_path), "replace", killed)
        placing.put(tmp_path / "made" / "m.onnx", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists() and not (tmp_path / "m.onnx").exists()


def test_a_folder_is_never_replaced_whole(saved, tmp_path):
    hub = tmp_path / "hub"
    (hub / ".git").mkdir(parents=True)
    for before in ("", "{}", '{"ltcore": {}}'):
        for to in ("hub", "safetensors"):
            with pytest.raises(RecipeError, match=r"no earlier export|is a folder"):
                export(saved("digits"), to, hub, force=True)
        (hub / "config.json").write_text(before or "{}")
    assert sorted(os.listdir(hub)) == [".git", "config.json"]
    shutil.rmtree(hub)
    written = ["README.md", "config.json", "ltcore.json", "model.pt2", "model.safetensors"]
    export(saved("digits"), "hub", hub)
    assert sorted(os.listdir(hub)) == written
    # Another model, of which timm needs no model.pt2: what it does not write goes, what is the user's stays.
    (hub / "photos").mkdir()
    (hub / "notes.md").write_text("mine")
    export(saved("timm"), "hub", hub, force=True)
    assert sorted(os.listdir(hub)) == sorted({*written, "notes.md", "photos"} - {"model.pt2"})
    (hub / "README.md").write_text("my own card")
    with pytest.raises(RecipeError, match=r"README\.md was changed since it was exported; move it away"):
        export(saved("timm"), "hub", hub, force=True)
    assert (hub / "README.md").read_text() == "my own card"
    (hub / "README.md").unlink()
    (hub / "model.pt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=r"model\.pt2 is there already and of no earlier export"):
        export(saved("digits"), "hub", hub, force=True)
    assert not (tmp_path / "elsewhere").exists() and os.listdir(tmp_path) == ["hub"]


def test_a_folder_that_a_kill_left_half_replaced_is_replaced_again(saved, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    export(saved("digits"), "hub", hub)
    real, seen = placing.copy_atomically, []

    def killed(source, path):
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(source, path)

    monkeypatch.setattr(placing, "copy_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        export(saved("timm"), "hub", hub, force=True)
    assert not (hub / "config.json").exists(), "half of a model must not load"
    monkeypatch.setattr(placing, "copy_atomically", real)
    export(saved("timm"), "hub", hub, force=True)
    assert sorted(os.listdir(hub)) == ["README.md", "config.json", "ltcore.json", "model.safetensors"]


def test_a_pipe_is_written_through(saved, tmp_path, cli, digits_run):
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    os.mkfifo(pipe)
    with copy.open("wb") as kept, subprocess.Popen(["cat", pipe], stdout=kept):
        result = cli("export", digits_run, "--to", "safetensors", "--out", pipe)
    assert result.code == 0 and result.out == "" and "checked on the probe" in result.err
    export(saved("digits"), "safetensors", tmp_path / "m")
    assert copy.read_bytes() == (tmp_path / "m").read_bytes() and stat.S_ISFIFO(pipe.stat().st_mode)
    cli("export", digits_run, "--to", "hub", "--out", pipe).is_one_message(2, "the format is a folder")


def test_the_name_is_the_recipes_and_others_may_read_it(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(saved("digits"), "safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "digits_lt_ofa_focal.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_mistakes(cli, digits_run, tmp_path, monkeypatch):
    cli("export", digits_run).is_one_message(2, "--to")
    cli("export", digits_run, "--to", "coreml").is_one_message(2, "invalid choice: 'coreml'")
    cli("export", tmp_path, "--to", "onnx").is_one_message(2, "is no run")
    out = tmp_path / "m.pth"
    cli("export", digits_run, "--to", "torch_export", "--out", out).is_one_message(2, str(out), "end in .pt2")
    out = tmp_path / "no" / "m.pt"
    cli("export", digits_run, "--to", "torchscript", "--out", out).is_one_message(2, "--out", "there is no folder")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "m.onnx"
    missing = cli("export", digits_run, "--to", "onnx", "--out", out)
    missing.is_one_message(2, "'onnxruntime' is missing", "pip install 'ltcore[onnx]'")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("to", [pytest.param(to, marks=[pytest.mark.slow] * (to == "onnx")) for to in FORMATS])
def test_a_model_that_differs_leaves_nothing_behind(to, saved, tmp_path, monkeypatch):
    def wrong(run):
        model = deploy(run)
        model.classifier.bias[0] += 0.1 * float(np.abs(run.calibrated_logits).max())
        return model

    monkeypatch.setattr("ltcore.export.deploy", wrong)
    with pytest.raises(RunError, match=rf"{to}: the exported model's logits on the probe .* nothing was written"):
        export(saved("timm"), to, tmp_path / f"m{FORMATS[to][0]}")
    assert not os.listdir(tmp_path)


def test_the_test_images_are_compared_too(saved, tmp_path):
    run = ltcore.load(saved("digits").path)
    run.calibrated_logits[250:] += 3  # the array that later reads give, too
    with pytest.raises(RunError, match=r"on 250 test images are not the run's: they are off by"):
        export(run, "safetensors", tmp_path / "m")
    assert not os.listdir(tmp_path)


def test_a_safetensors_file_has_the_same_bytes_each_time(saved, tmp_path):
    files = {tmp_path / str(number) for number in range(6)}  # safetensors itself draws the order of its metadata
    for path in files:
        export(saved("digits"), "safetensors", path)
    assert len({path.read_bytes() for path in files}) == 1
    path = tmp_path / "named"
    save_file({"größe": torch.ones(2)}, path, metadata=dict.fromkeys("abcdefgh", "1"))
    formats._order(path)  # a network's own names need not be ASCII
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == list("abcdefgh") and load_file(path)["größe"].tolist() == [1, 1]


def test_without_the_data_the_probe_is_enough(saved, tmp_path):
    copy = shutil.copytree(saved("calibrated").path, tmp_path / "copy")
    text = (copy / "recipe.yaml").read_text()
    start = text.index("data:")
    data = f"data: {{use: image_folder, options: {{root: {tmp_path}/nowhere}}}}\n"
    (copy / "recipe.yaml").write_text(text[:start] + data + text[text.index("backbone:") :])
    lines = export(ltcore.load(copy), "safetensors", tmp_path / "m")
    assert lines[1].startswith("checked on the probe") and "not at hand" in lines[2]


def test_a_network_that_a_format_cannot_hold(saved, tmp_path, monkeypatch):
    class Untraceable(nn.Module):
        is_linear = True

        def forward(self, images):
            return torch.zeros(len(images), 10) if float(images.sum()) > 0 else torch.ones(len(images), 10)

    monkeypatch.setattr("ltcore.export.deploy", lambda run: Untraceable())
    with pytest.raises(RunError, match=r"torch_export: this network cannot be written as torch\.export \(.*nothing"):
        export(saved("digits"), "torch_export", tmp_path / "m.pt2")
    assert not os.listdir(tmp_path)


class Cosine(nn.Module):
    bias = None

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, pooled):
        return nn.functional.normalize(pooled) @ self.weight.T


def test_what_folds():
    torch.manual_seed(0)
    pooled = torch.randn(7, 5)
    linear = nn.Linear(5, 3)
    shifted = CalibratedClassifier(scale_weights(linear, torch.tensor([1.0, 2.0, 0.5]), True), 0.7, torch.randn(3))
    for classifier in (linear, shifted, nn.Linear(5, 3, bias=False)):
        found = folded(classifier, 5)
        assert type(found) is nn.Linear
        torch.testing.assert_close(found(pooled), classifier(pooled))
    for classifier in (Cosine(), CalibratedClassifier(Cosine(), 2.0, 1.0)):
        assert folded(classifier, 5) is classifier


def test_formats_are_those_of_the_command(cli):
    assert ", ".join(FORMATS) in " ".join(cli("export", "--help").out.split())


def test_recipe_error_is_raised(saved, tmp_path):
    (tmp_path / "m").write_text("")
    with pytest.raises(RecipeError, match="is there already"):
        export(saved("digits"), "onnx", tmp_path / "m")
