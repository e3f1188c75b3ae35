"""Images a second of the training loader, nothing else being done with them."""

from __future__ import annotations

import time
from typing import Any

import torch

from ltcore.bench.beside import Beside
from ltcore.bench.subject import Subject
from ltcore.bench.turns import in_turns, middle, ratio, wait_for
from ltcore.seeding import generator_for

_FEW = 4  # batches before it is known how long one takes
_MOST = 2_000  # batches of a turn


def measure(subject: Subject, seconds: float, beside: Beside | None) -> dict[str, Any]:
    """Images a second, a turn a short epoch to its end, so that nothing is decoded while another has its turn.

    What methods do to single images is left out.

    Args:
        subject: what is measured.
        seconds: for all turns.
        beside: takes turns.
    """
    loader, device = subject.train_loader(), subject.device
    size, images = subject.plan.stages[0].stage.batch_size, len(subject.data.train)
    a_turn = seconds / (3 * (2 if beside else 1))
    count = _FEW

    def ours() -> float:
        order = torch.randperm(max(count * size, images), generator=generator_for("cpu", 0)) % images
        batches = torch.split(order[: count * size], size)
        generators = (generator_for(loader.generator_device, step) for step in range(len(batches)))
        began = time.perf_counter()
        for _ in loader.train_batches(batches, generators):
            pass
        wait_for(device)
        return count * size / (time.perf_counter() - began)

    ours()  # starts workers
    count = min(_MOST, max(_FEW, round(a_turn * ours() / size)))
    ways = {"ours": ours}
    if beside is not None:
        beside.ask("input")  # starts its workers
        ways["reference"] = lambda: beside.ask("input")["images_per_second"]
    found = in_turns(ways, seconds)
    result: dict[str, Any] = {
        "images_per_second": middle(found["ours"]),
        "batch_size": size,
        "workers": subject.workers,
        "turns": len(found["ours"]),
    }
    if beside is not None:
        result |= {
            "reference": {"images_per_second": middle(found["reference"])},
            "ratio": ratio(found["ours"], found["reference"]),
        }
    return result
