"""docs/messages.md: its example raises what the page shows, and its table has every class of errors."""

import re
import types
from pathlib import Path

import ltcore
from ltcore import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "messages.md").read_text()


def test_the_example_raises_what_the_page_shows(offer_methods, write_recipe, cli):
    space = vars(types.ModuleType("example"))
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], space)
    offer_methods(halves=space["Halves"])
    stage = "[{name: joint, epochs: 1, batch_size: 33, methods: [halves], optimizer: {lr: 0.1}}]"
    said = cli("plan", write_recipe(methods={"halves": {}}, stages=stage))
    assert said.code == 2 and said.err.count("\n") == 1
    (shown,) = re.findall(r"^recipe\.yaml:\d+: (stage 'joint': .*)$", PAGE, re.MULTILINE)
    assert said.err.rstrip().endswith(shown.replace("ltcore-halves 0.1.0", "ltcore-tests 0.0")), said.err
    (share,) = re.findall(r"`(should be at least 0, not -1)`", PAGE)
    wrong = {"methods": {"halves": {"options": {"share": -1}}}, "stages": stage.replace("33", "34")}
    assert f"methods.halves.options.share: {share} (method 'halves'" in cli("plan", write_recipe(**wrong)).err


def test_every_class_and_its_exit_code_is_in_the_table():
    table = dict(re.findall(r"^\| `(\w+Error)` \|.*\| (\d) \|$", PAGE, re.MULTILINE))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LtcoreError)]
    assert table == {kind.__name__: str(kind.exit_code) for kind in kinds if kind is not errors.LtcoreError}
    assert all(hasattr(ltcore, name) for name in table)
