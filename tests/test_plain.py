"""The English of pages, cards and docstrings, held by ``docs/plain.py``; and that script, on sentences made for it."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def plain():
    spec = importlib.util.spec_from_file_location("plain", ROOT / "docs" / "plain.py")
    module = sys.modules["plain"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def places(plain):
    return plain.places()


def test_a_is_not_written_for_per(plain, places):
    written = [found for name in plain.GENERATED for found in plain.found(name, plain.markdown(read(name)))]
    assert not [place for place in [*places, *written] if place.kind == "a for per"], "write 'per'"


def test_a_first_line_is_not_repeated(places):
    assert not [place for place in places if place.kind == "repeated first line"], "say something new after it"


#: Long sentences that are left: lists of names, and figures that belong together. Lower it when there are fewer.
LONG = {"pages": 6, "cards": 30, "docstrings": 22}


def test_sentences_do_not_grow_longer(plain, places):
    found = Counter(plain.group(place.file) for place in places if place.kind == "long sentence")
    assert all(found[what] <= most for what, most in LONG.items()), f"{found}: python docs/plain.py --show"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It takes 3 s a step.", ["3 s a step"]),
        ("500 to 5 training images a class", ["500 to 5 training images a class"]),
        ("66,471 images a second", ["66,471 images a second"]),
        ("Worker processes, one a core", ["one a core"]),
        ("one `.item()` a step", ["one CODE a step"]),
        ("put into a folder a class", ["a folder a class"]),
        ("up to a positive factor a row", ["a positive factor a row"]),
        ("called once an epoch", ["once an epoch"]),
        ("It takes 3 s per step.", []),
        ("How many images a class has", []),
        ("It names a method and runs a stage.", []),
        ("one in a million; each is a recipe", []),
        ("a method returns a row of the table", []),
        ("a class with a loss, or a mean of a class", []),
        ("two stages and a run", []),
        ("only once a stage has been trained", []),
    ],
)
def test_a_for_per_is_found_and_an_article_is_not(plain, text, expected):
    assert plain.per(text) == expected


def test_sentences_are_counted_without_code_tables_and_addresses(plain):
    long = " ".join(["word"] * 26)
    code = f"```\n{long}.\n```\n\n    {long}.\n\n| {long} |\n"
    page = f"# Title\n\n{long}.\n\n{code}\n- Short one. `{long}` is short,\n  e.g. so.\n"
    assert [(place.line, place.kind) for place in plain.found("page.md", plain.markdown(page))] == [
        (3, "long sentence")
    ]
    link = f"One [{' '.join(['word'] * 23)}](https://example.org/a/b) here. Two."
    assert [plain.words(part) for part in plain.sentences(link)] == [25, 1]


def test_first_lines_are_compared_with_what_follows(plain):
    line = "Change a copy of the trained classifier."
    said = f'"""{line}\n\nThe trained classifier is copied, and the copy is changed.\n"""\n'
    other = f'"""{line}\n\nCalled once, without gradients.\n\nArgs:\n    copy: the trained classifier to change.\n"""\n'
    assert [place.kind for place in plain.found("a.py", plain.docstrings(said))] == ["repeated first line"]
    assert not list(plain.found("a.py", plain.docstrings(other)))
