"""One table of figures and shot groups, held against the records, the places that show them, and the documentation."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import ltcore
from ltcore.compare import compare
from ltcore.compare.text import render
from ltcore.contract import figures, result
from ltcore.contract.figures import DIAGNOSTICS, FIGURES, PUBLISHED, SHOT_GROUPS, shot_group
from ltcore.contract.recipe import Published
from ltcore.data.histogram import COLORS
from ltcore.report.data import read_run
from ltcore.report.sections import GROUP_STYLES

ROOT = Path(__file__).parent.parent


def test_the_records_have_the_tables_names():
    assert list(result.Figures.__annotations__) == [*list(FIGURES)[:-1], "per_class_accuracy", "ece"]
    assert list(result.Diagnostics.__annotations__) == [*DIAGNOSTICS, "rounds"]
    assert get_args(figures.FigureName) == tuple(FIGURES) and get_args(figures.DiagnosticName) == tuple(DIAGNOSTICS)
    for shown in (figures.CONSOLE, figures.STAGE_LINE, figures.COMPARED, figures.CARD, PUBLISHED):
        assert set(shown) < set(FIGURES) and len(set(shown)) == len(shown)


def test_every_number_of_images_is_in_one_shot_group():
    for count in range(1000):
        members = [g.name for g in SHOT_GROUPS if count >= g.fewest and (g.most is None or count <= g.most)]
        assert members == [shot_group(count)]
    assert [(group.rule, group.words) for group in SHOT_GROUPS] == [
        ("> 100", "more than 100"),
        ("20..100", "20 to 100"),
        ("< 20", "fewer than 20"),
    ]
    names = [group.name for group in SHOT_GROUPS]
    assert list(COLORS) == list(GROUP_STYLES) == list(get_args(figures.ShotName)) == names


def test_the_documentation_has_the_names_and_thresholds():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for group in SHOT_GROUPS:
        (row,) = re.findall(rf"^\| `{group.name}` \|.*$", page, re.MULTILINE)
        assert f"{group.words} training images" in row
    many, _, few = SHOT_GROUPS
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"Few-shot classes here have {few.words} training images, many-shot classes {many.words}." in readme
    (row,) = re.findall(r"^\| `--metric METRIC`.*$", (ROOT / "docs" / "compare.md").read_text(), re.MULTILINE)
    assert re.findall(r"`(\w+)`", row.partition("By default")[2]) == list(figures.COMPARED)
    assert [name for name in Published.model_fields if name in FIGURES] == list(PUBLISHED)


def test_the_tables_import_nothing_heavy():
    code = (
        "import sys, ltcore.contract.figures, ltcore.contract.result, ltcore.cli.results; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"


def holds(found, record):
    """Whether a dictionary has all that a record must have, and nothing that it does not know."""
    return record.__required_keys__ <= set(found) <= set(record.__annotations__)


def test_a_result_is_what_the_records_say(digits_run):
    found = json.loads((digits_run / "result.json").read_text())
    assert holds(found, result.Result)
    for stage in found["stages"]:
        assert holds(stage, result.StageResult) and holds(stage["diagnostics"], result.Diagnostics)
    for evaluated in (found["before_calibration"], found["after_calibration"], *(s["test"] for s in found["stages"])):
        assert holds(evaluated, result.Figures)


def test_a_result_without_what_may_be_missing_opens_everywhere(digits_run, tmp_path):
    path = tmp_path / "old"
    shutil.copytree(digits_run, path)
    found = json.loads((path / "result.json").read_text())
    whole = {key: found[key] for key in result.Result.__required_keys__}
    needed = result.StageResult.__required_keys__ | {"test"}
    whole["stages"] = [{key: stage[key] for key in needed} for stage in found["stages"]]
    assert whole["stages"] != found["stages"]
    (path / "result.json").write_text(json.dumps(whole))
    saved = ltcore.load(path)
    assert saved.metrics == found["after_calibration"] and saved.recipe.name == found["recipe"]
    assert f"{100 * saved.metrics['top1']:.1f}" in render(compare([path], stages=True), "table")
    run = read_run(path)
    assert run.counts == found["class_counts"] and run.figures[-1][2] == found["after_calibration"]
