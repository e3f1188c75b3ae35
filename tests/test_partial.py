"""A killed ``ltcore predict --out`` goes on where it stopped, and ends with the same file to the byte."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import ltcore
from ltcore.errors import RecipeError, RunError
from ltcore.files.partial import PartialFile
from ltcore.runs import prediction_files
from ltcore.runs.prediction_files import predict_into

IMAGES, BATCH = 23, 4

#: Kills a child of its own by SIGKILL after each of some batches.
PROGRAM = """
import os, signal, sys
import torch
import ltcore
from ltcore.runs import prediction_files
from ltcore.runs.predicting import predict_files

torch.set_num_threads(1)
run, photos, out, as_json, numbers = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "json", sys.argv[5:]
saved = ltcore.load(run)
saved.model
prediction_files.SECONDS_BETWEEN_NOTES = 0

def dying(number):
    def files(*arguments):
        for count, found in enumerate(predict_files(*arguments)):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            yield found
    return files

for number in map(int, numbers):
    if not (child := os.fork()):
        prediction_files.predict_files = dying(number)
        prediction_files.predict_into(saved, [photos], 3, type(saved.path)(out + str(number)), as_json, 4, 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def digits(digits_run):
    return ltcore.load(digits_run)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images, of which the second and the last cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        Image.effect_noise((9 + number % 3, 12), 60).save(folder / f"{number:02}.png")
    for number in (1, IMAGES - 1):
        (folder / f"{number:02}.png").write_text("no image")
    return folder


def predict(run, photos, out, as_json=False, **more):
    """All images are predicted; two are told to be broken."""
    with pytest.raises(RunError, match="2 of 23 files could not be decoded"):
        predict_into(run, [photos], 3, out, as_json, BATCH, 0, **more)
    return out.read_bytes()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_killed_one_ends_with_the_same_file(digits, photos, tmp_path, kind, capsys):
    whole = predict(digits, photos, tmp_path / "whole", kind == "json")
    assert left(tmp_path) == ["whole"]
    numbers = [0, 1, 3, 5]
    words = [digits.path, photos, tmp_path / "p", kind, *numbers]
    subprocess.run([sys.executable, "-c", PROGRAM, *map(str, words)], check=True, capture_output=True)
    for number in numbers:
        out = tmp_path / f"p{number}"
        assert not out.exists()  # nothing half-written has the name
        names = [f"p{number}.unfinished", f"p{number}.unfinished.json"][: 1 + bool(number)]
        assert [name for name in left(tmp_path) if name.startswith(out.name)] == names
        capsys.readouterr()
        assert predict(digits, photos, out, kind == "json", resume=True) == whole
        said = capsys.readouterr().err
        assert (f"going on behind {number * BATCH} of 23 files" in said) == (number > 0)
        # Only what was not done is looked at: the broken second image only where it was.
        assert ("01.png" in said) == (number == 0) and "22.png" in said
    assert left(tmp_path) == [*(f"p{number}" for number in numbers), "whole"]
    if kind == "json":
        assert len(json.loads(whole)) == IMAGES


class Stop(BaseException):
    """Ends a prediction as Ctrl-C does."""


@pytest.fixture
def stopped(digits, photos, tmp_path, monkeypatch):
    """An output of which three batches were written, and two noted."""
    real, batches = prediction_files.predict_files, []

    def stopping(*arguments):
        for found in real(*arguments):
            batches.append(found)
            if len(batches) == 3:
                monkeypatch.setattr(prediction_files, "SECONDS_BETWEEN_NOTES", 1000)
            if len(batches) == 4:
                raise Stop
            yield found

    out = tmp_path / "p.csv"
    with monkeypatch.context() as patch:
        patch.setattr(prediction_files, "SECONDS_BETWEEN_NOTES", 0)
        patch.setattr(prediction_files, "predict_files", stopping)
        with pytest.raises(Stop):
            predict_into(digits, [photos], 3, out, False, BATCH, 0)
    return out


def test_what_was_written_after_the_last_note_is_written_again(digits, photos, stopped, tmp_path):
    notes = json.loads((tmp_path / "p.csv.unfinished.json").read_text())
    assert notes["noted"] == {"done": 2 * BATCH, "unread": 1}
    assert notes["size"] < (tmp_path / "p.csv.unfinished").stat().st_size
    whole = predict(digits, photos, tmp_path / "whole.csv")
    assert predict(digits, photos, stopped, resume=True) == whole


def test_without_resume_it_begins_anew(digits, photos, stopped, tmp_path, capsys):
    predict(digits, photos, stopped)
    assert "going on" not in capsys.readouterr().err and left(tmp_path) == ["p.csv"]


def test_other_images_or_options_are_refused(digits, photos, stopped, tmp_path):
    with pytest.raises(RecipeError, match="begun with another list of images; give the same, or begin anew"):
        predict_into(digits, [photos / "00.png"], 3, stopped, False, BATCH, 0, True)
    with pytest.raises(RecipeError, match=r"another number of classes \(--top\), another batch size"):
        predict_into(digits, [photos], 2, stopped, False, 5, 0, True)
    (tmp_path / "p.csv.unfinished.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged; begin anew"):
        predict_into(digits, [photos], 3, stopped, False, BATCH, 0, True)


def test_only_a_file_can_be_gone_on_with(cli, digits, photos):
    cli("predict", digits.path, photos, "--resume").is_one_message(2, "--resume goes on with a file", "--out")


def test_an_early_error_leaves_nothing_and_what_was_there(tmp_path):
    (tmp_path / "f").write_text("as it was")
    with pytest.raises(Stop), PartialFile(tmp_path / "f", {}, False) as part:
        part.file.write(b"half")
        raise Stop
    assert left(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "as it was"


def test_two_at_once_are_refused(tmp_path):
    with PartialFile(tmp_path / "f", {}, False) as part:
        part.note(done=1)
        with pytest.raises(RunError, match="another process is writing it"), PartialFile(tmp_path / "f", {}, True):
            pass
        part.file.write(b"all")
        part.finish()
    assert (tmp_path / "f").read_bytes() == b"all" and left(tmp_path) == ["f"]


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").write_text("not ours")
    os.symlink(tmp_path / "elsewhere", tmp_path / "f.unfinished")
    with pytest.raises(RunError, match=r"f\.unfinished cannot be written"), PartialFile(tmp_path / "f", {}, False):
        pass
    assert (tmp_path / "elsewhere").read_text() == "not ours"
