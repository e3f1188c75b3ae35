"""Cells that show an analysis of a run: made once it has ended, kept in its record, shown beside what is printed."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ltcore
from ltcore.errors import RecipeError, RunError
from ltcore.sweeps.engine import Outcome, Slots
from ltcore.tables.pages import tone, write_pages
from ltcore.tables.records import FORMAT, Records
from ltcore.tables.running import run_cells
from ltcore.tables.state import States
from ltcore.tables.table import Table
from ltcore.tables.text import FORMATS

TABLES = Path(__file__).parents[1] / "tables"
RECIPE = """
name: made
data: {use: synthetic, options: {class_counts: [24, 16, 5, 5], image_size: 8, test_per_class: 6, noise: 3.0}}
backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}
methods: {stg: {options: {head_fraction: 0.5}}}
stages:
  - {name: first, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}
  - name: generator
    epochs: 1
    batch_size: 8
    methods: [stg]
    classification: false
    trainable: [stg]
    optimizer: {name: adam, lr: 0.01}
  - {name: last, epochs: 1, batch_size: 8, methods: [stg], trainable: [classifier], optimizer: {name: sgd, lr: 0.05}}
"""
MEANS = """
title: The classifier against class means
source: 'A paper, table 1'
decimals: 3
recipe: ../recipes/made.yaml
columns: {accuracy: {label: accuracy}, error: {label: error, metric: error}}
rows:
  own: {label: Own, printed: [50, 50]}
  means: {label: Test means, analysis: test_means, printed: [60, 40]}
  none: {label: None, analysis: stg/none/at/all, metric: other, printed: [1, null]}
"""
SHOWN = "stg/KL divergence of predicted transformations/sample 1/sample 2"


@pytest.fixture
def folder(tmp_path):
    for name, text in {
        "recipes/made.yaml": RECIPE,
        "tables/means.yaml": MEANS,
        "tables/stg_5.yaml": (TABLES / "stg_5.yaml").read_text().replace("cifar100_lt_stg", "made"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """The runs that are trained: here, in this process."""
    runs = []

    def train(jobs, slots, beneath):
        for job in jobs:
            if not job.finished:
                runs.append(ltcore.run(job.path / "recipe.yaml", out=job.path / "runs"))
        return Outcome(done=list(jobs))

    monkeypatch.setattr("ltcore.tables.running.train", train)
    return runs


def run(folder, table, rows=()):
    cells = list(table.chosen(rows).values())
    return run_cells(table, cells, [0], [], Slots(1, 1), folder / "work", folder / "results")


def states(folder, table):
    return States(Records([folder / "results"])).of(table)


def unit(row):
    return row / np.sqrt((row**2).sum())


def near_test_means(saved):
    """Shares of the test images that are nearest to the mean of their own class's test features, image by image."""
    rows = [unit(row) for row in saved.features("test").astype(np.float64)]
    means = [unit(sum(r for r, t in zip(rows, saved.targets, strict=True) if t == label)) for label in range(4)]
    said = [int(np.argmin([((row - mean) ** 2).sum() for mean in means])) for row in rows]
    return np.mean([one == other for one, other in zip(said, saved.targets, strict=True)])


def predicted(saved, label):
    """Mean and variance that STG's generator predicts for each training image of a class, in NumPy, image by image."""
    (path,) = (saved.path / "checkpoints").glob("stage-2-*")
    stored = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    part = {name.partition("stg.generator.")[2]: value for name, value in stored.items() if "stg.generator." in name}
    targets, features = saved.read_data().train.targets.numpy(), saved.features("train").astype(np.float64)
    heads = [features[targets == head].mean(0) for head in (0, 1)]

    def perceptron(name, row):
        row = part[f"{name}.0.weight"] @ row + part[f"{name}.0.bias"]
        row = (row - part[f"{name}.1.running_mean"]) / np.sqrt(part[f"{name}.1.running_var"] + 1e-5)
        row = np.maximum(row * part[f"{name}.1.weight"] + part[f"{name}.1.bias"], 0)
        return part[f"{name}.3.weight"] @ row + part[f"{name}.3.bias"]

    for row in features[targets == label]:
        moved = row + part["tokens"][np.argmax([unit(row) @ unit(head) for head in heads])]
        yield perceptron("mean", moved), np.log1p(np.exp(perceptron("variance", moved)))


def divergence(one, other):
    """KL(one || other) of Gaussians with diagonal covariances, channel by channel."""
    found = 0.0
    for mean, variance, mean_2, variance_2 in zip(*one, *other, strict=True):
        found += 0.5 * (np.log(variance_2 / variance) + (variance + (mean - mean_2) ** 2) / variance_2 - 1)
    return found


def test_analyses_are_made_of_a_run_and_shown(folder, trained):
    means, kl = (Table(folder / "tables" / f"{name}.yaml") for name in ("means", "stg_5"))
    assert run(folder, means, ["own"]).failed == {} and len(trained) == 1
    (record,) = (folder / "results").glob("*.json")
    assert "analyses" not in json.loads(record.read_text())
    found = states(folder, means)
    assert found["own", "error"].kind == "measured" and found["means", "error"].kind == "missing"

    (message,) = run(folder, means).failed.values()
    assert message.endswith("no analysis of it gives 'stg/none/at/all'; mend the table's analysis")
    assert run(folder, kl).failed == {}
    assert len(trained) == 1, "an analysis trains nothing"
    content = json.loads(record.read_text())
    assert content["analyses"].keys() == {"test_means", *(cell.analysis for cell in kl.cells.values())}
    (saved,) = trained
    share = near_test_means(saved)
    assert 0.3 < share < 1 and share != saved.metrics["top1"], "the test could not fail"
    found = states(folder, means)
    assert found["means", "accuracy"].ours.mean == pytest.approx(100 * share)
    assert found["means", "error"].difference == pytest.approx(100 * (1 - share) - 40)
    assert found["own", "accuracy"].ours.mean == pytest.approx(100 * saved.metrics["top1"])
    text = FORMATS["table"](means, found)
    assert f"60.000 / {100 * share:.3f} (1)" in text
    assert "analyses of runs, and no results of them: Test means, None" in text
    assert found["none", "accuracy"].kind == "missing", "and the others are kept"

    found = states(folder, kl)
    assert {one.kind for one in found.values()} == {"measured"} and len(found) == 20
    names = [f"sample{number}" for number in range(1, 6)]
    shown = np.array([[found[r, c].ours.mean if r != c else 0 for c in names] for r in names])
    rows = list(predicted(saved, 2))
    wanted = np.array([[divergence(one, other) for other in rows] for one in rows])
    # Which of the class's five images comes first, chance has said.
    orders = [list(order) for order in itertools.permutations(range(5))]
    assert (
        min(abs(wanted[np.ix_(order, order)] / np.where(shown, shown, 1) - 1 + np.eye(5)).max() for order in orders)
        < 1e-3
    )
    assert np.abs(wanted - wanted.T).max() > 0.01, "a row is not a column"
    assert f"62.8 / {found['sample2', 'sample4'].ours.mean:.1f} (1)" in FORMATS["markdown"](kl, found)
    assert tone(found["sample2", "sample4"]) == "measured", "more is neither better nor worse"
    write_pages([(kl, found)], folder / "html")
    assert "and no result of them" in (folder / "html" / "stg_5.html").read_text()
    assert run(folder, kl).done == [], "nothing is missing any more"


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"top1": 1.5}, "an.top1 = 1.5 is no figure between 0 and 1"),
        ({"other": "x"}, "an.other = 'x' is no number"),
        ({"other": True}, "an.other = True is no number"),
    ],
)
def test_a_damaged_figure_of_an_analysis_is_named(tmp_path, figures, message):
    names = ("recipe", "digest", "seed", "code", "data", "cells")
    content = {"format": FORMAT, "figures": {}, "stages": {}, "analyses": {"an": figures}, **dict.fromkeys(names, 0)}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(RunError) as refusal:
        Records([tmp_path])
    assert str(refusal.value).endswith(f"r.json: is damaged: {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("analysis: test_means", "analysis: test_mean", "there is no analysis 'test_mean'; did you mean 'test_means'?"),
        (
            "analysis: test_means",
            "metric: other",
            "means/accuracy: metric 'other' is for an analysis, and it names none",
        ),
        ("analysis: test_means", "analysis: test_means, metric: many", "'test_means' is 'top1', 'error', 'balanced_"),
        ("analysis: test_means", f"analysis: {SHOWN}", "the metric of '" + SHOWN + "' is 'other', and not 'top1'"),
        ("analysis: test_means", "analysis: test_means, stage: last", "it names a stage and an analysis"),
        (
            "analysis: test_means",
            f"metric: other, analysis: s{SHOWN}",
            "means/accuracy: the recipe has no method 'sstg' to analyse; did you mean 'stg'?",
        ),
    ],
)
def test_an_analysis_that_no_run_can_have_is_refused_before_training(folder, old, new, message):
    path = folder / "tables" / "means.yaml"
    path.write_text(MEANS.replace(", metric: error", "").replace(old, new))
    with pytest.raises(RecipeError) as refusal:
        States(Records([])).of(Table(path))
    assert message in str(refusal.value) and str(path) in str(refusal.value)
