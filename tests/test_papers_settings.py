"""Every recipe with a published figure trains as the paper says, or `papers_settings.yaml` says why not."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltcore.contract.recipe import Published, Recipe, Stage
from ltcore.recipe.identity import flat
from ltcore.recipe.loading import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
TABLE = yaml.safe_load(Path(__file__).with_name("papers_settings.yaml").read_text())
FORMS = ({"paper", "at"}, {"paper", "at", "recipe", "why"}, {"recipe", "whose"})

# What the data sets prepare images with where a recipe does not say, and how large small images are.
TRANSFORM = {"cifar10_lt": "cifar", "cifar100_lt": "cifar", "tiny_imagenet_lt": "cifar"}
WEIGHTS = {"openai": "CLIP", "augreg_in21k_ft_in1k": "ImageNet-21K, then ImageNet"}  # by timm's tag
SIZE = {"cifar10_lt": 32, "cifar100_lt": 32, "tiny_imagenet_lt": 64}


# -- a recipe in the table's words -------------------------------------------------------------------------------------


def network(recipe: Recipe) -> str:
    options = recipe.backbone.options
    if recipe.backbone.use == "cifar_resnet":
        return f"resnet{options['depth']}"
    assert recipe.backbone.use == "timm"
    model = options["model"].partition(".")[0]
    return {("resnet18", (1, 1, 1, 1)): "resnet10"}.get((model, tuple(options.get("layers", ()))), model)


def images(recipe: Recipe) -> str:
    transform = recipe.data.transform
    name = transform.name or TRANSFORM.get(recipe.data.use, "imagenet")
    if name == "resize_crop":
        return "to 256, crop 224"
    if name == "imagenet":
        jitter = 0.4 if transform.color_jitter is None else transform.color_jitter
        return f"area crop, jitter {jitter}" if jitter else "area crop"
    padding = SIZE[recipe.data.use] // 8 if transform.crop_padding is None else transform.crop_padding
    return f"pad {padding}" + (", autoaugment, cutout" if name == "autoaugment_cutout" else "")


def imbalance(recipe: Recipe) -> str:
    found = recipe.data.imbalance
    return "the set's own" if found is None else f"{found.kind} {found.factor:g}"


def schedule(stage: Stage) -> str:
    told: dict[str, Any] = stage.schedule.model_dump()
    text = {
        "constant": "constant",
        "cosine": "cosine",
        "step": f"x{told.get('gamma')} every {told.get('every')}",
        "multistep": f"x{told.get('gamma')} at {', '.join(map(str, told.get('milestones', ())))}",
    }[told["name"]]
    return text + (f", warm-up {told['warmup_epochs']}" if told["warmup_epochs"] else "")


def stage_settings(stage: Stage) -> dict[str, Any]:
    told = stage.optimizer.model_dump()
    nesterov = " nesterov" if told.get("nesterov") else ""
    return {
        "length": f"{stage.epochs} epochs" if stage.epochs else f"{stage.iterations} iterations",
        "batch": stage.batch_size,
        "optimizer": " ".join(str(told[key]) for key in ("name", "momentum") if key in told) + nesterov,
        "rate": stage.optimizer.lr,
        "schedule": schedule(stage),
        "weight_decay": told.get("weight_decay", 0.0),
    }


def settings(recipe: Recipe) -> dict[str, Any]:
    """Each setting by its path in the table: ``network``, ``stages.finetune.rate``, ``options.PATH``."""
    pretrained = recipe.backbone.options.get("pretrained") or recipe.backbone.options.get("weights")
    found: dict[str, Any] = {
        "network": network(recipe),
        "weights": WEIGHTS.get(recipe.backbone.options["model"].partition(".")[2], "ImageNet")
        if pretrained
        else "none",
        "input": images(recipe),
        "imbalance": imbalance(recipe),
    }
    for stage in recipe.stages:
        found |= {f"stages.{stage.name}.{key}": value for key, value in stage_settings(stage).items()}
    for path, value in flat(recipe.model_dump(mode="json")):
        found[f"options.{path}"] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found


# -- the table ---------------------------------------------------------------------------------------------------------


def entries(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A line's settings with those of its protocol and stages, by the paths of `settings`."""
    protocol = TABLE["protocols"][line["protocol"]]
    found = {key: line.get(key, protocol.get(key)) for key in ("network", "weights", "input", "imbalance")}
    for name, block in (protocol["stages"] | line.get("stages", {})).items():
        found |= {f"stages.{name}.{key}": entry for key, entry in TABLE["stages"][block].items()}
    return found | {f"options.{path}": entry for path, entry in line.get("options", {}).items()}


def wanted(entry: dict[str, Any]) -> list[Any]:
    """The values that recipes may have."""
    value = entry.get("recipe", entry.get("paper"))
    return value if isinstance(value, list) else [value]


def applied(source: dict[str, Any], when: dict[str, Any]) -> Recipe:
    """The recipe with the values of a figure's `when`; validating plain data is faster than reading files again."""
    source = copy.deepcopy(source)
    for path, value in when.items():
        *above, last = path.split(".")
        place = source
        for key in above:
            place = place[key]
        place[last] = value
    return Recipe.model_validate(source)


@cache
def figures() -> list[tuple[str, Published, Recipe]]:
    """Every published figure with the recipe for which it holds, its `when` applied."""
    found = []
    for path in sorted(RECIPES.glob("*.yaml")):
        loaded = load_recipe(path)
        found += [(path.stem, figure, applied(loaded.source, figure.when)) for figure in loaded.recipe.published]
    return found


def lines_for(name: str, source: str) -> list[dict[str, Any]]:
    return [line for line in TABLE["lines"] if line["source"] == source and name in line["recipes"]]


def test_a_published_figure_stands_in_a_recipe_with_its_settings() -> None:
    assert figures()
    for name, source in sorted({(name, figure.source) for name, figure, _ in figures()}):
        found = lines_for(name, source)
        assert len(found) == 1, f"{len(found)} lines of papers_settings.yaml are about {name} and {source}; needs one"
        table = entries(found[0])
        for recipe in (recipe for stem, figure, recipe in figures() if (stem, figure.source) == (name, source)):
            told = settings(recipe)
            assert [stage.name for stage in recipe.stages] == list(
                dict.fromkeys(path.split(".")[1] for path in table if path.startswith("stages."))
            ), f"the stages of the recipe {name} and of the table"
            for path, entry in table.items():
                assert told.get(path) in wanted(entry), f"{name}: {path} is {told.get(path)}, the table has {entry}"


@pytest.mark.parametrize("line", TABLE["lines"], ids=lambda line: f"{line['recipes'][0]}-{line['source']}")
def test_a_line_is_met_by_recipes(line: dict[str, Any]) -> None:
    known = {(name, figure.source) for name, figure, _ in figures()}
    assert [name for name in line["recipes"] if (name, line["source"]) not in known] == [], "no such figure in a recipe"
    told = [settings(recipe) for name, figure, recipe in figures() if line in lines_for(name, figure.source)]
    for path, entry in entries(line).items():
        if path in line or path.startswith("options."):  # what the line itself says, not what it shares with others
            unmet = [value for value in wanted(entry) if all(value != recipe[path] for recipe in told)]
            assert unmet == [], f"no figure of the line has {path} {unmet}"


def test_an_entry_has_one_of_three_forms() -> None:
    found = [(line["source"], path, entry) for line in TABLE["lines"] for path, entry in entries(line).items()]
    assert [told for told in found if set(told[2]) not in FORMS] == []
    assert [
        told for told in found if any(value == told[2].get("paper") for value in wanted(told[2])) and "why" in told[2]
    ] == []
    for name, stage in TABLE["stages"].items():
        assert set(stage) == {"length", "batch", "optimizer", "rate", "schedule", "weight_decay"}, name


def test_nothing_in_the_table_is_unused() -> None:
    used = {line["protocol"] for line in TABLE["lines"]}
    assert used == set(TABLE["protocols"])
    blocks = [block for line in TABLE["lines"] for block in line.get("stages", {}).values()]
    blocks += [block for protocol in TABLE["protocols"].values() for block in protocol["stages"].values()]
    assert set(blocks) == set(TABLE["stages"])
    for name, protocol in TABLE["protocols"].items():
        for key in ("network", "weights", "input"):
            lines = [line for line in TABLE["lines"] if line["protocol"] == name and key not in line]
            met = {
                settings(r)[key]
                for stem, figure, r in figures()
                if any(line in lines for line in lines_for(stem, figure.source))
            }
            assert met == set(wanted(protocol[key])), (name, key)


def test_papers_that_print_errors_are_recorded_as_accuracies() -> None:
    # SAFA's tables 1 and 4 print errors: on CIFAR at imbalance 100, LDAM-DRW has 57.11 and 21.88.
    printed = {
        ("cifar100_lt_ldam_drw", 100): 57.11,
        ("cifar10_lt_ldam_drw", 100): 21.88,
        ("inaturalist2018_safa_ldam", None): 30.22,
    }
    for (name, factor), error in printed.items():
        (value,) = [
            f.value for stem, f, _ in figures() if stem == name and f.when.get("data.imbalance.factor") == factor
        ]
        assert value == pytest.approx(100 - error)
