import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltcore.contract.splits import ArraySplit
from ltcore.data.loader import InMemoryLoader, crop_flip

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def make_split(size=10, channels=3, height=7, width=7):
    images = torch.randint(0, 256, (size, channels, height, width), dtype=torch.uint8)
    return ArraySplit(images, torch.arange(size) % 3)


def one_by_one(images, dy, dx, flip, padding):
    """What torchvision's RandomCrop(padding) and RandomHorizontalFlip do to one image after the other."""
    out = []
    _, _, height, width = images.shape
    for image, y, x, mirrored in zip(images, dy.tolist(), dx.tolist(), flip.tolist(), strict=True):
        padded = torch.zeros(image.shape[0], height + 2 * padding, width + 2 * padding, dtype=image.dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, y : y + height, x : x + width]
        out.append(crop.flip(2) if mirrored else crop)
    return torch.stack(out)


def normalised(images, channels=3):
    mean, std = (torch.tensor(v[:channels])[:, None, None] for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 6),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_crop_flip_is_the_slow_one(size, channels, height, width, padding, seed):
    torch.manual_seed(seed)
    images = make_split(size, channels, height, width).images
    dy, dx = torch.randint(2 * padding + 1, (2, size))
    flip = torch.randint(2, (size,))
    found = crop_flip(images, dy, dx, flip, padding)
    assert found.dtype == torch.uint8
    assert torch.equal(found, one_by_one(images, dy, dx, flip, padding))
    assert torch.equal(found, crop_flip(images, dy, dx, flip.bool(), padding))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
def test_train_batch(channels, flip, padding):
    split = make_split(channels=channels)
    loader = InMemoryLoader(split, MEAN[:channels], STD[:channels], padding, flip)
    indices = torch.tensor([3, 3, 0, 9, 1])
    batch = loader.train_batch(indices, torch.Generator().manual_seed(4))
    assert (batch.dtype, batch.shape) == (torch.float32, (5, channels, 7, 7))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    # The border is zero before normalisation, as in torchvision, not after it.
    drawn = torch.Generator().manual_seed(4)
    offsets = torch.randint(2 * padding + 1, (2, 5), generator=drawn)
    coin = torch.randint(2, (5,), generator=drawn) * flip
    expected = one_by_one(split.images[indices], offsets[0], offsets[1], coin, padding)
    torch.testing.assert_close(batch, normalised(expected, channels), rtol=1e-5, atol=1e-5)
    again = loader.train_batch(indices, torch.Generator().manual_seed(4))
    assert torch.equal(batch, again)


def test_eval_batch_is_the_plain_image():
    split = make_split()
    loader = InMemoryLoader(split, MEAN, STD, crop_padding=2, flip=True)
    found = loader.eval_batch(4, 9)
    torch.testing.assert_close(found, normalised(split.images[4:9]), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert len(loader.eval_batch(8, 99)) == 2
    assert len(loader) == 10
    plain = InMemoryLoader(split, MEAN, STD)
    generator = torch.Generator()
    assert torch.equal(plain.train_batch(torch.arange(4, 9), generator), plain.eval_batch(4, 9))
    assert torch.equal(found, plain.eval_batch(4, 9))


def test_memory_layout_does_not_matter():
    split = make_split()
    other = ArraySplit(split.images.contiguous(memory_format=torch.channels_last), split.targets)
    a, b = (InMemoryLoader(s, MEAN, STD, 1, True) for s in (split, other))
    indices = torch.arange(10)
    assert torch.equal(
        a.train_batch(indices, torch.Generator().manual_seed(1)),
        b.train_batch(indices, torch.Generator().manual_seed(1)),
    )


def test_loader_leaves_the_images_alone():
    split = make_split()
    before = split.images.clone()
    loader = InMemoryLoader(split, MEAN, STD)
    loader.train_batch(torch.arange(10), torch.Generator()).zero_()
    loader.eval_batch(0, 10).zero_()
    assert torch.equal(split.images, before)
    assert loader.eval_batch(0, 10).abs().sum() > 0


def test_all_offsets_are_drawn_and_half_are_flipped():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1] = 255  # left of the middle, so that a flip shows
    loader = InMemoryLoader(ArraySplit(image, torch.zeros(1, dtype=torch.int64)), (0.0,), (1.0,), 1, True)
    batch = loader.train_batch(torch.zeros(4000, dtype=torch.int64), torch.Generator().manual_seed(0))
    share = batch.mean(0)[0]
    # Rows 1..3 evenly; columns 0..2 unflipped, 4..2 flipped.
    expected = torch.outer(torch.tensor([0, 1, 1, 1, 0]) / 3, torch.tensor([1, 1, 2, 1, 1]) / 6)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.02)


@pytest.mark.gpu
def test_cuda_is_the_same_and_never_waits():
    split = make_split(64)
    loader = InMemoryLoader(split, MEAN, STD, 2, True, "cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    indices = torch.randperm(64)
    loader.train_batch(indices, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = loader.train_batch(indices, generator)
        found = loader.eval_batch(0, 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.shape == (64, 3, 7, 7)
    torch.testing.assert_close(found.cpu(), InMemoryLoader(split, MEAN, STD).eval_batch(0, 8))
    dy, dx, flip = torch.tensor([0, 4]), torch.tensor([1, 3]), torch.tensor([1, 0])
    moved = crop_flip(split.images[:2].cuda(), dy.cuda(), dx.cuda(), flip.cuda(), 2)
    assert torch.equal(moved.cpu(), crop_flip(split.images[:2], dy, dx, flip, 2))
