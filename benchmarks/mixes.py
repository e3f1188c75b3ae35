r"""Mixes of methods of different papers that nobody has published, drawn at random over all methods: results/mixes.md.

    python benchmarks/mixes.py --seed 0 --mixes 50

A mix is two to four methods, each of another distribution, on the protocol of the digits recipes. A method stands
where the digits recipes have it (in the first stage, in a stage of its own behind, at the network, behind the
training), with the options that it has there. Half of the mixes get a second stage that trains the classifier anew, in
which some of the first stage's methods act again. Each mix is written as a recipe, planned, trained as `ltcore run`
trains it, and watched:

- *trained*: to its end, and each of its methods has acted: it has answered a hook behind the beginnings with more than
  nothing, and a hook that hands something on with another thing than it was given;
- *half*: trained, and one of its methods has not acted or was warned of;
- *refused*: by one message before any image is read, which names one of its methods at least;
- *stopped*: by one message later, such as a loss that is not finite;
- *crashed*: anything else.

What has ended stands in results/runs/mixes.json and is not repeated; the page is made of that file. A further plugin
changes what is drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ltcore.contract.backbone import Backbone
from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery import catalogue
from ltcore.discovery.binding import Implementation
from ltcore.errors import LtcoreError, RecipeError
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.recipe.yaml_source import dump_yaml
from ltcore.testing.recipes import Part, part_of
from ltcore.training.execute import execute

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "results" / "runs" / "mixes.json", ROOT / "results" / "mixes.md"
BASE = "digits_lt_ce"
FIRST = "representation"
#: Of methods that no digits recipe has, or has with another start: when they begin, as in the digits recipes of SAFA.
STARTS = {"drs": 40, "drw": 40, "swa": 45}
FIGURES = ("top1", "many", "medium", "few", "ece")
#: Hooks that are called whether or not a method does anything.
BEGINNINGS = {"on_run_start", "on_stage_start", "on_epoch_start"}
SECOND = {
    "name": "second",
    "epochs": 20,
    "batch_size": 64,
    "classifier": "rebuild",
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5.0e-4},
    "schedule": {"name": "cosine"},
}


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass
class Home:
    """Where the digits recipes have a method.

    Attributes:
        part: the method.
        parts: the recipe that has it; the base where none has.
        options: those that it has there.
    """

    part: Part
    parts: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What recipes call it."""
        return self.part.name

    @property
    def later(self) -> list[dict[str, Any]]:
        """The stages behind the first one that list it; none where it stands in the first one, or in no stage."""
        stages = [stage for stage in self.parts["stages"] if self.name in stage.get("methods", ())]
        return [] if any(stage["name"] == FIRST for stage in stages) else stages

    @property
    def staged(self) -> bool:
        """Whether it acts in stages: not where the digits recipes have it behind the training alone."""
        listed = any(self.name in stage.get("methods", ()) for stage in self.parts["stages"])
        return self.part.acts and (listed or self.name not in self.parts.get("calibrate", ()))

    @property
    def adapts(self) -> bool:
        """Whether it changes the network."""
        return "adapt_backbone" in self.part.hooks

    @property
    def networks(self) -> bool:
        """Whether a stage has to train parameters of its own."""
        return any(self.name in stage.get("trainable", ()) for stage in self.parts["stages"])


class Drawing:
    """Mixes of the installed methods, the same for a seed.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        paths = sorted((ROOT / "recipes").glob("digits_lt_*.yaml"))
        recipes = {path.stem: load_recipe(path).source for path in paths}
        self._base = recipes[BASE]
        #: Methods that stand together in a recipe that ships.
        self._known = [set(load_recipe(path).recipe.methods) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
        self.homes: dict[str, Home] = {}
        self._by_distribution: dict[str, list[str]] = {}
        for offer in catalogue.offers():
            part = None if offer.distribution == "ltcore" else part_of(offer)
            if part is None or part.role is not None:
                continue
            self.homes[part.name] = self._home(part, recipes)
            self._by_distribution.setdefault(offer.distribution, []).append(part.name)

    def _home(self, part: Part, recipes: dict[str, dict[str, Any]]) -> Home:
        named = [stem for stem, parts in recipes.items() if part.name in parts.get("methods", {})]
        named.sort(key=lambda stem: (not stem.endswith(f"_{part.name}"), len(recipes[stem]["methods"])))
        parts = recipes[named[0]] if named else self._base
        options = dict((parts.get("methods", {}).get(part.name) or {}).get("options") or {}) if named else {}
        if part.name in STARTS:
            options["start_epoch"] = STARTS[part.name]
        return Home(part, parts, options)

    @property
    def over(self) -> str:
        """How many methods there are to draw."""
        return f"{len(self.homes)} methods of {len(self._by_distribution)} distributions"

    def mixes(self, number: int) -> Iterator[dict[str, Any]]:
        """So many recipes, no two with the same methods and none with only such as a recipe that ships has."""
        seen: list[set[str]] = []
        while len(seen) < number:
            drawn = self._random.sample(sorted(self._by_distribution), self._random.randint(2, 4))
            names = [self._random.choice(self._by_distribution[each]) for each in drawn]
            again, chances = self._random.random() < 0.5, [self._random.random() < 0.5 for _ in range(len(names) + 1)]
            if set(names) in seen or any(set(names) <= known for known in self._known):
                continue
            seen.append(set(names))
            yield self.recipe(f"mix_{len(seen):02}", [self.homes[name] for name in names], again, chances)

    def recipe(self, name: str, mix: list[Home], again: bool, chances: list[bool]) -> dict[str, Any]:
        """A mix as a recipe.

        Args:
            name: its name.
            mix: its methods, in their order.
            again: whether the classifier is trained anew.
            chances: of each method, whether it acts there again; and whether that samples classes equally often.
        """
        base = deepcopy(next((each.parts for each in mix if _network(each.parts) != _network(self._base)), self._base))
        # What a method's network cannot do without: RIDE's router asks RIDE's experts.
        needed = [key for each in mix for key in each.parts["backbone"].get("adapt", ())]
        mix = [*mix, *(self.homes[key] for key in dict.fromkeys(needed) if key not in [each.name for each in mix])]
        names = [each.name for each in mix]
        adapters = [each.name for each in mix if each.adapts]
        first = [each for each in mix if each.staged and not each.later]
        stages = [
            stage for stage in base["stages"] if stage["name"] == FIRST or stage.get("trainable", [None])[0] in names
        ]
        listed: dict[str, dict[str, Any]] = {}
        for stage in stages:
            listed[stage["name"]] = stage
            stage["methods"] = [key for key in stage.get("methods", ()) if key in names]
        listed[FIRST]["methods"] = [each.name for each in first]
        listed[FIRST]["trainable"] += [each.name for each in first if each.networks]
        for each in mix:
            for stage in each.later:
                mine = listed.setdefault(f"{each.parts['name']}_{stage['name']}", deepcopy(stage))
                if mine not in stages and stage["name"] not in (s["name"] for s in stages if each.parts is base):
                    mine["name"] = f"{each.name}_{stage['name']}"
                    mine["methods"] = []
                    stages.append(mine)
                mine["methods"] = [*dict.fromkeys([*mine["methods"], each.name])]
        for place, stage in listed.items():
            trained = [each.name for each in mix if each.adapts and each.name in _trained(each.parts, place)]
            if trained:
                stage["trainable"] += trained
        for stage in stages:
            if "trainable" in stage:
                stage["trainable"] = [w for w in dict.fromkeys(stage["trainable"]) if w in names or w not in self.homes]
        if again:
            acting = [
                each
                for each, chance in zip(mix, chances, strict=False)
                if chance and each in first and not each.options.get("start_epoch")
            ]
            stages.append(
                {
                    **deepcopy(SECOND),
                    "methods": [each.name for each in acting],
                    "trainable": ["classifier", *(each.name for each in acting if each.networks)],
                    **({"sampler": "class_balanced"} if chances[-1] else {}),
                }
            )
        held = max(_held(each) for each in mix)
        return {
            "name": name,
            "threads": 1,
            "diagnostics": "off",
            "checkpoint_seconds": 1e9,
            "data": {**base["data"], **({"holdout": held} if held else {})},
            "backbone": {**base["backbone"], "adapt": adapters},
            "methods": {each.name: {"options": each.options} for each in mix},
            "stages": stages,
            "calibrate": [each.name for each in mix if "post_calibrate" in each.part.hooks],
        }


def _network(parts: dict[str, Any]) -> str:
    return str(parts["backbone"]["use"])


def _trained(parts: dict[str, Any], stage: str) -> list[str]:
    return next((list(each.get("trainable", ())) for each in parts["stages"] if each["name"] == stage), [])


def _held(home: Home) -> int:
    """Images a class that are held out for a method."""
    needs = 2 if "validation" in home.part.method.requires else 0
    return max(needs, int(home.parts["data"].get("holdout", 0)))


# --- running ----------------------------------------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[set[str]]:
    """The methods that act while the block runs, see above."""
    acted: set[str] = set()
    bind = Implementation.bind

    def parameters(values: tuple[Any, ...]) -> list[str]:
        network = values[0] if values and isinstance(values[0], Backbone) else None
        return [name for name, _ in network.named_parameters()] if network is not None else []

    def watching(self: Implementation, context: Any) -> Any:
        call, hook = bind(self, context), HOOKS[self.hook]

        def watched_call(*values: Any) -> Any:
            before = parameters(values)
            answer = call(*values)
            if hook.name == "adapt_backbone":
                changed = parameters((answer,)) != before
            elif hook.kind == "fold":
                changed = answer is not values[0]
            else:
                changed = hook.kind == "all" or answer is not None
            if changed and hook.name not in BEGINNINGS:
                acted.add(self.entry.key)
            return answer

        return watched_call

    Implementation.bind = watching  # type: ignore[method-assign]
    try:
        yield acted
    finally:
        Implementation.bind = bind  # type: ignore[method-assign]


def outcome(path: Path, out: Path) -> dict[str, Any]:
    """What comes of a mix.

    Args:
        path: its recipe.
        out: where it is trained.
    """
    try:
        loaded = load_recipe(path)
        names = list(loaded.recipe.methods)
        make_plan(loaded)
    except RecipeError as error:
        message = re.sub(rf"{re.escape(str(path))}(:\d+)?: ", "", str(error))
        named = any(f"'{name}'" in message for name in names)
        return {"outcome": "refused" if named else "refused, naming no method", "message": message}
    except Exception as error:
        return {"outcome": "crashed", "message": f"{type(error).__name__}: {error}"}
    told = io.StringIO()
    try:
        with watched() as acted:
            result, run = execute(loaded, out, False, Reporter(told))
    except LtcoreError as error:
        inside = error.__cause__ is not None and not isinstance(error.__cause__, LtcoreError)
        return {"outcome": "crashed" if inside else "stopped", "message": str(error)}
    except Exception as error:
        return {"outcome": "crashed", "message": f"{type(error).__name__}: {error}"}
    shutil.rmtree(run)
    idle = [name for name in names if name not in acted]
    warned = [line for line in told.getvalue().splitlines() if line.startswith("warning")]
    figures: dict[str, Any] = dict(result["after_calibration"])
    return {
        "outcome": "half" if idle or any(f"'{name}'" in line for name in names for line in warned) else "trained",
        "message": "; ".join([*(f"'{name}' has not acted" for name in idle), *warned]),
        **{key: round(figures[key], 5) for key in FIGURES if figures[key] is not None},
        "versions": result["versions"],
    }


def described(recipe: dict[str, Any]) -> str:
    """A mix in a line: stage by stage its methods, then what comes behind the training."""
    adapters = recipe["backbone"]["adapt"]
    parts = [f"network: {' + '.join(adapters)}"] if adapters else []
    for stage in recipe["stages"]:
        parts.append(" + ".join(stage.get("methods", ())) or ("plain" if stage["name"] == FIRST else stage["name"]))
    return ", then ".join([*parts, *recipe["calibrate"]])


# --- the page ---------------------------------------------------------------------------------------------------------


def page(content: dict[str, Any]) -> str:
    """results/mixes.md."""
    mixes = content["mixes"]
    kinds = [mix["outcome"] for mix in mixes]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds, key=lambda k: -kinds.count(k)))
    )
    best = sorted((mix for mix in mixes if mix["outcome"] == "trained"), key=lambda mix: -mix["top1"])[:10]
    ended = sorted((mix for mix in mixes if "top1" in mix), key=lambda mix: mix["top1"])
    worst, median = ended[0], statistics.median(mix["top1"] for mix in ended)
    about = (__doc__ or "").split("\n\n")
    lines = [
        "# mixes",
        "",
        f"{len(mixes)} mixes of methods of different papers, drawn at random over {content['over']} with seed "
        f"{content['seed']}: {counts}. None of them stands in a recipe that ships, and none was published that we "
        "know of.",
        "",
        *about[2].splitlines(),
        "",
        *about[3].splitlines(),
        "",
        "The figures are of one seed each, in percent, on scikit-learn's digits (120 to 5 images a class). They show",
        "that a mix trains, not which one is better: seeds of one recipe vary by one to two points.",
        "",
        "## The ten best",
        "",
        "| mix | methods, stage by stage | top-1 | few |",
        "| --- | --- | --- | --- |",
        *(f"| {mix['name']} | {mix['what']} | {100 * mix['top1']:.1f} | {100 * mix['few']:.1f} |" for mix in best),
        "",
        f"The median of all that trained is {100 * median:.1f}. To train is not to gain: {worst['name']} "
        f"({worst['what']}) ends at {100 * worst['top1']:.1f}, few {100 * worst['few']:.1f}.",
        "",
        "## All",
        "",
        "| mix | methods, stage by stage | outcome | top-1 | few |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mix in mixes:
        said = f"{mix['outcome']}: {mix['message']}" if mix["message"] else mix["outcome"]
        figures = [f"{100 * mix[key]:.1f}" if key in mix else "" for key in ("top1", "few")]
        lines.append(
            f"| {mix['name']} | {mix['what']} | {' '.join(said.split()).replace('|', '/')} | {' | '.join(figures)} |"
        )
    versions = content["versions"]
    lines += [
        "",
        "## Command",
        "",
        f"    python benchmarks/mixes.py --seed {content['seed']} --mixes {len(mixes)}",
        "",
        f"One thread on a CPU, python {versions['python']}, torch {versions['torch']}, ltcore {versions['ltcore']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, train what has no outcome yet, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/mixes"))
    parser.add_argument("--only", nargs="+", default=[], help="these mixes, anew")
    parser.add_argument("--plan", action="store_true", help="plan them, and train and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RECORD.read_text())["mixes"] if RECORD.is_file() else []
    known = {(mix["what"], mix["name"]): mix for mix in old if mix["name"] not in arguments.only}
    drawing = Drawing(arguments.seed)
    content: dict[str, Any] = {"seed": arguments.seed, "over": drawing.over, "versions": {}, "mixes": []}
    (arguments.out / "recipes").mkdir(parents=True, exist_ok=True)
    for recipe in drawing.mixes(arguments.mixes):
        path = arguments.out / "recipes" / f"{recipe['name']}.yaml"
        path.write_text(dump_yaml(recipe))
        what = described(recipe)
        if arguments.plan:
            try:
                make_plan(load_recipe(path))
                print(f"{recipe['name']}: {what}", flush=True)
            except RecipeError as error:
                print(f"{recipe['name']}: {what}\n    REFUSED {error}", flush=True)
            continue
        found = known.get((what, recipe["name"])) or {
            "name": recipe["name"],
            "what": what,
            "methods": list(recipe["methods"]),
            **outcome(path, arguments.out),
        }
        print(f"{recipe['name']}: {what}: {found['outcome']} {found.get('top1', '')} {found['message']}", flush=True)
        content["mixes"].append(found)
        done = {mix["name"] for mix in content["mixes"]}
        waiting = [mix for mix in old if mix["name"] not in done]
        content["versions"] = (
            found.pop("versions", None) or content["versions"] or json.loads(RECORD.read_text())["versions"]
        )
        write({**content, "mixes": [*content["mixes"], *waiting]})
    if not arguments.plan:
        PAGE.write_text(page(content))


def write(content: dict[str, Any]) -> None:
    """Write the record, a line a mix."""
    lines = ",\n  ".join(json.dumps(mix) for mix in content["mixes"])
    head = json.dumps({key: value for key, value in content.items() if key != "mixes"})[1:-1]
    RECORD.write_text(f'{{{head}, "mixes": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main()
