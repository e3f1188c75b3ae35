"""The recipe as text, with the figures and the reason beside each choice; and what the command prints."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcore.contract.figures import SHOT_GROUPS, shot_groups
from ltcore.init.choices import NEARLY_BALANCED, Choices, Rung, Wishes
from ltcore.init.machine import Machine
from ltcore.init.methods import PROBE
from ltcore.init.survey import ENOUGH_TO_VALIDATE, Survey, rarest
from ltcore.untrusted import printable

#: On a CPU images larger than so many pixels of a side are evaluated in batches of so many.
SMALL, EVAL_BATCH = 64, 16


def commands(found: Survey, made: Choices, recipe: Path) -> dict[str, str]:
    """The commands to rehearse, to run, and to run plain cross-entropy with the same network."""
    path = shlex.quote(str(recipe))
    run = f"ltcore run {path}"
    name = shlex.quote(f"name={recipe.stem}_baseline")
    shown = {"rehearse": f"ltcore rehearse {path}", "run": run}
    if PROBE in made.methods and made.rung.kind == "frozen":
        shown["baseline"] = f"{run} --set {name} --set methods.{PROBE}.options.balance=none"
    elif made.methods:
        shown["baseline"] = f"{run} --set {name} --set 'stages.train.methods=[]' --set 'methods={{}}'"
    elif made.rebuilds:
        shown["baseline"] = f"{run} --set {name} --set stages.classifier=null"
    return shown


def summary(found: Survey, made: Choices, machine: Machine, recipe: Path) -> str:
    """What the command prints: what was found, what will be done, and the commands."""
    shown = commands(found, made, recipe)
    lines = [
        f"images     {_images(found)}, {len(found.counts)} classes",
        f"balance    {max(found.counts)} training images in '{found.class_of(max(found.counts))}', the most frequent; "
        f"rarest: {rarest(found)} ({found.imbalance:.3g} to 1)",
        f"network    {made.rung.model}, {_start(made)}, images of {made.rung.size} x {made.rung.size} pixels",
        f"training   {_method(made)}; about {_duration(made.minutes)} on {machine.name}",
        *([f"next       {_next(made)}"] if made.above else []),
        *(f"note       {note}" for note in _notes(found, made)),
        "",
        f"wrote {recipe}, with the reasons; {found.options['root']} was only read",
        "",
        "try it out   " + shown["rehearse"],
        "train        " + shown["run"],
    ]
    if "baseline" in shown:
        lines.append("compare with " + shown["baseline"])
    return "\n".join(map(printable, lines))


def recipe_text(found: Survey, made: Choices, wishes: Wishes, machine: Machine, recipe: Path) -> str:
    """The recipe, as YAML with comments."""
    parts = [_head(found, made, recipe), _data(found, made, wishes), _backbone(found, made, wishes, machine)]
    if made.suited:
        entries = (
            f"  {name}: {_flow({'options': dict(options)}) if options else '{}'}"
            for name, options in made.suited.methods.items()
        )
        parts.append("\n".join(["methods:", *entries]))
    elif made.methods:
        parts.append("\n".join(["methods:", *(f"  {name}: {_options(found, name)}" for name in _named(made))]))
    if made.rung.size > SMALL and machine.device == "cpu":
        parts.append(f"eval_batch_size: {EVAL_BATCH}      # a CPU is quicker on few large images at a time")
    if made.suited and made.rung.kind == "frozen":
        parts.append("diagnostics: off         # they would take the training images through the network once more")
    parts.append(_stages(found, made, wishes, machine))
    return "\n".join(parts) + "\n"


def _head(found: Survey, made: Choices, recipe: Path) -> str:
    names = {
        "rehearse": "a few steps of each stage, to see that all of it works",
        "run": f"trains and tests; about {_duration(made.minutes)}",
        "baseline": "plain cross-entropy with the same network, to compare with",
    }
    lines = [
        f"A recipe for {len(found.counts)} classes of images ({_images(found)}), written by 'ltcore init'.",
        "",
    ]
    for name, command in commands(found, made, recipe).items():
        lines += [f"{names[name]}:", f"  {command}"]
    lines += [
        "",
        "Compare the column 'balanced': the mean over classes, in which a rare class counts as a frequent one.",
    ]
    return _comment(*lines)


def _data(found: Survey, made: Choices, wishes: Wishes) -> str:
    comments = [_split(found)]
    groups = shot_groups(found.counts)
    shots = ", ".join(f"{groups.count(g.name)} of {g.words}" for g in SHOT_GROUPS if g.name in groups)
    comments.append(
        f"Training images per class: {max(found.counts)} in '{found.class_of(max(found.counts))}' down to "
        f"{rarest(found)}: "
        f"{found.imbalance:.3g} to 1. Classes: {shots}."
    )
    size = f"The shorter side of the images has {found.side} pixels (median of {found.sampled})."
    if found.grey:
        size += f" {found.grey} of them are grey; they are read as colour images whose channels are equal."
    comments += [size, *(f"{note[0].upper()}{note[1:]}." for note in _notes(found, made))]
    why = {
        "resize_crop": "a little larger than needed, then a random crop and flips; mild, as the network knows images",
        "cifar": "shifts and flips; stronger changes need more epochs than small images are trained for",
        "imagenet": "random areas, flips and colours, so that a network from scratch does not learn images by heart",
    }
    options = _flow(found.options)
    lines = [
        "data:",
        f"  use: {found.use}",
        f"  options: {options}",
        f"  # {made.transform}: {why[made.transform]}.",
        f"  transform: {{name: {made.transform}, image_size: {made.rung.size}}}",
    ]
    if made.normalize is not None:
        lines += [
            f"  # What the weights of {made.rung.model} were trained with.",
            f"  normalize: {{mean: {list(made.normalize[0])}, std: {list(made.normalize[1])}}}",
        ]
    if found.window is not None:
        low, high = found.window
        lines += [
            "  # What becomes black and white in images of more than eight bits, from the values of a few of them.",
            f"  range: [{low:g}, {high:g}]",
        ]
    if held := max(wishes.holdout, made.suited.holdout if made.suited else 0):
        lines.append(f"  holdout: {held}                                       # training images per class")
    if found.broken:
        lines.append("  broken: skip                                     # leaves out images that cannot be read")
    return _comment(*comments) + "\n" + "\n".join(lines)


def _backbone(found: Survey, made: Choices, wishes: Wishes, machine: Machine) -> str:
    tuned = made.normalize is not None
    does = {"frozen": "takes features of", "last": "trains its last part on"}.get(made.rung.kind, "trains on")
    measured = f"it {does} {made.rung.rate:.3g} images per second, as measured when this was written on {machine.name}"
    if wishes.model or wishes.image_size or wishes.epochs:
        reason = f"As asked for: {measured}."
    else:
        reason = f"Chosen to fit {wishes.minutes:g} minutes: {measured}."
    if tuned:
        reason += " It starts from pre-trained weights, which help rare classes most."
    else:
        reason += (
            " It starts from scratch. Pre-trained weights help rare classes most, where you may use them: "
            "'ltcore init' with --weights FILE --model NAME, or with --pretrained, which fetches them."
        )
    if made.above:
        reason += f" {_next(made)[0].upper()}{_next(made)[1:]}."
    if made.rung.size < found.side and not made.above:
        reason += f" Larger images (yours have {found.side} pixels) are better and slower."
    options: dict[str, Any] = {"model": made.rung.model}
    if made.pretrained:
        options["pretrained"] = True
    if made.weights is not None:
        options["weights"] = made.weights
    return _comment(reason) + f"\nbackbone: {{use: timm, options: {_flow(options)}}}"


def _stages(found: Survey, made: Choices, wishes: Wishes, machine: Machine) -> str:
    ratio = f"{found.imbalance:.3g} to 1"
    frozen = made.rung.kind == "frozen"
    if made.suited:
        why = [made.suited.why]
        if frozen:
            why[0] += " The network stays as it is, and its features are computed once."
    elif frozen and PROBE in made.methods:
        rare = (
            ""
            if found.imbalance < NEARLY_BALANCED
            else (
                f" The classes are unbalanced, {ratio}: the loss is told how frequent each class is, so that the "
                "classifier has no need to learn it."
            )
        )
        why = [
            "The network stays as it is. A classifier is fitted to its features (logistic regression, its penalty "
            f"selected on held-out images) when the stage begins; the one step of the stage changes nothing.{rare}"
        ]
    elif frozen:
        why = [
            "The network stays as it is, and its features are computed once. The classifier trains on batches in which "
            f"every class is as frequent. 'pip install {made.missing}' and 'ltcore init' again gives a better one."
        ]
    elif "logit_adjustment" in made.methods:
        why = [
            f"The classes are unbalanced, {ratio}, and plain cross-entropy would guess the frequent ones too often. "
            "Logit adjustment tells the loss how frequent each class is, so that the network has no need to learn it. "
            "It costs nothing."
        ]
    elif made.rebuilds:
        why = [
            f"The classes are unbalanced, {ratio}. The second stage trains the classifier anew on batches in which "
            f"every class is as frequent (cRT), for which nothing more is installed. 'pip install {made.missing}' and "
            "'ltcore init' again gives logit adjustment, in one stage."
        ]
    else:
        why = [
            f"The classes are nearly balanced, {ratio} (less than {NEARLY_BALANCED} to 1): cross-entropy alone, since "
            "there is little for a method to correct."
        ]
    if made.rung.kind in ("last", "tuned") and PROBE in (made.suited.methods if made.suited else made.methods):
        why.append(
            "Training begins with a classifier that is fitted to the features as they are, so that it does not spoil "
            "them."
        )
    if made.rung.kind == "last":
        why.append(
            "Only the last part of the network trains with it, which takes little longer than features alone. For all "
            "of it write `trainable: [backbone, classifier]`."
        )
    length = "As asked for" if wishes.epochs else f"What fits {wishes.minutes:g} minutes, within bounds"
    epochs = "" if frozen and not made.suited else f"{_epochs(made)}, "
    why.append(f"{length}: {epochs}about {_duration(made.minutes)} on {machine.name}.")
    if made.suited:
        written = ["stages:", *(line for stage in made.suited.stages for line in _written(stage))]
        if made.suited.calibrate:
            written.append(f"calibrate: [{', '.join(made.suited.calibrate)}]")
        return "\n".join([_comment(*why), *written])
    if frozen:
        return "\n".join([_comment(*why), *_frozen(made)])
    lines = ["stages:", *_written({**made.stage, "methods": list(made.methods)})]
    other = []
    if made.rebuilds:
        lines += _rebuild("")
    elif "logit_adjustment" in made.methods and PROBE not in made.methods:
        other = [
            "  # Another way, cRT: train without a method, then the classifier anew on balanced batches. To take it,",
            "  # write `methods: []` above, remove the table `methods`, and uncomment the stage. (With logit",
            "  # adjustment it would favour rare classes twice.)",
            *_rebuild("# "),
        ]
    other.append(
        "  # 'ltcore plugins' lists what else is installed, 'ltcore plugins show NAME' what it does and needs."
    )
    return "\n".join([_comment(*why), *lines, *other])


def _frozen(made: Choices) -> list[str]:
    """The stages of a network that stays as it is."""
    if PROBE in made.methods:
        lines = ["stages:", *_written({**made.stage, "methods": list(made.methods)})]
    else:
        lines = ["stages:", "  - name: train"]
        lines += [line for line in _rebuild("")[1:] if "rebuild" not in line]
    return lines + ([f"calibrate: [{', '.join(made.calibrate)}]"] if made.calibrate else [])


def _named(made: Choices) -> tuple[str, ...]:
    return (*made.methods, *made.calibrate)


def _options(found: Survey, name: str) -> str:
    """A method's entry, with a comment."""
    if name == "logit_adjustment":
        return "{options: {tau: 1.0}}       # a larger tau favours rare classes more"
    if name == PROBE and found.imbalance < NEARLY_BALANCED:
        return "{options: {balance: none}}"
    return (
        "{}" if name == PROBE else "{}                              # probabilities that are right as often as they say"
    )


def _next(made: Choices) -> str:
    above = made.above
    assert above is not None
    least = math.ceil(above.minutes)
    return f"{_doing(above.rung)} would take about {_duration(above.minutes)} (--minutes {least})"


def _doing(rung: Rung) -> str:
    return {
        "scratch": f"{rung.model} at {rung.size} pixels",
        "frozen": f"the same at {rung.size} pixels",
        "last": f"fine-tuning the last part of the network at {rung.size} pixels",
        "tuned": f"fine-tuning all of the network at {rung.size} pixels",
    }[rung.kind]


def _written(stage: Mapping[str, Any]) -> list[str]:
    """A stage as lines of a recipe."""

    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(shown, value))}]"
        if isinstance(value, float):
            # YAML reads 1e-05 as text.
            return f"{value:.1e}" if 0 < abs(value) < 1e-4 else f"{value:g}"
        return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)

    lines = [f"{key}: {shown(value)}" for key, value in stage.items()]
    return [f"  {'-' if number == 0 else ' '} {line}" for number, line in enumerate(lines)]


def _rebuild(prefix: str) -> list[str]:
    return [
        f"  {prefix}- name: classifier",
        f"  {prefix}  epochs: 10",
        f"  {prefix}  batch_size: 128",
        f"  {prefix}  classifier: rebuild",
        f"  {prefix}  sampler: class_balanced",
        f"  {prefix}  trainable: [classifier]",
        f"  {prefix}  cache: eval                                  # the network runs once over the images",
        f"  {prefix}  optimizer: {{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}}",
        f"  {prefix}  schedule: {{name: cosine}}",
    ]


def _split(found: Survey) -> str:
    val = found.images["val"]
    if found.split == "fraction":
        few = f"fewer than {ENOUGH_TO_VALIDATE} images"
        kept = f"{val} are kept for validation" if val else f"none are kept for validation, since every class has {few}"
        if val and "val_min" in found.options:
            kept += f", none of classes with {few}"
        return (
            f"Each class is split by its files' names, always in the same way: {found.images['train']} images are "
            f"trained on, {found.images['test']} tested on (one in five), {kept}."
        )
    what = "lists" if found.split == "lists" else "folders"
    return (
        f"Your {what} are the splits: {found.images['train']} images are trained on, {found.images['test']} tested on, "
        f"{val or 'none'} kept for validation."
    )


def _notes(found: Survey, made: Choices) -> list[str]:
    notes = []
    if lonely := found.counts.count(1):
        notes.append(f"{_classes(lonely)} a single training image, first '{found.class_of(1)}'; add some if you can")
    if found.untested and not any("none tested" in note for note in found.notes):
        notes.append(
            f"{_classes(len(found.untested))} no test image, first '{found.untested[0]}'; no figure covers them"
        )
    if found.broken:
        notes.append(
            f"{len(found.broken)} of {found.sampled} images that were looked at cannot be read, first {found.broken[0]}"
        )
    if made.missing:
        notes.append(
            f"'pip install {made.missing}' and 'ltcore init' again gives a simpler recipe for unbalanced classes"
        )
    return notes + list(found.notes)


def _classes(number: int) -> str:
    return "1 class has" if number == 1 else f"{number} classes have"


def _images(found: Survey) -> str:
    return ", ".join(
        f"{found.images[name]} {what}"
        for name, what in (("train", "to train on"), ("val", "to validate on"), ("test", "to test on"))
        if found.images[name]
    )


def _start(made: Choices) -> str:
    if made.weights is not None:
        return f"from the weights of {made.weights}"
    return "from timm's weights" if made.pretrained else "from scratch"


def _method(made: Choices) -> str:
    if made.suited:
        names = ", ".join(name for name in made.suited.methods if name != PROBE)
        kept = ", the network staying as it is" if made.rung.kind == "frozen" else ""
        return f"{_epochs(made)}, with {names}{kept}"
    if made.rung.kind == "frozen":
        rare = ", told how rare each class is" if PROBE in made.methods else " on balanced batches"
        return f"a classifier on the features of the network, which stays as it is{rare}"
    epochs = f"{_epochs(made)} of the network's last part, " if made.rung.kind == "last" else f"{_epochs(made)}, "
    if "logit_adjustment" in made.methods:
        return epochs + "with logit adjustment for the rare classes"
    return epochs + (
        "then a classifier on balanced batches (cRT)" if made.rebuilds else "plain cross-entropy, as nothing is rare"
    )


def _epochs(made: Choices) -> str:
    return "1 epoch" if made.epochs == 1 else f"{made.epochs} epochs"


def _duration(minutes: float) -> str:
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"


def _flow(values: dict[str, Any]) -> str:
    """A flow mapping; JSON's strings are YAML's too."""

    def shown(value: Any) -> str:
        return json.dumps(value, ensure_ascii=printable(value) != str(value))

    return "{" + ", ".join(f"{key}: {shown(value)}" for key, value in values.items()) + "}"


def _comment(*paragraphs: str) -> str:
    from textwrap import wrap

    lines: list[str] = []
    for text in paragraphs:
        # A command stays in one line, to be copied.
        lines += (
            [text] if text.startswith("  ") else wrap(text, 110, break_long_words=False, break_on_hyphens=False) or [""]
        )
    return "\n".join(f"# {printable(line)}".rstrip() for line in lines)
