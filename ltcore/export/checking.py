"""Whether an exported model is the run's: the same logits, to rounding, on images whose logits the run has recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ltcore.data.streaming import build_loader
from ltcore.errors import DataError, RunError
from ltcore.evaluation.calibrated import TOLERANCE, relative_difference
from ltcore.evaluation.outputs import mean_over_crops
from ltcore.export.formats import Call, saying

if TYPE_CHECKING:
    from ltcore.evaluation.unsure import Thresholds
    from ltcore.runs.saved import SavedRun

#: Test images that are compared, evenly spaced, and how many at a time; the last batch is smaller.
_IMAGES, _BATCH = 250, 32
#: A run on a GPU rounds differently.
_TOLERANCE_GPU = 2e-2
#: A probability so near to its threshold may lie on either side of it in float32.
_ROUNDING = 1e-6


def checked_logits(saved: SavedRun, call: Call) -> list[str]:
    """Compare on the probe, and on test images where they are at hand.

    Args:
        saved: the run.
        call: the exported model: images [N, C, H, W], normalised, to logits [N, classes], and what is unsure [N].

    Returns:
        Lines that say what was compared.

    Raises:
        RunError: the logits differ, what is unsure does not follow from them, or the exported model fails.
    """
    probe, thresholds = saved.calibrated, saved.description.unsure
    images = saved.description.normalised(probe.images).contiguous()
    parts = [images[:1], images[1:]]  # one image alone, too
    said = [_judge("the probe", _called(call, parts, thresholds), probe.logits, TOLERANCE)]
    try:
        data = saved.read_data()
    except DataError:
        return [*said, "the test images are not at hand as they were, so they were not compared"]
    assert data.test is not None
    index = np.unique(np.linspace(0, len(data.test) - 1, _IMAGES).astype(np.int64))
    some = data.test.subset(torch.from_numpy(index))
    loader = build_loader(some, data.transform, data.mean, data.std, 0, torch.device("cpu"), training=False)
    crops = data.transform.crops
    batches = [batch.chunk(crops) for batch in loader.eval_batches(_BATCH, crops > 1)]
    views = [[each.contiguous() for each in view] for view in zip(*batches, strict=True)]
    found = mean_over_crops([_called(call, view, thresholds) for view in views])
    expected = torch.from_numpy(saved.calibrated_logits[index])
    tolerance = TOLERANCE if saved.result["device"] == "cpu" else _TOLERANCE_GPU
    return [*said, _judge(f"{len(index)} test images", found, expected, tolerance)]


def _called(call: Call, batches: list[Tensor], thresholds: Thresholds | None) -> Tensor:
    sizes = " and ".join(map(str, sorted({len(batch) for batch in batches})))
    with saying(f"the exported model fails on batches of {sizes} images"):
        found = [call(batch) for batch in batches]
    logits = torch.cat([each[0] if isinstance(each, tuple) else each for each in found]).float()
    marks = [each[1] for each in found if isinstance(each, tuple)]
    if marks and thresholds is not None:
        probability, predictions = logits.double().softmax(1).max(1)
        close = (probability - thresholds.lowest[predictions]).abs() < _ROUNDING
        if not (close | (torch.cat(marks) == thresholds.unsure(predictions, probability))).all():
            raise RunError("the exported model does not mark as unsure what lies below the thresholds")
    return logits


def _judge(what: str, found: Tensor, expected: Tensor, tolerance: float) -> str:
    if found.shape != expected.shape:
        raise RunError(
            f"the exported model gives logits {tuple(found.shape)} on {what}, the run {tuple(expected.shape)}"
        )
    difference = relative_difference(found, expected)
    if not difference <= tolerance:
        raise RunError(
            f"the exported model's logits on {what} are not the run's: they are off by {difference:.2g} of the largest"
        )
    return f"checked on {what}: logits equal the run's to {difference:.1g} of the largest"
