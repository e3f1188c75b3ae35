"""Fixtures shared by core's tests. Nothing here discovers installed plugins unless a test names one."""

import os
import sys
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest


@pytest.fixture
def offer_methods(monkeypatch):
    """Make classes usable in recipes: ``offer_methods(my_loss=MyLoss)`` beside everything that is installed."""
    from ltcore import discovery

    real_offers, real_load = discovery.offers, discovery.load
    added = {}

    def offers():
        return real_offers() + [discovery.Offer(name, f"tests:{name}", "ltcore-tests", "0.0") for name in added]

    def load(offer):
        return added[offer.name] if offer.name in added and offer.distribution == "ltcore-tests" else real_load(offer)

    monkeypatch.setattr(discovery, "offers", offers)
    monkeypatch.setattr(discovery, "load", load)
    return added.update


@pytest.fixture
def write_recipe(tmp_path):
    """Write a small recipe on synthetic data; keyword arguments replace top-level parts, as YAML text."""

    def write(name="r", **parts):
        text = {
            "data": "{use: synthetic, options: {class_counts: [24, 16, 8, 4], image_size: 8, test_per_class: 4}}",
            "backbone": "{use: cifar_resnet, options: {depth: 8, width: 4}}",
            "stages": "[{name: joint, epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]",
            **parts,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in text.items()))
        return path

    return write


class Result(NamedTuple):
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str


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
