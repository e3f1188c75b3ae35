import pytest
import timm
import torch
from torch import nn

from ltcore.backbones import Backbone, Timm, TimmBackbone, TimmOptions
from ltcore.errors import RecipeError


def build(model: str, channels: int = 3, size: int = 64, **options) -> TimmBackbone:
    torch.manual_seed(0)
    return Timm(TimmOptions(model=model, **options)).build_backbone(channels, size).eval()


def on_meta(model: str) -> TimmBackbone:
    with torch.device("meta"):
        return build(model)


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


@pytest.mark.parametrize(("model", "spatial"), SPATIAL.items())
def test_spatial_is_read_off_the_model(model, spatial):
    backbone = on_meta(model)
    assert backbone.spatial == spatial
    assert next(backbone.parameters()).is_meta
    size = 224 if "224" in model else 64
    maps = backbone.forward_maps(torch.empty(2, 3, size, size, device="meta"))
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
    assert not TimmBackbone(timm.create_model("test_resnet", num_classes=0, global_pool="max")).spatial
    assert TimmBackbone(timm.create_model("test_resnet", num_classes=0, in_chans=1), 1).spatial


@pytest.mark.parametrize("size", [32, 48])
def test_a_model_for_one_size_of_images_is_made_for_the_datas(size):
    assert build("test_vit", size=size)(torch.randn(1, 3, size, size)).shape == (1, 64)


def test_channels_and_options_reach_timm():
    assert build("test_resnet", channels=1)(torch.randn(1, 1, 32, 32)).shape == (1, 96)
    assert any(getattr(m, "drop_prob", 0) for m in build("resnet18", drop_path_rate=0.1).modules())


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"\.model: timm has no model 'resnet81'; did you mean 'resnet"):
        build("resnet81")
    with pytest.raises(RecipeError, match=r"options: timm could not make 'test_resnet\.nothing'"):
        build("test_resnet.nothing", pretrained=True)


def test_taps_are_timms_stages_then_maps_and_pooled():
    assert build("resnet18").taps == ("act1", "layer1", "layer2", "layer3", "layer4", "maps", "pooled")
    for model in SPATIAL:
        backbone = on_meta(model)
        assert backbone.taps[-2:] == ("maps", "pooled") and len(set(backbone.taps)) == len(backbone.taps)
        assert all(isinstance(backbone.module_at(tap), nn.Module) for tap in backbone.inner_taps)


class Net(Backbone):
    inner_taps = ("early", "late")
    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

    def forward_maps(self, images: torch.Tensor) -> torch.Tensor:
        return self.late(self.early(images))


@pytest.mark.parametrize(("make", "images"), [(Net, (5, 2, 6, 6)), (lambda: build("test_resnet"), (5, 3, 64, 64))])
def test_tap_functions_change_features_and_the_number_of_rows(make, images):
    backbone, images, met = make().eval(), torch.randn(images), []

    def at(tap):
        def change(x):
            met.append((tap, len(x)))
            return torch.cat([x, 2 * x[:1]])

        return change

    with torch.no_grad():
        plain = backbone.run(images)
        changed = backbone.run(images, at={tap: at(tap) for tap in reversed(backbone.taps)})
    assert met == [(tap, 5 + before) for before, tap in enumerate(backbone.taps)]
    torch.testing.assert_close(changed[:5], plain)
    torch.testing.assert_close(changed[-1], 2 * plain[0])
    assert len(changed) == 5 + len(backbone.taps)
    torch.testing.assert_close(backbone.run(images), plain)  # nothing stays behind
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_tap_function_that_fails_leaves_nothing_behind():
    backbone = Net()
    with pytest.raises(ZeroDivisionError):
        backbone.run(torch.randn(1, 2, 2, 2), at={"early": lambda x: 1 / 0})
    assert not backbone.early._forward_hooks and not backbone.late._forward_hooks


def test_a_run_can_begin_at_maps_or_pooled():
    backbone, images = Net(), torch.randn(4, 2, 6, 6)
    maps = backbone.forward_maps(images)
    plain = backbone(images)
    assert torch.equal(backbone.run(maps, "maps"), plain) and torch.equal(backbone.run(plain, "pooled"), plain)
    double = {"maps": lambda x: 2 * x, "pooled": lambda x: x + 1}
    torch.testing.assert_close(backbone.run(maps, "maps", double), 2 * plain + 1)
    torch.testing.assert_close(backbone.run(plain, "pooled", double), plain + 1)
    assert backbone.spatial and backbone.taps == ("early", "late", "maps", "pooled")
