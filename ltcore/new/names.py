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
    def of(cls, name: str) -> Names:
        """The names that follow from the method's.

        Raises:
            RecipeError: it cannot be one, or something else has it.
        """
        plain = re.sub(r"^ltcore[-_]", "", name).replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", plain) or len(plain) > _LONGEST:
            raise RecipeError(
                f"'{name}' cannot be a method's name: take up to {_LONGEST} small letters, digits and single "
                "underscores, a letter first, such as 'my_noise'"
            )
        class_name = "".join(part[0].upper() + part[1:] for part in plain.split("_"))
        if keyword.iskeyword(plain) or keyword.iskeyword(class_name) or class_name in _IMPORTED:
            raise RecipeError(
                f"a method called '{plain}' would collide with a name of Python or ltcore; choose another"
            )
        owner = taken_by(plain)
        if owner:
            raise RecipeError(
                f"the name '{plain}' is taken by {owner}, and a recipe could not tell the two apart; choose another"
            )
        return cls(plain, f"ltcore_{plain}", f"ltcore-{plain.replace('_', '-')}", class_name)

    def fields(self) -> dict[str, str]:
        """The fields of a template."""
        return {
            "NAME": self.name,
            "PACKAGE": self.package,
            "DISTRIBUTION": self.distribution,
            "CLASS": self.class_name,
        }


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
