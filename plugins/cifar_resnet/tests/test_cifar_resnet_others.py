"""DenseNet and ResNeXt: what they have in common, then each against its own arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F
from ltcore_cifar_resnet import (
    CifarDenseNet,
    CifarDenseNetOptions,
    CifarResNeXt,
    CifarResNeXtOptions,
    DenseNet,
    ResNeXt,
)
from pydantic import ValidationError
from torch import nn

from ltcore import RecipeError


def densenet(in_channels=3, size=32, **options):
    return CifarDenseNet(CifarDenseNetOptions(**options)).build_backbone(in_channels=in_channels, image_size=size)


def resnext(in_channels=3, size=32, **options):
    return CifarResNeXt(CifarResNeXtOptions(**options)).build_backbone(in_channels=in_channels)


# Each as small as it gets, for what is run with values.
SMALL = {densenet: {"depth": 10, "growth": 3}, resnext: {"depth": 11, "cardinality": 2, "width": 2}}
both = pytest.mark.parametrize("build", SMALL)


def parameters(backbone):
    return sum(parameter.numel() for parameter in backbone.parameters())


# -- the published figures, for ten classes --------------------------------------------------------------------------


def densenet_by_hand(depth, growth):
    """Stem 16*3*9; a layer on d channels: d*growth*9 and a norm of 2*d; a transition: d*d and 2*d; a norm; linear."""
    total, d = 16 * 27, 16
    for block in range(3):
        for _ in range((depth - 4) // 3):
            total += d * growth * 9 + 2 * d
            d += growth
        if block < 2:
            total += d * d + 2 * d
    return total + 2 * d + 10 * d + 10


def resnext_by_hand(cardinality, width):
    """Stem 64*3*9 and a norm of 128; a block of inner width e from d to c channels, and three norms; linear."""
    total, d = 64 * 27 + 128, 64
    for stage, c in enumerate((256, 512, 1024)):
        e = cardinality * width * 2**stage
        for block in range(3):
            total += d * e + e * 9 * (e // cardinality) + e * c + 4 * e + 2 * c
            total += d * c + 2 * c if block == 0 else 0
            d = c
    return total + 1024 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "growth", "exact", "millions"),
    [(40, 12, 1_019_722, "1.0"), (100, 12, None, "7.0"), (100, 24, None, "27.2")],  # the paper's table 2
)
def test_parameters_of_densenet(depth, growth, exact, millions):
    with torch.device("meta"):
        backbone = densenet(depth=depth, growth=growth)
    count = parameters(backbone) + 10 * backbone.feature_dim + 10
    assert count == densenet_by_hand(depth, growth) and exact in (None, count)
    assert f"{count / 1e6:.1f}" == millions


@pytest.mark.parametrize(
    ("cardinality", "exact", "millions"),
    [(8, 34_426_698, 34.4), (16, None, 68.1)],  # the paper's table 7
)
def test_parameters_of_resnext(cardinality, exact, millions):
    with torch.device("meta"):
        backbone = resnext(cardinality=cardinality)
    count = parameters(backbone) + 10 * 1024 + 10
    assert count == resnext_by_hand(cardinality, 64) and exact in (None, count)
    assert math.floor(count / 1e5) / 10 == millions


@both
def test_depth_counts_the_weighted_layers(build):
    for depth in {densenet: (7, 40, 100), resnext: (11, 20, 29)}[build]:
        with torch.device("meta"):
            backbone = build(depth=depth)
        convolutions = [
            module
            for name, module in backbone.named_modules()
            if isinstance(module, nn.Conv2d) and "shortcut" not in name  # which nobody counts
        ]
        assert len(convolutions) + 1 == depth  # the classifier is the one
        assert all(convolution.bias is None for convolution in convolutions)


# -- against an independent construction, from the weights alone -----------------------------------------------------


def norm(state, name, x):
    mean, var, gain, offset = (
        state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + offset


def plain_densenet(state, x):
    x = F.conv2d(x, state["conv.weight"], padding=1)
    for block in (1, 2, 3):
        pieces = [x]  # what the paper's equation 2 concatenates: all that the layers of the block gave
        for layer in range(2):
            name = f"block{block}.{layer}"
            x = norm(state, f"{name}.bn", torch.cat(pieces, 1)).clamp(min=0)
            pieces.append(F.conv2d(x, state[f"{name}.conv.weight"], padding=1))
        x = torch.cat(pieces, 1)
        if block < 3:
            x = norm(state, f"transition{block}.bn", x).clamp(min=0)
            x = torch.einsum("nchw,dc->ndhw", x, state[f"transition{block}.conv.weight"][:, :, 0, 0])
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return norm(state, "bn", x).clamp(min=0).mean((2, 3))


def plain_resnext(state, x):
    """In the form (a) of the paper's figure 3: a sum over the groups' own paths."""
    x = norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        name, stride, d = f"layer{stage}.0", 1 if stage == 1 else 2, 2 * 2 ** (stage - 1)
        inner = norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])).clamp(min=0)
        paths = 0
        for group in (slice(0, d), slice(d, 2 * d)):
            path = F.conv2d(inner[:, group], state[f"{name}.conv2.weight"][group], stride=stride, padding=1)
            part = {key: state[f"{name}.bn2.{key}"][group] for key in ("running_mean", "running_var", "weight", "bias")}
            path = norm({f"bn.{key}": value for key, value in part.items()}, "bn", path).clamp(min=0)
            paths = paths + F.conv2d(path, state[f"{name}.conv3.weight"][:, group])
        shortcut = F.conv2d(x[..., ::stride, ::stride], state[f"{name}.shortcut.0.weight"])
        x = (norm(state, f"{name}.bn3", paths) + norm(state, f"{name}.shortcut.1", shortcut)).clamp(min=0)
    return x.mean((2, 3))


@pytest.mark.parametrize(("build", "plain"), [(densenet, plain_densenet), (resnext, plain_resnext)])
def test_forward_agrees_with_a_second_construction(build, plain):
    torch.manual_seed(0)
    backbone = build(in_channels=2, **SMALL[build]).double()
    backbone(torch.randn(8, 2, 8, 8, dtype=torch.float64))  # moves the running statistics
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(torch.randn_like(module.weight) * 0.2)
                module.bias.add_(torch.randn_like(module.bias) * 0.2)
        images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(backbone.eval()(images), plain(backbone.state_dict(), images), rtol=1e-9, atol=1e-12)


# -- shapes, taps, properties ----------------------------------------------------------------------------------------

SHAPES = {
    densenet: {"block1": (160, 1), "block2": (304, 2), "block3": (448, 4), "maps": (448, 4)},
    resnext: {"layer1": (256, 1), "layer2": (512, 2), "layer3": (1024, 4), "maps": (1024, 4)},
}


@both
@pytest.mark.parametrize(("in_channels", "size"), [(3, 32), (1, 28), (4, 8), (1, 4)])
def test_shapes_and_taps(build, in_channels, size):
    met = []

    def at(tap):
        return lambda x: met.append((tap, list(x.shape))) or torch.cat([x, x[:1]])

    with torch.device("meta"):
        backbone = build(in_channels=in_channels, size=size)
        pooled = backbone.run(
            torch.empty(2, in_channels, size, size), at={tap: at(tap) for tap in reversed(backbone.taps)}
        )
    expected = [
        (tap, [2 + i, width, size // part, size // part])
        for i, (tap, (width, part)) in enumerate(SHAPES[build].items())
    ]
    assert met == [*expected, ("pooled", [6, backbone.feature_dim])]  # forward order, a row more after each
    assert pooled.shape == (7, backbone.feature_dim) and backbone.feature_dim == SHAPES[build]["maps"][0]
    assert backbone.spatial and backbone.net is None


def test_resnext_takes_sizes_that_do_not_halve_evenly():
    assert resnext(**SMALL[resnext]).forward_maps(torch.randn(2, 3, 5, 7)).shape == (2, 1024, 2, 2)


@pytest.mark.parametrize(("growth", "dim"), [(1, 16 + 6), (5, 16 + 30)])
def test_growth(growth, dim):
    backbone = densenet(depth=10, growth=growth)
    assert backbone.feature_dim == dim and backbone(torch.randn(2, 3, 8, 8)).shape == (2, dim)


def test_cardinality_and_width():
    backbone = resnext(depth=11, cardinality=3, width=2)
    assert [layer[0].conv2.groups for layer in (backbone.layer1, backbone.layer2, backbone.layer3)] == [3, 3, 3]
    assert [layer[0].conv2.in_channels for layer in (backbone.layer1, backbone.layer2, backbone.layer3)] == [6, 12, 24]


@both
def test_what_a_tap_saw_is_not_written_over(build):
    backbone, images = build(**SMALL[build]), torch.randn(2, 3, 8, 8)
    for tap in backbone.taps:
        kept = []
        backbone.run(images, at={tap: lambda x, kept=kept: kept.extend([x, x.detach().clone()]) or x})
        assert torch.equal(*kept), tap


@both
def test_gradients_reach_every_parameter_and_are_right(build):
    torch.manual_seed(0)
    backbone = build(in_channels=1, **SMALL[build])
    backbone(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in backbone.parameters())
    backbone = backbone.double().eval()
    images = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: backbone(x)[:, :4], (images,))


def test_dropout_acts_behind_every_convolution_but_the_first_and_in_training_alone():
    torch.manual_seed(0)
    backbone, images = densenet(depth=10, growth=3, dropout=0.5), torch.randn(2, 3, 8, 8)
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in backbone.modules()) == 6 + 2
    maps = torch.randn(1, 16, 8, 8)
    assert not torch.equal(backbone.block1(maps), backbone.block1(maps))
    twice = [backbone.eval()(images) for _ in range(2)]
    without = densenet(depth=10, growth=3)
    without.load_state_dict(backbone.state_dict())
    assert torch.equal(*twice) and torch.equal(without.eval()(images), twice[0])


@pytest.mark.parametrize(("build", "options"), [(densenet, {}), (resnext, {"cardinality": 4, "width": 8})])
def test_initialisation_is_kaiming_normal_by_fan_in(build, options):
    torch.manual_seed(0)
    backbone = build(**options)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = math.sqrt(2 / module.weight[0].numel())  # a group's channels times the kernel
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(module.weight.mean().item()) < 0.1 * expected
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@both
def test_a_few_steps_fit_a_few_images(build):
    torch.manual_seed(0)
    backbone, images, targets = build(**SMALL[build]), torch.randn(8, 3, 8, 8), torch.arange(8) % 2
    model = nn.Sequential(backbone, nn.Linear(backbone.feature_dim, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_options():
    assert CifarDenseNetOptions().model_dump() == {"depth": 40, "growth": 12, "dropout": 0.0}
    assert CifarResNeXtOptions().model_dump() == {"depth": 29, "cardinality": 8, "width": 64}
    for kind in (CifarDenseNetOptions, CifarResNeXtOptions):
        assert all(field.description for field in kind.model_fields.values())
        for wrong in [{"depth": 2}, {"depth": 4}, {"depth": 30}, {"deep": 20}]:
            with pytest.raises(ValidationError):
                kind(**wrong)
    for wrong in [{"growth": 0}, {"dropout": 1.0}, {"dropout": -0.1}]:
        with pytest.raises(ValidationError):
            CifarDenseNetOptions(**wrong)
    for wrong in [{"cardinality": 0}, {"width": 0}]:
        with pytest.raises(ValidationError):
            CifarResNeXtOptions(**wrong)
    for kind, message in ((DenseNet, r"3 n \+ 4"), (ResNeXt, r"9 n \+ 2")):
        with pytest.raises(ValueError, match=f"depth must be {message}"):
            kind(depth=30)


def test_images_that_cannot_be_halved_twice_are_refused():
    with pytest.raises(RecipeError, match="halves images twice, and these have 3 pixels"):
        densenet(size=3)
