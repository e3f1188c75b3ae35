"""The accelerated backbone: what is chosen, that it is compared and leaves no trace, and that a run is the same."""

import io
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from ltcore import Backbone, Method, hookimpl
from ltcore.contract.recipe import Optimizer, Stage
from ltcore.files.run_directory import RunDirectory
from ltcore.plan.acceleration import Choice, choice
from ltcore.plan.plan import make_plan
from ltcore.progress.console import Reporter
from ltcore.recipe.identity import digest
from ltcore.recipe.loading import load_recipe
from ltcore.runs.reopening import for_each_stage
from ltcore.training import acceleration
from ltcore.training.acceleration import Accelerator, Piece, without_compiler
from ltcore.training.arithmetic import arithmetic
from ltcore.training.data import read_data
from ltcore.training.execute import execute
from ltcore.training.loop import Observer
from ltcore.training.sameness import EPSILON, Kept, compared

EPS = EPSILON["fp32"]

# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("asked", "device", "why", "processes", "chosen"),
    [
        ("auto", "cuda", "", 1, "graphs"),
        ("auto", "cpu", "", 1, "off"),
        ("auto", "mps", "", 1, "off"),
        ("auto", "cuda", "a method acts inside", 1, "off"),
        ("auto", "cuda", "", 2, "off"),
        ("off", "cuda", "", 1, "off"),
        ("compile", "cpu", "", 1, "compile"),
        ("compile", "cuda", "", 1, "compile"),
        ("graphs", "cuda", "", 1, "graphs"),
    ],
)
def test_what_is_chosen(asked, device, why, processes, chosen):
    found = choice(asked, device, why, processes)
    assert found.chosen == chosen and bool(found.why) == (chosen == "off")
    if why:
        assert found.why == why
    if processes > 1:
        assert "2 processes train together" in found.why


def stage_of(write_recipe, **changes):
    stage = {"name": "joint", "epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}, **changes}
    return write_recipe(stages=[stage], methods={name: {} for name in stage.get("methods", [])})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"methods": ["feature_noise"]}, ""),
        ({"methods": ["inside"]}, "'inside' (ltcore-tests 0.0) acts at 'layer2', inside the backbone"),
        (
            {"methods": ["sam"]},
            "'sam' (ltcore-sam 0.1.0) computes the gradients, and runs the backbone with other weights",
        ),
        (
            {"trainable": ["classifier"], "cache": "eval"},
            "cache 'eval' gives features, and the backbone does not run in a step",
        ),
    ],
)
def test_the_plan_says_what_was_chosen_and_why_not_more(write_recipe, cli, offer_methods, changes, why):
    offer_methods(inside=Inside)
    path = stage_of(write_recipe, **changes)
    text = f"auto: eager, because {why}" if why else "auto: graphs on a GPU, eager on a CPU"
    assert f"\n  accelerate  {text}\n" in cli("plan", path).out
    (found,) = json.loads(cli("plan", path, "--json").out)["stages"]
    on_gpu = "off" if why else "graphs"
    assert found["accelerate"] == {"asked": "auto", "on_gpu": on_gpu, "on_cpu": "off", "why_not_more": why}
    for asked in ("compile", "graphs") if why else ():
        said = cli("plan", path, "--set", f"stages.joint.accelerate={asked}")
        said.is_one_message(2, "stages.joint.accelerate", "stage 'joint': accelerate:", asked, why, "use auto")
    assert "  accelerate  off\n" in cli("plan", path, "--set", "stages.joint.accelerate=off").out


def test_graphs_on_a_cpu_are_refused_as_early_as_it_is_known(write_recipe, cli, tmp_path):
    path = stage_of(write_recipe, accelerate="graphs")
    assert "  accelerate  graphs\n" in cli("plan", path).out, "the run may have a GPU"
    cli("plan", path, "--set", "device=cpu").is_one_message(2, "accelerate: graphs are CUDA's", "trains on cpu")
    if not torch.cuda.is_available():
        said = cli("run", path, "--out", tmp_path / "runs")
        said.is_one_message(2, "r.yaml", "stage 'joint': accelerate: graphs are CUDA's", "use auto")
        assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_without_a_compiler_one_message_says_what_to_do(write_recipe, cli, monkeypatch, tmp_path):
    assert without_compiler({"CXX": "no-such-compiler"}).startswith("PyTorch's compiler needs a C++ compiler")
    assert without_compiler({"CXX": "sh"}) == ""
    monkeypatch.setattr(acceleration, "without_compiler", lambda: "no compiler; install one")
    said = cli("run", stage_of(write_recipe, accelerate="compile"), "--out", tmp_path / "runs")
    said.is_one_message(2, "stage 'joint': accelerate: compile cannot be had: no compiler; install one; use auto")


def test_what_changes_numbers_is_another_recipe(write_recipe):
    def of(**changes):
        return digest(load_recipe(stage_of(write_recipe, **changes)))

    plain = of()
    assert of(accelerate="auto") == of(accelerate="off") == of(accelerate="graphs") == plain
    assert plain == of(precision="fp32") != of(precision="tf32") != of(precision="bf16")
    assert of(accelerate="compile") not in (plain, of(precision="tf32"))


def test_a_digest_from_before_there_was_any_acceleration_is_the_same():
    """As main had it before `accelerate` came."""
    assert digest(load_recipe("recipes/digits_lt_ce.yaml")) == DIGITS_CE


DIGITS_CE = "47a16ae934eaae14"


def test_published_figures_stay_whatever_accelerates():
    told = ["stages.representation.accelerate=off", "stages.representation.precision = fp32"]
    plain = load_recipe("recipes/cifar100_lt_ce.yaml").recipe.published
    assert plain and load_recipe("recipes/cifar100_lt_ce.yaml", told).recipe.published == plain
    other = load_recipe("recipes/cifar100_lt_ce.yaml", ["stages.representation.precision=tf32"])
    assert not other.recipe.published


# ---------------------------------------------------------------- fp32 and TF32


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


def test_arithmetic_is_set_and_put_back():
    before = switches()
    with arithmetic(tf32=True):
        assert switches() == (True, True, before[2])
        with arithmetic(tf32=False, same_shapes=True):
            assert switches() == (False, False, True)
        assert switches() == (True, True, before[2])
    assert switches() == before
    with pytest.raises(ZeroDivisionError), arithmetic(tf32=True):
        1 / 0  # noqa: B018
    assert switches() == before
    torch.backends.cudnn.deterministic = True
    try:
        with arithmetic(tf32=False, same_shapes=True):
            assert not torch.backends.cudnn.benchmark, "algorithms that are tried out are not the same each time"
    finally:
        torch.backends.cudnn.deterministic = False


class Switches(Observer):
    """Keeps the switches of every event."""

    def __init__(self):
        self.seen = {}

    def step_ended(self, loop):
        self.seen.setdefault(loop.stage.name, set()).add(switches()[:2])

    def stage_left(self, index):
        self.seen.setdefault("left", set()).add(switches()[:2])


def test_only_a_stage_that_says_so_rounds_to_tf32(write_recipe, tmp_path):
    before = switches()
    stage = {"epochs": 1, "batch_size": 16, "optimizer": {"lr": 0.01}}
    stages = [{"name": name, "precision": name, **stage} for name in ("tf32", "fp32", "bf16", "auto")]
    seen = Switches()
    run(write_recipe(stages=stages), tmp_path, observers=[seen])
    off = {(False, False)}
    assert seen.seen == {"tf32": {(True, True)}, "fp32": off, "bf16": off, "auto": off, "left": {(True, True), *off}}
    assert switches() == before, "set for a run, and not for the process"


# ---------------------------------------------------------------- the comparison


class Small(Backbone):
    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)

    def forward_maps(self, images: Tensor) -> Tensor:
        return self.second(dropout(self.norm(self.first(images)).relu(), 0.2, self.training))


def a_piece(gives="pooled"):
    torch.manual_seed(0)
    return Piece(Small(), gives, None), torch.randn(8, 3, 8, 8)


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * gradient


def half_of_the_statistics(piece):
    def function(rows):
        out = piece(rows)
        piece.backbone.norm.running_mean.data.mul_(0.5)
        return out

    return function


def counts_twice(piece):
    def function(rows):
        out = piece(rows)
        piece.backbone.norm.num_batches_tracked.add_(1)
        return out

    return function


#: Ways to be wrong: what is made of a piece, and what the message names.
WRONG = {
    "features": (lambda piece: lambda rows: piece(rows) + 0.01, "its features"),
    "shape": (lambda piece: lambda rows: piece(rows)[:4], "its features"),
    "values without a gradient": (lambda piece: lambda rows: piece(rows).detach(), "the gradient of"),
    "gradients": (lambda piece: lambda rows: ScaledGradient.apply(piece(rows)), "the gradient of"),
    "statistics": (half_of_the_statistics, "buffer norm.running_mean"),
    "counts": (counts_twice, "buffer norm.num_batches_tracked"),
    "other random numbers": (lambda piece: lambda rows: piece(rows + torch.rand(()) * 0), ""),
    "not a number": (lambda piece: lambda rows: piece(rows) * torch.nan, "its features"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_differs_is_found(kind):
    piece, rows = a_piece()
    make, names = WRONG[kind]
    found, natural = compared(piece, make(piece), rows, Kept(piece), EPS)
    said = found.wrong(natural, EPS)
    assert said.startswith("on the first batch it differs from the eager backbone: ") and names in said, said


def missing_one(piece):
    """One parameter gets no gradient, beside others that get theirs."""
    backbone = piece.backbone

    def function(rows):
        weight = backbone.first.bias.detach()
        hidden = nn.functional.conv2d(rows, backbone.first.weight, weight)
        return backbone.pool(backbone.second(dropout(backbone.norm(hidden).relu(), 0.2)))

    return function


def test_a_parameter_that_gets_no_gradient_is_found_and_one_that_gets_rounding_is_not_needed():
    piece, rows = a_piece()
    found, natural = compared(piece, missing_one(piece), rows, Kept(piece), EPS)
    # The bias in front of batch norm: its gradient is rounding, so leaving it out is no difference.
    assert found.wrong(natural, EPS) == ""
    piece.backbone.norm.eval()
    found, natural = compared(piece, missing_one(piece), rows, Kept(piece), EPS)
    assert "the gradient of first.bias by inf" in found.wrong(natural, EPS)


@pytest.mark.parametrize(("off", "said"), [(1e-6, ""), (1e-4, "buffer norm.running_mean")])
def test_a_mean_near_zero_is_held_against_its_values(off, said):
    """A sum of many values is off by roundings of theirs, however small it is itself."""
    piece, rows = a_piece()
    norm = piece.backbone.norm

    def function(rows):
        out = piece(rows)
        norm.running_mean.data.add_(off * norm.running_var.sqrt())
        return out

    found, natural = compared(piece, function, rows, Kept(piece), EPS)
    wrong = found.wrong(natural, EPS)
    assert said in wrong and bool(said) == bool(wrong)


def in_double(piece):
    """The same function, rounded otherwise."""

    def function(rows):
        state = piece.backbone
        twin = {name: each.double() for name, each in state.named_parameters()}
        hidden = nn.functional.conv2d(rows.double(), twin["first.weight"], twin["first.bias"])
        hidden = state.norm(hidden.float()).relu()
        hidden = dropout(hidden, 0.2, state.training).double()
        return nn.functional.conv2d(hidden, twin["second.weight"], twin["second.bias"]).mean((2, 3)).float()

    return function


@pytest.mark.parametrize("make", [lambda piece: piece, in_double])
@pytest.mark.parametrize("trains", [True, False])
def test_what_is_the_same_up_to_rounding_passes(make, trains):
    piece, rows = a_piece()
    piece.requires_grad_(trains)
    found, natural = compared(piece, make(piece), rows, Kept(piece), EPS)
    assert found.wrong(natural, EPS) == "" and found.finite
    assert found.largest == (0.0, 0.0) or make is in_double
    assert 0 < natural.features < 1e-5


def test_low_precision_is_compared_in_its_own_rounding():
    piece, rows = a_piece()
    low = Piece(piece.backbone, "pooled", torch.bfloat16)
    found, natural = compared(low, piece, rows, Kept(piece), EPSILON["bf16"])
    assert found.wrong(natural, EPSILON["bf16"]) == "" and found.features > 1e-4
    found, natural = compared(piece, low, rows, Kept(piece), EPS)
    assert "differs" in found.wrong(natural, EPS), "a stage of fp32 must not get bf16"


def messy(piece, rows):
    """Leaves traces wherever it can, as a warm-up does."""
    torch.manual_seed(99)
    for _ in range(3):
        piece(rows).sum().backward()
    for parameter in piece.parameters():
        parameter.grad.add_(1)

    def function(rows):
        piece(rows).sum().backward()
        return piece(rows)

    return function


@pytest.mark.parametrize("gradients", [True, False])
def test_the_comparison_leaves_no_trace(monkeypatch, gradients):
    piece, rows = a_piece()
    if gradients:
        piece(rows).sum().backward()
    kept = [None if each.grad is None else (each.grad, each.grad.clone()) for each in piece.parameters()]
    buffers, random = [buffer.clone() for buffer in piece.buffers()], torch.get_rng_state()
    monkeypatch.setitem(acceleration.MAKERS, "compile", messy)
    accelerator, record, said = accelerator_of(piece, Choice("auto", "compile"))
    accelerator._prepare(rows)
    assert accelerator._given_up and "differs" in record["why"] and len(said) == 1, "it runs twice: other numbers"
    assert all(torch.equal(a, b) for a, b in zip(buffers, piece.buffers(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    for parameter, was in zip(piece.parameters(), kept, strict=True):
        assert (parameter.grad is None) if was is None else (parameter.grad is was[0] and torch.equal(*was))


# ---------------------------------------------------------------- the accelerator


COMPILE = Choice("compile", "compile")


def accelerator_of(piece, found=COMPILE, precision="fp32"):
    stage = Stage(name="joint", epochs=1, optimizer=Optimizer(lr=0.1), precision=precision)
    record, said = {"asked": found.asked, "chosen": found.chosen, "why": found.why}, []
    made = Accelerator(piece, found, stage, record, said.append)
    made._size = 8
    return made, record, said


class Counting:
    """Makes a function that counts its calls."""

    def __init__(self, make=lambda piece: piece):
        self.made, self.calls, self._make = 0, 0, make

    def __call__(self, piece, rows):
        self.made += 1
        function = self._make(piece)

        def counted(rows):
            self.calls += 1
            return function(rows)

        return counted


@pytest.fixture
def fake(monkeypatch):
    """``fake(make)`` stands in for both ways to accelerate; returns what counts."""
    monkeypatch.setattr(acceleration, "without_compiler", lambda: "")

    def install(make=lambda piece: piece, auto=False):
        counting = Counting(make)
        for kind in ("compile", "graphs"):
            monkeypatch.setitem(acceleration.MAKERS, kind, counting)
        if auto:
            for where in ("acceleration", "run", "execute"):
                monkeypatch.setattr(f"ltcore.training.{where}.chosen", lambda *_: Choice("auto", "graphs"))
        return counting

    return install


def test_full_batches_only_while_everything_is_as_it_was_compared(fake):
    counting = fake()
    piece, rows = a_piece()
    accelerator, record, said = accelerator_of(piece)

    def calls(*arguments):
        counting.calls = 0
        assert accelerator(*arguments).shape[1] == 6
        return counting.calls

    assert calls(rows[:4], 4) == 0 and counting.made == 0, "the last batch of an epoch"
    with torch.no_grad():
        assert calls(rows, 8) == 0 and counting.made == 0
    assert calls(rows.clone().requires_grad_(), 8) == 0 and counting.made == 0
    assert calls(rows, 8) == 2 and counting.made == 1, "compared, and used"
    assert calls(rows, 8) == 1 and calls(rows[:4], 4) == 0 and calls(torch.cat([rows, rows]), 8) == 0
    piece.backbone.norm.eval()
    assert calls(rows, 8) == 0 and len(said) == 1 and "changed modes, gradients or memory" in said[0]
    piece.backbone.norm.train()
    assert calls(rows, 8) == 1
    piece.backbone.first.weight.requires_grad_(False)
    assert calls(rows, 8) == 0 and len(said) == 1, "told once"
    assert record["chosen"] == "compile" and "no longer what had been compared" in record["why"]
    assert counting.made == 1


def test_memory_counts_for_graphs(fake):
    counting = fake()
    piece, rows = a_piece()
    accelerator, _, said = accelerator_of(piece, Choice("graphs", "graphs"))
    accelerator(rows, 8)
    piece.backbone.first.weight.data = piece.backbone.first.weight.data.clone()
    counting.calls = 0
    accelerator(rows, 8)
    assert counting.calls == 0 and len(said) == 1


def test_modules_that_are_exchanged_end_it(fake):
    from types import SimpleNamespace

    counting = fake()
    piece, rows = a_piece()
    accelerator, record, said = accelerator_of(piece)
    accelerator(rows, 8)
    piece.backbone.second = nn.Conv2d(4, 6, 3)
    accelerator.epoch_started(SimpleNamespace(batches=[torch.arange(8)]))
    counting.calls = 0
    accelerator(rows, 8)
    assert counting.calls == 0 and len(said) == 1 and "exchanged modules" in record["why"]


def test_hooks_of_modules_keep_the_backbone_eager(fake):
    counting = fake()
    piece, rows = a_piece()
    piece.backbone.second.register_forward_hook(lambda *_: None)
    accelerator, record, said = accelerator_of(piece, Choice("auto", "graphs"))
    accelerator(rows, 8)
    assert counting.made == 0 and said[0].endswith(record["why"])
    assert "a hook of PyTorch's modules looks on at second" in record["why"]


def test_values_that_are_not_finite_are_left_to_the_runs_guard(fake):
    fake()
    piece, rows = a_piece()
    accelerator, record, said = accelerator_of(piece)
    accelerator(rows * torch.inf, 8)
    assert record["chosen"] == "off" and "not finite" in record["why"] and not said


def test_graphs_are_made_by_pytorch_without_autocast_of_a_copy_and_their_memory_is_not_handed_out(monkeypatch):
    """A fake with the habits of `torch.cuda.make_graphed_callables`: it warms up, and has one memory for all calls."""
    piece, rows = a_piece()
    seen = {}

    def make(module, sample, allow_unused_input, capture_error_mode="global"):
        seen.update(mode=capture_error_mode, module=module, sample=sample[0], autocast=torch.is_autocast_enabled("cpu"))
        assert allow_unused_input and not module._forward_hooks
        for _ in range(3):
            out = module(*sample)
            torch.autograd.grad(out, [p for p in module.parameters() if p.requires_grad], out)
        memory = torch.zeros_like(out)

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, rows, *parameters):
                with torch.enable_grad():
                    ctx.given = module(rows)
                memory.copy_(ctx.given.detach())
                return memory.detach()

            @staticmethod
            def backward(ctx, gradient):
                return None, *torch.autograd.grad(ctx.given, list(module.parameters()), gradient)

        return lambda rows: Graphed.apply(rows, *module.parameters())

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    accelerator, record, said = accelerator_of(piece, Choice("graphs", "graphs"))
    with torch.autocast("cpu", torch.bfloat16):
        first = accelerator(rows, 8)
    assert not said and record["chosen"] == "graphs" and record["gradients_difference"] == 0
    assert seen["mode"] == "thread_local", "other threads of the run use the GPU meanwhile"
    assert not seen["autocast"] and seen["module"] is not piece
    assert torch.equal(seen["sample"], rows) and seen["sample"].data_ptr() != rows.data_ptr()
    kept = first.clone()
    accelerator(rows + 1, 8)
    assert torch.equal(first, kept), "a method may keep features"


# ---------------------------------------------------------------- whole runs


class Seen(Observer):
    """Keeps each step's losses and random state; ends the run after some steps as a kill does."""

    def __init__(self, until=None):
        self.losses, self.until = [], until

    def losses_computed(self, loop, losses):
        self.losses.append((loop.stage.name, {name: value.item() for name, value in losses.items()}))

    def step_ended(self, loop):
        if len(self.losses) == self.until:
            raise KeyboardInterrupt


def run(path, tmp_path, sets=(), observers=(), resume=False, where="runs"):
    said = io.StringIO()
    result, folder = execute(load_recipe(path, sets), tmp_path / where, resume, Reporter(said), observers=observers)
    return result, said.getvalue(), folder


def both(path, tmp_path):
    """The losses of a run with the eager backbone and of one with `compile`, and what `run` gives of each."""
    plain, quick = Seen(), Seen()
    eager = run(path, tmp_path, observers=[plain], where="a")
    return (
        plain.losses,
        quick.losses,
        eager,
        run(path, tmp_path, ["stages.joint.accelerate=compile"], [quick], where="b"),
    )


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints" / "stage-0-joint.safetensors")


class Appends(Method):
    """Appends a row at its tap, of random numbers."""

    tap = "maps"
    interface = "1.0"

    @hookimpl
    def augment_features(self, features):
        own = torch.arange(1, device=features.features.device)
        return features.append(features.features[:1] + torch.rand(()), features.targets[:1], own)


class AppendsPooled(Appends):
    tap = "pooled"


class Inside(Appends):
    tap = "layer2"


CASES = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "frozen": {"trainable": ["classifier"]},
    "adapting batch norm": {"trainable": ["classifier"], "batch_norm": "adapt"},
    "rows appended to maps": {"methods": ["appends"]},
    "rows appended to pooled features": {"methods": ["appends_pooled"]},
    "mixed": {"methods": ["mixup"]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_bit_for_bit_where_the_function_is(write_recipe, tmp_path, fake, offer_methods, case):
    offer_methods(appends=Appends, appends_pooled=AppendsPooled)
    counting = fake()
    path = stage_of(write_recipe, **{"epochs": 2, **CASES[case]})
    plain, quick, (_, _, first), (result, said, second) = both(path, tmp_path)
    assert quick == plain and len(plain) >= 12
    assert all(torch.equal(tensor, tensors(second)[name]) for name, tensor in tensors(first).items())
    record = result["stages"][0]["acceleration"]
    assert record == {
        "asked": "compile",
        "chosen": "compile",
        "why": "",
        "features_difference": 0.0,
        "gradients_difference": 0.0,
    }
    assert counting.made == 1 and counting.calls == 12 + 1, "52 images in batches of 8: six full ones, and one of 4"
    assert "cannot be had" not in said


def test_experts(write_recipe, tmp_path, fake):
    counting = fake()
    stage = {"name": "joint", "epochs": 1, "batch_size": 8, "methods": ["ride"], "optimizer": {"lr": 0.01}}
    backbone = {"use": "cifar_resnet", "options": {"depth": 8, "width": 4}, "adapt": ["ride"]}
    methods = {"ride": {"options": {"experts": 2, "width": 0.5, "temperature_epoch": 0}}}
    path = write_recipe(stages=[stage], methods=methods, backbone=backbone)
    plain, quick, *_ = both(path, tmp_path)
    assert quick == plain and counting.calls == 7


def wrong(piece):
    return lambda rows: piece(rows) * 1.5


def fails(piece):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore is said.")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (wrong, "on the first batch it differs from the eager backbone: its features by 0.5 of their size, where"),
        (fails, "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. More is said."),
    ],
)
def test_what_cannot_be_had_is_eager_with_a_warning_or_an_error(write_recipe, tmp_path, fake, cli, make, why):
    path = stage_of(write_recipe)
    plain, quick = Seen(), Seen()
    run(path, tmp_path, observers=[plain], where="a")
    counting = fake(make)
    told = "stages.joint.accelerate=compile"
    said = cli("run", path, "--set", told, "--out", tmp_path / "c")
    said.is_one_message(1, "stage 'joint': accelerate: compile cannot be had: ", why, "use accelerate: off")
    counting = fake(make, auto=True)
    result, said, _ = run(path, tmp_path, observers=[quick], where="b")
    assert f"warning: stage 'joint' trains with the eager backbone, because graphs cannot be had: {why}" in " ".join(
        said.split()
    )
    assert quick.losses == plain.losses, "as if nothing had been tried"
    record = result["stages"][0]["acceleration"]
    assert (record["asked"], record["chosen"]) == ("auto", "off") and record["why"].startswith(why)
    assert counting.made == 1


def rounded_otherwise(piece):
    """As another order of the operations; so it shows which steps it was used for."""
    return lambda rows: piece(rows) * (1 + 3 * EPS)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("steps", [3, 6, 7, 9])
def test_killed_and_resumed_to_the_bit(write_recipe, tmp_path, fake, steps):
    counting = fake(rounded_otherwise)
    path = stage_of(write_recipe, epochs=2, accelerate="compile")
    sets = ["checkpoint_seconds=0"]
    whole = Seen()
    _, _, first = run(path, tmp_path, sets, [whole], where="a")
    assert counting.made == 1
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path, sets, [Seen(until=steps)], where="b")
    rest = Seen()
    again, _, second = run(path, tmp_path, sets, [rest], resume=True, where="b")
    assert rest.losses == whole.losses[-len(rest.losses) :] and 14 - steps <= len(rest.losses) <= 15 - steps
    assert all(torch.equal(tensor, tensors(second)[name]) for name, tensor in tensors(first).items())
    assert again["stages"][0]["acceleration"]["chosen"] == "compile"
    assert counting.made == 3


def test_a_resumed_run_does_not_try_again_what_could_not_be_had(write_recipe, tmp_path, fake):
    counting = fake(fails, auto=True)
    path = stage_of(write_recipe, epochs=2)
    sets = ["checkpoint_seconds=0"]
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path, sets, [Seen(until=4)])
    assert counting.made == 1
    counting = fake(auto=True)
    result, _, _ = run(path, tmp_path, sets, resume=True)
    assert counting.made == 0 and "OutOfMemoryError" in result["stages"][0]["acceleration"]["why"]


def test_a_run_that_goes_on_with_something_else_says_so(write_recipe, tmp_path, fake):
    fake(auto=True)
    path = stage_of(write_recipe, epochs=2)
    sets = ["checkpoint_seconds=0"]
    with pytest.MonkeyPatch.context() as patch:
        for where in ("acceleration", "run", "execute"):
            patch.setattr(f"ltcore.training.{where}.chosen", lambda *_: Choice("auto", "graphs"))
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path, sets, [Seen(until=4)])
        for where in ("acceleration", "run", "execute"):
            patch.setattr(f"ltcore.training.{where}.chosen", lambda *_: Choice("auto", "off", "no GPU"))
        result, said, _ = run(path, tmp_path, sets, resume=True)
    assert "warning: stage 'joint': begun with graphs, gone on with off: no GPU" in " ".join(said.split())
    assert result["stages"][0]["acceleration"]["why"] == "begun with graphs, gone on with off: no GPU"


class Freezes(Method):
    """Puts batch norm into eval mode from the second epoch on."""

    interface = "1.0"

    @hookimpl
    def on_epoch_start(self, context):
        if context.epoch == 1:
            for module in context.model.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()


def test_a_method_that_changes_modes_gets_what_it_asks_for(write_recipe, tmp_path, fake, offer_methods):
    offer_methods(freezes=Freezes)
    counting = fake()
    plain, quick, _, (_, said, _) = both(stage_of(write_recipe, epochs=2, methods=["freezes"]), tmp_path)
    assert quick == plain
    assert counting.calls == 1 + 6, "the first epoch's full batches"
    assert "steps in which it is so run with the eager backbone" in " ".join(said.split())


def test_a_run_is_opened_where_it_could_not_be_accelerated(write_recipe, tmp_path, fake, monkeypatch):
    fake()
    loaded = load_recipe(stage_of(write_recipe, accelerate="compile"))
    _, folder = execute(loaded, tmp_path, False, Reporter.silent())
    monkeypatch.setattr(acceleration, "without_compiler", lambda: "no compiler")
    data = read_data(loaded, make_plan(loaded).answers["data"])
    opened = []
    for_each_stage(loaded, data, RunDirectory(folder), lambda end: opened.append(end._set_up().forward.accelerator))
    assert opened == [None]


_WITH_COMPILER = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(without_compiler()), reason=without_compiler() or "there is a C++ compiler"),
]


@pytest.mark.parametrize(
    ("backend", "precision", "near"),
    [
        ("aot_eager", "fp32", 1e-4),  # the real torch.compile with a backend that compiles nothing
        pytest.param("inductor", "fp32", 1e-4, marks=_WITH_COMPILER),
        pytest.param("inductor", "bf16", 5e-2, marks=_WITH_COMPILER),
    ],
)
def test_pytorchs_compiler_gives_the_same_up_to_rounding(write_recipe, tmp_path, monkeypatch, backend, precision, near):
    if backend == "aot_eager":
        monkeypatch.setattr(acceleration, "without_compiler", lambda: "")
        options = {"dynamic": False, "fullgraph": True, "backend": backend}
        monkeypatch.setitem(acceleration.MAKERS, "compile", lambda piece, rows: torch.compile(piece, **options))
    path = stage_of(write_recipe, iterations=9, epochs=None, precision=precision)
    plain, quick, _, (result, _, _) = both(path, tmp_path)
    assert result["stages"][0]["acceleration"]["chosen"] == "compile"
    for (_, one), (_, other) in zip(plain, quick, strict=True):
        assert other["classification"] == pytest.approx(one["classification"], rel=near)
