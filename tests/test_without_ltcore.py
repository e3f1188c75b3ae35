"""The examples under "Without ltcore" on the plugins' cards: each runs as it stands, with gradients or an assertion."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import torch

CARDS = sorted(Path(__file__).parents[1].glob("plugins/*/README.md"))
#: Methods that are no functions, and why; their card says it in a sentence.
NO_FUNCTIONS = {
    "drs": "it draws classes evenly from an epoch on, which core's BatchSampler does in any loop",
    "metasaug": "its covariances learn by a look-ahead that is a loop of its own, not a function of tensors",
}
LONGEST = 24  # lines of code
WHAT = (
    'add a section "## Without ltcore" before the one on how it was verified: a ```python block of about ten lines '
    "that uses the plugin's functions in plain PyTorch and ends with a backward pass or an assertion, as focal's card "
    "has it. Where a method is no function, say so there in a sentence, and name it in NO_FUNCTIONS of this test"
)


def section(card):
    found = re.search(r"^## Without ltcore\n(.*?)(?=^## |\Z)", card.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{card}: {WHAT}"
    return found[1]


def blocks(card):
    return re.findall(r"^```python\n(.*?)^```$", section(card), re.MULTILINE | re.DOTALL)


def methods(card):
    project = tomllib.loads((card.parent / "pyproject.toml").read_text())["project"]
    return list(project["entry-points"]["ltcore.plugins"])


def has_functions(card):
    return not set(methods(card)) <= set(NO_FUNCTIONS)


def parameters(names):
    """Parameters of all modules that a block has made, and those that it has made by themselves."""
    values = [each for value in names.values() for each in (value if isinstance(value, tuple) else (value,))]
    modules = [each for each in values if isinstance(each, torch.nn.Module)]
    alone = [each for each in values if isinstance(each, torch.nn.Parameter)]
    found = [*alone, *(parameter for module in modules for parameter in module.parameters())]
    return [each for each in dict.fromkeys(found) if each.requires_grad]


def test_methods_without_functions_are_there():
    assert set(NO_FUNCTIONS) <= {name for card in CARDS for name in methods(card)}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_the_card_has_an_example(card):
    found = section(card)
    assert bool(blocks(card)) == has_functions(card), f"{card}: {WHAT}"
    if len(methods(card)) > 1 or not has_functions(card):
        unnamed = [name for name in methods(card) if not re.search(rf"\b{name}\b", found)]
        assert not unnamed, f"{card}: the section does not say what {unnamed[0]} is without ltcore"


@pytest.mark.parametrize("card", [card for card in CARDS if has_functions(card)], ids=lambda card: card.parent.name)
def test_the_example_runs(card):
    own = f"ltcore_{card.parent.name}"
    for block in blocks(card):
        tree = ast.parse(block)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
        assert own in modules and not any(name.startswith("ltcore.") for name in modules), f"{card}: imports {modules}"
        imported = {alias.asname or alias.name for node in imports for alias in node.names}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert imported <= used, f"{card}: imports {sorted(imported - used)} and does not use it"
        public = importlib.import_module(own).__all__
        (ours,) = (node for node in imports if getattr(node, "module", "") == own)
        assert {alias.name for alias in ours.names} <= set(public), f"{card}: imports what {own} does not export"
        assert len(block.splitlines()) <= LONGEST, f"{card}: an example has more than {LONGEST} lines"

        asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        names = {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            exec(compile(tree, str(card), "exec"), names)
        gradients = [each.grad for each in parameters(names) if each.grad is not None]
        assert asserts or gradients, f"{card}: an example ends with a backward pass or an assertion"
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), f"{card}: a gradient is not finite"
        if "backward" in block or gradients:
            assert any(bool(gradient.any()) for gradient in gradients), f"{card}: no parameter has got a gradient"
