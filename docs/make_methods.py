"""Writes ``methods.md``: every method of the plugins here, from their code, cards, recipes, records and measurements.

python docs/make_methods.py

A card's head has a row ``paper`` (or ``paper of `NAME```, where the plugin's methods have several papers) that begins
with ``AUTHORS, *TITLE*, VENUE YEAR``. Hooks, needs and what excludes what are the code's. Published figures are the
recipes', measured ones those of the records in ``results/runs``, costs those of ``results/methods_cost.json``.
"""

from __future__ import annotations

import json
import re
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltcore.contract.hookspecs import HOOKS
from ltcore.contract.recipe import Published, Recipe
from ltcore.discovery import catalogue
from ltcore.plan.checks import NEEDS
from ltcore.recipe.identity import flat
from ltcore.recipe.loading import load_recipe
from ltcore.tables.records import Records
from ltcore.tables.table import Table, find_tables
from ltcore.testing.recipes import Part, part_of

ROOT = Path(__file__).parents[1]
PAGE, COST = ROOT / "docs" / "methods.md", ROOT / "results" / "methods_cost.json"
#: Kinds of methods by the hooks that tell them; the first that fits.
KINDS = {
    "Networks": ("build_backbone",),
    "Around the network": ("adapt_backbone", "build_ensemble"),
    "How gradients are computed, and what becomes of weights": ("compute_gradients", "after_step", "on_stage_end"),
    "Made and changed features": ("augment_features",),
    "Made and changed images": ("mix_inputs", "image_transform", "extra_rows"),
    "Losses and logits": ("compute_loss", "adjust_logits", "auxiliary_losses"),
    "Classifiers": ("build_classifier",),
    "How often and how much a class counts": ("build_sampler", "class_distribution", "class_weights"),
    "After training": ("post_calibrate",),
}
#: Which data a published figure is taken of, where a paper has several.
DATA = ("cifar100_lt", "cifar10_lt", "imagenet_lt", "places_lt", "inaturalist2018", "tiny_imagenet_lt")
#: Tables whose records are shown, and what is said of their protocol.
TABLES = {
    "league": "long-tailed Fashion-MNIST at half its size, see [cpu_league.md](../results/cpu_league.md)",
    "digits": "long-tailed digits, see [its table](../tables/digits.yaml)",
}
_CITED = re.compile(r"(?:as in )?(?P<authors>[^*|]*?)[,:]?\s*\*(?P<title>[^*]+)\*(?P<rest>[^;|]*)")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_INITIALS = re.compile(r"^(?:\w\.[-\s]?)+\s*")
HEAD = """# Methods

This page has every method of the plugins in this repository, by what it changes. `python docs/make_methods.py` writes
it from the code, the cards, the recipes and the records. Nothing of it is typed by hand. A name leads to the method's
card. The columns are:

- *hooks*: where the method takes part ([hooks.md](hooks.md)). A hook in bold allows only one method per stage. If two
  methods of a stage have the same bold hook, the plan refuses them. All others can be combined.
- *needs*: what the method requires. *Breaks* means what it takes away from other methods of its stage. Both are
  explained [below](#what-excludes-what), and checked before anything is read.
- *step*: CPU time of a training step with the method, divided by that of the same step without it. 1 costs nothing, and
  2 is twice the time. What a method does once per epoch or stage is not in it.
- *memory*: how many MiB more a process holds at its peak.

A dash means that it was not measured.
"""
COSTS = """
## How costs were measured

With `{command}` on {dates}: {cpu}, one thread, python {python}, torch {torch}. The lowest and
highest turn of each method are in [methods_cost.json](../results/methods_cost.json).

- Steps with and without the method take turns in one process. Only the seconds in which this process had a core are
  counted, so other programs change them little.
- Images have 32 x 32 pixels, a batch has 64 images, and the network is ResNet-8. With a larger network, extra images
  cost the same, compared with the step. What does not go through the network costs less.
- The step without the method trains the whole network on cross-entropy.
- Some methods work on a frozen network. For these, the step without the method trains only the classifier:
  {classifier}.
- Some methods adapt a vision transformer. For these, the step without the method trains a small transformer, and the
  step with it trains only the few new parameters: {transformer}.
- A method under `calibrate` trains nothing. *N once* says that its calibration takes as long as N steps.
- Each method has its defaults, and acts from the first epoch on.{options} One that does more as training goes on,
  such as `autoaugment_by_class`, is measured at its beginning.
- What a method uses beside the batch has its default size. For example, `l2rw` uses 100 held-out images per step.
- Turns differ by some 5 percent, so 0.95 and 1.05 do not differ from 1.
- Peaks of memory are exact to about 2 MiB. They contain what a stage begins with, such as banks of features.

"""
EXCLUDED = """
## What excludes what

This is about methods in one stage. If two methods exclude each other, you can use them in two stages of one run, unless
they need different networks. If a recipe has such methods, `ltcore plan` says so, and what to do.

| hook with one answer | methods |
| --- | --- |
{hooks}

| need | what it is | needed by | broken by |
| --- | --- | --- | --- |
{needs}
"""
FIGURES = """
## Figures

*Published* is the top-1 accuracy in percent that a paper printed for a recipe's settings: the method's own paper, or
one that compares with it. The imbalance is 100 unless something else is said. [recipe_index.md](recipe_index.md) and
[tables.md](tables.md) say which of them were run here.

*Measured* is our figure: top-1 and few-shot accuracy, mean and standard deviation over seeds.

{protocols}

Other methods of a recipe are named. What else was measured stands on a method's card.

| method | published | measured |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Cited:
    """What a card says of a method's paper."""

    authors: str
    title: str
    year: str


@dataclass(frozen=True)
class Described:
    """A method and what is known of it.

    Attributes:
        part: the method with its hooks.
        card: its card.
        cited: its paper.
    """

    part: Part
    card: Path
    cited: Cited

    @property
    def name(self) -> str:
        """As a recipe writes it."""
        return self.part.name

    @property
    def link(self) -> str:
        """Its name, leading to its card."""
        return f"[`{self.name}`](../plugins/{self.card.parent.name}/README.md)"

    @property
    def kind(self) -> str:
        """Its heading."""
        return next(kind for kind, hooks in KINDS.items() if self.part.hooks & set(hooks))

    @cached_property
    def needs(self) -> list[str]:
        """What the plan asks for; rows of its own stand beside the batch's, so that those are single images."""
        pairs = "single_images" in self.part.method.breaks
        beside = {"single_images"} if "extra_rows" in self.part.hooks and not pairs else set()
        return sorted({*self.part.method.requires, *beside})

    @property
    def breaks(self) -> list[str]:
        """What it takes from the other methods of its stage."""
        return sorted(self.part.method.breaks)


# -- the cards ---------------------------------------------------------------------------------------------------------


def cited(card: Path, method: str) -> Cited:
    """The paper that a card names for a method.

    Raises:
        ValueError: it names none, or not in the form that is read here.
    """
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", card.read_text(), re.MULTILINE))
    text = rows.get(f"paper of `{method}`") or rows.get("paper")
    found = _CITED.match(text or "")
    year = _YEAR.search(found["rest"]) if found else None
    if not found or not year:
        raise ValueError(
            f"{card}: no paper of '{method}': give the first table a row | paper | AUTHORS, *TITLE*, VENUE YEAR |, or, "
            f"where the methods have several papers, | paper of `{method}` | ... |"
        )
    names = [_INITIALS.sub("", name.strip()) for name in found["authors"].split(",") if name.strip()]
    first = names[0] if names else "anonymous"
    return Cited(f"{first} et al." if len(names) > 2 else " and ".join(names) or first, found["title"], year[0])


def described() -> list[Described]:
    """The methods of the plugins here, by name.

    Raises:
        ValueError: a card does not name its paper.
    """
    found = []
    for card in sorted(ROOT.glob("plugins/*/README.md")):
        project = tomllib.loads((card.parent / "pyproject.toml").read_text())["project"]
        for name in project["entry-points"]["ltcore.plugins"]:
            found.append(Described(part_of(catalogue.asked(name)), card, cited(card, name)))
    return sorted(found, key=lambda each: each.name)


# -- figures -----------------------------------------------------------------------------------------------------------


def methods_of(recipe: Recipe) -> set[str]:
    """The methods that act in a recipe."""
    keys = {
        *(recipe.backbone.adapt or ()),
        *recipe.calibrate,
        *(key for stage in recipe.stages for key in stage.methods),
    }
    used = {recipe.methods[key].use or key if key in recipe.methods else key for key in keys}
    return {*used, recipe.backbone.use}


def published(names: Sequence[str]) -> dict[str, str]:
    """For each method a figure that a paper printed, with the recipe whose settings it is of.

    Of several it is one with the fewest other methods; then the data decides. Where no recipe has one, a cell of a
    paper's table is looked for.
    """
    best: dict[str, tuple[tuple[int, int, int, str], str]] = {}

    def note(used: set[str], path: Path, recipe: Recipe, value: float, source: str, changed: str = "") -> None:
        factor = recipe.data.imbalance.factor if recipe.data.imbalance else None
        data = next((place for place, prefix in enumerate(DATA) if path.stem.startswith(f"{prefix}_")), len(DATA))
        for name in used if data < len(DATA) else ():
            others = sorted(used - {name})
            beside = f", with {_code(others)}" if others else ""
            unlike = f" at imbalance {factor:g}" if factor not in (None, 100) else ""
            text = f"{value:.1f} ([{path.stem}](../recipes/{path.name}){changed}{unlike}{beside}; {source})"
            key = (len(others), int(bool(unlike)), data, path.stem)
            if name not in best or key < best[name][0]:
                best[name] = (key, text)

    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path).recipe
        figure = _as_it_stands(recipe)
        if figure is not None:
            note(methods_of(recipe) & set(names), path, recipe, figure.value, figure.source)
    missing = set(names) - set(best)
    for table in find_tables(ROOT / "tables"):
        for cell in table.cells.values() if table.file.source else ():
            value = cell.printed.value if cell.printed else None
            if value is None or cell.path is None or cell.metric not in ("top1", "error"):
                continue
            written = cell.path.read_text() + " ".join(text for text, _ in cell.changes)
            if any(name in written for name in missing):
                recipe = table.loaded(cell).recipe
                used = methods_of(recipe) & set(names)
                if used & missing:
                    accuracy = 100 - value if cell.metric == "error" else value
                    link = f", as [{table.name}](../tables/{table.path.name}) changes it in `{cell.name}`"
                    note(used, cell.path, recipe, accuracy, table.file.source, link if cell.changes else "")
    return {name: text for name, (_, text) in best.items()}


def _as_it_stands(recipe: Recipe) -> Published | None:
    """The first published figure whose conditions are the recipe's own values."""
    settings = dict(flat(recipe.model_dump(mode="json")))
    held = (each for each in recipe.published if all(settings.get(path) == value for path, value in each.when.items()))
    return next(held, None)


def measured(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """For each method, and for each table's cross-entropy, top-1 and few-shot accuracy over seeds."""
    records, best, baselines = Records([ROOT / "results" / "runs"]), dict[str, tuple[tuple[int, int], str]](), {}
    for number, name in enumerate(TABLES):
        table = Table(ROOT / "tables" / f"{name}.yaml")
        for row in table.file.rows:
            cell = table.cells[row, "top1"]
            found = records.of(table.digest(cell))
            if not found:
                continue
            figures = [record.figures(None) for record in found.values()]
            text = f"{_spread(figures, 'top1')}, few {_spread(figures, 'few')} ({name}"
            used = methods_of(table.loaded(cell).recipe) & set(names)
            if row == "ce":
                baselines[name] = f"{text.removesuffix(f' ({name}')}"
            for method in used:
                others = sorted(used - {method})
                key = (len(others), number)
                if method not in best or key < best[method][0]:
                    best[method] = (key, f"{text}{f', with {_code(others)}' if others else ''})")
    return {name: text for name, (_, text) in best.items()}, baselines


def _spread(figures: Sequence[Mapping[str, float | None]], metric: str) -> str:
    values = [100 * value for each in figures if (value := each[metric]) is not None]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


# -- the page ----------------------------------------------------------------------------------------------------------


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _hooks(each: Described) -> str:
    """Its hooks in the order of a run, but for those that only prepare where others act."""
    acting = [name for name in HOOKS if name in each.part.hooks and HOOKS[name].kind != "all"]
    acting = acting or [name for name in HOOKS if name in each.part.hooks]
    return ", ".join(f"**`{name}`**" if HOOKS[name].kind == "one" else f"`{name}`" for name in acting)


def _costs(figures: Mapping[str, Any] | None) -> tuple[str, str]:
    if figures is None:
        return "-", "-"
    once = figures.get("calibration_steps")
    step = f"{figures['step_ratio']:.2f}" if once is None else f"{once:.0f} once" if once >= 1 else "below 1 once"
    return step, f"{figures['memory_mib']:.0f}".replace("-0", "0")


def _row(each: Described) -> str:
    needs = [_code(each.needs)] if each.needs else []
    needs += [f"breaks {_code(each.breaks)}"] if each.breaks else []
    paper = f"{each.cited.authors} {each.cited.year}"
    return f"| {' | '.join((each.link, paper, _hooks(each), '; '.join(needs)))} |"


def _groups(found: Sequence[Described], costs: Mapping[str, Any]) -> Iterator[str]:
    """A table of each kind; without costs where none of its methods has any, as networks have none."""
    for kind in KINDS:
        methods = [each for each in found if each.kind == kind]
        rows = ["| method | paper | hooks | needs |", "| --- | --- | --- | --- |", *map(_row, methods)]
        if any(each.name in costs for each in methods):
            cells = [("step", "memory"), ("---:", "---:"), *(_costs(costs.get(each.name)) for each in methods)]
            rows = [f"{row} {step} | {memory} |" for row, (step, memory) in zip(rows, cells, strict=True)]
        if methods:
            yield "\n".join([f"\n## {kind}\n", *rows]) + "\n"


def _excluded(found: Sequence[Described]) -> str:
    hooks = []
    for name, hook in HOOKS.items():
        methods = [each.name for each in found if name in each.part.hooks]
        if hook.kind == "one" and hook.in_stages and methods:
            hooks.append(f"| `{name}` | {_code(methods)} |")
    words = sorted({need for each in found for need in (*each.needs, *each.breaks)})
    needs = [
        f"| `{word}` | {NEEDS.get(word, 'another plugin provides it')} | "
        f"{_code([each.name for each in found if word in each.needs])} | "
        f"{_code([each.name for each in found if word in each.breaks])} |"
        for word in words
    ]
    return EXCLUDED.format(hooks="\n".join(hooks), needs="\n".join(needs))


def _how(content: Mapping[str, Any]) -> str:
    methods = content["methods"]
    place = next(iter(methods.values()))["environment"]
    days = sorted({each["measured"] for each in methods.values()})
    told = [
        f"`{name}` {', '.join(f'`{k}: {v}`' for k, v in each['options'].items() if k != 'start_epoch' or v)}"
        for name, each in methods.items()
        if set(each["options"]) - {"start_epoch"} or each["options"].get("start_epoch")
    ]
    beside = {
        kind: [name for name, each in methods.items() if each["beside"] == kind]
        for kind in ("classifier alone", "transformer")
    }
    return COSTS.format(
        cpu=place["cpu"],
        python=place["python"],
        torch=place["torch"],
        command=content["command"],
        dates=" to ".join(dict.fromkeys((days[0], days[-1]))),
        classifier=_code(beside["classifier alone"]),
        transformer=_code(beside["transformer"]),
        options=f" Set otherwise: {'; '.join(told)}." if told else "",
    )


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a card does not name its paper.
    """
    found, content = described(), json.loads(COST.read_text())
    names = [each.name for each in found if each.part.role is None]
    printed, (ours, baselines) = published(names), measured(names)
    rows = [
        f"| {each.link} | {printed.get(each.name, '')} | {ours.get(each.name, '')} |"
        for each in found
        if each.name in printed or each.name in ours
    ]
    protocols = [f"- *{name}*: {text}; cross-entropy has {baselines[name]}." for name, text in TABLES.items()]
    figures = FIGURES.format(protocols="\n".join(protocols))
    return "".join(
        [HEAD, *_groups(found, content["methods"]), _excluded(found), figures, "\n".join(rows), "\n", _how(content)]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
