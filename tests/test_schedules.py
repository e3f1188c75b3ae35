import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltcore.contract.recipe import Stage
from ltcore.networks.schedules import learning_rate, never_comes
from ltcore.recipe.loading import load_recipe


def schedule(name: str, warmup_epochs: int = 0, **options: Any) -> Any:
    return SimpleNamespace(name=name, warmup_epochs=warmup_epochs, **options)


CIFAR = schedule("multistep", warmup_epochs=5, milestones=[160, 180], gamma=0.01)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.02),
        (1, 0.04),
        (2, 0.06),
        (3, 0.08),
        (4, 0.1),
        (5, 0.1),
        (159, 0.1),
        (160, 0.001),
        (179, 0.001),
        (180, 0.00001),
        (199, 0.00001),
    ],
)
def test_the_published_cifar_schedule(epoch: int, rate: float) -> None:
    for step in (0, 84):  # constant within an epoch
        assert learning_rate(CIFAR, 0.1, epoch, 200 * 85, step, 85) == pytest.approx(rate, rel=1e-12)


def test_the_models_of_the_recipe() -> None:
    stage = {"name": "joint", "epochs": 200, "optimizer": {"lr": 0.1}}
    names: dict[str, dict[str, Any]] = {
        "constant": {},
        "step": {"every": 100},
        "multistep": {"milestones": [100]},
        "cosine": {},
    }
    models = [Stage.model_validate({**stage, "schedule": {"name": n, **more}}).schedule for n, more in names.items()]
    assert [learning_rate(model, 0.1, 100, 200 * 10, 0, 10) for model in models] == pytest.approx(
        [0.1, 0.01, 0.01, 0.05]
    )


def test_constant() -> None:
    assert {learning_rate(schedule("constant"), 0.3, epoch, 9 * 4, 3, 4) for epoch in range(9)} == {0.3}


def test_step_by_whole_epochs_counted_from_the_start() -> None:
    every_three = schedule("step", warmup_epochs=2, every=3, gamma=0.5)
    rates = [learning_rate(every_three, 1.0, epoch, 8 * 10, 0, 10) for epoch in range(8)]
    assert rates == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_milestone_inside_the_warm_up_counts_after_it() -> None:
    odd = schedule("multistep", warmup_epochs=2, milestones=[1, 3], gamma=0.1)
    rates = [learning_rate(odd, 1.0, epoch, 4, 0, 1) for epoch in range(4)]
    assert rates == pytest.approx([0.5, 1.0, 0.1, 0.01])


def test_cosine_by_steps() -> None:
    plain = schedule("cosine", min_lr=0.0)
    rates = [learning_rate(plain, 2.0, epoch, 4, step, 2) for epoch in range(2) for step in range(2)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_cosine_covers_the_part_after_the_warm_up() -> None:
    warmed = schedule("cosine", warmup_epochs=2, min_lr=0.2)
    rate = [learning_rate(warmed, 1.0, epoch, 6 * 5, 0, 5) for epoch in range(7)]
    assert rate == pytest.approx([0.5, 1.0, 1.0, 0.6 + 0.4 * 0.5**0.5, 0.6, 0.6 - 0.4 * 0.5**0.5, 0.2])


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_stage_that_is_all_warm_up(name: str) -> None:
    assert learning_rate(schedule(name, warmup_epochs=4, min_lr=0.0), 1.0, 2, 3 * 5, 0, 5) == 0.75


def test_an_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'poly'"):
        learning_rate(schedule("poly"), 1.0, 0, 1, 0, 1)


@given(st.integers(1, 30), st.integers(0, 10), st.integers(1, 20), st.floats(1e-6, 10), st.floats(0, 1))
def test_cosine_falls_within_its_bounds(epochs: int, warmup: int, steps: int, base: float, part: float) -> None:
    cosine = schedule("cosine", warmup_epochs=warmup, min_lr=part * base)
    rates = [
        learning_rate(cosine, base, e, epochs * steps, s, steps) for e in range(warmup, epochs) for s in range(steps)
    ]
    assert all(part * base * (1 - 1e-12) <= rate <= base * (1 + 1e-12) for rate in rates)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("total", "per_epoch"), [(3, 15), (20, 7), (21, 7), (100, 13)])
def test_a_cosine_over_iterations_ends_where_the_stage_does(total: int, per_epoch: int) -> None:
    """A stage of three steps in an epoch of fifteen goes through the whole cosine, not its first fifth."""
    cosine = schedule("cosine", min_lr=0.0)
    rates = [learning_rate(cosine, 1.0, step // per_epoch, total, step % per_epoch, per_epoch) for step in range(total)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / total)) / 2 for step in range(total)])
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("constant", {"warmup_epochs": 6}, "warmup_epochs 6 does not end in 5 epochs"),
        ("cosine", {"warmup_epochs": 6}, "schedule cosine: warmup_epochs 6 does not end"),
        ("multistep", {"milestones": [3, 5, 160]}, "milestones: 5, 160 never come in 5 epochs, counted from 0"),
        ("step", {"every": 5}, "every 5 never comes in 5 epochs"),
    ],
)
def test_what_lies_behind_the_stages_end_is_said(name: str, options: dict[str, Any], said: str) -> None:
    (text,) = never_comes(schedule(name, **options), 5)
    assert said in text and text.endswith("set it to suit the stage's length")


@pytest.mark.parametrize(
    ("name", "options"),
    [("cosine", {"warmup_epochs": 5}), ("multistep", {"milestones": [3, 4]}), ("step", {"every": 4})],
)
def test_what_lies_in_the_stage_is_not(name: str, options: dict[str, Any]) -> None:
    assert never_comes(schedule(name, **options), 5) == []


def test_no_recipe_of_ours_has_one(monkeypatch) -> None:
    monkeypatch.setenv("LTCORE_DATA", ".")
    paths = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert len(paths) > 100
    for path in paths:
        for stage in load_recipe(path).recipe.stages:
            assert stage.epochs is None or never_comes(stage.schedule, stage.epochs) == [], path


@pytest.mark.parametrize("length", [{"epochs": 2}, {"iterations": 7}])
def test_plan_or_run_warns(cli, write_recipe, tmp_path, length) -> None:
    """Of 52 images in batches of 8 an epoch has 7 steps; how many the plan does not know."""
    late = {"name": "multistep", "milestones": [1, 2]}
    path = write_recipe(
        stages=[{"name": "joint", "batch_size": 8, "optimizer": {"lr": 0.05}, "schedule": late, **length}]
    )
    planned, ran = cli("plan", path), cli("run", path, "--out", tmp_path / "runs")
    never = "2 never comes in 2" if "epochs" in length else "1, 2 never come in 1"
    assert (f"{path}:3: stage 'joint': schedule multistep: milestones: {never}" in planned.out) == ("epochs" in length)
    assert f"schedule multistep: milestones: {never} epochs, counted from 0" in ran.out + ran.err
