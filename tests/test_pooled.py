"""Pooled features are kept while the backbone stays as it is, and never longer."""

import pytest
import torch

from ltcore.evaluation import pooled
from ltcore.evaluation.outputs import pooled_crops
from ltcore.evaluation.pooled import PooledFeatures

DATA = "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}, holdout: 1}"
FIRST = "{name: first, epochs: 1, batch_size: 16, optimizer: {name: sgd, lr: 0.1}}"
SECOND = "{name: second, epochs: 1, batch_size: 16, trainable: [classifier], optimizer: {name: sgd, lr: 0.1}}"


@pytest.fixture
def passes(monkeypatch):
    """The loaders of the splits that went through the network, in turn."""
    seen = []

    def counted(model, loader, batch_size, crops):
        seen.append(loader)
        return pooled_crops(model, loader, batch_size, crops)

    monkeypatch.setattr(pooled, "pooled_crops", counted)
    return seen


def test_any_change_of_a_weight_or_a_statistic_is_seen(make_run, passes):
    assembly = make_run(data=DATA).assembly
    model, loaders, kept = assembly.model, assembly.data.loaders, PooledFeatures()
    first = kept.crops(model, loaders["train"], 7)
    assert kept.crops(model, loaders["train"], 7) is first and len(passes) == 1
    kept.crops(model, loaders["test"], 7)
    assert kept.crops(model, loaders["train"], 8) is not first and len(passes) == 3
    changed = [next(model.backbone.parameters()), next(b for b in model.backbone.buffers() if b.is_floating_point())]
    for tensor in changed:
        before = kept.crops(model, loaders["train"], 7)
        tensor.data[(0,) * tensor.dim()] += 0.5  # behind autograd's back, as a captured graph does
        (after,) = kept.crops(model, loaders["train"], 7)
        assert not torch.equal(after, before[0])
        torch.testing.assert_close(after, pooled_crops(model, loaders["train"], 7, 1)[0], rtol=0, atol=0)


def test_no_more_is_kept_than_allowed(make_run, passes):
    assembly = make_run(data=DATA).assembly
    kept, loader = PooledFeatures(limit=100), assembly.data.loaders["train"]
    found = [kept.crops(assembly.model, loader, 7) for _ in range(2)]
    assert len(passes) == 2 and torch.equal(found[0][0], found[1][0])


def test_each_split_goes_through_a_network_that_stays_only_once(make_run, passes):
    """A stage's figures, those of a second stage that trains the classifier alone, and the result."""
    run = make_run(data=DATA, stages=f"[{FIRST}, {SECOND}]")
    run.execute()
    loaders = run.assembly.data.loaders
    assert sorted(map(id, passes)) == sorted(map(id, loaders.values()))
