"""Mistakes through the command line: one message that says what, where, whose and what to do, and no traceback.

What can be known before the data is refused before any data is read; the data method of these recipes notices.
"""

import pytest

import ltcore
from ltcore import DataError, Method, RecipeError, hookimpl
from ltcore.discovery import catalogue
from ltcore.errors import no_room


class Mixup(Method):
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch):
        return batch


class Deferred(Method):
    @hookimpl
    def class_distribution(self):
        return None


class Picky(Method):
    requires = frozenset({"paired_batches"})

    @hookimpl
    def augment_features(self, features):
        return features


class Stubborn(Method):
    @hookimpl
    def compute_loss(self, logits, targets):
        return logits.sum(1)

    def check_stage(self, stage):
        raise RecipeError(f"batch_size {stage.batch_size} is odd; use {stage.batch_size + 1}")


class Misspelled(Method):
    @hookimpl
    def compute_los(self, logits, targets):
        return logits


class WrongArgument(Method):
    @hookimpl
    def compute_loss(self, logits, labels):
        return logits


class Fragile(Method):
    def __init__(self, options=None):
        super().__init__(options)
        raise KeyError("scale")


@pytest.fixture
def reads(offer_methods):
    """How often the data method ``watched`` was asked for data."""
    reads = []

    class Watched(Method):
        @hookimpl
        def build_data(self):
            reads.append("read")
            raise DataError("the data was read")

    offer_methods(
        watched=Watched,
        blend=Mixup,
        deferred=Deferred,
        picky=Picky,
        stubborn=Stubborn,
        misspelled=Misspelled,
        wrong_argument=WrongArgument,
        fragile=Fragile,
    )
    return reads


def stages(*changes):
    """The text of ``stages``: a stage for each change of a small one."""
    names = ("first", "second")
    plain = {"epochs": 1, "batch_size": 8, "optimizer": "{name: sgd, lr: 0.05}"}
    whole = [{"name": name, **plain, **change} for name, change in zip(names, changes, strict=False)]
    return "[" + ", ".join("{" + ", ".join(f"{k}: {v}" for k, v in each.items()) + "}" for each in whole) + "]"


def one(**change):
    return {"stages": stages(change)}


def two(**change):
    return {"stages": stages({}, {"batch_size": 16, "trainable": "[classifier]", **change})}


#: What is wrong -> parts of the recipe, the line of the mistake, the message. Data stands on line 1, then the backbone,
#: the stages, and further parts.
REFUSED = {
    "unknown key": ({"calibrte": "[]"}, 4, "calibrte: unknown key; did you mean 'calibrate'?"),
    "unknown option": (
        {**one(methods="[focal]"), "methods": "{focal: {options: {gama: 1}}}"},
        4,
        "methods.focal.options.gama: unknown option; did you mean 'gamma'? (method 'focal', ltcore-focal 0.1.0)",
    ),
    "wrong type": (one(epochs="two"), 3, "stages.first.epochs: should be a whole number, not 'two'"),
    "wrong type of an option": (
        {"backbone": "{use: cifar_resnet, options: {width: wide}}"},
        2,
        "backbone.options.width: should be a whole number, not 'wide' (method 'cifar_resnet', ltcore-cifar-resnet",
    ),
    "no data to use": ({"data": "{options: {}}"}, 1, "data.use: missing"),
    "no backbone": ({"backbone": "{}"}, 2, "backbone.use: missing"),
    "unknown plugin": (
        {**one(methods="[focul]"), "methods": "{focul: {}}"},
        4,
        "method 'focul' is not installed; did you mean 'focal'? 'ltcore plugins' lists what is",
    ),
    "unknown data": (
        {"data": "{use: zebras}"},
        1,
        "method 'zebras' is not installed. 'ltcore plugins' lists what is",
    ),
    "not a data set": (
        {"data": "{use: focal}"},
        1,
        "method 'focal' (ltcore-focal 0.1.0) does not build the data (hook build_data); 'ltcore plugins' lists what",
    ),
    "a model that timm does not have": (
        {"backbone": "{use: timm, options: {model: resnet51}}"},
        2,
        "'timm' (ltcore 0.1.0): backbone.options.model: timm has no model 'resnet51'; did you mean 'resnet51q'?",
    ),
    "two losses": (
        {**one(methods="[focal, again]"), "methods": "{focal: {}, again: {use: focal}}"},
        3,
        "stage 'first': 'focal' and 'again' both compute the loss (hook compute_loss); keep one",
    ),
    "two class distributions": (
        {**one(methods="[deferred]", sampler="class_balanced"), "methods": "{deferred: {}}"},
        3,
        "stage 'first': sampler 'class_balanced' and 'deferred' both set how often each class is drawn (hook "
        "class_distribution); keep one",
    ),
    "a tap that is not there": (
        {**two(methods="[ofa]"), "methods": "{ofa: {options: {tap: layer9}}}"},
        3,
        "stage 'second': 'ofa' (ltcore-ofa 0.1.0) acts at tap 'layer9', which backbone 'cifar_resnet' does not have; "
        "did you mean 'layer3'? it has 'layer1', 'layer2', 'layer3', 'maps', 'pooled'",
    ),
    "no earlier stage": (
        {**one(methods="[ofa]"), "methods": "{ofa: {}}"},
        3,
        "stage 'first': 'ofa' (ltcore-ofa 0.1.0) needs earlier_stage (a stage before this one), and nothing provides",
    ),
    "a need of another plugin": (
        {**one(methods="[picky]"), "methods": "{picky: {}}"},
        3,
        "stage 'first': 'picky' (ltcore-tests 0.0) needs paired_batches, and nothing provides it",
    ),
    "hard labels beside mixup": (
        {**two(methods="[blend, ofa]"), "methods": "{blend: {}, ofa: {}}"},
        3,
        "stage 'second': 'ofa' (ltcore-ofa 0.1.0) needs hard_labels (one label per image), which 'blend' (ltcore-tests "
        "0.0) breaks; keep one, or use two stages",
    ),
    "no stages": ({"stages": "[]"}, 3, "stages: the list of stages is empty; a recipe needs at least one"),
    "trainable matches nothing": (
        one(trainable="[classifier, 'backbone.layer4.*']"),
        3,
        "stage 'first': trainable 'backbone.layer4.*' matches nothing; did you mean 'backbone.layer",
    ),
    "batch size of OFA": (
        {**two(methods="[ofa]", batch_size=60), "methods": "{ofa: {}}"},
        3,
        "stage 'second': 'ofa' (ltcore-ofa 0.1.0) refuses the stage: batch_size 60 is not a multiple of 8 = 2 * (1 + "
        "augmented); use 56 or 64",
    ),
    "a method refuses": (
        {**one(methods="[stubborn]", batch_size=7), "methods": "{stubborn: {}}"},
        3,
        "stage 'first': 'stubborn' (ltcore-tests 0.0) refuses the stage: batch_size 7 is odd; use 8",
    ),
    "nothing to do": (
        {**one(methods="[tau_norm]"), "methods": "{tau_norm: {}}"},
        3,
        "stage 'first': 'tau_norm' (ltcore-tau-norm 0.1.0) does nothing in a stage; if it calibrates, name it in "
        "'calibrate'",
    ),
    "does not calibrate": (
        {"methods": "{focal: {}}", "calibrate": "[focal]"},
        5,
        "'focal' (ltcore-focal 0.1.0) does not calibrate (hook post_calibrate); name it in a stage's methods",
    ),
    "cache of what trains": (
        one(cache="eval"),
        3,
        "stage 'first': cache 'eval' needs a frozen backbone; 'backbone' trains it",
    ),
    "cache beside mixup": (
        {**one(cache="eval", trainable="[classifier]", methods="[blend]"), "methods": "{blend: {}}"},
        3,
        "stage 'first': 'blend' (ltcore-tests 0.0) changes the images, which cache 'eval' skips; use cache: off",
    ),
    "no classification, no loss": (
        one(classification="false"),
        3,
        "stage 'first': without classification it needs a method with auxiliary losses, and has none",
    ),
    "unknown optimizer": (
        one(optimizer="{name: adamv, lr: 0.1}"),
        3,
        "stage 'first': there is no optimizer 'adamv'; did you mean 'adam",
    ),
    "unknown optimizer option": (
        one(optimizer="{name: sgd, lr: 0.1, momentun: 0.9}"),
        3,
        "stage 'first': optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?",
    ),
    "misspelled hook": (
        {**one(methods="[misspelled]"), "methods": "{misspelled: {}}"},
        3,
        "'misspelled' (ltcore-tests 0.0): there is no hook 'compute_los'; did you mean 'compute_loss'?",
    ),
    "argument that the hook does not have": (
        {**one(methods="[wrong_argument]"), "methods": "{wrong_argument: {}}"},
        3,
        "'wrong_argument' (ltcore-tests 0.0): hook compute_loss has no argument 'labels'; it has logits, targets, ",
    ),
    "constructor that raises": (
        {**one(methods="[fragile]"), "methods": "{fragile: {}}"},
        4,
        "method 'fragile' (ltcore-tests 0.0) could not be made: KeyError: 'scale'; tell its author",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_any_data_is_read(cli, write_recipe, reads, what):
    parts, line, message = REFUSED[what]
    path = write_recipe(**{"data": "{use: watched}", **parts})
    cli("run", path).is_one_message(2, f"{path}:{line}: {message}")
    assert not reads


def test_the_watch_works(cli, write_recipe, reads):
    path = write_recipe(data="{use: watched}")
    cli("run", path).is_one_message(2, f"{path}:1: 'watched' (ltcore-tests 0.0): the data was read")
    assert reads


def test_plan_refuses_in_the_same_words(cli, write_recipe, reads):
    path = write_recipe(**REFUSED["two losses"][0])
    assert cli("plan", path) == cli("run", path)


def test_a_plugin_of_ours_is_not_installed(cli, write_recipe, reads, monkeypatch):
    offers = catalogue.offers
    monkeypatch.setattr(catalogue, "offers", lambda: [offer for offer in offers() if offer.name != "ofa"])
    path = write_recipe(data="{use: watched}", methods="{mine: {use: ofa}}", **two(methods="[mine]"))
    cli("run", path).is_one_message(2, f"{path}:4: method 'ofa' is not installed. Try: pip install ltcore-ofa\n")
    assert not reads


def test_a_plugin_that_fails_to_import(cli, write_recipe, reads, fake_plugin):
    fake_plugin("lame", "import einops_of_the_future\n")
    path = write_recipe(data="{use: watched}", methods="{lame: {}}", **one(methods="[lame]"))
    message = "method 'lame' (ltcore-lame 0.2.1) failed to import: No module named 'einops_of_the_future'. Reinstall"
    cli("run", path).is_one_message(2, f"{path}:4: {message} or update ltcore-lame, or remove it")
    assert not reads


def test_two_distributions_offer_one_name(cli, write_recipe, reads, fake_plugin):
    fake_plugin("focal", "", distribution="focal-too")
    path = write_recipe(data="{use: watched}", methods="{focal: {}}", **one(methods="[focal]"))
    message = "method 'focal' is offered by focal-too 0.2.1 and ltcore-focal 0.1.0; uninstall one of them"
    cli("run", path).is_one_message(2, f"{path}:4: {message}")
    assert not reads


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": "extends: bse.yaml\n", "base.yaml": ""}, "a.yaml:1: extends: {d}/bse.yaml: no such file; did you "
         "mean 'base.yaml'?"),
        ({"a.yaml": "seed: 1\nextends: ..\n"}, "a.yaml:2: extends: {d}/..: is a directory"),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": "\n- 1\n"}, "b.yaml:2: a recipe is a mapping"),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": "a: [\n"}, "b.yaml:2: not valid YAML"),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": b"seed: 1\nname: \xff"}, "b.yaml:2: not a text file in UTF-8"),
        ({"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: a.yaml\n"}, "b.yaml:1: extends: the recipes extend each "
         "other in a circle: {d}/a.yaml -> {d}/b.yaml -> {d}/a.yaml"),
    ],
)  # fmt: skip
def test_extends(cli, tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    cli("run", tmp_path / "a.yaml").is_one_message(2, f"{tmp_path}/{message.format(d=tmp_path)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages.frist.epochs=1", "the recipe has no stage 'frist'; did you mean 'first'? (known: 'first')"),
        ("stages.first.epoch=1", "stages.first.epoch: unknown key; did you mean 'epochs'?"),
        ("methods.focal.options.gamma=1", "the recipe has no method 'focal' (known: none)"),
        ("bakbone.use=timm", "a recipe has no key 'bakbone'; did you mean 'backbone'?"),
        ("data.options.noise=loud", "data.options.noise: "),
        ("seed", "has no '='; write PATH=VALUE"),
    ],
)
def test_set(cli, write_recipe, reads, text, message):
    path = write_recipe(**one())
    cli("run", path, "--set", text).is_one_message(2, f"--set {text}: {message}")
    assert not reads


def test_no_cuda(cli, write_recipe, reads, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = write_recipe(data="{use: watched}", device="cuda:1")
    message = "device 'cuda:1': this machine has no CUDA device; use device: auto"
    cli("run", path).is_one_message(2, f"{path}:4: {message}")
    assert not reads


def test_no_run_to_resume(cli, write_recipe, reads, tmp_path):
    path = write_recipe(data="{use: watched}")
    message = f"--resume: no run of this recipe in {tmp_path}/runs/r; start it without --resume"
    cli("run", path, "--out", tmp_path / "runs", "--resume").is_one_message(2, message)
    assert not reads


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "ltcore run: name a RECIPE; only --resume goes without one"),
        (("rn",), "ltcore: argument COMMAND: invalid choice: 'rn' (choose from 'init', 'recipes', 'plan', 'schema', "),
        (("run", "r.yaml", "--sed", "1"), "ltcore run: unrecognized arguments: --sed 1; did you mean '--seed'?; see "),
        (("run", "r.yaml", "--x=1"), "ltcore run: unrecognized arguments: --x=1; see 'ltcore run --help'"),
        (("recipes", "show", "r", "--x"), "ltcore recipes show: unrecognized arguments: --x; see 'ltcore recipes show"),
        (("run", "r.yaml", "--seed", "x"), "ltcore run: argument --seed: invalid int value: 'x'; see "),
    ],
)
def test_the_command_line_itself(cli, words, message):
    cli(*words).is_one_message(2, message)


def test_no_such_recipe(cli, write_recipe):
    path = write_recipe()
    near = path.with_name("q.yml")
    cli("run", near).is_one_message(2, f"{near}: no such file; did you mean 'r.yaml'?")


class Missing(DataError):
    """An error class as a plugin may have it: with a constructor, an attribute and an exit code of its own."""

    exit_code = 5

    def __init__(self, what, remedy):
        super().__init__(f"{what} is missing; {remedy}")
        self.what = what


def test_an_error_gets_context_and_stays_the_same_object():
    error = Missing("the disk", "plug it in")
    with pytest.raises(Missing, match=r"^data: the disk is missing; plug it in \(as before\)$") as caught:
        try:
            raise error
        except DataError as found:
            found.within("data: ", " (as before)")
            raise
    assert caught.value is error and (error.what, error.exit_code) == ("the disk", 5)
    assert str(error.saying("found")) == "found" and error.what == "the disk"


class Unplugged(Method):
    def __init__(self, options=None):
        super().__init__(options)
        raise Missing("the licence", "ask for one")


class NoDisk(Method):
    @hookimpl
    def build_data(self):
        raise Missing("the disk", "plug it in")


def test_an_error_class_of_a_plugin_goes_through_the_plan(cli, write_recipe, offer_methods):
    offer_methods(unplugged=Unplugged)
    path = write_recipe(methods="{unplugged: {}}", calibrate="[unplugged]")
    cli("plan", path).is_one_message(5, f"{path}:", "method 'unplugged'", ": the licence is missing; ask for one")


def test_an_error_class_of_a_plugin_goes_through_the_reading_of_data(cli, write_recipe, offer_methods):
    offer_methods(no_disk=NoDisk)
    path = write_recipe(data="{use: no_disk}")
    message = (f"{path}:", "'no_disk'", ": the disk is missing; plug it in")
    cli("run", path).is_one_message(5, *message)
    cli("rehearse", path).is_one_message(5, *message, "--counts FILE")
    with pytest.raises(Missing) as caught:
        ltcore.run(path)
    assert caught.value.what == "the disk"


def test_debug_shows_the_traceback(cli, write_recipe):
    path = write_recipe(calibrte="[]")
    for words in (("run", path, "--debug"), ("--debug", "run", path)):
        result = cli(*words)
        assert result.code == 2 and "Traceback (most recent call last)" in result.err
        assert result.err.rstrip().endswith(f"{path}:4: calibrte: unknown key; did you mean 'calibrate'?")


def led_to(error, cause=None, context=None):
    """An error as Python links it to the one that it was raised from, or to the one that was being handled."""
    error.__cause__, error.__context__ = cause, context
    return error


def test_a_full_disk_is_known_by_what_libraries_say_and_by_what_has_led_to_it():
    full = OSError(28, "No space left on device")
    assert no_room(full) and no_room(RuntimeError("DataLoader worker is killed by signal: Bus error"))
    assert no_room(led_to(RuntimeError("a worker has ended"), cause=full))
    assert no_room(led_to(ValueError("half a file"), context=led_to(RuntimeError("a worker has ended"), cause=full)))
    assert not no_room(led_to(ValueError("half a file"), cause=OSError(13, "Permission denied")))
    circle = ValueError("one")
    assert not no_room(led_to(circle, cause=led_to(ValueError("two"), context=circle)))


def test_the_middle_of_an_endless_line_is_cut(cli):
    error = RecipeError(f"photos.txt:9: '{'x' * 100_000}' is no label; write a number")
    assert len(str(error)) < 3_000 and str(error).startswith("photos.txt:9: 'xxx")
    assert "x [...] x" in str(error) and str(error).endswith("write a number")
    many = [f"r.yaml:{number}: {'y' * 200}" for number in range(60)]
    assert str(RecipeError(*many)) == "\n".join(many)  # none of these is endless
    shown = cli("plan", "recipes/digits_lt_ce.yaml", "--set", f"{'9' * 100_000}=1")
    assert shown.code == 2 and " [...] " in shown.err and len(shown.err) < 4_000
