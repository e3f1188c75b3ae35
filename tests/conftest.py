"""Fixtures shared by core's tests. Nothing here discovers installed plugins unless a test names one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest  # noqa: E402


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
