"""Finding methods without importing them, and importing the ones that a recipe names.

Plugins are entry points of the group ``ltcore.plugins``, one for each method: ``name = "package:Class"``. Core's own
data sets and its timm backbone are found in the same way, so that a recipe does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.contract import interface
from ltcore.contract.interface import __version__
from ltcore.discovery import unpackaged
from ltcore.discovery.offer import UNPACKAGED, Offer
from ltcore.errors import PluginError, nearest

if TYPE_CHECKING:
    from ltcore.contract.method import Method

GROUP = "ltcore.plugins"

_CORE = {
    "timm": "ltcore.networks.timm_backbone:Timm",
    "digits_lt": "ltcore.data.digits:DigitsLT",
    "fashion_mnist_lt": "ltcore.data.torchvision_sets:FashionMNISTLT",
    "cifar10_lt": "ltcore.data.torchvision_sets:CIFAR10LT",
    "cifar100_lt": "ltcore.data.torchvision_sets:CIFAR100LT",
    "tiny_imagenet_lt": "ltcore.data.tiny_imagenet:TinyImageNetLT",
    "imagenet_lt": "ltcore.data.large_sets:ImageNetLT",
    "places_lt": "ltcore.data.large_sets:PlacesLT",
    "inaturalist2017": "ltcore.data.inaturalist:INaturalist2017",
    "inaturalist2018": "ltcore.data.inaturalist:INaturalist2018",
    "image_folder": "ltcore.data.image_folder:ImageFolder",
    "image_list": "ltcore.data.image_list:ImageList",
    "image_table": "ltcore.data.image_table:ImageTable",
    "npz": "ltcore.data.npz:Npz",
    "hugging_face": "ltcore.data.hugging_face:HuggingFace",
    "synthetic": "ltcore.data.synthetic:Synthetic",
}

#: Methods of our own distributions, so that a recipe that names one which is not installed can be told what to do.
_OURS = {
    # plugins: written by .ci/plugins.py
    "adaptformer": "ltcore-adaptformer",
    "afg": "ltcore-glag",
    "autoaugment_by_class": "ltcore-autoaugment-by-class",
    "balanced_softmax": "ltcore-logit-adjustment",
    "balpoe": "ltcore-expert-losses",
    "bbn": "ltcore-bbn",
    "bcl": "ltcore-bcl",
    "cam_sampling": "ltcore-cam-sampling",
    "cdt": "ltcore-cdt",
    "cifar_densenet": "ltcore-cifar-resnet",
    "cifar_resnet": "ltcore-cifar-resnet",
    "cifar_resnext": "ltcore-cifar-resnet",
    "class_balanced": "ltcore-class-balanced",
    "class_group": "ltcore-lfme",
    "cmo": "ltcore-cmo",
    "cosine_classifier": "ltcore-cosine-classifier",
    "count_norm": "ltcore-cdt",
    "disalign": "ltcore-disalign",
    "distillation": "ltcore-glag",
    "drs": "ltcore-deferred",
    "drw": "ltcore-deferred",
    "ema": "ltcore-averages",
    "feature_dropout": "ltcore-feature-noise",
    "feature_noise": "ltcore-feature-noise",
    "focal": "ltcore-focal",
    "focal_sam": "ltcore-sam",
    "fslwf": "ltcore-fslwf",
    "gcl": "ltcore-gcl",
    "gra_loss": "ltcore-glag",
    "imbsam": "ltcore-sam",
    "influence_balanced": "ltcore-influence-balanced",
    "inverse_frequency": "ltcore-class-balanced",
    "isda": "ltcore-isda",
    "l2rw": "ltcore-reweighting-net",
    "label_aware_smoothing": "ltcore-mislas",
    "lade": "ltcore-lade",
    "ldam": "ltcore-ldam",
    "lfme": "ltcore-lfme",
    "lift": "ltcore-lift",
    "lifted_structure": "ltcore-metric-losses",
    "linear_probe": "ltcore-probe",
    "logit_adjustment": "ltcore-logit-adjustment",
    "lora": "ltcore-lora",
    "lws": "ltcore-decoupling",
    "m2m": "ltcore-m2m",
    "m_per_class": "ltcore-metric-losses",
    "max_norm": "ltcore-weight-balancing",
    "meta_weight_net": "ltcore-reweighting-net",
    "metasaug": "ltcore-isda",
    "mixup": "ltcore-mixup",
    "moco": "ltcore-ssp",
    "ncm": "ltcore-decoupling",
    "ofa": "ltcore-ofa",
    "oltr": "ltcore-oltr",
    "proco": "ltcore-proco",
    "range_loss": "ltcore-metric-losses",
    "remix": "ltcore-mixup",
    "ride": "ltcore-ride",
    "ride_router": "ltcore-ride",
    "rotation_prediction": "ltcore-ssp",
    "rsg": "ltcore-rsg",
    "sade": "ltcore-expert-losses",
    "safa": "ltcore-safa",
    "sam": "ltcore-sam",
    "sla": "ltcore-sla",
    "ssd": "ltcore-ssd",
    "stg": "ltcore-stg",
    "swa": "ltcore-averages",
    "tau_norm": "ltcore-tau-norm",
    "temperature": "ltcore-scaling",
    "vector_scaling": "ltcore-scaling",
    "vs": "ltcore-vs",
    # end of plugins
}


#: Classes that `lent` offers, beside what is installed.
_LENT: dict[Offer, type[Method]] = {}
#: What is installed, looked up once where `lent` is in force.
_INSTALLED: list[Offer] = []


@contextmanager
def lent(classes: Mapping[str, type[Method]]) -> Iterator[None]:
    """Offer classes by name in this process, beside what is installed, which is looked up once until the end.

    The class stands for the distribution in messages.
    """
    before, installed = dict(_LENT), list(_INSTALLED)
    _INSTALLED[:] = installed or offers()
    for name, kind in classes.items():
        file = unpackaged.ran(kind.__module__)
        whose = (file.name, UNPACKAGED) if file else (kind.__module__, kind.__qualname__)
        _LENT[Offer(name, f"{kind.__module__}:{kind.__qualname__}", *whose)] = kind
    try:
        yield
    finally:
        _INSTALLED[:] = installed
        _LENT.clear()
        _LENT.update(before)


def is_lent(offer: Offer) -> bool:
    """Whether a class is offered by `lent`, and by nothing that is installed."""
    return offer in _LENT


def offers() -> list[Offer]:
    """Everything installed, core's first, then plugins by name; nothing is imported."""
    if _INSTALLED:
        return [*_INSTALLED, *_LENT]
    core = [Offer(name, value, "ltcore", __version__) for name, value in _CORE.items()]
    plugins = [
        Offer(
            point.name, point.value, point.dist.name if point.dist else "?", point.dist.version if point.dist else "?"
        )
        for point in entry_points(group=GROUP)
    ]
    return core + sorted(plugins, key=lambda offer: (offer.name, offer.distribution))


def asked(name: str) -> Offer:
    """The one offer of what a command is given: a name, or ``FILE.py:CLASS``, relative to the working directory.

    Raises:
        PluginError: as for `find`, or there is no such file.
    """
    if not unpackaged.names_file(name):
        return find(name)
    parts = unpackaged.split(name)
    if parts is None:
        raise PluginError(f"'{name}' is no method's name, and no file with a class, such as ./mine.py:Mine")
    return unpackaged.File(Path(parts[0])).offer(parts[1], name)


def find(name: str) -> Offer:
    """The one offer of a name.

    Raises:
        PluginError: nothing installed offers it, or two distributions do.
    """
    installed = offers()
    found = [offer for offer in installed if offer.name == name]
    if len(found) > 1:
        both = " and ".join(f"{offer.distribution} {offer.version}" for offer in found)
        raise PluginError(f"method '{name}' is offered by {both}; uninstall one of them")
    if found:
        return found[0]
    if name in _OURS:
        raise PluginError(f"method '{name}' is not installed. Try: pip install {_OURS[name]}")
    near = nearest(name, [offer.name for offer in installed] + list(_OURS)) or "."
    raise PluginError(f"method '{name}' is not installed{near} 'ltcore plugins' lists what is")


def taken_by(name: str) -> str | None:
    """The distribution that offers a name, installed or one of ours; None where it is free."""
    return next((offer.distribution for offer in offers() if offer.name == name), _OURS.get(name))


def load(offer: Offer) -> type[Method]:
    """Import the class that an offer names.

    Raises:
        PluginError: the import fails for any reason. Or what is found is not a `Method`, or it was written for a
            hook interface that this core does not have.
    """
    from ltcore.contract.method import Method

    if offer in _LENT:
        return _LENT[offer]
    found = _imported(offer) if offer.is_packaged else unpackaged.load(offer)
    if not (isinstance(found, type) and issubclass(found, Method)):
        if offer.is_packaged:
            raise PluginError(f"{offer}: {offer.value} is not an ltcore.Method; tell its author")
        raise PluginError(f"{offer}: it is no class that derives from ltcore.Method")
    if refused := interface.refusal(found.interface, offer.distribution):
        raise PluginError(f"{offer} {refused}")
    return found


def _imported(offer: Offer) -> Any:
    module, _, attribute = offer.value.partition(":")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        from ltcore.discovery.sources import reason
        from ltcore.discovery.static import inspect

        # A newer plugin may well fail because it asks core for what is not there yet.
        if refused := inspect(offer).refusal:
            raise PluginError(f"{offer} {refused}") from error
        raise PluginError(
            f"{offer} failed to import: {reason(error)}. Reinstall or update {offer.distribution}, or remove it"
        ) from error
    return found
