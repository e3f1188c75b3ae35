"""Every recipe that we ship loads, fits together, and says what it is."""

import runpy
from pathlib import Path

import pytest

from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.sampled(3)
@pytest.mark.sampled(4)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    plan = make_plan(load_recipe(path), to_run=False)
    assert plan.loaded.recipe.description
    assert f"ltcore run recipes/{path.name}" in path.read_text(), "the head shows the command"


def test_a_cifar10_recipe_differs_from_its_twin_by_the_data_only():
    own = (
        "ofa",
        "stg",
        "feature",
        "mislas",
        "cdt",
        "glag",
        "cb_fine_tuning",
        "metasaug",
        "_vs",
        "focal_sam",
    )  # their papers give CIFAR-10 settings of its own, or nothing else; the subset goes by the classes' size
    twins = [p for p in RECIPES if p.stem.startswith("cifar10_lt_") and not any(name in p.stem for name in own)]
    assert len(twins) == 35
    for path in twins:
        ours, other = (
            load_recipe(p).source for p in (path, path.with_name(path.name.replace("cifar10_", "cifar100_")))
        )
        changed = {key for key in ours.keys() | other.keys() if ours.get(key) != other.get(key)}
        assert changed - {"published"} == {"name", "description", "data"}


# Section 4.1 of SAFA: batch, epochs, learning rate, milestones, the epoch after T_th.
SAFA = {
    "cifar100_lt_safa_ldam_drw": ("layer2", 128, 200, 0.1, [160, 180], 160),
    "imagenet_lt_resnext50_safa_ldam": ("layer3", 256, 100, 0.1, [60, 80, 95], 60),
    "places_lt_safa_ldam": ("layer3", 256, 30, 0.01, [10, 20], 10),
    "inaturalist2018_safa_ldam": ("layer3", 256, 90, 0.1, [50, 70, 85], 70),
}


@pytest.mark.parametrize("name", SAFA)
def test_safa_trains_as_its_paper_says(name):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml").recipe
    (stage,) = recipe.stages
    options = recipe.methods["safa"].options
    found = (stage.batch_size, stage.epochs, stage.optimizer.lr, stage.schedule.milestones, options["start_epoch"])
    assert (options["tap"], *found) == SAFA[name]
    assert options["head_ratio"] == 0.2
    assert stage.trainable == ["backbone", "classifier", "safa"]


@pytest.mark.parametrize("path", [p for p in RECIPES if "_safa_" in p.stem], ids=lambda path: path.stem)
def test_a_safa_recipe_adds_safa_to_its_baseline(path):
    stem = path.stem.removesuffix("_safa_ldam") + "_ldam_drs" if path.stem.endswith("_safa_ldam") else None
    baseline = load_recipe(path.with_stem(stem or path.stem.replace("_safa_", "_"))).source
    safa = load_recipe(path).source
    assert safa["methods"].pop("safa")
    for stage in safa["stages"]:
        stage["methods"].remove("safa")
        stage["trainable"].remove("safa")
    changed = {key for key in baseline.keys() | safa.keys() if baseline.get(key) != safa.get(key)}
    assert changed - {"published"} == {"name", "description"}


PUBLISHED = [path for path in RECIPES if "published:\n" in path.read_text()]  # an empty list drops the parent's


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_figures_hold_for_settings_that_exist(path):
    from ltcore.recipe.identity import flat

    recipe = load_recipe(path).recipe
    settings = dict(flat(recipe.model_dump(mode="json")))
    assert all(condition in settings for figure in recipe.published for condition in figure.when)
    holding = [f for f in recipe.published if all(settings[key] == value for key, value in f.when.items())]
    assert len(holding) == 1, "one figure for the recipe as it stands"


def test_the_index_has_every_recipe():
    index = runpy.run_path(str(ROOT / "benchmarks" / "recipe_index.py"))
    text = (ROOT / "docs" / "recipe_index.md").read_text()
    assert index["page"](ROOT / "recipes") == text, "write it again: python benchmarks/recipe_index.py"
    assert all(text.count(f"(../recipes/{path.name})") == 1 for path in RECIPES)


@pytest.mark.parametrize(
    ("name", "comment", "published", "outcome"),
    [
        (
            "places_lt_a",
            "Not verified by us yet.",
            "[{value: 41.5, source: 'SAFA, table 3'}]",
            "SAFA, table 3 | 41.5 | not yet",
        ),
        (
            "places_lt_b",
            "Verified by us: 41.2 over three seeds.",
            "[{value: 4.5, source: 'CDT, table 2', when: {seed: 7}}, {value: 6, source: 'CDT, table 2', note: 'big'}]",
            "CDT, table 2 | 6.0 (big); 4.5 at seed 7 | yes",
        ),
        (
            "places_lt_d",
            "Not verified by us yet.",
            "[{value: 41.5, top5: 70, many: 42.1, medium: 42.7, few: 33.4, source: 'SAFA, table 3', note: 'n'}]",
            "SAFA, table 3 | 41.5 (top5 70.0, many 42.1, medium 42.7, few 33.4, n) | not yet",
        ),
        ("places_lt_c", "Not verified by us yet (OFA, section 4).", "[]", None),
        ("flowers_a", "Not verified by us yet.", "[]", None),
    ],
)
def test_the_index_reads_heads_and_published_figures(name, comment, published, outcome, tmp_path):
    index = runpy.run_path(str(ROOT / "benchmarks" / "recipe_index.py"))
    base = ROOT / "recipes" / "digits_lt_ce.yaml"
    (tmp_path / f"{name}.yaml").write_text(
        f"# {comment}\nextends: {base}\ndescription: 'flowers, Places-LT'\npublished: {published}\n"
    )
    if outcome is None:
        with pytest.raises(ValueError, match=name):
            index["page"](tmp_path)
    else:
        assert f"| flowers | {outcome} |" in index["page"](tmp_path)
