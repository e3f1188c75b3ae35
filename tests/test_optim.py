import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from ltcore.errors import RecipeError
from ltcore.networks.optimizers import TORCH_OPTIMIZERS, build_optimizer, check_optimizer, set_learning_rate


def small_model() -> nn.Module:
    """A convolution with a bias, a norm and a linear layer: parameters of 1, 2 and 4 dimensions."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def train_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    device = next(model.parameters()).device
    loss = nn.functional.cross_entropy(
        model(torch.randn(5, 2, 4, 4, device=device)), torch.arange(5, device=device) % 3
    )
    loss.backward()
    optimizer.step()


def test_pytorchs_optimizers_are_known_by_lower_case_name() -> None:
    assert {"sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam", "radam"} <= TORCH_OPTIMIZERS.keys()
    assert not {"lbfgs", "sparseadam", "optimizer"} & TORCH_OPTIMIZERS.keys()


@pytest.mark.parametrize("name", [*TORCH_OPTIMIZERS, "lamb", "lion", "lars", "muon"])
def test_a_step_changes_the_parameters(name: str) -> None:
    model = small_model()
    before = [parameter.clone() for parameter in model.parameters()]
    check_optimizer(name, {})
    train_a_step(model, build_optimizer(name, model.parameters(), 0.01, {}, "cpu"))
    after = list(model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)


def test_names_that_both_have_are_pytorchs() -> None:
    optimizer = build_optimizer("sgd", small_model().parameters(), 0.1, {}, "cpu")
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["momentum"] == 0 and not optimizer.defaults["nesterov"]  # timm's sgd has 0.9 and Nesterov


def test_sgd_with_momentum_and_weight_decay_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer("sgd", [weight], 0.1, {"momentum": 0.9, "weight_decay": 0.5}, "cpu")
    velocity, expected = 0.0, 2.0
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimizer.step()
        velocity = 0.9 * velocity + 1 + 0.5 * expected
        expected -= 0.1 * velocity
    assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_lists_become_tuples_and_options_reach_all_parameters(name: str) -> None:
    model = small_model()
    options: dict[str, Any] = {"betas": [0.8, 0.95], "weight_decay": 0.03}
    optimizer = build_optimizer(name, model.parameters(), 0.01, options, "cpu")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    assert all(group["weight_decay"] == 0.03 for group in optimizer.param_groups)
    assert options["betas"] == [0.8, 0.95]  # the recipe's own dictionary is left alone


@pytest.mark.parametrize("name", ["sgd", "lion"])
def test_groups_and_their_learning_rate(name: str) -> None:
    model = small_model()
    groups = [{"params": list(layer.parameters())} for layer in model if list(layer.parameters())]
    optimizer = build_optimizer(name, groups, 0.5, {}, "cpu")
    assert [group["lr"] for group in optimizer.param_groups] == [0.5] * 3
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25] * 3


def test_a_learning_rate_of_zero_trains_nothing() -> None:
    model = small_model()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = build_optimizer("sgd", model.parameters(), 0.5, {"weight_decay": 0.1}, "cpu")
    set_learning_rate(optimizer, 0.0)
    train_a_step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sgd", {"momentun": 0.9}, "optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?"),
        ("rprop", {"weight_decay": 0.1}, "optimizer 'rprop' has no option 'weight_decay'; it has 'etas', 'step_sizes'"),
        ("lamb", {"beta": [0.9, 0.99]}, "optimizer 'lamb' has no option 'beta'; did you mean 'betas'?"),
        ("lion", {"eps": 1e-8}, "optimizer 'lion' has no option 'eps'"),
        ("larc", {"betas": [0.9, 0.99]}, "optimizer 'larc' has no option 'betas'"),
        ("sgd", {"lr": 0.1}, "optimizer 'sgd' has no option 'lr'"),
        ("sgd", {"maximize": True}, "optimizer 'sgd' has no option 'maximize'"),
        ("adamW", {}, "there is no optimizer 'adamW'; did you mean 'adamw'? PyTorch has 'adadelta'"),
        ("lbfgs", {}, "there is no optimizer 'lbfgs'"),
        ("qqqqqq", {}, "there is no optimizer 'qqqqqq'. PyTorch has"),
        ("lambb", {}, "there is no optimizer 'lambb'; did you mean 'lamb'?"),
        ("adahessian", {}, "optimizer 'adahessian' needs second derivatives"),
        ("sgd", {"weight_decay": "1e-4"}, "optimizer 'sgd': weight_decay is the text '1e-4'; write a number"),
        ("sgd", {"momentum": -1}, "optimizer 'sgd' cannot be built: Invalid momentum value: -1"),
        ("sgd", {"nesterov": True}, "optimizer 'sgd' cannot be built: Nesterov momentum requires a momentum"),
        ("adam", {"betas": 0.9}, "optimizer 'adam' cannot be built: "),
    ],
)
def test_messages(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_optimizer(name, arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message of a machine without a GPU")
def test_an_optimizer_that_this_machine_cannot_run() -> None:
    with pytest.raises(RecipeError, match="optimizer 'bnbadam' cannot be used here: CUDA required"):
        check_optimizer("bnbadam", {})


def test_no_parameters() -> None:
    with pytest.raises(RecipeError, match="cannot be built: optimizer got an empty parameter list"):
        build_optimizer("sgd", [], 0.1, {}, "cpu")


def test_pytorchs_optimizers_do_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)  # an import would raise
    check_optimizer("sgd", {"momentum": 0.9})
    with pytest.raises(ImportError):
        check_optimizer("lion", {})


@pytest.mark.slow
def test_timm_is_not_imported_with_the_module() -> None:
    code = (
        "import sys; from ltcore.networks.optimizers import check_optimizer; "
        "check_optimizer('sgd', {'momentum': 0.9}); "
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_SPARED = """
import sys, torch
from ltcore.networks.optimizers import TORCH_OPTIMIZERS, build_optimizer
def trained(name, build):
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build(name, [weight])
    for _ in range(3):
        optimizer.zero_grad()
        (weight**3).sum().backward()
        optimizer.step()
        assert torch.is_grad_enabled() and weight.requires_grad
    optimizer.load_state_dict(optimizer.state_dict())
    return weight.tolist()
def ours(name, weights): return build_optimizer(name, weights, 0.1, {"weight_decay": 0.01}, "cpu")
names = ["sgd", "adamw", "rmsprop"]
spared = [trained(name, ours) for name in names]
assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), "the compiler was imported"
import types
class Told(types.ModuleType):  # the compiler stands in for itself: is it told where a graph ends, once it is there?
    told = 0
    def graph_break(self): Told.told += 1
torch._dynamo = sys.modules["torch._dynamo"] = Told("torch._dynamo")
assert [trained(name, ours) for name in names] == spared
assert Told.told == 2 * 3 * len(names)
"""


def test_an_optimizer_spares_the_compiler_and_takes_the_same_steps() -> None:
    subprocess.run([sys.executable, "-c", _SPARED], check=True)


# PyTorch refuses `fused` only for parameters it cannot handle, so the choice is visible without a GPU.
@pytest.mark.parametrize(
    ("name", "device", "options", "fused"),
    [
        ("sgd", "cuda", {}, True),
        ("adamw", "cuda", {}, True),
        ("sgd", "cpu", {}, None),
        ("sgd", "cuda", {"fused": False}, False),
        ("sgd", "cuda", {"foreach": True}, None),
        ("rmsprop", "cuda", {}, None),
        ("adagrad", "cuda", {}, None),  # PyTorch has a fused one, and refuses its first step on a GPU
    ],
)
def test_fused_where_pytorch_has_it(name: str, device: str, options: dict[str, Any], fused: bool | None) -> None:
    optimizer = build_optimizer(name, [nn.Parameter(torch.zeros(2))], 0.1, options, device)
    assert optimizer.defaults.get("fused") == fused


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}])
def test_fused_sgd_begins_the_momentum_of_a_parameter_whose_gradient_comes_late(options: dict[str, Any]) -> None:
    """RSG's networks get their first gradient after the backbone has had momentum for epochs."""

    def trained(fused: bool) -> list[torch.Tensor]:
        weights = [nn.Parameter(torch.linspace(1, 2, 5) * sign) for sign in (1, -1)]
        optimizer = build_optimizer("sgd", weights, 0.1, {**options, "fused": fused}, "cpu")
        for step in range(5):
            optimizer.zero_grad()
            torch.cat(weights if step >= 2 else weights[:1]).square().sum().backward()
            optimizer.step()
        return [weight.detach() for weight in weights]

    for fused, plain in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(fused, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*TORCH_OPTIMIZERS, "lamb", "lion"])
def test_a_step_on_a_gpu(name: str) -> None:
    model = small_model().cuda()
    train_a_step(model, build_optimizer(name, model.parameters(), 0.01, {}, "cuda"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
