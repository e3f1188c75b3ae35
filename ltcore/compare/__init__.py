"""``ltcore compare``: runs grouped by recipe, averaged over seeds, tested against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ltcore.compare.found import FoundRun, find_runs
from ltcore.compare.testing import PairedTest, holm, paired_test, spread
from ltcore.contract.figures import COMPARED, FigureName
from ltcore.contract.result import Figures
from ltcore.discovery.offer import UNPACKAGED
from ltcore.errors import RecipeError, nearest


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seed only: trained and tested on the same data, in one environment.

    Attributes:
        name: the recipe's name.
        label: the name; with a number where other groups have the name too.
        differs: the settings in which it differs from other groups of this name, by path, and by name what the figures
            depend on beside the recipe. None for what it lacks.
        runs: by seed.
    """

    name: str
    label: str
    differs: dict[str, Any]
    runs: dict[int, FoundRun]

    @property
    def any(self) -> FoundRun:
        """Some run, for what all have in common."""
        return next(iter(self.runs.values()))

    def figures(self, metric: FigureName) -> dict[int, float]:
        """A figure after calibration by seed, where it is known."""
        found = {seed: run.result["after_calibration"].get(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def compare(
    paths: Sequence[Path],
    baseline: str | None = None,
    metrics: Sequence[FigureName] = COMPARED,
    stages: bool = False,
    any_environment: bool = False,
    classes: bool = False,
) -> dict[str, Any]:
    """Compare runs.

    Args:
        paths: run directories, or folders that hold them.
        baseline: the group to test the others against, by its label or recipe's name; by default the first.
        metrics: the figures to show; differences in the first one are tested.
        stages: also the figures at each stage's end and before calibration.
        any_environment: average over runs whatever they were trained with, but never over other data.
        classes: also recall, precision and F1 of each class.

    Returns:
        Plain data, figures as fractions: ``baseline``, ``metrics``, ``groups`` and ``left_out``; docs/compare.md has
        its fields.

    Raises:
        RecipeError: a path holds no run, none of the runs has ended, or there is no such baseline.
    """
    runs, left_out = find_runs(paths, any_environment)
    if not runs:
        reasons = [f"{run.path}: {run.why}" for run in left_out]
        raise RecipeError(f"no run has a result, of {len(left_out)}:", *reasons)
    groups = group_runs(runs)
    chosen = _baseline(groups, baseline)
    tests = _tests(groups, chosen, metrics[0])
    described = []
    for group in groups:
        test = tests.get(group.label)
        described.append(
            {
                "label": group.label,
                "recipe": group.name,
                "differs": group.differs,
                "unpackaged": [n for n, v in group.any.result["versions"].items() if v == UNPACKAGED],
                "seeds": list(group.runs),
                "runs": [str(run.path) for run in group.runs.values()],
                "figures": _figures([run.result["after_calibration"] for run in group.runs.values()], metrics),
                "stages": _stages(group, metrics) if stages else [],
                "classes": _classes(group) if classes else [],
                "published": [figure for figure in group.any.published if figure["metric"] in metrics],
                "test": test,
            }
        )
    return {
        "baseline": chosen.label if len(groups) > 1 else None,
        "metrics": list(metrics),
        "groups": described,
        "left_out": [{"path": str(run.path), "why": run.why} for run in left_out],
    }


def group_runs(runs: Sequence[FoundRun]) -> list[Group]:
    """Groups of equal name and settings, in the order of their first runs; the runs of each by seed."""
    found: list[list[FoundRun]] = []
    for run in runs:
        for members in found:
            if (members[0].name, members[0].settings) == (run.name, run.settings):
                members.append(run)
                break
        else:
            found.append([run])
    groups = []
    for members in found:
        first = members[0]
        namesakes = [other[0] for other in found if other[0].name == first.name]
        paths = dict.fromkeys(path for run in namesakes for path in run.settings)
        differs = {
            path: first.settings.get(path)
            for path in paths
            if any(run.settings.get(path) != first.settings.get(path) for run in namesakes)
        }
        label = f"{first.name} #{namesakes.index(first) + 1}" if len(namesakes) > 1 else first.name
        by_seed = {run.seed: run for run in sorted(members, key=lambda run: run.seed)}
        groups.append(Group(first.name, label, differs, by_seed))
    return groups


def _baseline(groups: Sequence[Group], wanted: str | None) -> Group:
    if wanted is None:
        return groups[0]
    exact = [group for group in groups if group.label == wanted]
    found = exact or [group for group in groups if group.name == wanted]
    labels = [group.label for group in groups]
    if not found:
        raise RecipeError(f"--baseline {wanted}: no such recipe among the runs{nearest(wanted, labels)}")
    if len(found) > 1:
        shown = "; ".join(f"'{group.label}'" for group in found)
        raise RecipeError(f"--baseline {wanted}: {len(found)} groups have this name; give one of {shown}")
    return found[0]


def _tests(groups: Sequence[Group], baseline: Group, metric: FigureName) -> dict[str, dict[str, Any]]:
    """The tests of the other groups against the baseline by label, with Holm's correction over those that have a p."""
    tests: dict[str, PairedTest] = {}
    for group in groups:
        if group is baseline:
            continue
        test = paired_test(group.figures(metric), baseline.figures(metric))
        if any(group.any.result[key] != baseline.any.result[key] for key in ("data", "num_classes")):
            test = replace(test, difference=None, p=None, why="other data than the baseline's")
        elif _tested_otherwise(group, baseline):
            test = replace(test, difference=None, p=None, why="other test images than the baseline's")
        tests[group.label] = test
    adjusted = iter(holm([test.p for test in tests.values() if test.p is not None]))
    return {
        label: {"metric": metric, **asdict(test), "p_holm": None if test.p is None else next(adjusted)}
        for label, test in tests.items()
    }


def _tested_otherwise(one: Group, other: Group) -> bool:
    """Whether two groups have other classes or test images, as far as their files tell."""
    pairs = [[group.any.settings.get(name) for group in (one, other)] for name in ("classes data", "test data")]
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def _figures(results: Sequence[Figures | None], metrics: Sequence[FigureName]) -> dict[str, dict[str, Any]]:
    return {name: asdict(spread([found.get(name) if found else None for found in results])) for name in metrics}


def _classes(group: Group) -> list[dict[str, Any]]:
    """Figures of each class after calibration, the most frequent first; recall alone for runs of earlier versions."""
    results = [run.result for run in group.runs.values()]
    counts, names = results[0]["class_counts"], results[0]["class_names"]
    found = [result.get("classes") for result in results]
    rows = []
    for label in sorted(range(len(counts)), key=lambda label: (-counts[label], label)):
        recall = [result["after_calibration"]["per_class_accuracy"][label] for result in results]
        precision, f1 = ([each and each[name][label] for each in found] for name in ("precision", "f1"))
        support = next((each["support"][label] for each in found if each), None)
        figures = {"recall": recall, "precision": precision, "f1": f1}
        spreads = {name: asdict(spread(values)) for name, values in figures.items()}
        alone = found[0]["recall_interval"][label] if len(results) == 1 and found[0] else None
        rows.append(
            {
                "class": names[label],
                "training_images": counts[label],
                "test_images": support,
                "figures": spreads,
                "recall_interval": alone,
            }
        )
    return rows


def _stages(group: Group, metrics: Sequence[FigureName]) -> list[dict[str, Any]]:
    """Figures at each stage's end, then, where something calibrates, before and after it."""
    results = [run.result for run in group.runs.values()]
    rows = [
        {"name": stage["name"], "figures": _figures([r["stages"][index].get("test") for r in results], metrics)}
        for index, stage in enumerate(results[0]["stages"])
    ]
    if results[0].get("calibration"):
        before, after = ([r["before_calibration"] for r in results], [r["after_calibration"] for r in results])
        rows.append({"name": "before calibration", "figures": _figures(before, metrics)})
        rows.append({"name": "after calibration", "figures": _figures(after, metrics)})
    return rows
