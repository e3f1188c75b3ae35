"""COCO's JSON as labels of whole images, and tables beside the images of each split, as Roboflow exports them."""

import json

import pytest
from PIL import Image

from ltcore.data.coco import read_coco
from ltcore.data.image_folder import ImageFolder
from ltcore.data.image_table import ImageTable
from ltcore.data.labelled import read_labelled
from ltcore.errors import DataError
from ltcore.init.survey import survey

SPLITS = {"train": 12, "valid": 3, "test": 3}
NAMES = ("owl", "cat")


@pytest.fixture
def images(tmp_path):
    """Images that lie in the folders of splits, without folders of classes; by path, their classes."""
    found = {}
    for split, count in SPLITS.items():
        (tmp_path / split).mkdir()
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / split / f"{number}.png")
            found[f"{split}/{number}.png"] = NAMES[number % 3 == 0]
    return found


def coco(files, names=NAMES, **changes):
    """COCO's form: ids that are no numbers from 0, and images in another order than their annotations."""
    ids = {file: 100 + number for number, file in enumerate(files)}
    categories = {name: 7 * (number + 1) for number, name in enumerate(names)}
    said = [{"id": 1, "image_id": ids[file], "category_id": categories[name]} for file, name in files.items()]
    return {
        "images": [{"id": ids[file], "file_name": file, "height": 40, "width": 40} for file in files],
        "annotations": said[::-1],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        **changes,
    }


def in_split(images, split):
    return {file.partition("/")[2]: name for file, name in images.items() if file.startswith(f"{split}/")}


def everything(splits):
    return {
        file.decode(): splits.class_names[label]
        for split in (splits.train, splits.val, splits.test)
        for file, label in zip(split.files, split.targets.tolist(), strict=True)
    }


def write_csv(root, images, spaces=" "):
    """Roboflow's: a column a class, with spaces behind the commas, in every split."""
    for split in SPLITS:
        rows = [f"filename,{spaces}cat,{spaces}owl"]
        rows += [
            f"{file},{spaces}{int(name == 'cat')},{spaces}{int(name == 'owl')}"
            for file, name in in_split(images, split).items()
        ]
        (root / split / "_classes.csv").write_text("\n".join(rows) + "\n")
    return {"table": "train/_classes.csv", "val": "valid/_classes.csv", "test": "test/_classes.csv"}


def write_json(root, images):
    for split in SPLITS:
        content = coco(in_split(images, split), names=("none", *NAMES))  # a category without an image
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return {
        option: f"{split}/_annotations.coco.json"
        for option, split in (("table", "train"), ("val", "valid"), ("test", "test"))
    }


@pytest.mark.parametrize("write", [write_csv, write_json])
def test_tables_beside_the_images_of_each_split(tmp_path, images, write):
    options = {"root": str(tmp_path), **write(tmp_path, images)}
    method = ImageTable(ImageTable.Options(**options))
    splits = method.build_data()
    assert everything(splits) == images and splits.class_names == ("cat", "owl")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == list(SPLITS.values())
    assert method.provides == {"validation"} and splits.train.open(0).size == (40, 40)
    # As they lie there, `ltcore init` finds them.
    found = survey(tmp_path)
    assert (found.use, found.options, found.split) == ("image_table", options, "lists")
    assert found.images == {"train": 12, "val": 3, "test": 3}


def test_the_same_images_in_class_folders_are_the_same_splits(tmp_path, images):
    """Ultralytics' and Roboflow's folders, read as they are."""
    for file, name in images.items():
        split, number = file.split("/")
        path = tmp_path / "folders" / split / name / number
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).rename(path)
    splits = ImageFolder(ImageFolder.Options(root=str(tmp_path / "folders"))).build_data()
    assert {"/".join((f.split("/")[0], f.split("/")[2])): name for f, name in everything(splits).items()} == images


def test_one_json_is_split_by_fraction_and_evaluated_on(tmp_path, images):
    (tmp_path / "labels.json").write_text(json.dumps(coco(images)))
    options = ImageTable.Options(root=str(tmp_path), table="labels.json", test_fraction=0.25, val_fraction=0.25)
    splits = ImageTable(options).build_data()
    assert everything(splits) == images and len(splits.test) > 2 and len(splits.val) > 2
    found = read_labelled(tmp_path / "labels.json", ("cat", "dog", "owl"), lambda _: pytest.fail("no recipe")).split
    told = {file.decode(): ("cat", "dog", "owl")[label] for file, label in zip(found.files, found.targets, strict=True)}
    assert told == images


def test_several_annotations_of_one_category_are_one_label(tmp_path, images):
    content = coco(images)
    content["annotations"] *= 2
    (tmp_path / "l.json").write_text(json.dumps(content))
    files, categories, titles = read_coco(tmp_path / "l.json")
    assert {file: titles[each] for file, each in zip(files, categories, strict=True)} == images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"].append({**c["annotations"][0], "category_id": 99}),
            "annotations of two categories",
        ),
        (lambda c: c["annotations"].pop(), "1 images have no annotation, first train/0.png"),
        (
            lambda c: c["annotations"][0].update(image_id=1),
            "an annotation is of image 1, which is not among its images",
        ),
        (lambda c: c.pop("images"), "lacks images"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "has no images"),
    ],
)
def test_mistakes(tmp_path, images, change, message):
    content = coco(images)
    change(content)
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        ImageTable(ImageTable.Options(root=str(tmp_path), table="l.json")).build_data()
    assert "l.json" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_nowhere_are_named_where_the_root_says(tmp_path, images):
    options = write_csv(tmp_path, images)
    (tmp_path / "train" / "0.png").unlink()  # the first row's: then nothing says that they lie beside the table
    with pytest.raises(DataError, match=r"train/_classes\.csv: 12 of 12 images are not in .*: 0\.png"):
        ImageTable(ImageTable.Options(root=str(tmp_path), **options)).build_data()
