"""CPU seconds of commands on a finished run beside those of the imports that they cannot do without.

    python benchmarks/startup.py [--turns 5]

``ltcore --help``, ``ltcore plan`` and the bare import of torch are rows of ``ltcore bench --only start-up``.

Each command and each bare import is a process of its own, in turns. The figure is user plus system time of the process
and its children, the least of all turns: unlike wall time it does not grow while other programs have the cores, though
it does grow where they share them. One thread. Two tiny networks are trained first, of which one is timm's.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import ltcore

RECIPES = Path(__file__).parents[1] / "recipes"
TIMM = """
data: {use: digits_lt}
backbone: {use: timm, options: {model: test_resnet}}
stages: [{name: joint, iterations: 2, batch_size: 8, optimizer: {lr: 0.01}}]
"""
#: PyTorch's exporter with a network of one layer: what it imports to trace any network.
EXPORTER = "import torch; torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))"
BARE = {
    "torch": "import torch",
    "torch, Pillow": "import torch, PIL.Image",
    "torch, timm": "import torch, timm",
    "torch, its exporter": EXPORTER,
}


def cpu_seconds(words: list[str]) -> float:
    """User and system time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """What is measured: the import to set beside it, and the command's words."""
    small = [f"stages.{stage}" for stage in ("representation.epochs=1", "finetune.iterations=2")]
    small.append("stages.representation.schedule.warmup_epochs=0")
    own = ltcore.run(RECIPES / "digits_lt_ofa_focal.yaml", set=small, out=folder).path
    recipe = folder / "timm.yaml"
    recipe.write_text(TIMM)
    timm = ltcore.run(recipe, out=folder).path
    images = folder / "images"
    images.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8), 60 * number, dtype=np.uint8)).save(images / f"{number}.png")

    def export(run: Path, to: str, ending: str) -> list[str]:
        return ["export", str(run), "--to", to, "--out", str(folder / f"exported{ending}"), "--force"]

    return {
        "predict, 4 images": ("torch, Pillow", ["predict", str(own), str(images), "--workers", "1"]),
        "predict, timm's network": ("torch, timm", ["predict", str(timm), str(images), "--workers", "1"]),
        "export --to safetensors": ("torch", export(own, "safetensors", ".safetensors")),
        "export --to torchscript": ("torch", export(own, "torchscript", ".pt")),
        "export --to torch_export": ("torch, its exporter", export(own, "torch_export", ".pt2")),
        "export --to safetensors, timm's": ("torch, timm", export(timm, "safetensors", ".safetensors")),
    }


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        measured = commands(Path(folder))
        bare: dict[str, float] = dict.fromkeys(BARE, float("inf"))
        taken: dict[str, float] = dict.fromkeys(measured, float("inf"))
        for _ in range(turns):
            for name, program in BARE.items():
                bare[name] = min(bare[name], cpu_seconds([sys.executable, "-c", program]))
            for name, (_, words) in measured.items():
                taken[name] = min(taken[name], cpu_seconds([sys.executable, "-m", "ltcore", *words]))
    print("CPU seconds                      ltcore   bare  more  than a bare")
    for name, (beside, _) in measured.items():
        more = taken[name] - bare[beside]
        print(f"{name:32} {taken[name]:6.2f} {bare[beside]:6.2f} {more:5.2f}  {beside}")


if __name__ == "__main__":
    main()
