"""The fingerprints of the data that jobs are about, taken in a process of its own: the engine loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltcore.errors import DataError, PluginError, RecipeError
from ltcore.recipe.loading import LoadedRecipe, load_recipe
from ltcore.recipe.yaml_source import dump_yaml


def prints_of(recipes: Sequence[LoadedRecipe]) -> list[dict[str, Any]]:
    """The fingerprint in short of each recipe's data, as it is now; data that several use is read once.

    Raises:
        DataError: some data is missing or damaged; the message is the one that a run would end with.
    """
    keys = [_key(loaded) for loaded in recipes]
    one_of = dict(zip(keys, recipes, strict=True))
    found = dict(zip(one_of, _taken(list(one_of.values())), strict=True))
    return [found[key] for key in keys]


def _key(loaded: LoadedRecipe) -> str:
    """What data is read by: the set and its options; the tail is cut behind that."""
    data = loaded.recipe.data
    return json.dumps([loaded.told(data.use), data.options, data.range], sort_keys=True)


def _taken(recipes: Sequence[LoadedRecipe]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
        paths = []
        for number, loaded in enumerate(recipes):
            place = Path(folder, str(number))
            place.mkdir()
            (place / "recipe.yaml").write_text(dump_yaml(loaded.source), encoding="utf-8")
            for file in loaded.code.values():
                (place / file.name).write_bytes(file.content)
            paths.append(str(place / "recipe.yaml"))
        told = subprocess.run([sys.executable, "-m", __name__, *paths], capture_output=True, text=True)
    if told.returncode:
        raise DataError(f"the fingerprint of the data could not be taken: {told.stderr.strip()[-2000:]}")
    found = []
    for loaded, line in zip(recipes, told.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(f"{loaded.path}: {answer['error']}")
        found.append(answer["print"])
    return found


def _main(paths: Sequence[str]) -> None:
    from ltcore.plan.plan import make_plan
    from ltcore.training.data import known, read_splits

    for path in paths:
        try:
            loaded = load_recipe(path)
            answers = make_plan(loaded).answers["data"]
            print(json.dumps({"print": known(loaded, read_splits(loaded, answers)).digests()}), flush=True)
        except (DataError, RecipeError, PluginError) as error:
            text = str(error).replace(f"{path}:", "").strip()
            print(json.dumps({"error": text.lstrip("0123456789: ")}), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
