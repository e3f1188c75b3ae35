"""Every recipe that we ship loads, fits together, and says what it is."""

from pathlib import Path

import pytest

from ltcore.plan import make_plan
from ltcore.recipe.loading import load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    plan = make_plan(load_recipe(path), to_run=False)
    assert plan.loaded.recipe.description
    assert f"ltcore run recipes/{path.name}" in path.read_text(), "the head shows the command"


def test_a_cifar10_recipe_differs_from_its_twin_by_the_data_only():
    own = ("ofa", "stg")  # their papers give CIFAR-10 settings of its own
    twins = [p for p in RECIPES if p.stem.startswith("cifar10_lt_") and not any(name in p.stem for name in own)]
    assert len(twins) == 32
    for path in twins:
        ours, other = (
            load_recipe(p).source for p in (path, path.with_name(path.name.replace("cifar10_", "cifar100_")))
        )
        changed = {key for key in ours.keys() | other.keys() if ours.get(key) != other.get(key)}
        assert changed == {"name", "description", "data"}
