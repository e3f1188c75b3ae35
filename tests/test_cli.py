"""The commands: their help and examples, what they print, and what they leave alone."""

import argparse
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ltcore
from ltcore import Method, hookimpl
from ltcore.discovery import catalogue
from ltcore.files.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "init",
    "recipes",
    "recipes list",
    "recipes copy",
    "recipes show",
    "plan",
    "schema",
    "rehearse",
    "trace",
    "bench",
    "train",
    "run",
    "sweep",
    "table",
    "compare",
    "report",
    "predict",
    "evaluate",
    "suspects",
    "export",
    "data",
    "data list",
    "data describe",
    "plugins",
    "plugins show",
    "docs",
    "hooks",
    "new",
    "check",
)
CHEAP = {
    "check": "--without pairs",
    "run": "--set stages.representation.epochs=1 --set stages.finetune.iterations=2 --out {out}",
    "sweep": "--set stages.representation.epochs=6 --set stages.finetune.iterations=2 --out {out}",
    "init": "--out {out}/photos.yaml --model test_resnet --image-size 32 --epochs 1",
    "train": "--recipe {out}/photos.yaml --out {out}/runs --model test_resnet --image-size 32 --epochs 1",
    "new": "--out {out}/mynoise",
    "report": "-o {out}/report.html --no-features",
    "predict": "--out {out}/predictions.csv",
    "suspects": "--out {out}/doubts",
    "export": "--out {out}/digits.pt2",
}

_LIGHT = """
import contextlib, io, sys
from ltcore.cli import main
for words in {lines!r}:
    sys.argv = ["ltcore", *words.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert len(out.getvalue()) > 4, words
    heavy = {{"torch", "torchvision", "timm", "numpy", "pydantic", "yaml", "rich"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_and_plugins_import_nothing_heavy():
    lines = ["--help", *(f"{command} --help" for command in COMMANDS), "--version", "plugins", "plugins --json"]
    lines += ["docs", "docs recipes", "docs ofa", "hooks", "hooks compute_loss"]
    subprocess.run([sys.executable, "-c", _LIGHT.format(lines=lines)], check=True, cwd=ROOT)


_NEEDED_ONLY = """
import contextlib, io, sys
from ltcore.cli import main
sys.argv = ["ltcore", *{words!r}]
with contextlib.redirect_stdout(io.StringIO()) as out:
    main()
assert len(out.getvalue()) > 4
print(*({unneeded!r} & set(sys.modules)))
"""
#: Packages that take long to import, and that no command needs for digits and a network that is not timm's.
FOREIGN = {"timm", "torchvision", "sklearn", "scipy", "rich", "matplotlib", "huggingface_hub"}
#: What of PyTorch takes longer than PyTorch itself, and is for exporters of programs only.
COMPILER = {"torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor", "sympy"}


SHORT = "--set stages.representation.epochs=6 --set stages.finetune.iterations=2"


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("recipes show digits_lt_ofa_focal", FOREIGN | COMPILER | {"torch"}),
        ("plan {recipe}", FOREIGN | COMPILER),
        (f"run {{recipe}} {SHORT} --out {{out}}", COMPILER),
        ("predict {run} {images}", FOREIGN | COMPILER),
        ("export {run} --to safetensors --out {out}.safetensors", FOREIGN | COMPILER),
        ("export {run} --to torchscript --out {out}.pt", FOREIGN | COMPILER),
        ("export {run} --to torch_export --out {out}.pt2", FOREIGN),
        ("export {run} --to hub --out {out}", FOREIGN),
    ],
)
def test_commands_import_what_they_need_and_no_more(digits_run, tmp_path, command, unneeded):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    places = {
        "recipe": ROOT / "recipes" / "digits_lt_ofa_focal.yaml",
        "run": digits_run,
        "images": tmp_path / "image.png",
        "out": tmp_path / "exported",
    }
    words = [word.format(**places) for word in command.split()]
    program = _NEEDED_ONLY.format(words=words, unneeded=unneeded)
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ended.stdout.split() == []


def examples(cli, command=""):
    """The example lines in a command's help."""
    return re.findall(r"^Example: ltcore (.+)$", cli(*command.split(), "--help").out, re.MULTILINE)


@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=[pytest.mark.slow] * (each in ("sweep", "check"))) for each in ("", *COMMANDS)]
)
def test_every_help_has_an_example_that_works(cli, tmp_path, monkeypatch, request, command):
    (example,) = examples(cli, command)
    assert example.startswith(command)
    words = shlex.split(example.split(" > ")[0])
    words += shlex.split(CHEAP.get(words[0], "").format(out=tmp_path))
    if "photos" in words:
        for name in ("cat", "dog"):
            (tmp_path / "photos" / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / f"{number}.png")
        words[words.index("photos")] = str(tmp_path / "photos")
    words = [str(request.getfixturevalue("digits_run")) if word.startswith("runs/") else word for word in words]
    monkeypatch.chdir(ROOT)
    result = cli(*words)
    assert (result.code, result.err) == (0, "") and result.out


def test_commands_are_all_tested(cli):
    listed = re.findall(r"^    (\w+)  ", cli("--help").out, re.MULTILINE)
    assert listed == [command for command in COMMANDS if " " not in command]


def test_version_and_no_command(cli):
    assert cli("--version").out == f"{ltcore.__version__}\n"
    assert cli().out == cli("--help").out


TWO_STAGES = {
    "methods": "{focal: {options: {gamma: 1}}, ofa: {}, tau_norm: {}, logit_adjustment: {}}",
    "calibrate": "[tau_norm, logit_adjustment]",
    "stages": """
  - {name: one, epochs: 3, methods: [focal, logit_adjustment], sampler: class_balanced, optimizer: {lr: 0.1},
     schedule: {name: multistep, milestones: [1, 2]}}
  - {name: two, iterations: 5, methods: [ofa, focal], batch_size: 16, trainable: [classifier, 'backbone.layer3.*'],
     optimizer: {name: adamw, lr: 0.01, weight_decay: 0.1}}""",
}


class Interrupted(KeyboardInterrupt):
    """As a signal ends a run."""

    exit_code = 143


def test_an_interruption_is_one_line_and_its_exit_code(cli, write_recipe, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise stopped

    stopped = KeyboardInterrupt()
    monkeypatch.setattr("ltcore.plan.plan.make_plan", stop)
    plain = cli("plan", write_recipe())
    assert (plain.code, plain.err) == (130, "stopped\n")
    monkeypatch.setattr("ltcore.training.execute.execute", stop)
    begun = RunDirectory.create(tmp_path / "out", "r", 0, write_recipe().read_text()).path / "recipe.yaml"
    stopped = Interrupted("stopped by SIGTERM")
    named = cli("run", "--resume", "--out", tmp_path / "out")  # the way on names the run that was found
    words = ["ltcore", "run", str(begun), "--out", str(tmp_path / "out"), "--resume"]
    assert (named.code, named.err) == (143, f"stopped by SIGTERM; to go on: {shlex.join(words)}\n")
    stopped = Interrupted("stopped by SIGTERM")
    nothing = cli("run", write_recipe(), "--out", tmp_path / "other")
    assert (nothing.code, nothing.err) == (143, "stopped by SIGTERM; nothing was begun\n")


def answers(stage):
    """Hook -> who answers it, in the order of the plan."""
    return {hook: [m["method"] for m in h["methods"]] or h["core"] for hook, h in stage["hooks"].items()}


class Unread(Method):
    @hookimpl
    def build_data(self):
        raise AssertionError("the data was read")


def test_plan_says_everything_in_text_and_json(cli, write_recipe, offer_methods):
    offer_methods(unread=Unread)
    path = write_recipe(data="{use: unread}", **TWO_STAGES)
    text, described = cli("plan", path), json.loads(cli("plan", path, "--json").out)
    assert text.code == 0
    first, second = described["stages"]
    assert answers(first) == {
        "on_run_start": ["logit_adjustment"],
        "build_classifier": "linear",
        "class_distribution": "class_balanced",
        "build_sampler": "plain batches",
        "compute_gradients": "one backward pass",
        "adjust_logits": ["logit_adjustment"],
        "compute_loss": ["focal"],
    }
    assert answers(second) == {
        "on_run_start": ["ofa"],
        "build_classifier": "kept from the stage before",
        "on_stage_start": ["ofa"],
        "class_distribution": "instance-balanced",
        "build_sampler": ["ofa"],
        "extra_rows": ["ofa"],
        "compute_gradients": "one backward pass",
        "augment_features": ["ofa"],
        "compute_loss": ["focal"],
    }
    assert second["hooks"]["augment_features"]["methods"] == [
        {"method": "ofa", "distribution": "ltcore-ofa", "version": "0.1.0", "tap": "maps"}
    ]
    assert second["trainable"] == ["classifier", "backbone.layer3.*"]
    assert 0 < second["trained_backbone_parameters"] < second["backbone_parameters"]
    assert (first["sampler"], second["sampler"]) == ("class_balanced", "ofa")
    assert first["schedule"] == {"name": "multistep", "milestones": [1, 2], "gamma": 0.1, "warmup_epochs": 0}
    assert second["optimizer"] == {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
    assert [(a["method"], a["distribution"]) for a in described["calibrate"]] == [
        ("tau_norm", "ltcore-tau-norm"),
        ("logit_adjustment", "ltcore-logit-adjustment"),
    ]


def test_plan_says_where_a_gpu_would_leave_the_published_protocol(cli, write_recipe):
    path = write_recipe(published="[{value: 1, source: 'X, table 1'}]", **TWO_STAGES)

    def notes(*sets):
        changes = [word for change in sets for word in ("--set", change)]
        found = json.loads(cli("plan", path, "--json", *changes).out)["notes"]
        assert all(f"note      {note}\n" in cli("plan", path, *changes).out for note in found)
        return found

    said = "and the published protocol (X, table 1) is fp32: --set stages."
    assert notes() == [f"precision auto is bf16 on a GPU, {said}one.precision=fp32 --set stages.two.precision=fp32"]
    assert notes("stages.one.precision=fp32") == [f"precision auto is bf16 on a GPU, {said}two.precision=fp32"]
    assert notes("stages.one.precision=fp32", "stages.two.precision=fp32") == []
    assert notes("stages.one.epochs=2") == [], "no figure of a paper is left to compare with"
    path = write_recipe(published="[{value: 1, source: 'X, table 1', precision: half}]", **TWO_STAGES)
    assert notes() == []
    path = write_recipe(**TWO_STAGES)
    assert notes() == []


def test_plan_lists_the_taps_with_their_shapes(cli, write_recipe, offer_methods):
    offer_methods(unread=Unread)
    path = write_recipe(data="{use: unread}", backbone="{use: cifar_resnet, options: {depth: 8}}")
    assert "taps layer1, layer2, layer3, maps, pooled\n" in cli("plan", path).out
    assert "tap_shapes" not in json.loads(cli("plan", path, "--json").out)["backbone"]
    shown = json.loads(cli("plan", path, "--taps", "--json").out)["backbone"]
    assert shown["image_size"] == 32  # nothing says how large the images are
    assert shown["tap_shapes"] == [
        {"tap": "layer1", "shape": [16, 32, 32], "kind": "map"},
        {"tap": "layer2", "shape": [32, 16, 16], "kind": "map"},
        {"tap": "layer3", "shape": [64, 8, 8], "kind": "map"},
        {"tap": "maps", "shape": [64, 8, 8], "kind": "map"},
        {"tap": "pooled", "shape": [64], "kind": "pooled"},
    ]
    text = cli("plan", path, "--image-size", 7).out
    assert "taps, for images of 3 x 7 x 7:\n            layer1  16 x 7 x 7        map\n" in text

    options = "{class_counts: [2, 2], image_size: 48}"
    path = write_recipe(
        data=f"{{use: synthetic, options: {options}}}", backbone="{use: timm, options: {model: test_vit}}"
    )
    shown = json.loads(cli("plan", path, "--taps", "--json").out)["backbone"]
    assert shown["image_size"] == 48 and {row["kind"] for row in shown["tap_shapes"]} == {"tokens", "pooled"}
    assert shown["tap_shapes"][0] == {"tap": "blocks.0", "shape": [10, 64], "kind": "tokens"}  # 3 x 3 and the class's


def test_sizes_that_are_none_or_do_not_suit_the_backbone_are_refused(cli, write_recipe):
    path = write_recipe(backbone="{use: timm, options: {model: inception_v3}}")
    failed = cli("plan", path, "--image-size", 20)
    assert failed.code == 2 and "the backbone does not take images of 3 x 20 x 20" in failed.err
    for wrong in ("0", "-3", "3.5", "big"):
        failed = cli("plan", path, "--image-size", wrong)
        assert failed.code == 2 and f"'{wrong}' is no whole number above 0" in failed.err


def test_the_text_of_a_plan_holds_what_its_json_holds(cli, write_recipe):
    path = write_recipe(**TWO_STAGES)
    described = json.loads(cli("plan", path, "--json").out)
    blocks = cli("plan", path).out.split("\nstage ")
    for block, stage in zip(blocks[1:], described["stages"], strict=True):
        assert stage["name"] in block
        place = 0
        for hook, found in stage["hooks"].items():
            place = block.index(f"  {hook} ", place)  # in the order of the JSON
            for answer in found["methods"]:
                shown = f"{answer['method']}{' at maps' if 'tap' in answer else ''}"
                place = block.index(f" {shown} ({answer['distribution']} {answer['version']})", place)
            if not found["methods"]:
                place = block.index(f" core: {found['core']}", place)
        for key in ("sampler", "optimizer", "schedule"):
            (line,) = re.findall(rf"^  {key} .*$", block, re.MULTILINE)
            values = stage[key].items() if isinstance(stage[key], dict) else [("name", stage[key])]
            assert all(f" {value}" in line if name == "name" else f" {name}={value}" in line for name, value in values)
        assert f"  trains      {', '.join(stage['trainable'])} (" in block
    assert "post_calibrate      fold     tau_norm (ltcore-tau-norm 0.1.0)\n" in blocks[-1]


def test_plugins(cli):
    rows = {row["name"]: row for row in json.loads(cli("plugins", "--json").out)}
    assert rows["ofa"] == {
        "name": "ofa",
        "distribution": "ltcore-ofa",
        "version": "0.1.0",
        "interface": "1.1",
        "hooks": ["on_run_start", "on_stage_start", "build_sampler", "extra_rows", "augment_features"],
        "broken": None,
    }
    text = cli("plugins").out
    for row in rows.values():
        pattern = [row["name"], row["distribution"], row["version"], row["interface"], ", ".join(row["hooks"])]
        assert re.search(r"^" + r" +".join(map(re.escape, pattern)) + r"$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import einops_of_the_future\n", "No module named 'einops_of_the_future'"),
        ("def f(:\n", "invalid syntax"),
        ("", "no 'Lame'"),
    ],
)
def test_a_broken_plugin_is_listed_and_harms_no_one(cli, fake_plugin, write_recipe, tmp_path, source, reason):
    fake_plugin("lame", source)
    (row,) = [row for row in json.loads(cli("plugins", "--json").out) if row["name"] == "lame"]
    assert (row["distribution"], row["version"]) == ("ltcore-lame", "0.2.1") and reason in row["broken"]
    assert re.search(
        rf"^lame +ltcore-lame +0\.2\.1 +\? +BROKEN: .*{re.escape(reason)}", cli("plugins").out, re.MULTILINE
    )
    assert cli("data", "list").code == 0
    stages = "[{name: joint, iterations: 1, batch_size: 8, methods: [focal], optimizer: {lr: 0.05}}]"
    path = write_recipe(methods="{focal: {}}", stages=stages)
    assert cli("run", path, "--out", tmp_path / "runs").code == 0


def test_show_a_plugin(cli):
    text = cli("plugins", "show", "ofa").out
    assert text.startswith("ofa (ltcore-ofa 0.1.0)\n")
    assert re.search(r"^    head_ratio +0\.9 +number +h_r: ", text, re.MULTILINE)
    card = json.loads(cli("plugins", "show", "npz", "--json").out)
    said = json.loads(cli("plugins", "show", "ofa", "--json").out)["summary"]
    assert (
        said
        and "\n" not in said
        and said == " ".join(catalogue.load(catalogue.find("ofa")).__doc__.split("\n\n")[0].split())
    )
    assert card["hooks"] == ["build_data"] and card["options"]["path"]["default"] == "required"
    refused = cli("plugins", "show", "ofaa")
    assert refused.code == 2 and "did you mean 'ofa'?" in refused.err


def test_data(cli, write_recipe):
    rows = {row["name"]: row for row in json.loads(cli("data", "list", "--json").out)}
    text = cli("data", "list").out
    assert set(rows) >= {"digits_lt", "cifar10_lt", "cifar100_lt", "fashion_mnist_lt", "npz", "synthetic"}
    assert all(row["summary"] and row["summary"] in text for row in rows.values())
    described = json.loads(cli("data", "describe", write_recipe(), "--json").out)
    assert described["class_counts"] == [24, 16, 8, 4]
    digits = cli("data", "describe", "digits_lt", "--set", "data.holdout=2")
    assert digits.code == 0 and "10 classes" in digits.out
    refused = cli("data", "describe", "digit_lt")
    assert refused.code == 2 and "did you mean 'digits_lt'?" in refused.err


def test_what_is_asked_for_with_a_flag_is_not_done_unasked(monkeypatch):
    from ltcore.cli import command_line

    checked = 0
    (commands,) = (action for action in command_line()._actions if action.choices)
    queue = list(commands.choices.values())
    for parser in queue:
        for action in parser._actions:
            if isinstance(action.choices, dict):
                queue += action.choices.values()
        function = parser.get_default("function")
        for action in parser._actions if function else ():
            parameter = inspect.signature(function).parameters.get(action.dest)
            if isinstance(action, argparse._StoreConstAction) and parameter:
                checked += 1
                assert parameter.default is (not action.const), (parser.prog, action.option_strings)
    assert checked > 15


# -- names of runs, and several seeds ----------------------------------------------------------------------------------


@pytest.fixture
def three(cli, write_recipe, tmp_path, monkeypatch):
    """A recipe that was run with three seeds where the command runs, and what was said of it."""
    monkeypatch.chdir(tmp_path)
    path = write_recipe()
    return path, cli("run", path, "--seeds", "0..1", "--seeds", "5")


def test_several_seeds_are_trained_and_averaged(cli, three, tmp_path):
    path, said = three
    assert (said.code, said.err) == (0, "")
    runs = sorted(tmp_path.glob("runs/r/*/result.json"))
    assert [json.loads(run.read_text())["seed"] for run in runs] == [0, 1, 5]
    (row,) = (line for line in said.out.splitlines() if line.startswith("r  "))
    assert row.split()[1] == "3" and "±" in row
    alone = cli("run", path, "--seeds", "0", "--resume")
    assert alone.code == 0 and not any(line.startswith("r  ") for line in alone.out.splitlines())
    again = cli("run", path, "--seeds", "0,1,2,5", "--resume")  # one of them is new
    assert again.code == 0 and again.out.count("has already ended; this is its result") == 3
    assert len(list(tmp_path.glob("runs/r/*"))) == 4
    cli("run", path, "--seeds", "1", "--seed", "2").is_one_message(
        2, "--seeds trains a RECIPE once for each seed, in place of --seed; name one"
    )
    cli("run", path, "--seeds", "4..1").is_one_message(
        2, "--seeds 4..1: 4..1 holds no seed; the smaller one comes first"
    )


def test_latest_and_a_recipes_name_stand_for_a_run(cli, three, write_recipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    first, second, last = sorted(path.parent for path in tmp_path.glob("runs/r/*/result.json"))
    unended = tmp_path / "runs" / "r" / "29990101-000000-seed9"
    unended.mkdir()
    (unended / "recipe.yaml").write_text("a: 1")
    (tmp_path / "runs" / "r" / ".20300101-000000-seed9-x").mkdir()
    expected = cli("predict", last, "a.png")
    for name in ("latest", "r"):
        found = cli("predict", name, "a.png")
        assert found.out == expected.out and found.err == f"{name}: {last.relative_to(tmp_path)}\n"
    assert cli("compare", "r", "--format", "json").out.count("seed") > 3 and cli("compare", "latest").code == 0
    report = cli("report", "r", "-o", "r.html", "--no-features", "--no-images")
    assert report.code == 0 and report.err == f"r: {last.relative_to(tmp_path)}\n"
    (tmp_path / "r").symlink_to(first)  # what is there comes first
    assert cli("predict", "r", "a.png").err == ""
    assert "nobody: there is no such run" in cli("predict", "nobody", "a.png").err
    assert second.is_dir()


@pytest.mark.parametrize("words", [("recipes", "list"), ("--help",)], ids=lambda words: words[0])
def test_an_output_that_takes_nothing_is_one_message(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ltcore", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=_buffered())
    assert done.returncode == 1
    assert done.stderr.startswith("ltcore stopped: standard output: No space left on device; free some space there")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_ends_or_an_output_that_is_closed_is_no_mistake_of_ours():
    line = f"{sys.executable} -m ltcore recipes list"
    for rest in ("| true", ">&-", ">&- 2>&-"):
        done = subprocess.run(f"{line} {rest}", shell=True, capture_output=True, text=True, env=_buffered())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), rest


def _buffered():
    """The environment, where Python keeps what is printed until there is much of it, or the end."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_what_new_says_to_type_can_be_typed(cli, tmp_path):
    told = cli("new", "mynoise", "--out", tmp_path / "a b").out
    assert f"pip install -e '{tmp_path}/a b[dev]'" in told and f"pytest '{tmp_path}/a b'" in told
