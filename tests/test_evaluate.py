"""Figures of each class, their intervals, lists of images, and the evaluation of a run on other images."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax
from scipy.stats import binomtest, norm
from sklearn.metrics import precision_recall_fscore_support

import ltcore
from ltcore.data.fingerprint import alike, print_of
from ltcore.data.labelled import read_labelled
from ltcore.errors import DataError, RecipeError
from ltcore.evaluation.classes import class_figures, intervals
from ltcore.evaluation.images import ImageRows
from ltcore.evaluation.intervals import mean_of, wilson
from ltcore.evaluation.priors import Prior, adjusted, expected, read_prior
from ltcore.evaluation.suspects import folds_of, held_out_probabilities
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.runs.evaluating import TrainingFeatures, trade
from ltcore.training.execute import execute

CASES = [(0, 1), (1, 1), (0, 9), (4, 9), (9, 9), (1, 250), (249, 250), (5000, 10000)]


ROOT = Path(__file__).parents[1]


def run_split(folder):
    return read_labelled(folder, sorted(path.name for path in folder.iterdir()), lambda path: None).split


# -- intervals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_wilsons_interval_is_scipys(confidence):
    k, n = (torch.tensor(each) for each in zip(*CASES, strict=True))
    found = wilson(k, n, confidence)
    wanted = [binomtest(k, n).proportion_ci(confidence, method="wilson") for k, n in CASES]
    np.testing.assert_allclose(found.numpy(), np.array(wanted), atol=1e-12)
    assert wilson(torch.tensor([0]), torch.tensor([0])).isnan().all()


def test_the_interval_of_a_mean_is_what_a_slow_loop_gives():
    k, n = [3, 0, 7, 1], [4, 5, 7, 2]
    p = [a / b for a, b in zip(k, n, strict=True)]
    ends = [binomtest(a, b).proportion_ci(method="wilson") for a, b in zip(k, n, strict=True)]
    mean = sum(p) / 4
    low = mean - math.sqrt(sum((each - e.low) ** 2 for each, e in zip(p, ends, strict=True))) / 4
    high = mean + math.sqrt(sum((e.high - each) ** 2 for each, e in zip(p, ends, strict=True))) / 4
    assert mean_of(torch.tensor([*k, 0]), torch.tensor([*n, 0])) == pytest.approx([low, high])
    assert mean_of(torch.tensor([3]), torch.tensor([4])) == pytest.approx([ends[0].low, ends[0].high])
    assert mean_of(torch.tensor([0]), torch.tensor([0])) is None


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    truth, n = random.uniform(0.1, 0.98, 12), random.integers(2, 30, 12)
    inside = 0
    for _ in range(2000):
        low, high = mean_of(torch.from_numpy(random.binomial(n, truth)), torch.from_numpy(n))
        inside += low <= truth.mean() <= high
    assert 0.94 <= inside / 2000 <= 0.985  # 95 percent, or a little more, as few images leave it


# -- classes and images ------------------------------------------------------------------------------------------------


def some_logits(n=400, c=7, seed=0):
    random = np.random.default_rng(seed)
    targets = random.choice(c, n, p=0.6 ** np.arange(c) / (0.6 ** np.arange(c)).sum())
    logits = random.normal(size=(n, c)).astype(np.float32)
    logits[np.arange(n), targets] += 1.2
    return logits, targets


def test_figures_of_classes_are_scikit_learns():
    logits, targets = some_logits()
    targets[targets == 6] = 5  # a class without test images
    predictions = logits.argmax(1)
    predictions[predictions == 4] = 3  # one that nothing is taken for
    found = class_figures(torch.from_numpy(predictions), torch.from_numpy(targets), 7)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=range(7), zero_division=np.nan
    )
    assert found["support"] == support.tolist() and found["recall"][6] is None and found["precision"][4] is None
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(np.array(found[name], dtype=float), wanted, atol=1e-12, err_msg=name)
    hits = predictions == targets
    for label in range(7):
        right = int(hits[targets == label].sum())
        for name, whole in (("recall", support[label]), ("precision", int((predictions == label).sum()))):
            ends = found[f"{name}_interval"][label]
            if not whole:
                assert ends is None
                continue
            assert ends == pytest.approx(list(binomtest(right, int(whole)).proportion_ci(method="wilson")))
    told = intervals(torch.from_numpy(predictions), torch.from_numpy(targets), [200, 150, 90, 30, 20, 5, 1])
    assert told["top1"] == pytest.approx(list(binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")))
    few = [np.mean(hits[targets == 5])]
    assert told["few"][0] < np.mean(few) < told["few"][1] and told["balanced_accuracy"][0] < np.nanmean(recall)


def test_rows_of_images_and_their_files(tmp_path):
    logits, targets = some_logits(60)
    names = [f"a/{number}.png" for number in range(59)] + ["=1+1"]
    rows = ImageRows.of(names, torch.from_numpy(logits), torch.from_numpy(targets))
    shares = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    ordered = np.sort(shares, axis=1)
    np.testing.assert_allclose(rows.probability, ordered[:, -1], atol=1e-12)
    np.testing.assert_allclose(rows.margin, ordered[:, -1] - ordered[:, -2], atol=1e-12)
    np.testing.assert_allclose(rows.own, shares[np.arange(60), targets], atol=1e-12)
    rows.write(tmp_path, [f"c{label}" for label in range(7)])
    with (tmp_path / "predictions.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["image"] for row in written] == [*names[:-1], "'=1+1"]  # no formula
    assert [row["predicted"] for row in written] == [f"c{label}" for label in logits.argmax(1)]
    with (tmp_path / "errors.csv").open() as file:
        errors = list(csv.DictReader(file))
    wrong = [row for row in written if row["class"] != row["predicted"]]
    assert errors == sorted(wrong, key=lambda row: -float(row["probability"])) and 0 < len(errors) < 60


def test_a_run_leaves_them(digits_run):
    saved = ltcore.load(digits_run)
    with (digits_run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [saved.class_names.index(row["class"]) for row in rows] == saved.targets.tolist()
    assert [row["image"] for row in rows] == list(map(str, range(len(rows)))) and saved.image_names is None
    predictions = saved.calibrated_logits.argmax(1)
    assert [saved.class_names.index(row["predicted"]) for row in rows] == predictions.tolist()
    errors = (digits_run / "errors.csv").read_text().splitlines()
    assert len(errors) - 1 == (predictions != saved.targets).sum() > 0
    classes = saved.result["classes"]
    assert classes["recall"] == saved.metrics["per_class_accuracy"] and sum(classes["support"]) == len(rows)
    assert classes["correct"] == [sum((predictions == label) & (saved.targets == label)) for label in range(10)]
    low, high = saved.result["intervals"]["top1"]
    assert low < saved.metrics["top1"] < high


# -- priors ------------------------------------------------------------------------------------------------------------

COUNTS, CLASSES = [300, 20, 100, 5, 50, 2, 10], [f"c{label}" for label in range(7)]


def test_priors_by_name(tmp_path):
    order = [0, 2, 4, 1, 6, 3, 5]  # by training images
    forward = read_prior("forward:20", COUNTS, CLASSES).shares
    wanted = np.array([20 ** (-place / 6) for place in range(7)])
    np.testing.assert_allclose(forward[order].numpy(), wanted / wanted.sum())
    np.testing.assert_allclose(read_prior("backward:20", COUNTS, CLASSES).shares[order[::-1]].numpy(), forward[order])
    assert read_prior("uniform", COUNTS, CLASSES).shares.tolist() == pytest.approx([1 / 7] * 7)
    assert read_prior("training", COUNTS, CLASSES).shares.tolist() == pytest.approx([n / 487 for n in COUNTS])
    table = tmp_path / "prior.csv"
    table.write_text("class,images\n" + "".join(f"c{label},{label + 1}\n" for label in reversed(range(7))))
    assert read_prior(str(table), COUNTS, CLASSES).shares.tolist() == pytest.approx([n / 28 for n in range(1, 8)])


@pytest.mark.parametrize(
    ("asked", "text", "message"),
    [
        ("forward:0.5", None, "the imbalance factor must be a number, 1 or more"),
        ("backward:x", None, "the imbalance factor must be a number"),
        ("balanced", None, "there is no such file, and it is none of 'uniform', 'training', 'forward:FACTOR'"),
        ("p.csv", "c0,1\nc1,1\n", "lacks 5 classes of the run, first 'c2'"),
        ("p.csv", "name,n\nc0,0\n", "p.csv:2: '0' is no number above 0"),
        ("p.csv", "name,n\nc9,1\n", "p.csv:2: the run has no class 'c9'"),
        ("p.csv", "name,n\nc1,1\nc1,2\n", "p.csv:3: the class 'c1' stands there twice"),
        ("p.csv", "name,n,m\nc1,1,1\n", "has 3 columns"),
    ],
)
def test_a_prior_that_is_none_is_one_message(tmp_path, monkeypatch, asked, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / asked).write_text(text if text.startswith("name") else "name,n\n" + text)
    with pytest.raises((RecipeError, DataError), match=message):
        read_prior(asked, COUNTS, CLASSES)


@pytest.mark.parametrize("prior", ["uniform", "forward:50", "backward:50"])
def test_figures_under_a_prior_are_what_numpy_gives(prior):
    logits, targets = some_logits(500)
    assumed, wanted = read_prior("training", COUNTS, CLASSES), read_prior(prior, COUNTS, CLASSES)
    found = adjusted(torch.from_numpy(logits), assumed, wanted)
    posterior = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    posterior = posterior * wanted.shares.numpy() / assumed.shares.numpy()
    posterior /= posterior.sum(1, keepdims=True)
    np.testing.assert_allclose(found.softmax(1).numpy(), posterior, atol=1e-12)
    told = expected(found, torch.from_numpy(targets), wanted)
    hits, top = posterior.argmax(1) == targets, posterior.max(1)
    five = np.array([label in np.argsort(-row)[:5] for row, label in zip(posterior, targets, strict=True)])
    share = wanted.shares.numpy()
    assert told["top1"] == pytest.approx(sum(share[c] * hits[targets == c].mean() for c in range(7)))
    assert told["top5"] == pytest.approx(sum(share[c] * five[targets == c].mean() for c in range(7)))
    weights = share[targets] / np.bincount(targets)[targets]
    gaps = 0.0
    for low in np.arange(15) / 15:
        inside = (top > low) & (top <= low + 1 / 15)
        gaps += abs((weights[inside] * (hits[inside] - top[inside])).sum())
    assert told["ece"] == pytest.approx(gaps, abs=1e-9)


def test_the_right_prior_is_the_best_one_where_the_model_is_the_truth():
    """Two classes of normal values: the adjusted posterior is the true one, and no other prior is right more often."""
    random = np.random.default_rng(0)
    wanted = Prior("w", torch.tensor([0.1, 0.9], dtype=torch.float64))
    targets = random.choice(2, 40_000, p=[0.1, 0.9])
    x = random.normal(targets * 1.5)
    logits = torch.tensor(np.stack([norm.logpdf(x, 0), norm.logpdf(x, 1.5)], 1) + np.log([0.8, 0.2]))
    assumed = Prior("a", torch.tensor([0.8, 0.2], dtype=torch.float64))
    right = [
        float((adjusted(logits, assumed, Prior("p", torch.tensor([p, 1 - p]))).argmax(1).numpy() == targets).mean())
        for p in (0.02, 0.1, 0.3, 0.5, 0.8)
    ]
    assert max(right) == right[1] > right[-1] + 0.1
    assert float((adjusted(logits, assumed, wanted).argmax(1).numpy() == targets).mean()) == right[1]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path, digits_run):
    """Half of the run's test images as files, in a folder for each class."""
    test = ltcore.load(digits_run).read_data().test
    names = ltcore.load(digits_run).class_names
    for place in range(0, len(test), 2):
        folder = tmp_path / "photos" / names[int(test.targets[place])]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[place, 0].numpy()).save(folder / f"{place:03}.png")
    return tmp_path / "photos"


def test_a_folder_gives_the_runs_own_predictions(cli, digits_run, photos, tmp_path):
    out = cli("evaluate", digits_run, photos, "--out", tmp_path / "found", "--workers", "1")
    assert (out.code, out.err) == (0, "") and all(len(line) <= 80 for line in out.out.splitlines()[1:5])
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    saved = ltcore.load(digits_run)
    places = np.arange(0, len(saved.targets), 2)
    hits = saved.calibrated_logits.argmax(1)[places] == saved.targets[places]
    assert found["figures"]["top1"] == pytest.approx(hits.mean()) and found["images"] == len(places)
    assert sum(found["classes"]["correct"]) == hits.sum() and "expected" not in found
    errors = list(csv.DictReader((tmp_path / "found" / "errors.csv").open()))
    assert len(errors) == (~hits).sum()
    for row in errors:
        assert str(photos) in row["image"] and row["class"] in row["image"] and row["class"] != row["predicted"]


def test_folders_tables_and_lists_are_the_same_images(cli, digits_run, photos):
    files = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.png"))
    names = ltcore.load(digits_run).class_names
    (photos / "t.csv").write_text("file,label\n" + "".join(f"{file},{file.split('/')[0]}\n" for file in files))
    (photos / "l.txt").write_text("".join(f"{file} {names.index(file.split('/')[0])}\n" for file in files))
    found = []
    for data in (photos, photos / "t.csv", photos / "l.txt"):
        out = cli("evaluate", digits_run, data, "--prior", "backward:10", "--json", "--workers", "1")
        assert out.code == 0 and "the model's outputs are taken to hold for classes that are all as frequent" in out.err
        found.append(json.loads(out.out) | {"data": ""})
    assert found[0] == found[1] == found[2]
    assert found[0]["prior"] == "backward:10" and found[0]["assumed"] == "uniform"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("methods", "calibrate", "assumed"),
    [
        ({"linear_probe": {}}, [], "all as frequent (stage 'train' has linear_probe)"),
        ({"linear_probe": {"options": {"balance": "none"}}}, [], "as frequent as in training (nothing"),
        ({"temperature": {}}, ["temperature"], "as frequent as in training (nothing"),
        ({"tau_norm": {}}, ["tau_norm"], "all as frequent (its classifier is calibrated by tau_norm)"),
        ({"linear_probe": {}, "temperature": {}}, ["temperature"], "all as frequent (stage 'train' has linear_probe)"),
    ],
)
def test_methods_say_what_their_classifiers_hold_for(cli, write_recipe, tmp_path, methods, calibrate, assumed):
    """A probe balances and has no hook that says so; a temperature is a calibration, and balances nothing."""
    stage = {"name": "train", "epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}}
    stage["methods"] = [name for name in methods if name not in calibrate]
    counts = {"class_counts": [24, 16, 8, 4], "image_size": 8, "test_per_class": 4}
    data = {"use": "synthetic", "options": counts, "holdout": 2}
    run = ltcore.run(write_recipe(methods=methods, calibrate=calibrate, stages=[stage], data=data), out=tmp_path).path
    told = cli("evaluate", run, write_recipe("other", data=data), "--prior", "uniform")
    assert assumed in told.out + told.err, told
    line = trade(ltcore.load(run))
    if "in training" in assumed:
        assert line is None
        return
    saved = ltcore.load(run)
    counts, held_out = np.array(saved.result["class_counts"]), saved.read_data().val
    logits = saved.predict(held_out.images).logits  # which were held out; no test image has a part
    recalls, other = (
        [(each.argmax(1)[held_out.targets.numpy() == c] == c).mean() for c in range(len(counts))]
        for each in (logits, logits.astype(float) + np.log(counts / counts.sum()))
    )
    top1, moved = (100 * np.dot(counts, each) / counts.sum() for each in (recalls, other))
    assert f"top-1 would be {top1:.1f}, and {moved:.1f}" in line and f"accuracy is {100 * np.mean(other):.1f}." in line
    assert "(By the 8 validation images.)" in line


def test_without_validation_images_training_images_tell_what_balancing_costs(write_recipe, tmp_path):
    """Where the network stays as it is; each is judged by what others teach, from features that the run had anyway."""
    counts = {"class_counts": [60, 24, 9, 1], "image_size": 8, "test_per_class": 4}
    stage = {"name": "train", "iterations": 1, "batch_size": 8, "methods": ["linear_probe"]}
    stage |= {"trainable": ["classifier"], "optimizer": {"name": "sgd", "lr": 1e-12}}
    parts = {"data": {"use": "synthetic", "options": counts}, "methods": {"linear_probe": {}}}
    recipe, seen = load_recipe(write_recipe(stages=[stage], **parts)), TrainingFeatures()
    saved = ltcore.load(execute(recipe, tmp_path, False, Reporter(io.StringIO()), observers=[seen])[1])
    features, targets = saved.features("train"), saved.read_data().train.targets.numpy()
    assert np.array_equal(seen.found[0], features) and np.array_equal(seen.found[1], targets)
    folds = folds_of(targets, 5, 0)
    shares = held_out_probabilities(features, targets, 4, folds)[folds >= 0]
    plain = [(shares.argmax(1)[targets[:-1] == c] == c).mean() for c in range(3)]
    there = [((shares * [60, 24, 9, 1]).argmax(1)[targets[:-1] == c] == c).mean() for c in range(3)]
    top1, moved = (100 * np.dot([60, 24, 9], each) / 93 for each in (plain, there))
    line = trade(saved, seen.found)
    assert f"top-1 would be {top1:.1f}, and {moved:.1f}" in line and f"accuracy is {100 * np.mean(there):.1f}." in line
    assert "(By 93 training images, each held out once, of 3 of 4 classes.)" in line
    assert "no images are held out" in trade(saved)  # of whom nothing is known
    stage["trainable"] = ["backbone", "classifier"]  # whose features know the labels
    trained = ltcore.load(
        execute(load_recipe(write_recipe(stages=[stage], **parts)), tmp_path, False, Reporter(io.StringIO()))[1]
    )
    assert "no images are held out" in trade(trained, seen.found)


def test_what_the_outputs_hold_for_is_said_and_can_be_said_otherwise(cli, digits_run, photos, write_recipe, tmp_path):
    plain = ltcore.run(write_recipe(), out=tmp_path / "out").path
    told = cli("evaluate", plain, write_recipe("other"), "--prior", "uniform").out
    assert "classes as frequent as in training (nothing in its recipe balances the classes)" in told
    told = cli("evaluate", digits_run, photos, "--prior", "uniform", "--assumes", "training", "--json")
    assert json.loads(told.out)["assumed"] == "training" and "(as asked for)" in told.err
    same = json.loads(cli("evaluate", digits_run, photos, "--prior", "training", "--assumes", "training", "--json").out)
    bare = json.loads(cli("evaluate", digits_run, photos, "--json").out)
    assert same["figures"] == bare["figures"] != json.loads(told.out)["figures"]


def test_mistakes_are_one_message(cli, digits_run, photos, tmp_path):
    (photos / "yak").mkdir()
    Image.new("L", (8, 8)).save(photos / "yak" / "a.png")
    (tmp_path / "empty").mkdir()
    (photos / "l.txt").write_text("yak/a.png 10\n")
    for words, message in [
        ([photos], f"{photos}: 1 images are of 1 classes that the run does not have, first 'yak'"),
        ([photos / "l.txt"], "l.txt:1: the label is 10, but the run has 10 classes"),
        ([tmp_path / "nowhere"], "is not there; name a folder with one folder per class, a table, a list, or a recipe"),
        ([tmp_path / "empty"], "has no images in folders named by class"),
        ([photos / "yak" / "a.png"], "this is no folder, no table (.csv, .tsv, .json), no list (.txt) and no recipe"),
        ([photos, "--assumes", "uniform"], "which only --prior needs; give both"),
        ([photos, "--prior", "forward:0"], "the imbalance factor must be a number, 1 or more"),
        ([photos, "--out", tmp_path / "a" / "b"], "there is no folder"),
    ]:
        out = cli("evaluate", digits_run, *words)
        assert out.code == 2 and message in out.err and "Traceback" not in out.err, out.err


def test_images_that_the_run_was_trained_on_are_named(cli, digits_run, photos, write_recipe, tmp_path):
    """They would give a figure that is too good to be true, in silence."""
    assert "trained on" not in cli("evaluate", digits_run, photos, "--workers", "1").out
    options = {"root": str(photos), "test_fraction": 0.2}
    data = {"use": "image_folder", "options": options, "transform": {"name": "none", "image_size": 8}}
    run = ltcore.run(write_recipe(data=json.dumps(data)), out=tmp_path / "out")
    trained = len(run.read_data().train)
    moved = photos.rename(tmp_path / "elsewhere")
    whole = cli("evaluate", run.path, moved, "--workers", "1").out
    every = len(list(moved.glob("*/*.png")))
    assert f"note: {trained} of {every} images look like ones that the run was trained on" in whole
    again = cli("evaluate", digits_run, ROOT / "recipes" / "digits_lt_ce.yaml", "--json")
    assert json.loads(again.out)["trained_on"] == 0  # its own test images, in memory
    marks = print_of(ltcore.load(digits_run).read_data().train)
    assert alike(marks, marks) == len(marks) and alike(marks, print_of(run_split(moved))) == 0


def test_what_cannot_be_decoded_is_named_and_left_out(cli, digits_run, photos):
    broken = photos / "3" / "broken.png"
    broken.write_bytes(b"no image")
    out = cli("evaluate", digits_run, photos, "--workers", "1")
    assert out.code == 0 and f"{broken}" in out.out and "cannot be decoded, left out" in out.out
    for path in photos.glob("*/*.png"):
        path.write_bytes(b"no image")
    out = cli("evaluate", digits_run, photos, "--workers", "1")
    assert out.code == 2 and "no image can be decoded; the first is " in out.err
