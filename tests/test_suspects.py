"""`ltcore suspects`: labels that are likely wrong, and images that nearly coincide."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from sklearn.datasets import load_digits

import ltcore
from ltcore.evaluation.near_duplicates import Pair, Vectors, near_duplicates, thumbnails_of
from ltcore.evaluation.suspects import find_suspects, folds_of, held_out_probabilities
from ltcore.report import write_report
from ltcore.report.doubtful import read_doubtful
from tests.report_pages import Page

# -- labels ------------------------------------------------------------------------------------------------------------


def long_tail(seed=0, most=150, imbalance=50):
    """Features [N, 64] and labels [N] of a long tail of digits, from `most` images of a class down to 3."""
    digits, random = load_digits(), np.random.default_rng(seed)
    counts = (most * imbalance ** (-np.arange(10) / 9)).astype(int)
    kept = np.concatenate(
        [random.permutation(np.flatnonzero(digits.target == c))[:count] for c, count in enumerate(counts)]
    )
    return digits.data[kept].astype(np.float32), digits.target[kept].astype(np.int64)


def planted(targets, seed):
    """5 percent of the labels changed, at random over all images, and which; of no class the last one."""
    random, found = np.random.default_rng(seed), targets.copy()
    for place in np.flatnonzero(random.random(len(targets)) < 0.05):
        if (found == found[place]).sum() > 1:
            found[place] = (found[place] + random.integers(1, 10)) % 10
    return found, found != targets


def reference(probabilities, targets):
    """Confident learning as the paper writes it, image by image: {place: class that it counts for}, and margins."""
    thresholds = {c: np.mean([p[c] for p, y in zip(probabilities, targets, strict=True) if y == c]) for c in targets}
    suspects, margins = {}, {}
    for place, (p, label) in enumerate(zip(probabilities, targets, strict=True)):
        margins[place] = p[label] - max(p[c] for c in range(len(p)) if c != label)
        counted = [c for c in thresholds if p[c] >= thresholds[c]]
        if counted and (likely := max(counted, key=lambda c: p[c])) != label and margins[place] < 0:
            suspects[place] = likely
    ordered = sorted(suspects, key=margins.__getitem__)
    kept = []
    for place in ordered:
        of_class = [other for other in kept if targets[other] == targets[place]]
        if len(of_class) + 1 <= (targets == targets[place]).sum() // 2:
            kept.append(place)
    return {place: suspects[place] for place in kept}, margins


@pytest.mark.parametrize("seed", range(4))
def test_suspects_are_those_of_the_paper_as_it_is_written(seed):
    random = np.random.default_rng(seed)
    targets = random.choice(6, 300, p=0.5 ** np.arange(6) / (0.5 ** np.arange(6)).sum())
    logits = random.normal(size=(300, 6)) + 1.5 * np.eye(6)[targets]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = find_suspects(shares, targets)
    wanted, margins = reference(shares, targets)
    assert list(zip(found.places.tolist(), found.likely.tolist(), strict=True)) == list(wanted.items())
    np.testing.assert_allclose(found.margin, [margins[place] for place in range(300)])


def test_suspects_are_among_cleanlabs_and_ranked_as_there():
    cleanlab = pytest.importorskip("cleanlab")
    features, truth = long_tail()
    targets, _ = planted(truth, 0)
    shares = held_out_probabilities(features, targets, 10, folds_of(targets, 5, 0))
    found = find_suspects(shares, targets)
    theirs = cleanlab.filter.find_label_issues(
        targets, shares, filter_by="confident_learning", return_indices_ranked_by="normalized_margin"
    ).tolist()
    assert set(found.places.tolist()) <= set(theirs)
    assert found.places.tolist() == [place for place in theirs if place in set(found.places.tolist())]
    assert len(found.places) == len(theirs) or found.capped


@pytest.mark.parametrize("seed", range(3))
def test_planted_labels_are_found_far_more_often_than_by_chance(seed):
    features, truth = long_tail(seed)
    targets, wrong = planted(truth, seed)
    shares = held_out_probabilities(features, targets, 10, folds_of(targets, 5, seed))
    found = find_suspects(shares, targets)
    hit = wrong[found.places]
    assert hit.sum() >= 0.6 * wrong.sum()  # recall
    assert hit.mean() >= 5 * wrong.mean()  # precision, beside that of images taken at random
    first = hit[: wrong.sum()]
    assert first.mean() >= 0.5
    rare = np.bincount(targets, minlength=10)[targets] < 20
    assert (wrong & rare).any() and (wrong[found.places] & rare[found.places]).sum() >= 0.6 * (wrong & rare).sum()
    # Of what is rightly labelled in rare classes most is left alone.
    assert (~hit & rare[found.places]).sum() <= 0.2 * (rare & ~wrong).sum()


def test_right_labels_are_left_alone_and_no_class_is_suspect_as_a_whole():
    features, targets = long_tail()
    shares = held_out_probabilities(features, targets, 10, folds_of(targets, 5, 0))
    assert len(find_suspects(shares, targets).places) <= 0.03 * len(targets)
    random = np.random.default_rng(0)  # a class that is never recognised, with much surer ones beside it
    shares = np.full((40, 3), 0.02)
    targets = np.repeat([0, 1, 2], [20, 14, 6])
    shares[np.arange(40), np.where(targets == 2, 0, targets)] = 0.95 + 0.01 * random.random(40)
    shares[targets == 2, 0] = 0.96
    found = find_suspects(shares, targets)
    assert (targets[found.places] == 2).sum() == 3 and found.capped == (2,)


def test_folds_are_even_and_leave_an_image_of_each_class_outside():
    targets = np.repeat(np.arange(6), [23, 9, 5, 3, 2, 1])
    folds = folds_of(targets, 5, seed=3)
    assert (folds == folds_of(targets, 5, seed=3)).all() and (folds != folds_of(targets, 5, seed=4)).any()
    assert (folds[targets == 5] == -1).all() and (folds[targets < 5] >= 0).all()
    for label in range(5):
        sizes = np.bincount(folds[targets == label], minlength=5)
        assert sizes.max() - sizes.min() <= 1 and sizes.max() < (targets == label).sum()


def test_with_fewer_images_than_folds_those_that_can_are_judged():
    targets = np.array([0, 1, 1, 2, 2])
    features = np.eye(3, dtype=np.float32)[targets] + 0.01 * np.arange(5, dtype=np.float32)[:, None]
    for folds in (5, 9):
        found = held_out_probabilities(features, targets, 3, folds_of(targets, folds, seed=0))
        assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_no_image_is_judged_by_what_was_fitted_to_it():
    """Features without any meaning: who has seen the labels knows them, and who has not is right by chance."""
    random = np.random.default_rng(0)
    features, targets = random.normal(size=(90, 200)).astype(np.float32), np.arange(90) % 3
    shares = held_out_probabilities(features, targets, 3, folds_of(targets, 5, 0))
    assert (shares.argmax(1) == targets).mean() < 0.55
    np.testing.assert_allclose(shares.sum(1), 1)


# -- near-duplicates ---------------------------------------------------------------------------------------------------


def test_pairs_are_those_of_a_slow_loop():
    random = torch.Generator().manual_seed(0)
    splits = {}
    for name, number in (("train", 30), ("test", 12)):
        centres = torch.arange(number) % 4
        features = 3 * torch.eye(4)[centres] + 0.6 * torch.randn(number, 4, generator=random)
        thumbnails = 3 * torch.eye(4).repeat(1, 2)[centres] + 0.3 * torch.randn(number, 8, generator=random)
        splits[name] = Vectors(features, thumbnails, torch.randint(3, (number,), generator=random))
    mean = splits["train"].features.mean(0)

    def alike(one, other):
        a, b = one[0] - mean, other[0] - mean
        c, d = one[1] - one[1].mean(), other[1] - other[1].mean()
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in ((a, b), (c, d))]
        return min(sum(cosines) / 2, cosines[1])

    best = {}
    places = [(name, i) for name in splits for i in range(len(splits[name].targets))]
    for number, (name, i) in enumerate(places):
        for other, j in places[:number]:
            one, two = ((splits[n].features[k], splits[n].thumbnails[k]) for n, k in ((name, i), (other, j)))
            key = (name, i, other, bool(splits[name].targets[i] == splits[other].targets[j]))
            if (value := alike(one, two)) > 0.85:
                best[key] = max(best.get(key, (0, 0)), (value, j))
    wanted = {(name, i, other, j): value for (name, i, other, _), (value, j) in best.items()}
    found = near_duplicates(splits, 0.85)
    assert {pair[:4] for pair in found} == set(wanted) and len(wanted) > 20
    assert all(pair.alike == pytest.approx(wanted[pair[:4]], abs=1e-5) for pair in found)
    assert [pair.alike for pair in found] == sorted((pair.alike for pair in found), reverse=True)


def picture(random, size=48):
    """A picture with some structure: smooth patches of colour."""
    small = random.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A run on a folder in which near-duplicates are planted: within training, into the test images, in two classes."""
    folder = tmp_path_factory.mktemp("suspects")
    random = np.random.default_rng(0)
    for split, counts in {"train": {"ant": 24, "bee": 12, "cow": 6}, "test": {"ant": 4, "bee": 4, "cow": 4}}.items():
        for name, count in counts.items():
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                picture(random).save(folder / "photos" / split / name / f"{number:02}.png")
    train, test = folder / "photos" / "train", folder / "photos" / "test"
    Image.open(train / "ant" / "01.png").save(test / "ant" / "leaked.jpg", quality=70)
    ImageChops.offset(Image.open(train / "bee" / "02.png"), 1, 0).save(train / "bee" / "shifted.png")
    Image.open(train / "cow" / "03.png").resize((40, 40)).save(train / "ant" / "smaller.png")
    recipe = folder / "r.yaml"
    recipe.write_text(
        f"data: {{use: image_folder, options: {{root: {folder / 'photos'}}}, workers: 0, "
        "transform: {name: resize_crop, image_size: 32}}\n"
        "backbone: {use: cifar_resnet, options: {depth: 8, width: 4}}\n"
        "stages: [{name: joint, iterations: 1, batch_size: 8, trainable: [classifier], "
        "optimizer: {name: sgd, lr: 0.1}}]"
    )
    return folder, ltcore.run(recipe, out=folder / "runs").path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_finds_what_was_planted_and_the_report_shows_it(looked, cli, tmp_path):
    _, run = looked
    result = cli("suspects", run)
    assert result.code == 0, result
    pairs = {
        tuple(sorted("/".join(row[side].rsplit("/", 3)[1:]) for side in ("image", "other")))
        for row in rows(run / "duplicates.csv")
    }
    planted_pairs = {
        ("test/ant/leaked.jpg", "train/ant/01.png"),
        ("train/bee/02.png", "train/bee/shifted.png"),
        ("train/ant/smaller.png", "train/cow/03.png"),
    }
    assert pairs == planted_pairs
    assert "1 across splits" in result.out and "1 in two classes" in result.out and "leaked.jpg" in result.out
    found = rows(run / "suspects.csv")
    assert [float(row["margin"]) for row in found] == sorted(float(row["margin"]) for row in found)
    assert all(row["class"] != row["looks_like"] for row in found)
    kept = [(run / name).read_bytes() for name in ("suspects.csv", "duplicates.csv")]
    cli("suspects", run, "--out", tmp_path / "out")  # the same to the byte
    assert kept == [(tmp_path / "out" / name).read_bytes() for name in ("suspects.csv", "duplicates.csv")]
    assert write_report([run], tmp_path / "r.html", features=False) == []
    page = Page(tmp_path / "r.html")
    assert "doubtful" in page.sections and len(page.images) >= 6
    assert "1 of them across splits" in page.text and "leaked.jpg" in page.text
    (run / "suspects.csv").write_text("something else")
    cli("report", run, "-o", tmp_path / "r.html").is_one_message(1, "suspects.csv", "'ltcore suspects' writes it anew")
    assert read_doubtful(tmp_path) is None


def test_of_a_trained_network_it_says_what_it_may_miss(digits_run, cli, tmp_path):
    result = cli("suspects", digits_run, "--out", tmp_path / "out", "--folds", 2)
    assert result.code == 0 and "some are missed" in result.out, result
    assert all(row["image"].isdecimal() for row in rows(tmp_path / "out" / "suspects.csv"))


def test_mistakes_are_one_message(looked, cli, tmp_path):
    folder, run = looked
    cli("suspects", run, "--folds", 1).is_one_message(2, "--folds 1", "2 or more")
    cli("suspects", run, "--alike", 1.5).is_one_message(2, "--alike 1.5", "at most 1")
    cli("suspects", tmp_path).is_one_message(2, "is no run")
    moved = shutil.move(folder / "photos", folder / "elsewhere")
    try:
        cli("suspects", run).is_one_message(2, str(folder / "photos"))
    finally:
        shutil.move(moved, folder / "photos")


def test_thumbnails_are_means_of_areas():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = images.reshape(2, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(thumbnails_of(images), wanted, atol=1e-6)
    assert Pair("train", 1, "train", 0, 1.0).other == 0
