"""The YAML that recipes are written in, and that run directories keep."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltcore.errors import RecipeError
from ltcore.recipe import yaml_source
from ltcore.recipe.yaml_source import dump_yaml, parse, read_recipe_file


def value(text):
    return parse(text, lambda line: f"r.yaml:{line}").plain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", "Null"),
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-01", "2026-11-01"),
        ("-.inf", -math.inf),
        (".", "."),
        ("-", [None]),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("{a: [1, {b: }]}", {"a": [1, {"b": None}]}),
        ("- &x {a: 1}\n- *x", [{"a": 1}, {"a": 1}]),
    ],
)
def test_values_are_those_of_yaml_1_2(text, expected):
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_nan():
    assert math.isnan(value(".nan"))


def test_every_value_knows_its_line_and_keys_win():
    root = parse("a: 1\nb:\n  - c:\n      2\n  -\n    - 3\n", lambda line: f"r.yaml:{line}")
    b = root.get("b")
    assert [root.where, root.get("a").where, b.where] == ["r.yaml:1", "r.yaml:1", "r.yaml:2"]
    assert [b.get(0).where, b.get(0).get("c").where, b.get(1).get(0).where] == ["r.yaml:3", "r.yaml:3", "r.yaml:6"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "r.yaml:1: the recipe is empty"),
        (b"# only a comment\n", "r.yaml:1: the recipe is empty"),
        (b"- a\n", "r.yaml:1: a recipe is a mapping of keys to values ('data: ...', 'stages: ...')"),
        (b"# head\nhello\n", "r.yaml:2: a recipe is a mapping of keys to values ('data: ...', 'stages: ...')"),
        (b"a: 1\nb: 2\na: 3\n", "r.yaml:3: key 'a' appears twice in one mapping; the first is on line 1"),
        (b"a:\n  1: x\n", "r.yaml:2: a key must be text, not 1; put it in quotes"),
        (b"a:\n  true: x\n", "r.yaml:2: a key must be text, not true; put it in quotes"),
        (b"? [a]\n: x\n", "r.yaml:1: a key must be text, not a list or mapping"),
        (
            b"a: &x {b: 1}\nc:\n  <<: *x\n",
            "r.yaml:3: merge keys ('<<') are not supported; use 'extends', or repeat the keys",
        ),
        (b"a: b: c\n", "r.yaml:1: not valid YAML: mapping values are not allowed here"),
        (
            b"a:\n\tb: 1\n",
            "r.yaml:2: not valid YAML: while scanning for the next token; found character '\\t' that cannot start any "
            "token (indent with spaces, not tabs)",
        ),
        (
            b"a: [1,\nb: 2\n",
            "r.yaml:3: not valid YAML: while parsing a flow sequence; expected ',' or ']', but got '<stream end>'",
        ),
        (
            b"a: 1\n---\nb: 2\n",
            "r.yaml:2: not valid YAML: expected a single document in the stream; but found another document",
        ),
        (b"a: *x\n", "r.yaml:1: not valid YAML: found undefined alias 'x'"),
        (b"a: &x [*x]\n", "r.yaml:1: an alias refers to the value that contains it"),
        (
            b"a: !!python/name:os.system\n",
            "r.yaml:1: the YAML tag '!!python/name:os.system' is not supported; leave it out",
        ),
        (b"a:\n  !mine {}\n", "r.yaml:2: the YAML tag '!mine' is not supported; leave it out"),
        (b"a:\n  !mine [1, 2]\n", "r.yaml:2: the YAML tag '!mine' is not supported; leave it out"),
        (b"a: !!map [1, 2]\n", "r.yaml:1: the YAML tag '!!map' is not supported; leave it out"),
        (b"a: !!seq {b: 1}\n", "r.yaml:1: the YAML tag '!!seq' is not supported; leave it out"),
        (b"a: !!seq text\n", "r.yaml:1: the YAML tag '!!seq' is not supported; leave it out"),
        (b"a: !!int 0x10\n", "r.yaml:1: cannot be read as a number: 0x10"),
        (b"a: " + b"9" * 5000, "r.yaml:1: cannot be read as a number: " + "9" * 40),
        (b"a: 1\nb: \x07\n", "r.yaml:2: the character '\\x07' is not allowed in YAML"),
        (b'a: "\\UFFFFFFFF"\n', "r.yaml:1: not valid YAML: an escape names no character"),
        (b'a: "\\ud800"\n', "r.yaml:1: the text holds half of a surrogate pair, which is no character"),
        (b"a: 1\nb: \xe9\n", "r.yaml:2: not a text file in UTF-8"),
        (b"a: " + b"[" * 60 + b"]" * 60, "r.yaml:1: nested more than 50 deep"),
        (b"a: " + b"[" * 1000, "r.yaml:1: nested more than 50 deep"),
    ],
)
def test_a_bad_file_is_one_message_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe_file(Path("r.yaml"))
    assert str(caught.value) == message


def test_multiplying_aliases_are_stopped():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="more than 100000 values"):
        value("\n".join(lines))


def test_unreadable_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cifar.yaml").write_text("a: 1", encoding="utf-8")
    Path("folder").mkdir()
    for name, message in [
        ("cifr.yaml", "cifr.yaml: no such file; did you mean 'cifar.yaml'?"),
        ("none/r.yaml", "none/r.yaml: no such file"),
        ("folder", "folder: is a directory; name a recipe file in it, or for a folder of images: ltcore init folder"),
        ("cifar.yaml/x", "cifar.yaml/x: cannot be read: Not a directory"),
    ]:
        with pytest.raises(RecipeError) as caught:
            read_recipe_file(Path(name))
        assert str(caught.value) == message


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: ü\r\n".encode())
    assert read_recipe_file(path).plain() == {"a": 1, "b": "ü"}


TRICKY = [
    "off",
    "1e3",
    "true",
    "null",
    "~",
    "",
    "<<",
    "=",
    "1_0",
    "- a",
    "a: b",
    " x",
    "x\n",
    "#",
    "\x85\u2028",
    "\ufeff",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.sampled_from(TRICKY),
    st.text("0123456789eE+-._ \n\t:'\"#~tfn", max_size=6),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(1 - 2**63, 2**63 - 1), st.floats(allow_nan=False), texts)
data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(texts, data, max_size=5))
def test_what_is_dumped_loads_to_the_same(source):
    # JSON tells true from 1 and 1 from 1.0, which == does not.
    assert json.dumps(value(dump_yaml(source))) == json.dumps(source)


def test_dump_is_readable():
    source = {"name": "x", "stages": [{"name": "a", "lr": 1e-05, "cache": "off", "n": "1e3", "counts": [1, 2]}]}
    assert dump_yaml(source) == (
        "name: x\nstages:\n- name: a\n  lr: 1.0e-05\n  cache: off\n  n: '1e3'\n  counts: [1, 2]\n"
    )


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{a: " * 200_000, "- " * 100_000, "? " * 50_000, "[" * 60 + "]" * 60], ids=len
)
def test_depth_is_limited_while_parsing(text):
    began = time.process_time()
    with pytest.raises(RecipeError, match=r"^r\.yaml:1: nested more than 50 deep$"):
        value(text)
    assert time.process_time() - began < 2


def test_depth_is_that_of_the_place_and_not_of_what_stood_before():
    before = ", ".join(["[]"] * 2000)
    assert value(f"[{before}, {'[' * 49}{']' * 49}]")
    with pytest.raises(RecipeError, match=r"nested more than 50 deep"):
        value(f"[{before}, {'[' * 2000}{']' * 2000}]")  # deeper than Python's stack


def test_the_number_of_values_is_limited_while_parsing(monkeypatch):
    assert yaml_source._MAX_VALUES == 100_000
    monkeypatch.setattr(yaml_source, "_MAX_VALUES", 100)
    assert len(value("[" + "1," * 99 + "]")) == 99  # and the list itself
    with pytest.raises(RecipeError, match=r"^r\.yaml:1: more than 100 values"):
        value("[" + "1," * 100 + "]")


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63)), "1" + "0" * 40, "1" + "0" * 5000], ids=len)
def test_absurd_whole_numbers_are_refused(number):
    with pytest.raises(
        RecipeError, match=r"^r\.yaml:1: (the number -?\d+\.\.\. is beyond 64 bits|cannot be read as a number)"
    ):
        value(f"a: {number}")
    assert value(f"a: {2**63 - 1}") == {"a": 2**63 - 1}


def test_nul_is_in_no_text():
    with pytest.raises(RecipeError, match=r"^r\.yaml:2: the text holds the character NUL"):
        value('a: 1\nb: "x\\0y"')


def test_special_files_are_refused_before_they_are_read(tmp_path, cli):
    pipe, zero, large = (tmp_path / name for name in ("pipe.yaml", "zero.yaml", "large.yaml"))
    os.mkfifo(pipe)
    zero.symlink_to("/dev/zero")
    with open(large, "wb") as file:
        file.truncate(2**40)  # without a byte on the disk
    for path in (pipe, zero):
        cli("plan", path).is_one_message(2, f"{path}: is a pipe or a device; write the recipe into a file first")
        child = tmp_path / "child.yaml"
        child.write_text(f"extends: {path.name}\n")
        cli("plan", child).is_one_message(2, f"{child}:1: extends: {path}: is no file")
    cli("plan", large).is_one_message(2, f"{large}: has 1,099,511,627,776 bytes, and a recipe has at most 262,144")
    cli("plan", tmp_path).is_one_message(
        2, f"{tmp_path}: is a directory; name a recipe file in it, or for a folder of images: ltcore init {tmp_path}"
    )
