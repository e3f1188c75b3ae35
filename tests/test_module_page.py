"""docs/a_module_that_trains.md: every file of it is checked, every recipe trains."""

import re
from pathlib import Path

import pytest

from ltcore.discovery import catalogue
from ltcore.testing import conformance

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "a_module_that_trains.md").read_text()
#: File, its text, and the recipe that names it.
EXAMPLES = re.findall(r"^\*\*(\w+\.py)\*\*.*?```python\n(.*?)^```\n\n```yaml\n(.*?)^```", PAGE, re.M | re.S)
NAMES = [name for name, _, _ in EXAMPLES]


def test_no_block_is_left_out():
    assert len(EXAMPLES) == len(re.findall(r"^```python", PAGE, re.M)) == len(re.findall(r"^```yaml", PAGE, re.M)) == 5
    assert PAGE.count("```") == 2 * 2 * len(EXAMPLES)


def written(name, folder):
    """The file and the recipe, as the page has them; returns the recipe."""
    ((text, recipe),) = [(text, recipe) for other, text, recipe in EXAMPLES if other == name]
    (folder / name).write_text(text)
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_trains(name, cli, tmp_path):
    recipe = written(name, tmp_path)
    short = ["--set", "stages.joint.epochs=2"]
    short += ["--set", "methods.prototypes.options.start_epoch=1"] if name == "prototypes.py" else []
    ended = cli("run", recipe, *short, "--out", tmp_path / "runs")
    assert ended.code == 0 and "results:" in ended.out and "warning" not in ended.out, ended
    assert f"({name} unpackaged)" in cli("plan", recipe).out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_to_what_check_asks(name, tmp_path):
    written(name, tmp_path)
    kind = catalogue.load(catalogue.asked(f"{tmp_path / name}:{name.removesuffix('.py').capitalize()}"))
    report = conformance(kind)
    assert report.passed, str(report)


def test_the_taps_are_those_of_the_checks_network():
    from ltcore.networks.tap_probe import tap_shapes
    from ltcore.testing.parts import CheckBackbone

    network = CheckBackbone().build_backbone(in_channels=3)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d x]+) \|$", PAGE, re.M))
    assert rows == {tap: " x ".join(map(str, shape)) for tap, shape in tap_shapes(network, (3, 8, 8)).items()}
