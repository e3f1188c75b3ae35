"""On a GPU: graphs and compiled steps against eager ones, steps that never wait for the device, and how busy it is.

``python benchmarks/on_a_gpu.py go`` runs these. How the short recipes are made is tested without a GPU, below.
"""

import json
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import ltcore
from ltcore.contract.hookspecs import HOOKS
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.loading import load_recipe
from ltcore.training.execute import execute
from ltcore.training.loop import Observer

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
#: Recipes that between them use every method of ours; those of CIFAR-100 are trained on digits here.
EVERY = [
    *sorted(path.stem for path in RECIPES.glob("digits_lt_*.yaml") if "selected" not in path.stem),
    *(f"cifar100_lt_{name}" for name in "cb feature_dropout feature_noise ldam_drs lift mislas ncm remix_drw".split()),
    "cifar100_lt_reweighting",
]


#: Those whose steps are more than kernels, so that ``step_graphs`` is refused, and what is said of them.
WITH_MORE_THAN_KERNELS = {
    "fslwf": "reads context.step",
    "rsg": "reads context.step",
    "ssd": "changes its._keys in every step",
    "ssp_moco": "changes its._keys in every step",
    "ssp": "changes its._turns in every step",
    **dict.fromkeys(["imbsam", "l2rw", "meta_weight_net", "metasaug"], "computes the gradients"),
    **dict.fromkeys(["sam", "sam_ldam_drw", "focal_sam"], "computes the gradients"),
}


@pytest.fixture
def short(tmp_path):
    """``short("digits_lt_ce", precision="fp32")``: a recipe on digits, an epoch a stage, all methods at work."""

    def make(name, epochs=1, **stage_changes):
        plain = load_recipe(RECIPES / f"{name}.yaml").source
        for stage in plain["stages"]:
            if "iterations" in stage:
                stage["iterations"] = min(stage["iterations"], 6)
            else:
                stage["epochs"] = epochs
            stage |= {"schedule": {"name": "constant"}, "batch_size": 64, **stage_changes}
        for key, entry in (plain.get("methods") or {}).items():
            options = (entry or {}).get("options") or {}
            if key == "cmo":
                options |= {"start_epoch": 0, "plain_at_end": 0}
                plain["methods"][key] = {"options": options}
            for option in ("start_epoch", "temperature_epoch", "generation_epochs"):
                if option in options:
                    options[option] = None if option == "generation_epochs" else 0
            if key == "lift" and options.get("pretrained"):  # the digits' names say nothing to a text encoder
                options["pretrained"] = None
            if key == "rsg":  # which makes no rows before its networks have learned for an epoch
                options["start_epoch"] = epochs
                for stage in plain["stages"]:
                    stage["epochs"] = epochs + 1
        if not name.startswith("digits"):
            holdout = {"holdout": 1} if plain["data"].get("holdout") else {}
            backbone = {"use": "cifar_resnet", "options": {"depth": 8}}
            if "adapt" in plain["backbone"]:  # LIFT's, in the blocks of a vision transformer
                small = load_recipe(RECIPES / "digits_lt_adaptformer.yaml").source["backbone"]
                backbone = small | {"adapt": plain["backbone"]["adapt"]}
            plain |= {"data": {"use": "digits_lt", **holdout}, "backbone": backbone}
        plain |= {"diagnostics": "off", "name": name, "published": []}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(plain))
        return path

    return make


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.sampled(4)
def test_the_short_recipes_fit_together(short, name):
    make_plan(load_recipe(short(name)))


def test_they_use_every_method_of_ours():
    acting = [name for name, hook in HOOKS.items() if hook.in_stages]  # the others build or calibrate
    plugins = [entry for entry in entry_points(group="ltcore.plugins") if entry.dist.name.startswith("ltcore-")]
    ours = {entry.name for entry in plugins if any(hasattr(entry.load(), name) for name in acting)}
    assert len(ours) > 20 and not {"cifar_resnet", "count_norm"} & ours
    used = set()
    for name in EVERY:
        used |= {entry.use or key for key, entry in load_recipe(RECIPES / f"{name}.yaml").recipe.methods.items()}
    # These have no recipe of their own: an average of weights as ema is, and a classifier that is a part of lift.
    assert ours - used <= {"swa", "cosine_classifier"}


class Losses(Observer):
    """Keeps each step's losses, and ends the run after some."""

    def __init__(self, steps):
        self.seen, self.steps, self.record = [], steps, None

    def losses_computed(self, loop, losses):
        self.seen.append({name: value.item() for name, value in losses.items()})

    def step_ended(self, loop):
        self.record = loop.position.acceleration
        if len(self.seen) == self.steps:
            raise KeyboardInterrupt


def losses_of(path, out, accelerate, steps=5):
    stage = load_recipe(path).recipe.stages[0].name
    seen = Losses(steps)
    with pytest.raises(KeyboardInterrupt):
        loaded = load_recipe(path, [f"stages.{stage}.accelerate={accelerate}"])
        execute(loaded, out / accelerate, False, Reporter.silent(), observers=[seen])
    return seen


def near(one, other, rel):
    assert len(one.seen) == len(other.seen)
    for first, second in zip(one.seen, other.seen, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=rel, abs=rel), (name, one.seen, other.seen)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["graphs", "step_graphs"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["digits_lt_ce", "digits_lt_ldam_drw", "digits_lt_bcl", "digits_lt_ride"])
def test_graphs_train_as_eager_steps_do(short, tmp_path, name, precision, how):
    path = short(name, epochs=2, precision=precision)
    eager, graphs = (losses_of(path, tmp_path, each, steps=8) for each in ("off", how))
    assert graphs.record["chosen"] == how and graphs.record["why"] == ""
    near(eager, graphs, {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}[precision])


@pytest.mark.gpu
def test_dropout_in_graphs_draws_what_it_draws_in_eager_steps(short, tmp_path):
    """Each step seeds torch's generator; a graph reads the seed when it is replayed."""
    path = short("digits_lt_ce", epochs=2, precision="fp32")
    told = json.loads(path.read_text())
    told["backbone"] = {"use": "cifar_densenet", "options": {"depth": 10, "growth": 8, "dropout": 0.5}}
    path.write_text(json.dumps(told))
    eager = losses_of(path, tmp_path, "off", steps=8)
    for how in ("graphs", "step_graphs"):
        near(eager, losses_of(path, tmp_path, how, steps=8), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVERY)
def test_whole_steps_of_every_method_are_what_they_are_on_the_cpu(short, tmp_path, name):
    """A GPU may refuse what the CPU's recorder lets through, and draws other numbers; the rest is the same."""
    path = short(name, epochs=2, precision="fp32")
    try:
        whole = losses_of(path, tmp_path, "step_graphs", steps=8)
    except ltcore.LtcoreError as error:
        assert name.split("_lt_")[1] in WITH_MORE_THAN_KERNELS, error
        return
    near(losses_of(path, tmp_path, "off", steps=8), whole, 1e-3)


@pytest.mark.gpu
def test_auto_is_graphs_and_a_run_ends_with_its_record(short, tmp_path):
    done = ltcore.run(short("digits_lt_ce", epochs=2), out=tmp_path)
    record = json.loads((done.path / "result.json").read_text())["stages"][0]["acceleration"]
    assert (record["asked"], record["chosen"], record["why"]) == ("auto", "graphs", "")


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_steps_train_as_eager_ones_do(short, tmp_path):
    path = short("digits_lt_ce", epochs=2, precision="fp32")
    eager, compiled = (losses_of(path, tmp_path, how) for how in ("off", "compile"))
    assert compiled.record["chosen"] == "compile"
    near(eager, compiled, 1e-2)


@contextmanager
def never_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class NeverWaits(Observer):
    """From a stage's fourth step on, forward pass, backward pass and update must not wait for the device."""

    def __init__(self):
        self.watched = {}

    def stage_started(self, loop):
        self.steps, forward, update = 0, loop.forward, loop.update

        def quietly(function):
            def called(*arguments):
                if self.steps < 3:
                    return function(*arguments)
                self.watched[loop.stage.name] = self.watched.get(loop.stage.name, 0) + 1
                with never_waiting():
                    return function(*arguments)

            return called

        loop.forward, loop.update = quietly(forward), quietly(update)

    def step_ended(self, loop):
        self.steps += 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", EVERY)
def test_no_step_of_any_method_waits_for_the_device(short, tmp_path, name):
    watched = NeverWaits()
    loaded = load_recipe(short(name, epochs=1))
    execute(loaded, tmp_path, False, Reporter.silent(), observers=[watched])
    assert watched.watched.keys() == {stage.name for stage in loaded.recipe.stages}


@pytest.mark.gpu
def test_a_step_leaves_the_device_idle_for_less_than_a_tenth(write_recipe, tmp_path, offer_methods, monkeypatch):
    """ResNet-32, batch 128, fp32: what is missing between a step's time and the kernels' is the host's share."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    timing = import_module("gpu.timing")
    offer_methods(watch=timing.EpochClock)  # on_a_gpu.py offers it as epoch_clock
    clock = {"watch": {"options": {"file": str(tmp_path / "clock.json"), "iterations": 200}}}
    stage = {"name": "joint", "iterations": 200, "methods": ["watch"], "optimizer": {"lr": 0.01}}
    data = {"use": "synthetic", "options": {"class_counts": [640] * 8, "image_size": 32, "test_per_class": 1}}
    path = write_recipe(
        methods=clock,
        stages=[{**stage, "precision": "fp32"}],
        data=data,
        backbone={"use": "cifar_resnet", "options": {"depth": 32}},
        diagnostics='"off"',
    )
    ltcore.run(path, out=tmp_path / "runs")
    found = json.loads((tmp_path / "clock.json").read_text())
    assert 1 - found["device_share"] < 0.1, found
