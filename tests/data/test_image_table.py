"""Labels in CSV: columns by name, number or guess; one-hot columns; splits and groups."""

import pytest
import torch
import yaml
from PIL import Image

from ltcore.data.image_table import ImageTable
from ltcore.errors import DataError

FILES = [f"img/{number:02}.png" for number in range(20)]


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LTCORE_DATA", raising=False)


@pytest.fixture
def make(tmp_path):
    """A reader of a table, whose twenty images are there."""
    for number, file in enumerate(FILES):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / file)

    def write(text, name="labels.csv", **options):
        (tmp_path / name).write_text(text)
        return ImageTable(ImageTable.Options(**{"root": str(tmp_path), "table": "labels.csv", **options}))

    return write


def rows(*columns, header=None, by=","):
    lines = [by.join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join(([header] if header else []) + lines) + "\n"


def everything(splits):
    """By file, its split and the name of its class."""
    return {
        file.decode(): (name, splits.class_names[label])
        for name in ("train", "val", "test")
        if (split := getattr(splits, name)) is not None
        for file, label in zip(split.files, split.targets.tolist(), strict=True)
    }


def refused(method, *parts):
    with pytest.raises(DataError) as caught:
        method.build_data()
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


NAMES = ["owl" if number % 4 == 0 else "cat" for number in range(20)]
CLASSES = dict(zip(FILES, NAMES, strict=True))


@pytest.mark.parametrize(
    "text, options",
    [
        (rows(FILES, NAMES, header="file,label"), {}),
        (rows(FILES, NAMES), {}),  # no header: the first cell is called like an image
        (rows(NAMES, FILES), {"file": 1}),
        (rows(FILES, NAMES, header="Image_ID;species", by=";"), {}),
        (rows(FILES, range(20), NAMES, header="photo\tage\tkind", by="\t"), {"file": "photo", "label": "KIND"}),
        (rows([f[:-4] for f in FILES], NAMES, header="id,what"), {"suffix": ".png"}),
        (rows([f'"{f}"' for f in FILES], NAMES, header="file,label"), {}),
        (rows([f[:-4] for f in FILES], NAMES), {"suffix": ".png", "header": False}),
        (
            rows(FILES, [int(n == "cat") for n in NAMES], [float(n == "owl") for n in NAMES], [0] * 20,
                 header="image,cat,owl,unknown"),
            {},
        ),
        (
            rows(FILES, range(20), [int(n == "cat") for n in NAMES], [int(n == "owl") for n in NAMES],
                 header="image,age,cat,owl"),
            {"label": ["cat", "owl"]},
        ),
    ],
)  # fmt: skip
def test_forms_of_tables(make, text, options):
    method = make(text, **options)
    splits = method.build_data()
    found = everything(splits)
    assert splits.class_names == ("cat", "owl") and {file: name for file, (_, name) in found.items()} == CLASSES
    counts = {name: torch.bincount(getattr(splits, name).targets).tolist() for name in ("train", "val", "test")}
    assert counts == {"train": [10, 3], "val": [2, 1], "test": [3, 1]} and method.provides == {"validation"}
    assert splits.train.open(0).size == (4, 3) and "20 rows, files from column" in splits.notes[0]


def test_numbers_are_classes_in_their_order(make):
    numbers = [(2, 10, 9)[number % 3] for number in range(20)]
    assert make(rows(FILES, numbers)).build_data().class_names == ("2", "9", "10")
    numbers = [("007", "1" * 5000, "7")[number % 3] for number in range(20)]  # more digits than int() reads
    assert make(rows(FILES, numbers)).build_data().class_names == ("007", "7", "1" * 5000)


def test_the_split_by_fraction_is_that_of_folders(make, tmp_path):
    from ltcore.data.image_folder import ImageFolder

    for number, (file, name) in enumerate(CLASSES.items()):
        (tmp_path / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / "f" / name / file[4:])
    paths = [f"{name}/{file[4:]}" for file, name in CLASSES.items()]
    method = make(rows(paths, NAMES), root=str(tmp_path / "f"), table=str(tmp_path / "labels.csv"))
    folder = ImageFolder(ImageFolder.Options(root=str(tmp_path / "f")))
    assert everything(method.build_data()) == everything(folder.build_data())


def test_a_column_of_splits(make):
    said = [("Training", "valid", "TEST")[number % 3] for number in range(20)]
    text = rows(FILES, NAMES, said, header="file,label,split")
    method = make(text)
    found = everything(method.build_data())
    wanted = {"Training": "train", "valid": "val", "TEST": "test"}
    assert {file: split for file, (split, _) in found.items()} == dict(
        zip(FILES, (wanted[each] for each in said), strict=True)
    )
    assert method.provides == {"validation"}
    assert everything(make(text.replace("label,split", "label,fold"), split="fold").build_data()) == found
    refused(make(text, test_fraction=0.3), "data.options.test_fraction splits by fraction, but", "says the splits")
    refused(make(text.replace("valid", "maybe")), "labels.csv:3: column 'split' is 'maybe', which is no split")
    method = make(text.replace("TEST", "train"))
    assert method.provides == set() and method.build_data().val is None
    refused(make(text.replace("Training", "test")), "no row is of the training split")


def test_tables_of_their_own(make):
    make(rows(FILES[10:], NAMES[10:][::-1], header="file,label"), "test.csv")
    splits = make(rows(FILES[:10], NAMES[:10], header="file,label"), test="test.csv").build_data()
    assert splits.val is None and len(splits.test) == 10
    found = everything(splits)
    assert [found[file][1] for file in FILES[10:]] == NAMES[10:][::-1]  # joined by name, whatever comes first
    make(rows(FILES[10:], ["owls"] * 10, header="file,label"), "test.csv")
    message = "test.csv:2: img/10.png is of class 'owls', of which"
    refused(make(rows(FILES[:10], NAMES[:10]), test="test.csv"), message, "did you mean 'owl'?")
    make(rows(FILES[9:], NAMES[9:]), "test.csv")
    refused(make(rows(FILES[:10], NAMES[:10]), test="test.csv"), "test.csv:1: img/09.png is also in", "line 10")


def test_groups_never_cross_splits(make):
    patients = [f"p{number // 2}" for number in range(20)]
    text = rows(FILES, NAMES, patients, header="file,label,patient_id")
    alone = make(text, label="label").build_data()
    assert any("data.options.group=patient_id keeps them in one split" in note for note in alone.notes)
    splits = make(text, label="label", group="patient_id").build_data()
    found = everything(splits)
    assert splits.grouped and len(found) == 20 and len(splits.test) >= 2
    for first, second in zip(FILES[::2], FILES[1::2], strict=True):
        assert found[first][0] == found[second][0]
    said = ["train" if number < 11 else "test" for number in range(20)]
    crossing = rows(FILES, NAMES, patients, said, header="file,label,patient,split")
    refused(make(crossing, group="patient"), "1 groups have images in both train and test, first 'p5'")
    empty = rows(FILES, NAMES, ["", *patients[1:]], header="file,label,patient")
    refused(make(empty, group="patient"), "labels.csv:2: column 'patient' names no group")


def test_holding_out_would_part_groups(make):
    from ltcore.contract.recipe import Data
    from ltcore.data.prepare import prepare

    text = rows(FILES, NAMES, [number // 2 for number in range(20)], header="file,label,patient")
    splits = make(text, group="patient", val_fraction=0).build_data()
    with pytest.raises(DataError, match=r"belong together in groups.*val_fraction"):
        prepare(splits, Data(use="x", holdout=1))


@pytest.mark.parametrize(
    "text, options, parts",
    [
        ("file\n", {}, ["no comma, semicolon or tab"]),
        ("file,label\n", {}, ["has no row"]),
        ("file,label\nimg/00.png,a,b\n", {}, ["labels.csv:2: 3 cells, but the first line has 2", "quotes"]),
        ("file,file\nimg/00.png,a\n", {}, ["two columns are called 'file'"]),
        (rows(FILES, NAMES, NAMES, header="photo,a,b"), {}, ["which of its columns 'photo', 'a', 'b' names the files"]),
        (rows(FILES, NAMES, NAMES, header="file,a,b"), {}, ["which of its columns", "is the label?", "label=[NAME"]),
        (rows(FILES, NAMES, header="file,kind"), {"label": "knd"}, ["no column 'knd'", "did you mean 'kind'?"]),
        (rows(FILES, NAMES), {"label": "kind"}, ["no column 'kind'", "header=true"]),
        (rows(FILES, ["", *NAMES[1:]], header="file,label"), {}, ["labels.csv:2: column 'label' is empty"]),
        (rows(["", *FILES[1:]], NAMES, header="file,label"), {}, ["labels.csv:2: column 'file' names no file"]),
        (rows([*FILES[:19], FILES[0]], NAMES, header="file,label"), {}, ["labels.csv:21: img/00.png is listed twice"]),
        (rows(["x.png", *FILES[1:]], NAMES), {}, ["1 of", "are not in", "x.png", "file or suffix"]),
        (rows([f[:-4] for f in FILES], NAMES, header="id,label"), {}, [".png' is there: add the ending)"]),
        (rows(FILES, [1] * 20, [0] * 19 + [1], header="file,a,b"), {}, ["labels.csv:21: an image has one", "'a', 'b'"]),
        (rows(FILES, NAMES, [0] * 20, header="file,a,b"), {"label": ["a", "b"]}, ["'a' is 'owl', but must be 0 or 1"]),
        (rows(FILES, NAMES), {"root": None}, ["no folder is named", "LTCORE_DATA"]),
        (rows(FILES, NAMES), {"table": "other.csv"}, ["other.csv is neither in", "data.options.table"]),
    ],
)  # fmt: skip
def test_wrong_tables(make, text, options, parts):
    refused(make(text, **options), *parts)


def test_init_takes_a_table(cli, tmp_path, monkeypatch, make):
    monkeypatch.setattr("ltcore.init.choices.images_per_second", lambda *asked: (100.0, 200.0, 300.0))
    make(rows([f[4:-4] for f in FILES], NAMES, header="id,label"))
    result = cli("init", tmp_path, "--out", tmp_path / "own.yaml")
    assert result.code == 0, result
    data = yaml.safe_load((tmp_path / "own.yaml").read_text())["data"]
    assert data["use"] == "image_table" and data["options"] == {
        "root": str(tmp_path / "img"),
        "table": str(tmp_path / "labels.csv"),
        "suffix": ".png",
        "test_fraction": 0.2,
        "val_fraction": 0.1,
        "val_min": 10,
    }
    described = cli("data", "describe", tmp_path / "own.yaml")
    assert described.code == 0 and "train 14, validation 2, test 4" in described.out, described
