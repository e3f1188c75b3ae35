import math

import numpy as np
import pytest
import torch
from ltcore_cifar_resnet import CifarResNet, CifarResNetOptions, ResNet
from pydantic import ValidationError
from scipy.signal import correlate2d
from torch import nn

DEPTHS = (8, 20, 32, 44, 56, 110)


def build(depth=8, width=16, in_channels=3):
    options = CifarResNetOptions(depth=depth, width=width)
    return CifarResNet(options).build_backbone(in_channels=in_channels)


# -- the well-known figures ------------------------------------------------------------------------------------------


def parameters_by_hand(depth: int) -> int:
    """Ten classes, three channels, widths 16/32/64, counted on paper.

    Stem: 3*16*9 + 2*16 = 464. Linear: 64*10 + 10 = 650. A block of width d: two convolutions d*d*9 and two batch norms
    2*d: 4672, 18560, 73984 for 16, 32, 64. The first block of stages two and three reads half the channels, which
    saves d*d*9/2 = 4608 and 18432. Shortcuts have none.
    """
    blocks = (depth - 2) // 6
    return 464 + 650 - 4608 - 18432 + blocks * (4672 + 18560 + 73984)


@pytest.mark.parametrize(
    ("depth", "exact", "millions"),
    [
        (8, 75_290, None),
        (20, 269_722, 0.27),
        (32, 464_154, 0.46),
        (44, 658_586, 0.66),
        (56, 853_018, 0.85),
        (110, 1_727_962, 1.7),
    ],
)
def test_parameter_counts(depth, exact, millions):
    model = nn.Sequential(build(depth), nn.Linear(64, 10))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == exact == parameters_by_hand(depth)
    assert millions is None or f"{count / 1e6:.2f}".startswith(str(millions))


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_weighted_layers(depth):
    convolutions = [module for module in build(depth, width=1).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == depth  # the classifier is the one
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)
    assert sum(c.stride == (2, 2) for c in convolutions) == 2


# -- against an independent construction -----------------------------------------------------------------------------


def numpy_forward(state: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """ResNet-8 in eval mode for one image [C, H, W], from its weights alone, with SciPy's correlation."""

    def conv(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        kernels = state[f"{name}.weight"]
        full = [sum(correlate2d(plane, k, "same") for plane, k in zip(x, kernel, strict=True)) for kernel in kernels]
        return np.stack(full)[:, ::stride, ::stride]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var, gain, offset = (
            state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * gain + offset

    x = np.maximum(norm(conv(image, "conv1"), "bn1"), 0)
    for layer, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        name = f"{layer}.0"
        y = np.maximum(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"), 0)
        y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
        shortcut = np.zeros_like(y)
        before = (len(y) - len(x)) // 2
        shortcut[before : before + len(x)] = x[:, ::stride, ::stride]
        x = np.maximum(y + shortcut, 0)
    return x.mean((1, 2))


@pytest.mark.parametrize(("in_channels", "size"), [(3, 8), (1, 7)])
def test_forward_agrees_with_scipy(in_channels, size):
    torch.manual_seed(0)
    backbone = build(8, width=2, in_channels=in_channels).double()
    backbone(torch.randn(16, in_channels, size, size, dtype=torch.float64))  # moves the running statistics
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "bn" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        images = torch.randn(2, in_channels, size, size, dtype=torch.float64)
        ours = backbone.eval()(images).numpy()
    state = {name: value.numpy() for name, value in backbone.state_dict().items()}
    np.testing.assert_allclose(ours, [numpy_forward(state, image) for image in images.numpy()], rtol=1e-9, atol=1e-12)


# -- shapes, taps, properties ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [d if d <= 32 else pytest.param(d, marks=pytest.mark.slow) for d in DEPTHS])
@pytest.mark.parametrize(("in_channels", "size"), [(3, 32), (1, 8), (4, 28), (1, 5)])
def test_shapes_on_the_meta_device(depth, in_channels, size):
    with torch.device("meta"):
        backbone = build(depth, in_channels=in_channels)
        images = torch.empty(2, in_channels, size, size)
        shapes: dict[str, list[int]] = {}
        for tap in backbone.taps:
            backbone.run(images, at={tap: lambda x, tap=tap: shapes.setdefault(tap, list(x.shape)) and x})
    half, quarter = math.ceil(size / 2), math.ceil(size / 4)
    assert shapes == {
        "layer1": [2, 16, size, size],
        "layer2": [2, 32, half, half],
        "layer3": [2, 64, quarter, quarter],
        "maps": [2, 64, quarter, quarter],
        "pooled": [2, 64],
    }
    assert list(shapes) == ["layer1", "layer2", "layer3", "maps", "pooled"]
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert backbone.feature_dim == 64 and backbone.spatial and backbone.net is None


@pytest.mark.parametrize("width", [1, 3, 16])
def test_width(width):
    backbone = build(8, width)
    assert backbone.feature_dim == 4 * width
    assert backbone(torch.randn(2, 3, 8, 8)).shape == (2, 4 * width)


def test_layer3_and_maps_are_one_tensor_and_pool_is_the_mean():
    backbone, images = build(8, width=2).eval(), torch.randn(3, 3, 8, 8)
    seen = {}
    pooled = backbone.run(images, at={tap: lambda x, tap=tap: seen.setdefault(tap, x) for tap in ("layer3", "maps")})
    assert seen["layer3"] is seen["maps"]
    torch.testing.assert_close(pooled, seen["maps"].mean((2, 3)))
    assert torch.equal(backbone.run(seen["maps"], start="maps"), pooled)


def test_what_a_tap_saw_is_not_written_over():
    backbone, images = build(20, width=2), torch.randn(3, 3, 8, 8)
    seen, copies = {}, {}
    for tap in backbone.taps:

        def keep(x, tap=tap):
            seen[tap], copies[tap] = x, x.detach().clone()
            return x

        backbone.run(images, at={tap: keep})
    assert all(torch.equal(seen[tap], copies[tap]) for tap in backbone.taps)


def test_rows_may_be_appended_at_a_tap():
    backbone = build(8, width=2)
    assert backbone.run(torch.randn(3, 3, 8, 8), at={"layer2": lambda x: torch.cat([x, x[:1]])}).shape == (4, 8)


@pytest.mark.parametrize("size", [8, 32])
def test_one_image_gives_finite_features_and_gradients(size):
    torch.manual_seed(0)
    backbone = build(20, width=4)
    pooled = backbone(torch.randn(1, 3, size, size))
    pooled.square().sum().backward()
    assert torch.isfinite(pooled).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())


def test_gradcheck_through_the_network():
    torch.manual_seed(0)
    backbone = build(8, width=1, in_channels=1).double().eval()
    images = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(backbone, (images,))


def test_channels_last_gives_the_same_and_stays():
    torch.manual_seed(0)
    backbone, images = build(8).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = backbone.forward_maps(images)
        last = backbone.to(memory_format=torch.channels_last)
        maps = last.forward_maps(images.to(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(maps, plain, rtol=1e-4, atol=1e-5)


def test_initialisation_is_kaiming_normal_by_fan_in():
    torch.manual_seed(0)
    backbone = build(56)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = math.sqrt(2 / (module.in_channels * 9))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(module.weight.mean().item()) < 0.1 * expected
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_same_seed_same_network():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(8).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_options():
    assert CifarResNet().options.model_dump() == {"depth": 32, "width": 16}
    assert all(field.description for field in CifarResNetOptions.model_fields.values())
    for wrong in [{"depth": 18}, {"width": 0}, {"width": 1.5}, {"deep": 20}]:
        with pytest.raises(ValidationError):
            CifarResNetOptions(**wrong)
    for depth in (2, 18):
        with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2"):
            ResNet(depth)
