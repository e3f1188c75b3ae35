r"""The central claim of each of the five papers, tried on paired runs: results/claims.md.

    python benchmarks/arms.py digits --seeds 0..4
    python benchmarks/arms.py fashion --seeds 0..4
    python benchmarks/arms.py systems --seeds 0..2
    python benchmarks/claims.py

Reads results/runs/arms_*.json and trains nothing. An effect is the mean of the differences between two arms of the same
seed, with its two-sided 95 % interval by Student's t.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student
from systems import SYSTEMS, arms

ROOT = Path(__file__).parent.parent
#: Points of top-1. An effect whose whole interval lies below is none that a user would notice.
MARGIN = 0.5
COLUMNS = ("top1", "many", "medium", "few", "ece")
SUITES = {
    "digits": "scikit-learn's digits, 120 to 5 images a class, digits recipes (SAFA, DRW and DRS from epoch 40 of 60)",
    "fashion": "Fashion-MNIST at 14 x 14 pixels, 250 to 5 images a class, no crops and flips, ResNet-8, 40 epochs "
    "(mixup 80), batch 32, rate 0.1 divided by 10 after 80 and 90 % of the epochs, where what is deferred begins; "
    "recipes of CIFAR-10-LT",
}


@dataclass(frozen=True)
class Contrast:
    """Two arms that differ in one thing; of an arm called ``ARM:stage_one`` the first stage."""

    what: str
    arm: str
    base: str
    central: bool = True


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the arms that show it."""

    paper: str
    says: str
    contrasts: tuple[Contrast, ...]
    found: str


CLAIMS = (
    Claim(
        "OFA",
        "Tail features fused from class-specific and class-generic parts raise accuracy over fine-tuning without them.",
        (
            Contrast("augmented or not (`augmented: 0`), one first stage", "ofa", "ofa_unaugmented"),
            Contrast("fine-tuning with OFA or none", "ofa", "ce", False),
        ),
        "On both sets augmented samples raise the few and lower the many or the medium. On the digits the others "
        "lose more than the few gain; on Fashion-MNIST the few gain 6.1 ± 3.5, and what that leaves of top-1 is "
        "within the noise. Most of the few-shot gain over cross-entropy on the digits is that of the fine-tuning: "
        "it is there without augmentation, too. On Fashion-MNIST, whose fitted network leaves fine-tuning alone "
        "nothing to learn, it is all the augmentation's. In these runs OFA's sampler drew the confusing images; "
        "since they are extra rows, with draws of their own, the digits give 93.1 ± 2.1, and few 89.7 ± 2.8.",
    ),
    Claim(
        "SAFA",
        "Tail features changed by what is learned from pairs of head features raise accuracy over LDAM with deferred "
        "re-balancing.",
        (
            Contrast("with SAFA or without, on LDAM-DRW", "ldam_drw_safa", "ldam_drw"),
            Contrast("with SAFA or without, on LDAM-DRS", "ldam_drs_safa", "ldam_drs"),
        ),
        "None on Fashion-MNIST with DRW, and none beyond the noise elsewhere. What its options do, whether generated "
        "rows are recognised, and the photographs: [safa.md](safa.md).",
    ),
    Claim(
        "STG",
        "Tail features moved by transformations learned on the head raise accuracy over mixup and cRT.",
        (
            Contrast("STG or nothing generated, head 0.2 (default)", "stg_use_0.2", "mixup_crt"),
            Contrast("STG or nothing generated, head 0.4", "stg_use_0.4", "mixup_crt"),
            Contrast("without its mean term or nothing generated, head 0.2", "stg_drop_0.2", "mixup_crt", False),
            Contrast("without its mean term or nothing generated, head 0.4", "stg_drop_0.4", "mixup_crt", False),
            Contrast("with its mean term or without, head 0.2", "stg_use_0.2", "stg_drop_0.2", False),
            Contrast("with its mean term or without, head 0.4", "stg_use_0.4", "stg_drop_0.4", False),
        ),
        "The mean term decides, and its sign differs between the sets. On the digits it costs accuracy, most with "
        "two head classes of ten, and without it STG is slightly above cRT. On Fashion-MNIST it is with the mean "
        "term and four head classes that STG gains 2.5 points, 7.1 for the few, and the left-out training images "
        "say the same; with two head classes, the default there, or without the term hardly anything changes. Why "
        "is not known: generated rows stay nearest to their own class in over 94 % of cases on both sets. `mean` "
        "and `head_fraction` are options to be selected; the defaults are the paper's. The gain does "
        "not come from short stages: with four times the steps it is larger (cpu_league.md).",
    ),
    Claim(
        "GLAG",
        "A gradual balanced loss learns better features than plain losses (stage one), and generated features with "
        "distillation improve the classifier further (stage two).",
        (
            Contrast("GraLoss or logit adjustment", "gra_loss", "la"),
            Contrast("GraLoss or cross-entropy", "gra_loss", "ce"),
            Contrast("AFG and KD or stage one of the same run", "glag_afg_kd", "glag_afg_kd:stage_one"),
            Contrast("AFG or stage one of the same run", "glag_afg", "glag_afg:stage_one", False),
            Contrast("with KD or without", "glag_afg_kd", "glag_afg", False),
            Contrast("AFG and KD or weight scaling alone", "glag_afg_kd", "glag_lws", False),
            Contrast("Tukey's space as printed or ours", "glag_afg_kd_printed", "glag_afg_kd", False),
            Contrast("confidence fixed or steered by accuracy", "glag_afg_kd_fixed", "glag_afg_kd", False),
            Contrast("steered by pooled probabilities or by accuracy", "glag_afg_kd_steered", "glag_afg_kd", False),
            Contrast("confidence from 0.3 or from the paper's 0.6", "glag_afg_kd_from_0.3", "glag_afg_kd", False),
        ),
        "GraLoss is above cross-entropy, clearly so on Fashion-MNIST, but there it is below logit adjustment, at "
        "which it ends: its gain is that of the adjustment. AFG from the paper's confidence of 0.6 lowers the "
        "digits; on Fashion-MNIST it moves accuracy from the many to the few, 7.3 points of it, and whether top-1 "
        "gains one cannot tell. From 0.3 it costs the digits nothing, and the images that the long tail has left "
        "out say the same (the 0.3 was tried first on the test figures of another measurement). Distillation "
        "gives back a little of what head classes lose. One or two held-out images a class hardly move a "
        "confidence that accuracy steers; pooled probabilities move it (picture), and accuracy is no better for "
        "it. Tukey's space as printed is below ours on both sets.",
    ),
    Claim(
        "CDT",
        "Temperatures by class size make up for the feature deviation of rare classes and raise accuracy over "
        "cross-entropy.",
        (
            Contrast("gamma selected on held-out images or cross-entropy", "cdt_selected", "ce"),
            Contrast("gamma 0.2 or cross-entropy", "cdt_0.2", "ce", False),
            Contrast("gamma 0.3 or cross-entropy", "cdt_0.3", "ce", False),
            Contrast("selected or 0.2", "cdt_selected", "cdt_0.2", False),
            Contrast("selected or 0.3", "cdt_selected", "cdt_0.3", False),
        ),
        "On Fashion-MNIST CDT raises accuracy, more with 0.3 than with 0.2; on the digits 0.2 changes nothing and "
        "0.3 is too much. The selection sees three held-out images a class: it kept from 0.3 on the digits each "
        "time, and on Fashion-MNIST it chose 0 to 0.2 where 0.3 was best, which still is 2.6 ± 2.1 above cross- "
        "entropy.",
    ),
)
ABOUT = f"""# claims

For each of the five papers its central claim, tried with arms that differ in nothing else. **The protocols are ours, no
paper's**: small enough for a CPU, and such that the mechanism that a paper builds on exists (first stages learn their
training images, of rare classes too). What holds here need not hold at the published size, nor the other way round.

An effect is in points, the mean over seeds of paired differences (arms of a seed share all that they do not differ
in, bit for bit), ± the half width of its 95 % interval (Student's t). A claim **holds** where the interval of top-1
lies above 0, **does not** where it lies below {MARGIN}, the smallest effect that would matter, and else one **cannot
tell**. Intervals are of one contrast each; of fifty some lie above 0 by chance. Values were not chosen on these test
images, but for what is said below of GLAG's 0.3.
"""
SYSTEMS_ABOUT = """## The systems that they compare with

Each beside what it builds on, on the protocol of `fashion`: a row of [the table](../docs/tables.md#league) each, from
its CIFAR recipe, or the digits recipe where it has none there; deferred starts at epoch 32 of 40, batches of 32. An
effect is that of paired runs, as above. **Three seeds tell only large effects**: the half width of their interval is
2.5 standard deviations of the differences. So this page says *above* or *below* only where the whole interval lies
there, *no difference that would matter* where it lies within half a point of 0, and else *not told apart*, with the
number of seeds in which the system was above. No value was chosen on these test images.

L2RW, Meta-Weight-Net and MetaSAug hold ten images a class out before the tail is cut, as on CIFAR: a balanced set of a
hundred that others do not get, beside 694 to train on. Their baselines train on the same 694 and do without it. The
other baselines: `m2m_drs` is M2m's second network without translated images, `oltr_plain` OLTR's second stage without
attention, memory and meta-embedding, `m_per_class` cross-entropy on batches of four images a class, `bag_drs` the bag
of tricks without moved foregrounds, `feature_none` cRT on mixup's network, `ride_one` one network with the experts'
loss, `sade_balanced` and `balpoe_balanced` the same experts with balanced softmax for all of them, `ce_constant`
cross-entropy at a constant rate. Baselines that stand above, too, were trained anew with these systems: the code of
core has changed since, and with it the draws."""


@dataclass(frozen=True)
class Runs:
    """What has ended of a suite."""

    content: dict[str, Any]

    @classmethod
    def read(cls, suite: str) -> Runs:
        """The committed figures of a suite."""
        return cls(json.loads((ROOT / "results" / "runs" / f"arms_{suite}.json").read_text()))

    def of(self, arm: str, split: str = "test") -> dict[int, dict[str, Any]]:
        """An arm's figures by seed; of ``ARM:stage_one`` those of the first stage."""
        name, _, stage = arm.partition(":")
        return {
            run["seed"]: run[stage or split]
            for run in self.content["runs"]
            if run["arm"] == name and (stage or split) in run
        }

    def differences(self, contrast: Contrast, figure: str) -> list[float]:
        """Points by which the arm lies above its base, a seed each."""
        arm, base = self.of(contrast.arm), self.of(contrast.base)
        return [100 * (arm[seed][figure] - base[seed][figure]) for seed in sorted(arm.keys() & base.keys())]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of the two-sided 95 % interval."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def verdict(values: list[float]) -> str:
    """In words; see `ABOUT`."""
    if len(values) < 5:
        return "too few seeds"
    mean, half = interval(values)
    if mean - half > 0:
        return "holds"
    return "does not" if mean + half < MARGIN else "cannot tell"


def effect(values: list[float]) -> str:
    """For a cell."""
    if len(values) < 2:
        return ", ".join(f"{value:+.1f}" for value in values)
    mean, half = interval(values)
    return f"{mean:+.1f} ± {half:.1f}"


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}" if values else ""


def summary(suites: dict[str, Runs]) -> list[str]:
    """The verdict on each paper's central contrasts."""
    lines = ["| paper | contrast | " + " | ".join(suites) + " |", "| --- | --- |" + " --- |" * len(suites)]
    for claim in CLAIMS:
        for contrast in (each for each in claim.contrasts if each.central):
            cells = []
            for runs in suites.values():
                values = runs.differences(contrast, "top1")
                cells.append(f"{verdict(values)} ({effect(values)}, {len(values)} seeds)")
            lines.append(f"| {claim.paper} | {contrast.what} | " + " | ".join(cells) + " |")
    return lines


def section(claim: Claim, suites: dict[str, Runs]) -> list[str]:
    """One paper: its contrasts, then its arms."""
    lines = [f"## {claim.paper}", "", claim.says, ""]
    lines += ["| contrast | suite | seeds | top-1 | few | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for contrast in claim.contrasts:
        for name, runs in suites.items():
            top1, few = (runs.differences(contrast, figure) for figure in ("top1", "few"))
            if top1:
                cells = [contrast.what, name, str(len(top1)), effect(top1), effect(few), verdict(top1)]
                lines.append("| " + " | ".join(cells) + " |")
    if claim.found:
        lines += ["", claim.found]
    if claim.paper == "GLAG":
        lines += ["", "![AFG's confidence over the generation epochs](glag_confidence.svg)"]
    arms = list(dict.fromkeys(name for each in claim.contrasts for name in (each.base, each.arm)))
    for name, runs in suites.items():
        lines += ["", *arm_table(name, runs, arms)]
    return [*lines, ""]


def arm_table(suite: str, runs: Runs, arms: list[str]) -> list[str]:
    """Means ± standard deviations of arms, in percent; with what was measured on images that no run has seen."""
    dev = any(runs.of(arm, "dev") for arm in arms)
    generated = any("own_class" in figures for arm in arms for figures in runs.of(arm, "dev").values())
    extra = [
        *(["top-1, left-out training images"] if dev else []),
        *(["generated rows of their own class"] if generated else []),
    ]
    lines = ["| " + " | ".join([suite, "seeds", "top-1", "many", "medium", "few", "ECE", *extra]) + " |"]
    lines.append("|" + " --- |" * (7 + len(extra)))
    for arm in arms:
        found = list(runs.of(arm).values())
        if not found:
            continue
        cells = [spread([each[key] for each in found]) for key in COLUMNS]
        unseen = [] if ":" in arm else list(runs.of(arm, "dev").values())
        if dev:
            cells.append(spread([each["top1"] for each in unseen]))
        if generated:
            cells.append(spread([each["own_class"] for each in unseen if each.get("own_class") is not None]))
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + " |")
    return lines


def compared(runs: Runs) -> list[str]:
    """The part about the systems that the papers compare with."""
    lines = [*SYSTEMS_ABOUT.splitlines(), ""]
    lines += ["| system | beside | seeds | top-1 | few | |", "| --- | --- | --- | --- | --- | --- |"]
    found = []
    for system in SYSTEMS:
        for base in system.bases:
            contrast = Contrast("", system.row, base)
            top1, few = (runs.differences(contrast, figure) for figure in ("top1", "few"))
            if not top1:
                continue
            cells = [system.row, base, str(len(top1)), effect(top1), effect(few), told_apart(top1)]
            lines.append("| " + " | ".join(cells) + " |")
        if system.found and runs.of(system.row):
            found.append(f"- `{system.row}`: {system.found}")
    missing = [each.row for each in SYSTEMS if not runs.of(each.row)]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}."]
    if found:
        lines += ["", "Where nothing is gained, what was looked into:", "", *found]
    return [*lines, "", *arm_table("systems", runs, arms()), ""]


def told_apart(values: list[float]) -> str:
    """What so few seeds say."""
    if len(values) < 2:
        return "one seed says nothing"
    mean, half = interval(values)
    if abs(mean) + half < MARGIN:
        return "no difference that would matter"
    if abs(mean) > half:
        return "above" if mean > 0 else "below"
    return f"not told apart; above in {sum(value > 0 for value in values)} of {len(values)}"


def selected(suites: dict[str, Runs]) -> str:
    """Which gammas were chosen."""
    found = []
    for name, runs in suites.items():
        gammas = [next(iter(run["selected"].values())) for run in runs.content["runs"] if run["arm"] == "cdt_selected"]
        counts = ", ".join(f"{gamma} {gammas.count(gamma)} times" for gamma in sorted(set(gammas)))
        found.append(f"{name}: {counts}")
    return "gamma chosen: " + "; ".join(found) + "."


#: Of the confidence's picture: what is drawn, and the colours of classes.
DRAWN = {"glag_afg_kd": "steered by accuracy", "glag_afg_kd_steered": "pooled probabilities, window 4"}
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d8f", "#8d5a97", "#8a8a2a", "#444444", "#d98e04")
WIDE, HIGH = 300, 170


def confidence(suites: dict[str, Runs]) -> str:
    """SVG: AFG's confidence of each tail class over the epochs, a panel a suite and way of steering."""
    panels = [(suite, arm) for suite in suites for arm in DRAWN if suites[suite].of(arm, "confidence")]
    width, height = 60 + (WIDE + 90) * len(DRAWN), 30 + (HIGH + 80) * len(suites)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, (suite, arm) in enumerate(panels):
        left, top = 50 + (WIDE + 90) * (place % len(DRAWN)), 40 + (HIGH + 80) * (place // len(DRAWN))
        courses = suites[suite].of(arm, "confidence")[0]
        counts = suites[suite].content["class_counts"]
        parts.append(f'<text x="{left}" y="{top - 14}" font-weight="bold">{suite}, {DRAWN[arm]}</text>')
        for value in (0, 0.5, 1):
            y = top + HIGH * (1 - value)
            parts.append(
                f'<path d="M{left} {y}h{WIDE}" stroke="#ddd"/><text x="{left - 24}" y="{y + 4}">{value}</text>'
            )
        last = max(len(course) for course in courses.values())
        parts.append(f'<text x="{left + WIDE / 2 - 50}" y="{top + HIGH + 28}">epoch of the stage, 1 to {last}</text>')
        for number, (label, course) in enumerate(courses.items()):
            # A pixel apart, for many courses are the same.
            points = " ".join(
                f"{left + WIDE * at / (last - 1):.1f},{top + HIGH * (1 - beta) + number - 3:.1f}"
                for at, beta in enumerate(course)
            )
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            y = top + 12 + 15 * number
            parts.append(f'<text x="{left + WIDE + 6}" y="{y}" fill="{colour}">{counts[int(label)]} images</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def page(suites: dict[str, Runs], systems: Runs | None) -> str:
    """The whole page."""
    lines = [ABOUT, *(f"- `{name}`: {SUITES[name]}." for name in suites), "", *summary(suites), ""]
    for claim in CLAIMS:
        lines += section(claim, suites)
    lines += [selected(suites), ""]
    lines += compared(systems) if systems else []
    lines += ["## Commands", ""]
    lines += [f"    {line.strip()}" for line in (__doc__ or "").splitlines() if line.startswith("    python")]
    for name, runs in {**suites, **({"systems": systems} if systems else {})}.items():
        versions = runs.content["versions"]
        lines.append(
            f"\n`{name}`: one thread a run on {runs.content['device']}, python {versions['python']}, "
            f"torch {versions['torch']}, ltcore {versions['ltcore']}."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    there = [name for name in (*SUITES, "systems") if (ROOT / "results/runs" / f"arms_{name}.json").is_file()]
    suites = {name: Runs.read(name) for name in there}
    systems = suites.pop("systems", None)
    target = ROOT / "results" / "claims.md"
    target.write_text(page(suites, systems))
    (ROOT / "results" / "glag_confidence.svg").write_text(confidence(suites))
    print(target.read_text())


if __name__ == "__main__":
    main()
