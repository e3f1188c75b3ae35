"""What pytest gets: fixtures, a quick start, and nothing that acts by itself."""

import re
import subprocess
import sys

import torch

from ltcore import Features
from ltcore.contract.records import Batch

_START = """
import sys
import ltcore.testing.plugin as plugin
heavy = {"torch", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
assert [name for name in vars(plugin) if name.startswith("pytest_")] == []
"""


def test_the_module_is_light_and_has_no_hooks():
    subprocess.run([sys.executable, "-c", _START], check=True)


def test_the_entry_point_gives_three_fixtures_and_pytest_starts_without_torch(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure():\n    print('torch imported:', 'torch' in sys.modules)\n"
    )
    words = [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider", tmp_path]
    listed = subprocess.run(words, capture_output=True, text=True).stdout
    assert sorted(re.findall(r"^(ltcore\w+)", listed, re.MULTILINE)) == [
        "ltcore_batch",
        "ltcore_check",
        "ltcore_context",
    ]
    assert "torch imported: False" in listed


def test_a_batch(ltcore_batch):
    batch = ltcore_batch(rows=5, classes=3)
    assert isinstance(batch, Batch) and batch.images.shape == (5, 3, 8, 8)
    assert batch.targets.tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(batch.images, ltcore_batch(rows=5, classes=3).images)
    assert not torch.equal(batch.images, ltcore_batch(rows=5, classes=3, seed=1).images)


def test_a_context_answers_what_a_method_may_ask(ltcore_context, ltcore_batch):
    context = ltcore_context(counts=(9, 4, 2), epoch=1, epochs=4)
    assert context.class_counts.tolist() == [9, 4, 2] and context.num_classes == 3
    assert (context.epoch, context.epochs, float(context.progress)) == (1, 4, 0.25)
    assert context.feature_shape("maps") == (8, 2, 2)
    assert context.training_features().shape == (15, 8) and context.class_means().shape == (3, 8)
    assert context.validation_features().shape == (6, 8) and len(context.validation_targets) == 6
    drawn = torch.rand(3, generator=context.generator)
    assert torch.equal(drawn, torch.rand(3, generator=ltcore_context(epoch=1).generator))
    batch = ltcore_batch()
    features = Features.of(batch, context.model.backbone(batch.images), batch.images)
    assert features.features.shape == (8, 8)


def test_making_a_context_leaves_the_global_generator_alone(ltcore_context):
    state = torch.get_rng_state()
    ltcore_context()
    assert torch.equal(torch.get_rng_state(), state)


def test_check(ltcore_check):
    from ltcore.testing import check_method

    assert ltcore_check is check_method
