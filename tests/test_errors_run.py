"""Data that does not suit the recipe, and runs that fail: one message, the right exit code, and what is kept."""

import numpy as np
import pytest
import torch

from ltcore import Method, hookimpl
from ltcore.contract import hookspecs
from ltcore.files import checkpoint

RECIPE = {
    "methods": "{mine: {}}",
    "stages": "[{name: joint, epochs: 2, batch_size: 8, methods: [mine], optimizer: {lr: 0.05}}]",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train_labels": [0, 0, 2, 2]},
            "class 1 would have no training image: the data set has none; add some, or leave",
        ),
        ({"train_labels": [0, 0, 1, -1]}, "train_labels[3] is -1, which is negative; labels count from 0"),
        ({"test_labels": [0, 1, 7, 0]}, "test_labels[2] is 7, which is not among the 2 classes of train_labels"),
        ({"train_labels": [0, 0, 1, 255]}, "train_labels[3] is 255, which is too large for 4 images"),
    ],
)
def test_labels(cli, write_recipe, tmp_path, changed, message):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {"train_labels": [0, 0, 1, 1], "test_labels": [0, 1, 0, 1]} | changed
    np.savez(tmp_path / "d.npz", train_images=images, test_images=images, **arrays)
    path = write_recipe(data=f"{{use: npz, options: {{path: {tmp_path}/d.npz}}}}")
    cli("run", path, "--out", tmp_path / "runs").is_one_message(2, f"{path}:1: ", message)
    assert not (tmp_path / "runs").exists()


def test_missing_file(cli, write_recipe, tmp_path):
    path = write_recipe(data=f"{{use: npz, options: {{path: {tmp_path}/d.npz}}}}")
    cli("run", path).is_one_message(2, f"{path}:1: ", f"{tmp_path}/d.npz is not there (data.options.path)")


@pytest.mark.parametrize("root", [None, "nowhere"])
@pytest.mark.parametrize(
    ("use", "wanted", "source", "size"),
    [
        ("cifar100_lt", "CIFAR-100", "University of Toronto", "161 MB"),
        ("cifar10_lt", "CIFAR-10", "University of Toronto", "163 MB"),
        ("fashion_mnist_lt", "Fashion-MNIST", "Zalando Research", "30 MB"),
    ],
)
def test_missing_data_directory(cli, write_recipe, tmp_path, monkeypatch, root, use, wanted, source, size):
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    options = f"{{root: {tmp_path}/{root}}}" if root else "{}"
    path = write_recipe(data=f"{{use: {use}, options: {options}}}")
    looked = f"not found in {tmp_path}/{root}" if root else "no folder is named"
    advice = (source, size, "--set data.options.root=DIR", "LTCORE_DATA", "--set data.options.download=true")
    cli("run", path).is_one_message(2, f"{path}:1: '{use}' (ltcore 0.1.0): {wanted}", looked, *advice)


def test_a_directory_that_cannot_be_written(cli, write_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    message = f"cannot write the run directory under {tmp_path}/file: "
    cli("run", write_recipe(), "--out", tmp_path / "file").is_one_message(1, message, "or choose another with --out")


def method(**members):
    """A method class with the given hooks and attributes."""
    return type("Mine", (Method,), {k: hookimpl(v) if k in hookspecs.HOOKS else v for k, v in members.items()})


def raises(self, features):
    raise ZeroDivisionError("by zero")


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def mean_loss(self, logits, targets):
    return cross_entropy(logits, targets).mean()


def undeclared(self, features, logits):
    return {"cycle": logits.mean()}


def unreduced(self, logits):
    return {"cycle": logits.mean(1)}


def nothing(self):
    pass


def short_rows(self, features):
    from dataclasses import replace

    return replace(features, features=features.features[:-1])


@pytest.mark.parametrize(
    ("members", "code", "message"),
    [
        (
            {"augment_features": raises},
            1,
            "'mine' (ltcore-tests 0.0) failed in augment_features: ZeroDivisionError: by zero. Run with --debug",
        ),
        (
            {"compute_loss": mean_loss},
            2,
            "'mine' (ltcore-tests 0.0): compute_loss returned shape [] for 8 samples; it returns one value per sample",
        ),
        ({"compute_loss": nothing}, 2, "'mine' (ltcore-tests 0.0): compute_loss returned nothing; tell its author"),
        ({"build_sampler": nothing}, 2, "'mine' (ltcore-tests 0.0): build_sampler returned nothing; tell its author"),
        (
            {"class_distribution": lambda self, context: torch.zeros(context.num_classes)},
            2,
            "'mine' (ltcore-tests 0.0) gave no distribution over the 4 classes (hook class_distribution); tell its",
        ),
        (
            {"augment_features": short_rows},
            2,
            "'mine' (ltcore-tests 0.0): augment_features returned 'targets' as int64 [8] on cpu; for 7 rows",
        ),
        (
            {"auxiliary_losses": unreduced, "auxiliary": ("cycle",)},
            2,
            "'mine' (ltcore-tests 0.0): 'cycle' of auxiliary_losses is not a 0-d tensor",
        ),
        (
            {"auxiliary_losses": undeclared, "auxiliary": ("cycl",)},
            2,
            "'mine' (ltcore-tests 0.0) declares the auxiliary losses ['cycl'] and returned ['cycle']; tell its author",
        ),
    ],
)
def test_a_method_that_misbehaves(cli, write_recipe, tmp_path, offer_methods, members, code, message):
    offer_methods(mine=method(**members))
    cli("run", write_recipe(**RECIPE), "--out", tmp_path / "runs").is_one_message(code, message)


def run_to_nan(cli, tmp_path, path, *words):
    """The result of a run that ends in NaN, and the tensors of the checkpoint that it keeps."""
    result = cli("run", path, "--out", tmp_path / "runs", "--set", "checkpoint_seconds=0", *words)
    (kept,) = (tmp_path / "runs").glob("r/*/checkpoints/last.safetensors")
    result.is_one_message(1, "stage 'joint', epoch ", ", step ", f" The last good checkpoint is {kept}")
    tensors, state = checkpoint.load(kept)
    assert state["position"]["stage"] == 0
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    return result


@pytest.mark.parametrize("lr", ["1.0e+8", "1.0e+19", "1.0e+38"])
def test_a_learning_rate_that_is_too_high(cli, write_recipe, tmp_path, lr):
    stages = f"[{{name: joint, epochs: 40, batch_size: 8, optimizer: {{name: sgd, momentum: 0.9, lr: {lr}}}}}]"
    path = write_recipe(stages=stages)
    result = run_to_nan(cli, tmp_path, path)
    result.is_one_message(1, "Likely cause: the learning rate 1e+", f"({path}:3) is too high")


class Counting(Method):
    calls = 0

    def factor(self):
        """NaN at the fifth call."""
        self.calls += 1
        return float("nan") if self.calls == 5 else 1.0


class NaNLoss(Counting):
    @hookimpl
    def compute_loss(self, logits, targets):
        return cross_entropy(logits, targets) * self.factor()


class NaNTerm(Counting):
    auxiliary = ("cycle",)

    @hookimpl
    def auxiliary_losses(self, logits):
        return {"cycle": logits.mean() * self.factor()}


def test_a_loss_that_is_nan(cli, write_recipe, tmp_path, offer_methods):
    offer_methods(mine=NaNLoss)
    path = write_recipe(**RECIPE)
    result = run_to_nan(cli, tmp_path, path)
    cause = "The weights are still small, so look at 'mine' (ltcore-tests 0.0) first, then at the learning rate 0.05"
    result.is_one_message(1, "epoch 1, step 5: the classification loss is not finite. ", cause, f"({path}:3)")


def test_an_auxiliary_loss_that_is_nan(cli, write_recipe, tmp_path, offer_methods):
    offer_methods(mine=NaNTerm)
    result = run_to_nan(cli, tmp_path, write_recipe(**RECIPE))
    cause = "Likely cause: the auxiliary loss of 'mine' (ltcore-tests 0.0)"
    result.is_one_message(1, "epoch 1, step 5: the mine/cycle loss is not finite. ", cause)


STEEP = RECIPE["stages"].replace("lr: 0.05", "lr: 1.0e+8").replace("epochs: 2", "epochs: 40")


def small(self, logits):
    return {"cycle": 0.01 * logits.mean()}


class Overweighted(Method):
    """An auxiliary loss that pushes the logits apart, with far too large a weight."""

    auxiliary = ("apart",)

    @hookimpl
    def auxiliary_losses(self, logits):
        return {"apart": -1e6 * logits.square().mean()}


class Overflowing(Method):
    """An auxiliary loss that weighs little, and is the first to be no number once weights are large."""

    auxiliary = ("cycle",)

    @hookimpl
    def auxiliary_losses(self, logits):
        return {"cycle": 1e-30 * logits.square().square().square().square().mean()}


def test_weights_that_an_auxiliary_loss_by_far_the_largest_drove_to_infinity(
    cli, write_recipe, tmp_path, offer_methods
):
    offer_methods(mine=Overweighted)
    result = run_to_nan(cli, tmp_path, write_recipe(**RECIPE))
    blamed = "Likely cause: the auxiliary loss mine/apart of 'mine' (ltcore-tests 0.0), at "
    result.is_one_message(
        1, blamed, " by far the largest term; give it a smaller weight, then look at the learning rate 0.05"
    )


def test_an_auxiliary_loss_that_breaks_first_as_weights_grow(cli, write_recipe, tmp_path, offer_methods):
    offer_methods(mine=Overflowing)
    result = run_to_nan(cli, tmp_path, write_recipe(**{**RECIPE, "stages": STEEP}))
    blamed = "the auxiliary loss mine/cycle of 'mine' (ltcore-tests 0.0), the first to break; give it a smaller weight"
    result.is_one_message(1, "the mine/cycle loss is not finite", blamed)


def test_a_small_auxiliary_loss_does_not_take_the_blame_of_the_learning_rate(
    cli, write_recipe, tmp_path, offer_methods
):
    offer_methods(mine=method(auxiliary_losses=small, auxiliary=("cycle",)))
    result = run_to_nan(cli, tmp_path, write_recipe(**{**RECIPE, "stages": STEEP}))
    result.is_one_message(1, "Likely cause: the learning rate 1e+", "is too high")
