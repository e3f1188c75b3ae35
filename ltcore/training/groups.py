"""Groups of parameters with optimiser settings of their own: checked once modules are made, and built for a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltcore.contract.model import public_name
from ltcore.networks.optimizers import group_parameters, parameter_group
from ltcore.plan.checks import linear_names, wrong_group

if TYPE_CHECKING:
    from torch import nn

    from ltcore.contract.model import Model
    from ltcore.contract.recipe import Stage
    from ltcore.plan.plan import Plan


def check_groups(plan: Plan, model: Model) -> None:
    """Look at every stage's groups once methods have made their modules, before anything is trained.

    What a method builds as a classifier comes with its stage, and is looked at there.

    Raises:
        RecipeError: a pattern makes no group.
    """
    made = [public_name(name, model.backbone) for name, _ in model.named_parameters()]
    names = [name for name in made if name.split(".")[0] != "classifier"]
    for index, stage_plan in enumerate(plan.stages):
        stage = stage_plan.stage
        known = names if stage_plan.built else [*names, *linear_names(model.backbone)]
        wrong = wrong_group(stage, known, ["classifier"] if stage_plan.built else [])
        if wrong:
            place = ("stages", index, "optimizer", "groups", wrong[0])
            raise plan.loaded.fail(place, f"stage '{stage.name}': {wrong[1]}")


def parameter_groups(stage: Stage, model: Model) -> tuple[list[dict[str, Any]], list[str]]:
    """A stage's groups for its optimiser, and what to say about patterns that overlap.

    Args:
        stage: the stage; its optimiser has groups.
        model: the model, with what trains requiring gradients.
    """
    named: dict[str, nn.Parameter] = {
        public_name(name, model.backbone): each for name, each in model.named_parameters() if each.requires_grad
    }
    asked = stage.optimizer.groups
    found = group_parameters(named, asked)
    groups = [parameter_group([named[name] for name in found.rest], None, {})] if found.rest else []
    for pattern, names in found.held.items():
        group = asked[pattern]
        groups.append(parameter_group([named[name] for name in names], group.lr, group.model_extra or {}))
    return groups, found.overlaps()
