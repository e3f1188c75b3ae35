"""The documentation against the code: whatever a page states that can be checked, is."""

import ast
import importlib.util
import json
import re
import shutil
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import ltcore
from ltcore import Context, Method
from ltcore.contract import interface, recipe
from ltcore.contract.experts import MeanOfExperts
from ltcore.contract.hook import hookimpl
from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue
from ltcore.discovery.binding import Entry, Implementation, implementations
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import parse
from ltcore.testing.parts import CheckBackbone
from ltcore.training import execute

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")])
ARCHITECTURE, HOOKS_PAGE, RECIPES, DATA = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "hooks", "recipes", "data")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text, language):
    """The code blocks of a page in one language."""
    return [content for name, content in FENCE.findall(text) if name == language]


def sections(text):
    """Title and content of each section, of any level; code is no heading."""
    hidden = FENCE.sub(lambda match: re.sub(r"^#", " #", match[0], flags=re.MULTILINE), text)
    parts = re.split(r"^#+ +(.*)$", hidden, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(text, column=0):
    """The rows of the first table: the name in backticks at the row's beginning, and another column."""
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return {cell[0].strip("`"): cell[column] for cell in cells}


def run(path, tmp_path, sets=()):
    done = ltcore.run(path, sets, out=tmp_path / "runs")
    return done.result, done.path


# -- architecture.md ---------------------------------------------------------------------------------------------------


class Probe(Method):
    """Answers every hook of a stage, and calibrates."""

    auxiliary = ("zero",)

    @hookimpl
    def adapt_backbone(self, backbone):
        return backbone

    @hookimpl
    def on_run_start(self):
        pass

    @hookimpl
    def build_classifier(self, feature_dim, num_classes):
        return torch.nn.Linear(feature_dim, num_classes)

    @hookimpl
    def build_ensemble(self):
        return MeanOfExperts()

    @hookimpl
    def on_stage_start(self):
        pass

    @hookimpl
    def on_epoch_start(self):
        pass

    @hookimpl
    def class_distribution(self):
        return None

    @hookimpl
    def image_transform(self):
        return None

    @hookimpl
    def build_sampler(self, batch_size, context):
        from ltcore.contract.samplers import PlainSampler

        return PlainSampler(context.training_targets, context.num_classes, batch_size)

    @hookimpl
    def extra_rows(self):
        return None

    @hookimpl
    def compute_gradients(self, objective):
        return objective.gradients(objective())

    @hookimpl
    def mix_inputs(self, batch):
        return batch

    @hookimpl
    def augment_features(self, features):
        return features

    @hookimpl
    def sample_weights(self):
        return None

    @hookimpl
    def adjust_logits(self, logits):
        return logits

    @hookimpl
    def compute_loss(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    @hookimpl
    def class_weights(self, context):
        return torch.ones(context.num_classes)

    @hookimpl
    def auxiliary_losses(self, logits):
        return {"zero": 0 * logits.sum()}

    @hookimpl
    def after_step(self):
        pass

    @hookimpl
    def on_epoch_end(self):
        pass

    @hookimpl
    def on_stage_end(self):
        pass

    @hookimpl
    def post_calibrate(self, classifier):
        return classifier


def test_the_loop_is_the_one_that_runs(offer_methods, write_recipe, tmp_path, monkeypatch):
    called = []
    bind, read_splits = Implementation.bind, execute.read_splits

    def recording(self, context):
        function = bind(self, context)
        return lambda *values: (called.append(self.hook), function(*values))[1]

    def after_planning(*args):
        called.clear()  # planning builds the backbone on the meta device
        return read_splits(*args)

    monkeypatch.setattr(Implementation, "bind", recording)
    monkeypatch.setattr(execute, "read_splits", after_planning)
    offer_methods(probe=Probe, split=CheckBackbone)
    stage = {"batch_size": 26, "methods": ["probe"], "optimizer": {"name": "sgd", "lr": 0.01}}
    stages = [{"name": "one", "epochs": 3, **stage}, {"name": "two", "epochs": 3, **stage}]
    backbone = {"use": "split", "options": {"experts": 2}, "adapt": ["probe"]}
    run(write_recipe(backbone=backbone, methods={"probe": {}}, stages=stages, calibrate=["probe"]), tmp_path)

    loop = ARCHITECTURE.split("```text\n")[1].split("```")[0]
    assert len(loop.splitlines()) < 40
    documented, repeats, inside = [], {}, []
    times = {"stage": 2, "epoch": 2 * 3, "batch": 2 * 3 * 2}
    for line in loop.splitlines():
        indent = len(line) - len(line.lstrip())
        inside = [(depth, what) for depth, what in inside if depth < indent]
        if opened := re.match(r"\s*for (\w+) in", line):
            inside.append((indent, opened[1]))
        for name in re.findall(r"(\w+)\(", line):
            if name in HOOKS:
                assert name not in documented, f"{name} stands twice"
                assert line.rstrip().partition("#")[2].split(";")[0].strip() == HOOKS[name].kind, line
                documented.append(name)
                repeats[name] = times[inside[-1][1]] if inside else 1
    assert set(documented) == set(HOOKS)
    assert documented == list(dict.fromkeys(called)), "the order of the calls"
    repeats["build_ensemble"] = 1  # "only where a new one is asked for"
    repeats["build_classifier"] = repeats["post_calibrate"] = 2  # one for each expert
    assert repeats == {name: called.count(name) for name in HOOKS}


def test_kinds_are_explained():
    assert set(table(sections(ARCHITECTURE)["Kinds"])) == {hook.kind for hook in HOOKS.values()}


def test_every_property_of_the_context_is_documented():
    public = {name for name in vars(Context) if not name.startswith("_")}
    assert {name.partition("(")[0] for name in table(sections(ARCHITECTURE)["Context"])} == public


def test_records_are_documented():
    from dataclasses import fields

    text = sections(ARCHITECTURE)["Records"]
    batch, features = text.split("`Features`, at a tap")
    assert list(table(batch)) == [field.name for field in fields(ltcore.Batch)]
    assert list(table(features)) == [field.name for field in fields(ltcore.Features)]


def test_needs_are_documented():
    from ltcore.plan.checks import NEEDS

    text = sections(ARCHITECTURE)["What a method requires"]
    assert all(f"`{word}`" in text for word in NEEDS)


WINGS = sorted(path.parent for path in (ROOT / "ltcore").glob("*/__init__.py"))


def test_the_wings_are_documented_in_the_order_that_is_checked():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in config["contracts"] if contract["type"] == "layers")
    wings = [layer for layer in reversed(layers) if (ROOT / "ltcore" / layer).is_dir()]
    rows = [re.match(r"\| \[(\w+)\]", line) for line in sections(ARCHITECTURE)["Wings"].splitlines()]
    assert [row[1] for row in rows if row] == wings and sorted(wings) == [path.name for path in WINGS]
    alone = {path.name for path in (ROOT / "ltcore").glob("*.*")}
    assert alone == {"__init__.py", "__main__.py", "errors.py", "ranks.py", "seeding.py", "untrusted.py", "py.typed"}


@pytest.mark.parametrize("wing", WINGS, ids=lambda path: path.name)
def test_a_wings_readme_says_what_each_file_does(wing):
    text = (wing / "README.md").read_text()
    assert text.startswith(f"# {wing.name}\n") and len(text.splitlines()) <= 16
    assert "May come in: " in text and "May import: " in text
    modules = {path.stem for path in wing.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"`(?:\w+/)?(\w+)`", text))
    assert modules <= named, sorted(modules - named)


def test_the_block_at_the_head_is_the_specifications(make_hooks):
    assert make_hooks.architecture(ARCHITECTURE) == ARCHITECTURE, "run: python docs/make_hooks.py"


def test_run_directory_and_result(write_recipe, tmp_path):
    recipe = write_recipe(
        data="{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, holdout: 1}",
        methods={"tau_norm": {}},
        calibrate=["tau_norm"],
        unsure={"precision": 0.5, "least": 1},
        select={"options": {"methods.tau_norm.options.tau": [0.0, 1.0]}, "holdout": 1},
        stages="[{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}, validate_every: 1}]",
    )
    result, directory = run(recipe, tmp_path)
    titles = sections(ARCHITECTURE)
    assert {name.rstrip("/") for name in table(titles["A run's directory"])} == {p.name for p in directory.iterdir()}
    line = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])  # of a method that logs nothing
    assert set(re.findall(r"`(\w+)`", table(titles["A run's directory"], 1)["metrics.jsonl"])) == {*line, "methods"}
    with np.load(directory / "predictions.npz") as predictions:
        named = re.findall(r"`(\w+)`", table(titles["A run's directory"], 1)["predictions.npz"])
        assert named == [*predictions, "names"]  # which images in memory have not
    whole, stage, figures = titles["result.json"].split("\n\n| field")[1:]
    assert list(table("| field" + whole)) == list(result)
    assert list(table("| field" + stage)) == list(result["stages"][0])
    for found in (result["before_calibration"], result["after_calibration"], result["stages"][0]["validation"]):
        assert list(table("| field" + figures)) == list(found)


# -- hooks.md ----------------------------------------------------------------------------------------------------------


HOOK_SECTIONS = {title.strip("`"): text for title, text in sections(HOOKS_PAGE).items() if title.startswith("`")}


@pytest.fixture
def make_hooks():
    spec = importlib.util.spec_from_file_location("make_hooks", ROOT / "docs" / "make_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_writes(make_hooks):
    assert make_hooks.page() == HOOKS_PAGE, "run: python docs/make_hooks.py"
    assert list(HOOK_SECTIONS) == list(HOOKS)
    first = HOOK_SECTIONS["compute_loss"].strip().splitlines()[0]
    takes = "logits: Tensor, targets: Tensor, features: Features, context: Context"
    assert first == f"**one** · `compute_loss({takes}) -> Tensor` · since 1.0"


def test_the_page_names_what_a_version_has_changed(make_hooks, monkeypatch):
    monkeypatch.setattr(interface, "INTERFACE", interface.Version(2, 1))
    monkeypatch.setattr(interface, "ADDED", {"compute_loss.targets": interface.Version(1, 3)})
    old = interface.Deprecation(interface.Version(1, 2), interface.Version(3, 0), "use compute_loss")
    monkeypatch.setitem(interface.DEPRECATED, "adjust_logits", old)
    change = interface.Change(interface.Version(2, 0), "return a list")
    monkeypatch.setitem(interface.CHANGED, "mix_inputs.batch", change)
    found = sections(make_hooks.page())
    rows = table(found["The interface's version"], 1)
    assert rows == {
        "1.3": "argument 'targets' of hook 'compute_loss' was added",
        "1.2": "hook 'adjust_logits' is deprecated, and goes with 3.0",
        "2.0": "argument 'batch' of hook 'mix_inputs' was changed",
    }
    assert "Argument 'targets' of hook 'compute_loss' is there since 1.3." in found["`compute_loss`"]
    gone = "Hook 'adjust_logits' is deprecated since 1.2 and goes with 3.0: use compute_loss."
    assert gone in found["`adjust_logits`"] and "changed in 2.0: return a list." in found["`mix_inputs`"]


@pytest.mark.parametrize("name", HOOKS)
def test_example_runs(name, offer_methods, write_recipe, tmp_path, monkeypatch):
    (source,) = blocks(HOOK_SECTIONS[name], "python")
    ast.parse(source)
    module = types.ModuleType("example")  # by which pickle finds its functions
    monkeypatch.setitem(sys.modules, "example", module)
    space = vars(module)
    exec(blocks(HOOKS_PAGE, "python")[0], space)
    before = set(space)
    exec(source, space)
    made = [space[key] for key in space.keys() - before if isinstance(space[key], type)]
    (method,) = [kind for kind in made if issubclass(kind, Method)]
    entry = Entry("example", catalogue.Offer("example", "example:Example", "ltcore-example", "0.1.0"), method())
    assert [answer.entry for answer in implementations([entry])[name]] == [entry]

    offer_methods(example=method, split=CheckBackbone)
    data = {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}
    stage = {"name": "joint", "epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.01}}
    parts = {"data": {"use": "synthetic", "options": data, "holdout": 1}, "stages": [stage]}
    if name == "build_ensemble":
        parts["backbone"] = {"use": "split", "options": {"experts": 2}}
    if name == "build_data":
        parts["data"] = {"use": "example"}
    elif name == "build_backbone":
        parts["backbone"] = {"use": "example"}
    else:
        parts["methods"] = {"example": {}}
        if name == "post_calibrate":
            parts["calibrate"] = ["example"]
        elif name == "adapt_backbone":
            parts["backbone"] = {"use": "timm", "options": {"model": "test_resnet"}, "adapt": ["example"]}
            stage["trainable"] = ["example", "classifier"]
        else:
            stage["methods"] = ["example"]
    run(write_recipe(**parts), tmp_path)


# -- recipes.md --------------------------------------------------------------------------------------------------------

SCHEDULES = (recipe.ConstantSchedule, recipe.StepSchedule, recipe.MultistepSchedule, recipe.CosineSchedule)
KEYS = {
    "The recipe": (recipe.Recipe,),
    "published": (recipe.Published,),
    "Data": (recipe.Data,),
    "Imbalance": (recipe.Imbalance,),
    "Transform": (recipe.Transform,),
    "Normalize": (recipe.Normalize,),
    "Backbone": (recipe.Backbone,),
    "Methods": (recipe.MethodEntry,),
    "Stages": (recipe.Stage,),
    "optimizer": (recipe.Optimizer,),
    "schedule": SCHEDULES,
    "select": (recipe.Select,),
}


@pytest.mark.parametrize("title", KEYS)
def test_every_key_with_its_default(title):
    text = sections(RECIPES)[title]
    text = text[text.index("| key |") :]
    documented = table(text, 1)
    fields = [item for model in KEYS[title] for item in model.model_fields.items()]
    if title == "The recipe":
        assert documented.pop("extends") == "`null`" and documented.pop("name") == "the file's name"
        fields = [(name, field) for name, field in fields if name != "name"]
    assert set(documented) == {name for name, _ in fields}
    for name, shown in documented.items():
        allowed = []
        for model_field in (field for key, field in fields if key == name):
            if model_field.is_required():
                allowed.append("*required*")
            else:
                default = model_field.default
                value = parse(shown.strip("`"), str).plain() if shown.startswith("`") else None
                if isinstance(default, recipe.BaseModel):
                    default, value = default.model_dump(), type(default)(**value).model_dump()
                allowed.append(shown if value == default and shown.startswith("`") else repr(default))
        assert shown in allowed, f"{name}: {shown}, and the schema has {allowed}"


def test_schedule_names_and_their_keys():
    rows = table(sections(RECIPES)["schedule"], 1)
    assert list(rows) == [kind.model_fields["name"].annotation.__args__[0] for kind in SCHEDULES]
    for keys, kind in zip(rows.values(), SCHEDULES, strict=True):
        assert set(re.findall(r"`(\w+)`", keys)) == set(kind.model_fields) - {"name", "warmup_epochs"}


# -- the YAML of all pages ---------------------------------------------------------------------------------------------

SNIPPETS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    if page.name not in ("write_a_plugin.md", "a_module_that_trains.md")  # test_publishing.py, test_module_page.py
    for number, text in enumerate(blocks(page.read_text(), "yaml"))
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_yaml_snippet(text, tmp_path, monkeypatch):
    found = parse(text, lambda line: f"snippet:{line}").plain()
    if not isinstance(found, dict) or set(found) - {*recipe.Recipe.model_fields, "extends"}:
        return  # some other YAML; it parses
    for key, entry in (found.get("methods") or {}).items():
        entry = entry or {}
        if entry.get("use") == "./mine.py:Mine":
            return  # tests/test_unpackaged.py
        kind = catalogue.load(catalogue.find(entry.get("use") or key))
        kind.Options.model_validate(entry.get("options") or {})
    monkeypatch.setenv("LTCORE_DATA", str(tmp_path))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    if "extends" in found:
        folder = tmp_path if (tmp_path / found["extends"]).exists() else tmp_path / "recipes"
    else:
        folder, missing = (
            tmp_path,
            {"data": "{use: synthetic}", "backbone": "{use: timm, options: {model: test_resnet}}"},
        )
        if found.get("methods") and "stages" not in found:
            return  # a methods table alone: its options are right
        missing["stages"] = "[{name: joint, epochs: 1, optimizer: {lr: 0.1}}]"
        text += "".join(f"\n{key}: {value}\n" for key, value in missing.items() if key not in found)
    (folder / "snippet.yaml").write_text(text)
    make_plan(load_recipe(folder / "snippet.yaml"))


# -- data.md -----------------------------------------------------------------------------------------------------------


def test_every_data_set_of_core_is_documented():
    core = [offer for offer in catalogue.offers() if offer.distribution == "ltcore"]
    kinds = {offer.name: catalogue.load(offer) for offer in core}
    sets = {name: kind for name, kind in kinds.items() if hasattr(kind, "build_data")}
    assert set(table(DATA)) == set(sets)
    for kind in sets.values():
        assert all(
            f"`{option}`" in DATA or f"{option}:" in DATA or f".{option}=" in DATA
            for option in kind.Options.model_fields
        )
    for name, kind in sets.items():
        if hasattr(kind, "size"):
            assert table(DATA, 5)[name] == kind.size


def test_totals_of_the_long_tail():

    from ltcore.contract.imbalance import Imbalance, long_tailed_counts

    text = sections(DATA)["The long tail"]
    for column, classes in ((1, 10), (2, 100)):
        for factor, total in table(text, column).items():
            rule = Imbalance(kind="exponential", factor=float(factor))
            assert long_tailed_counts(rule, np.full(classes, 50000 // classes)).sum() == int(total)


def test_a_folder_of_images_becomes_an_npz(tmp_path, monkeypatch):
    from PIL import Image

    from ltcore.training.data import read_data

    for split, label, count in [("train", "cat", 3), ("train", "dog", 4), ("test", "cat", 2), ("test", "dog", 2)]:
        folder = tmp_path / "images" / split / label
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (70, 50), (number, 0, 0)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = sections(DATA)["One file"]
    exec(blocks(text, "python")[0], {})
    Path("own.yaml").write_text(blocks(text, "yaml")[0])
    loaded = load_recipe("own.yaml")
    data = read_data(loaded, make_plan(loaded).answers["data"])
    assert data.class_counts.tolist() == [1, 2] and data.train.images.shape[1:] == (3, 64, 64)
    assert data.val is not None and len(data.test) == 4
    from ltcore.data.npz import _read

    keys = re.findall(r"`(\w+_(?:images|labels))`", text)
    assert list(dict.fromkeys(keys)) and set(_read(Path("images.npz"))) <= set(keys)


def test_a_folder_of_images_and_lists_of_them(tmp_path, monkeypatch):
    from PIL import Image

    from ltcore.data.image_files import HEIF_SUFFIXES, IMAGE_SUFFIXES
    from ltcore.data.image_folder import ImageFolder
    from ltcore.data.image_list import ImageList

    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (70, 50), (number, 0, 0)).save(tmp_path / "images" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = sections(DATA)["One folder per class"]
    assert set(re.findall(r"`(\.\w+)`", text)) == IMAGE_SUFFIXES | set(HEIF_SUFFIXES)
    options = yaml.safe_load(blocks(text, "yaml")[0])["data"]["options"]
    splits = ImageFolder(ImageFolder.Options(**options)).build_data()
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [14, 2, 4]
    for name in ("train", "val", "test"):
        files, targets = getattr(splits, name).files, getattr(splits, name).targets
        lines = [f"{file.decode()} {label}\n" for file, label in zip(files, targets, strict=True)]
        (tmp_path / "images" / f"{name}.txt").write_text("".join(lines))
    options = yaml.safe_load(blocks(sections(DATA)["Split lists"], "yaml")[0])["data"]["options"]
    same = ImageList(ImageList.Options(**options)).build_data()
    assert same.test.files.tolist() == splits.test.files.tolist() and same.class_names == splits.class_names


@pytest.mark.parametrize(
    "listed", ["train/airfield/1.jpg", "train/apartment_building-outdoor/1.jpg", "val/airfield/1.jpg"]
)
def test_other_layouts_of_split_lists(listed):
    from ltcore.data.layouts import alternatives

    row = table(sections(DATA)["Split lists"], 1)[listed]
    named = [name for name in re.findall(r"`([^`]+)`", row) if not name.endswith("...")]
    assert set(named) <= set(alternatives(listed, "")) and len(named) >= 1


# -- commands.md -------------------------------------------------------------------------------------------------------


def test_the_commands_are_what_the_script_writes():
    import runpy

    page = (ROOT / "docs" / "commands.md").read_text()
    assert runpy.run_path(str(ROOT / "docs" / "make_commands.py"))["page"]() == page, (
        "run: python docs/make_commands.py"
    )


def test_the_commands_page_has_what_each_help_says(cli):
    """Nothing of argparse's own output is left out: each option and each argument."""
    found = sections((ROOT / "docs" / "commands.md").read_text())
    found.pop("Commands")
    assert {"ltcore run", "ltcore recipes copy", "ltcore docs", "ltcore hooks"} <= set(found)
    for title, text in found.items():
        said = cli(*title.split()[1:], "--help").out
        options = set(re.findall(r"^  (?:-\w(?: [A-Z.]+)?, )?(--[\w-]+)", said, re.MULTILINE)) - {"--help", "--debug"}
        assert options == set(re.findall(r"^\| `[^`]*?(--[\w-]+)", text, re.MULTILINE)), title
        places = re.findall(r"^  \[?([A-Z]+)\]?(?:  |$)", said.partition("positional arguments:")[2], re.MULTILINE)
        assert all(re.search(rf"^\| `\[?{place}\b", text, re.MULTILINE) for place in places if place != "COMMAND"), (
            title
        )


# -- the rest ----------------------------------------------------------------------------------------------------------


def slug(title):
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        if anchor:
            assert anchor in {slug(title) for title in sections(other.read_text())}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_pages_parses(page):
    for source in blocks(page.read_text(), "python"):
        ast.parse(textwrap.dedent(source))


def test_changelog_names_the_hooks():
    assert set(HOOKS) <= set(re.findall(r"`(\w+)`", sections((ROOT / "CHANGELOG.md").read_text())["Hooks"]))


def test_contributing_installs_every_plugin():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"-e plugins/{path.parent.name}" in text for path in ROOT.glob("plugins/*/pyproject.toml"))


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["title"] == "ltcore" and citation["message"]
    assert citation["authors"] and citation["version"] == ltcore.__version__ and citation["license"] == "Apache-2.0"
    assert len(citation["references"]) == 5
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all(
            "name" in author or {"family-names", "given-names"} <= set(author) for author in reference["authors"]
        )


def test_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))


def test_the_readmes_claims_are_those_of_their_page():
    rows = re.findall(r"^\| (?:OFA|SAFA|STG|GLAG|CDT) \| .*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    page = (ROOT / "results" / "claims.md").read_text().splitlines()
    assert len(rows) == 9 and set(rows) <= set(page)
