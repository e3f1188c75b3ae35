import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.contract.imbalance import long_tailed_counts
from ltcore.data.counts import fitted_counts
from ltcore.data.inaturalist import INaturalist2017, INaturalist2018, read_annotations
from ltcore.data.large_sets import ImageNetLT, PlacesLT, Published
from ltcore.data.tiny_imagenet import TinyImageNetLT
from ltcore.errors import DataError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LTCORE_DATA", raising=False)


def put(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)


def refused(method, *parts):
    with pytest.raises(DataError) as caught:
        method.build_data()
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


def make(kind, root, **options):
    return kind(kind.Options(root=str(root), **options))


LISTED = [
    (
        PlacesLT,
        "Places_LT",
        ["train/pub/1.jpg", "train/pub/2.jpg", "train/zoo/3.jpg"],
        ["val/pub/4.jpg", "val/zoo/5.jpg"],
    ),
    (
        ImageNetLT,
        "ImageNet_LT",
        ["train/n1/1.JPEG", "train/n1/2.JPEG", "train/n2/3.JPEG"],
        ["val/n1/4.JPEG", "val/n2/5.JPEG"],
    ),
]


def write_lists(root, prefix, train, test):
    put(root, *train, *test, "train/held/9.jpg")
    lists = {"train": zip(train, (0, 0, 1), strict=True), "test": zip(test, (0, 1), strict=True)}
    lists["val"] = [("train/held/9.jpg", 1)]
    for split, rows in lists.items():
        (root / f"{prefix}_{split}.txt").write_text("".join(f"{file} {label}\n" for file, label in rows))


@pytest.mark.parametrize("kind, prefix, train, test", LISTED)
def test_lists_of_places_and_imagenet(tmp_path, monkeypatch, kind, prefix, train, test):
    method = make(kind, tmp_path)
    refused(method, f"{prefix}_train.txt", "not found in", kind.source, kind.size, "data.options.root=DIR")
    write_lists(tmp_path, prefix, train, test)
    refused(method, "2 classes instead of", "3 train images instead of", "data.options.subset=true")
    monkeypatch.setattr(kind, "published", Published({"train": 3, "val": 1, "test": 2}, 2, 2, 1))
    splits = method.build_data()
    assert method.provides == {"validation"}
    assert (len(splits.train), len(splits.val), len(splits.test)) == (3, 1, 2)
    assert splits.class_names == (("pub", "zoo") if kind is PlacesLT else ("n1", "n2"))
    assert (splits.transform, splits.image_size, splits.imbalance.kind) == ("imagenet", 224, "none")
    for wrong in ({"largest": 3}, {"smallest": 2}, {"num_classes": 3}, {"images": {"train": 3, "val": 2, "test": 2}}):
        monkeypatch.setattr(kind, "published", replace(Published({"train": 3, "val": 1, "test": 2}, 2, 2, 1), **wrong))
        refused(method, " instead of ", "subset=true")
        assert len(make(kind, tmp_path, subset=True).build_data().train) == 3
    (tmp_path / f"{prefix}_val.txt").unlink()
    refused(method, f"{prefix}_val.txt not found", "where other lists of it are")


@pytest.mark.parametrize("kind, prefix, train, test", LISTED)
def test_where_a_collection_is_looked_for(tmp_path, monkeypatch, kind, prefix, train, test):
    refused(kind(), "no folder is named", "LTCORE_DATA", kind.size)
    refused(make(kind, tmp_path / "nowhere"), "nowhere is not a folder", kind.size)
    write_lists(tmp_path / kind.folder, prefix, train, test)
    monkeypatch.setenv("LTCORE_DATA", str(tmp_path))
    assert len(kind(kind.Options(subset=True)).build_data().train) == 3
    (tmp_path / "lists").mkdir()
    for file in (tmp_path / kind.folder).glob("*.txt"):
        file.rename(tmp_path / "lists" / file.name)
    refused(kind(kind.Options(subset=True)), "not found in")
    splits = kind(kind.Options(subset=True, lists=str(tmp_path / "lists"))).build_data()
    assert splits.train.root == tmp_path / kind.folder
    (tmp_path / "lists" / "class_names.txt").write_text("first\nsecond\n")
    assert kind(kind.Options(subset=True, lists=str(tmp_path / "lists"))).build_data().class_names == (
        "first",
        "second",
    )


@pytest.mark.parametrize("kind, prefix, train, test", LISTED)
def test_missing_images_of_a_collection(tmp_path, kind, prefix, train, test):
    write_lists(tmp_path, prefix, train, test)
    (tmp_path / train[2]).unlink()
    refused(make(kind, tmp_path, subset=True), "1 of 3 images are not in", train[2], kind.source, "check_files=false")
    assert len(make(kind, tmp_path, subset=True, check_files=False).build_data().train) == 3


@pytest.mark.parametrize(
    "kind, parts",
    [
        (PlacesLT, ("MIT CSAIL", "about 24 GB", "non-commercial", "Places_LT_train.txt", "LTCORE_DATA")),
        (ImageNetLT, ("image-net.org", "about 145 GB", "by registration", "ImageNet_LT_train.txt", "LTCORE_DATA")),
        (INaturalist2017, ("visipedia", "about 186 GB", "non-commercial", "train2017.json", "LTCORE_DATA")),
        (INaturalist2018, ("visipedia", "about 120 GB", "non-commercial", "train2018.json", "LTCORE_DATA")),
        (TinyImageNetLT, ("CS231n", "237 MB", "for research", "train/", "LTCORE_DATA")),
    ],
)
def test_the_error_says_all_that_is_needed_to_get_the_data(kind, parts):
    refused(kind(kind.Options()), *parts)


def test_published_totals():
    # OLTR (Liu et al. 2019) for Places-LT and ImageNet-LT, the competitions' pages for iNaturalist. The ratio of the
    # ends of iNaturalist 2017 is the class-balanced paper's, and 435 in OFA (section 5.3).
    assert PlacesLT.published == Published({"train": 62500, "val": 7300, "test": 36500}, 365, 4980, 5)
    assert ImageNetLT.published == Published({"train": 115846, "val": 20000, "test": 50000}, 1000, 1280, 5)
    assert INaturalist2018.published == Published({"train": 437513, "test": 24426}, 8142, 1000, 2)
    assert INaturalist2017.published == Published({"train": 579184, "test": 95986}, 5089, 3919, 9)
    assert round(INaturalist2017.published.largest / INaturalist2017.published.smallest, 2) == 435.44
    assert INaturalist2018.published.images["test"] == 3 * INaturalist2018.published.num_classes
    assert TinyImageNetLT.published == Published({"train": 200 * 500, "test": 200 * 50}, 200, 500, 500)


# -- iNaturalist -------------------------------------------------------------------------------------------------------


def coco(files, categories, names=None):
    content = {
        "images": [{"id": 100 + number, "file_name": file, "width": 4} for number, file in enumerate(files)],
        # In another order than the images.
        "annotations": [
            {"id": number, "image_id": 100 + number, "category_id": category}
            for number, category in enumerate(categories)
        ][::-1],
    }
    return content | ({} if names is None else {"categories": [{"id": i, "name": n} for i, n in names.items()]})


TRAIN = ["train_val2018/Aves/7/a.jpg", "train_val2018/Fungi/2/b.jpg", "train_val2018/Aves/7/c.jpg"]
VAL = ["train_val2018/Fungi/2/d.jpg"]


@pytest.fixture
def inaturalist(tmp_path):
    put(tmp_path, *TRAIN, *VAL)

    def write(train, val):
        for name, content in (("train", train), ("val", val)):
            text = content if isinstance(content, str) else json.dumps(content, indent=0)
            (tmp_path / f"{name}2018.json").write_text(text)
        return make(INaturalist2018, tmp_path, subset=True)

    return write


def test_inaturalist_from_its_annotations(inaturalist, tmp_path):
    method = inaturalist(coco(TRAIN, [7, 2, 7], {7: "Corvus", 2: "Amanita"}), coco(VAL, [2]))
    splits = method.build_data()
    assert method.provides == set() and splits.val is None
    assert splits.class_names == ("Amanita", "Corvus")
    assert [file.decode() for file in splits.train.files] == TRAIN and splits.train.targets.tolist() == [1, 0, 1]
    assert [file.decode() for file in splits.test.files] == VAL and splits.test.targets.tolist() == [0]
    refused(make(INaturalist2018, tmp_path), "2 classes instead of 8142", "1 test images instead of 24426")


KINDS = {0: "Acris crepitans", 1: "Bubo bubo"}
TRAIN_2017 = [
    "train_val_images/Aves/Bubo bubo/a.jpg",
    "train_val_images/Amphibia/Acris crepitans/b.jpg",
    "train_val_images/Aves/Bubo bubo/c.jpg",
]
VAL_2017 = ["train_val_images/Amphibia/Acris crepitans/d.jpg"]


def test_inaturalist_2017(tmp_path, monkeypatch):
    root = tmp_path / "inaturalist2017"
    root.mkdir()
    refused(make(INaturalist2017, tmp_path), "iNaturalist 2017: train2017.json and val2017.json not found in", "186 GB")
    (root / "train2017.json").write_text(json.dumps(coco(TRAIN_2017, [1, 0, 1], KINDS)))
    refused(make(INaturalist2017, tmp_path), "val2017.json not found", "where other lists of it are")
    (root / "val2017.json").write_text(json.dumps(coco(VAL_2017, [0], KINDS)))
    put(root, *TRAIN_2017)
    refused(
        make(INaturalist2017, tmp_path), "val2017.json", "1 of 1 images are not in", VAL_2017[0], "check_files=false"
    )
    put(root, *VAL_2017)
    refused(
        make(INaturalist2017, tmp_path),
        "2 classes instead of 5089",
        "3 train images instead of 579184",
        "1 test images instead of 95986",
        "largest class instead of 3919",
        "smallest class instead of 9",
    )
    monkeypatch.setenv("LTCORE_DATA", str(tmp_path))
    splits = INaturalist2017(INaturalist2017.Options(subset=True)).build_data()
    assert splits.class_names == ("Acris crepitans", "Bubo bubo") and splits.val is None
    assert [file.decode() for file in splits.train.files] == TRAIN_2017 and splits.train.targets.tolist() == [1, 0, 1]
    assert [file.decode() for file in splits.test.files] == VAL_2017 and splits.test.targets.tolist() == [0]
    assert (splits.transform, splits.image_size, splits.imbalance.kind) == ("imagenet", 224, "none")
    splits.test.open(0).load()
    # Lists are 2018's only.
    (root / "iNaturalist18_train.txt").write_text(f"{TRAIN_2017[0]} 0\n")
    assert len(INaturalist2017(INaturalist2017.Options(subset=True)).build_data().train) == 3


@pytest.mark.parametrize("kind", [INaturalist2017, INaturalist2018])
def test_facts_of_inaturalist(kind):
    facts = kind().facts()
    counts = facts.class_counts
    assert (len(counts), sum(counts)) == (kind.published.num_classes, kind.published.images["train"])
    assert (counts[0], counts[-1]) == (kind.published.largest, kind.published.smallest)
    assert "curve" in facts.approximate and facts.test == kind.published.images["test"]


def test_the_curve_that_has_a_total_is_found():
    # Zipf-Mandelbrot by hand: 600 / (1 + r / 2), and 900 / (1 + r) ** 2.
    assert fitted_counts(5, 600 + 400 + 300 + 240 + 200, 600, 200) == (600, 400, 300, 240, 200)
    assert fitted_counts(3, 900 + 225 + 100, 900, 100) == (900, 225, 100)
    for total in (1601, 1702, 1803, 1864):
        counts = fitted_counts(5, total, 600, 200)
        assert (sum(counts), counts[0], counts[-1]) == (total, 600, 200)


def test_inaturalist_without_category_names(inaturalist):
    splits = inaturalist(coco(TRAIN, [7, 2, 7]), coco(VAL, [2])).build_data()
    assert splits.class_names == ("2", "7")  # the folders
    twice = inaturalist(coco(TRAIN, [7, 2, 7], {7: "x", 2: "x"}), coco(VAL, [2])).build_data()
    assert twice.class_names == ("2", "7") and torch.equal(twice.train.targets, splits.train.targets)


def test_annotations_are_joined_by_name(inaturalist):
    train = coco(TRAIN, [7, 2, 7], {7: "Corvus", 2: "Amanita"})
    splits = inaturalist(train, coco(VAL, [1], {1: "Amanita", 2: "Corvus", 3: "Bubo"})).build_data()
    assert splits.class_names == ("Amanita", "Corvus") and splits.test.targets.tolist() == [0]
    assert splits.train.targets.tolist() == [1, 0, 1]
    refused(inaturalist(train, coco(VAL, [3], {1: "Amanita", 3: "Bubo"})), "val2018.json: 1 images are of", "'Bubo'")
    refused(inaturalist(train, coco(VAL, [4], {1: "Amanita"})), "category 4, which is not among its categories")


def test_inaturalist_from_lists(tmp_path):
    refused(make(INaturalist2018, tmp_path), "train2018.json", "iNaturalist18_train.txt", "about 120 GB")
    put(tmp_path, *TRAIN, *VAL)
    (tmp_path / "iNaturalist18_train.txt").write_text(
        "".join(f"{f} {c}\n" for f, c in zip(TRAIN, (1, 0, 1), strict=True))
    )
    refused(make(INaturalist2018, tmp_path), "iNaturalist18_val.txt not found")
    (tmp_path / "iNaturalist18_val.txt").write_text(f"{VAL[0]} 0\n")
    splits = make(INaturalist2018, tmp_path, subset=True).build_data()
    assert splits.train.targets.tolist() == [1, 0, 1] and splits.class_names == ("2", "7")


@pytest.mark.parametrize(
    "train, parts",
    [
        ('{"images": [\n}', ["train2018.json:2: this is no JSON"]),
        ("[]", ["lacks images", "TypeError"]),
        ('{"images": [{"id": 1}], "annotations": []}', ["lacks images", "file_name"]),
        (coco([], []), ["train2018.json has no images"]),
        (coco(TRAIN, [7, 2]), ["1 images have no annotation, first train_val2018/Aves/7/c.jpg"]),
        (coco(TRAIN[:2], [7, 2, 7]), ["an annotation is of image 102, which is not among its images"]),
        ({**coco(TRAIN, [7]), "annotations": [{"image_id": {}, "category_id": 7}]}, ["lacks images", "TypeError"]),
        (
            {**coco(TRAIN[:1], [7]), "annotations": [{"image_id": 100, "category_id": c} for c in (7, 2)]},
            ["Aves/7/a.jpg has annotations of two categories"],
        ),
        (coco(TRAIN, ["x", 2, 7]), ["lacks images", "ValueError"]),
        (coco(TRAIN, [7, 7, 7]), ["val2018.json: train_val2018/Fungi/2/d.jpg has category 2, which", "train2018.json"]),
        (coco(TRAIN, [7, 2, 7], {7: "a", 2: "b", 9: "c"}), ["1 categories have no image, first 9 ('c'); remove"]),
    ],
)
def test_wrong_annotations(inaturalist, train, parts):
    refused(inaturalist(train, coco(VAL, [2])), *parts)


def test_annotations_of_two_files_share_their_labels(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco(TRAIN, [50, 20, 30])))
    (tmp_path / "b.json").write_text(json.dumps(coco(VAL, [30])))
    lists, names = read_annotations({"train": tmp_path / "a.json", "test": tmp_path / "b.json"})
    assert lists["train"].labels == [2, 0, 1] and lists["test"].labels == [1] and names is None


# -- Tiny-ImageNet -----------------------------------------------------------------------------------------------------

WNIDS = ("n02", "n01")


def write_tiny(root, plain=False, count=3):
    inner = "" if plain else "/images"
    put(root, *(f"train/{wnid}{inner}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(count)))
    if plain:
        put(root, "val/n01/v0.JPEG", "val/n02/v1.JPEG")
    else:
        for wnid in WNIDS:
            (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t3\t2\n")
        put(root, "val/images/v0.JPEG", "val/images/v1.JPEG")
        (root / "val" / "val_annotations.txt").write_text("v0.JPEG\tn01\t0\t0\t3\t2\nv1.JPEG\tn02\t0\t0\t3\t2\n")
        (root / "words.txt").write_text("n01\ttench, Tinca tinca\nn02\tgoldfish\nn03\ttench\n")


@pytest.mark.parametrize("plain", [False, True])
def test_tiny_imagenet(tmp_path, plain):
    write_tiny(tmp_path / "tiny-imagenet-200", plain)
    splits = make(TinyImageNetLT, tmp_path, subset=True).build_data()
    assert splits.class_names == (("n01", "n02") if plain else ("tench", "goldfish"))
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1, 1] and splits.test.targets.tolist() == [0, 1]
    assert splits.train.name(5).endswith("n02_2.JPEG") and splits.test.name(1).endswith("v1.JPEG")
    splits.test.open(1).load()
    assert (splits.transform, splits.image_size, splits.crop_padding, splits.flip) == ("cifar", 64, 8, True)
    refused(make(TinyImageNetLT, tmp_path), "2 classes instead of 200", "6 train images instead of 100000")


@pytest.mark.parametrize("factor, smallest", [(10, 50), (100, 5), (200, 2)])  # the ratios of CDT's paper
def test_tail_of_tiny_imagenet(tmp_path, factor, smallest):
    write_tiny(tmp_path)
    own = make(TinyImageNetLT, tmp_path, subset=True).build_data().imbalance
    assert (own.kind, own.factor) == ("exponential", 100)
    counts = long_tailed_counts(own.model_copy(update={"factor": factor}), np.full(200, 500))
    assert counts[0] == counts.max() == 500 and counts[-1] == counts.min() == smallest


def test_tiny_imagenet_is_refused(tmp_path):
    method = make(TinyImageNetLT, tmp_path, subset=True)
    refused(method, "no folder train", "237 MB", "Stanford")
    (tmp_path / "train").mkdir()
    refused(method, "no folder val")
    (tmp_path / "val").mkdir()
    refused(method, "no class folders in")
    write_tiny(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("v0.JPEG\tn01\nv1.JPEG\tn09\t0\n")
    refused(method, "val_annotations.txt:2: class 'n09' has no folder in train")
    annotations.write_text("v0.JPEG\n")
    refused(method, "val_annotations.txt:1: no class is named")
    annotations.write_text("")
    refused(method, "val_annotations.txt: the file is empty")
    annotations.write_text("v7.JPEG\tn01\n")
    refused(method, "1 of 1 images are not in", "val/images/v7.JPEG")
    annotations.unlink()
    refused(method, "val/images is of no class of")
    put(tmp_path / "two", "train/a/1.JPEG", "train/b/1.JPEG")
    (tmp_path / "two" / "val" / "a").mkdir(parents=True)
    refused(make(TinyImageNetLT, tmp_path / "two"), "neither val_annotations.txt nor class folders with images")
    (tmp_path / "two" / "train" / "c").mkdir()
    refused(make(TinyImageNetLT, tmp_path / "two"), "no images in")
