"""The tables of OFA and SAFA: typed a second time in part, counted, loaded, and planned."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.tables.schema import BESIDE
from ltcore.tables.table import Cell, Recipes, Table

ROOT = Path(__file__).parents[1]
RECIPES = Recipes()

#: Cells and those of them that wait for something, by table.
COUNTS = {
    "ofa_1": (82, 0),
    "ofa_2": (82, 0),
    "ofa_3": (16, 0),
    "ofa_4": (18, 0),
    "ofa_fig8": (80, 0),
    "ofa_fig9": (40, 0),
    "safa_1": (150, 0),
    "safa_2": (11, 0),
    "safa_3": (11, 0),
    "safa_4": (12, 0),
    "safa_5": (40, 0),
    "safa_6": (60, 0),
}
PRINTED = tuple(name for name in COUNTS if "fig" not in name)

#: Typed from the papers' text again, without a look at the tables: the headline, then many, medium and few.
TYPED = {
    "safa_1 focal/cifar10_50": (23.29,),
    "safa_1 cb_focal/cifar100_50": (54.79,),
    "safa_5 resnet56/cifar10_200_safa": (21.49,),
    "ofa_2 ours/resnet18_200": (42.84,),
    "ofa_4 cb_resnet101/inaturalist2018": (63.88,),
    "ofa_2 fl_2/resnet34_100": (43.33,),
    "ofa_2 baseline/resnet34_20": (57.55,),
    "safa_5 resnet110/cifar100_200": (59.13,),
    "safa_3 focal/places_lt": (34.6, 41.1, 34.8, 22.4),
    "safa_3 disalign/places_lt": (39.3, 40.4, 42.4, 30.1),
    "safa_1 focal_rsg/cifar10_200": (30.12,),
    "safa_1 meta_weight/cifar100_10": (41.09,),
    "ofa_2 fl_2/resnet18_10": (63.37,),
    "ofa_1 fl_1/resnet34_100": (76.44,),
    "safa_6 without_head_mode_seeking/cifar10_20": (13.67,),
}

#: Cells that are the experiment of a recipe of that name, so that one run serves both.
RECIPE_OF = {
    "safa_1 ce/cifar100_100": "cifar100_lt_ce",
    "safa_1 cb_focal/cifar10_100": "cifar10_lt_cb_focal",
    "safa_1 l2rw/cifar10_100": "cifar10_lt_l2rw",
    "safa_1 meta_weight/cifar100_100": "cifar100_lt_meta_weight_net",
    "safa_1 ldam_drw_rsg/cifar100_100": "cifar100_lt_rsg_ldam_drw",
    "safa_1 ldam_drw_safa/cifar100_100": "cifar100_lt_safa_ldam_drw",
    "safa_2 joint/imagenet_lt": "imagenet_lt_resnext50_ce",
    "safa_2 ldam_drs_safa/imagenet_lt": "imagenet_lt_resnext50_safa_ldam",
    "safa_3 ldam_drs/places_lt": "places_lt_ldam_drs",
    "safa_3 disalign/places_lt": "places_lt_disalign",
    "safa_4 ldam_drw_ssp/inaturalist2018": "inaturalist2018_ssp_ldam_drw",
    "safa_4 ldam_drs_safa/inaturalist2018": "inaturalist2018_safa_ldam",
    "safa_6 full/cifar10_100": "cifar10_lt_safa_ldam_drw",
    "ofa_1 baseline/resnet18_100": "cifar10_lt_ce_resnet18",
    "ofa_2 ours/resnet18_100": "cifar100_lt_ofa_resnet18",
    "ofa_3 plain/places_lt": "places_lt_ce",
    "ofa_3 ours_fl/imagenet_lt": "imagenet_lt_resnet10_ofa_focal",
    "ofa_4 ours_resnet50/inaturalist2018": "inaturalist2018_ofa",
    "ofa_fig8 ratio_0_9/cifar10_100": "cifar10_lt_ofa_resnet18",
    "ofa_fig9 block4/cifar100_100": "cifar100_lt_ofa_resnet18",
}

#: Cells of two tables that are one experiment.
SHARED = {
    "safa_5 resnet32/cifar10_10_safa": "safa_1 ldam_drw_safa/cifar10_10",
    "safa_6 ldam_drw/cifar100_50": "safa_1 ldam_drw/cifar100_50",
    "safa_3 focal/places_lt": "ofa_3 fl/places_lt",
    "safa_4 cb_focal/inaturalist2018": "ofa_4 cb_resnet50/inaturalist2018",
    "ofa_fig8 ratio_0_9/cifar100_20": "ofa_2 ours/resnet18_20",
    "ofa_fig9 block4/cifar10_200": "ofa_1 ours/resnet18_200",
}


@cache
def table(name: str) -> Table:
    return Table(ROOT / "tables" / f"{name}.yaml", RECIPES)


def found(name: str) -> tuple[Table, Cell]:
    """The table and the cell of ``TABLE ROW/COLUMN``."""
    where, place = name.split()
    row, column = place.split("/")
    return table(where), table(where).cells[row, column]


def digest_of(name: str) -> str:
    where, cell = found(name)
    return where.digest(cell)


def test_the_number_of_cells() -> None:
    for name, counts in COUNTS.items():
        cells = table(name).cells.values()
        assert (len(cells), sum(bool(cell.waits) for cell in cells)) == counts, name
    # Figures that OFA and SAFA print in their tables.
    assert sum(COUNTS[name][0] for name in PRINTED) == 482
    for name in COUNTS:
        assert {cell.printed is not None for cell in table(name).cells.values()} == {name in PRINTED}


def test_cells_typed_again() -> None:
    names = sorted(f"{name} {cell.name}" for name in PRINTED for cell in table(name).cells.values())
    assert set(random.Random(17).sample(names, 15)) == set(TYPED)
    for name, figures in TYPED.items():
        printed = found(name)[1].printed
        assert printed is not None
        groups = (printed.many, printed.medium, printed.few)
        assert (printed.value, *(group for group in groups if group is not None)) == figures, name


@pytest.mark.parametrize("paper", ["ofa", "safa"])
def test_figures_of_recipes_stand_in_their_table(paper: str) -> None:
    """The figures of the recipes were typed on their own, as accuracies; a figure's experiment is a cell with it."""
    places: dict[tuple[str, str], list[Cell]] = {}
    for name in PRINTED:
        for cell in table(name).cells.values():
            if not cell.waits:
                places.setdefault((name, table(name).digest(cell)), []).append(cell)
    seen = 0
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        for figure in RECIPES.changed(path).recipe.published if f"{paper.upper()}, table" in path.read_text() else ():
            source, _, number = figure.source.lower().partition(", table ")
            if source != paper:
                continue
            changes = [(f"{key}={value}", "when") for key, value in figure.when.items()]
            cells = places[f"{paper}_{number}", digest(RECIPES.changed(path, changes))]
            told = {"value": figure.value} | {key: getattr(figure, key) for key in BESIDE}
            if table(f"{paper}_{number}").file.metric == "error":
                told = {key: None if value is None else pytest.approx(100 - value) for key, value in told.items()}
            for cell in cells:
                assert cell.printed is not None
                assert {key: getattr(cell.printed, key) for key in told} == told, (path.stem, cell.name)
            seen += 1
    assert seen == {"ofa": 49, "safa": 125}[paper]


def test_cells_are_the_recipes_of_that_name() -> None:
    for name, recipe in RECIPE_OF.items():
        assert digest_of(name) == digest(load_recipe(ROOT / "recipes" / f"{recipe}.yaml")), name


def test_tables_share_experiments() -> None:
    for one, other in SHARED.items():
        assert digest_of(one) == digest_of(other), (one, other)


@pytest.mark.parametrize("name", COUNTS)
def test_every_runnable_cell_is_an_experiment_of_its_own(name: str) -> None:
    by_digest: dict[str, list[str]] = {}
    for cell in table(name).cells.values():
        if not cell.waits:
            by_digest.setdefault(table(name).digest(cell), []).append(cell.name)
    twice = [names for names in by_digest.values() if len(names) > 1]
    assert twice == ([["ce/imagenet_lt", "joint/imagenet_lt"]] if name == "safa_2" else [])


#: Of the kinds of change that no recipe makes, one each; all rows take a minute and a half.
QUICK = (
    "ofa_1 cb_0_9/resnet18_10",
    "ofa_4 cb_resnet50/inaturalist2017",
    "ofa_fig9 block2/cifar10_10",
    "ofa_fig9 no_aug/cifar100_10",
    "safa_1 focal_rsg/cifar100_50",
    "safa_2 lws/imagenet_lt",
    "safa_4 ce_drs/inaturalist2018",
    "safa_5 densenet40/cifar10_10_safa",
    "safa_6 without_cycle/cifar10_20",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_cell_is_planned(name: str) -> None:
    from ltcore.plan.plan import make_plan

    where, cell = found(name)
    make_plan(where.loaded(cell), to_run=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_every_runnable_cell_is_planned(name: str) -> None:
    from ltcore.plan.plan import make_plan

    planned = set()
    for cell in table(name).cells.values():
        if not cell.waits and table(name).digest(cell) not in planned:
            planned.add(table(name).digest(cell))
            make_plan(table(name).loaded(cell), to_run=False)
    assert len(planned) == COUNTS[name][0] - COUNTS[name][1] - (name == "safa_2")
