import json
from pathlib import Path

import pytest
import timm
import torch
from packaging.version import Version
from torch import nn

from ltcore.errors import RecipeError
from ltcore.networks.tap_probe import probe, tap_shapes
from ltcore.networks.timm_backbone import Timm, TimmBackbone, TimmOptions


def build(model: str, channels: int = 3, size: int = 64, **options) -> TimmBackbone:
    torch.manual_seed(0)
    return Timm(TimmOptions(model=model, **options)).build_backbone(channels, size).eval()


def on_meta(model: str, size: int = 64) -> TimmBackbone:
    with torch.device("meta"):
        return build(model, size=size)


def skip_where_timm_cannot(model):
    """Older timm of those that we support makes no RegNet on the meta device; a recipe with one is refused there."""
    if model.startswith("regnet") and Version(timm.__version__) < Version("1.0.30"):
        pytest.skip("timm makes RegNets on the meta device from 1.0.30 on")


# Models, and whether their maps are [N, D, H, W] with a plain mean behind them.
SPATIAL = {
    "resnet18": True,
    "resnet50": True,
    "resnext50_32x4d": True,
    "densenet121": True,
    "efficientnet_b0": True,
    "tf_efficientnet_lite0": True,
    "regnety_004": True,
    "mobilenetv2_100": True,
    "convnext_tiny": False,  # a norm behind the pool
    "mobilenetv3_small_100": False,  # a convolution behind the pool
    "vit_tiny_patch16_224": False,  # tokens
    "swin_tiny_patch4_window7_224": False,  # [N, H, W, D]
    "vgg11": False,  # layers behind the pool
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("model", "spatial"), SPATIAL.items())
def test_spatial_is_read_off_the_model(model, spatial):
    skip_where_timm_cannot(model)
    backbone = on_meta(model)
    assert backbone.spatial == spatial
    assert next(backbone.parameters()).is_meta
    maps = backbone.forward_maps(torch.empty(2, 3, 64, 64, device="meta"))
    assert backbone.pool(maps).shape == (2, backbone.feature_dim)
    if spatial:
        assert maps.shape == (2, backbone.feature_dim, 2, 2)


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2_100", "efficientnet_b0", "test_resnet"])
def test_where_it_is_spatial_the_pool_is_the_mean(model):
    backbone, images = build(model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = backbone.forward_maps(images)
        torch.testing.assert_close(backbone.pool(maps), maps.mean((2, 3)))
        torch.testing.assert_close(backbone(images), backbone.model(images))  # timm's own way
    assert backbone.spatial and not next(backbone.parameters()).is_meta


@pytest.mark.parametrize("model", ["mobilenetv3_small_100", "test_vit"])
def test_where_it_is_not_the_features_are_timms_all_the_same(model):
    backbone = build(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = backbone(images)
        torch.testing.assert_close(pooled, backbone.model(images))
    assert pooled.shape == (2, backbone.feature_dim) and not backbone.spatial


def test_a_pool_that_takes_the_maximum_too_is_no_mean():
    assert not TimmBackbone(timm.create_model("test_resnet", num_classes=0, global_pool="max"), 3, None).spatial
    assert TimmBackbone(timm.create_model("test_resnet", num_classes=0, in_chans=1), 1, None).spatial


@pytest.mark.parametrize("size", [32, 48])
def test_a_model_for_one_size_of_images_is_made_for_the_datas(size):
    assert build("test_vit", size=size)(torch.randn(1, 3, size, size)).shape == (1, 64)


def test_channels_and_options_reach_timm():
    assert build("test_resnet", channels=1)(torch.randn(1, 1, 32, 32)).shape == (1, 96)
    assert any(getattr(m, "drop_prob", 0) for m in build("resnet18", drop_path_rate=0.1).modules())


def test_resnet_10_has_a_block_a_stage():
    ten = build("resnet18", layers=[1, 1, 1, 1])
    # By hand: stem 3*64*49 + 128; a basic block a -> b has 9*a*b + 9*b*b + 4*b, and a*b + 2*b where it changes shape.
    blocks = [(64, 64), (64, 128), (128, 256), (256, 512)]
    wanted = (
        3 * 64 * 49 + 128 + sum(9 * a * b + 9 * b * b + 4 * b + (a * b + 2 * b if a != b else 0) for a, b in blocks)
    )
    assert sum(parameter.numel() for parameter in ten.parameters()) == wanted
    with pytest.raises(RecipeError, match="could not make 'vit_tiny_patch16_224'"):
        build("vit_tiny_patch16_224", layers=[1])


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"\.model: timm has no model 'resnet81'; did you mean 'resnet"):
        build("resnet81")
    with pytest.raises(RecipeError, match=r"options: timm could not make 'test_resnet\.nothing'"):
        build("test_resnet.nothing", pretrained=True)


# The inner taps of each family, in forward order, with the shape of a row for images of 64 pixels.
TAPS = {
    "resnet18": {
        "act1": (64, 32, 32),
        "layer1": (64, 16, 16),
        "layer2": (128, 8, 8),
        "layer3": (256, 4, 4),
        "layer4": (512, 2, 2),
    },
    "resnext50_32x4d": {
        "act1": (64, 32, 32),
        "layer1": (256, 16, 16),
        "layer2": (512, 8, 8),
        "layer3": (1024, 4, 4),
        "layer4": (2048, 2, 2),
    },
    "densenet121": {
        "features.norm0": (64, 32, 32),
        "features.denseblock1": (256, 16, 16),
        "features.denseblock2": (512, 8, 8),
        "features.denseblock3": (1024, 4, 4),
        "features.denseblock4": (1024, 2, 2),
        "features.norm5": (1024, 2, 2),
    },
    "efficientnet_lite0": {
        "blocks.0": (16, 32, 32),
        "blocks.1": (24, 16, 16),
        "blocks.2": (40, 8, 8),
        "blocks.3": (80, 4, 4),
        "blocks.4": (112, 4, 4),
        "blocks.5": (192, 2, 2),
        "blocks.6": (320, 2, 2),
    },
    "convnext_atto": {
        "stages.0": (40, 16, 16),
        "stages.1": (80, 8, 8),
        "stages.2": (160, 4, 4),
        "stages.3": (320, 2, 2),
    },
    "regnetx_002": {"stem": (32, 32, 32), "s1": (24, 16, 16), "s2": (56, 8, 8), "s3": (152, 4, 4), "s4": (368, 2, 2)},
    "mobilenetv3_small_050": {
        "bn1": (16, 32, 32),
        "blocks.0": (8, 16, 16),
        "blocks.1": (16, 8, 8),
        "blocks.2": (24, 4, 4),
        "blocks.3": (24, 4, 4),
        "blocks.4": (48, 2, 2),
        "blocks.5": (288, 2, 2),
    },
    "vit_tiny_patch16_224": {f"blocks.{i}": (17, 192) for i in range(12)},  # 4 x 4 patches and the class token
    "deit_tiny_distilled_patch16_224": {f"blocks.{i}": (18, 192) for i in range(12)},
    "swin_tiny_patch4_window7_224": {
        "layers.0": (16, 16, 96),  # [H, W, D]
        "layers.1": (8, 8, 192),
        "layers.2": (4, 4, 384),
        "layers.3": (2, 2, 768),
    },
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("model", "expected"), TAPS.items())
def test_taps_of_each_family(model, expected):
    skip_where_timm_cannot(model)
    backbone, images = on_meta(model), torch.empty(3, 3, 64, 64, device="meta")
    met = []

    def at(tap):
        def change(x):
            met.append((tap, tuple(x.shape)))
            return torch.cat([x, x[:1]])

        return change

    pooled = backbone.run(images, at={tap: at(tap) for tap in backbone.taps})
    # Each once, in the order of the taps, and the rows that were appended before are there.
    assert [tap for tap, _ in met] == list(backbone.taps) == [*expected, "maps", "pooled"]
    assert [shape[0] for _, shape in met] == [3 + before for before in range(len(met))]
    assert {tap: shape[1:] for tap, shape in met if tap in expected} == expected
    assert pooled.shape == (3 + len(met), backbone.feature_dim)
    assert all(isinstance(backbone.module_at(tap), nn.Module) for tap in backbone.inner_taps)
    assert tap_shapes(backbone, (3, 64, 64)) == {tap: shape[1:] for tap, shape in met}
    tokens = model.startswith(("vit", "deit", "swin"))
    assert [backbone.has_maps(tap) for tap in backbone.taps] == [not tokens] * (len(met) - 1) + [False]


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_with_values_a_changed_tap_changes_its_row_alone(model):
    backbone, images = build(model, size=32), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        plain = backbone(images)
        for tap in backbone.taps:
            changed = backbone.run(images, at={tap: lambda x: torch.cat([x[:1], 1 - x[1:2], x[2:], x[:1]])})
            torch.testing.assert_close(changed[[0, 2, 3]], plain[[0, 2, 0]])
            assert not torch.allclose(changed[1], plain[1])
    assert not any(module._forward_hooks for module in backbone.modules())
    assert not backbone.training and not next(backbone.parameters()).is_meta  # trying the taps left it as it was


class Odd(TimmBackbone):
    """Modules of every kind that cannot be a tap, beside one that can."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.model, self.feature_dim = nn.Module(), 4
        for name in ("good", "twice", "overwritten", "unused", "tuple", "counted"):
            self.model.add_module(name, nn.Conv2d(4, 4, 1))
        self.model.tuple = nn.MaxPool2d(1, return_indices=True)

    def forward_maps(self, images):
        net = self.model
        x = net.twice(net.twice(net.good(images)))
        x = net.overwritten(x).relu_()
        x, rows = net.tuple(x)[0], len(x)
        return net.counted(x).reshape(rows, 4, *x.shape[2:])

    def pool(self, maps):
        return maps.mean((2, 3))


def test_what_cannot_be_a_tap_is_not_listed():
    names = ["counted", "good", "overwritten", "tuple", "twice", "unused"]
    found = probe(Odd(), names, (4, 5, 6))
    assert found.inner == {"good": (4, 5, 6)} and found.maps == (4, 5, 6) and found.plain_mean


def test_a_network_that_shapes_do_not_carry_through_has_no_inner_taps():
    class Branching(Odd):
        def forward_maps(self, images):
            return images if images.sum() > 0 else -images

    found = probe(Branching(), ["good"], (4, 5, 6))
    assert found.inner == {} and found.maps == () and not found.plain_mean


def test_images_that_a_network_does_not_take_are_refused():
    with pytest.raises(RecipeError, match=r"does not take images of 3 x 8 x 8 .*; name another size"):
        tap_shapes(on_meta("test_vit"), (3, 8, 8))


def test_the_options_are_documented_with_their_defaults():
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    rows = [row.split(" | ") for row in text.split("| option | default |")[1].split("\n\n")[0].splitlines()[2:]]
    documented = {row[0].strip("|` "): row[1].strip("`") for row in rows}
    fields = TimmOptions.model_fields
    assert documented == {
        name: "*required*" if field.is_required() else json.dumps(field.default) for name, field in fields.items()
    }
