"""The commands that use a trained model: `predict`, `evaluate`, `suspects` and `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.cli.parser import add_command, number_of, whole
from ltcore.untrusted import printable


def predict(
    run: Path,
    images: Sequence[str],
    top: int = 5,
    out: Path | None = None,
    as_json: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    resume: bool = False,
    run_code: bool = False,
) -> None:
    """Say what a run's calibrated model takes images for.

    Images are files, or folders with images at any depth. They are prepared as the run's evaluation prepares its own.
    They are turned as their EXIF orientation says, transparent pixels are laid over white, and 16 bits become 8.
    Colours become grey if the run's images are grey. Files that cannot be decoded are named and left out, and the exit
    code is then 1.

    FILE of --out gets its name when it is complete. If the command was killed, --resume goes on with what it left.

    Example: ltcore predict runs/digits_lt_ofa_focal/RUN photos --top 3 --out predictions.csv
    """
    from ltcore.runs.prediction_files import predict_into
    from ltcore.runs.saved import load

    predict_into(load(run, run_code), images, top, out, as_json, batch_size, workers, resume)


def evaluate(
    run: Path,
    data: Path,
    prior: str | None = None,
    assumes: str | None = None,
    out: Path | None = None,
    as_json: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    run_code: bool = False,
) -> None:
    """Say how well a run's calibrated model does on other labelled images.

    DATA is a folder with one folder per class, or a table of files and labels (.csv, .tsv, or .json as COCO has it). It
    may be a list (.txt) of lines 'relative/path label', too, or a recipe, whose test images are taken. Classes are
    those of the run, by name.

    With --prior the model's outputs are adjusted to how frequent the classes will be in use. Figures that depend on
    this are then also given for these frequencies. PRIOR is uniform, training (as in training), or a table of classes
    and numbers. forward:50 falls by a factor of 50 from the most frequent class to the rarest, and backward:50 rises.

    Example: ltcore evaluate runs/digits_lt_ofa_focal/RUN recipes/digits_lt_ce.yaml --prior forward:20
    """
    from ltcore.runs.evaluating import as_json as written
    from ltcore.runs.evaluating import evaluate as evaluated
    from ltcore.runs.evaluating import refuse_folder, render, write
    from ltcore.runs.saved import load

    if out is not None:
        refuse_folder(out)
    found = evaluated(load(run, run_code), data, prior, assumes, batch_size, workers, run_code)
    aside = sys.stderr if as_json else sys.stdout
    for note in found.notes:
        print(f"note: {printable(note)}", file=aside)
    if as_json:
        print(written(found), end="")
    else:
        for line in render(found):
            print(printable(line))
    if out is not None:
        write(found, out)
        wrong = len(found.images.wrong)
        print(f"{printable(out)}: evaluation.json, predictions.csv, and {wrong} images in errors.csv", file=aside)


def suspects(
    run: Path,
    folds: int | None = None,
    alike: float | None = None,
    out: Path | None = None,
    run_code: bool = False,
) -> None:
    """Name training images whose label is likely wrong, and images that nearly coincide.

    The run's network gives features of its images. A balanced classifier on the features of all parts but one judges
    the training images of that part. Where it is surer of another class than it usually is of that class, the label is
    suspect. Look at these images before you change a label.

    suspects.csv and duplicates.csv are written into the run's directory, and `ltcore report` shows them.

    Example: ltcore suspects runs/digits_lt_ofa_focal/RUN
    """
    from ltcore.runs.evaluating import refuse_folder
    from ltcore.runs.saved import load
    from ltcore.runs.suspecting import ALIKE, DUPLICATES, FOLDS, SUSPECTS, look, render

    if out is not None:
        refuse_folder(out)
    found = look(load(run, run_code), FOLDS if folds is None else folds, ALIKE if alike is None else alike)
    for line in render(found):
        print(printable(line))
    for note in found.notes:
        print(f"note: {printable(note)}")
    folder = out or run
    found.write(folder)
    print(f"{printable(folder)}: {SUSPECTS} and {DUPLICATES}; 'ltcore report' shows those in a run's directory")


def export(run: Path, to: str, out: Path | None = None, force: bool = False, run_code: bool = False) -> None:
    """Write a run's calibrated model in a format that other programs read.

    The model has no parts that only training needs, and its calibration is folded into the classifier. The file also
    says how images are prepared and how the classes are called. The model is loaded again and must give the run's
    logits, or nothing is written.

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
    command.ended_run()
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of images")
    command.add_argument("--top", type=whole, metavar="N", help="how many classes an image gets; by default 5")
    text = "write a table (CSV) instead: image, class, probability, class_2, probability_2, ..."
    command.add_argument("--out", type=Path, metavar="FILE", help=text)
    command.json()
    command.add_argument("--batch-size", type=whole, metavar="N", help="images at a time; by default 64")
    text = "processes that decode; by default one per core, at most 8"
    command.add_argument("--workers", type=whole, metavar="N", help=text)
    command.flag("--resume", "go on with what a killed command has left of --out")
    command.run_code()
    command = add_command(commands, "evaluate", evaluate)
    command.ended_run()
    command.add_argument("data", type=Path, metavar="DATA", help="labelled images: a folder, a table, a list, a recipe")
    text = "how frequent the classes will be: uniform, training, forward:R, backward:R, or a table"
    command.add_argument("--prior", metavar="PRIOR", help=text)
    text = "for what frequencies the model's outputs hold, as --prior; by default what its recipe suggests, and says"
    command.add_argument("--assumes", metavar="PRIOR", help=text)
    text = "a folder that gets evaluation.json, predictions.csv and errors.csv"
    command.add_argument("--out", type=Path, metavar="DIR", help=text)
    command.json()
    command.add_argument("--batch-size", type=whole, metavar="N", help="images at a time; by default 64")
    command.add_argument(
        "--workers", type=whole, metavar="N", help="processes that decode; by default one per core, at most 8"
    )
    command.run_code()
    command = add_command(commands, "suspects", suspects)
    command.ended_run()
    text = "parts of the training images, each judged by what the others teach; by default 5"
    command.add_argument("--folds", type=whole, metavar="N", help=text)
    text = "how alike two images must be to count as near-duplicates, up to 1; by default 0.85"
    command.add_argument("--alike", type=number_of("likeness"), metavar="SHARE", help=text)
    command.add_argument("--out", type=Path, metavar="DIR", help="a folder for the two files, in place of the run's")
    command.run_code()
    command = add_command(commands, "export", export)
    command.ended_run()
    formats = ("torchscript", "torch_export", "onnx", "safetensors", "hub")
    command.add_argument("--to", choices=formats, required=True, metavar="FORMAT", help=", ".join(formats))
    text = "the file, or the folder for hub; by default named after the recipe, in this directory"
    command.add_argument("--out", type=Path, metavar="PATH", help=text)
    command.flag("--force", "replace what an earlier export wrote")
    command.run_code()
