"""The tables of STG, GLAG and CDT: what they print, how much of it can be run, and that it fits together."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from ltcore.contract.recipe import Recipe
from ltcore.plan.plan import make_plan
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.tables.table import Recipes, Table

ROOT = Path(__file__).parents[1]
RECIPES = Recipes()

# The papers' cells by hand, how many of them can be run, and by how many runs.
CELLS = {
    "stg_1": (29, 29, 29),
    "stg_2": (29, 29, 29),
    "stg_3": (10, 10, 10),
    "stg_4": (9, 9, 9),
    "stg_5": (20, 20, 1),
    "stg_6": (6, 6, 6),
    "stg_7": (20, 20, 20),
    "glag_1": (12, 12, 6),  # a run has a figure of either stage
    "glag_2": (46, 46, 46),
    "glag_3": (16, 16, 16),
    "glag_4": (10, 10, 10),
    "glag_5": (6, 6, 6),
    "glag_6": (36, 36, 36),
    "glag_7": (7, 7, 7),
    "cdt_1": (12, 12, 8),  # means of test features are an analysis of the linear one's runs
    "cdt_2": (72, 72, 72),
    "cdt_3": (11, 11, 11),
    "cdt_4": (20, 20, 18),  # ERM as reported and as reproduced
    "cdt_5": (4, 4, 4),
    "cdt_6": (96, 96, 96),
    "cdt_7": (68, 68, 68),
    "cdt_8": (20, 20, 18),  # the same
    "cdt_9": (12, 12, 8),  # what is chosen on test images in the paper is chosen on held-out ones
    "cdt_fig6": (6, 6, 6),
    "cdt_fig13": (11, 11, 11),
}

# Typed from the papers a second time, without a look at the files; which ones, chance said (see the test).
TYPED_AGAIN = {
    ("cdt_2", "ldam", "cifar100_200"): {"value": 36.7},
    ("cdt_4", "cdt_tau_norm", "im10"): {"value": 52.7, "top5": 75.6},
    ("cdt_6", "count_norm_resampling", "cifar100_10"): {"value": 55.13},
    ("cdt_7", "cdt", "cifar100_10"): {"value": 59.6},
    ("cdt_7", "cdt", "cifar10_100"): {"value": 76.5},
    ("cdt_8", "erm_reported", "im10"): {"value": 49.1, "top5": 72.9},
    ("cdt_8", "erm_tau_norm", "im10"): {"value": 51.7, "top5": 75.2},
    ("cdt_9", "cifar100_cdt_count_norm", "held_out"): {"value": 43.92},
    ("glag_3", "ce", "resnet50"): {"value": 41.6},
    ("glag_4", "crt", "resnet50"): {"value": 65.2},
    ("glag_6", "lws_gra_loss", "im10"): {"value": 64.1},
    ("glag_6", "mislas_ce", "im200"): {"value": 45.7},
    ("stg_3", "lws_mixup", "all"): {"value": 52.0},
    ("stg_5", "sample3", "sample2"): {"value": 59.1},
    ("stg_7", "noise_05", "cifar10_lt"): {"value": 80.0},
}

# Cells that are a recipe of their own: one run serves both.
NAMED = {
    ("stg_1", "mislas", "im100"): "cifar10_lt_mislas",
    ("stg_2", "bbn", "im100"): "cifar100_lt_bbn",
    ("stg_2", "stg", "im100"): "cifar100_lt_stg",
    ("stg_6", "m1200", "imagenet_lt"): "imagenet_lt_stg",
    ("stg_7", "noise_15", "cifar10_lt"): "cifar10_lt_feature_noise",
    ("stg_7", "stg_15", "cifar10_lt"): "cifar10_lt_stg",
    ("glag_2", "metasaug", "im100"): "cifar100_lt_metasaug",
    ("glag_3", "metasaug", "resnet50"): "imagenet_lt_metasaug",
    ("glag_2", "rsg", "im100"): "cifar100_lt_rsg_ldam_drw",
    ("glag_2", "glag", "im100"): "cifar100_lt_glag",
    ("glag_2", "ssd", "im100"): "cifar100_lt_ssd",
    ("glag_3", "glag", "resnet10"): "imagenet_lt_resnet10_glag",
    ("glag_3", "glag", "resnet50"): "imagenet_lt_glag",
    ("glag_4", "glag", "resnet50"): "inaturalist2018_ssp_glag",
    ("glag_7", "gra_loss_ad_kd", "average"): "cifar100_lt_glag",
    ("cdt_1", "linear", "cdt"): "cifar10_lt_cdt",
    ("cdt_2", "erm_tau_norm", "cifar100_100"): "cifar100_lt_ce_tau_norm",
    ("cdt_3", "cdt", "count_norm"): "inaturalist2018_cdt_count_norm",
    ("cdt_4", "erm", "im100"): "tiny_imagenet_lt_ce",
    ("cdt_6", "count_norm_cdt", "cifar100_100"): "cifar100_lt_cdt_count_norm",
    ("cdt_7", "cdt", "cifar10_100"): "cifar10_lt_step_cdt",
    ("cdt_8", "erm", "im100"): "tiny_imagenet_lt_step_erm",
    ("cdt_9", "cifar10_cdt", "held_out"): "cifar10_lt_cdt_selected",
    ("cdt_fig6", "cdt", "gamma_03"): "cifar10_lt_cdt",
}

# Pairs of cells of different tables that are one experiment under two headings.
SHARED = [
    (("glag_1", "la_10", "stage_one"), ("glag_1", "la_10", "stage_two")),
    (("stg_2", "stg", "im100"), ("stg_5", "sample4", "sample5")),
    (("cdt_1", "linear", "resampling"), ("cdt_1", "test_mean", "resampling")),
    (("stg_2", "remix_drw", "im10"), ("glag_2", "remix_drw", "im10")),
    (("cdt_2", "cdt_tau_norm", "cifar10_200"), ("cdt_6", "tau_norm_cdt", "cifar10_200")),
    (("cdt_1", "training_mean", "reweighting"), ("cdt_6", "ncm_reweighting", "cifar10_100")),
    (("cdt_5", "imbalanced", "imbalanced"), ("cdt_6", "vanilla_erm", "cifar10_100")),
]


@cache
def table(name: str) -> Table:
    return Table(ROOT / "tables" / f"{name}.yaml", RECIPES)


def digest_of(name: str, row: str, column: str) -> str:
    return table(name).digest(table(name).cells[row, column])


def test_every_table_and_sweep_has_its_file() -> None:
    found = {path.stem for path in (ROOT / "tables").glob("*.yaml")}
    assert {name for name in found if name.split("_")[0] in ("stg", "glag", "cdt")} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_all_cells_of_the_paper_are_there_and_those_that_can_be_run_load(name: str) -> None:
    cells = table(name).cells.values()
    runnable = [cell for cell in cells if not cell.waits]
    assert (len(cells), len(runnable), len({table(name).digest(cell) for cell in runnable})) == CELLS[name]
    assert all((cell.printed is None) == ("fig" in name) for cell in cells)
    assert all(cell.waits.partition(": ")[0] in ("method", "tool", "weights") for cell in cells if cell.waits)


def test_cells_typed_a_second_time_are_the_same() -> None:
    places = [(name, *place) for name in sorted(CELLS) if "fig" not in name for place in table(name).cells]
    assert sorted(random.Random(17).sample(places, len(TYPED_AGAIN))) == sorted(TYPED_AGAIN), "chance chooses, not we"
    for (name, row, column), figures in TYPED_AGAIN.items():
        printed = table(name).cells[row, column].printed
        assert printed is not None
        assert printed.model_dump(exclude_none=True, exclude={"note"}) == figures, (name, row, column)


@pytest.mark.parametrize(("place", "recipe"), NAMED.items())
def test_a_cell_with_a_recipe_of_its_own_is_that_experiment(place: tuple[str, str, str], recipe: str) -> None:
    assert digest_of(*place) == digest(load_recipe(ROOT / "recipes" / f"{recipe}.yaml"))


@pytest.mark.parametrize(("one", "other"), SHARED)
def test_cells_that_two_tables_have_in_common_are_one_experiment(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert digest_of(*one) == digest_of(*other)


def test_papers_settings_that_only_tables_have() -> None:
    """Spot checks of what the changes amount to."""

    def recipe(name: str, row: str, column: str) -> Recipe:
        return table(name).loaded(table(name).cells[row, column]).recipe

    ce = recipe("stg_1", "ce", "im50")
    assert (ce.stages[0].schedule.gamma, ce.data.use, ce.data.imbalance.factor) == (0.1, "cifar10_lt", 50)
    step = recipe("cdt_7", "cdt_count_norm", "cifar10_200")
    assert (step.data.imbalance.kind, step.data.imbalance.factor, step.calibrate) == ("step", 200, ["count_norm"])
    assert step.select.options["methods.cdt.options.gamma"] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert len(step.select.options["methods.count_norm.options.tau"]) == 11
    crt = recipe("glag_4", "crt", "resnet50")
    assert [(s.epochs, s.batch_size, s.optimizer.lr) for s in crt.stages] == [(90, 512, 0.2), (30, 512, 0.2)]
    full = recipe("glag_5", "convex_8", "acc")
    assert full.stages[1].data.imbalance.kind == "none"
    assert full.methods["gra_loss"].options["scale"] * (8 - 1) == pytest.approx(1)
    assert recipe("cdt_fig13", "erm_count_norm", "tau_03").select is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CELLS if CELLS[name][1]])
def test_every_cell_that_can_be_run_plans(name: str) -> None:
    seen = set()
    for cell in table(name).cells.values():
        if cell.waits or (found := table(name).digest(cell)) in seen:
            continue
        seen.add(found)
        plan = make_plan(table(name).loaded(cell), to_run=False)
        assert cell.stage is None or cell.stage in [stage.stage.name for stage in plan.stages], cell.name
