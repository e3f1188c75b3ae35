"""A run goes on, and stages are taken over, only on the data and in the environment that they began with."""

import json

import pytest
from PIL import Image

import ltcore
from ltcore.errors import DataError
from ltcore.training.observers import Checkpointer


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


@pytest.fixture
def photos(tmp_path):
    """A folder of small photographs: two classes, five images to train on and three to test on in each."""
    root = tmp_path / "photos"
    for split, count in (("train", 5), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (40 * number, 90 + 100 * label, 30)).save(path)
    return root


@pytest.fixture
def recipe(photos, write_recipe):
    data = f"{{use: image_folder, workers: 0, options: {{root: {photos}}}, transform: {{name: none, image_size: 8}}}}"
    stages = "[{name: one, epochs: 3, batch_size: 4, optimizer: {name: sgd, lr: 0.05}}]"
    return write_recipe(data=data, stages=stages, checkpoint_seconds=0)


@pytest.fixture
def killed(cli, recipe, tmp_path, monkeypatch):
    """A run that was killed after its fourth step; returns its directory."""
    real, saved = Checkpointer.save, []

    def save(*arguments):
        real(*arguments)
        saved.append(1)
        if len(saved) == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", save)
        with pytest.raises(Killed):
            cli("run", recipe, "--out", tmp_path / "out")
    (directory,) = (tmp_path / "out" / "r").iterdir()
    return directory


@pytest.fixture
def resume(cli, recipe, killed, tmp_path):
    """``resume(*words)``: goes on with the killed run."""
    return lambda *words: cli("run", recipe, "--out", tmp_path / "out", "--resume", *words)


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def test_what_is_as_it_was_goes_on_and_nothing_is_said(resume, killed):
    kept = {name: (killed / name).read_bytes() for name in ("data.npz", "environment.json", "recipe.yaml")}
    ended = resume()
    assert ended.code == 0 and "changed" not in ended.out + ended.err
    assert {name: (killed / name).read_bytes() for name in kept} == kept
    result = result_of(killed)
    assert "data_changed" not in result and "environments" not in result
    assert {name: part["images"] for name, part in result["data_fingerprint"].items() if name != "classes"} == {
        "train": 10,
        "test": 6,
    }
    (entry,) = json.loads(kept["environment.json"])
    assert entry["code"] == result["code"] and entry["device_name"] == result["device_name"]


def add(photos):
    Image.new("RGB", (8, 8)).save(photos / "train" / "dog" / "new.png")


def remove(photos):
    (photos / "test" / "cat" / "1.png").unlink()


def move(photos):
    (photos / "train" / "cat" / "2.png").rename(photos / "train" / "dog" / "7.png")


def write_over(photos):
    Image.effect_noise((8, 8), 90).convert("RGB").save(photos / "test" / "dog" / "0.png")


def rename(photos):
    for split in ("train", "test"):
        (photos / split / "dog").rename(photos / split / "wolf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add, "of the train images 1 is new (train/dog/new.png)"),
        (remove, "of the test images 1 is gone (test/cat/1.png)"),
        (move, "of the train images 1 is new (train/dog/7.png), 1 is gone (train/cat/2.png)"),
        (write_over, "of the test images 1 has another size (test/dog/0.png had "),
        (rename, "1 class has another name (1 was 'dog' and is 'wolf'); of the train images 5 are new (train/wolf/0"),
    ],
)
def test_data_that_changed_is_refused_by_name_unless_it_is_meant(change, said, photos, resume, killed):
    change(photos)
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    advice = "with --data-changed it goes on, and its result says so"
    resume().is_one_message(2, f"--resume: {killed} cannot go on with the data it was begun on: ", said, advice)
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before
    ended = resume("--data-changed")
    assert ended.code == 0 and "warning: since the run was begun, its data has changed: " in ended.out
    result = result_of(killed)
    assert said.split("; ")[0] in "; ".join(result["data_changed"])
    first, second = json.loads((killed / "environment.json").read_text())
    assert "data_changed" not in first and second["data_changed"] == result["data_changed"]
    assert result["environments"] == [first, second]


def test_what_was_allowed_once_is_the_run_s_data_from_then_on(photos, resume, killed, monkeypatch):
    add(photos)

    def save(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", save)
        with pytest.raises(Killed):
            resume("--data-changed")
    assert resume().code == 0
    assert len(result_of(killed)["data_changed"]) == 1


def changed_environment(monkeypatch, **changes):
    from ltcore.training import unchanged

    real = unchanged.environment

    def environment(*arguments):
        found = real(*arguments)
        return found | {k: found[k] | v if isinstance(v, dict) else v for k, v in changes.items()}

    monkeypatch.setattr(unchanged, "environment", environment)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 77}, "number of threads was 1 and is 77 (OMP_NUM_THREADS sets it)"),
        ({"versions": {"torch": "9.9"}}, "torch was "),
        ({"code": {"ltcore-cifar-resnet": "0" * 16}}, "the code of ltcore-cifar-resnet has changed"),
        ({"code": {"ltcore": "0" * 16}}, "the code of ltcore has changed"),
    ],
)
def test_an_environment_that_changes_figures_is_refused_unless_it_is_meant(changes, said, resume, killed, monkeypatch):
    entries = json.loads((killed / "environment.json").read_text())
    entries[0]["threads"] = 1
    (killed / "environment.json").write_text(json.dumps(entries))
    changed_environment(monkeypatch, **({"threads": 1} | changes))
    advice = "with --environment-changed it goes on, and its result says so"
    resume().is_one_message(2, f"--resume: {killed} was trained up to here in another environment", said, advice)
    assert len(json.loads((killed / "environment.json").read_text())) == 1
    ended = resume("--environment-changed")
    assert ended.code == 0 and f"warning: since the run was begun, its environment has changed: {said}" in ended.out
    result, entries = result_of(killed), json.loads((killed / "environment.json").read_text())
    assert result["environments"] == entries and len(entries) == 2 and "data_changed" not in result


def test_a_change_that_changes_no_figure_is_said_and_recorded(resume, killed, monkeypatch):
    changed_environment(monkeypatch, platform="Another-OS", versions={"pydantic": "99"})
    ended = resume()
    assert ended.code == 0 and "its environment has changed: pydantic was " in ended.out
    assert "platform was " in ended.out and len(json.loads((killed / "environment.json").read_text())) == 2


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        ("{", "copy it again"),
        ("[" * 2000, "copy it again"),
        ("[1]", "copy it again"),
        ('[{"python": "3", "versions": []}]', "copy it again"),
        *((text, "Begin the run anew") for text in ("{}", "[]", '{"python": "3", "versions": {}}')),
    ],
)
def test_an_environment_that_cannot_be_read_is_one_message(damage, advice, resume, killed):
    (killed / "environment.json").write_text(damage)
    resume("--environment-changed").is_one_message(1, f"{killed}/environment.json", advice)


def test_a_fingerprint_that_is_missing_or_damaged_is_one_message(resume, killed):
    (killed / "data.npz").write_bytes(b"PK")
    resume().is_one_message(2, f"{killed}/data.npz is damaged", "--data-changed")
    (killed / "data.npz").unlink()
    resume().is_one_message(2, f"--resume: {killed} ", "keeps no fingerprint of its data (data.npz)", "--data-changed")
    assert resume("--data-changed").code == 0


def test_an_image_that_broke_is_skipped_by_the_run_that_it_ended(cli, recipe, photos, tmp_path, look_on):
    broken = photos / "test" / "dog" / "1.png"
    words = ("run", recipe, "--out", tmp_path / "out")

    # A broken image is found before a run begins, so this one breaks when it has begun, and keeps its size.
    look_on(stage_started=lambda run, loop: broken.write_bytes(bytes(broken.stat().st_size)))
    cli(*words).is_one_message(2, "test/dog/1.png")
    (directory,) = (tmp_path / "out" / "r").iterdir()
    began = (directory / "recipe.yaml").stat().st_mtime_ns
    ended = cli(*words, "--resume", "--set", "data.broken=skip", "--set", "checkpoint_seconds=1000")
    assert ended.code == 0 and "recipe.yaml is brought up to date" in ended.out and "left out: " in ended.out
    assert "broken: skip" in (directory / "recipe.yaml").read_text()
    assert (directory / "recipe.yaml").stat().st_mtime_ns == began
    assert "data_changed" not in result_of(directory)
    cli(*words, "--resume", "--set", "data.holdout=1").is_one_message(2, "no run of this recipe")


def test_stages_are_taken_over_on_the_same_data_only(cli, recipe, photos, tmp_path, write_recipe):
    assert cli("run", recipe, "--out", tmp_path / "first").code == 0
    (first,) = (tmp_path / "first" / "r").iterdir()
    words = ("run", recipe, "--out", tmp_path / "second", "--from", first)
    ended = cli(*words)
    assert ended.code == 0 and "warning" not in ended.out
    remove(photos)
    said = "of the test images 1 is gone (test/cat/1.png)"
    cli(*words[:3], tmp_path / "third", *words[4:]).is_one_message(2, f"--from {first}: ", said, "--data-changed")
    assert not (tmp_path / "third").exists()
    ended = cli(*words[:3], tmp_path / "third", *words[4:], "--data-changed")
    (third,) = (tmp_path / "third" / "r").iterdir()
    assert ended.code == 0 and said in ended.out
    assert result_of(third)["reused"] == {"run": str(first), "stages": 1, "data_changed": [said]}


def test_a_saved_run_has_its_own_data_only(recipe, photos, tmp_path):
    saved = ltcore.run(recipe, out=tmp_path / "out")
    assert len(saved.features("test")) == 6
    remove(photos)
    again = ltcore.load(saved.path)
    for look in (again.read_data, lambda: again.features("train")):
        with pytest.raises(DataError, match=r"not what it was trained and tested on: of the test images 1 is gone"):
            look()
    assert len(again.read_data(data_changed=True).test) == 5


def test_a_selection_goes_on_on_the_same_data_only(cli, recipe, photos, tmp_path, monkeypatch):
    select = "select={holdout: 1, options: {stages.one.optimizer.lr: [0.05, 0.1]}}"
    words = ("run", recipe, "--out", tmp_path / "out", "--set", select)
    real = Checkpointer.save

    def save(*arguments):
        real(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", save)
        with pytest.raises(Killed):
            cli(*words)
    (directory,) = (tmp_path / "out" / "r").iterdir()
    add(photos)
    cli(*words, "--resume").is_one_message(
        2, f"--resume: {directory} cannot go on with the data it was begun on: ", "train/dog/new.png"
    )
    (photos / "train" / "dog" / "new.png").unlink()
    assert cli(*words, "--resume").code == 0


def test_nothing_may_differ_that_nobody_has_allowed(recipe, killed, photos, tmp_path):
    add(photos)
    with pytest.raises(DataError, match="of the train images 1 is new"):
        ltcore.run(recipe, out=tmp_path / "out", resume=True)
