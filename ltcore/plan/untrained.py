"""Methods whose parameters nothing trains, though they act: said in the plan, or in the run once they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltcore.contract.backbone import Backbone
    from ltcore.contract.recipe import Stage
    from ltcore.discovery.binding import Entry
    from ltcore.recipe.loading import LoadedRecipe


def untrained(loaded: LoadedRecipe, stages: Iterable[tuple[Stage, Sequence[Entry]]]) -> Iterator[str]:
    """A sentence for each method that acts in a stage before any has trained its parameters.

    Parameters that the method keeps as they are (`ltcore.Method.frozen`) are no matter. What a stage has trained may
    well be frozen in a later one.

    Args:
        loaded: the recipe.
        stages: its stages, with their methods.
    """
    from ltcore.contract.model import matches

    done: set[str] = set()
    for index, (stage, entries) in enumerate(stages):
        for entry in entries:
            names = _trainable(entry)
            if entry.key in done or not names:
                continue
            done.add(entry.key)
            if any(matches(name, pattern) for name in names for pattern in stage.trainable):
                continue
            asked = ", ".join((*stage.trainable, entry.key))
            yield (
                f"{loaded.where('stages', index, 'trainable')}: stage '{stage.name}': {entry.whose} has parameters "
                f"of its own, and no stage has trained them: they stay as they are made. Write trainable: [{asked}]"
            )


def unadapted(loaded: LoadedRecipe, skeleton: Backbone) -> Iterator[str]:
    """A sentence for each method under ``adapt`` of whose parameters no stage trains any: the network is as without it.

    Args:
        loaded: the recipe.
        skeleton: the backbone on the meta device, adapted.
    """
    from ltcore.contract.model import matches
    from ltcore.plan.checks import backbone_names

    recipe, names = loaded.recipe, backbone_names(skeleton)
    trained = [pattern for stage in recipe.stages for pattern in stage.trainable]
    for position, key in enumerate(recipe.backbone.adapt):
        added = [name for name in names if name.also.partition(".")[0] == key]
        if added and not any(matches(name, pattern) for name in added for pattern in trained):
            yield (
                f"{loaded.where('backbone', 'adapt', position)}: '{key}' has put parameters into the network, and no "
                f"stage trains them: they stay as they are made. Name '{key}' in the trainable of a stage"
            )


def _trainable(entry: Entry) -> list[str]:
    """A method's own parameters as recipes call them, but for those that it keeps frozen."""
    from ltcore.contract.model import matches

    frozen = [f"{entry.key}.{pattern}" for pattern in entry.method.frozen]
    names = [f"{entry.key}.{name}" for name, _ in entry.method.named_parameters()]
    return [name for name in names if not any(matches(name, pattern) for pattern in frozen)]
