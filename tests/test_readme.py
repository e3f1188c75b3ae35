"""The README against the methods, the records of runs and the pages of results that it speaks of."""

import re
import tomllib
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy.stats import ttest_rel

from ltcore.tables.records import Records
from ltcore.tables.table import Table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOP = README.partition("\n## ")[0]
GROUPS = ("top1", "many", "medium", "few", "balanced_accuracy", "ece")


@pytest.fixture(scope="module")
def records():
    """By recipe of the digits' table, its records in the order of the seeds."""
    table, found = Table(ROOT / "tables" / "digits.yaml"), Records([ROOT / "results" / "runs"])
    rows = {
        table.cells[row, "top1"].path.stem: found.of(table.digest(table.cells[row, "top1"])) for row in table.file.rows
    }
    return {recipe: [of[seed] for seed in sorted(of)] for recipe, of in rows.items()}


def test_what_it_is_and_what_it_shows_fit_one_screen():
    assert len(TOP.splitlines()) <= 45
    assert all(len(line) <= 121 for line in TOP.splitlines())


def test_each_method_has_a_short_row_that_leads_to_its_card():
    rows = re.findall(r"^\| \[`(\w+)`\]\(plugins/(\w+)/README\.md\) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    offered = {
        (name, path.parent.name)
        for path in ROOT.glob("plugins/*/pyproject.toml")
        for name in tomllib.loads(path.read_text())["project"]["entry-points"]["ltcore.plugins"]
    }
    assert {(name, folder) for name, folder, *_ in rows} == offered and len(rows) == len(offered)
    assert [name for name, _, paper, what in rows if len(paper) > 40 or len(what) > 90] == []


def test_the_example_is_the_record_of_its_run(records):
    record = records["digits_lt_ofa_focal"][0]
    for stage in ("representation", "finetune"):
        (row,) = re.findall(rf"^    {stage} +(\d.*)$", README, re.MULTILINE)
        assert row.split() == [f"{100 * record.figures(stage)[name]:.1f}" for name in GROUPS]


def test_the_table_is_that_of_the_records(records):
    for recipe, runs in records.items():
        (row,) = re.findall(rf"^\| `{recipe}` \| (.*) \|$", README, re.MULTILINE)
        figures = [[100 * run.figures(None)[name] for run in runs] for name in GROUPS if name != "balanced_accuracy"]
        assert row.split(" | ") == [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in figures]


def test_the_p_values_are_those_of_paired_tests(records):
    assert "p < 0.04" in README and "p > 0.2" in README
    assert max(adjusted(records, "few")) < 0.04 and min(adjusted(records, "top1")) > 0.2


def adjusted(records, metric):
    """p values against cross-entropy with Holm's correction, the lowest first."""
    values = {recipe: [run.figures(None)[metric] for run in runs] for recipe, runs in records.items()}
    first = values.pop("digits_lt_ce")
    plain = sorted(ttest_rel(other, first).pvalue for other in values.values())
    found = [p * (len(plain) - place) for place, p in enumerate(plain)]
    return [max(found[: place + 1]) for place in range(len(found))]


def test_figures_at_the_top_are_those_of_the_pages():
    gpu = (ROOT / "results" / "gpu.md").read_text()
    bullets = re.findall(r"^- (?:.+\n)(?:  .+\n)*", TOP, re.MULTILINE)
    (papers,), (speed,) = ([text for text in bullets if word in text] for word in ("LDAM-DRW", " s."))
    figures = re.findall(r"\d+\.\d+", papers) + re.findall(r"(\d+) s\.", " ".join(speed.split()))
    assert len(figures) == 8 and all(re.search(rf"\b{re.escape(figure)}\b", gpu) for figure in figures)
    low, high = re.search(r"from ([\d.]+) to ([\d.]+) percent", " ".join(TOP.split())).groups()
    few = {
        recipe: re.search(rf"^\| `{recipe}` .*\| (\S+) ± \S+ \| [^|]+\|$", README, re.MULTILINE)[1]
        for recipe in ("digits_lt_ce", "digits_lt_la_tau_norm")
    }
    assert [low, high] == list(few.values())
    rows = "".join(re.findall(r"^\| (?:OFA|SAFA|STG|GLAG|CDT) \|.*$", README, re.MULTILINE))
    verdicts = [len(re.findall(rf"\| {verdict} \(", rows)) for verdict in ("holds", "does not", "cannot tell")]
    assert [int(number) for number in re.search(r"\[(\d+) hold, (\d+) do not, and (\d+)\s", TOP).groups()] == verdicts
