"""Run directories: begun whole, found again, locked, and cut back to the last checkpoint."""

import json
import os

import pytest

from ltcore.errors import RecipeError, RunError
from ltcore.files import run_directory
from ltcore.files.run_directory import RunDirectory

TEXT = "name: r\nseed: 0\n"


@pytest.fixture
def still_clock(monkeypatch):
    """A clock that stands still."""
    from datetime import datetime

    class Still(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_directory, "datetime", Still)


def aged(directory, seconds):
    """Make it look as if the run was begun so many seconds ago."""
    recipe = directory.path / "recipe.yaml"
    then = recipe.stat().st_mtime_ns - seconds * 10**9
    os.utime(recipe, ns=(then, then))
    return directory


def test_a_new_directory_is_complete(tmp_path, still_clock):
    made = RunDirectory.create(tmp_path / "deep" / "runs", "r", 7, TEXT)
    assert made.path == tmp_path / "deep" / "runs" / "r" / "20260102-030405-seed7"
    assert sorted(path.name for path in made.path.iterdir()) == ["checkpoints", "recipe.yaml"]
    assert (made.path / "recipe.yaml").read_text() == TEXT
    assert not made.finished and made.last.parent.is_dir() and not made.last.exists()
    assert [path.name for path in made.path.parent.iterdir()] == [made.path.name]


def test_runs_of_one_second_have_directories_of_their_own(tmp_path, still_clock):
    names = [RunDirectory.create(tmp_path, "r", 0, TEXT).path.name for _ in range(3)]
    assert names == ["20260102-030405-seed0", "20260102-030405-seed0-2", "20260102-030405-seed0-3"]
    assert all((tmp_path / "r" / name / "recipe.yaml").is_file() for name in names)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"cannot write the run directory under .*: Not a directory; .*, or choose another with --out"
    ):
        RunDirectory.create(tmp_path / "file", "r", 0, TEXT)


def test_the_latest_run_of_exactly_this_recipe_is_found(tmp_path, still_clock):
    old, latest, other = (RunDirectory.create(tmp_path, "r", 0, text) for text in (TEXT, TEXT, TEXT + "device: cpu\n"))
    RunDirectory.create(tmp_path, "another", 0, TEXT)
    aged(old, 50), aged(latest, 20), aged(other, 10)
    assert RunDirectory.find(tmp_path, "r", TEXT).path == latest.path
    assert RunDirectory.find(tmp_path, "r", TEXT + "device: cpu\n").path == other.path
    aged(old, -100)
    assert RunDirectory.find(tmp_path, "r", TEXT).path == old.path


def test_what_may_change_while_a_run_goes_on(tmp_path):
    text = "name: r\ncheckpoint_seconds: 5\ndata: {use: digits_lt, broken: error}\n"
    run = RunDirectory.create(tmp_path, "r", 0, text)
    changed = "name: r\ndata: {use: digits_lt, broken: skip, workers: 2}\npublished: []\n"
    assert RunDirectory.find(tmp_path, "r", changed).path == run.path
    with pytest.raises(RecipeError, match=r"1 there differ in a setting"):
        RunDirectory.find(tmp_path, "r", changed.replace("skip", "skip, holdout: 1"))
    began = (run.path / "recipe.yaml").stat().st_mtime_ns
    assert run.keep_recipe(changed) and (run.path / "recipe.yaml").read_text() == changed
    assert (run.path / "recipe.yaml").stat().st_mtime_ns == began
    assert not run.keep_recipe(changed)


def test_a_damaged_sibling_does_not_stand_in_the_way(tmp_path):
    run, sibling = (RunDirectory.create(tmp_path, "r", 0, TEXT) for _ in range(2))
    for damage in (b"a: [", b"\xff\xfe", b"- 1"):
        (sibling.path / "recipe.yaml").write_bytes(damage)
        assert RunDirectory.find(tmp_path, "r", TEXT).path == run.path


def test_the_latest_run_that_has_not_ended_is_found(tmp_path):
    with pytest.raises(RecipeError, match=r"--resume: every run in .* has ended; name a RECIPE, or another --out"):
        RunDirectory.latest_unfinished(tmp_path / "none")
    ended, busy, latest, older = (aged(RunDirectory.create(tmp_path, "rs"[n % 2], 0, TEXT), n) for n in range(4))
    ended.write_json("result.json", {})
    with busy.lock():
        found, others = RunDirectory.latest_unfinished(tmp_path)
        assert found.path == latest.path and others == 1
        latest.write_json("result.json", {}), older.write_json("result.json", {})
        with pytest.raises(RecipeError, match="but for 1 that a process is working on"):
            RunDirectory.latest_unfinished(tmp_path)
    assert RunDirectory.latest_unfinished(tmp_path)[0].path == busy.path


def test_what_a_killed_process_left_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory.Path, "rename", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.create(tmp_path, "r", 0, TEXT)
    (left,) = (tmp_path / "r").iterdir()
    assert left.name.startswith(".2") and (left / "recipe.yaml").is_file()
    with pytest.raises(RecipeError, match=r"no run of this recipe in .*/r; start it without --resume"):
        RunDirectory.find(tmp_path, "r", TEXT)


def test_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(RecipeError, match=r"^--resume: no run of this recipe in .*; start it without --resume$"):
        RunDirectory.find(tmp_path / "missing", "r", TEXT)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    (tmp_path / "r" / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"/r; start it"):
        RunDirectory.find(tmp_path, "r", TEXT)
    RunDirectory.create(tmp_path, "r", 0, TEXT)
    with pytest.raises(RecipeError, match=r"\(1 there differ in a setting; see their recipe.yaml\)"):
        RunDirectory.find(tmp_path, "r", TEXT + "device: cpu\n")


def test_the_lock_keeps_others_out_until_the_work_is_done(tmp_path):
    directory = RunDirectory.create(tmp_path, "r", 0, TEXT)
    # Two openings of the file are two, in one process as in two (those are in test_resume.py).
    refused = pytest.raises(RunError, match=f"{directory.path}: another process is working on this run")
    with directory.lock(), refused, RunDirectory(directory.path).lock():
        pass
    with RunDirectory(directory.path).lock():
        pass


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    directory = RunDirectory.create(tmp_path, "r", 0, TEXT)
    path = directory.path / "metrics.jsonl"
    directory.cut_metrics(0)  # before the first line
    assert not path.exists()
    first = directory.append_metrics({"stage": "façade", "loss": 0.1 + 0.2})
    assert first == path.stat().st_size
    second = directory.append_metrics({"epoch": 1})
    with open(path, "a") as file:
        file.write('{"epoch": 2, "lo')  # killed while it wrote
    directory.cut_metrics(second)
    assert [json.loads(line) for line in path.read_text().splitlines()][1] == {"epoch": 1}
    directory.cut_metrics(first)
    assert json.loads(path.read_text()) == {"stage": "façade", "loss": 0.1 + 0.2}
    assert directory.append_metrics({"epoch": 1}) == second
    directory.cut_metrics(10**6)  # never lengthened
    assert path.stat().st_size == second
    directory.cut_metrics(0)
    assert path.read_bytes() == b""


def test_json_is_written_at_once_and_read_back(tmp_path):
    directory = RunDirectory.create(tmp_path, "r", 0, TEXT)
    content = {"few": None, "top1": 1 / 3, "names": ["Zürich"]}
    directory.write_json("result.json", content)
    assert directory.read_json("result.json") == content and directory.finished
    assert not list(directory.path.glob("*.tmp"))
    assert directory.stage_file(1, "finetune").name == "stage-1-finetune.safetensors"
