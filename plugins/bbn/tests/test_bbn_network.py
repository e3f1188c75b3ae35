"""The network with its last block twice: against the published one's figures, and against the parts by themselves."""

import copy
import math

import pytest
import timm
import torch
from ltcore_bbn import BBN, bilateral, stack_pairs
from ltcore_cifar_resnet import DenseNet, ResNet, ResNeXt
from torch import nn

from ltcore import Backbone, Batch, Model, Pretraining, RecipeError
from ltcore.networks.timm_backbone import TimmBackbone
from ltcore.testing import make_context, step_losses


def resnet(depth=14, width=16):
    torch.manual_seed(0)
    return ResNet(depth, width)


def of_timm(name="test_resnet", **options):
    torch.manual_seed(0)
    return TimmBackbone(timm.create_model(name, num_classes=0, **options), 3, None)


def resnext():
    torch.manual_seed(0)
    return ResNeXt(11, 4, 8)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_as_many_parameters_as_the_published_network():
    with torch.device("meta"):
        assert parameters(bilateral(ResNet(32))) == 537488
        plain, doubled = of_timm("resnet50"), bilateral(of_timm("resnet50"))
        assert parameters(doubled) - parameters(plain) == parameters(plain.model.layer4[2])
        assert (len(doubled.shared.model.layer4), doubled.feature_dim) == (2, 4096)


@pytest.mark.parametrize("make", [resnet, lambda: resnet(8, 4), of_timm, resnext])
def test_an_image_goes_through_both_blocks_and_a_pair_through_one_each(make):
    plain, network = make().eval(), bilateral(make()).eval()
    images, others = torch.randn(2, 3, 3, 32, 32)
    width = plain.feature_dim
    with torch.no_grad():
        torch.testing.assert_close(network(images)[:, :width], plain(images))  # the first block is the built one
        one, other = network(images), network(others)
        pairs = network(stack_pairs(images, others))
    assert one.shape == pairs.shape == (3, 2 * width) and network.feature_dim == 2 * width
    assert torch.equal(pairs, torch.cat([one[:, :width], other[:, width:]], 1))
    assert not torch.allclose(one[:, :width], one[:, width:])  # drawn anew
    assert network.inner_taps == () and network.taps == ("maps", "pooled") and network.spatial


def test_batch_norm_sees_one_samplers_images_at_a_time():
    network = bilateral(resnet(8, 4)).train()
    images, others = torch.randn(2, 6, 3, 16, 16)
    apart = copy.deepcopy(network)
    network(stack_pairs(images, others))
    apart.conventional(apart.shared.forward_maps(images))
    apart.rebalancing(apart.shared.forward_maps(others))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, apart.get_buffer(name)), name
    assert int(network.shared.bn1.num_batches_tracked) == 2 and int(network.conventional.bn1.num_batches_tracked) == 1


def test_pretrained_weights_are_in_both_blocks():
    backbone = resnet()
    backbone.pretraining = Pretraining("some", (0.5,), (0.5,), "bilinear")
    network = bilateral(backbone)
    for name, parameter in network.conventional.named_parameters():
        other = network.rebalancing.get_parameter(name)
        assert torch.equal(parameter, other) and parameter is not other
    assert network.pretraining is backbone.pretraining


def test_drawn_weights_are_as_spread():
    network = bilateral(resnet(32))
    for name, parameter in network.conventional.named_parameters():
        if parameter.dim() > 1:
            spread = float(network.rebalancing.get_parameter(name).detach().std())
            assert spread == pytest.approx(float(parameter.detach().std()), rel=0.05)


def test_names_are_those_of_the_network():
    assert bilateral(resnet()).net == "shared" and bilateral(of_timm()).net == "shared.model"


class Parts(Backbone):
    """Something that is no residual network."""

    feature_dim = 4

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseNet(7, 4), "has no such stages"),
        (lambda: of_timm("test_vit"), "has none or does more behind them"),
        (lambda: Parts(layer1=nn.Conv2d(3, 4, 1)), "has no such stages"),
        (lambda: Parts(layer1=nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))), "layers behind its last stage"),
        (lambda: of_timm("test_resnet", global_pool="max"), "has none or does more behind them"),
    ],
)
def test_other_networks_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        bilateral(make())


def test_experts_are_refused():
    backbone = resnet()
    backbone.experts = 2
    with pytest.raises(RecipeError, match="this one has 2 experts"):
        bilateral(backbone)


# ---------------------------------------------------------------- the published code
#
# What megvii-research/BBN (lib/backbone/resnet_cifar.py and lib/core/combiner.py's own rule at 7992e908, 200 epochs)
# gave on 2026-11-27 for the inputs below and two blocks a stage, in its epochs 1, 61 and 200: loss, sum of the logits'
# absolute values, norms of gradients and of running statistics, and the logits' sum in a test.

SAME = {
    "shared.bn1.running_mean": 0.006061718243771442,
    "shared.layer3.0.bn2.running_var": 6.802583696637858,
    "conventional.bn1.running_mean": 0.5813116233793567,
    "rebalancing.bn2.running_var": 7.207449359221434,
}
PUBLISHED = {
    0: {
        "loss": 3.5723915100097656,
        "logits": 58.74020829796791,
        "shared.conv1.weight": 13.507998400448539,
        "shared.layer2.0.conv1.weight": 0.8637621110395445,
        "shared.layer3.0.bn2.weight": 0.6606663524928476,
        "conventional.conv1.weight": 10.107956802567724,
        "rebalancing.conv2.weight": 0.0,
        "weight": 12.723950099101264,
    },
    60: {
        "loss": 3.2852768898010254,
        "logits": 51.93660765886307,
        "shared.conv1.weight": 12.06971910352252,
        "shared.layer2.0.conv1.weight": 0.7339372954683413,
        "shared.layer3.0.bn2.weight": 0.5807676303249577,
        "conventional.conv1.weight": 8.48723187621135,
        "rebalancing.conv2.weight": 1.891867071187799,
        "weight": 10.884831374883984,
    },
    199: {
        "loss": 1.8280038833618164,
        "logits": 26.659362144768238,
        "shared.conv1.weight": 14.857440346003557,
        "shared.layer2.0.conv1.weight": 0.6709906119896873,
        "shared.layer3.0.bn2.weight": 0.9607979662837373,
        "conventional.conv1.weight": 0.09348907307610403,
        "rebalancing.conv2.weight": 22.550513065285546,
        "weight": 8.414067890689731,
    },
}
TEST = 36.54147344827652


def wave(*shape, k, scale=1.0):
    """The inputs, which can be written down anywhere."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(0.37 * n + k) + torch.cos(1.3 * n * (1 + k))).float().reshape(shape) * scale


@torch.no_grad()
def fill(module):
    for i, (name, p) in enumerate(module.named_parameters()):
        if p.dim() > 1:
            p.copy_(wave(*p.shape, k=0.1 * i, scale=(1 / p[0].numel()) ** 0.5))
        elif name.endswith("weight"):
            p.copy_(1 + wave(*p.shape, k=0.1 * i, scale=0.2))
        else:
            p.copy_(wave(*p.shape, k=0.1 * i, scale=0.2))


@pytest.mark.parametrize("epoch", PUBLISHED)
def test_a_step_is_that_of_the_published_code(epoch, step_of):
    network, classifier = bilateral(resnet()), nn.Linear(128, 5)
    fill(network)
    fill(classifier)
    images, others = wave(6, 3, 16, 16, k=0.3), wave(6, 3, 16, 16, k=0.8)
    targets, other_targets = torch.tensor([0, 0, 1, 2, 0, 1]), torch.tensor([3, 4, 4, 2, 3, 0])
    loss, logits = step_of(network.train(), classifier, (images, targets), (others, other_targets), epoch, 200)
    loss.backward()
    expected = dict(PUBLISHED[epoch])
    assert loss.item() == pytest.approx(expected.pop("loss"), rel=1e-4)
    assert logits.double().abs().sum().item() == pytest.approx(expected.pop("logits"), rel=1e-4)
    named = {**dict(network.named_parameters()), "weight": classifier.weight}
    for name, norm in expected.items():
        assert named[name].grad.double().norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for name, norm in SAME.items():
        assert network.get_buffer(name).double().norm().item() == pytest.approx(norm, rel=1e-4), name
    with torch.no_grad():
        assert classifier(network.eval()(images)).double().abs().sum().item() == pytest.approx(TEST, rel=1e-4)


@pytest.fixture
def step_of():
    """``(network, classifier, batch, other batch, epoch, epochs)``: the loss of a step of core's with `bbn` in it."""

    def step(network, classifier, batch, other, epoch, epochs, **options):
        method = BBN(BBN.Options(**options))
        model = Model(network, classifier, {"bbn": method})
        counts = torch.bincount(batch[1], minlength=classifier.out_features)
        context = make_context(counts, epoch, epochs, model=model, targets=batch[1])
        rows = torch.arange(len(batch[1]))
        extra = Batch(*other, rows)
        seen = []
        handle = classifier.register_forward_hook(lambda module, arguments, output: seen.append(output.detach()))
        losses = step_losses(Batch(*batch, rows, extras={"bbn": extra}), {"bbn": method}, context)
        handle.remove()
        assert list(losses) == ["classification"]
        return losses["classification"], seen[0]

    return step
