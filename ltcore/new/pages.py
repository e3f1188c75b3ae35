"""The card and the recipe of a new plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ltcore.contract.hookspecs import HOOKS
from ltcore.new.names import ALONE, Names
from ltcore.new.parts import Part

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


def recipe_name(names: Names, parts: Sequence[Part]) -> str:
    """The recipe's file: on the digits, unless the plugin brings data of its own."""
    own = any(part.hook == "build_data" for part in parts)
    return f"{names.name}.yaml" if own else f"digits_lt_{names.name}.yaml"


def recipe(names: Names, parts: Sequence[Part]) -> str:
    """A recipe that trains in seconds on a CPU."""
    hooks = {part.hook for part in parts}
    data = "{use: digits_lt}"
    if "build_data" in hooks:
        data = f"{{use: {names.name}, imbalance: {{kind: exponential, factor: 10}}}}"
    elif any("validation" in part.requires for part in parts):
        data = "{use: digits_lt, holdout: 1}"
    backbone = names.name if "build_backbone" in hooks else "timm, options: {model: test_resnet}"
    if "adapt_backbone" in hooks:
        backbone += f", adapt: [{names.name}]"
    lines = [
        f"# {'; '.join(part.summary for part in parts)}."
        if len(parts) == 1
        else f"# The method {names.name} with all its hooks.",
        "#",
        f"#   ltcore run recipes/{recipe_name(names, parts)}",
        f"data: {data}",
        f"backbone: {{use: {backbone}}}",
    ]
    method = not hooks & set(ALONE)
    if method:
        options = ", ".join(f"{name}: {default}" for part in parts for name, default, _ in part.option_rows)
        lines += ["methods:", f"  {names.name}: {{{f'options: {{{options}}}' if options else ''}}}"]
    lines += ["stages:", "  - name: joint", "    epochs: 20"]
    if any(HOOKS[hook].in_stages for hook in hooks):
        lines.append(f"    methods: [{names.name}]")
    lines += ["    batch_size: 32", "    optimizer: {name: sgd, lr: 0.02, momentum: 0.9}"]
    if "post_calibrate" in hooks:
        lines.append(f"calibrate: [{names.name}]")
    return "\n".join(lines) + "\n"


def card(names: Names, parts: Sequence[Part], fields: Mapping[str, str]) -> str:
    """README.md: what it does, options, what it mixes with, a recipe, how it was verified."""
    hooks = ", ".join(f"`{part.hook}`" for part in parts)
    what = (
        "\n".join(f"- {part.summary} (`{part.hook}`)." for part in parts) if len(parts) > 1 else f"{parts[0].summary}."
    )
    rows = [f"| `{name}` | {default} | {meaning} |" for part in parts for name, default, meaning in part.option_rows]
    options = "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *rows]) if rows else "It has none."
    mixes = "\n".join(
        f"- `{part.hook}`: {_MIXES[HOOKS[part.hook].kind].format(hook=part.hook, what=_WHAT.get(part.hook, ''))}."
        for part in parts
        if part.hook not in ALONE
    )
    requires = sorted({word for part in parts for word in part.requires})
    if requires:
        mixes += f"\n- It needs {', '.join(f'`{word}`' for word in requires)} in its stage."
    return f"""# {names.distribution}

{what}

| | |
| --- | --- |
| install | `pip install {names.distribution}` |
| use | `{names.name}` |
| hooks | {hooks} |
| paper | name it here, with the equation |

## Options

{options}

## Mixes with

{mixes or "Any method: it is what they are trained on."}

## Recipe

```yaml
{recipe(names, parts)}```

    ltcore run recipes/{recipe_name(names, parts)}

## Verified

The mathematics against slow references and numbers worked by hand; the method by `ltcore check {names.name}`. No
published figure has been reproduced yet.

## Development

    pip install -e ".[dev]"
    pytest
    ltcore check {names.name}
    ruff check . && ruff format --check . && mypy

Licence: {fields["LICENSE"]}.
"""
