"""The check `reopening`: a run's model built again from its tensors, as ``ltcore.load`` does, and traced for export."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ltcore.contract.model import Model
from ltcore.errors import LtcoreError
from ltcore.evaluation import calibrated
from ltcore.evaluation.calibrated import TOLERANCE, Calibrated, relative_difference
from ltcore.export.deployed import deploy
from ltcore.files import checkpoint
from ltcore.recipe.loading import LoadedRecipe
from ltcore.runs.rebuilding import rebuild
from ltcore.training.assembly import Assembly

#: Hooks whose answers are part of the model that is saved.
BUILDING = frozenset({"build_backbone", "adapt_backbone", "build_classifier", "post_calibrate"})
CHANGE = (
    "keep what a classifier or backbone has learnt or is calibrated to in parameters and buffers (`register_buffer`); "
    "let `forward` be tensor operations alone, without `if` or `float()` on what it is given"
)


def reopened(loaded: LoadedRecipe, assembly: Assembly, classifier: nn.Module) -> str | None:
    """What is wrong with a run's model once it is saved and opened again, or exported; None where nothing is.

    Args:
        loaded: the run's recipe.
        assembly: the run's parts.
        classifier: its calibrated classifier.
    """
    with tempfile.TemporaryDirectory(prefix="ltcore-check-") as folder:
        path = Path(folder) / "calibrated.safetensors"
        try:
            calibrated.write(path, assembly.model, classifier, assembly.data.whole, assembly.recipe.seed)
            saved = calibrated.read(path)
            model = rebuild(loaded, saved.description)
            checkpoint.restore_model(model, saved.tensors, path)
        except LtcoreError as error:
            return f"the run cannot be opened again: {error}"
        except Exception as error:
            return f"the run cannot be opened again: {type(error).__name__}: {error}"
    model.eval().requires_grad_(False)
    images = saved.description.normalised(saved.images)
    off = relative_difference(model(images), saved.logits)
    if not off <= TOLERANCE:
        return f"the run opened again is another model: its logits are off by {off:.2g} of the largest"
    return _exported(model, saved, images)


def _exported(model: Model, saved: Calibrated, images: torch.Tensor) -> str | None:
    given: Any = SimpleNamespace(model=model, calibrated=saved)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deployed = deploy(given)
            traced: Any = torch.jit.trace(deployed, images[:2].contiguous(), check_trace=False)  # type: ignore[no-untyped-call]
            # Other images than those that it was traced with, and darker and brighter ones.
            off = max(
                relative_difference(traced(x), deployed(x))
                for x in (images[2:3], images[1:], 0.01 * images, 10 * images)
            )
    except Exception as error:
        return f"the model cannot be exported: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if not off <= TOLERANCE:
        return f"the model exported by tracing is another one: its logits are off by {off:.2g} of the largest"
    return None
