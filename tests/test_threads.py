"""The number of threads: from the recipe or the command line, into the run; and how threads wait."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ltcore.errors import RecipeError
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training import threads
from ltcore.training.execute import execute

#: Wide enough that two threads share the work of a step.
WIDE = {
    "data": "{use: synthetic, options: {class_counts: [40, 24], image_size: 32, test_per_class: 4}}",
    "backbone": "{use: cifar_resnet, options: {depth: 8, width: 16}}",
    "stages": "[{name: joint, epochs: 1, batch_size: 32, optimizer: {name: sgd, lr: 0.05}}]",
}


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_figures_are_those_of_the_recipes_threads_whatever_the_process_has(write_recipe, tmp_path):
    def logits(number, in_process):
        torch.set_num_threads(in_process)
        loaded = load_recipe(write_recipe(**WIDE), threads=number)
        result, directory = execute(loaded, tmp_path / "runs", False, Reporter.silent())
        assert torch.get_num_threads() == in_process  # a notebook's own number is not changed
        (surroundings,) = json.loads((directory / "environment.json").read_text())
        assert result["threads"] == surroundings["threads"] == number
        with np.load(directory / "predictions.npz") as arrays:
            return arrays["logits"].tobytes()

    alone = logits(1, in_process=1)
    assert logits(1, in_process=2) == alone
    assert logits(2, in_process=1) != alone  # else the line above shows nothing


def test_the_command_line_overrides_the_recipe(cli, write_recipe, tmp_path):
    path = write_recipe(threads=1)
    ended = cli("run", path, "--threads", 2, "--out", tmp_path / "runs")
    assert ended.code == 0, ended
    (result,) = (tmp_path / "runs").glob("r/*/result.json")
    assert json.loads(result.read_text())["threads"] == 2
    assert "threads: 2" in (result.parent / "recipe.yaml").read_text()


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_is_one_message(cli, write_recipe, wrong):
    cli("run", write_recipe(), "--threads", wrong).is_one_message(2, "--threads", wrong)
    with pytest.raises(RecipeError, match="--set threads="):
        load_recipe(write_recipe(), [f"threads={wrong}"])


def test_published_figures_stay_with_another_number(write_recipe):
    path = write_recipe(published=[{"value": 70, "source": "a paper"}])
    assert load_recipe(path, ["threads=3"]).recipe.published
    assert not load_recipe(path, ["stages.joint.epochs=3"]).recipe.published


@pytest.mark.parametrize("said, number", [("3", 3), ("4,2", 4), ("", None), ("0", None), ("x", None)])
def test_automatic_is_what_the_user_told_openmp_or_half_of_the_cores(monkeypatch, said, number):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(threads, "usable_cores", lambda: 7)
    assert threads.automatic() == (number or 4)


@pytest.mark.parametrize("cores, half", [(1, 1), (2, 1), (3, 2), (16, 8)])
def test_half_is_rounded_up(monkeypatch, cores, half):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    assert threads.automatic() == half


@pytest.mark.parametrize(
    "quota, cores",
    [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("99900000 100000", 8), ("0 0", 8), (None, 8)],
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, quota, cores):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.usable_cores() == cores


def test_the_commands_tell_openmp_unless_the_user_did(monkeypatch, cli):
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    cli("--version")
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("PASSIVE", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cli("--version")
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("ACTIVE", "2")


@pytest.mark.skipif(sys.platform != "linux", reason="there PyTorch brings GNU's OpenMP, which says what it was told")
def test_pytorchs_openmp_hears_it(write_recipe):
    """The variable is set before PyTorch is imported, and GNU's OpenMP then does not spin at all."""
    told = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "ltcore", "plan", write_recipe()]
    ended = subprocess.run(command, env={**told, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in ended.stderr and "GOMP_SPINCOUNT = '0'" in ended.stderr
    assert f"OMP_NUM_THREADS = '{-(-threads.usable_cores() // 2)}'" in ended.stderr
