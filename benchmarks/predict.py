"""Images a second and memory of ``ltcore predict``, on 2,000 and on 20,000 files.

    python benchmarks/predict.py

Trains a small network for two steps, and then for each number of files lets ``ltcore predict`` write a
table of them, in a process of its own, start included. The files are JPEGs of 500 x 375 pixels: 200 pictures, linked as
often as needed. Memory is that of the process and its workers without the libraries' files, shared parts counted once
(Pss_Anon and Pss_Shmem), the largest of what is seen ten times a second. Takes about ten minutes on two busy cores.
With ``--killed SECONDS`` each number of files is predicted once more, killed after so long and gone on with, and the
two tables are compared byte by byte.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import ltcore

RECIPE = """
data: {{use: synthetic, options: {{class_counts: [40, 20, 10, 5], image_size: {size}, test_per_class: 4}}}}
backbone: {{use: timm, options: {{model: {model}}}}}
stages: [{{name: joint, iterations: 2, batch_size: 8, optimizer: {{name: sgd, lr: 0.01}}}}]
"""
PICTURES = 200


def pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = random.integers(-20, 20, (375, 500, 3))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def links(source: Path, folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        os.link(source / f"{number % PICTURES}.jpg", folder / f"{number:06}.jpg")


def proportional(pid: int) -> int:
    """Bytes of a process and its children, memory that several share divided among them; no pages of files."""
    total = 0
    for process in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def command(run: Path, folder: Path, out: Path, workers: int) -> list[str]:
    words = ["predict", str(run), str(folder), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "ltcore", *words]


def go_on(run: Path, folder: Path, whole: Path, workers: int, killed: float) -> dict[str, float | bool]:
    """Kill a prediction with its workers, and go on with it."""
    out = whole.with_name("killed.csv")
    process = subprocess.Popen(command(run, folder, out, workers), start_new_session=True, stdout=subprocess.DEVNULL)
    time.sleep(killed)
    assert process.poll() is None, f"it had ended before {killed:g} s"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = json.loads(out.with_name("killed.csv.unfinished.json").read_text())["noted"]["done"]
    began = time.perf_counter()
    subprocess.run([*command(run, folder, out, workers), "--resume"], check=True, stdout=subprocess.DEVNULL)
    seconds = round(time.perf_counter() - began, 1)
    same = out.read_bytes() == whole.read_bytes()
    return {"killed_after": killed, "done_by_then": done, "seconds": seconds, "same": same}


def measure(run: Path, folder: Path, out: Path, workers: int) -> dict[str, float]:
    began, most = time.perf_counter(), 0
    process = subprocess.Popen(command(run, folder, out, workers), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            most = max(most, proportional(process.pid))
        except OSError:
            pass  # a process ended meanwhile
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    count = sum(1 for _ in folder.iterdir())
    assert sum(1 for _ in out.open()) == count + 1
    return {
        "images": count,
        "seconds": round(seconds, 1),
        "per_second": round(count / seconds, 1),
        "MB": round(most / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--model", default="test_resnet", help="a network of timm")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side that images are brought to")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--killed", type=float, metavar="SECONDS", help="also kill one after so long, then go on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "r.yaml").write_text(RECIPE.format(size=asked.size, model=asked.model))
        run = ltcore.run(folder / "r.yaml", out=folder / "runs").path
        (folder / "pictures").mkdir()
        pictures(folder / "pictures")
        for count in asked.counts:
            links(folder / "pictures", folder / str(count), count)
            out = folder / "p.csv"
            print(json.dumps(measure(run, folder / str(count), out, asked.workers)), flush=True)
            if asked.killed:
                print(json.dumps(go_on(run, folder / str(count), out, asked.workers, asked.killed)), flush=True)


if __name__ == "__main__":
    main()
