"""The commands that use a trained model: `predict` and `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, whole
from ltcore.untrusted import printable


def predict(
    run: Path,
    images: Sequence[str],
    top: int = 5,
    out: Path | None = None,
    as_json: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    run_code: bool = False,
) -> None:
    """Say what a run's calibrated model takes images for.

    Images are files, or folders with images at any depth. They are prepared as the run's evaluation prepares its own:
    turned as their EXIF orientation says, transparent pixels laid over white, 16 bits brought to 8, colours made grey
    where the run's images are. Files that cannot be decoded are named and left out, and the exit code is then 1.

    Example: ltcore predict runs/digits_lt_ofa_focal/RUN photos --top 3 --out predictions.csv
    """
    from ltcore.runs.prediction_files import predict_into
    from ltcore.runs.saved import load

    predict_into(load(run, run_code), images, top, out, as_json, batch_size, workers)


def export(run: Path, to: str, out: Path | None = None, force: bool = False, run_code: bool = False) -> None:
    """Write a run's calibrated model in a format that other programs read.

    The model has no training-time parts, its calibration is folded into the classifier, and how images are prepared and
    the names of the classes go along. It is loaded again and gives the run's logits, or nothing is written.

    torchscript    one file, for torch.jit.load
    torch_export   one file, for torch.export.load
    onnx           one file, for any ONNX runtime (needs ltcore[onnx])
    safetensors    one file of tensors only
    hub            a folder for the Hugging Face hub; timm loads it where the network is timm's

    Example: ltcore export runs/digits_lt_ofa_focal/RUN --to torch_export --out digits.pt2
    """
    from ltcore.export import export as write
    from ltcore.files.output import is_stream
    from ltcore.runs.saved import load

    for line in write(load(run, run_code), to, out, force):
        print(printable(line), file=sys.stderr if out is not None and is_stream(out) else sys.stdout)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    command = add_command(commands, "predict", predict)
    command.add_argument("run", type=Path, metavar="RUN", help="the directory of a run that has ended")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    command.add_argument("--top", type=whole, metavar="N", help="how many classes an image gets; by default 5")
    text = "write a table (CSV) instead: image, class, probability, class_2, probability_2, ..."
    command.add_argument("--out", type=Path, metavar="FILE", help=text)
    command.json()
    command.add_argument("--batch-size", type=whole, metavar="N", help="images at a time; by default 64")
    text = "processes that decode; by default one a core, at most 8"
    command.add_argument("--workers", type=whole, metavar="N", help=text)
    command.run_code()
    command = add_command(commands, "export", export)
    command.add_argument("run", type=Path, metavar="RUN", help="the directory of a run that has ended")
    formats = ("torchscript", "torch_export", "onnx", "safetensors", "hub")
    command.add_argument("--to", choices=formats, required=True, metavar="FORMAT", help=", ".join(formats))
    text = "the file, or the folder for hub; by default named after the recipe, in this directory"
    command.add_argument("--out", type=Path, metavar="PATH", help=text)
    command.flag("--force", "replace what an earlier export wrote")
    command.run_code()
