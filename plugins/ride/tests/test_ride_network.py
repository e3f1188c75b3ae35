"""Networks that are split: as many parameters as the authors' have, experts of their own, taps before the split."""

import copy

import pytest
import timm
import torch
from ltcore_cifar_resnet import ResNet, ResNeXt
from ltcore_ride import Experts, split_network
from torch import nn

from ltcore import Backbone, Pretraining, RecipeError
from ltcore.networks.timm_backbone import TimmBackbone


def resnet(depth=8, width=8):
    torch.manual_seed(0)
    return ResNet(depth, width)


def of_timm(name="test_resnet", **options):
    torch.manual_seed(0)
    return TimmBackbone(timm.create_model(name, num_classes=0, **options), 3, None)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


#: The network's parameters without classifiers, as the authors' code builds it with three experts.
@pytest.mark.parametrize(
    ("make", "width", "count"),
    [
        (lambda: ResNet(32, 16), 0.75, 769456),
        (lambda: ResNet(32, 16), 1.0, 1342864),
        (lambda: of_timm("resnet50"), 0.75, 39069248),
        (lambda: of_timm("resnext50_32x4d"), 0.75, 38281024),
    ],
)
def test_as_many_parameters_as_the_authors_networks(make, width, count):
    with torch.device("meta"):
        assert parameters(split_network(make(), 3, 2, width)) == count


@pytest.mark.parametrize("make", [resnet, of_timm, lambda: ResNeXt(11, 4, 8)])
@pytest.mark.parametrize("width", [1.0, 0.75, 0.5])
def test_every_row_comes_through_its_own_expert(make, width):
    """Each expert alone, as a plain network, gives its rows; no other row changes with it."""
    backbone = split_network(make(), 3, 2, width).eval()
    plain = make()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        pooled = backbone(images)
        assert pooled.shape == (12, round(width * plain.feature_dim)) and backbone.experts == 3
        assert backbone.feature_dim == pooled.shape[1]
        net = backbone.get_submodule(backbone.net) if backbone.net else backbone
        for number in range(3):
            alone = copy.deepcopy(backbone)
            inner = alone.get_submodule(alone.net) if alone.net else alone
            split = [name for name, module in net.named_children() if isinstance(module, Experts)]
            assert len(split) == 2
            for name in split:
                setattr(inner, name, getattr(inner, name)[number])
            torch.testing.assert_close(pooled[4 * number : 4 * number + 4], alone(images))
        changed = copy.deepcopy(backbone)
        inner = changed.get_submodule(changed.net) if changed.net else changed
        for parameter in getattr(inner, split[0])[1].parameters():
            parameter.zero_()
        again = changed(images)
        assert again[:4].equal(pooled[:4]) and again[8:].equal(pooled[8:]) and not again[4:8].equal(pooled[4:8])


def test_one_expert_of_full_width_is_the_network_itself():
    backbone = resnet()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert split_network(backbone, 1, 2, 1.0) is backbone and backbone.experts == 1
    assert all(value.equal(before[name]) for name, value in backbone.state_dict().items())
    assert backbone.inner_taps == ("layer1", "layer2", "layer3")


def test_one_narrow_expert_is_a_plain_narrow_network():
    backbone = split_network(resnet(), 1, 2, 0.75)
    assert backbone.experts == 1 and backbone.feature_dim == 24 and isinstance(backbone.layer3, nn.Sequential)
    assert backbone(torch.randn(2, 3, 8, 8)).shape == (2, 24) and backbone.inner_taps == ("layer1", "layer2", "layer3")


def test_the_first_expert_is_the_network_as_it_was_built_and_the_others_are_not():
    plain, backbone = resnet(32, 16), split_network(resnet(32, 16), 3, 2, 1.0)
    for name in ("layer2", "layer3"):
        experts = (expert.parameters() for expert in getattr(backbone, name))
        for built, *others in zip(getattr(plain, name).parameters(), *experts, strict=True):
            assert others[0].equal(built)
            if built.dim() > 1:
                assert not others[1].equal(built) and not others[1].equal(others[2])
                for other in others[1:]:
                    assert float(other.std()) == pytest.approx(float(built.std()), rel=0.1)
            else:
                assert others[1].equal(built) and others[2].equal(built)


def test_a_narrow_stage_is_spread_as_its_inputs_ask():
    """He's rule: the spread of the built layer times the root of old over new inputs."""
    torch.manual_seed(0)
    backbone = split_network(ResNet(14, 64), 2, 2, 0.5)
    for expert in (backbone.layer2[0], backbone.layer2[1], backbone.layer3[1]):
        for module in expert.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                assert float(module.weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
                assert abs(float(module.weight.mean())) < 0.1 * float(module.weight.std())
    assert backbone.layer2[0][0].conv1.in_channels == 64 and backbone.layer2[0][0].conv1.out_channels == 64


@pytest.mark.parametrize("channels", [2, 8])
def test_a_depthwise_convolution_stays_one(channels):
    backbone = resnet()
    backbone.layer3 = nn.Sequential(
        nn.Conv2d(16, channels, 1), nn.Conv2d(channels, channels, 3, groups=channels), nn.BatchNorm2d(channels)
    )
    backbone.feature_dim = channels
    split_network(backbone, 2, 1, 0.5)
    half = channels // 2
    assert [expert[1].groups for expert in backbone.layer3] == [half, half] and backbone.feature_dim == half
    assert backbone(torch.randn(2, 3, 16, 16)).shape == (4, half)


def test_pretrained_experts_begin_alike():
    backbone = resnet()
    backbone.pretraining = Pretraining("weights", (0.5,) * 3, (0.2,) * 3, "bilinear")
    narrow = copy.deepcopy(backbone)
    split_network(backbone, 2, 1, 1.0)
    for one, other in zip(backbone.layer3[0].parameters(), backbone.layer3[1].parameters(), strict=True):
        assert one.equal(other) and one is not other
    with pytest.raises(RecipeError, match=r"pre-trained weights are for all of them; set width: 1"):
        split_network(narrow, 2, 1, 0.75)


def test_taps_are_those_before_the_split():
    assert split_network(resnet(), 2, 2, 1.0).inner_taps == ("layer1",)
    assert split_network(resnet(), 2, 1, 1.0).inner_taps == ("layer1", "layer2")
    backbone = of_timm()
    before = backbone.inner_taps
    split_network(backbone, 2, 2, 1.0)
    assert backbone.inner_taps == tuple(tap for tap in before if not tap.startswith(("layer3", "layer4")))
    assert any(tap.startswith("layer2") for tap in backbone.inner_taps) and backbone.taps[-2:] == ("maps", "pooled")


class Headed(ResNet):
    """A network with a layer behind its last stage."""

    def __init__(self):
        super().__init__(8, 4)
        self.head, self.feature_dim = nn.Conv2d(16, 7, 1), 7


class Flat(Backbone):
    feature_dim = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Flat, (2, 2, 1.0), "Flat has 0; take a ResNet or a ResNeXt"),
        (resnet, (2, 3, 1.0), r"splits the last 3 .* ResNet has 3; lower option 'stages'"),
        (Headed, (2, 1, 1.0), "has layers behind its last stage 'layer3'"),
        (lambda: ResNeXt(11, 4, 8), (2, 2, 0.3), r"leaves 19 and 19 channels at .layer2\.0\.conv2., whose 4 groups"),
        (lambda: split_network(resnet(), 2, 1, 1.0), (2, 1, 1.0), "this one has 2 already"),
    ],
)
def test_what_cannot_be_split_is_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        split_network(make(), *options)


def test_a_layer_that_cannot_be_narrowed_is_refused():
    backbone = resnet()
    backbone.layer3.append(nn.GroupNorm(4, 32))
    with pytest.raises(RecipeError, match=r"'layer3.1' is a GroupNorm; set width: 1"):
        split_network(backbone, 2, 1, 0.5)
