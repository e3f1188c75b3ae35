"""How SAFA's networks begin: at any tap, generated rows have the scale of their source and still look like it."""

import pytest
import torch
from ltcore_cifar_resnet.network import ResNet
from ltcore_safa import SAFA
from ltcore_safa.modules import begin_as_identity, begin_random, conv_block
from torch.nn.functional import cosine_similarity

from ltcore import Batch, Features
from ltcore.networks.timm_backbone import Timm
from ltcore.testing import make_context

CLASSES, EACH = 6, 8


def images(size):
    """Images [48, 3, size, size] of six classes: each a pattern of its own, shifted, with noise."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.randn(CLASSES, 3, size, size, generator=generator)
    targets = torch.arange(CLASSES).repeat_interleave(EACH)
    noise = torch.randn(len(targets), 3, size, size, generator=generator)
    return patterns[targets] + 0.7 * noise, targets


def at_tap(name):
    """Maps of a network with random weights, as it sees them in training, and their labels."""
    torch.manual_seed(0)
    if name == "cifar":
        network, tap, size = ResNet(depth=32), "layer2", 32
    else:
        model, tap = {"resnet18": ("resnet18", "layer3"), "lite0": ("tf_efficientnet_lite0", "blocks.4")}[name]
        options, size = Timm.Options(model=model, pretrained=False), 64
        network = Timm(options).build_backbone(in_channels=3, image_size=size)
    seen, (x, targets) = {}, images(size)
    with torch.no_grad():
        network.run(x, at={tap: lambda maps: seen.setdefault("maps", maps)})
    return seen["maps"], targets


def normal(scale, mean):
    """Made-up maps of classes that differ in their channels' means, of any scale, with a channel that is always 0."""

    def make():
        generator = torch.Generator().manual_seed(1)
        targets = torch.arange(CLASSES).repeat_interleave(EACH)
        means = torch.randn(CLASSES, 32, 1, 1, generator=generator)
        maps = means[targets] + mean + torch.randn(len(targets), 32, 6, 6, generator=generator)
        maps[:, 7] = 0
        return scale * maps, targets

    return make


TAPS = {
    "cifar": lambda: at_tap("cifar"),
    "resnet18": lambda: at_tap("resnet18"),
    "lite0": lambda: at_tap("lite0"),
    "small": normal(1e-3, 0),
    "unit": normal(1, 1),
    "large": normal(60, -2),
}


def folded(maps, targets, **options):
    """Rows, their sources, and all real rows, for head classes 0 and 1 and a batch of 32."""
    torch.manual_seed(4)
    method = SAFA(SAFA.Options(tap="maps", start_epoch=0, head_ratio=0.34, **options))
    context = make_context((EACH,) * CLASSES, seed=2, owner="safa", targets=targets, features=lambda split, tap: maps)
    method.on_run_start(context=context)
    sampler = method.build_sampler(batch_size=32, context=context)
    drawn = sampler.draw(1, None, torch.Generator().manual_seed(0))
    index, layout = drawn.indices[0], drawn.layout
    record = Features.of(Batch(maps[index], targets[index], index, layout=layout), maps[index], None)
    with torch.no_grad():
        made = method.augment_features(features=record, context=context).features[32:]
    begin = 2 * layout.head_pairs
    return made, record.features[begin : begin + 2 * layout.tail_pairs], record


def between_classes(record):
    pooled, other = record.features.mean((2, 3)), record.targets[:, None] != record.targets[None]
    return cosine_similarity(pooled[:, None], pooled[None], dim=2)[other].mean()


@pytest.mark.parametrize("generation", ["added", "whole"])
@pytest.mark.parametrize("tap", TAPS)
def test_generated_rows_have_the_scale_of_their_source_and_look_like_it(tap, generation):
    made, source, record = folded(*TAPS[tap](), generation=generation)
    assert 1 / 1.5 < made.std() / source.std() < 1.5
    own = cosine_similarity(made.mean((2, 3)), source.mean((2, 3))).mean()
    assert 1 - own < 0.4 * (1 - between_classes(record))
    assert (made - source).std() > 0.1 * source.std()  # and they are no copies


def test_as_the_paper_prints_it_the_scale_is_not_the_sources():
    """What the defaults are for: without standardised rows a network cannot know the scale of the tap."""
    made, source, _ = folded(*TAPS["large"](), generation="whole", standardise=False)
    assert made.std() < source.std() / 10


@pytest.mark.parametrize("deviation", [0.3, 1.0])
@pytest.mark.parametrize("scale", [1e-2, 1, 50])
def test_a_random_block_forgets_the_scale_of_what_comes_in(scale, deviation):
    torch.manual_seed(0)
    block = begin_random(conv_block(24, 16, 24), deviation)
    out = block(scale * torch.randn(40, 24, 8, 8))
    assert out.std().item() == pytest.approx(deviation, rel=0.25)
    assert out.mean((0, 2, 3)).abs().max() < 0.5 * deviation


@pytest.mark.parametrize("hidden", [4, 6, 9])
def test_a_block_that_begins_as_the_identity_gives_what_it_is_given_normalised(hidden):
    x = torch.randn(40, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    out = begin_as_identity(conv_block(6, 6, hidden))(5 * x + 2)
    for channel in range(min(hidden, 6)):
        assert torch.corrcoef(torch.stack([out[:, channel].flatten(), x[:, channel].flatten()]))[0, 1] > 0.99
    assert all(bool((out[:, channel] == -2).all()) for channel in range(hidden, 6))
