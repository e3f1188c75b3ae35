"""The examples of docs/use.md, run on the digits run that tests share."""

import inspect
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import ltcore
from ltcore.export import FORMATS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "use.md").read_text()


def test_python(digits_run, tmp_path, monkeypatch, capsys):
    saved, run = ltcore.load(digits_run), ltcore.run

    def instead(*words, **named):
        recipe = inspect.signature(run).bind(*words, **named).arguments["recipe"]
        assert (ROOT / recipe).is_file()
        return saved

    monkeypatch.setattr("ltcore.runs.saved.run", instead)
    monkeypatch.chdir(tmp_path)
    from ltcore.export import export

    export(saved, "torch_export", Path("digits.pt2"))
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    np.testing.assert_allclose(names["logits"], saved.calibrated_logits, atol=1e-4)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(str(digits_run))
    assert printed[-1] == str([saved.class_names[label] for label in saved.predict(names["test"].images[:4]).labels])


def test_commands(cli, digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in (0, 1):
        Image.effect_noise((20, 20), 60).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "labelled" / "3").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "labelled" / "3" / "a.png")
    commands = re.findall(r"^\$ ltcore (.+)$", PAGE, re.MULTILINE)
    assert len(commands) == 5
    run = shutil.copytree(digits_run, tmp_path / "run")  # 'suspects' writes into it
    for command in commands:
        words = [str(run) if word.startswith("runs/") else word for word in command.split()]
        result = cli(*words)
        assert (result.code, result.err) == (0, "")
    assert (tmp_path / "evaluated" / "errors.csv").is_file()
    assert (run / "suspects.csv").is_file() and (run / "duplicates.csv").is_file()
    assert (tmp_path / "predictions.csv").is_file() and (tmp_path / "digits.onnx").is_file()


def test_tables():
    assert re.findall(r"^\| `(\w+)` \| (?:one|a) ", PAGE, re.MULTILINE) == list(FORMATS)
    rows = re.search(r"returns? a `SavedRun`:\n\n(.*?)\n\n", PAGE, re.DOTALL)[1].splitlines()[2:]
    told = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row.split("|")[1])}
    own = {name for name in vars(ltcore.SavedRun) if not name.startswith("_")}
    assert told - own == {"path", "result", "class_names", "class_counts"}  # set when it is made
    assert own <= told
