"""Write docs/recipe_index.md: every recipe, what its paper published, and whether we have verified it.

    python benchmarks/recipe_index.py

All of it is read from the recipes: the published figures from their `published`, whether we have verified it from the
comments at their heads. A test holds the page against this script.
"""

from __future__ import annotations

from pathlib import Path

from ltcore.recipe.identity import flat
from ltcore.recipe.loading import LoadedRecipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipe_index.md"
DATA = {  # by the beginning of a recipe's name, in the page's order
    "digits_lt": "Digits",
    "photos_lt": "Photographs in folders",
    "cifar10_lt": "CIFAR-10-LT",
    "cifar100_lt": "CIFAR-100-LT",
    "tiny_imagenet_lt": "Tiny-ImageNet-LT",
    "imagenet_lt": "ImageNet-LT",
    "places_lt": "Places-LT",
    "inaturalist2018": "iNaturalist 2018",
}
VERIFIED = {
    "Not verified by us yet.": "not yet",
    "Verified by us": "yes",
    "ltcore run recipes/digits_lt": "protocol ours",
    "ltcore run recipes/photos_lt": "protocol ours",
}
HEAD = """# The recipes

This page lists each recipe of `recipes/`, with the top-1 accuracy that its paper published, in percent. It also has
top-5 and shot groups where the paper prints them. CIFAR is at imbalance 100 unless something else is said. The head of
a recipe says whose settings it has: the paper's, another's or ours. "Not yet" means that nobody here has run the recipe
to its end. The published figure is then the paper's, not ours. The recipes on the digits and on folders of photographs
follow protocols of our own, which no paper has. Their figures are in `results/` and on the plugins' cards.
`python benchmarks/recipe_index.py` writes this page.
"""


def head(path: Path) -> str:
    """The comment at a recipe's beginning, in one line."""
    lines = path.read_text().splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in comment)


def row(path: Path, data: str) -> str:
    """A recipe's line of the table of a data set.

    Raises:
        ValueError: its head does not say whether it is verified.
    """
    text = head(path)
    state = next((cell for words, cell in VERIFIED.items() if words in text), None)
    if state is None:
        raise ValueError(f"{path}: the head says neither 'Not verified by us yet.' nor 'Verified by us'")
    loaded = load_recipe(path)
    sources = "; ".join(dict.fromkeys(figure.source for figure in loaded.recipe.published))
    description = loaded.recipe.description.removesuffix(f", {data}")
    return f"| [`{path.stem}`](../recipes/{path.name}) | {description} | {sources} | {published(loaded)} | {state} |"


def published(loaded: LoadedRecipe) -> str:
    """The published figures: ``80.48; 77.53 at factor 200``, of which the first holds for the recipe as it stands.

    Top-5, shot groups and the note follow in parentheses: ``41.5 (many 42.1, medium 42.7, few 33.4)``.
    """
    settings = dict(flat(loaded.recipe.model_dump(mode="json")))
    shown = []
    for figure in loaded.recipe.published:
        others = {path: value for path, value in figure.when.items() if settings.get(path) != value}
        conditions = " and ".join(f"{path.rpartition('.')[2]} {value}" for path, value in others.items())
        shots = [f"{name} {value}" for name, value in figure.figures().items() if name != "top1"]
        told = ", ".join([*shots, *([figure.note] if figure.note else [])])
        text = f"{figure.value}{f' at {conditions}' if conditions else ''}{f' ({told})' if told else ''}"
        shown.append((bool(others), text))
    return "; ".join(text for _, text in sorted(shown, key=lambda pair: pair[0]))


def page(folder: Path) -> str:
    """The whole page for the recipes of a folder.

    Raises:
        ValueError: a recipe's name begins with none of `DATA`, or its head does not say whether it is verified.
    """
    groups: dict[str, list[str]] = {prefix: [] for prefix in DATA}
    for path in sorted(folder.glob("*.yaml")):
        prefix = next((prefix for prefix in DATA if path.stem.startswith(f"{prefix}_")), None)
        if prefix is None:
            raise ValueError(f"{path}: the name begins with none of {', '.join(DATA)}")
        groups[prefix].append(row(path, DATA[prefix]))
    table = "| recipe | trains | published in | published | verified by us |\n| --- | --- | --- | --- | --- |\n"
    parts = [f"\n## {DATA[prefix]}\n{table}" + "\n".join(rows) + "\n" for prefix, rows in groups.items() if rows]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(ROOT / "recipes"))
