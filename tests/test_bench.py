"""``ltcore bench``: what it measures of a tiny recipe and prints, and a program beside that answers or does not."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from ltcore.bench import bench as command
from ltcore.bench import steps, turns
from ltcore.bench.beside import Beside
from ltcore.bench.memory import measure as weigh
from ltcore.bench.subject import cifar_sized, subject
from ltcore.bench.text import render
from ltcore.errors import RunError
from ltcore.plan.acceleration import Choice
from ltcore.recipe.loading import load_recipe, recipe_from
from ltcore.training import acceleration

ROOT = Path(__file__).parents[1]
STUB = """
import json, sys
parts = {"input": {"images_per_second": 2.0}}
for name in ("run", "classifier"):
    parts[name] = {"step_seconds": 3.0, "evaluation_images_per_second": 5.0, "epoch_seconds": 70.0}
print(json.dumps(sys.argv), file=open("told.json", "w"))
for line in sys.stdin:
    print(json.dumps({"part": line.strip(), **parts[line.strip()]}), flush=True)
"""
CACHED = [
    {"name": "first", "epochs": 4, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}},
    {
        **{"name": "second", "epochs": 5, "batch_size": 8, "classifier": "rebuild", "trainable": ["classifier"]},
        **{"cache": "eval", "optimizer": {"name": "sgd", "lr": 0.01}},
    },
]
POSITIVE = {"type": "number", "exclusiveMinimum": 0}


def numbers(*names, **others):
    """A schema of an object with numbers above 0."""
    return {
        "type": "object",
        "required": [*names, *others],
        "properties": {**dict.fromkeys(names, POSITIVE), **others},
    }


STAGE = numbers(
    *("epochs", "steps_per_epoch", "batch_size", "step_seconds", "images_per_second", "epoch_seconds"),
    *("stage_seconds", "turns", "steps_a_turn"),
    name={"type": "string"},
    methods={"type": "array", "items": {"type": "string"}},
)
TIMED = numbers("seconds", "cpu_seconds")
SCHEMA = numbers(
    *("threads", "cores", "seconds"),
    recipe={"type": "string"},
    device={"type": "string"},
    parts=numbers(
        **{
            "input": numbers("images_per_second", "batch_size", "turns"),
            "step": STAGE,
            "hooks": numbers("microseconds", "pluggy_microseconds", "turns"),
            "stages": {"type": "array", "items": STAGE, "minItems": 1},
            "start-up": numbers(python=TIMED, help=TIMED, import_torch=TIMED, plan=TIMED),
            "memory": numbers("peak", "imports", "images", "model_and_optimizer", "activations", "peak_while_reading"),
        }
    ),
)


@pytest.fixture
def recipe(write_recipe, tmp_path, monkeypatch):
    """A tiny recipe of two stages, the second of which is cached."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(stages=CACHED)


@pytest.fixture
def stub(tmp_path):
    """A program that prints known figures, and what it is to do for that."""

    def write(text=STUB):
        (tmp_path / "stub.py").write_text(text)
        return tmp_path / "stub.py"

    return write


# -- the command -------------------------------------------------------------------------------------------------------


def test_beside_a_program_of_known_figures(cli, recipe, stub, tmp_path):
    words = ("bench", recipe, "--only", "input", "stages", "step", "hooks", "--seconds", "0.2", "--compare", stub())
    result = cli(*words, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    parts = found["parts"]
    assert list(parts) == ["input", "step", "stages", "hooks"]
    for name, part in parts.items():
        jsonschema.validate(part, SCHEMA["properties"]["parts"]["properties"][name])
    assert parts["input"]["reference"] == {"images_per_second": 2.0}
    assert parts["input"]["ratio"] == pytest.approx(parts["input"]["images_per_second"] / 2, rel=0.5)
    first, second = parts["stages"]
    assert parts["step"] == first and (first["name"], second["name"]) == ("first", "second")
    assert first["reference"] == {"step_seconds": 3.0, "epoch_seconds": 70.0, "stage_seconds": 4 * 70.0}
    assert first["ratio"] == pytest.approx(280 / first["stage_seconds"], rel=0.5)
    assert 0.2 < first["by_hand"]["tax"] < 5 and "cache" not in first
    assert second["cache"]["kind"] == "eval" and second["cache"]["fill_seconds"] > 0 and "by_hand" not in second
    assert second["cache"]["without"]["step_seconds"] > second["step_seconds"]
    told = dict(word.removeprefix("--").split("=", 1) for word in json.loads((tmp_path / "told.json").read_text())[2:])
    assert (told["images"], told["classes"], told["batch"], told["size"]) == ("52", "4", "8", "8")
    text = render(found)
    assert str(tmp_path / "stub.py") in text and "4.7 min" in text  # 280 s
    assert {line.split(":")[0] for line in text.splitlines() if not line.startswith(" ") and ":" in line} >= {
        "input",
        "step",
        "hooks",
        "stages",
    }


def test_without_methods_or_a_program(recipe):
    found = command.bench(recipe, ["stages.first.epochs=1"], ["step"], 0.1)
    assert list(found["parts"]) == ["step"] and "reference" not in found["parts"]["step"]
    text = render(found)
    assert "the trainer beside a loop by hand" in text and "reference" not in text


@pytest.mark.parametrize("whole", [True, False])
def test_an_accelerated_step_takes_turns_with_an_eager_one(recipe, monkeypatch, whole):
    used = []

    def make(piece, rows):
        def slower(rows):
            used.append(len(rows))
            return piece(piece(rows)[:, :1, None, None] * 0 + rows)  # twice, to the same values

        return slower

    monkeypatch.setattr(acceleration, "without_compiler", lambda: "")
    monkeypatch.setitem(acceleration.MAKERS, "compile", make)
    sets = [] if whole else ["stages.first.epochs=1"]

    def chosen(plan, index, device):
        return Choice("auto", "off" if index else "compile")

    for where in ("acceleration", "run"):
        monkeypatch.setattr(f"ltcore.training.{where}.chosen", chosen)
    found = command.bench(recipe, sets, ["step", "stages"] if whole else ["step"], 0.2)
    part = found["parts"]["step"]["acceleration"]
    assert (part["asked"], part["chosen"]) == ("auto", "off"), "statistics are learned from twice: it differs"
    assert used == [8] and 0.2 < part["gain"] < 5 and part["eager_step_seconds"] > 0
    assert "  eager after all" in render(found)
    monkeypatch.setitem(acceleration.MAKERS, "compile", lambda piece, rows: piece)
    found = command.bench(recipe, sets, ["step"], 0.2)
    assert found["parts"]["step"]["acceleration"]["chosen"] == "compile"
    assert "  compile, beside eager steps" in render(found)


def test_methods_are_said_to_be_in_the_step(write_recipe):
    stage = {**CACHED[0], "methods": ["focal"]}
    found = command.bench(write_recipe(methods={"focal": {}}, stages=[stage]), [], ["step"], 0.1)
    assert found["parts"]["step"]["methods"] == ["focal"] and "with methods, beside a plain loop" in render(found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_loop_computes_in_the_stages_precision(write_recipe, monkeypatch, precision):
    seen, real = set(), steps.cross_entropy
    monkeypatch.setattr(steps, "cross_entropy", lambda logits, labels: seen.add(logits.dtype) or real(logits, labels))
    command.bench(write_recipe(stages=[{**CACHED[0], "precision": precision}]), [], ["step"], 0.1)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.slow
def test_all_parts(cli, recipe):
    result = cli("bench", recipe, "--seconds", "0.2", "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    jsonschema.validate(found, SCHEMA)
    startup, memory = found["parts"]["start-up"], found["parts"]["memory"]
    assert startup["python"]["cpu_seconds"] < startup["help"]["cpu_seconds"] < startup["plan"]["cpu_seconds"]
    assert memory["caches"] == 52 * 16 * 4  # [1, N, D] float32
    parts = ("imports", "images", "model_and_optimizer", "activations", "caches", "rest")
    assert sum(memory[name] for name in parts) == memory["peak"] and memory["peak_while_reading"] <= memory["peak"]
    assert 0 < memory["images"] < 2e6 and 0 < memory["activations"] < 2e7
    assert "ltcore --help" in render(found) and "the peak of a run" in render(found)


def test_without_a_recipe_it_is_cifars_size():
    loaded = recipe_from(cifar_sized(), "bench")
    counts = loaded.recipe.data.options["class_counts"]
    assert (sum(counts), len(counts), counts[0], counts[-1]) == (10_847, 100, 500, 5)
    published = load_recipe(ROOT / "recipes" / "cifar100_lt_crt.yaml").recipe.stages
    assert [stage.optimizer for stage in loaded.recipe.stages] == [stage.optimizer for stage in published]
    with subject(None, ["data.options.image_size=4"]) as what:
        assert what.loaded.recipe.data.options["image_size"] == 4 and what.data.test is not None
        assert (len(what.data.train), len(what.data.test), what.workers) == (10_847, 10_000, 0)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_an_unknown_part(cli, recipe):
    result = cli("bench", recipe, "--only", "inputs")
    assert result.code == 2
    assert "--only inputs: no such part; did you mean 'input'?" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "ended with exit code 3 and gave no figures for 'input'"),
        ("input(); print('fast')", "printed 'fast' in place of a line of JSON with images_per_second"),
        ("input(); print('[1]')", "in place of a line of JSON"),
        ("input(); print('{\"images_per_second\": 0}')", "figures are not all above 0"),
        ('input(); print(\'{"images_per_second": "many"}\')', "in place of a line of JSON"),
        ('input(); print(\'{"part": "input"}\')', "in place of a line of JSON"),
    ],
)
def test_a_program_that_gives_no_figures(cli, recipe, stub, program, said):
    result = cli("bench", recipe, "--only", "input", "--seconds", "0.1", "--compare", stub(program))
    assert result.code == 2 and said in result.err and "--compare" in result.err
    assert result.err.count("\n") == 1


def test_a_program_that_cannot_be_started(cli, recipe, tmp_path):
    result = cli("bench", recipe, "--only", "input", "--compare", tmp_path / "none.py")
    assert result.code == 2 and "there is no such file" in result.err
    (tmp_path / "text").write_text("no program")
    result = cli("bench", recipe, "--only", "input", "--compare", tmp_path / "text")
    assert result.code == 2 and "it cannot be started" in result.err


def test_a_program_is_ended_with_an_error(stub):
    program = stub("import time\ninput()\ntime.sleep(600)")
    with pytest.raises(ValueError, match="something"), Beside(program, []) as beside:
        raise ValueError("something else")
    assert beside._process.returncode is not None


def test_a_measured_process_that_dies(recipe, monkeypatch):
    monkeypatch.setattr("ltcore.bench.memory._CHILD", "raise SystemExit('killed: 9')")
    with subject(recipe, []) as what, pytest.raises(RunError, match=r"ended with exit code 1: killed: 9"):
        weigh(what)


def test_seconds_are_a_number(cli):
    assert cli("bench", "--seconds", "0").code == 2 and cli("bench", "--seconds", "nan").code == 2


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_turns_are_taken_one_after_the_other():
    now, order = [0.0], []

    def way(name, takes):
        def measured():
            order.append(name)
            now[0] += takes
            return takes

        return measured

    found = turns.in_turns({"a": way("a", 1.0), "b": way("b", 2.0)}, 8.0, least=2, clock=lambda: now[0])
    assert order == ["a", "b"] * 3 and found == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert len(turns.in_turns({"a": way("a", 9.0)}, 8.0, least=2, clock=lambda: now[0])["a"]) == 2
    assert turns.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_decoded_images_are_held(recipe):
    with subject(recipe, []) as what:
        held = steps._Held(what.train_loader(), torch.device("cpu"))
        (batch,) = held.train_batches([torch.arange(100)], None)
    assert batch.shape == (100, 3, 8, 8) and torch.equal(batch[0], batch[len(held)])


@pytest.mark.slow
def test_the_reference_pipeline_answers():
    small = ["--images=40", "--test=16", "--classes=4", "--size=8", "--batch=8", "--workers=1", "--seconds=0.1"]
    with Beside(ROOT / "benchmarks" / "reference.py", ["--threads=1", "--channels=1", *small]) as beside:
        found = {part: beside.ask(part) for part in ("input", "run", "classifier")}
    assert found["classifier"]["step_seconds"] < found["run"]["step_seconds"]
    epoch = 5 * found["run"]["step_seconds"] + 16 / found["run"]["evaluation_images_per_second"]
    assert found["run"]["epoch_seconds"] == pytest.approx(epoch)


def test_help_is_light():
    code = "import sys; sys.argv = ['ltcore', 'bench', '--help']; from ltcore.cli import main\n"
    code += "try:\n    main()\nfinally:\n    assert not {'torch', 'numpy', 'ltcore.bench'} & sys.modules.keys()"
    assert (
        "--compare" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
