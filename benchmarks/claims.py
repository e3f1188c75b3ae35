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
    "digits": "scikit-learn's digits with 120 to 5 images per class, and the digits recipes. SAFA, DRW and DRS begin "
    "at epoch 40 of 60",
    "fashion": "Fashion-MNIST at 14 x 14 pixels with 250 to 5 images per class, without crops and flips. The network "
    "is ResNet-8, batches have 32 images, and the recipes are those of CIFAR-10-LT. Training has 40 epochs (80 with "
    "mixup). The learning rate is 0.1, and is divided by 10 after 80 % and after 90 % of the epochs. Methods that "
    "begin late begin at epoch 32",
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
        "Claim: OFA fuses class-specific features of rare classes with class-generic features of other classes. "
        "Fine-tuning with the fused features gives a higher accuracy than fine-tuning without them.",
        (
            Contrast("OFA against OFA without augmented features (`augmented: 0`)", "ofa", "ofa_unaugmented"),
            Contrast("OFA against cross-entropy without fine-tuning", "ofa", "ce", False),
        ),
        "On both sets, augmented features raise the accuracy of few-shot classes, and lower that of many-shot or "
        "medium-shot classes. On the digits, the other classes lose more than the few-shot classes gain. On "
        "Fashion-MNIST, the few-shot classes gain 6.1 ± 3.5 points, but the effect on top-1 is smaller than its "
        "uncertainty. On the digits, most of the few-shot gain over cross-entropy comes from fine-tuning, because it "
        "is there without augmentation, too. On Fashion-MNIST, the network has learned its training images, so "
        "fine-tuning alone has nothing to learn. There, the whole gain comes from the augmentation. In these runs "
        "OFA's sampler drew the confusing images. Now they are extra rows, with random numbers of their own, and the "
        "digits give 93.1 ± 2.1, and 89.7 ± 2.8 on few-shot classes.",
    ),
    Claim(
        "SAFA",
        "Claim: SAFA changes features of rare classes by what it learns from pairs of features of frequent classes. "
        "This gives a higher accuracy than LDAM with deferred re-balancing alone.",
        (
            Contrast("LDAM-DRW with SAFA against LDAM-DRW", "ldam_drw_safa", "ldam_drw"),
            Contrast("LDAM-DRS with SAFA against LDAM-DRS", "ldam_drs_safa", "ldam_drs"),
        ),
        "On Fashion-MNIST with DRW, SAFA has no effect that would matter. In the other cases the effect is not larger "
        "than its uncertainty. [safa.md](safa.md) says what SAFA's options do, whether generated rows can be "
        "recognised, and how SAFA works on photographs.",
    ),
    Claim(
        "STG",
        "Claim: STG moves features of rare classes by transformations that it learns on frequent classes. This gives "
        "a higher accuracy than mixup and cRT.",
        (
            Contrast("STG against nothing generated, `head_fraction` 0.2 (default)", "stg_use_0.2", "mixup_crt"),
            Contrast("STG against nothing generated, `head_fraction` 0.4", "stg_use_0.4", "mixup_crt"),
            Contrast("STG without its mean term against nothing generated, 0.2", "stg_drop_0.2", "mixup_crt", False),
            Contrast("STG without its mean term against nothing generated, 0.4", "stg_drop_0.4", "mixup_crt", False),
            Contrast("STG against STG without its mean term, 0.2", "stg_use_0.2", "stg_drop_0.2", False),
            Contrast("STG against STG without its mean term, 0.4", "stg_use_0.4", "stg_drop_0.4", False),
        ),
        "The result depends on STG's mean term (option `mean`), and in opposite directions on the two sets. On the "
        "digits the mean term costs accuracy, most of all with two head classes of ten. Without it, STG is slightly "
        "above cRT. On Fashion-MNIST, STG gains 2.5 points with the mean term and four head classes, and 7.1 points "
        "on few-shot classes. The training images that the long tail left out show the same. With two head classes, "
        "which is the default there, or without the mean term, almost nothing changes. We do not know why: generated "
        "rows are nearest to their own class in over 94 % of cases on both sets. `mean` and `head_fraction` are "
        "options to be selected. Their defaults are the paper's. The gain does not come from short stages, because "
        "with four times as many steps it is larger ([cpu_league.md](cpu_league.md)).",
    ),
    Claim(
        "GLAG",
        "Claim: in stage one, a loss that is balanced step by step (GraLoss) learns better features than plain "
        "losses. In stage two, generated features (AFG) with distillation (KD) improve the classifier further.",
        (
            Contrast("GraLoss against logit adjustment", "gra_loss", "la"),
            Contrast("GraLoss against cross-entropy", "gra_loss", "ce"),
            Contrast("AFG and KD against stage one of the same run", "glag_afg_kd", "glag_afg_kd:stage_one"),
            Contrast("AFG against stage one of the same run", "glag_afg", "glag_afg:stage_one", False),
            Contrast("AFG and KD against AFG", "glag_afg_kd", "glag_afg", False),
            Contrast("AFG and KD against weight scaling alone", "glag_afg_kd", "glag_lws", False),
            Contrast("Tukey's space as printed against ours", "glag_afg_kd_printed", "glag_afg_kd", False),
            Contrast(
                "fixed confidence against confidence steered by accuracy", "glag_afg_kd_fixed", "glag_afg_kd", False
            ),
            Contrast(
                "confidence steered by pooled probabilities against by accuracy",
                "glag_afg_kd_steered",
                "glag_afg_kd",
                False,
            ),
            Contrast("confidence from 0.3 against the paper's 0.6", "glag_afg_kd_from_0.3", "glag_afg_kd", False),
        ),
        "GraLoss is above cross-entropy, clearly so on Fashion-MNIST. But there it is below logit adjustment. GraLoss "
        "becomes logit adjustment at the end of training, so its gain is the gain of logit adjustment. With the "
        "paper's confidence of 0.6, AFG lowers top-1 on the digits. On Fashion-MNIST, AFG and KD move accuracy from "
        "many-shot to few-shot classes, which gain 7.3 points. Whether top-1 gains, one cannot tell. With a "
        "confidence of 0.3, AFG costs nothing on the digits. The training images that the long tail left out show the "
        "same. (The value 0.3 was first tried on the test figures of another measurement.) Distillation gives back a "
        "little of what head classes lose. There are only one or two held-out images per class. If accuracy on them "
        "steers the confidence, it hardly changes. If pooled probabilities steer it, it changes (see the picture), "
        "but accuracy is no better. Tukey's space as printed in the paper is worse than ours on both sets.",
    ),
    Claim(
        "CDT",
        "Claim: temperatures that depend on the class size correct the feature deviation of rare classes. This gives "
        "a higher accuracy than cross-entropy.",
        (
            Contrast("CDT with gamma selected on held-out images against cross-entropy", "cdt_selected", "ce"),
            Contrast("CDT with gamma 0.2 against cross-entropy", "cdt_0.2", "ce", False),
            Contrast("CDT with gamma 0.3 against cross-entropy", "cdt_0.3", "ce", False),
            Contrast("selected gamma against 0.2", "cdt_selected", "cdt_0.2", False),
            Contrast("selected gamma against 0.3", "cdt_selected", "cdt_0.3", False),
        ),
        "On Fashion-MNIST, CDT raises accuracy, more with gamma 0.3 than with 0.2. On the digits, 0.2 changes "
        "nothing, and 0.3 is too much. The selection uses three held-out images per class. On the digits it never "
        "chose 0.3. On Fashion-MNIST it chose 0 to 0.2, although 0.3 was best. With the chosen gamma, CDT is still "
        "2.6 ± 2.1 points above cross-entropy.",
    ),
)
ABOUT = f"""# The papers' central claims, tried

Five papers are at the centre of ltcore, and each makes a central claim. This page tries each claim on small data.
**The protocols are ours, not a paper's.** They are small enough for a CPU. In them, the first stage of a training
learns its training images, also those of rare classes, because the papers' mechanisms need this. What holds here need
not hold at the published size, and the reverse is also possible.

A *contrast* compares two trainings, called *arms*: "A against B". They differ only in the thing that the contrast
names. Everything else is the same in both arms of a seed, to the bit. The *effect* is the figure of A minus the figure
of B, in points. It is a mean over seeds, ± half the width of its 95 % interval (Student's t). *few* is the effect on
classes with fewer than 20 training images. The verdict depends on the interval of top-1:

- A claim **holds** if the whole interval lies above 0.
- It **does not** hold if the whole interval lies below {MARGIN}, the smallest effect that would matter.
- Otherwise one **cannot tell**.

Each interval is for one contrast alone. There are about fifty contrasts, so some intervals lie above 0 by chance.
Values were not chosen on these test images, with one exception: GLAG's 0.3 (see [GLAG](#glag)).

There are two protocols, called suites:
"""
SYSTEMS_ABOUT = """## The systems that they compare with

The papers compare their methods with other systems. This part compares each of these systems with its *baseline*,
which is what the system builds on. The protocol is that of `fashion`. Each system is a row of
[the table](../docs/tables.md#league). Its recipe is that of CIFAR, or the digits recipe if there is none. Methods that
begin late begin at epoch 32 of 40, and batches have 32 images. An effect is that of paired runs, as above. **Three
seeds show only large effects**, because half the width of their interval is 2.5 standard deviations of the differences.
The last column of the table says:

- *above* or *below*, if the whole interval lies above or below 0
- *no difference that would matter*, if the whole interval lies within half a point of 0
- otherwise *cannot tell*, and in how many seeds the system was above its baseline

No value was chosen on these test images.

L2RW, Meta-Weight-Net, MetaSAug and LFME hold out ten images per class before the tail is cut, as on CIFAR. So they
have a balanced set of a hundred images that other systems do not have, and train on the other 694 images. Their
baselines train on the same 694 images, without the balanced set. The other baselines are:

- `m2m_drs`: M2m's second network without translated images
- `oltr_plain`: OLTR's second stage without attention, memory and meta-embedding
- `m_per_class`: cross-entropy on batches of four images per class
- `bag_drs`: the bag of tricks without moved foregrounds
- `feature_none`: cRT on mixup's network
- `ride_one`: one network with the experts' loss
- `sade_balanced`, `balpoe_balanced`: the same experts, all of them with balanced softmax
- `lfme_student`: LFME's student without experts, trained on the same images
- `ce_constant`: cross-entropy at a constant learning rate

Some of the baselines are also arms in the tables above. They were trained again together with these systems, because
core's code has changed since then, and with it the random numbers."""


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
        """Points by which the arm lies above its base, one per seed."""
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
    lines += ["| system | baseline | seeds | top-1 | few | verdict |", "| --- | --- | --- | --- | --- | --- |"]
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
        lines += [
            "",
            "Some systems gain nothing here, or little. This is what we found when we looked into it:",
            "",
            *found,
        ]
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
    return f"cannot tell; above in {sum(value > 0 for value in values)} of {len(values)}"


def selected(suites: dict[str, Runs]) -> str:
    """Which gammas were chosen."""
    found = []
    for name, runs in suites.items():
        gammas = [next(iter(run["selected"].values())) for run in runs.content["runs"] if run["arm"] == "cdt_selected"]
        counts = ", ".join(f"{gamma} in {gammas.count(gamma)} of {len(gammas)}" for gamma in sorted(set(gammas)))
        found.append(f"on `{name}`, {counts}")
    return "These gammas were chosen: " + "; ".join(found) + " runs."


#: Of the confidence's picture: what is drawn, and the colours of classes.
DRAWN = {"glag_afg_kd": "steered by accuracy", "glag_afg_kd_steered": "pooled probabilities, window 4"}
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d8f", "#8d5a97", "#8a8a2a", "#444444", "#d98e04")
WIDE, HIGH = 300, 170


def confidence(suites: dict[str, Runs]) -> str:
    """SVG: AFG's confidence of each tail class over the epochs, a panel for each suite and way of steering."""
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
            f"\n`{name}`: one thread per run on {runs.content['device']}, python {versions['python']}, "
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
