import pytest
import timm
import torch
from ltcore_cifar_resnet.network import ResNet
from torch import nn

from ltcore import Backbone
from ltcore.contract.model import Model, evaluating, matches, public_name, set_trainable
from ltcore.networks.timm_backbone import TimmBackbone


def names(model: Model, *patterns: str) -> set[str]:
    """Public names of the parameters that `trainable: [...patterns]` names."""
    found = [public_name(name, model.backbone) for name, _ in model.named_parameters()]
    assert len(set(found)) == len(found)
    return {name for name in found if any(matches(name, pattern) for pattern in patterns)}


def model_of(backbone: Backbone, **methods: nn.Module) -> Model:
    return Model(backbone, nn.Linear(backbone.feature_dim, 3), methods)


def cifar() -> Model:
    own = nn.Sequential(nn.Linear(2, 2))
    own.E = nn.Linear(2, 2)
    return model_of(ResNet(8, 4), safa=own)


def resnet18() -> Model:
    with torch.device("meta"):
        return model_of(TimmBackbone(timm.create_model("resnet18", num_classes=0), 3, None))


def test_everything_has_the_name_that_a_recipe_writes():
    assert names(cifar(), "classifier") == {"classifier.weight", "classifier.bias"}
    assert names(cifar(), "safa") == {"safa.0.weight", "safa.0.bias", "safa.E.weight", "safa.E.bias"}
    assert names(cifar(), "safa.E") == {"safa.E.weight", "safa.E.bias"}
    for model in (cifar(), resnet18()):
        assert names(model, "backbone", "classifier", "safa") == names(model, "*")
        assert "backbone.conv1.weight" in names(model, "backbone")


@pytest.mark.parametrize("make", [cifar, resnet18])
def test_globs_name_what_lies_under_them(make):
    model = make()
    layer = names(model, "backbone.layer3")
    assert (
        layer == names(model, "backbone.layer3.*") == {n for n in names(model, "*") if n.startswith("backbone.layer3.")}
    )
    assert len(layer) > 5
    assert names(model, "backbone.layer3.0.bn1") == {"backbone.layer3.0.bn1.weight", "backbone.layer3.0.bn1.bias"}
    assert names(model, "backbone.*.bn1") == {n for n in names(model, "backbone") if ".bn1." in n and "layer" in n}
    assert names(model, "*.bias") == {n for n in names(model, "*") if n.endswith(".bias")}
    assert not names(model, "backbone.layer") and not names(model, "layer3") and not names(model, "classifier.weigh")
    assert not names(model, "backbone.model.layer3")  # the wrapper's own attribute is no part of the name


def test_timms_last_stage():
    assert len(names(resnet18(), "backbone.layer4.*")) == 15  # 4 convolutions, the shortcut's, and 5 norms


FROZEN_RUNS = {
    "classifier": ["classifier"],
    "last stage": ["backbone.layer3.*", "classifier"],
    "one norm": ["backbone.layer3.0.bn1", "classifier"],
    "everything": ["backbone", "classifier"],
}


@pytest.mark.parametrize("trainable", FROZEN_RUNS.values(), ids=FROZEN_RUNS)
def test_freezing_is_honest_over_a_training(make_run, trainable):
    optimizer = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    run = make_run(stages=[{"name": "s", "epochs": 2, "batch_size": 8, "trainable": trainable, "optimizer": optimizer}])
    model = run.assembly.model
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    run.execute()
    trains = {name.removeprefix("backbone.") for name in names(model, *trainable)}
    for name, value in model.backbone.state_dict().items():
        # A norm's statistics move exactly where the norm itself trains.
        should = any(matches(trained, name.rpartition(".")[0]) for trained in trains) if "running" in name else None
        should = name in trains if should is None else should
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[name]) != should, name
    for name, parameter in model.named_parameters():
        trained = public_name(name, model.backbone) in names(model, *trainable)
        assert parameter.requires_grad == trained == (parameter.grad is not None)


def test_frozen_batch_norm_can_go_on_with_its_batches(make_run):
    stage = {"name": "s", "epochs": 1, "batch_size": 8, "trainable": ["classifier"], "optimizer": {"lr": 0.05}}
    run = make_run(stages=[{**stage, "batch_norm": "adapt"}])
    before = {name: value.clone() for name, value in run.assembly.model.backbone.state_dict().items()}
    run.execute()
    for name, value in run.assembly.model.backbone.state_dict().items():
        moved = "running" in name or name.endswith("num_batches_tracked")
        assert torch.equal(value, before[name]) != moved, name


class Dropping(Backbone):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)

    def forward_maps(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.plain_norm(self.norm(self.conv(images))))


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


def test_only_what_trains_is_in_train_mode():
    model = model_of(Dropping())
    everything = {name for name, _ in model.named_parameters()}
    set_trainable(model, {"classifier.weight", "classifier.bias"})
    assert not any(modes(model.backbone).values()) and model.classifier.training
    set_trainable(model, {"backbone.norm.weight"})
    assert modes(model.backbone) == {
        **{"": True, "norm": True, "drop": True, "plain_norm": True},  # no parameters: as their parent
        "conv": False,
    }
    assert not model.classifier.training
    set_trainable(model, everything)
    assert all(modes(model).values())


def test_frozen_parameters_lose_their_gradient():
    model = model_of(Dropping())
    model(torch.randn(2, 3, 2, 2)).sum().backward()
    set_trainable(model, {"classifier.weight"})
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["classifier.weight"]


def test_evaluating_restores_every_mode_and_keeps_gradients_off():
    model = model_of(Dropping())
    set_trainable(model, {"backbone.norm.weight"})
    before = modes(model)
    statistics = model.backbone.norm.running_mean.clone()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(modes(model).values()) and not torch.is_grad_enabled()
        assert not model(torch.randn(2, 3, 2, 2)).requires_grad
        raise KeyError
    assert modes(model) == before and torch.is_grad_enabled()
    assert torch.equal(model.backbone.norm.running_mean, statistics)
