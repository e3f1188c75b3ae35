"""Imports everything that ltcore may need, so that a forked child begins at once."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points

_OTHERS = ("sklearn.datasets", "sklearn.manifold", "torch._dynamo", "torch.export", "torch.jit", "timm", "torchvision")


def import_all() -> None:
    """Ltcore with every module, the installed plugins, and what they import late. Nothing is computed."""
    import ltcore

    packages = ["ltcore", *sorted({point.module.split(".")[0] for point in entry_points(group="ltcore.plugins")})]
    for package in packages:
        path = ltcore.__path__ if package == "ltcore" else importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in _OTHERS:
        importlib.import_module(name)
