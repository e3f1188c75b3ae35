"""One recipe from several sources: `extends`, ``--set`` and ``${env:NAME}``."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from ltcore.errors import RecipeError, listed, nearest
from ltcore.recipe.located import Key, Located, Locator, shown_value
from ltcore.recipe.own_code import placed
from ltcore.recipe.yaml_source import parse, read_recipe_file
from ltcore.untrusted import printable

_INTERPOLATION = re.compile(r"\$\{([^}]*)\}?")
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


def load_chain(path: Path, chain: tuple[Path, ...] = ()) -> Located:
    """Read a recipe and everything that it extends, merged.

    A parent's ``name``, ``description`` and ``published`` are its own, so they are not inherited.

    Args:
        path: the recipe file.
        chain: the recipes that led here by ``extends``, the first one first.

    Raises:
        RecipeError: a file cannot be read, the recipes extend each other in a circle, or a patched stage is unknown.
    """
    root = placed(read_recipe_file(path), path.parent)
    assert isinstance(root.value, dict)
    entries = dict(root.value)
    extends = entries.pop("extends", None)
    stages = entries.get("stages")
    if extends is None:
        if stages is not None and isinstance(stages.value, dict):
            raise RecipeError(f"{stages.where}: stages: should be a list; changes by stage name need 'extends'")
        return Located(entries, root.where)

    chain = (*chain, path)
    parent_path = _parent_path(extends, path, chain)
    parent = load_chain(parent_path, chain)
    assert isinstance(parent.value, dict)
    inherited = {key: child for key, child in parent.value.items() if key not in ("name", "description", "published")}
    if stages is not None and isinstance(stages.value, dict):
        entries["stages"] = _patch_stages(inherited.get("stages"), stages, parent_path)
        inherited.pop("stages")  # patched already
    return merge(Located(inherited, parent.where), Located(entries, root.where))


def merge(base: Located, change: Located) -> Located:
    """`change` over `base`: mappings merge deeply, null removes what is there, everything else replaces.

    A mapping that chooses something else than the one it changes (another ``use``, or another ``name`` of an optimiser
    or schedule) replaces it whole. The inherited options are not its own.
    """
    if not (isinstance(base.value, dict) and isinstance(change.value, dict)):
        return change
    if any(_chosen(base, key) and _chosen(change, key) not in (None, _chosen(base, key)) for key in ("use", "name")):
        return change
    entries = dict(base.value)
    for key, child in change.value.items():
        if key not in entries:
            entries[key] = child  # a null that removes nothing stays null, so that a mistyped removal is noticed
        elif child.value is None:
            del entries[key]
        else:
            entries[key] = merge(entries[key], child)
    return Located(entries, change.where)


def _chosen(node: Located, key: str) -> object:
    child = node.get(key)
    if child is None:
        return None
    return child.value if child.folder is None else (child.folder, child.value)


def apply_set(root: Located, text: str, fields: Collection[str], where: str | None = None) -> None:
    """Apply one ``PATH=VALUE``, ``PATH+=VALUE`` or ``PATH-=VALUE`` to the merged recipe.

    ``=`` sets a value, and with null removes the entry. ``+=`` appends to a list and ``-=`` takes away from it, one
    item or a list of them. A method that a list gets in this way is put into the table of methods if it is not there
    yet. A method that no list names any more leaves it.

    Args:
        root: the recipe, changed in place.
        text: the change, its value in YAML.
        fields: the recipe's top-level keys.
        where: the place of the change, for messages; by default ``--set`` and the text.

    Raises:
        RecipeError: the text or its path is wrong; the message begins with the place.
    """
    shown = printable(text if len(text) <= 120 else f"{text[:100]}...")
    where = f"--set {shown}" if where is None else f"{where}: {shown}"
    path, equals, value_text = text.partition("=")
    how = path[-1:] if path.endswith(("+", "-")) else ""
    keys = path.removesuffix(how).strip().split(".")
    if not equals:
        raise RecipeError(f"{where}: has no '='; write PATH=VALUE, for example --set seed=1")
    if "" in keys:
        raise RecipeError(f"{where}: a name in the path is empty; write PATH=VALUE, for example --set seed=1")
    value = parse(value_text, lambda line: where)
    if how:
        items = value.value if isinstance(value.value, list) else [value]
        _change_list(root, keys, items, how == "+", fields)
    else:
        put(root, keys, value, fields)


def _change_list(root: Located, keys: list[str], items: list[Located], adds: bool, fields: Collection[str]) -> None:
    """Append `items` to the list at a path, or take them away."""
    where = items[0].where if items else ""
    node = root if keys[0] in fields else None
    for depth in range(len(keys)):
        node = node and node.get(_entry(node, keys[: depth + 1], where))
    if node is not None and not isinstance(node.value, list):
        raise RecipeError(f"{where}: '{'.'.join(keys)}' is {shown_value(node.plain())}, not a list")
    listed_now = list(node.value) if node is not None and isinstance(node.value, list) else []
    plain = [item.plain() for item in listed_now]
    if adds:
        listed_now += [item for item in items if item.plain() not in plain]
    for item in () if adds else items:
        if item.plain() not in plain:
            there = f"; there: {listed(map(str, plain))}" if plain else ""
            raise RecipeError(f"{where}: '{'.'.join(keys)}' has no {shown_value(item.plain())} to take away{there}")
        listed_now = [other for other in listed_now if other.plain() != item.plain()]
    put(root, keys, Located(listed_now, where), fields)
    if keys[-1] in ("methods", "calibrate", "adapt"):
        _keep_table(root, items, adds, where)


def _keep_table(root: Located, items: list[Located], adds: bool, where: str) -> None:
    """Bring the table of methods up to date with lists that have got, or lost, these names."""
    assert isinstance(root.value, dict)
    table = root.value.setdefault("methods", Located({}, where))
    if not isinstance(table.value, dict):
        return  # refused when the recipe is checked
    named = {name for node in _lists_of_methods(root) for name in node.plain() if isinstance(name, str)}
    for name in (item.value for item in items if isinstance(item.value, str)):
        if adds:
            table.value.setdefault(name, Located({}, where))
        elif name not in named:
            table.value.pop(name, None)


def _lists_of_methods(root: Located) -> list[Located]:
    stages, backbone = root.get("stages"), root.get("backbone")
    entries = stages.value if stages is not None and isinstance(stages.value, list) else []
    found = [root.get("calibrate"), backbone and backbone.get("adapt"), *(stage.get("methods") for stage in entries)]
    return [node for node in found if node is not None and isinstance(node.value, list)]


def put(root: Located, keys: list[str], value: Located, fields: Collection[str]) -> None:
    """Put `value` at a path of the merged recipe; null removes the entry, if there is one.

    Args:
        root: the recipe, changed in place.
        keys: the path; stages by name or number.
        value: the value; messages show its place.
        fields: the recipe's top-level keys.

    Raises:
        RecipeError: the path does not exist; the message begins with the value's place.
    """
    where = value.where
    if keys[0] not in fields:
        near = nearest(keys[0], fields) or f"; known: {listed(fields)}"
        raise RecipeError(f"{where}: a recipe has no key '{keys[0]}'{near}")
    node = root
    for depth in range(len(keys) - 1):
        key = _entry(node, keys[: depth + 1], where)
        child = node.get(key)
        if child is None or child.value is None:
            child = Located({}, where)
            _put(node, key, child)
        node = child
    if keys[:-1] == ["methods"] and isinstance(node.value, dict) and isinstance(value.value, dict):
        node.value[keys[-1]] = value  # a method as a whole may be new
    elif keys[:-1] == ["stages"] and isinstance(node.value, list) and _is_stage(value):
        _put_stage(node.value, keys[-1], value)
    else:
        _put(node, _entry(node, keys, where), value)


def interpolate(node: Located, locator: Locator, path: tuple[Key, ...] = ()) -> Located:
    """Replace ``${env:NAME}`` in every string; what comes out is text.

    Raises:
        RecipeError: a variable is not set, or ``${...}`` holds something else.
    """
    if isinstance(node.value, dict):
        return Located({k: interpolate(child, locator, (*path, k)) for k, child in node.value.items()}, node.where)
    if isinstance(node.value, list):
        return Located([interpolate(child, locator, (*path, i)) for i, child in enumerate(node.value)], node.where)
    if not isinstance(node.value, str):
        return node

    def fail(message: str) -> RecipeError:
        return RecipeError(f"{node.where}: {locator.shown(path)}: {message}")

    def replacement(match: re.Match[str]) -> str:
        env = _ENV.fullmatch(match[1])
        if env is None or not match[0].endswith("}"):
            raise fail(f"cannot interpolate {match[0]!r}; only ${{env:NAME}} is known")
        value = os.environ.get(env[1])
        if value is None:
            instead = "" if path == ("extends",) else f", or pass --set {locator.shown(path)}=VALUE"
            raise fail(f"the environment variable '{env[1]}' is not set; set it{instead}")
        if "${" in value or any("\ud800" <= character <= "\udfff" for character in value):
            # The resolved recipe in the run directory would not read back to the same text.
            raise fail(f"the environment variable '{env[1]}' holds '${{' or bytes that are not UTF-8: {value!r}")
        return value

    text = _INTERPOLATION.sub(replacement, node.value)
    if "${" in text:  # pieces that form a new ${ together, as in $${env:X} where X begins with a brace
        raise fail("the interpolated text contains '${'")
    return Located(text, node.where, node.folder)


def _parent_path(extends: Located, path: Path, chain: tuple[Path, ...]) -> Path:
    """The file that ``extends`` names, checked to be readable and new to the chain."""
    where = extends.where
    if not isinstance(extends.value, str) or not extends.value:
        got = shown_value(extends.plain())
        raise RecipeError(f"{where}: extends: should be the path of one recipe file, not {got}")
    name = interpolate(extends, Locator(Located({"extends": extends}, where), path), ("extends",)).value
    parent = path.parent / str(name)
    shown = " -> ".join(str(step) for step in (*chain, parent))
    try:
        if parent.resolve() in [step.resolve() for step in chain]:
            raise RecipeError(f"{where}: extends: the recipes extend each other in a circle: {shown}")
        if not parent.is_file():
            problem = "is a directory" if parent.is_dir() else "is no file" if parent.exists() else "no such file"
            near = nearest(parent.name, (p.name for p in parent.parent.glob("*.y*ml")))
            raise RecipeError(f"{where}: extends: {parent}: {problem}{near} ({shown})")
        parent.open("rb").close()
    except OSError as error:
        raise RecipeError(f"{where}: extends: {parent}: cannot be read: {error.strerror} ({shown})") from None
    return parent


def _patch_stages(base: Located | None, patches: Located, parent: Path) -> Located:
    """The parent's stages with changes by stage name.

    A stage whose change is null is removed. A name that the parent does not have is a new stage, which comes last, or
    before the one that its ``before`` names; it must be whole, so that a misspelled name is not taken for one.
    """
    assert isinstance(patches.value, dict)
    if base is None or not isinstance(base.value, list):
        raise RecipeError(f"{patches.where}: stages: {parent} has no list of stages that could be changed by name")
    stages = list(base.value)
    for name, patch in patches.value.items():
        names = [stage.name for stage in stages]
        if name not in names and _is_stage(patch):
            _put_stage(stages, name, patch)
            continue
        if name not in names:
            known = [known for known in names if known is not None]
            near = f"{nearest(name, known)} (known: {listed(known)}; a new stage says how long it is and its optimizer)"
            raise RecipeError(f"{patch.where}: stages.{name}: {parent} has no stage '{name}'{near}")
        index = names.index(name)
        if patch.value is None:
            del stages[index]
        elif isinstance(patch.value, dict):
            stages[index] = merge(stages[index], patch)
        else:
            got = shown_value(patch.plain())
            raise RecipeError(f"{patch.where}: stages.{name}: should be a mapping of changes, not {got}")
    return Located(stages, base.where)


def _is_stage(node: Located) -> bool:
    """Whether it is a whole stage, and no change of one."""
    return bool({"epochs", "iterations"} & _keys(node)) and "optimizer" in _keys(node)


def _put_stage(stages: list[Located], name: str, stage: Located) -> None:
    """Put a whole stage where one of its name is, else before the one that its ``before`` names, or behind them all.

    Raises:
        RecipeError: ``before`` names no other stage.
    """
    assert isinstance(stage.value, dict)
    entries = dict(stage.value)
    before = entries.pop("before", None)
    whole = Located({"name": Located(name, stage.where), **entries}, stage.where)
    names = [other.name for other in stages]
    if before is not None:
        if before.value == name or before.value not in names:
            shown, known = shown_value(before.plain()), [known for known in names if known not in (None, name)]
            message = f"stages.{name}.before: there is no other stage {shown} (known: {listed(known)})"
            raise RecipeError(f"{before.where}: {message}")
        stages[:] = [other for other in stages if other.name != name]
        index = end = [other.name for other in stages].index(before.value)
    else:
        index = names.index(name) if name in names else len(names)
        end = index + 1
    stages[index:end] = [whole]


def _keys(node: Located) -> set[str]:
    return set(node.value) if isinstance(node.value, dict) else set()


def _entry(node: Located, keys: list[str], where: str) -> Key:
    """The key or index that the last of `keys` means in `node`, which the others lead to."""
    key, parent = keys[-1], ".".join(keys[:-1])
    if isinstance(node.value, list):
        names = [child.name for child in node.value]
        if key in names:
            return names.index(key)
        if key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(names):
            return int(key)
        known = [name for name in names if name is not None]
        if parent != "stages":
            detail = f"{nearest(key, known)} (known: {listed(known)})" if known else f"; it has {len(names)} entries"
            raise RecipeError(f"{where}: '{parent}' has no entry '{key}'{detail}")
    elif not isinstance(node.value, dict):
        raise RecipeError(f"{where}: '{parent}' is {shown_value(node.value)}, not a mapping")
    elif key in node.value or parent not in ("methods", "stages"):
        return key
    else:
        known = list(node.value)
    kind = parent.removesuffix("s")
    raise RecipeError(f"{where}: the recipe has no {kind} '{key}'{nearest(key, known)} (known: {listed(known)})")


def _put(node: Located, key: Key, value: Located) -> None:
    """Set, or with null remove, an entry."""
    container = node.value
    if isinstance(container, dict) and isinstance(key, str):
        if value.value is None and key in container:
            del container[key]
        else:
            container[key] = value
    elif isinstance(container, list) and isinstance(key, int):
        container[key : key + 1] = [] if value.value is None else [value]
