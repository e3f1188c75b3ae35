"""A class in a file beside a recipe: used, kept with the run, compared, and refused where it is not what it seems."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
import yaml

import ltcore
from ltcore.discovery import catalogue, unpackaged
from ltcore.errors import PluginError, RecipeError
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.training.observers import Checkpointer

HEAD = """\
from __future__ import annotations

import torch
from ltcore import Backbone, DataSplits, Method, Options, hookimpl
from pydantic import Field
"""

MINE = (
    HEAD
    + """

class MineOptions(Options):
    \"\"\"Options.\"\"\"

    scale: float = Field(default=1.0, gt=0)
    \"\"\"What the loss is multiplied by.\"\"\"


class Mine(Method[MineOptions]):
    \"\"\"A loss.\"\"\"

    interface = "1.1"

    @hookimpl
    def compute_loss(self, logits, targets):
        \"\"\"Cross-entropy.\"\"\"
        return self.options.scale * torch.nn.functional.cross_entropy(logits, targets, reduction="none")
"""
)

STAGE = "{name: joint, epochs: 2, batch_size: 8, methods: [mine], optimizer: {name: sgd, lr: 0.05}}"


@pytest.fixture
def mine(tmp_path):
    """``mine.py`` beside the recipe."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def recipe(mine, write_recipe):
    return write_recipe(methods={"mine": {"use": "./mine.py:Mine"}}, stages=f"[{STAGE}]", checkpoint_seconds=0)


def only(folder):
    (found,) = folder.iterdir()
    return found


# -- a run -------------------------------------------------------------------------------------------------------------


def test_it_is_used_named_as_unpackaged_and_kept_with_the_run(recipe, mine, cli, tmp_path):
    planned = cli("plan", recipe)
    assert planned.err == f"running {mine}, which is not installed but named as a file\n"
    assert "method    mine scale=1.0 (mine.py unpackaged)" in planned.out
    assert f"note      mine.py is unpackaged code of the recipe, {mine}; a run keeps a copy of it" in planned.out
    assert cli("run", recipe, "--out", tmp_path / "out").code == 0
    directory = only(tmp_path / "out" / "r")
    assert (directory / "mine.py").read_text() == MINE
    assert yaml.safe_load((directory / "recipe.yaml").read_text())["methods"] == {"mine": {"use": "./mine.py:Mine"}}
    result = json.loads((directory / "result.json").read_text())
    assert result["versions"]["mine.py"] == "unpackaged"
    assert result["code"]["mine.py"] == unpackaged.File(mine).digest
    (entry,) = json.loads((directory / "environment.json").read_text())
    assert entry["code"] == result["code"]
    said = cli("compare", directory).out
    assert "r: with code that is no distribution: mine.py" in said
    assert "mine (mine.py unpackaged)" in cli("trace", recipe).out


def test_a_run_is_opened_and_run_again_when_the_file_has_gone_but_not_unasked(recipe, mine, cli, tmp_path):
    saved = ltcore.run(recipe, out=tmp_path / "out")
    images = torch_images()
    expected = saved.predict(images).logits
    mine.unlink()
    closed = ltcore.load(saved.path)
    assert closed.metrics == saved.metrics and closed.recipe == saved.recipe
    kept = saved.path / "mine.py"
    asked = "read it, then add --run-code (in Python: ltcore.load(RUN, run_code=True))"
    with pytest.raises(PluginError) as refused:
        _ = closed.model
    assert f"'./mine.py:Mine' is code that the run keeps in its directory, {kept}" in str(refused.value)
    assert str(refused.value).startswith(f"{saved.path}/recipe.yaml:") and asked in str(refused.value)
    assert (ltcore.load(saved.path, run_code=True).predict(images).logits == expected).all()
    ended = cli("export", saved.path, "--to", "safetensors", "--out", tmp_path / "m.safetensors")
    ended.is_one_message(2, "'./mine.py:Mine' is code", asked)
    assert not (tmp_path / "m.safetensors").exists()
    words = ("export", saved.path, "--to", "safetensors", "--out", tmp_path / "m.safetensors", "--run-code")
    assert cli(*words).code == 0
    page = cli("report", saved.path, "-o", tmp_path / "r.html", "--no-features", "--no-images")
    assert page.code == 0 and "The plan cannot be made here" in (tmp_path / "r.html").read_text()
    again = cli("run", saved.path / "recipe.yaml", "--out", tmp_path / "again")
    assert again.code == 0
    figures = [json.loads((path / "result.json").read_text()) for path in (saved.path, only(tmp_path / "again" / "r"))]
    assert figures[0]["after_calibration"] == figures[1]["after_calibration"]
    assert figures[0]["code"] == figures[1]["code"]


def torch_images():
    import torch

    return torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_strangers_run_is_not_run_by_opening_it(recipe, mine, cli, tmp_path):
    saved = ltcore.run(recipe, out=tmp_path / "out")
    mark = tmp_path / "it-ran"
    (saved.path / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n{MINE}")
    for words in (
        ("predict", saved.path, tmp_path),
        ("export", saved.path, "--to", "safetensors", "--out", tmp_path / "m"),
        ("report", saved.path, "-o", tmp_path / "r.html"),
        ("compare", saved.path),
        ("run", recipe, "--from", saved.path, "--out", tmp_path / "taken"),
    ):
        cli(*words)
        assert not mark.exists(), words


def test_a_changed_copy_is_named_where_the_model_is_not_the_runs(recipe, cli, tmp_path, mine):
    mine.write_text(MINE + BUILDS)
    saved = ltcore.run(recipe, out=tmp_path / "out")
    kept = saved.path / "mine.py"
    kept.write_text(MINE + BUILDS.replace("1.0", "3.0"))
    with pytest.raises(ltcore.RunError, match=rf"the model built from it is not the run's.*{kept} has changed"):
        _ = ltcore.load(saved.path, run_code=True).model


BUILDS = """
    @hookimpl
    def build_classifier(self, feature_dim, num_classes):
        return Scaled(feature_dim, num_classes)


class Scaled(torch.nn.Module):
    bias = None

    def __init__(self, feature_dim, num_classes):
        super().__init__()
        self.raw = torch.nn.Parameter(torch.randn(num_classes, feature_dim))

    @property
    def weight(self):
        return 1.0 * self.raw

    def forward(self, x):
        return x @ self.weight.T
"""


# -- going on ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


@pytest.fixture
def killed(cli, recipe, tmp_path, monkeypatch):
    """A run that was killed after its fourth step; returns its directory."""
    real, saved = Checkpointer.save, []

    def save(*arguments):
        real(*arguments)
        saved.append(1)
        if len(saved) == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", save)
        with pytest.raises(Killed):
            cli("run", recipe, "--out", tmp_path / "out")
    return only(tmp_path / "out" / "r")


def test_an_edited_file_is_refused_on_resume_unless_it_is_meant(recipe, mine, killed, cli, tmp_path):
    mine.write_text(MINE.replace("A loss", "A better loss"))
    words = ("run", recipe, "--out", tmp_path / "out", "--resume")
    refused = cli(*words)
    assert refused.code == 2 and "the code of mine.py has changed. Bring it back as it was" in refused.err
    assert (killed / "mine.py").read_text() == MINE
    ended = cli(*words, "--environment-changed")
    assert ended.code == 0 and "the code of mine.py has changed" in ended.out
    assert (killed / "mine.py").read_text() == mine.read_text()
    result = json.loads((killed / "result.json").read_text())
    assert [entry["code"]["mine.py"] == result["code"]["mine.py"] for entry in result["environments"]] == [False, True]


@pytest.mark.parametrize("how", ["recipe", "alone"])
def test_it_goes_on_with_what_it_was_begun_with(how, recipe, mine, killed, cli, tmp_path):
    if how == "alone":
        mine.write_text("an edit in the middle of")  # the run's own copy counts
        ended = cli("run", "--out", tmp_path / "out", "--resume")
    else:
        moved = tmp_path / "moved"
        moved.mkdir()
        recipe.rename(moved / recipe.name)
        mine.rename(moved / "mine.py")
        ended = cli("run", moved / recipe.name, "--out", tmp_path / "out", "--resume")
    assert ended.code == 0 and "going on from stage 1" in ended.out, ended
    assert "environments" not in json.loads((killed / "result.json").read_text())


def test_an_edit_while_it_is_planned_changes_nothing_of_the_run(recipe, mine, tmp_path):
    loaded = load_recipe(recipe)
    make_plan(loaded)
    mine.write_text("nothing that runs")
    plan = make_plan(loaded.changed({"stages": loaded.source["stages"]}, "here"))
    assert plan.entries["mine"].offer.version == "unpackaged"
    assert loaded.code["./mine.py"].content.decode() == MINE


def test_stages_are_taken_over_from_a_run_with_the_same_file_only(recipe, mine, cli, tmp_path, write_recipe):
    first = ltcore.run(recipe, out=tmp_path / "out")
    more = f"[{STAGE}, {STAGE.replace('joint', 'more')}]"
    (tmp_path / "other").mkdir()
    longer = write_recipe("longer", methods={"mine": {"use": "./other/own.py:Mine"}}, stages=more)
    (tmp_path / "other" / "own.py").write_text(MINE)
    words = ("run", longer, "--from", first.path, "--out", tmp_path / "longer")
    assert cli(*words).code == 0
    taken = json.loads((only(tmp_path / "longer" / "longer") / "result.json").read_text())["reused"]
    assert taken["stages"] == 1
    (tmp_path / "other" / "own.py").write_text(MINE + "\n# edited\n")
    refused = cli(*words)
    assert refused.code == 2 and f"--from {first.path}: its first stage 'joint' is not the recipe's" in refused.err


def test_runs_with_another_file_are_not_averaged(recipe, mine, cli, tmp_path):
    cli("run", recipe, "--out", tmp_path / "out")
    mine.write_text(MINE + "\n# edited\n")
    cli("run", recipe, "--seed", "1", "--out", tmp_path / "out")
    said = cli("compare", tmp_path / "out").out
    assert "r #1" in said and "r #2" in said and "code of mine.py" in said


# -- where it lies -----------------------------------------------------------------------------------------------------


def test_it_is_relative_to_the_recipe_that_names_it(mine, tmp_path, write_recipe):
    parent = write_recipe("parent", methods={"mine": {"use": "./mine.py:Mine"}}, stages=f"[{STAGE}]")
    below = tmp_path / "below"
    (below / "methods").mkdir(parents=True)
    (below / "methods" / "mine.py").write_text(MINE.replace("class Mine(", "class Other("))
    child = below / "child.yaml"
    child.write_text(
        f"extends: ../{parent.name}\nmethods: {{other: {{use: './methods/mine.py:Other'}}}}\n"
        "stages: {joint: {methods: [other]}, more: {epochs: 1, methods: [mine], optimizer: {lr: 0.1}}}\n"
    )
    loaded = load_recipe(child)
    assert {name: file.path.resolve() for name, file in loaded.code.items()} == {
        "./mine.py": mine.resolve(),
        "./mine_2.py": (below / "methods" / "mine.py").resolve(),
    }
    assert loaded.recipe.methods["other"].use == "./mine_2.py:Other"
    entries = make_plan(loaded).entries
    assert [entries[key].whose for key in ("mine", "other")] == [
        "'mine' (mine.py unpackaged)",
        "'other' (mine_2.py unpackaged)",
    ]
    # What the run keeps is the same recipe.
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "child.yaml").write_text(dump_yaml(loaded.source))
    for name, file in loaded.code.items():
        (kept / name).write_bytes(file.content)
    assert load_recipe(kept / "child.yaml").source == loaded.source


def test_another_folders_file_of_the_same_name_is_another_method(mine, tmp_path, write_recipe):
    write_recipe("parent", methods={"mine": {"use": "./mine.py:Mine", "options": {"scale": 2.0}}}, stages=f"[{STAGE}]")
    child = tmp_path / "below" / "child.yaml"
    child.parent.mkdir()
    (child.parent / "mine.py").write_text(MINE.replace("scale", "factor"))
    child.write_text("extends: ../parent.yaml\nmethods: {mine: {use: './mine.py:Mine', options: {factor: 3.0}}}\n")
    assert make_plan(load_recipe(child)).entries["mine"].method.options.factor == 3.0


def test_set_is_relative_to_the_working_directory_and_may_lie_anywhere(mine, tmp_path, write_recipe, monkeypatch):
    recipe = write_recipe("r", methods={"mine": {"use": "focal"}}, stages=f"[{STAGE}]")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for use in ("../mine.py:Mine", f"{mine}:Mine"):
        loaded = load_recipe(recipe, [f"methods.mine.use={use}"])
        assert loaded.code["./mine.py"].path.resolve() == mine.resolve()
        assert loaded.source["methods"]["mine"]["use"] == "./mine.py:Mine"
    assert make_plan(loaded).entries["mine"].offer.distribution == "mine.py"


def test_candidates_of_a_selection_may_be_files(mine, write_recipe, tmp_path):
    (tmp_path / "two.py").write_text(MINE)
    recipe = write_recipe(
        methods={"mine": {"use": "./mine.py:Mine"}},
        stages=f"[{STAGE.replace('epochs: 2', 'epochs: 1')}]",
        select={"options": {"methods.mine.use": ["./mine.py:Mine", "./two.py:Mine"]}, "holdout": 1},
    )
    saved = ltcore.run(recipe, out=tmp_path / "out")
    assert len(saved.result["selection"]["candidates"]) == 2
    assert {"mine.py", "two.py"} <= {path.name for path in saved.path.iterdir()}
    assert saved.model and ltcore.load(saved.path, run_code=True).model


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (
            "../mine.py:Mine",
            "'../mine.py:Mine' is no method's name; write './FILE.py:CLASS' for a class in a file in or",
        ),
        ("mine.py:Mine", "'mine.py:Mine' is no method's name; write './FILE.py:CLASS'"),
        ("/tmp/mine.py:Mine", "'/tmp/mine.py:Mine' is no method's name; write './FILE.py:CLASS'"),
        ("./mine.py", "'./mine.py' is no method's name; write './FILE.py:CLASS'"),
        ("./mine:Mine", "'./mine:Mine' is no method's name; write './FILE.py:CLASS'"),
        ("./mine.py:", "'./mine.py:' is no method's name; write './FILE.py:CLASS'"),
        ("./mine.py:Mi ne", "'./mine.py:Mi ne' is no method's name; write './FILE.py:CLASS'"),
        ("./below/../../mine.py:Mine", "lies outside of the recipe's folder, and a recipe runs no code from elsewhere"),
        ("./link.py:Mine", "lies outside of the recipe's folder, and a recipe runs no code from elsewhere"),
        ("./nine.py:Mine", "nine.py: there is no such file; did you mean 'mine.py'?"),
        ("./folder.py:Mine", "folder.py: is no file"),
        ("./mine.py:Mein", "mine.py has no 'Mein'; did you mean 'Mine'?"),
        ("./mine.py:Unlike", "mine.py has no 'Unlike'; its methods are 'Mine'"),
        ("./mine.py:Mine.Inner", "mine.py has no 'Mine.Inner'"),
        ("./mine.py:MineOptions", "it is no class that derives from ltcore.Method"),
        ("./mine.py:torch", "it is no class that derives from ltcore.Method"),
        ("${env:ITS_PLACE}", "mine.py:Mine' is no method's name; write './FILE.py:CLASS'"),
    ],
)
def test_what_names_no_class_of_a_file_is_one_message_with_its_place(
    use, said, mine, write_recipe, tmp_path, cli, monkeypatch
):
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setenv("ITS_PLACE", f"{mine}:Mine")
    outside = tmp_path / "outside.py"
    mine.rename(folder / "mine.py")
    outside.write_text(MINE)
    (folder / "link.py").symlink_to(outside)
    (folder / "folder.py").mkdir()
    recipe = write_recipe(methods={"mine": {"use": use}}, stages=f"[{STAGE}]").rename(folder / "r.yaml")
    ended = cli("plan", recipe)
    lines = [line for line in ended.err.splitlines() if not line.startswith("running ")]
    assert ended.code == 2 and len(lines) == 1 and lines[0].startswith(f"{recipe}:4: ") and said in lines[0], ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Mine(:\n", "mine.py:1: SyntaxError: invalid syntax"),
        ("x = 1\n  y = 2\n", "mine.py:2: IndentationError: unexpected indent"),
        ("x = '\x00'\n", "source code string cannot contain null bytes"),
        ("x = 1\n\nraise ValueError('no luck')\n", "mine.py:3: ValueError: no luck"),
        ("import torch\nimport no_such_thing\n", "mine.py:2: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import sys\nsys.exit(0)\n", "mine.py:2: it ends the process; put what is a program under if __name__"),
        ("Mine = 3\n", "it is no class that derives from ltcore.Method"),
        ("", "mine.py has no 'Mine', and no ltcore.Method at all"),
        ("import torch\nimport aside\n", "mine.py:2: imports 'aside', which lies beside it"),
        ("import torch\nimport helper\n", "mine.py:2: imports 'helper', which lies beside it"),
        ("def later():\n    from helper import x\n", "mine.py:2: imports 'helper', which lies beside it"),
        ("import tools.deep as d\n", "mine.py:1: imports 'tools.deep', which lies beside it"),
        ("from . import helper\n", "mine.py:1: imports '.', which lies beside it"),
        ("from .helper import x\n", "mine.py:1: imports '.helper', which lies beside it"),
        ("import mine\n", "mine.py:1: imports 'mine', which lies beside it"),
        (MINE.replace('"1.1"', '"9.0"'), "is written for hook interface 9.0, and ltcore "),
        (MINE.replace("compute_loss", "compute_los"), "there is no hook 'compute_los'; did you mean 'compute_loss'?"),
        (MINE.replace("logits, targets)", "logits, targets, colour)"), "hook compute_loss has no argument 'colour'"),
    ],
)
def test_a_file_that_does_not_run_is_one_message_with_its_place(text, said, recipe, mine, tmp_path, cli, monkeypatch):
    if "helper" in text or "tools" in text:  # on the path, as for `python -m ltcore` in that folder
        monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "aside.py").write_text("x = 1\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "deep.py").write_text("")
    (tmp_path / "torch").mkdir()  # no package, and nothing that hides the real one
    mine.write_text(text)
    before = set(sys.modules)
    ended = cli("plan", recipe)
    lines = [line for line in ended.err.splitlines() if not line.startswith("running ")]
    assert ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.err, ended.err
    assert lines[0].startswith(f"{recipe}:4: ") or "hook" in said, lines
    assert said in lines[0], lines
    assert "helper" not in sys.modules and not {name for name in set(sys.modules) - before if "tools" in name}


def test_options_are_checked_with_their_place(recipe, cli):
    wrong = cli("plan", recipe, "--set", "methods.mine.options.scal=2")
    told, message = wrong.err.splitlines()
    assert wrong.code == 2 and told.startswith("running ")
    parts = ("methods.mine.options.scal", "did you mean 'scale'", "(method './mine.py:Mine', mine.py unpackaged)")
    assert all(part in message for part in parts), message


# -- data and backbone -------------------------------------------------------------------------------------------------

PARTS = (
    HEAD
    + """
from dataclasses import dataclass

import numpy as np
from ltcore import ArraySplit
from PIL import Image


@dataclass(frozen=True)
class Drawn:
    targets: torch.Tensor

    def __len__(self):
        return len(self.targets)

    def subset(self, index):
        return Drawn(self.targets[index])

    def open(self, index):
        return Image.new("RGB", (8, 8), (60 * int(self.targets[index]), 0, 0))

    def name(self, index):
        return f"drawn {index}"


class Mine(Method):
    \"\"\"Images that are drawn when they are asked for.\"\"\"

    interface = "1.1"

    @hookimpl
    def build_data(self):
        \"\"\"The splits.\"\"\"
        train, test = torch.arange(4).repeat_interleave(6), torch.arange(4)
        return DataSplits(Drawn(train), Drawn(test), tuple("abcd"), (0.5,) * 3, (0.25,) * 3, image_size=8)


class Net(Backbone):
    feature_dim = 6

    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 6, 3, padding=1)

    def forward_maps(self, images):
        return self.conv(images).relu()


class MineNet(Method):
    \"\"\"One convolution.\"\"\"

    interface = "1.1"

    @hookimpl
    def build_backbone(self, in_channels):
        \"\"\"The network.\"\"\"
        return Net(in_channels)
"""
)


@pytest.mark.slow
def test_data_and_backbone_of_a_file_with_processes_that_decode(mine, write_recipe, tmp_path, cli):
    mine.write_text(PARTS)
    recipe = write_recipe(
        data="{use: './mine.py:Mine', workers: 2}",
        backbone="{use: './mine.py:MineNet'}",
        stages="[{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]",
    )
    saved = ltcore.run(recipe, out=tmp_path / "out")
    assert saved.result["data"] == "./mine.py:Mine" and saved.result["code"]["mine.py"]
    assert saved.features("test").shape == (4, 6)
    described = cli("data", "describe", f"{mine}:Mine")
    assert described.code == 0 and "4 classes" in described.out, described
    wrong = write_recipe("w", data="{use: './mine.py:MineNet'}", backbone="{use: './mine.py:MineNet'}")
    cli("plan", wrong).is_one_message(2, f"{wrong}:1: method './mine.py:MineNet' (mine.py unpackaged) does not build")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_read_what_comes_of_it_whatever_is_edited_meanwhile(method, mine):
    mine.write_text(PARTS)
    kind = catalogue.load(catalogue.asked(f"{mine}:Mine"))
    splits = kind().build_data()
    mine.write_text("an edit in the middle of")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(splits.train.name, (3,)) == "drawn 3"
    assert pickle.loads(pickle.dumps(splits.train)).name(2) == "drawn 2"


def test_nothing_is_left_behind(mine, recipe, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run([sys.executable, "-m", "ltcore", "plan", recipe], env=environment, capture_output=True)
    assert done.returncode == 0 and not list((tmp_path / "tmp").iterdir()), done.stderr


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_and_show(mine, cli):
    shown = cli("plugins", "show", f"{mine}:Mine")
    assert shown.out.startswith(f"{mine}:Mine (mine.py unpackaged)\n  A loss.\n") and "multiplied by" in shown.out
    quick = [word for name in ("pairs", "resume", "batch_sizes") for word in ("--without", name)]
    checked = cli("check", f"{mine}:Mine", *quick)
    assert checked.code == 0, checked.out
    assert checked.out.startswith("mine (mine.py unpackaged)\n") and "1 method checked, all passed" in checked.out
    assert "passed  processes" in checked.out
    mine.write_text(MINE + "\nraise ValueError('late')\n")
    failed = cli("check", f"{mine}:Mine")
    assert failed.code == 1 and "ValueError: late" in failed.out and "change: change mine.py" in failed.out, failed
    cli("check", f"{mine.parent}/no.py:Mine").is_one_message(2, "no.py: there is no such file")
    cli("check", "./mine").is_one_message(
        2, "'./mine' is no method's name, and no file with a class, such as ./mine.py"
    )


@pytest.mark.slow
def test_the_schema_takes_a_file(recipe):
    import jsonschema

    from ltcore.recipe.json_schema import recipe_schema

    schema, _ = recipe_schema()
    content = yaml.safe_load(recipe.read_text())
    jsonschema.validate(content, schema)
    content["methods"]["mine"]["use"] = "mine.py:Mine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_a_recipe_that_is_in_no_file_names_none(mine):
    from ltcore.recipe.loading import recipe_from

    parts = {
        "name": "r",
        "data": {"use": "synthetic"},
        "backbone": {"use": "./mine.py:Mine"},
        "stages": [{"name": "joint", "epochs": 1, "optimizer": {"lr": 0.1}}],
    }
    with pytest.raises((PluginError, RecipeError), match=r"'\./mine\.py:Mine' is not installed"):
        make_plan(recipe_from(parts, "here"))
