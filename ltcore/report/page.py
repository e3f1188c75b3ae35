"""The page: every section in its order, with style, script and data in one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltcore.contract.interface import __version__
from ltcore.report import classes, curves, matrices, pictured, predicted, sections
from ltcore.report.blocks import Runs, Section, Shown, pictures
from ltcore.report.data import Outcome
from ltcore.report.figures import VARIABLES, Inline, Picture, named
from ltcore.report.labels import shortened
from ltcore.report.rendering import rendered

#: The page's sections in their order; one that gives no parts is left out.
_SECTIONS = (
    sections.overview,
    sections.configuration,
    sections.frequency,
    classes.accuracy,
    sections.stages,
    curves.training,
    curves.by_class,
    curves.methods,
    predicted.confusion,
    matrices.changes,
    predicted.reliability,
    classes.unsure,
    classes.diagnostics,
    matrices.decisions,
    matrices.means,
    pictured.features,
    pictured.decisions,
    pictured.shown,
    pictured.hardest,
    predicted.errors,
    pictured.suspects,
    classes.all_classes,
)
_LETTERS = 16  # of a name beside the confusion matrix


def compose(runs: Runs) -> list[Section]:
    """The page's sections, those with nothing to show left out."""
    return [section for made in _SECTIONS if (section := made(runs)).parts]


def figures_of(shown: Sequence[Section]) -> list[tuple[str, Picture]]:
    """All figures of some sections with names for their files."""
    return list(named([(each.id, picture, letter) for each in shown for picture, letter in pictures(each.parts)]))


def build(runs: Runs, shown: Sequence[Section]) -> str:
    """The page's HTML, of what `compose` gives."""
    return rendered(
        "ltcore.report",
        title=f"ltcore report: {runs[0].run.name if len(runs) == 1 else f'{len(runs)} runs'}",
        sections=shown,
        inline=Inline(),
        variables=VARIABLES,
        data={"ltcore": __version__, "runs": [_data(one) for one in runs]},
    )


def _data(one: Shown) -> dict[str, Any]:
    """Everything that the charts were drawn from."""
    run, said, analysis = one.run, one.run.predictions, one.found.analysis
    analysed = bool(said and (analysis.stages or analysis.test))
    return {
        "name": one.name,
        "path": str(run.path),
        "result": run.result,
        "stages": None if run.result else run.stages,
        "epochs": run.epochs,
        "order": run.order,
        "labels": shortened(run.names, _LETTERS),
        "confusion": said.confusion if said else None,
        "reliability": {"before": _bins(said.before), "after": _bins(said.after)} if said else None,
        "analysis": analysis.plain(said.targets, len(run.counts)) if said and analysed else None,
    }


def _bins(outcome: Outcome | None) -> dict[str, list[float]] | None:
    if outcome is None:
        return None
    return {"samples": outcome.samples, "right": outcome.right, "confidence": outcome.confidence}
