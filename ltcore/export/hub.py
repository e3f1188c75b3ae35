"""A folder as the Hugging Face hub has them: card, configuration and weights.

Where the backbone is a model of timm's that timm can make again, and the classifier is linear, timm loads the folder.
Elsewhere it holds the model as ``torch.export`` too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ltcore.contract.figures import CARD, FIGURES
from ltcore.evaluation.unsure import summary
from ltcore.export.formats import Call, saying, write_safetensors, write_torch_export
from ltcore.networks.timm_backbone import TimmBackbone, TimmOptions

if TYPE_CHECKING:
    from ltcore.export.deployed import Deployed
    from ltcore.runs.saved import SavedRun

WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"


def write_hub(saved: SavedRun, model: Deployed, about: dict[str, Any], path: Path) -> Call:
    """Write the folder and load it again, with timm where timm can.

    Raises:
        RunError: the model cannot be exported.
    """
    twin = _timm_twin(saved, model)
    if twin is None:
        path.mkdir()
        config = {"num_classes": len(about["class_names"]), "label_names": about["class_names"], "ltcore": about}
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_safetensors(saved, model, about, path / WEIGHTS)
        call = write_torch_export(saved, model, about, path / PROGRAM)
    else:
        from timm import create_model
        from timm.models import save_for_hf

        network, arguments = twin
        config = {"label_names": about["class_names"], "pretrained_cfg": _pretrained_cfg(about), "ltcore": about}
        with saying("timm cannot write or read the folder"):
            save_for_hf(network, str(path), config, arguments, safe_serialization=True)
            call = create_model(f"local-dir:{path}", pretrained=True).eval()
    (path / "README.md").write_text(_card(saved, about, twin is not None), "utf-8", "backslashreplace")
    return call


def _timm_twin(saved: SavedRun, model: Deployed) -> tuple[nn.Module, dict[str, Any]] | None:
    """Timm's own model with a classifier, holding our weights, and its arguments; None where there is no such model."""
    if saved.recipe.backbone.use != "timm" or not model.is_linear or not isinstance(model.backbone, TimmBackbone):
        return None
    import timm

    options, found = TimmOptions(**saved.recipe.backbone.options), saved.description
    name = options.model.split(".")[0]
    arguments: dict[str, Any] = {"in_chans": len(found.mean), **(options.arguments or {})}
    if options.layers is not None:
        arguments["layers"] = options.layers
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = found.transform.image_size
    network: Any = timm.create_model(name, num_classes=len(found.class_names), **arguments)
    last = network.get_classifier()
    if not isinstance(last, nn.Linear):
        return None
    prefix = next(name for name, module in network.named_modules() if module is last)
    tensors = dict(model.backbone.model.state_dict())
    tensors |= {f"{prefix}.{key}": tensor for key, tensor in model.classifier.state_dict().items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        return None  # the stem was replaced, an adapter is not merged, or without classes the model has other layers
    return network.eval(), arguments


#: What timm says of its own weights of the network, which are others.
_OF_OTHER_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "paper_name", "test_input_size", "test_crop_pct")


def _pretrained_cfg(about: dict[str, Any]) -> dict[str, Any]:
    prepared = about["preprocessing"]
    size, shorter = prepared["center_crop"], prepared["resize_shorter_side"]
    # timm resizes to floor(size / crop_pct), which must not round to a pixel less.
    share = size / shorter if math.floor(size / (size / shorter)) == shorter else size / (shorter + 0.5)
    return {
        "input_size": about["input"]["shape"][1:],
        "crop_pct": share,
        "crop_mode": "center",
        "interpolation": prepared["interpolation"],
        "mean": prepared["mean"],
        "std": prepared["std"],
        **dict.fromkeys(_OF_OTHER_WEIGHTS),
    }


_WITH_TIMM = """\
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:USER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("image.jpg").convert("MODE")
with torch.no_grad():
    probabilities = model(transform(image)[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][int(probabilities.argmax())], float(probabilities.max()))
"""

_WITHOUT_TIMM = """\
import json
import torch

extra = {"ltcore.json": ""}
model = torch.export.load("model.pt2", extra_files=extra).module()
about = json.loads(extra["ltcore.json"])
images = torch.zeros(1, *about["input"]["shape"][1:])  # prepared and normalised as about["preprocessing"] says
print(about["class_names"][int(model(images)[0].argmax())])
"""


_UNSURE_WITH_TIMM = """\

import json  # which predictions are unsure

thresholds = json.load(open("FOLDER/config.json"))["ltcore"]["unsure"]["thresholds"]
threshold = thresholds[int(probabilities.argmax())]
print("unsure" if threshold is None or float(probabilities.max()) < threshold else "sure")
"""

_UNSURE_WITHOUT_TIMM = """\

logits, unsure = model(images)
print("unsure" if unsure[0] else "sure")
"""


def _card(saved: SavedRun, about: dict[str, Any], by_timm: bool) -> str:
    prepared, counts, before = about["preprocessing"], about["class_counts"], saved.result["before_calibration"]
    usage = _WITH_TIMM.replace("MODE", about["input"]["mode"]) if by_timm else _WITHOUT_TIMM
    if "unsure" in about:
        usage += _UNSURE_WITH_TIMM if by_timm else _UNSURE_WITHOUT_TIMM
    how = (
        "timm loads this folder; the calibration is part of the classifier's weights."
        if by_timm
        else "timm has no model of these weights (the network or the classifier is another), so `model.pt2` holds the "
        "whole model as a `torch.export` program beside the tensors in `model.safetensors`."
    )
    calibrated, crops = ", ".join(about["calibration"]) or "none", about["test_crops"]
    rows = [
        f"| {FIGURES[key].long} | {_percent(before.get(key))} | {_percent(saved.metrics.get(key))} |" for key in CARD
    ]
    lines = [
        "---",
        f"library_name: {'timm' if by_timm else 'pytorch'}",
        "pipeline_tag: image-classification",
        "tags: [image-classification, long-tailed-recognition, ltcore]",
        "---",
        f"# {about['recipe']}",
        "",
        *([saved.recipe.description, ""] if saved.recipe.description else []),
        f"An image classifier for {len(counts)} classes, trained by ltcore {about['ltcore']} on a long-tailed training "
        f"set: {max(counts):,} images of the largest class, {min(counts):,} of the smallest, {sum(counts):,} in all "
        f"(data `{saved.recipe.data.use}`, backbone `{saved.recipe.backbone.use}`, seed {about['seed']}).",
        "",
        "## Use",
        "",
        how,
        "",
        "```python",
        usage.rstrip(),
        "```",
        "",
        f"Input: {about['input']['mode']} images; the shorter side is resized to {prepared['resize_shorter_side']} "
        f"pixels (bilinear), the centre of {prepared['center_crop']} x {prepared['center_crop']} is cut, values are "
        f"scaled to 0..1, and normalised with mean {_numbers(prepared['mean'])} and standard deviation "
        f"{_numbers(prepared['std'])}. Output: logits. The classes are in `config.json` (`label_names`).",
        *_unsure(saved),
        "",
        "## Results on the test images",
        "",
        f"Calibration: {calibrated}. Percent."
        + (f" The mean logits of {crops} crops of each image; this model sees one." if crops > 1 else ""),
        "",
        "| | before calibration | after |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _unsure(saved: SavedRun) -> list[str]:
    if (told := saved.result.get("unsure")) is None:
        return []
    return [
        "",
        "A prediction is unsure where its probability is below the threshold of its class; the thresholds are in "
        f"`config.json` (`ltcore`, `unsure`). Of the test images {summary(told['test'], told['precision'])}.",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
