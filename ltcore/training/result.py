"""What a run leaves when its stages are trained: the calibrated model, what it says of test images, and the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ltcore.contract.result import EnvironmentRecord, Figures, Result
from ltcore.evaluation import calibrated, unsure
from ltcore.evaluation.classes import class_figures, intervals
from ltcore.evaluation.images import ImageRows, image_names, stored_names
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import replacing
from ltcore.training.assembly import Assembly
from ltcore.training.evaluation import Evaluation
from ltcore.training.position import Position


def write_result(
    assembly: Assembly,
    directory: RunDirectory,
    position: Position,
    surroundings: EnvironmentRecord,
    about: dict[str, Any],
) -> Result:
    """Calibrate a copy of the classifier, evaluate it, and write what it gives.

    Args:
        assembly: the trained model.
        directory: where to write.
        position: the figures of the stages.
        surroundings: the environment of this process.
        about: the data's fingerprint, how the recipe's values were chosen, what was taken over from another run, and
            what changed while it was trained.

    Returns:
        The content of ``result.json``.
    """
    recipe, data, evaluation = assembly.recipe, assembly.data.whole, Evaluation(assembly)
    classifier = assembly.calibrated()
    pooled, before, targets = evaluation.outputs("test")
    after = evaluation.logits(classifier, pooled)
    thresholds, told = None, None
    if recipe.unsure is not None:
        asked = (recipe.unsure.precision, recipe.unsure.least)
        held_out, _, wanted = evaluation.outputs("val")
        chosen_on = (evaluation.logits(classifier, held_out), wanted)
        thresholds, told = unsure.record(asked, chosen_on, (after, targets), data.class_names)
    calibrated.write(directory.calibrated, assembly.model, classifier, data, recipe.seed, thresholds)
    arrays: dict[str, Any] = {"targets": targets.numpy(), "logits": before.cpu().numpy()}
    arrays["calibrated_logits"] = after.cpu().numpy()
    tested = assembly.data.split("test")
    if (names := stored_names(tested)) is not None:
        arrays["names"] = names
    with replacing(directory.path / "predictions.npz") as file:
        np.savez(file, **arrays)  # logits are noise to a compressor, and take seconds each way
    images = ImageRows.of(image_names(tested), after, targets, thresholds)
    images.write(directory.path, data.class_names)
    predictions = torch.from_numpy(images.predictions)
    if data.duplicates is not None:
        about = about | {"duplicates": data.duplicates.record()}
    result: Result = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "data": recipe.data.use,
        "num_classes": assembly.state.num_classes,
        "class_counts": data.class_counts.tolist(),
        "class_names": list(data.class_names),
        "reported_epoch": "best" if any(stage.keep == "best" for stage in recipe.stages) else "last",
        **about,  # type: ignore[typeddict-item]
        "calibration": list(recipe.calibrate),
        "before_calibration": evaluation.figures_of(before, targets),
        "after_calibration": evaluation.figures_of(after, targets),
        "intervals": intervals(predictions, targets, data.class_counts.tolist()),
        "classes": class_figures(predictions, targets, assembly.state.num_classes),
        **({} if told is None else {"unsure": told}),
        "stages": position.results,
        "preparation": {
            "transform": data.transform.name,
            "image_size": data.transform.image_size,
            "interpolation": data.transform.interpolation,
            **(
                {"test_crops": data.transform.crops, "test_margin": data.transform.crop_margin}
                if data.transform.crops > 1
                else {}
            ),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "device": surroundings["device"],
        "threads": surroundings["threads"],
        "device_name": surroundings["device_name"],
        **({"processes": surroundings["processes"]} if "processes" in surroundings else {}),
        "code": surroundings["code"],
        "versions": {"python": surroundings["python"], **surroundings["versions"]},
    }
    directory.write_json("result.json", result)
    return result


def unsure_lines(result: Result) -> list[str]:
    """What the thresholds of `unsure` come to, in lines for a terminal; none where there are none."""
    if (told := result.get("unsure")) is None:
        return []
    lines = [f"of the test images {unsure.summary(told['test'], told['precision'])}"]
    classes = len(told["thresholds"])
    if told["shared"]:
        fewer = f"of them fewer than {told['least']} held-out images are taken for each"
        lines.append(f"  {len(told['shared'])} of {classes} classes share a threshold: {fewer}")
    if told["always"]:
        lines.append(f"  {len(told['always'])} of {classes} classes are always unsure: no threshold reaches it")
    return lines


def result_rows(result: Result) -> list[tuple[str, Figures]]:
    """The rows of the table at a run's end, from ``result.json``: each stage, then calibration."""
    rows = [(entry["name"], entry["test"]) for entry in result["stages"]]
    return rows + ([("after calibration", result["after_calibration"])] if result["calibration"] else [])
