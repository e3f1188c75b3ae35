"""The recipe language: YAML with places, inheritance, changes from the command line, and plain-worded validation.

Free of torch, so that a mistake in a recipe is reported at once.
"""

from ltcore.contract.recipe import Data, MethodEntry, Optimizer, Recipe, Schedule, Stage, Transform, Use
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.recipe.validation import validate
from ltcore.recipe.yaml_source import dump_yaml

__all__ = [
    "Data",
    "LoadedRecipe",
    "MethodEntry",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Stage",
    "Transform",
    "Use",
    "dump_yaml",
    "load_recipe",
    "validate",
]
