"""The card and the recipes of a new plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ltcore.contract.hookspecs import HOOKS
from ltcore.new.members import Member
from ltcore.new.names import ALONE

_MIXES = {
    "one": "with anything but another answer to `{hook}` in the same stage",
    "fold": "with anything; what several methods do to {what} they do in the recipe's order",
    "product": "with anything; the weights of several methods are multiplied",
    "sum": "with anything; the terms of all methods are added",
    "all": "with anything",
    "own": "with anything; each method has its own",
}
_WHAT = {
    "adapt_backbone": "the network",
    "mix_inputs": "the images",
    "augment_features": "the features",
    "adjust_logits": "the logits",
    "post_calibrate": "the classifier",
}


def recipe_name(member: Member) -> str:
    """The recipe's file: on the digits, unless the plugin brings data of its own."""
    own = "build_data" in member.hooks
    return f"{member.names.name}.yaml" if own else f"digits_lt_{member.names.name}.yaml"


def recipe(member: Member) -> str:
    """A recipe that trains in seconds on a CPU, with what the method requires."""
    hooks, requires, name = set(member.hooks), member.requires, member.names.name
    given = ", ".join(f"{key}: {value}" for key, value in member.recipe_options.items())
    options = f", options: {{{given}}}" if given else ""
    data = "{use: digits_lt}"
    if "build_data" in hooks:
        data = f"{{use: {name}, imbalance: {{kind: exponential, factor: 10}}}}"
    elif "validation" in requires:
        data = "{use: digits_lt, holdout: 1}"
    backbone = f"{name}{options}" if "build_backbone" in hooks else "timm, options: {model: test_resnet}"
    if "adapt_backbone" in hooks:
        backbone += f", adapt: [{name}]"
    lines = [
        f"# {member.summary}." if len(member.summaries) == 1 else f"# The method {name} with all its hooks.",
        "#",
        f"#   ltcore run recipes/{recipe_name(member)}",
        f"data: {data}",
        f"backbone: {{use: {backbone}}}",
    ]
    method = not hooks & set(ALONE)
    if method:
        lines += ["methods:", f"  {name}: {{{options.removeprefix(', ')}}}"]
    lines += ["stages:"]
    common = ["    batch_size: 32", "    optimizer: {name: sgd, lr: 0.02, momentum: 0.9}"]
    later = "earlier_stage" in requires or "fixed_backbone" in requires
    if later:
        lines += ["  - name: representation", "    epochs: 20", *common]
    lines += [f"  - name: {'finetune' if later else 'joint'}", "    epochs: 20"]
    if any(HOOKS[hook].in_stages for hook in hooks):
        lines.append(f"    methods: [{name}]")
    trained = ["classifier"] if "fixed_backbone" in requires else ["backbone", "classifier"]
    trained += [name] if "own_parameters_train" in requires else []
    if trained != ["backbone", "classifier"]:
        lines.append(f"    trainable: [{', '.join(trained)}]")
    lines += common
    if "post_calibrate" in hooks:
        lines.append(f"calibrate: [{name}]")
    return "\n".join(lines) + "\n"


def card(members: Sequence[Member], fields: Mapping[str, str]) -> str:
    """README.md: what it does, options, what it mixes with, recipes, how it was verified."""
    distribution = fields["DISTRIBUTION"]
    if len(members) == 1:
        sections = _about(members[0], distribution, "##")
    else:
        sections = "\n".join(f"## `{member.names.name}`\n\n{_about(member, '', '###')}" for member in members)
        sections = f"| | |\n| --- | --- |\n| install | `pip install {distribution}` |\n\n{sections}"
    checks = " ".join(member.names.name for member in members)
    return f"""# {distribution}

{sections}
## Verified

The mathematics against slow references and numbers worked by hand; the method by `ltcore check {checks}`. No
published figure has been reproduced yet.

## Development

    pip install -e ".[dev]"
    pytest
    ltcore check {checks}
    ruff check . && ruff format --check . && mypy

Licence: {fields["LICENSE"]}.
"""


def _about(member: Member, distribution: str, heading: str) -> str:
    """A method's part of the card; with the distribution's name where that is installed for it alone."""
    hooks = ", ".join(f"`{hook}`" for hook in member.hooks)
    many = len(member.summaries) > 1
    said = [f"{text} ({', '.join(f'`{hook}`' for hook in hooks)})" for hooks, text in member.summaries]
    what = "\n".join(f"- {text}." for text in said) if many else f"{member.summary}."
    rows = [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in member.option_rows]
    options = "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows]) if rows else "It has none."
    mixes = "\n".join(
        f"- `{hook}`: {_MIXES[HOOKS[hook].kind].format(hook=hook, what=_WHAT.get(hook, ''))}."
        for hook in member.hooks
        if hook not in ALONE
    )
    if member.requires:
        mixes += f"\n- It needs {', '.join(f'`{word}`' for word in member.requires)} in its stage."
    install = f"| install | `pip install {distribution}` |\n" if distribution else ""
    return f"""{what}

| | |
| --- | --- |
{install}| use | `{member.names.name}` |
| hooks | {hooks} |
| paper | name it here, with the equation |

{heading} Options

{options}

{heading} Mixes with

{mixes or "Any method: it is what they are trained on."}

{heading} Recipe

```yaml
{recipe(member)}```

    ltcore run recipes/{recipe_name(member)}
"""
