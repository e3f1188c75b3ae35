"""What a new plugin is called, and what cannot be."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery.catalogue import taken_by
from ltcore.errors import RecipeError, listed, nearest

#: What a recipe names under ``data.use`` and ``backbone.use``, and asks nothing else.
ALONE = ("build_data", "build_backbone")
_LONGEST = 40


@dataclass(frozen=True)
class Names:
    """A plugin's names.

    Attributes:
        name: what recipes call the method, such as ``my_noise``.
        package: ``ltcore_my_noise``.
        distribution: ``ltcore-my-noise``.
        class_name: ``MyNoise``.
    """

    name: str
    package: str
    distribution: str
    class_name: str

    @classmethod
    def of(cls, name: str, within: str | None = None, class_name: str | None = None) -> Names:
        """The names that follow from the method's.

        Args:
            name: the method's.
            within: the package of a distribution of several methods, in which this one has a package of its own.
            class_name: its class, where there is one already.

        Raises:
            RecipeError: it cannot be one, or something else has it.
        """
        plain = _plain(name)
        given = class_name
        class_name = class_name or "".join(part[0].upper() + part[1:] for part in plain.split("_"))
        if given is None and (keyword.iskeyword(plain) or keyword.iskeyword(class_name) or class_name in _IMPORTED):
            raise RecipeError(
                f"a method called '{plain}' would collide with a name of Python or ltcore; choose another"
            )
        owner = taken_by(plain)
        if owner:
            raise RecipeError(
                f"the name '{plain}' is taken by {owner}, and a recipe could not tell the two apart; choose another"
            )
        package = f"{within}.{plain}" if within else f"ltcore_{plain}"
        return cls(plain, package, f"ltcore-{(within or plain).removeprefix('ltcore_').replace('_', '-')}", class_name)

    def fields(self) -> dict[str, str]:
        """The fields of a template."""
        return {
            "NAME": self.name,
            "PACKAGE": self.package,
            "DISTRIBUTION": self.distribution,
            "CLASS": self.class_name,
        }


def _plain(name: str) -> str:
    plain = re.sub(r"^ltcore[-_]", "", name).replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", plain) or len(plain) > _LONGEST:
        raise RecipeError(
            f"'{name}' cannot be a method's name: take up to {_LONGEST} small letters, digits and single "
            "underscores, a letter first, such as 'my_noise'"
        )
    return plain


def collection(name: str) -> tuple[str, str]:
    """Package and distribution of several methods: ``ltcore_my_set`` and ``ltcore-my-set``.

    Raises:
        RecipeError: the name cannot be one.
    """
    plain = _plain(name)
    return f"ltcore_{plain}", f"ltcore-{plain.replace('_', '-')}"


def spelled(class_name: str) -> str:
    """What recipes call a class: ``MyNoise`` is ``my_noise``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower().strip("_")


#: Names that generated modules import or define.
_IMPORTED = frozenset(
    "Any ArraySplit Backbone Batch CalibratedClassifier Context DataSplits EpochBatches Features Field Method Options "
    "Mergeable OrderedBatches PlainSampler RecipeError SideConv2d SmallNetwork Tensor UnitClassifier "
    "ValidationError WeightedExperts".split()
)


def check_hooks(hooks: Sequence[str]) -> list[str]:
    """The hooks in the order in which a run meets them, each once.

    Raises:
        RecipeError: there is no such hook, or they cannot be of one method.
    """
    for hook in hooks:
        if hook not in HOOKS:
            raise RecipeError(f"there is no hook '{hook}'{nearest(hook, HOOKS) or ';'} there is {listed(HOOKS)}")
    found = [hook for hook in HOOKS if hook in hooks]
    alone = [hook for hook in found if hook in ALONE]
    if alone and len(found) > 1:
        raise RecipeError(
            f"a method with {alone[0]} is named under '{alone[0].removeprefix('build_')}.use' of a recipe and asked "
            "nothing else; make a plugin of its own for the other hooks"
        )
    if found == ["on_run_start"]:
        raise RecipeError(
            "a method with on_run_start alone does nothing in a stage; name the hook that uses what it prepares, too"
        )
    return found
