"""The views' crops against torchvision's, and their colours against the formulas of each change."""

import pytest
import scipy.stats
import torch
from ltcore_bcl import draw_crop, strong_view
from torchvision.transforms import RandomResizedCrop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "smallest"), [((32, 32), 0.2), ((24, 40), 0.08), ((8, 8), 0.5)])
def test_crops_are_distributed_as_torchvisions(size, smallest):
    draws = generator()
    ours = torch.tensor([draw_crop(*size, smallest, draws) for _ in range(4000)]).double()
    torch.manual_seed(1)
    image = torch.zeros(1, *size)
    theirs = [RandomResizedCrop.get_params(image, (smallest, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    theirs = torch.tensor(theirs).double()
    for what in (lambda x: x[:, 2] * x[:, 3], lambda x: x[:, 3] - x[:, 2], lambda x: x[:, 0], lambda x: x[:, 1]):
        assert scipy.stats.ks_2samp(what(ours), what(theirs)).pvalue > 0.01


def test_a_crop_lies_in_the_image():
    draws = generator(2)
    for height, width in ((1, 1), (3, 50), (50, 3), (9, 7)):
        for _ in range(200):
            top, left, tall, wide = draw_crop(height, width, 0.08, draws)
            assert 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width and tall > 0 and wide > 0


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (5, 9, 12), (3, 2, 2)])
def test_a_view_keeps_shape_and_type_and_follows_the_generator(shape):
    image = torch.randint(256, shape, generator=generator(), dtype=torch.uint8)
    before, state = image.clone(), torch.get_rng_state()
    views = [strong_view(image, 0, generator(seed), 0.2, 0.5) for seed in (0, 0, *range(1, 20))]
    assert all(view.shape == shape and view.dtype == torch.uint8 for view in views)
    assert torch.equal(views[0], views[1]) and any(not torch.equal(views[0], view) for view in views[2:])
    assert torch.equal(image, before) and torch.equal(torch.get_rng_state(), state)


def test_a_fifth_is_grey_and_a_fifth_keeps_its_colours():
    image = torch.tensor([200, 60, 20], dtype=torch.uint8)[:, None, None].expand(3, 6, 6)  # no crop and no blur shows
    views = torch.stack([strong_view(image, 0, generator(seed))[:, 0, 0] for seed in range(1500)])
    grey = (views == views[:, :1]).all(1).float().mean().item()
    kept = (views == image[:, 0, 0]).all(1).float().mean().item()
    assert grey == pytest.approx(0.2, abs=0.03) and kept == pytest.approx(0.2 * 0.8, abs=0.03)


def test_brightness_and_contrast_of_one_channel_stay_within_their_factors():
    """A plain image has no contrast, so that brightness alone acts: 100 times a factor in [0.6, 1.4]."""
    image = torch.full((1, 5, 5), 100, dtype=torch.uint8)
    views = torch.stack([strong_view(image, 0, generator(seed)) for seed in range(800)]).float()
    values = views.mean((1, 2, 3))
    assert 60 <= values.min() < 64 and 136 < values.max() <= 140
    changed = values[values != 100] / 100
    assert scipy.stats.kstest(changed, scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 0.01


def test_blur_comes_as_often_as_asked_and_only_smooths():
    noise = torch.randint(
        256, (4, 16, 16), generator=generator(), dtype=torch.uint8
    )  # four channels: no colours change
    rough = [strong_view(noise, 0, generator(seed), 1.0).float().diff(dim=2).abs().mean() for seed in range(60)]
    smooth = [strong_view(noise, 0, generator(seed), 1.0, 1.0).float().diff(dim=2).abs().mean() for seed in range(60)]
    half = [strong_view(noise, 0, generator(seed), 1.0, 0.5).float().diff(dim=2).abs().mean() for seed in range(60)]
    assert all(b <= a + 0.5 for a, b in zip(rough, smooth, strict=True)) and sum(smooth) < 0.7 * sum(rough)
    assert 15 < sum(a != b for a, b in zip(rough, half, strict=True)) < 45
