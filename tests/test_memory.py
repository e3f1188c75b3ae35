"""What holds memory down: freed memory goes back, a cut data set lies as its loader wants it."""

import sys
from pathlib import Path

import pytest
import torch

from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import InMemoryLoader
from ltcore.evaluation import memory


def resident() -> int:
    """Bytes of this process that are in memory and of no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(memory._trim() is None, reason="only glibc has malloc_trim")
def test_what_was_freed_goes_back():
    held = [bytearray(60_000) for _ in range(2_000)]  # too small to be mapped one by one
    keep, before = held[::100], resident()
    del held
    memory.give_back()
    assert before - resident() > 80e6 and len(keep) == 20


def test_elsewhere_nothing_happens(monkeypatch):
    memory._trim.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._trim() is None
    memory.give_back()
    memory._trim.cache_clear()


@pytest.mark.parametrize("laid_out", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_a_cut_set_is_kept_once(laid_out):
    whole = torch.randint(256, (6, 4, 4, 4), dtype=torch.uint8).permute(laid_out)
    index = torch.tensor([4, 1, 1])
    cut = ArraySplit(whole, torch.arange(6)).subset(index)
    assert torch.equal(cut.images, whole[index]) and cut.targets.tolist() == [4, 1, 1]
    loader = InMemoryLoader(cut, (0.5,) * 4, (0.25,) * 4)
    assert loader._images.data_ptr() == cut.images.data_ptr()
