"""On a terminal of 80 columns no word is cut; elsewhere lines stay as they are."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ltcore.progress.wrapping import wrapped

NOTE = "note       classes of one image, which is trained on and none tested: 12, first 'a', 'b'"


def test_what_goes_on_stands_below_the_text():
    assert wrapped(NOTE, 40) == (
        "note       classes of one image, which\n"
        "           is trained on and none\n"
        "           tested: 12, first 'a', 'b'"
    )
    assert wrapped("  deeper  one two three four five six seven", 30).split("\n")[1] == "          five six seven"
    assert wrapped(NOTE, 200) == NOTE


def test_a_command_and_a_path_stay_in_one_piece():
    command = "compare with ltcore run recipe.yaml --set 'stages.train.methods=[]' --set 'methods={}' --set name=b"
    assert wrapped(command, 40) == command
    path = "/a/path/" + "x" * 60
    assert wrapped(f"wrote {path}, with the reasons", 40) == f"wrote\n{path},\nwith the reasons"


def test_wide_signs_take_two_columns():
    assert wrapped("猫猫猫猫 犬犬犬犬 鳥鳥鳥鳥", 20) == "猫猫猫猫 犬犬犬犬\n鳥鳥鳥鳥"


@given(
    st.lists(st.text("abc,'", min_size=1, max_size=30), min_size=1, max_size=30), st.integers(40, 100), st.booleans()
)
def test_the_same_words_in_lines_that_fit(words, width, lead):
    line = ("label    " if lead else "") + " ".join(words)
    parts = wrapped(line, width).split("\n")
    assert " ".join(parts).split() == line.split()
    assert all(len(part) <= width or len(part.split()) == 1 for part in parts)
    # No line ends where the next word would still have fitted.
    for one, two in pairwise(parts):
        assert len(one) + 1 + len(two.split()[0]) > width


@pytest.fixture
def terminal(monkeypatch):
    """Run a command line in this process on a terminal of 80 columns; returns what it shows, line by line."""
    from ltcore.cli import main

    def run(*words):
        leading, following = pty.openpty()
        fcntl.ioctl(following, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        mode = termios.tcgetattr(following)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(following, termios.TCSANOW, mode)
        with monkeypatch.context() as patch, open(following, "w", closefd=False) as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "argv", ["ltcore", *map(str, words)])
            # A terminal holds a few kilobytes; these commands say less.
            main()
        os.set_blocking(leading, False)
        text = os.read(leading, 1 << 16).decode()
        os.close(leading)
        os.close(following)
        return text.splitlines()

    return run


@pytest.fixture
def photos(tmp_path):
    """Images of three classes with long names, one of them of a single image."""
    for name, count in (("a_rather_long_name_of_a_class", 9), ("another_such_name_of_a_class", 4), ("lone", 1)):
        folder = tmp_path / "photos_of_a_long_walk_through_woods_and_meadows" / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    return folder.parent


def assert_fits(lines, plain):
    """Nothing is longer than the terminal but commands and single words; and the words are those of a pipe."""
    assert lines, "nothing was shown"
    for line in lines:
        assert len(line) <= 80 or len(line.split()) == 1 or re.search(r"ltcore (run|rehearse) ", line), line
    assert " ".join(lines).split() == plain.split()


def test_init_plan_and_describe_cut_no_word(photos, tmp_path, terminal, cli):
    recipe = tmp_path / "recipe.yaml"
    shown = terminal("init", photos, "--out", recipe, "--minutes", "1")
    assert len([line for line in shown if line.startswith(" ")]) > 0  # something was too long, or this tests nothing
    assert all(len(line) <= 80 or len(line.split()) == 1 or "ltcore r" in line for line in shown), shown
    assert_fits(terminal("plan", recipe), cli("plan", recipe).out)
    described = cli("data", "describe", recipe).out
    assert max(map(len, described.splitlines())) > 80  # a pipe gets whole lines
    assert_fits(terminal("data", "describe", recipe), described)
