"""The page: every section in its order, with style, script and data in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any
from xml.etree.ElementTree import Element

from ltcore.contract.interface import __version__
from ltcore.report import classes, curves, epochs, logged, matrices, pictured, predicted, projected, sections
from ltcore.report.chart import definitions
from ltcore.report.data import Outcome, ReportedRun
from ltcore.report.layout import Runs, run_name
from ltcore.report.markup import element, embedded, render
from ltcore.report.material import Material


def compose(runs: Runs, materials: Sequence[Material]) -> list[Element]:
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
        classes.all_classes(runs),
    ]
    return [each for each in found if each is not None]


def as_figures(runs: Runs, shown: Sequence[Element]) -> list[Element]:
    """The sections with all their figures as SVG: the page's confusion matrix is drawn by its script."""
    drawn = predicted.confusion_matrices(runs)
    return [drawn if each.get("id") == "confusion" and drawn is not None else each for each in shown]


def build(runs: Runs, materials: Sequence[Material], shown: Sequence[Element]) -> str:
    """The page's HTML.

    Args:
        runs: what is reported, in the order of the colours.
        materials: for each run, what its images and models gave.
        shown: the sections.
    """
    title = f"ltcore report: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    links = (element("li", element("a", each[0].text or "", href=f"#{each.get('id')}")) for each in shown)
    here = files(__package__)
    return Template((here / "template.html").read_text(encoding="utf-8")).substitute(
        title=render(element("title", title)),
        style="".join((here / name).read_text(encoding="utf-8") for name in ("style.css", "figure.css")),
        script=(here / "script.js").read_text(encoding="utf-8"),
        heading=render(element("h1", title)),
        contents=render(element("ul", *links)),
        markers=render(definitions()),
        sections=render(*shown),
        data=render(embedded("report-data", {"ltcore": __version__, "runs": _data(runs, materials)})),
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
