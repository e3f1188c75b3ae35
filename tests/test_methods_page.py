"""docs/methods.md, which a script makes of code, cards, recipes and measurements; and the measurements themselves."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from ltcore.discovery import catalogue

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text()
COST = json.loads((ROOT / "results" / "methods_cost.json").read_text())


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "make_methods.py"))


def test_the_page_is_what_the_script_writes(script):
    assert script["page"]() == PAGE, "run: python docs/make_methods.py"


def test_every_method_has_one_row():
    kinds = PAGE.partition("## What excludes what")[0]
    rows = re.findall(r"^\| \[`(\w+)`\]", kinds, re.MULTILINE)
    cards = ROOT.glob("plugins/*/pyproject.toml")
    ours = {f"ltcore-{path.parent.name.replace('_', '-')}" for path in cards}
    assert sorted(rows) == sorted(offer.name for offer in catalogue.offers() if offer.distribution in ours)


def test_measured_costs_are_of_methods_that_are_there():
    installed = {offer.name for offer in catalogue.offers()}
    assert set(COST["methods"]) <= installed, "take out of results/methods_cost.json what is no longer a method"
    for name, each in COST["methods"].items():
        assert ("step_ratio" in each) != ("calibration_steps" in each), name
        assert each["measured"] and each["environment"]["threads"] == 1
        if "step_ratio" in each:
            assert each["lowest_turn"] <= each["step_ratio"] <= each["highest_turn"]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ("| paper | A. Bee, C.-D. van Eff, G. Aitch, *A Title*, CVPR 2019, section 3 |", ("Bee et al.", "2019")),
        (
            "| paper | A. Bee, C. Dee, *A Title* (AT), ICLR 2021 workshops; E. Eff, *Other*, 2022 |",
            ("Bee and Dee", "2021"),
        ),
        ("| paper of `new` | anonymous, *A Title*, under review at ICLR 2022 |", ("anonymous", "2022")),
    ],
)
def test_a_cards_paper_is_read(script, tmp_path, row, wanted):
    card = tmp_path / "README.md"
    card.write_text(f"# new\n\n| | |\n| --- | --- |\n{row}\n")
    found = script["cited"](card, "new")
    assert (found.authors, found.year) == wanted and found.title == "A Title"


@pytest.mark.parametrize("row", ["", "| paper | A. Bee, *A Title* |", "| paper of `other` | A. Bee, *A Title*, 2020 |"])
def test_a_card_without_a_paper_is_told_what_to_add(script, tmp_path, row):
    card = tmp_path / "README.md"
    card.write_text(f"# new\n\n| | |\n| --- | --- |\n{row}\n")
    with pytest.raises(ValueError, match=r"no paper of 'new': give the first table a row \| paper \|"):
        script["cited"](card, "new")


@pytest.mark.slow
def test_two_passes_cost_twice_as_much(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import methods_cost

    monkeypatch.delitem(sys.modules, "methods_cost")
    found = methods_cost.apart(methods_cost.timed, "sam")
    assert 1.6 < found["step_ratio"] < 2.6, found
