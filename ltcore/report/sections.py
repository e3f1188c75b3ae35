"""The sections on whole runs: overview, configuration, class counts and stages."""

from __future__ import annotations

from ltcore.contract.figures import SHOT_GROUPS, ShotName, shot_groups
from ltcore.contract.result import Figures, SelectionRecord
from ltcore.report.blocks import FIGURE_HEADS, Cell, Code, Folded, Panels, Part, Row, Runs, Section, Shown, Table
from ltcore.report.chart import Axis, Chart, Series
from ltcore.report.data import ReportedRun
from ltcore.report.labels import MISSING, number, shortened
from ltcore.report.layout import accuracy_axis, each_run, ended, folded, headed

#: The number of each shot group's colour and marker, and that of no run and no group.
GROUP_STYLES: dict[ShotName, int] = {"many": 0, "medium": 2, "few": 1}
NEUTRAL = 4
_TICK_LETTERS = 52  # that fit below a chart


def overview(runs: Runs) -> Section:
    """One line of figures for every run."""
    rows: list[Row] = []
    for one in runs:
        figures = [Cell(MISSING) for _ in FIGURE_HEADS]
        if one.run.result:
            figures = one.figures(one.run.result["after_calibration"], "after_calibration")
        name = Cell(one.name, key=None if one.alone else one.index)
        rows.append([name, *figures, Cell(_state(one.run), "state"), Cell(str(one.run.path), "path")])
    many, medium, few = (group.words for group in SHOT_GROUPS)
    text = (
        "Figures on the test images at the end of each run, calibration included, in percent. Many, medium and few are "
        f"the mean accuracies of the classes with {many}, {medium} and {few} training images; balanced is the mean "
        "over all classes, ECE the expected calibration error."
    )
    head = ["run", *FIGURE_HEADS, "state", "directory"]
    return Section("overview", "Overview", text, [Table(head, rows, "Figures of each run, in percent")])


def _state(run: ReportedRun) -> str:
    if run.result:
        return "ended"
    epochs = f"{len(run.epochs)} epoch{'' if len(run.epochs) == 1 else 's'}"
    return f"not ended: {epochs} and {len(run.stages)} stage{'' if len(run.stages) == 1 else 's'} done"


def configuration(runs: Runs) -> Section:
    """Recipe, plan and surroundings."""

    def draw(one: Shown) -> list[Part]:
        about, result = one.run.environment, one.run.result
        facts = [(name, str(about[name])) for name in ("device", "device_name", "python", "platform") if name in about]
        facts += [(name, str(version)) for name, version in about.get("versions", {}).items()]
        parts: list[Part] = [
            Folded("Plan", [Code(one.run.plan_text, "plan")], unfolded=one.alone),
            Folded("Recipe", [Code(one.run.recipe_text, "recipe")], printed=True),
        ]
        if facts:
            parts.append(folded("Device and versions", ["what", "value"], facts, "Device and versions", printed=True))
        if result and "selection" in result:
            parts.append(_selection(one, result["selection"]))
        if result and "reused" in result:
            taken = ", ".join(f"{name}: {value}" for name, value in result["reused"].items())
            parts.append(f"Stages were taken over from another run ({taken}).")
        return parts

    text = "What was asked for: the plan says which method does what in which stage; the recipe can be run again."
    return Section("configuration", "Configuration and plan", text, each_run(runs, draw, ""))


def _selection(one: Shown, selection: SelectionRecord) -> Folded:
    rows: list[Row] = []
    for place, candidate in enumerate(selection["candidates"]):
        options = ", ".join(f"{path} = {value}" for path, value in candidate["options"].items())
        chosen = "chosen" if candidate["options"] == selection["chosen"] else ""
        rows.append([options, one.cell(candidate["score"], f"selection/candidates/{place}/score"), chosen])
    caption = f"Values chosen on {selection['images']} held-out images by {selection['score']}"
    return folded("Selection", ["options", "score, percent", ""], rows, caption, printed=True)


def frequency(runs: Runs) -> Section:
    """Training images of each class, the most frequent first; runs with the same counts have one line."""
    tails: dict[tuple[int, ...], list[Shown]] = {}
    for one in ended(runs):
        tails.setdefault(tuple(one.run.counts), []).append(one)
    title, several = "Class frequency", len(tails) > 1
    if not tails:
        return Section("frequency", title, "", [])
    series: list[Series] = []
    rows: list[Row] = []
    for members in tails.values():
        run, whose = members[0].run, ", ".join(one.name for one in members)
        ranked = [(rank, run.counts[label]) for rank, label in enumerate(run.order, 1)]
        if several:
            style = members[0].index
            series.append(Series(whose, ranked, style, line=True, dash=style))
        else:
            series += [Series("all classes", ranked, NEUTRAL, line=True, marks=False), *_grouped(run)]
        for group in SHOT_GROUPS:
            own = [count for count, name in zip(run.counts, shot_groups(run.counts), strict=True) if name == group.name]
            first: list[str | Cell] = [whose] if several else []
            rows.append([*first, f"{group.name} ({group.rule})", Cell(str(len(own))), Cell(f"{sum(own):,}")])
    counts = [count for tail in tails for count in tail]
    x = Axis("classes, the most frequent first", 0, max(map(len, tails)) + 1, whole=True)
    y = Axis("training images", min(counts) / 1.25, max(counts) * 1.25, log=True)
    said = f"From {max(counts):,} training images of the most frequent class down to {min(counts):,}."
    text = "How long the tail is."
    if not several:
        imbalance = max(counts) / min(counts)
        text += f" {len(counts)} classes; the largest has {imbalance:.4g} times as many images as the smallest."
    head = [*(["runs"] if several else []), "group", "classes", "training images"]
    groups = Table(head, rows, "Classes and training images of each group")
    chart = Chart("Training images of each class", said, x, y, series)
    return Section("frequency", title, text, [Panels([chart, groups])])


def _grouped(run: ReportedRun) -> list[Series]:
    made, groups = [], shot_groups(run.counts)
    for group, style in GROUP_STYLES.items():
        ranked = [(rank, label) for rank, label in enumerate(run.order, 1) if groups[label] == group]
        points = [(rank, run.counts[label]) for rank, label in ranked]
        titles = [f"{run.names[label]}: {run.counts[label]} training images" for _, label in ranked]
        made += [Series(group, points, style, titles)] if points else []
    return made


def stages(runs: Runs) -> Section:
    """The shot groups after each stage and calibration."""
    rows: list[Row] = [
        [*one.own, name, *one.figures(figures, path)] for one in runs for name, path, figures in one.run.figures
    ]
    shown = Table(headed(runs, "after", *FIGURE_HEADS), rows, "Figures after each stage, in percent")
    text = (
        "What each stage, and calibration, does to frequent and rare classes: the first point of each line is the "
        "first stage's end, the last the result. In percent."
    )
    charts = each_run(runs, lambda one: [_groups_by_stage(one.run)] if tested(one.run) else [], "No stage has ended.")
    return Section("stages", "Many, medium and few, stage by stage", text, [*charts, shown] if rows else [])


def tested(run: ReportedRun) -> list[tuple[str, str, Figures]]:
    """The run's evaluations on test images in order, that before calibration left out: it is the last stage's."""
    return [row for row in run.figures if not row[1].endswith("validation") and row[1] != "before_calibration"]


def _groups_by_stage(run: ReportedRun) -> Chart:
    rows = tested(run)
    names = shortened([name for name, _, _ in rows], _TICK_LETTERS // len(rows))
    x = Axis("after", -0.5, len(rows) - 0.5, named=tuple(names))
    series = []
    for dash, (group, style) in enumerate(GROUP_STYLES.items()):
        known = [(at, value) for at, (_, _, figures) in enumerate(rows) if (value := figures[group]) is not None]
        titles = [f"{group}, {rows[at][0]}: {100 * value:.1f} percent" for at, value in known]
        series += [Series(group, known, style, titles, line=True, dash=dash)] if known else []
    said = "; ".join(
        f"{name}: " + ", ".join(f"{g} {number(100 * value)}" for g in GROUP_STYLES if (value := f[g]) is not None)
        for name, _, f in rows
    )
    return Chart("Mean accuracy of each group's classes", said, x, accuracy_axis(), series)
