"""Tables: their files, their cells as recipes, what we have of them, and how that is shown."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ltcore.errors import RecipeError, RunError
from ltcore.recipe.identity import digest, in_fp32
from ltcore.recipe.loading import load_recipe
from ltcore.sweeps.engine import Slots
from ltcore.sweeps.jobs import Job, code_of
from ltcore.tables.overview import overview
from ltcore.tables.pages import tone, write_pages
from ltcore.tables.records import FORMAT, Records, record_of, write_record
from ltcore.tables.running import run_cells
from ltcore.tables.state import States, counted
from ltcore.tables.table import Table
from ltcore.tables.text import FORMATS, notes, summary

ROOT = Path(__file__).parents[1]
BASE = """
name: base
data: {use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
methods: {focal: {options: {gamma: 2}}}
stages:
  - {name: first, epochs: 1, batch_size: 8, methods: [focal], optimizer: {name: sgd, lr: 0.05}}
  - {name: second, epochs: 1, batch_size: 8, trainable: [classifier], optimizer: {name: sgd, lr: 0.05}}
"""
TABLE = """
title: Methods on made data
source: 'A paper, table 1'
metric: error
decimals: 1
seeds: [0, 1]
recipe: '../recipes/{kind}.yaml'
changes: [stages.second.epochs=2]
note: the table's own note
columns:
  small: {label: small, group: Made, words: {kind: base}, changes: [stages.first.batch_size=4]}
  large: {label: large, group: Made, words: {kind: base}, note: of this column}
  other: {label: all, group: Other, words: {kind: base}, stage: first, metric: top1}
rows:
  focal: {label: Focal, printed: [12.5, {value: 10, sd: 0.5, many: 1, medium: 2, few: 3, top5: 4}, 80]}
  plain:
    label: Plain & simple
    changes: ['stages.first.methods-=focal']
    printed: [13, null, 70]
    cells: {small: {changes: [stages.first.epochs=3], note: three epochs}}
  oltr: {label: OLTR, waits: 'method: OLTR', printed: [50.0, 40, null]}
  own: {label: Ours}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "recipes" / "base.yaml").write_text(BASE)
    (tmp_path / "tables" / "own.yaml").write_text(TABLE)
    return tmp_path


@pytest.fixture
def table(folder):
    return Table(folder / "tables" / "own.yaml")


def record(folder, table, place, seed, top1, **more):
    """A record of a cell's run, made up."""
    cell = table.cells[place]
    loaded = table.loaded(cell)
    content = {
        "format": FORMAT,
        "recipe": "base",
        "digest": table.digest(cell),
        "seed": seed,
        "cells": [f"{table.name}/{cell.name}"],
        "figures": {"top1": top1, "many": 0.9, "medium": 0.8, "few": 0.7, "top5": None},
        "stages": {"first": {"top1": top1 - 0.1}},
        "code": code_of(loaded),
        "data": {},
        **more,
    }
    return write_record(folder / "records", content)


# -- cells as recipes --------------------------------------------------------------------------------------------------


def test_a_cell_is_the_recipe_with_the_changes_of_table_row_column_and_cell(folder, table):
    assert list(table.cells) == [
        *(("focal", name) for name in ("small", "large", "other")),
        *(("plain", name) for name in ("small", "other")),  # the paper prints nothing in the third
        *(("oltr", name) for name in ("small", "large")),
        *(("own", name) for name in ("small", "large", "other")),
    ]
    cell = table.cells["plain", "small"]
    recipe = table.loaded(cell).recipe
    assert [stage.epochs for stage in recipe.stages] == [3, 2] and recipe.stages[0].batch_size == 4
    assert recipe.methods == {} and cell.printed.value == 13 and cell.metric == "error"
    assert cell.notes == ("three epochs",) and table.cells["focal", "large"].notes == ("of this column",)
    other = table.cells["focal", "other"]
    assert (other.metric, other.stage) == ("top1", "first")
    assert table.cells["own", "small"].printed is None
    by_hand = load_recipe(
        folder / "recipes/base.yaml",
        [
            *("stages.second.epochs=2", "stages.first.methods=[]", "methods=null"),
            *("stages.first.batch_size=4", "stages.first.epochs=3"),
        ],
    )
    assert digest(by_hand) == table.digest(cell)
    assert len({table.digest(cell) for cell in table.cells.values() if not cell.waits}) == 4
    assert table.digest(table.cells["own", "large"]) == table.digest(table.cells["focal", "other"])


def test_its_command_trains_it(folder, table):
    cell = table.cells["plain", "small"]
    words = cell.command.split()
    assert words[:3] == ["ltcore", "run", str(folder / "recipes/base.yaml")] and words[3] == "--set"
    sets = [word.strip("'") for word in words[4::2]]
    assert digest(load_recipe(words[2], sets)) == table.digest(cell)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: error", "metric: eror", "own.yaml:4: metric: should be "),
        ("label: Focal, printed: [12.5, ", "label: Focal, printed: [", "row 'focal' prints 2 figures for 3 columns"),
        (
            "cells: {small:",
            "cells: {smal:",
            "row 'plain' has a cell in column 'smal', and the table",
        ),
        ("12.5", "112.5", "own.yaml:15: rows.focal.printed.0"),
        ("'../recipes/{kind}.yaml'", "/r.yaml", "should be the path of a recipe file from the table's folder"),
        ("rows:", "rowz:", "own.yaml:14: rowz: unknown key; did you mean 'rows'?"),
    ],
)
def test_a_wrong_file_is_one_message_with_its_line(folder, old, new, message):
    path = folder / "tables" / "own.yaml"
    path.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(RecipeError) as refusal:
        Table(path)
    assert message in str(refusal.value) and "own.yaml:" in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "stages.first.epochs=3",
            "stages.frist.epochs=3",
            "plain/small: {}:20: stages.frist.epochs=3: the recipe",
        ),
        ("stage: first", "stage: frist", "plain/other: the recipe has no stage 'frist'; did you mean 'first'?"),
        (
            "words: {kind: base}, changes",
            "words: {kind: bas}, changes",
            "bas.yaml: no such file; did you mean 'base",
        ),
        ("methods-=focal", "methods-=cdt", "has no 'cdt' to take away; there: 'focal'"),
    ],
)
def test_a_wrong_cell_is_named(folder, old, new, message):
    path = folder / "tables" / "own.yaml"
    path.write_text(TABLE.replace(old, new, 1))
    table = Table(path)
    with pytest.raises(RecipeError) as refusal:
        for place in (("plain", "small"), ("plain", "other")):
            table.loaded(table.cells[place])
    assert message.format(path) in str(refusal.value)


def test_a_row_without_a_recipe_is_refused(folder):
    path = folder / "tables" / "own.yaml"
    path.write_text(TABLE.replace("recipe: '../recipes/{kind}.yaml'", ""))
    with pytest.raises(RecipeError, match=r"own\.yaml:15: focal/small has no recipe; name one"):
        Table(path).cells  # noqa: B018


def test_rows_and_columns_are_chosen_by_name(table):
    assert list(table.chosen(["focal", "own"], ["small"])) == [("focal", "small"), ("own", "small")]
    with pytest.raises(RecipeError, match="the table has no row 'focl'; did you mean 'focal'"):
        table.chosen(["focl"])


# -- what we have of it ------------------------------------------------------------------------------------------------


def test_states(folder, table):
    record(folder, table, ("focal", "small"), 0, 0.85)
    record(folder, table, ("focal", "small"), 1, 0.89)
    path = record(folder, table, ("plain", "small"), 0, 0.5, code={"ltcore-cifar-resnet": "older"})
    (folder / "records" / "notes.json").write_text("[1]")
    found = States(Records([folder / "records"])).of(table)
    one = found["focal", "small"]
    assert (one.kind, one.seeds) == ("measured", [0, 1])
    assert one.ours.mean == pytest.approx(13) and one.ours.sd == pytest.approx(2 * 2**0.5)
    assert one.difference == pytest.approx(0.5) and one.beside["few"].mean == pytest.approx(30)
    assert found["focal", "large"].kind == "missing" and found["oltr", "small"].kind == "waits"
    stale = found["plain", "small"]
    assert stale.kind == "stale" and stale.why == "the code of ltcore-cifar-resnet has changed since"
    assert stale.records[0].path == path and stale.ours.mean == 50
    # A newer run of the same takes its place.
    record(folder, table, ("plain", "small"), 1, 0.6)
    again = States(Records([folder / "records"])).of(table)["plain", "small"]
    assert (again.kind, again.seeds, again.ours.mean) == ("measured", [1], 40)
    assert counted(list(found.values())) == {
        "cells": 10,
        "measured": 2,  # the row of our own is the first one's experiment
        "stale": 1,
        "running": 0,
        "failed": 0,
        "missing": 5,
        "waits": 2,
    }


def test_a_recipe_that_has_changed_makes_its_cells_stale(folder, table):
    record(folder, table, ("focal", "small"), 0, 0.85)
    (folder / "recipes" / "base.yaml").write_text(BASE.replace("gamma: 2", "gamma: 3"))
    found = States(Records([folder / "records"])).of(Table(table.path))["focal", "small"]
    assert (found.kind, found.why) == ("stale", "its recipe has changed since") and found.ours.mean == pytest.approx(15)


def test_a_figure_of_a_stage_is_that_stages(folder, table):
    record(folder, table, ("focal", "other"), 0, 0.85)
    found = States(Records([folder / "records"])).of(table)
    assert found["focal", "other"].ours.mean == pytest.approx(75)
    assert found["own", "large"].ours.mean == pytest.approx(15), "the same run, after its last stage"


def test_seeds_of_other_data_are_never_averaged(folder, table):
    for seed, (top1, data) in enumerate([(0.8, "a"), (0.2, "b"), (0.9, "a"), (0.85, None)]):
        record(folder, table, ("focal", "small"), seed, top1, data={"train": data} if data else {})
    found = States(Records([folder / "records"])).of(table)
    one = found["focal", "small"]
    assert one.seeds == [0, 2, 3] and one.ours.mean == pytest.approx(15)
    assert "of what is measured, seeds 1 had other data, and are left out: Focal, Ours" in notes(table, found)


@pytest.mark.parametrize("value", [7.3, -0.1, "0.9", True, [0.5]])
def test_a_figure_that_cannot_be_one_is_refused(folder, table, value):
    path = record(folder, table, ("focal", "small"), 0, 0.85)
    content = json.loads(path.read_text())
    content["stages"]["first"]["top1"] = value
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"is damaged: first\.top1 = .* is no figure between 0 and 1"):
        Records([folder / "records"])


def test_a_damaged_record_is_named(folder, table):
    path = record(folder, table, ("focal", "small"), 0, 0.85)
    content = json.loads(path.read_text())
    del content["figures"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf"{path.name}: is damaged: it lacks figures"):
        Records([folder / "records"])


# -- how it is shown ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cells(folder, table):
    for seed, top1 in enumerate((0.85, 0.89)):
        record(folder, table, ("focal", "small"), seed, top1)
    record(folder, table, ("focal", "large"), 0, 0.9)
    record(folder, table, ("plain", "small"), 0, 0.5, code={"ltcore-cifar-resnet": "older"})
    return States(Records([folder / "records"])).of(table)


def test_as_text(table, cells):
    lines = FORMATS["table"](table, cells).splitlines()
    assert lines[0] == "Methods on made data (A paper, table 1), in percent"
    assert lines[2].endswith("  Other all") and "Made small" in lines[2]
    assert "12.5 / 13.0 ± 2.8 (2)" in lines[3] and "10.0 ± 0.5 [1.0 2.0 3.0] (top-5 4.0) / 10.0 (1)" in lines[3]
    assert "13.0 / 50.0 (1)°" in lines[4] and "50.0 / x" in lines[5]
    assert summary(cells) == lines[-1] == "10 cells: 6 measured, 1 stale, 1 missing, 2 wait"
    assert notes(table, cells)[:3] == [
        "the table's own note",
        "waits for method: OLTR: OLTR",
        "stale: the code of ltcore-cifar-resnet has changed since: Plain & simple",
    ]
    assert "Plain & simple, Made small: three epochs" in notes(table, cells)


def test_only_rows_that_were_asked_for_are_shown(table, cells):
    few = {place: cells[place] for place in table.chosen(["plain"])}
    lines = FORMATS["markdown"](table, few).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| ", "| ---", "| Plain & simple"]


def test_as_markdown_and_latex(table, cells):
    markdown = FORMATS["markdown"](table, cells)
    assert "| Focal | 12.5 / 13.0 ± 2.8 (2) | 10.0 ± 0.5 \\[1.0 2.0 3.0\\]" in markdown
    latex = FORMATS["latex"](table, cells)
    assert r"\multicolumn{2}{c}{Made} & \multicolumn{1}{c}{Other} \\" in latex
    assert r"Plain \& simple & 13.0 / 50.0 (1)" in latex and latex.count(r"\\") == 6


def test_as_csv_and_json(table, cells):
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](table, cells))))
    assert len(rows) == 10 and rows[0]["printed"] == "12.5" and float(rows[0]["mean"]) == pytest.approx(13)
    assert rows[0]["seeds"] == "0 1" and rows[5]["why"] == "method: OLTR" and rows[1]["printed_few"] == "3.0"
    content = json.loads(FORMATS["json"](table, cells))
    first = content["cells"][0]
    assert first["measured"]["mean"] == pytest.approx(13) and first["state"] == "measured"
    assert first["digest"] == table.digest(table.cells["focal", "small"]) and len(first["records"]) == 2
    assert content["cells"][5]["command"] is None and content["counts"]["cells"] == 10


def test_the_overview_counts_and_shows_differences(table, cells):
    text = overview([(table, cells)])
    assert "| [own](../tables/own.yaml) | Methods on made data | 10 | 6 | 1 |  |  | 1 | 2 |" in text
    assert "| all |  | 10 | 6 | 1 | 0 | 0 | 1 | 2 |" in text and "| method: OLTR | 2 | own |" in text
    assert "| Focal | Made small | 12.5 | 13.0 ± 2.8 (2) | +0.5 |" in text


def test_the_overview_shows_a_table_of_ones_own_as_it_is(folder, table, cells):
    table.path.write_text(TABLE.replace("source: 'A paper, table 1'\n", ""))
    own = Table(table.path)
    text = overview([(own, States(Records([folder / "records"])).of(own))])
    assert "## Our own" in text and "\n### own\n\nMethods on made data, in percent.\n" in text
    assert "| Focal | 12.5 / 13.0 ± 2.8 (2) |" in text and "- the table's own note\n" in text


def test_what_a_person_notes_on_a_record_is_shown(folder, table):
    record(folder, table, ("focal", "small"), 0, 0.85, note="measured <before>")
    record(folder, table, ("focal", "small"), 1, 0.85, note="measured <before>")
    found = States(Records([folder / "records"])).of(table)
    told = json.loads(FORMATS["json"](table, found))["cells"]
    assert told[0]["record_notes"] == ["measured <before>"] and told[1]["record_notes"] == []
    write_pages([(table, found)], folder / "html")
    assert (folder / "html" / "own.html").read_text().count("<p>measured &lt;before&gt;</p>") >= 1


def test_colours_say_which_is_better(table, cells):
    assert tone(cells["focal", "large"]) == "even" and tone(cells["plain", "small"]) == "below3"
    assert tone(cells["oltr", "small"]) == "waits" and tone(cells["focal", "small"]) == "even"


def test_pages_hold_every_cell_and_no_address(table, cells, folder):
    table.path.write_text(TABLE.replace("Plain & simple", "</script><b>Plain</b>"))
    hostile = Table(table.path)
    found = States(Records([folder / "records"])).of(hostile)
    index = write_pages([(hostile, found)], folder / "html")
    page = (folder / "html" / "own.html").read_text()
    assert index.name == "index.html" and 'href="own.html"' in index.read_text()
    shares = [float(share) for share in re.findall(r'style="width: ([\d.]+)%"', index.read_text())]
    assert len(shares) > 1 and sum(shares) == pytest.approx(100, abs=0.02 * len(shares)), "a bar is whole"
    assert page.count("data-cell=") == page.count("data-behind=") == 10
    assert "<b>Plain" not in page and "&lt;b&gt;Plain" in page
    assert "http" not in page and "src=" not in page and "@import" not in page


# -- training what it lacks --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_missing_cells_are_trained_once_and_leave_records(folder, table, capsys):
    cells = list(table.chosen(["focal", "own"], ["large", "other"]).values())
    places = folder / "work", folder / "results"
    outcome = run_cells(table, cells, [0], [], Slots(2, 1), *places)
    assert len(outcome.done) == 1, "four cells, and one experiment"
    (path,) = (folder / "results").glob("*.json")
    content = json.loads(path.read_text())
    assert content["cells"] == ["own/focal/large", "own/focal/other", "own/own/large", "own/own/other"]
    assert content["digest"] == table.digest(cells[0]) and content["stages"].keys() == {"first", "second"}
    assert path.stat().st_size < 4000
    found = States(Records([folder / "results"])).of(table)
    assert [found[cell.row, cell.column].kind for cell in cells] == ["measured"] * 4
    (run,) = (folder / "work").glob("jobs/*/runs/*/*/result.json")
    top1 = json.loads(run.read_text())["after_calibration"]["top1"]
    assert found["focal", "large"].ours.mean == pytest.approx(100 * (1 - top1))
    assert run_cells(table, cells, [0], [], Slots(2, 1), *places).done == [], "nothing is missing any more"
    shutil.rmtree(folder / "work")
    assert record_of_equals(content, path)


def test_cells_are_trained_in_fp32_and_its_digest_is_the_recipes(folder, table):
    cell = table.cells["focal", "large"]
    loaded = table.loaded(cell)
    assert [stage.precision for stage in in_fp32(loaded).recipe.stages] == ["fp32", "fp32"]
    assert digest(in_fp32(loaded)) == digest(loaded)
    bf16 = loaded.changed({"stages.first.precision": "bf16"}, "here")
    assert digest(bf16) != digest(loaded)
    assert [stage.precision for stage in in_fp32(bf16).recipe.stages] == ["bf16", "fp32"]
    # What is trained otherwise on a GPU is another job.
    assert Job("a", in_fp32(loaded)).address != Job("a", loaded).address


def record_of_equals(content, path):
    """Whether a record stands without its run."""
    return json.loads(path.read_text()) == content


def test_what_places_data_may_be_set_and_nothing_else(folder, table):
    cells = [table.cells["focal", "large"]]
    with pytest.raises(RecipeError, match=r"--set stages\.first\.epochs=4: changes what own focal/large is"):
        run_cells(table, cells, [0], ["seed=1", "stages.first.epochs=4"], Slots(1, 1), folder / "w", folder / "r")
    with pytest.raises(RecipeError, match=r"none of the 2 cells can be run; they wait for method: OLTR"):
        cells = list(table.chosen(["oltr"]).values())
        run_cells(table, cells, [0], [], Slots(1, 1), folder / "w", folder / "r")


def test_a_record_of_a_run_is_small_and_keeps_its_cells(folder, table, monkeypatch):
    import ltcore

    run = ltcore.run(folder / "recipes" / "base.yaml", out=folder / "runs").path
    content = record_of(run, ["b/x", "a/x"])
    path = write_record(folder / "records", content)
    write_record(folder / "records", record_of(run, ["c/x"]))
    assert json.loads(path.read_text())["cells"] == ["a/x", "b/x", "c/x"]
    result = json.loads((run / "result.json").read_text())
    assert content["figures"]["top1"] == result["after_calibration"]["top1"]
    assert "per_class_accuracy" not in content["figures"] and content["data"] == result["data_fingerprint"]
    assert content["seconds"] == round(sum(stage["seconds"] for stage in result["stages"]), 1)
    assert content["code"] == result["code"]

    # The page of its cell leads to its report, for which neither its model nor its data is asked.
    def refuse(self):
        raise AssertionError("the data was read")

    monkeypatch.setattr(ltcore.SavedRun, "read_data", refuse)
    record(folder, table, ("focal", "small"), 0, 0.85)
    code = table.digest(table.cells["focal", "small"])
    jobs = [SimpleNamespace(about={"digest": code, "seed": seed}, finished=run) for seed in (0, 1)]
    monkeypatch.setattr("ltcore.tables.pages.folders", lambda place: jobs)
    write_pages([(table, States(Records([folder / "records"])).of(table))], folder / "html", [folder / "work"])
    assert [path.name for path in (folder / "html" / "reports").iterdir()] == [f"{code}-seed0.html"]
    assert f'href="reports/{code}-seed0.html"' in (folder / "html" / "own.html").read_text()


# -- the command -------------------------------------------------------------------------------------------------------


def ltcore_command(*words, cwd):
    return subprocess.run([sys.executable, "-m", "ltcore", *words], cwd=cwd, capture_output=True, text=True)


def test_the_command_needs_no_torch(folder):
    program = "import sys; from ltcore.cli import main; sys.argv = ['ltcore', 'table', 'tables/own.yaml']; main(); "
    program += "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules), 'loads too much'"
    told = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0 and "10 cells: 8 missing, 2 wait" in told.stdout, told.stderr


@pytest.mark.slow
def test_the_command_writes_files(folder):
    told = ltcore_command("table", "tables/own.yaml", "--to", "t.csv", "--rows", "focal", cwd=folder)
    assert told.returncode == 0 and len((folder / "t.csv").read_text().splitlines()) == 4
    told = ltcore_command("table", "--all", "--html", "html", cwd=folder)
    assert told.returncode == 0 and (folder / "html" / "own.html").exists()
    (folder / "docs").mkdir()
    assert ltcore_command("table", "--all", cwd=folder).returncode == 0
    assert (folder / "docs" / "tables.md").read_text().startswith("# Tables\n")
    for words, message in [
        ([], "name a TABLE"),
        (["none.yaml"], "none.yaml: no such file"),
        (["tables/own.yaml", "--rows", "focl"], "has no row 'focl'"),
        (["nowhere", "--all"], "nowhere: no such folder of tables"),
    ]:
        told = ltcore_command("table", *words, cwd=folder)
        assert told.returncode == 2 and message in told.stderr and "Traceback" not in told.stderr


# -- those of the papers -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not list((ROOT / "tables").glob("*.yaml")), reason="no tables")
def test_the_overview_of_the_papers_tables_is_up_to_date():
    from ltcore.tables.table import find_tables

    states = States(Records([ROOT / "results" / "runs"]))
    text = overview([(table, states.of(table)) for table in find_tables(ROOT / "tables")])
    assert (ROOT / "docs" / "tables.md").read_text() == text, "run: ltcore table --all"


def test_all_headline_figures_of_the_papers_stand_in_a_table():
    from ltcore.tables.table import find_tables

    printed = [table for table in find_tables(ROOT / "tables") if table.file.source and "fig" not in table.name]
    assert sum(len(table.cells) for table in printed) == 1053


def test_a_large_table_is_shown_within_a_moment(monkeypatch):
    """150 cells are read once each: by the number of recipes read, since a time would depend on the machine."""
    from ltcore.tables import table as module

    read = []
    real = module.load_chain
    monkeypatch.setattr(module, "load_chain", lambda path: read.append(path) or real(path))
    found = Table(ROOT / "tables" / "safa_1.yaml")
    states = States(Records([])).of(found)
    assert len(states) == 150 and len(read) == len(set(read)) < 40
