"""How quick a step could be: ResNet-32's whole step as one CUDA graph, by layout and precision, and in processes.

    python -m gpu.limits             # on a machine with a GPU, in benchmarks/ or .gpu/

Nothing of ltcore is in it but the network. Forward pass, loss, backward pass and PyTorch's fused SGD are one graph, so
the host launches once a step; what is left is what the card's kernels take. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from ltcore_cifar_resnet.network import ResNet

BATCH, CLASSES, REPLAYS, SECONDS = 128, 100, 60, 1.2
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
#: How many processes train at once, one after the other.
TURNS = (8, 4, 2, 1)


def captured(layout: str, precision: str, compiled: bool = False, seed: int = 0) -> Callable[[], None]:
    """A training step on random images; without a GPU it is no graph."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    backbone = ResNet(32)
    network = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.feature_dim, CLASSES)).to(device)
    network.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=LAYOUTS[layout])
    targets = torch.randint(0, CLASSES, (BATCH,), device=device)
    rate = torch.tensor(0.1, device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=2e-4, fused=True)
    forward = torch.compile(network, dynamic=False) if compiled else network

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            logits = forward(images)
        F.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if device == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def wait() -> None:
    """For the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(step: Callable[[], None], times: int) -> float:
    """Of a step, over so many of them."""
    step()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return round((time.perf_counter() - began) / times * 1000, 3)


def say(**line: object) -> None:
    """Print a line."""
    print(json.dumps(line), flush=True)


def together(number: int, meeting: Path) -> None:
    """One process of several: each takes its turns, and the first says how long a step of each was."""
    step = captured("NCHW", "fp32", seed=number)
    for turn in TURNS:
        (meeting / f"{turn}-{number}").touch()
        while len(list(meeting.glob(f"{turn}-*"))) < max(TURNS):
            time.sleep(0.002)
        if number >= turn:
            continue
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            for _ in range(20 if torch.cuda.is_available() else 1):
                step()
                done += 1
            wait()
        if not number:
            say(processes=turn, step_ms=round((time.perf_counter() - began) / done * 1000, 3))


def main() -> None:
    """Time layouts and precisions, then processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=REPLAYS)
    parser.add_argument("--compiled", action="store_true", help="compiled steps, too")
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.number is not None:
        together(arguments.number, arguments.meeting)
        return
    for compiled in (False, True)[: 1 + arguments.compiled]:
        for precision in ("fp32", "tf32", "bf16"):
            for layout in LAYOUTS:
                took = milliseconds(captured(layout, precision, compiled), arguments.replays)
                say(layout=layout, precision=precision, compiled=compiled, step_ms=took)
    with tempfile.TemporaryDirectory() as meeting:
        command = [sys.executable, __file__, "--meeting", meeting, "--number"]
        processes = [subprocess.Popen([*command, str(number)]) for number in range(max(TURNS))]
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()
