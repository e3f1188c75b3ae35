"""The page: every section in its order, with style, script and data in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from ltcore.contract.interface import __version__
from ltcore.report import classes, curves, logged, pictured, predicted, sections
from ltcore.report.chart import definitions
from ltcore.report.data import Outcome, ReportedRun
from ltcore.report.layout import Runs, run_name
from ltcore.report.markup import element, embedded, render
from ltcore.report.material import Material


def build(runs: Runs, materials: Sequence[Material]) -> str:
    """The page's HTML.

    Args:
        runs: what is reported, in the order of the colours.
        materials: for each run, what its images and model gave.
    """
    title = f"ltcore report: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    found = [
        sections.overview(runs),
        sections.configuration(runs),
        sections.frequency(runs),
        classes.accuracy(runs),
        sections.stages(runs),
        curves.training(runs),
        logged.methods(runs),
        predicted.confusion(runs),
        predicted.reliability(runs),
        classes.diagnostics(runs),
        pictured.features(runs, materials),
        pictured.hardest(runs, materials),
        classes.all_classes(runs),
    ]
    shown = [each for each in found if each is not None]
    links = (element("li", element("a", each[0].text or "", href=f"#{each.get('id')}")) for each in shown)
    here = files(__package__)
    return Template((here / "template.html").read_text(encoding="utf-8")).substitute(
        title=render(element("title", title)),
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=(here / "script.js").read_text(encoding="utf-8"),
        heading=render(element("h1", title)),
        contents=render(element("ul", *links)),
        markers=render(definitions()),
        sections=render(*shown),
        data=render(embedded("report-data", {"ltcore": __version__, "runs": _data(runs)})),
    )


def _data(runs: Runs) -> list[dict[str, Any]]:
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
        }
        for index, run in enumerate(runs)
    ]


def _reliability(run: ReportedRun) -> dict[str, Any] | None:
    def bins(outcome: Outcome | None) -> dict[str, list[float]] | None:
        if outcome is None:
            return None
        return {"samples": outcome.samples, "right": outcome.right, "confidence": outcome.confidence}

    if not run.predictions:
        return None
    return {"before": bins(run.predictions.before), "after": bins(run.predictions.after)}
