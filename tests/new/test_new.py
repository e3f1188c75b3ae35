"""What `ltcore new` writes: it passes its own tests, `ltcore check`, ruff, mypy and a training as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.interface import INTERFACE
from ltcore.discovery import catalogue
from ltcore.errors import RecipeError
from ltcore.new import LICENSES, version_range, write_plugin
from ltcore.new.names import ALONE, Names, check_hooks
from ltcore.new.parts import KINDS
from ltcore.new.source import import_block

TOGETHER = [hook for hook in HOOKS if hook not in ALONE]
#: Name of the method -> its hooks.
MADE = {
    **{f"try_{hook}": [hook] for hook in HOOKS if hook != "on_run_start"},  # which does nothing alone
    "try_on_run_start": ["on_run_start", "adjust_logits"],
    "try_all_of_them": TOGETHER,
    "try_a_long_name_of_forty_letters_at_most": ["auxiliary_losses", "augment_features", "compute_loss"],
}
#: Name of the method -> its kind, for those that are more than one hook.
KINDS_MADE = {f"try_{kind.replace('-', '_')}": kind for kind, part in KINDS.items() if "/" in part}
#: A distribution of several methods.
SEVERAL = ("a_shift=calibration", "a_noise=augment_features+adjust_logits", "a_bank=feature-bank")
#: What `test_a_file_is_taken_over` takes over.
OWN = Path(__file__).parent / "own_method.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each of `MADE`, and one beside it where they are found as installed distributions are."""
    root = tmp_path_factory.mktemp("made")
    site = root / "site"
    site.mkdir()
    for name, hooks in MADE.items():
        write_plugin(name, hooks, root / name)
        install(root / name, site)
    for name, kind in KINDS_MADE.items():
        write_plugin(name, out=root / name, kind=kind)
        install(root / name, site)
    write_plugin("try_several", out=root / "try_several", methods=SEVERAL)
    install(root / "try_several", site)
    write_plugin(None, out=root / "own_thing", taken=[f"{OWN}:OwnThing"])
    install(root / "own_thing", site)
    write_plugin("try_both", out=root / "try_both", methods=["b_loss=loss"], taken=[f"{OWN}:Other"])
    install(root / "try_both", site)
    return root


def install(folder, site):
    """What ``pip install -e`` leaves: the metadata, and the way to the source."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["ltcore.plugins"]
    (info / "entry_points.txt").write_text("[ltcore.plugins]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    (site / f"{project['name']}.pth").write_text(f"{folder / 'src'}\n")


def python(made, *words, cwd=None):
    """Run Python where everything that was made is installed."""
    start = f"import site, sys; site.addsitedir({str(made / 'site')!r}); sys.argv = sys.argv[1:]; "
    start += "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", start, *map(str, words)],
        cwd=cwd or made,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_hook_can_be_asked_for(made):
    for name, hooks in MADE.items():
        method = (made / name / "src" / f"ltcore_{name}" / "method.py").read_text()
        assert re.findall(r"@hookimpl\n(?:    @.*\n)?    def (\w+)\(", method) == [h for h in HOOKS if h in hooks]
        assert f'    interface = "{INTERFACE}"\n' in method


def test_ruff_finds_nothing_and_would_change_nothing(made):
    for words in (["check"], ["format", "--check"]):
        code, text = python(made, "ruff", *words, "--no-cache", ".")
        assert code == 0, text


@pytest.mark.slow
def test_its_own_tests_of_the_mathematics_pass(made):
    tests = list(made.glob("*/tests/test_*_functional.py"))
    assert len(tests) == len(MADE) + len(KINDS_MADE) + len(SEVERAL) + 1
    code, text = python(made, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests)
    assert code == 0 and int(re.search(r"(\d+) passed", text)[1]) > len(MADE), text


@pytest.mark.slow
def test_its_recipe_trains(made, tmp_path):
    """One here, all of them below, as with the tests of the method."""
    name = "try_all_of_them"
    (recipe,) = (made / name / "recipes").iterdir()
    code, text = python(made, "ltcore", "run", recipe, "--set", "stages.joint.epochs=1", "--out", tmp_path)
    assert code == 0 and "results:" in text, text


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MADE, *KINDS_MADE, "own_thing"])
def test_check_and_the_whole_recipe(made, name, tmp_path):
    code, text = python(made, "ltcore", "check", name)
    assert code == 0 and "1 method checked, all passed" in text, text
    code, text = python(made, "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=made / name)
    assert code == 0, text
    (recipe,) = (made / name / "recipes").iterdir()
    code, text = python(made, "ltcore", "run", recipe, "--out", tmp_path)
    assert code == 0 and "results:" in text, text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["try_several", "try_both"])
def test_check_and_the_recipes_of_several(made, name, tmp_path):
    methods = tomllib.loads((made / name / "pyproject.toml").read_text())["project"]["entry-points"]["ltcore.plugins"]
    code, text = python(made, "ltcore", "check", *methods, "--without", "pairs")
    assert code == 0 and f"{len(methods)} methods checked, all passed" in text, text
    for recipe in (made / name / "recipes").iterdir():
        code, text = python(made, "ltcore", "run", recipe, "--out", tmp_path)
        assert code == 0 and "results:" in text and "warning" not in text, text


def test_several_methods_are_one_distribution(made):
    project = tomllib.loads((made / "try_several" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ltcore-try-several"
    assert project["entry-points"]["ltcore.plugins"] == {
        "a_shift": "ltcore_try_several.a_shift:AShift",
        "a_noise": "ltcore_try_several.a_noise:ANoise",
        "a_bank": "ltcore_try_several.a_bank:ABank",
    }
    card = (made / "try_several" / "README.md").read_text()
    assert all(f"## `{name}`\n" in card for name in ("a_shift", "a_noise", "a_bank"))
    rows = {row["name"]: row for row in json.loads(python(made, "ltcore", "plugins", "--json")[1])}
    assert rows["a_noise"]["hooks"] == ["augment_features", "adjust_logits"] and not rows["a_bank"]["broken"]


def test_every_kind_can_be_asked_for(tmp_path):
    for kind in KINDS:
        write_plugin("mynoise", out=tmp_path / kind, kind=kind)
        method = (tmp_path / kind / "src" / "ltcore_mynoise" / "method.py").read_text()
        assert "@hookimpl" in method


def test_the_help_names_the_kinds(cli):
    assert cli("new", "--help").out.replace("\n", " ").count(", ".join(KINDS)) == 1


def test_a_recipe_has_what_the_method_requires(made):
    recipe = (made / "try_trained_module" / "recipes" / "digits_lt_try_trained_module.yaml").read_text()
    assert "trainable: [backbone, classifier, try_trained_module]" in recipe
    recipe = (made / "own_thing" / "recipes" / "digits_lt_own_thing.yaml").read_text()
    assert "holdout: 1" in recipe and "name: representation" in recipe and "options: {size: 0.5}" in recipe
    assert "trainable: [classifier, own_thing]" in recipe


def test_a_file_is_taken_over(made):
    folder = made / "own_thing"
    assert (folder / "src" / "ltcore_own_thing" / "method.py").read_text() == OWN.read_text()
    package = (folder / "src" / "ltcore_own_thing" / "__init__.py").read_text()
    assert '__all__ = ["OwnThing", "OwnThingOptions"]' in package
    card = (folder / "README.md").read_text()
    assert "| `size` | *required* | How large the term is |" in card and "`own_parameters_train`" in card
    both = tomllib.loads((made / "try_both" / "pyproject.toml").read_text())["project"]
    assert both["entry-points"]["ltcore.plugins"] == {
        "b_loss": "ltcore_try_both.b_loss:BLoss",
        "other": "ltcore_try_both.other:Other",
    }


#: Added to a method: an option read through a property of its type, and one of another type.
PROPERTIES = '''
    @property
    def read(self) -> {kind}:
        """An option."""
        return self.options.{option}

    @property
    def misread(self) -> bytes:
        """An option."""
        return self.options.{option}
'''


@pytest.mark.slow
def test_strict_mypy_passes_and_knows_the_type_of_an_option(made, tmp_path):
    expected = []
    for name in MADE:
        shutil.copytree(made / name / "src", tmp_path / name)
        path = tmp_path / name / f"ltcore_{name}" / "method.py"
        text = path.read_text()
        if found := re.search(r"^class \w+\(Options\):\n.*\n\n    (\w+): (\w+) = ", text, re.MULTILINE):
            option, kind = found.groups()
        else:
            option, kind = "level", "int"
            added = 'class Added(Options):\n    """Options."""\n\n    level: int = 1\n\n\nclass '
            text = re.sub(r"^class (\w+)\(Method\)", rf"{added}\1(Method[Added])", text, count=1, flags=re.MULTILINE)
            text = text.replace("options: Options |", "options: Added |")
            text = text.replace("\nfrom ltcore import ", "\nfrom ltcore import Options\nfrom ltcore import ", 1)
        text += PROPERTIES.format(option=option, kind=kind)
        path.write_text(text)
        line = text.count("\n")
        expected.append(f'{path.name}:{line}: error: Incompatible return value type (got "{kind}", expected "bytes")')
    folders = [tmp_path / name for name in MADE]
    code, text = python(made, "mypy", "--strict", "--cache-dir", tmp_path / "cache", *folders)
    errors = [
        line.rpartition("/")[2].partition("  [return-value]")[0] for line in text.splitlines() if ": error" in line
    ]
    assert code == 1 and sorted(errors) == sorted(expected), text


def test_card_and_package_agree(made, tmp_path):
    for name, hooks in MADE.items():
        card = (made / name / "README.md").read_text()
        assert all(f"`{hook}`" in card for hook in hooks) and f"pip install {Names.of(name).distribution}" in card
        recipe = next((made / name / "recipes").iterdir())
        assert recipe.read_text() in card and f"recipes/{recipe.name}" in card
        for path in write_plugin(name, hooks, tmp_path / name):
            assert not re.search(r"@[A-Z]+@", path.read_text()), path


@pytest.mark.parametrize("license", LICENSES)
def test_licences(license, tmp_path):
    write_plugin("mynoise", license=license, author="A. Person", out=tmp_path / "x")
    project = tomllib.loads((tmp_path / "x" / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["authors"]) == (LICENSES[license], [{"name": "A. Person"}])
    text = (tmp_path / "x" / "LICENSE").read_text()
    assert ("Apache License" in text) if license == "apache-2.0" else ("A. Person" in text)
    assert project["dependencies"] == ["ltcore>=0.1,<0.2"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_to_do_next(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("new", "my-noise", "--hook", "compute_loss", "--hook", "augment_features")
    assert (done.code, done.err) == (0, "")
    for line in ("pip install -e 'ltcore-my-noise[dev]'", "ltcore check my_noise"):
        assert f"    {line}\n" in done.out
    listed = [Path(line.strip()) for line in done.out.split("\n\n")[0].splitlines()]
    assert sorted(listed) == sorted(p for p in Path("ltcore-my-noise").rglob("*") if p.is_file())
    again = cli("new", "my-noise")
    again.is_one_message(2, "ltcore-my-noise is there already", "--out", "--force")
    assert cli("new", "my-noise", "--force").code == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["2good"], ["'2good' cannot be a method's name", "'my_noise'"]),
        (["a" * 41], ["up to 40"]),
        (["class"], ["collide"]),
        (["method"], ["collide"]),
        (["focal"], ["'focal' is taken by ltcore-focal"]),
        (["digits_lt"], ["'digits_lt' is taken by ltcore"]),
        (["x", "--hook", "augment_feature"], ["no hook 'augment_feature'", "did you mean 'augment_features'?"]),
        (["x", "--hook", "on_run_start"], ["on_run_start alone does nothing", "too"]),
        (["x", "--hook", "build_data", "--hook", "compute_loss"], ["build_data", "'data.use'", "of its own"]),
        (["x", "--kind", "lose"], ["there is no kind 'lose'; did you mean 'loss'? there is 'loss', 'margin'"]),
        (["x", "--kind", "loss", "--hook", "compute_loss"], ["give one of --hook, --kind, --method and --from"]),
        (["x", "--kind", "loss", "--method", "a=loss"], ["give one of --hook, --kind, --method and --from"]),
        ([], ["give the method a NAME"]),
        (["--method", "a=loss"], ["give the distribution of several methods a NAME"]),
        (["x", "--method", "loss"], ["--method loss: write NAME=KIND or NAME=HOOK+HOOK"]),
        (["x", "--method", "a=lose"], ["--method a=lose: there is no kind and no hook 'lose'; did you mean 'loss'?"]),
        (["x", "--method", "focal=loss"], ["'focal' is taken by ltcore-focal"]),
        (["x", "--method", "a=loss", "--method", "a=margin"], ["two methods would be called 'a'"]),
        (["Big Set", "--method", "a=loss"], ["'Big Set' cannot be a method's name"]),
        (["--from", "./no.py:Mine"], ["no.py: there is no such file"]),
        (["--from", "./no.py"], ["--from ./no.py: give a file and a class in it, such as ./mine.py:Mine"]),
        (["--from", "focal"], ["--from focal: give a file and a class in it"]),
        (["focal", "--from", f"{OWN}:OwnThing"], ["'focal' is taken by ltcore-focal"]),
        (["--from", f"{OWN}:Field"], ["it is no class that derives from ltcore.Method"]),
        (["--from", f"{OWN}:Hookless"], ["it implements no hook"]),
        (["--from", f"{OWN}:Unmade"], ["it cannot be made with its `checked_with`"]),
    ],
)
def test_what_cannot_be_is_one_message(cli, words, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli("new", *words)
    kept = "".join(line for line in ended.err.splitlines(True) if not line.startswith("running "))
    ended._replace(err=kept).is_one_message(2, *parts)
    assert not list(tmp_path.iterdir())


def test_the_prefix_of_a_distribution_is_left_out():
    assert Names.of("ltcore-my-noise") == Names.of("my_noise")
    assert Names.of("my_noise") == Names("my_noise", "ltcore_my_noise", "ltcore-my-noise", "MyNoise")


def test_a_name_of_ours_that_is_not_installed_is_taken(monkeypatch):
    monkeypatch.setattr(catalogue, "offers", list)
    with pytest.raises(RecipeError, match="'focal' is taken by ltcore-focal"):
        Names.of("focal")
    assert Names.of("mynoise").name == "mynoise"


def test_hooks_come_in_the_order_of_a_run_and_once():
    assert check_hooks(["compute_loss", "on_run_start", "compute_loss"]) == ["on_run_start", "compute_loss"]


@pytest.mark.parametrize(
    ("version", "allowed"), [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2")]
)
def test_range_of_versions(version, allowed):
    assert version_range(version) == allowed


def test_imports_are_merged_in_order():
    found = import_block(
        ["from torch import Tensor, nn", "import torch", "from ltcore_x.functional import f", "import math",
         "from torch import Tensor", "from ltcore import Method, hookimpl, Context"],
        "ltcore_x",
    )  # fmt: skip
    assert found == (
        "import math\n\nimport torch\nfrom ltcore import Context, Method, hookimpl\nfrom torch import Tensor, nn\n\n"
        "from ltcore_x.functional import f"
    )
