"""What comes from strangers: shown harmlessly, and read strictly."""

import json
import math
import os
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltcore.cli.parser import show
from ltcore.compare.text import render
from ltcore.errors import DataError, LtcoreError, RecipeError, RunError, fault, listed, nearest
from ltcore.files.reading import read_json, read_lines, read_predictions, read_result
from ltcore.networks.optimizers import check_optimizer
from ltcore.untrusted import cell, finite, parse_json, printable

NASTY = "\x1b]0;owned\x07\n\r\x9b31m\u202etxt\u2028\udc80"


@given(st.text())
def test_what_is_printed_acts_on_no_terminal(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    shown.encode()
    plain = all(c.isprintable() for c in text)
    assert shown == text or not plain


def test_ordinary_text_stays():
    for text in ("naïve é 漢字 🦆 100 %", "a b", "C:\\new", "zero\u200cwidth joiners are letters"):
        assert printable(text) == text
    assert printable(NASTY) == r"\x1b]0;owned\x07\n\r\x9b31m\u202etxt\u2028\udc80"


def test_names_in_messages():
    assert listed(["a\nb", "c"]) == r"'a\nb', 'c'" and nearest("ab", ["a\nb"]) == r"; did you mean 'a\nb'?"


def test_an_error_of_several_lines_is_shown_line_by_line(cli, monkeypatch, tmp_path):
    error = RecipeError("one", "two\x1b")
    assert str(error) == "one\ntwo\x1b" and str(error.within("<", ">")) == "<one\ntwo\x1b>"
    assert str(RecipeError("only").within("<", ">")) == "<only>" and str(error.saying("a", "b")) == "a\nb"
    path = tmp_path / "new\nline.yaml"
    cli("plan", path).is_one_message(2, r"new\nline.yaml: no such file")
    path.write_text('"da\\x1bta": {}\n"b\\nad": 1\nstages: []')
    shown = cli("plan", path)
    assert shown.code == 2 and r"b\nad: unknown key" in shown.err and "\x1b" not in shown.err
    assert all(line.startswith(str(tmp_path)) for line in shown.err.splitlines()), shown.err
    changed = "methods.a\x1b[2J\nfake=1"
    cli("plan", path, "--set", changed).is_one_message(2, r"--set methods.a\x1b[2J\nfake=1: ")


def test_what_commands_show_is_harmless(capsys):
    show({"a": NASTY}, lambda content: f"first\n{content['a']}", as_json=False)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "first" and not set(shown) & set("\x1b\x07\r\x9b\u202e")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("+cat", "'+cat"),
        ("-cat", "'-cat"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        *((text, text) for text in ("", "cat", "-", "=", "-5", "+1.5e-3", "-.5", "1=1", "'=1")),
    ],
)
def test_cells(text, expected):
    assert cell(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[NaN]", "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("[1e999]", "the number 1e999 is absurdly large"),
        ("[1" + "0" * 30 + "]", "the number 10000000... is absurdly large"),
        ("[" * 100_000, "nest too deeply"),
        ('{"a":' * 100_000, "nest too deeply"),
        ('["a\\u0000b"]', "the character NUL"),
        ("\0", "the character NUL"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
    ids=str.split,
)
def test_json_that_is_refused(text, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_json(text)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RunError, match=rf"x.json is damaged \(.*{re.escape(said)}.*\); copy it again"):
        read_json(path)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
    )
)
def test_json_that_is_read(value):
    assert parse_json(json.dumps(value)) == value


def test_what_is_not_finite_is_written_as_null():
    assert finite({"a": [1.0, math.nan, (math.inf, "nan")], "b": -math.inf}) == {
        "a": [1.0, None, [None, "nan"]],
        "b": None,
    }


def test_a_text_file_that_is_none(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RunError, match=r"a\.json is damaged \(byte 7 is no text in UTF-8\)"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match=r"b\.json cannot be read: No such file or directory; .*put it back"):
        read_json(tmp_path / "b.json")


# ---------------------------------------------------------------- damaged results


def put(path, value):
    """A change of a result: the value at a path, or with None the field gone."""

    def change(result):
        node = result
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        return result

    return change


DAMAGES = {
    "a list": lambda result: [],
    "a field gone": put(["class_names"], None),
    "text for a number": put(["seed"], "0"),
    "a number for text": put(["recipe"], 3),
    "null": put(["after_calibration", "top1"], []),
    "a figure gone": put(["stages", 0, "test", "ece"], None),
    "too few names": put(["class_names"], ["a"]),
    "too few accuracies": put(["after_calibration", "per_class_accuracy"], [0.5]),
    "no stage": put(["stages"], []),
    "a stage that is none": put(["stages", 0], "joint"),
    "a classes' number": put(["num_classes"], -1),
    "versions": put(["versions"], {"python": 3}),
    "too few norms": put(["stages", 0, "diagnostics", "classifier_norm"], [1.0]),
    "an absurd count": put(["class_counts", 0], 2**63),
}


@pytest.fixture
def copy(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_one_message_everywhere(damage, copy, digits_run, cli, tmp_path):
    path = copy / "result.json"
    path.write_text(json.dumps(DAMAGES[damage](json.loads(path.read_text()))))
    with pytest.raises(RunError, match=r"result\.json is damaged \(.*\); copy it again"):
        read_result(path)
    for words in (
        ("report", copy, "-o", tmp_path / "r.html"),
        ("predict", copy, "x.png"),
        ("export", copy, "--to", "onnx"),
    ):
        cli(*words).is_one_message(1, f"{path} is damaged (", "); copy it again from where")
    # One damaged run among many is named and left out.
    shown = cli("compare", digits_run, copy)
    assert shown.code == 0 and f"not averaged: {copy}: {path} is damaged (" in shown.out and "  1  " in shown.out
    assert read_result(digits_run / "result.json")["recipe"] == "digits_lt_ofa_focal"


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "3",
        '{"stage": "a", "epoch": "b"}',
        '{"stage": NaN}',
        "\0",
        '{"stage": 1, "epoch": 2, "loss": 1, "lr": 1}',
    ],
)
def test_a_damaged_line_is_one_message(line, copy, cli, tmp_path):
    path = copy / "metrics.jsonl"
    lines = read_lines(path)
    path.write_text(path.read_text() + line)
    assert read_lines(path) == lines, "a line without its end is being written"
    path.write_text(path.read_text() + "\n")
    cli("report", copy, "-o", tmp_path / "r.html").is_one_message(1, f"{path} is damaged (")


def test_damaged_predictions_are_one_message(copy, cli, tmp_path):
    import numpy as np

    path = copy / "predictions.npz"
    arrays = dict(np.load(path))
    whole = path.read_bytes()
    assert len(read_predictions(path, 10).targets) == len(arrays["targets"])

    def saved(**changed):
        np.savez(path, **{name: value for name, value in (arrays | changed).items() if value is not None})

    damages = [
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]),
        lambda: path.write_bytes(b"PK\3\4" + b"\0" * 50),
        lambda: saved(logits=None),
        lambda: saved(targets=arrays["targets"] + 100),
        lambda: saved(targets=arrays["targets"].astype(float)),
        lambda: saved(calibrated_logits=arrays["logits"][:, :3]),
        lambda: saved(logits=arrays["logits"] * np.nan),
        lambda: saved(logits=np.array([{}], dtype=object)),
    ]
    for damage in damages:
        damage()
        cli("report", copy, "-o", tmp_path / "r.html").is_one_message(1, f"{path} is damaged (")
    path.unlink()
    assert cli("report", copy, "-o", tmp_path / "r.html", "--no-features").code == 0, "somebody has made room"


def test_a_sibling_that_cannot_be_read_blocks_nobody(tmp_path, copy, digits_run):
    from ltcore.files.run_directory import RunDirectory

    (copy.parent / "r").mkdir()
    runs = [copy.parent / "r" / name for name in ("a", "b", "c")]
    for run in runs:
        run.mkdir()
        (run / "recipe.yaml").write_text("name: r\n")
    (runs[0] / "recipe.yaml").write_bytes(b"\xff\xfe")
    (runs[2] / "recipe.yaml").write_bytes(b"published: [" + b"[" * 200)
    assert RunDirectory.find(tmp_path, "r", "name: r\n").path == runs[1]
    with pytest.raises(RecipeError, match="3 there differ in a setting"):
        RunDirectory.find(tmp_path, "r", "name: s\n")


# ---------------------------------------------------------------- tables

CONTENT = {
    "baseline": None,
    "metrics": ["top1"],
    "left_out": [{"path": "runs/a\n\\input{/etc/passwd}", "why": "it\x1b[1m"}],
    "groups": [
        {
            "label": label,
            "recipe": label,
            "differs": {},
            "unpackaged": [],
            "seeds": [0],
            "runs": [],
            "figures": {"top1": {"mean": 0.5, "sd": None, "n": 1}},
            "stages": [],
            "classes": [],
            "published": [{"metric": "top1", "value": 1, "sd": None, "source": "=HYPERLINK(1)", "note": "a\nb"}],
            "test": None,
        }
        for label in (
            "=1+1",
            "[x]",
            "*",
            "a\\b{c}|\"'`?`!`--$#%&_~^<>\n\n\\end{tabular}",
            "<img src=x onerror=alert(1)>",
        )
    ],
}


def test_all_of_latex_is_text():
    lines = render(CONTENT, "latex").splitlines()
    start, end = lines.index(r"\begin{tabular}{lrrr}"), lines.index(r"\end{tabular}")
    assert all(line.startswith("%") for line in lines[:start]) and end == len(lines) - 1
    rows = [line for line in lines[start:end] if line.endswith(r"\\")]
    assert len(rows) == 6
    assert rows[2].startswith("{[}x{]} &") and rows[3].startswith("{*} &")
    assert rows[4].startswith(
        r"a\textbackslash{}b\{c\}\textbar{}\textquotedbl{}\textquotesingle{}\textasciigrave{}{?}\textasciigrave{}"
        r"{!}\textasciigrave{}-{}-\$\#\%\&\_\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
        r"\textbackslash{}n\textbackslash{}n\textbackslash{}end\{tabular\} &"
    )


def test_other_tables_are_text():
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(render(CONTENT, "csv"))))
    assert [row["label"] for row in rows][:3] == ["'=1+1", "[x]", "*"] and rows[0]["published"].startswith("top1 1 (")
    markdown = render(CONTENT, "markdown")
    assert r"\<img src=x" in markdown and r"\[x\]" in markdown and len(markdown.splitlines()) == 2 + 5 + 1 + 1 + 5 + 1
    table = render(CONTENT, "table")
    assert "\x1b" not in table and r"a\n\input" in table


def test_names_of_classes_are_text_in_every_table():
    import csv
    import io

    names = [group["label"] for group in CONTENT["groups"]]
    spread = {name: {"mean": 0.5, "sd": None, "n": 1} for name in ("recall", "precision", "f1")}
    about = {"training_images": 1, "test_images": 1, "figures": spread, "recall_interval": None}
    rows = [{"class": f"{name}\x1b[1m", **about} for name in names]
    content = CONTENT | {"groups": [CONTENT["groups"][0] | {"classes": rows}]}
    assert [row["class"][:2] for row in csv.DictReader(io.StringIO(render(content, "csv")))][:2] == ["'=", "[x"]
    latex, markdown, table = (render(content, kind) for kind in ("latex", "markdown", "table"))
    assert latex.count(r"\end{tabular}") == 2 and r"\textbackslash{}end\{tabular\}" in latex
    assert r"\<img src=x" in markdown and "\x1b" not in table + markdown + latex


# ---------------------------------------------------------------- recipes and options


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_extras_of_an_optimizer_are_finite(value, cli, write_recipe):
    for extra in ({"momentum": value}, {"weight_decay": value}):
        with pytest.raises(
            RecipeError, match=rf"optimizer 'sgd': {next(iter(extra))} is {value}; write a finite number"
        ):
            check_optimizer("sgd", extra, values=False)
    with pytest.raises(RecipeError, match="optimizer 'adamw': betas is"):
        check_optimizer("adamw", {"betas": [0.9, value]}, values=False)
    check_optimizer("adamw", {"betas": [0.9, 0.99], "weight_decay": 0.1}, values=False)


def test_an_option_that_is_not_finite_is_refused_before_data_is_read(cli, write_recipe):
    path = write_recipe()
    change = "stages.joint.optimizer.momentum=.inf"
    cli("plan", path, "--set", change).is_one_message(2, f"{path}:", "momentum is inf; write a finite number")


# ---------------------------------------------------------------- the last resort


def test_faults_of_the_surroundings_are_not_to_be_reported(cli, monkeypatch):
    import errno

    def command_that(error):
        def run(**arguments):
            raise error

        monkeypatch.setattr("ltcore.listing.plugins.plugin_rows", lambda *args: run())
        return cli("plugins")

    full = OSError(errno.ENOSPC, "x", "/data/a\nb")
    command_that(full).is_one_message(1, r"ltcore stopped: /data/a\nb: No space left on device; free some space there")
    command_that(OSError(errno.EIO, "x")).is_one_message(
        1, "stopped: Input/output error; look at the disk or the drive"
    )
    command_that(OSError("cannot write 5 bytes")).is_one_message(1, "stopped: cannot write 5 bytes; look at the disk")
    command_that(MemoryError()).is_one_message(1, "no memory is left", "lower batch_size")
    text = (
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    )
    command_that(RuntimeError(f"{text}\nmore")).is_one_message(1, "no memory is left", "lower batch_size")
    command_that(RuntimeError("unable to write: No space left on device (28)")).is_one_message(1, "/dev/shm")
    command_that(ValueError("embedded null byte")).is_one_message(1, "a path holds the character NUL")
    unnamed = UnicodeEncodeError("ascii", "a\xfcb", 1, 2, "ordinal not in range(128)")
    command_that(unnamed).is_one_message(
        1, "ltcore stopped: the locale's encoding, ascii, has no '\xfc'", "PYTHONUTF8=1"
    )
    wrapped = RuntimeError("a library's own words")
    wrapped.__cause__ = full
    command_that(wrapped).is_one_message(1, "ltcore stopped: /data", "No space left")
    mistake = command_that(KeyError("x"))
    mistake.is_one_message(1, "ltcore failed: KeyError: 'x'", "please report it")
    assert "report it" not in command_that(full).err


def test_every_fault_says_what_to_do():
    import errno

    for number in errno.errorcode:
        said = fault(OSError(number, "x"), "or do that")
        assert said.startswith(f"{os.strerror(number)}; ") and said.endswith(", or do that")
    assert issubclass(RunError, LtcoreError)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a.png 0\nb\0.png 1\n", "list.txt:2: it holds the character NUL"),
        (f"a.png 0\nb.png {10**12}\n", "list.txt:2: the label 100000000... is absurdly long"),
        (f"a.png 0\nb.png {'9' * 5000}\n", "list.txt:2: the label 999999999... is absurdly long"),
    ],
)
def test_lists_of_strangers(content, said, tmp_path):
    from ltcore.data.image_list import read_list

    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize("text", ["[" * 100_000, "[NaN, 3]", f"[{'9' * 5000}, 3]"], ids=len)
def test_counts_of_strangers(text, tmp_path):
    from ltcore.data.counts import read_counts

    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(DataError, match=r"--counts .*counts\.json: it cannot be read as JSON \("):
        read_counts(tmp_path / "counts.json")


def test_an_array_without_its_head_is_damaged(copy):
    import zipfile

    path = copy / "predictions.npz"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content[1:] if name.startswith("targets") else content)
    with pytest.raises(RunError, match="its targets are no labels"):
        read_predictions(path, 10)
