"""Fixtures shared by core's tests. Nothing here discovers installed plugins unless a test names one."""

import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest

import ltcore


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Of a test with many cases the default run has some: ``@pytest.mark.sampled(4)`` makes three of four slow ones.

    Which, says the case's name alone, so it is the same everywhere; `pytest -m slow` runs the others.
    """
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker and zlib.crc32(item.name.encode()) % marker.args[0]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def offer_methods(monkeypatch):
    """Make classes usable in recipes: ``offer_methods(my_loss=MyLoss)`` beside everything that is installed."""
    from ltcore.discovery import catalogue

    real_offers, real_load = catalogue.offers, catalogue.load
    added = {}

    def offers():
        return real_offers() + [catalogue.Offer(name, f"tests:{name}", "ltcore-tests", "0.0") for name in added]

    def load(offer):
        return added[offer.name] if offer.name in added and offer.distribution == "ltcore-tests" else real_load(offer)

    monkeypatch.setattr(catalogue, "offers", offers)
    monkeypatch.setattr(catalogue, "load", load)
    return added.update


@pytest.fixture
def write_recipe(tmp_path):
    """Write a small recipe on synthetic data; keyword arguments replace top-level parts, as YAML text or plain data."""

    def write(name="r", **parts):
        text = {
            "data": "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}",
            "backbone": "{use: cifar_resnet, options: {depth: 8, width: 4}}",
            "stages": "[{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]",
            **parts,
        }
        path = tmp_path / f"{name}.yaml"
        lines = [f"{key}: {part if isinstance(part, str) else json.dumps(part)}\n" for key, part in text.items()]
        path.write_text("".join(lines))
        return path

    return write


@pytest.fixture
def make_run(write_recipe, tmp_path):
    """A run of a small recipe, silent, on the CPU and ready to ``execute()``; arguments as for `write_recipe`."""
    import torch

    from ltcore.files.run_directory import RunDirectory
    from ltcore.plan.plan import make_plan
    from ltcore.progress.console import Reporter
    from ltcore.recipe.loading import load_recipe
    from ltcore.training.assembly import Assembly
    from ltcore.training.data import RunData, read_data
    from ltcore.training.run import Run

    def make(name="r", **parts):
        loaded = load_recipe(write_recipe(name, **parts))
        plan = make_plan(loaded)
        device = torch.device("cpu")
        data = RunData(plan, read_data(loaded, plan.answers["data"]), device)
        directory = RunDirectory.create(tmp_path / "runs", loaded.recipe.name, loaded.recipe.seed, "")
        return Run(Assembly(plan, data, device), directory, Reporter.silent())

    return make


class Result(NamedTuple):
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str

    def is_one_message(self, code, *parts):
        """Assert the exit code, and one line on standard error with all the parts, in their order."""
        assert self.code == code, self
        assert len(self.err.splitlines()) == 1 and "Traceback" not in self.err, self.err
        rest = self.err
        for part in parts:
            assert part in rest, f"{part!r} is not in its place in {self.err!r}"
            rest = rest.partition(part)[2]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command line in this process: ``cli("plan", path).out``."""
    from ltcore.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ltcore", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def fake_plugin(tmp_path, monkeypatch):
    """Install a distribution for the test: ``fake_plugin("lame", source)`` offers the class ``Lame`` as ``lame``."""

    def install(name, source, distribution=None):
        distribution = distribution or f"ltcore-{name}"
        package = distribution.replace("-", "_")
        site = tmp_path / f"site-{distribution}"
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text(source)
        info = site / f"{package}-0.2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.2.1\n")
        (info / "entry_points.txt").write_text(f"[ltcore.plugins]\n{name} = {package}:{name.capitalize()}\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


#: The digits run that tests share: OFA and focal loss as in the recipe, with a few seconds of training.
DIGITS_RUN = (
    "stages.representation.epochs=6",
    "stages.representation.schedule.warmup_epochs=1",
    "stages.finetune.iterations=20",
)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run of ``recipes/digits_lt_ofa_focal.yaml`` with few epochs, trained once; tests only read it."""
    recipe = Path(__file__).parents[1] / "recipes" / "digits_lt_ofa_focal.yaml"
    return ltcore.run(recipe, set=DIGITS_RUN, out=tmp_path_factory.mktemp("digits")).path
