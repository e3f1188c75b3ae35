import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from ltcore.contract.figures import FIGURES, SHOT_GROUPS, shot_groups
from ltcore.errors import RunError
from ltcore.evaluation import metrics
from ltcore.evaluation.metrics import evaluate_logits


def random_case(seed: int = 0, n: int = 600, c: int = 12) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Long-tailed targets and logits that lean to the target: no figure is trivial."""
    rng = np.random.default_rng(seed)
    weights = 0.7 ** np.arange(c)
    targets = torch.from_numpy(rng.choice(c, size=n, p=weights / weights.sum()))
    logits = torch.from_numpy(rng.normal(size=(n, c)))
    logits[torch.arange(n), targets] += 1.5
    return logits, targets, [int(500 * 0.65**i) for i in range(c)]


def test_the_boundaries_of_the_shot_groups() -> None:
    assert shot_groups([5000, 101, 100, 20, 19, 1, 0]) == ["many", "many", "medium", "medium", "few", "few", "few"]


def test_shot_groups_of_cifar100_with_imbalance_100() -> None:
    groups = shot_groups([int(500 * 0.01 ** (i / 99)) for i in range(100)])
    assert [groups.count(name) for name in (group.name for group in SHOT_GROUPS)] == [35, 35, 30]


def test_a_case_worked_by_hand() -> None:
    # Predictions 0, 0, 1, 2, 0, 1 for targets 0, 0, 0, 1, 2, 1.
    logits = torch.eye(3)[[0, 0, 1, 2, 0, 1]].mul(1000.0)
    result = evaluate_logits(logits, torch.tensor([0, 0, 0, 1, 2, 1]), [200, 50, 5])
    assert result["top1"] == 3 / 6
    assert result["top5"] is None
    assert result["per_class_accuracy"] == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert (result["many"], result["medium"], result["few"]) == pytest.approx((2 / 3, 1 / 2, 0.0))
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    # F1 by 2 tp / (support + predicted): 4/6, 2/4, 0/2.
    assert result["macro_f1"] == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert result["ece"] == pytest.approx(0.5)  # always certain, half of the time right


def test_calibration_error_worked_by_hand() -> None:
    # Confidences 0.9 (two samples, one right) and 0.6 (two samples, both right) of two classes.
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    result = evaluate_logits(p.log(), torch.tensor([0, 1, 0, 1]), [10, 10])
    assert result["ece"] == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))


def test_calibrated_predictions_have_no_error() -> None:
    logits = torch.zeros(40, 4)  # confidence 1/4, and a quarter of the targets is class 0
    assert evaluate_logits(logits, torch.arange(40) % 4, [1] * 4)["ece"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_against_torchmetrics(seed: int) -> None:
    logits, targets, counts = random_case(seed)
    result = evaluate_logits(logits, targets, counts)
    c = logits.shape[1]
    oracle = {
        "top1": multiclass_accuracy(logits, targets, c, average="micro"),
        "top5": multiclass_accuracy(logits, targets, c, average="micro", top_k=5),
        "balanced_accuracy": multiclass_accuracy(logits, targets, c, average="macro"),
        "macro_f1": multiclass_f1_score(logits, targets, c, average="macro"),
        "ece": multiclass_calibration_error(logits.softmax(1), targets, c, n_bins=15, norm="l1"),
    }
    assert {key: result[key] for key in oracle} == pytest.approx({k: v.item() for k, v in oracle.items()}, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed: int) -> None:
    logits, targets, counts = random_case(seed)
    result = evaluate_logits(logits, targets, counts)
    predictions = logits.argmax(1)
    assert result["top1"] == pytest.approx(accuracy_score(targets, predictions))
    assert result["top5"] == pytest.approx(top_k_accuracy_score(targets, logits, k=5, labels=range(12)))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predictions))
    assert result["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro"))
    recalls = recall_score(targets, predictions, average=None, labels=range(12))
    assert result["per_class_accuracy"] == pytest.approx(list(recalls))
    groups = np.array(shot_groups(counts))
    for name in (group.name for group in SHOT_GROUPS):
        assert result[name] == pytest.approx(recalls[groups == name].mean())


def test_a_model_that_predicts_one_class() -> None:
    logits = torch.zeros(8, 6)
    logits[:, 2] = 5.0
    targets = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5])
    result = evaluate_logits(logits, targets, [200, 200, 200, 3, 3, 3])
    assert result["top1"] == 2 / 8
    assert result["many"] == pytest.approx(1 / 3)
    assert result["few"] == 0.0
    assert result["balanced_accuracy"] == pytest.approx(1 / 6)
    assert result["macro_f1"] == pytest.approx(f1_score(targets, [2] * 8, average="macro", zero_division=0))


def test_classes_without_test_images_are_left_out() -> None:
    # Class 1 has no test image but is predicted once; class 3 does not occur at all, and is the only `few` class.
    logits = torch.eye(4)[[0, 1, 2]]
    targets = torch.tensor([0, 0, 2])
    result = evaluate_logits(logits, targets, [200, 200, 50, 5])
    assert result["per_class_accuracy"] == [0.5, None, 1.0, None]
    assert (result["many"], result["medium"], result["few"]) == (0.5, 1.0, None)
    assert result["balanced_accuracy"] == 0.75
    assert result["macro_f1"] == pytest.approx(f1_score(targets, [0, 1, 2], average="macro"))


def test_ties_go_to_the_smaller_label() -> None:
    targets = torch.arange(8)
    result = evaluate_logits(torch.zeros(8, 8), targets, [1] * 8)
    assert result["per_class_accuracy"] == [1.0] + [0.0] * 7
    assert result["top5"] == 5 / 8


def test_top5_begins_with_six_classes() -> None:
    assert evaluate_logits(torch.zeros(1, 5), torch.tensor([4]), [1] * 5)["top5"] is None
    assert evaluate_logits(torch.zeros(1, 6), torch.tensor([4]), [1] * 6)["top5"] == 1.0


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 3e38), (torch.float64, 1e308), (torch.float16, 6e4)])
def test_huge_logits(dtype: torch.dtype, scale: float) -> None:
    logits = torch.tensor([[scale, -scale, 0], [-scale, scale, scale / 2]], dtype=dtype)
    result = evaluate_logits(logits, torch.tensor([0, 2]), [200, 50, 5])
    assert result["top1"] == 0.5
    assert result["ece"] == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(RunError, match="1 of 2 samples have logits that are not finite"):
        evaluate_logits(torch.tensor([[0.0, 1.0], [bad, 0.0]]), torch.tensor([0, 1]), [1, 1])


@pytest.mark.parametrize(
    ("shape", "targets", "counts", "message"),
    [
        ((2, 3), [0], [1, 1, 1], r"got \[2, 3\], \[1\] and \[3\]"),
        ((2, 3), [0, 1], [1, 1], r"and \[2\]"),
        ((0, 3), [], [1, 1, 1], "nothing to evaluate"),
        ((2, 3), [0, 3], [1, 1, 1], "targets go from 0 to 3, but there are 3 classes"),
        ((2, 3), [-1, 0], [1, 1, 1], "targets go from -1"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple[int, int], targets: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_logits(torch.zeros(shape), torch.tensor(targets), counts)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(n=101)
    whole = evaluate_logits(*case)
    monkeypatch.setattr(metrics, "_CHUNK", 7 * case[0].shape[1])
    assert evaluate_logits(*case) == whole


def test_logits_with_a_gradient_and_bfloat16() -> None:
    logits, targets, counts = random_case(n=64)
    low = logits.bfloat16()
    assert evaluate_logits(low.clone().requires_grad_(), targets, counts) == evaluate_logits(
        low.double(), targets, counts
    )


@pytest.mark.gpu
def test_the_same_figures_from_a_gpu() -> None:
    logits, targets, counts = random_case()
    on_gpu = evaluate_logits(logits.cuda(), targets.cuda(), torch.tensor(counts).cuda())
    assert on_gpu == evaluate_logits(logits, targets, counts)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31), st.floats(0, 1e6))
def test_bounds_and_json(n: int, c: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator) * scale
    targets = torch.randint(c, (n,), generator=generator)
    counts = torch.randint(0, 200, (c,), generator=generator)
    result = evaluate_logits(logits, targets, counts)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    values = [result[key] for key in FIGURES] + result["per_class_accuracy"]
    assert all(type(v) is float and 0 <= v <= 1 for v in values if v is not None)
    assert result["top5"] is None or result["top5"] >= result["top1"]
    order = torch.randperm(n, generator=generator)
    shuffled = evaluate_logits(logits[order], targets[order], counts)
    shuffled.pop("ece"), result.pop("ece")  # a sum of floats depends on the order in its last bits
    assert shuffled == result
