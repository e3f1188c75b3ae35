"""How a stage's backbone is made quicker (``accelerate``), as far as it is known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltcore.errors import listed

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.contract.recipe import Stage
    from ltcore.discovery.binding import Answers

#: What acts on the backbone's steps, as messages call it.
NAMES = {"off": "eager", "compile": "compiled", "graphs": "graphs", "step_graphs": "whole steps as graphs"}
#: Optimisers whose fused step a CUDA graph can hold: it reads the learning rate from memory.
CAPTURED = ("adam", "adamw", "sgd")
#: Why `auto` is eager on a CPU.
ON_A_CPU = "on a CPU compiled steps have not been quicker by enough to pay for their compiling"


@dataclass(frozen=True)
class Choice:
    """What a stage trains with.

    Attributes:
        asked: the stage's ``accelerate``.
        chosen: ``off``, ``compile``, ``graphs`` or ``step_graphs``.
        why: why it is not more; empty where nothing stands in its way.
    """

    asked: str
    chosen: str
    why: str = ""


def obstacle(stage: Stage, answers: Answers, skeleton: Backbone) -> str:
    """Why nothing but the eager backbone can train a stage; empty where more can be tried.

    What is accelerated is one function, from a batch's rows to the maps or the pooled features, with the weights as
    they are. With ``step_graphs`` it is the whole step.

    Args:
        stage: the stage.
        answers: what its methods answer.
        skeleton: the backbone.
    """
    if stage.accelerate == "step_graphs":
        return _obstacle_of_whole_steps(stage, answers)
    if stage.cache != "off":
        return f"cache '{stage.cache}' gives features, and the backbone does not run in a step"
    if stage.accumulate > 1:
        return f"accumulate: {stage.accumulate} runs the backbone on a batch in parts, and some of them twice"
    for answer in answers["compute_gradients"]:
        return f"{answer.entry.whose} computes the gradients, and runs the backbone with other weights"
    for answer in answers["augment_features"]:
        tap = answer.entry.method.tap
        if tap in skeleton.inner_taps:
            return f"{answer.entry.whose} acts at '{tap}', inside the backbone"
    return ""


def _obstacle_of_whole_steps(stage: Stage, answers: Answers) -> str:
    if stage.accumulate > 1:
        return f"accumulate: {stage.accumulate} runs the backbone on a batch in parts, and some of them twice"
    for answer in answers["compute_gradients"]:
        return f"{answer.entry.whose} computes the gradients, and decides in each step what it runs"
    options = stage.optimizer.model_extra or {}
    if stage.optimizer.name not in CAPTURED or options.get("fused") is False or "foreach" in options:
        return f"a graph holds the fused steps of {listed(CAPTURED)}"
    return ""


def choice(asked: str, device: str, why: str, processes: int = 1) -> Choice:
    """What is tried first on a device.

    Args:
        asked: the stage's ``accelerate``.
        device: the device's type, such as ``cuda``.
        why: what `obstacle` says.
        processes: how many train together.
    """
    if processes > 1:
        why = why or f"{processes} processes train together, and exchange gradients while the backbone works"
    if asked == "off":
        return Choice(asked, "off", "the recipe says so")
    if asked == "auto" and device != "cuda":
        why = why or ON_A_CPU
    chosen = "graphs" if asked == "auto" else asked
    return Choice(asked, "off" if why else chosen, why)


def refused(stage: Stage, device: str, why: str) -> str:
    """Why what a stage asks for by name cannot be had; empty where it can be tried.

    Args:
        stage: the stage.
        device: the device's type as far as it is known, such as ``cuda``; or ``auto``.
        why: what `obstacle` says, or another reason.
    """
    if stage.accelerate in ("auto", "off"):
        return ""
    if why:
        return f"accelerate: {stage.accelerate} cannot be had: {why}; use auto, which is eager here"
    if stage.accelerate in ("graphs", "step_graphs") and device.partition(":")[0] not in ("auto", "cuda"):
        return (
            f"accelerate: {stage.accelerate} are CUDA's, and the stage trains on {device}; use auto, which is graphs "
            "on a GPU and eager elsewhere"
        )
    return ""


def described(stage: Stage, answers: Answers, skeleton: Backbone, processes: int = 1) -> dict[str, Any]:
    """For ``ltcore plan``: what is asked for, what that is on a GPU and on a CPU, and why not more on a GPU."""
    why = obstacle(stage, answers, skeleton)
    gpu, cpu = (choice(stage.accelerate, device, why, processes) for device in ("cuda", "cpu"))
    return {"asked": stage.accelerate, "on_gpu": gpu.chosen, "on_cpu": cpu.chosen, "why_not_more": gpu.why}


def rendered(found: dict[str, Any]) -> str:
    """What `described` gives as a line of text."""
    gpu, cpu = NAMES[found["on_gpu"]], NAMES[found["on_cpu"]]
    if found["asked"] != "auto":
        return str(found["asked"])
    if found["why_not_more"]:
        return f"auto: {gpu}, because {found['why_not_more']}"
    return f"auto: {gpu} on a GPU, {cpu} on a CPU"
