"""Faults of the surroundings, injected for real: ``pytest -m faults``. Each is one message with path and way on.

Full and read-only disks are small mounts of their own, and devices are nodes made in a folder of the test; what the
machine does not allow is skipped with the reason.
"""

import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ltcore

pytestmark = pytest.mark.faults

NO_ROOM = "No space left on device; free some space there"


@pytest.fixture
def disk(tmp_path):
    """``disk(kilobytes)`` is the folder of a new disk; its second use with the same name changes the disk."""
    mounted = []

    def mount(kilobytes, name="disk", options=""):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        again = "remount," if path in mounted else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{again}size={kilobytes}k{options}", "tmpfs", path]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        if path not in mounted:
            mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def outputs(digits_run, tmp_path):
    """Command lines without the place that they write to, by name, for each command with an output."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photo.png")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "photos" / label / f"{number}.png")
    return {
        "report.html": ("report", digits_run, "--no-features", "--no-images", "-o"),
        "compare.csv": ("compare", digits_run, "--out"),
        "predict.csv": ("predict", digits_run, tmp_path / "photo.png", "--workers", "1", "--out"),
        "export.safetensors": ("export", digits_run, "--to", "safetensors", "--out"),
        "describe.png": ("data", "describe", "digits_lt", "--png"),
        "init.yaml": ("init", tmp_path / "photos", "--epochs", "1", "--force", "--out"),
    }


def test_a_full_disk_leaves_the_old_output(outputs, disk, cli):
    path = disk(128)
    exported = path / "export.safetensors"
    exported.write_bytes(b"ltcore.json")  # as an earlier export
    for name in outputs.keys() - {"export.safetensors"}:
        (path / name).write_text("old")
    with open(path / "filler", "wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(b"\0" * 2**18)
    before = {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}
    for name, words in outputs.items():
        words = (*words[:1], *(["--force"] if words[0] == "export" else []), *words[1:])
        cli(*words, path / name).is_one_message(
            1, str(path / name), NO_ROOM, f"or choose another place with {words[-1]}"
        )
        assert {name: (path / name).read_bytes() for name in sorted(os.listdir(path))} == before, name
    (path / "filler").unlink()
    assert cli(*outputs["compare.csv"], path / "compare.csv").code == 0
    assert (path / "compare.csv").read_text().startswith("label,")


def test_a_disk_that_is_read_only(outputs, disk, cli, write_recipe):
    path = disk(128)
    for name in outputs:
        if not name.startswith("export"):
            (path / name).write_text("old")
    disk(128, options=",ro")
    for name, words in outputs.items():
        cli(*words, path / name).is_one_message(1, str(path / name), "Read-only file system; make it writable")
    cli("run", write_recipe(), "--out", path / "runs").is_one_message(
        1, f"cannot write the run directory under {path / 'runs'}: Read-only file system; make it writable", "--out"
    )


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFBLK, "a device"), (stat.S_IFCHR, "a device")])
def test_a_device_is_neither_replaced_nor_written(kind, said, outputs, tmp_path, cli):
    for name, words in outputs.items():
        path = tmp_path / f"node-{name}"
        try:
            os.mknod(path, kind | 0o666, os.makedev(1, 3) if kind == stat.S_IFCHR else os.makedev(7, 250))
        except OSError as error:
            pytest.skip(f"no device can be made here: {error.strerror}")
        before = os.lstat(path)
        shown = cli(*words, path)
        if words[0] == "export":
            words = ("export", "--force", *words[1:])
            assert cli(*words, path).code == 2
        shown.is_one_message(2, f"{path}: is {said} and no file; name another file, a pipe or /dev/stdout")
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)


# ---------------------------------------------------------------- runs

LONG = "[{name: joint, epochs: 3, batch_size: 8, optimizer: {name: sgd, lr: 0.05}}]"


def figures(folder):
    (path,) = folder.glob("r/*/result.json")
    return json.loads(path.read_text())["after_calibration"]


@pytest.fixture
def whole(write_recipe, tmp_path):
    """The figures of the run that nothing disturbs."""
    ltcore.run(write_recipe(stages=LONG), out=tmp_path / "whole")
    return figures(tmp_path / "whole")


def test_a_run_on_a_disk_that_fills_goes_on_when_there_is_room(whole, write_recipe, disk, cli, look_on):
    path = disk(600)
    recipe = write_recipe(stages=LONG, checkpoint_seconds="0")

    def fill(run, loop):
        if loop.position.epoch == 1 and not (path / "filler").exists():
            with open(path / "filler", "wb", buffering=0) as file:
                while True:
                    try:
                        file.write(b"\0" * 4096)
                    except OSError:
                        return

    look_on(step_ended=fill)
    shown = cli("run", recipe, "--out", path)
    shown.is_one_message(1, str(path), f"cannot be written: {NO_ROOM}, then go on with --resume")
    assert not list(path.glob("**/.ltcore-*")) and not list(path.glob("r/*/result.json"))
    (path / "filler").unlink()
    look_on()
    assert cli("run", recipe, "--out", path, "--resume").code == 0
    assert figures(path) == whole


@pytest.mark.parametrize("what", ["checkpoints", "."])
@pytest.mark.parametrize("how", ["renamed", "removed", "a link"])
def test_a_directory_that_goes_while_a_run_works_there(what, how, whole, write_recipe, tmp_path, cli, look_on):
    out = tmp_path / "out"
    recipe = write_recipe(stages=LONG, checkpoint_seconds="0")
    away = tmp_path / "away"
    gone = []

    def go(run, loop):
        if loop.position.epoch == 1 and not gone:
            gone.append(run.directory.path / what)
            if how == "removed":
                shutil.rmtree(gone[0])
            else:
                gone[0].resolve().rename(away)
                if how == "a link":
                    gone[0].symlink_to(tmp_path / "nowhere")

    look_on(step_ended=go)
    shown = cli("run", recipe, "--out", out)
    shown.is_one_message(1, str(out), "cannot be written: No such file or directory; it, or the folder", "put it back")
    look_on()
    if how == "renamed":
        away.rename(gone[0])
        assert cli("run", recipe, "--out", out, "--resume").code == 0
        assert figures(out) == whole


def test_a_killed_process_leaves_the_old_file_and_nothing_that_stays(tmp_path):
    import signal

    from ltcore.files.writing import replacing, write_atomically

    path = tmp_path / "out"
    path.write_text("old")
    pid = os.fork()
    if pid == 0:
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    write_atomically(tmp_path / "another", b"new")
    assert sorted(os.listdir(tmp_path)) == ["another", "out"]


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_text_is_utf8_whatever_the_locale(locale, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    result = tmp_path / "run" / "result.json"
    found = json.loads(result.read_text(encoding="utf-8"))
    found["class_names"][0] = "zéro 漢"
    result.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    recipe = tmp_path / "run" / "recipe.yaml"
    lines = recipe.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("description")]
    recipe.write_text("\n".join(["description: é 漢", *lines]) + "\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)

    def run(*words):
        program = "from ltcore.cli import main; main()"
        command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:ltcore", "-c", program]
        ran = subprocess.run([*command, *map(str, words)], capture_output=True, env=environment, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr.decode(errors="replace")
        return ran.stdout.decode("utf-8")

    assert json.loads(run("compare", "run", "--format", "json"))["groups"][0]["runs"] == ["run"]
    run("report", "run", "-o", "r.html", "--no-features", "--no-images")
    assert "zéro 漢" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "é 漢" in run("plan", recipe)


@pytest.mark.parametrize("what", ["recipe.yaml", "result.json", "metrics.jsonl", "predictions.npz", "environment.json"])
def test_flipped_bytes_of_a_run_are_one_message(what, digits_run, tmp_path, cli):
    """Bits of a file turned at places of a seed: the report is drawn from values that pass, or says what is damaged."""
    shutil.copytree(digits_run, tmp_path / "copy")
    path = tmp_path / "copy" / what
    whole = path.read_bytes()
    random = np.random.default_rng(15)
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        for place in random.integers(0, len(content), 3):
            content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        shown = cli("report", tmp_path / "copy", "-o", tmp_path / "r.html", "--no-features", "--no-images")
        assert "report it" not in shown.err and "Traceback" not in shown.err, shown.err
        if shown.code:
            refused += 1
            assert len(shown.err.splitlines()) == 1, shown.err
    # A recipe and the surroundings are only shown; a digit of a loss that became another cannot be noticed here.
    assert refused > {"result.json": 20, "metrics.jsonl": 5, "predictions.npz": 35}.get(what, -1)


def test_a_sweep_on_a_disk_that_fills_names_its_runs_and_goes_on_when_there_is_room(write_recipe, disk, cli):
    from ltcore.sweeps.folder import folders

    recipe = write_recipe(stages=[{"name": "one", "epochs": 1, "batch_size": 8, "optimizer": {"lr": 0.1}}])
    small = disk(64)
    words = ["sweep", recipe, "--grid", "stages.one.epochs=1,2", "--out", small / "s", "--threads", "1"]
    done = cli(*map(str, words))
    assert done.code != 0 and "cannot be written" in done.err and "No space left" in done.err, done.err
    assert "Traceback" not in done.err
    disk(30_000)  # the same disk, grown
    done = cli(*map(str, words))
    assert (done.code, done.err) == (0, "")
    assert [bool(job.finished) for job in folders(small / "s")] == [True, True]
