"""The batch sampler for other loops, and the examples of docs/other_loops.md, run one after the other."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import ltcore
from ltcore.contract.samplers import PlainSampler, class_balanced_distribution
from ltcore.seeding import generator_for

PAGE = (Path(__file__).parents[1] / "docs" / "other_loops.md").read_text()
TARGETS = torch.arange(4).repeat_interleave(torch.tensor([60, 25, 10, 5]))


def drawn(epoch=0, **options):
    sampler = ltcore.BatchSampler(TARGETS, **{"batch_size": 16, **options})
    sampler.set_epoch(epoch)
    return list(sampler)


def test_batches_are_cores():
    generator = generator_for("cpu", 3, "batch sampler", 2)
    plain = PlainSampler(TARGETS, 4, 16)
    wanted = plain.draw(plain.steps_per_epoch(), class_balanced_distribution(torch.bincount(TARGETS)), generator)
    assert drawn(2, seed=3) == [batch.tolist() for batch in wanted.indices]
    assert len(ltcore.BatchSampler(TARGETS, 16)) == 7 == len(drawn())


def test_an_epoch_depends_on_seed_and_epoch_alone():
    assert drawn(1) == drawn(1) != drawn(2) and drawn(1) != drawn(1, seed=1)
    sampler = ltcore.BatchSampler(TARGETS, 16)
    list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == drawn(1)


def test_frequencies_are_what_is_asked_for():
    def shares(distribution):
        rows = [index for epoch in range(60) for batch in drawn(epoch, distribution=distribution) for index in batch]
        return torch.bincount(TARGETS[rows], minlength=4) / len(rows)

    torch.testing.assert_close(shares("class_balanced"), torch.full((4,), 0.25), atol=0.02, rtol=0)
    torch.testing.assert_close(
        shares(torch.tensor([0.0, 1.0, 0.0, 3.0])), torch.tensor([0, 0.25, 0, 0.75]), atol=0.02, rtol=0
    )
    roots = torch.tensor([60.0, 25, 10, 5]).sqrt()
    torch.testing.assert_close(shares("square_root"), roots / roots.sum(), atol=0.02, rtol=0)
    for epoch in range(2):
        rows = [index for batch in drawn(epoch, distribution="instance") for index in batch]
        assert sorted(rows) == list(range(100))


def test_a_class_of_one_image_is_drawn():
    assert sorted({index for batch in ltcore.BatchSampler([0] * 9 + [1], 5) for index in batch})[-1] == 9


def test_processes_share_every_batch_out():
    whole, parts = drawn(1), [drawn(1, rank=rank, world_size=3) for rank in range(3)]
    for batch, *shared in zip(whole, *parts, strict=True):
        assert sorted(index for part in shared for index in part) == sorted(batch)
        assert max(map(len, shared)) - min(map(len, shared)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "balanced"}, "distribution 'balanced' is none of instance, class_balanced, square_root"),
        ({"distribution": torch.ones(3)}, r"is \[4\] numbers, a share for each class, not \[3\]"),
        ({"distribution": torch.tensor([1.0, -1, 1, 1])}, "a share for each class"),
        ({"distribution": torch.zeros(4)}, "a share for each class"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes does not suit batches of 16 rows"),
        ({"world_size": 17}, "rank 0 of 17 processes does not suit batches of 16 rows"),
        ({"targets": [-1, 0]}, "targets are labels"),
        ({"targets": []}, "targets are labels"),
        ({"targets": [0, 2]}, "class 1 shall be drawn, and has no image"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ltcore.BatchSampler(**{"targets": TARGETS, "batch_size": 16, **options})


def test_the_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python( \w+)?\n(.*?)```", PAGE, re.DOTALL)
    assert [needs.strip() for needs, _ in blocks if needs] == ["lightning", "transformers"]
    before = None
    for needs, block in blocks:
        if needs and importlib.util.find_spec(needs.strip()) is None:
            continue  # run with uv run --with lightning --with transformers --with accelerate
        exec(block, names)
        if needs == " lightning":
            assert names["batches"].epoch == 1, "of two"
        before = before or {name: value.clone() for name, value in names["model"].state_dict().items()}
    for name in ("focal", "balanced", "adjusted", "ldam"):
        assert names[name].isfinite() and names[name].ndim == 0
    assert any(not torch.equal(value, before[name]) for name, value in names["model"].state_dict().items())
    assert names["probabilities"].shape == (130, 3)
    assert float((names["probabilities"].argmax(1) == names["targets"]).float().mean()) > 0.9
