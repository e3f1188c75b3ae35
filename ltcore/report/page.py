"""The page: every section in its order, with style, script and data in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltcore.contract.interface import __version__
from ltcore.report import classes, curves, doubtful, epochs, logged, matrices, pictured, predicted, projected, sections
from ltcore.report.blocks import Section, pictures
from ltcore.report.data import Outcome, ReportedRun
from ltcore.report.figures import VARIABLES, Picture, inline, named
from ltcore.report.labels import shortened
from ltcore.report.layout import Runs, run_name
from ltcore.report.material import Material
from ltcore.report.rendering import rendered

#: Of a name beside the confusion matrix.
_LETTERS = 16


def compose(runs: Runs, materials: Sequence[Material]) -> list[Section]:
    """The page's sections in their order, those with nothing to show left out.

    Args:
        runs: what is reported, in the order of the colours.
        materials: for each run, what its images and models gave.
    """
    found = [
        sections.overview(runs),
        sections.configuration(runs),
        sections.frequency(runs),
        classes.accuracy(runs),
        sections.stages(runs),
        curves.training(runs),
        epochs.by_class(runs, materials),
        logged.methods(runs),
        predicted.confusion(runs),
        matrices.changes(runs, materials),
        predicted.reliability(runs),
        classes.unsure(runs),
        classes.diagnostics(runs),
        matrices.decisions(runs, materials),
        matrices.means(runs, materials),
        pictured.features(runs, materials),
        projected.decisions(runs, materials),
        projected.shown(runs, materials),
        pictured.hardest(runs, materials),
        classes.errors(runs),
        doubtful.section(runs, [material.doubtful for material in materials]),
        classes.all_classes(runs),
    ]
    return [each for each in found if each is not None]


def figures_of(shown: Sequence[Section]) -> list[tuple[str, Picture]]:
    """All figures of some sections with names for their files."""
    found = [(section.id, picture, letter) for section in shown for picture, letter in pictures(section.parts)]
    return list(named(found))


def build(runs: Runs, materials: Sequence[Material], shown: Sequence[Section]) -> str:
    """The page's HTML.

    Args:
        runs: what is reported, in the order of the colours.
        materials: for each run, what its images and models gave.
        shown: the sections.
    """
    from markupsafe import Markup

    names = {id(picture): name for name, picture in figures_of(shown)}
    return rendered(
        "ltcore.report",
        title=f"ltcore report: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}",
        sections=shown,
        svg=lambda picture: Markup(inline(picture, names[id(picture)])),
        variables=VARIABLES,
        data={"ltcore": __version__, "runs": _data(runs, materials)},
    )


def _data(runs: Runs, materials: Sequence[Material]) -> list[dict[str, Any]]:
    """Everything that the charts were drawn from."""
    return [
        {
            "name": run_name(runs, index),
            "path": str(run.path),
            "result": run.result,
            "stages": None if run.result else run.stages,
            "epochs": run.epochs,
            "order": run.order,
            "labels": shortened(run.names, _LETTERS),
            "confusion": run.predictions.confusion if run.predictions else None,
            "reliability": _reliability(run),
            "analysis": _analysis(run, materials[index]),
        }
        for index, run in enumerate(runs)
    ]


def _analysis(run: ReportedRun, material: Material) -> dict[str, Any] | None:
    if material.analysis is None or run.predictions is None:
        return None
    return material.analysis.plain(run.predictions.targets, len(run.counts))


def _reliability(run: ReportedRun) -> dict[str, Any] | None:
    def bins(outcome: Outcome | None) -> dict[str, list[float]] | None:
        if outcome is None:
            return None
        return {"samples": outcome.samples, "right": outcome.right, "confidence": outcome.confidence}

    if not run.predictions:
        return None
    return {"before": bins(run.predictions.before), "after": bins(run.predictions.after)}
