"""Where output goes: files whole or not at all, pipes through, and nothing else touched."""

import csv
import fcntl
import io
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.errors import RecipeError, RunError
from ltcore.files import writing
from ltcore.files.output import is_stream, output, refuse_output, write_output
from ltcore.files.run_directory import RunDirectory
from ltcore.files.writing import append, copy_atomically, replacing, temporary_folder, unflushed, write_atomically


def folder(path):
    path.mkdir()


def link_to_a_file(path):
    (path.parent / "target").write_text("mine")
    path.symlink_to("target")


def link_to_nothing(path):
    path.symlink_to("nowhere")


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _state(path):
    """All of a file's state but when it was last read, which looking at a link may change."""
    found = os.lstat(path)
    return tuple(found)[:7], found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (folder, "is a folder and no file; name another file, a pipe or /dev/stdout"),
        (link_to_a_file, "is a link to target and no file; name that, or another file, a pipe or /dev/stdout"),
        (link_to_nothing, "is a link to nowhere"),
        (a_socket, "is a socket"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_file_is_refused_and_left_alone(make, said, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out"
    make(path)
    before = (_state(path), sorted(os.listdir(tmp_path)))
    for refused in (refuse_output, lambda path: write_output(path, "text")):
        with pytest.raises(RecipeError) as caught:
            refused(path)
        assert str(caught.value).startswith(f"--out {path}: {said}")
    # Before any work: these runs are not even there.
    for words in (("report", "-o"), ("compare", "--out")):
        cli(words[0], tmp_path / "none", words[1], path).is_one_message(2, f"{words[1]} {path}: is ")
    assert (_state(path), sorted(os.listdir(tmp_path))) == before
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "mine"


@pytest.mark.parametrize("words", [("predict", "photo.png", "--out"), ("export", "--to", "safetensors", "--out")])
def test_commands_on_a_model_refuse_before_they_load_it(words, digits_run, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("ltcore.runs.saved.rebuild", lambda *args: pytest.fail("the model was built"))
    (tmp_path / "out").symlink_to("/dev/null")
    cli(words[0], digits_run, *words[1:], tmp_path / "out").is_one_message(2, f"--out {tmp_path / 'out'}: is a link to")


def test_in_no_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no folder .*/no; make it"):
        refuse_output(tmp_path / "no" / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"--out .*/file/out: .*put it back"):
        refuse_output(tmp_path / "file" / "out")
    with pytest.raises(RecipeError, match="File name too long; take a shorter name, or name another file"):
        refuse_output(tmp_path / ("x" * 300))


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "out"
    write_output(path, "one é \udc80")
    mask = os.umask(0)
    os.umask(mask)
    assert path.read_bytes() == "one é \\udc80".encode() and stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o600)
    with pytest.raises(ZeroDivisionError), output(path) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == "one é \\udc80".encode() and os.listdir(tmp_path) == ["out"]
    write_output(path, b"two")
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o600
    write_output(tmp_path / ("x" * 250), "a long name")
    assert len(os.listdir(tmp_path)) == 2


def test_a_pipe_and_open_streams_are_written_through(tmp_path, capfd):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_output(pipe, "through")
        assert reader.stdout.read() == b"through"
    assert is_stream(pipe) and stat.S_ISFIFO(os.lstat(pipe).st_mode)
    print("before", end=" ")
    write_output(Path("/dev/stdout"), "to the screen")
    write_output(Path("/dev/stderr"), "aside")
    assert capfd.readouterr() == ("before to the screen", "aside")
    reading, write = os.pipe()
    write_output(Path(f"/dev/fd/{write}"), "by number")
    os.close(write)
    with open(reading) as stream:
        assert stream.read() == "by number"
    with pytest.raises(RunError, match="/dev/fd/1234 cannot be written: Bad file descriptor"):
        write_output(Path("/dev/fd/1234"), "to nobody")


def test_the_commands_write_through(digits_run, tmp_path, cli):
    words = ("report", digits_run, "--no-features", "--no-images", "-o")
    assert cli(*words, tmp_path / "r.html").code == 0
    program = "import sys; from ltcore.cli import main; sys.argv[0] = 'ltcore'; main()"
    ran = subprocess.run([sys.executable, "-c", program, *map(str, words), "/dev/stdout"], capture_output=True)
    assert ran.stdout == (tmp_path / "r.html").read_bytes() and ran.stderr == b""
    ran = subprocess.run(
        [sys.executable, "-c", program, "compare", digits_run, "--format", "csv", "--out", "/dev/fd/1"],
        capture_output=True,
    )
    assert ran.stdout.startswith(b"label,recipe,stage,seeds") and ran.returncode == 0


def test_names_of_temporary_files_are_random_and_no_link_is_followed(tmp_path, monkeypatch):
    names = [writing._name(tmp_path) for _ in range(50)]
    assert len(set(names)) == 50 and all(len(name.name) == 28 for name in names)
    # Even where somebody has guessed the name.
    (tmp_path / "victim").write_text("mine")
    guessed = tmp_path / ".ltcore-guessed.tmp"
    guessed.symlink_to("victim")
    monkeypatch.setattr(writing, "_name", lambda folder: guessed)
    with pytest.raises(RunError, match="File exists"):
        write_atomically(tmp_path / "out", b"theirs")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "out").exists()


def test_what_killed_processes_left_is_removed_and_what_others_are_writing_is_not(tmp_path):
    (tmp_path / ".ltcore-0000.tmp").write_text("left")
    (tmp_path / ".ltcore-0001.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / ".ltcore-0002.tmp").symlink_to("victim")
    os.mkfifo(tmp_path / ".ltcore-0003.tmp")
    with replacing(tmp_path / "one") as first, temporary_folder(tmp_path) as made:
        first.write(b"first")
        (made / "part").write_text("")
        assert made.stat().st_mode & 0o777 == 0o700, "nobody else looks in"
        write_atomically(tmp_path / "two", b"second")
        assert Path(first.name).exists() and (made / "part").exists()
    assert (tmp_path / "one").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == [".ltcore-0002.tmp", "one", "two", "victim"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def swept_first(descriptor, how):
        calls.append(how)
        if len(calls) == 1:
            for path in tmp_path.iterdir():
                path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(writing.fcntl, "flock", swept_first)
    write_atomically(tmp_path / "out", b"content")
    assert (tmp_path / "out").read_bytes() == b"content" and len(calls) == 2


def test_what_nobody_reads_later_is_not_flushed_to_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with unflushed():
        write_atomically(tmp_path / "out", b"thrown away")
    assert (tmp_path / "out").read_bytes() == b"thrown away" and not flushed
    write_atomically(tmp_path / "out", b"kept")
    assert len(flushed) == 1


def test_a_link_inside_a_run_is_not_written_through(tmp_path):
    run = RunDirectory.create(tmp_path, "r", 0, "name: r\n")
    victims = {}
    for name in ("result.json", "metrics.jsonl", "lock", "trace.jsonl"):
        victims[name] = tmp_path / f"victim-{name}"
        victims[name].write_text("mine")
        (run.path / name).symlink_to(victims[name])
    run.write_json("result.json", {})
    copy_atomically(tmp_path / "victim-lock", run.path / "trace.jsonl")
    for write in (
        lambda: append(run.path / "metrics.jsonl", "x"),
        lambda: run.lock().__enter__(),
        lambda: run.cut_metrics(0),
    ):
        with pytest.raises(RunError, match="cannot be written: Too many levels of symbolic links; a link stands there"):
            write()
    assert all(victim.read_text() == "mine" for victim in victims.values())
    assert not (run.path / "result.json").is_symlink(), "replaced by a file"


@pytest.mark.parametrize("place", ["checkpoints", "select", "select/network-0", "select/network-0/checkpoints"])
def test_a_folder_of_a_run_that_is_a_link_is_refused(place, tmp_path):
    run = RunDirectory.create(tmp_path, "r", 0, "name: r\n")
    run.inner("select/network-0")
    with run.lock():
        pass
    path = run.path / place
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(RunError, match=rf"{path} is a link to .*elsewhere, and a run writes nothing outside"),
        run.lock(),
    ):
        pass
    # The whole folder of runs may be one.
    (tmp_path / "runs").symlink_to(tmp_path / "r")
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    with RunDirectory(tmp_path / "runs" / run.path.name).lock():
        pass


def test_cells_of_predictions_are_no_formulas(tmp_path):
    from ltcore.runs.prediction_files import _Json, _Lines, _Table

    classes = [("=cmd|' /C calc'!A0", 0.5), ("a\x1b[31mred\nnext", 0.25), ("-5", 0.125), ("@", 0.1)]
    stream = io.StringIO(newline="")
    _Table(stream, 4, False, False).add("+1+1.png", classes, None)
    row = list(csv.reader(io.StringIO(stream.getvalue())))[1]
    assert row[0] == "'+1+1.png" and row[1::2] == ["'=cmd|' /C calc'!A0", "a\x1b[31mred\nnext", "-5", "@"]
    _Lines(lines := io.StringIO()).add("a\nb\x9b.png", classes, None)
    assert lines.getvalue().splitlines() == [
        "a\\nb\\x9b.png: =cmd|' /C calc'!A0 50.0 %, a\\x1b[31mred\\nnext 25.0 %, -5 12.5 %, @ 10.0 %"
    ]
    _Json(written := io.StringIO(), False).add("a\x9b\u202e", [("é", 1.0)], None)
    assert written.getvalue().isascii() and "\\u009b\\u202e" in written.getvalue()
