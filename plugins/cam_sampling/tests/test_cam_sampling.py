"""CAM-based sampling, against SciPy and loops."""

import numpy as np
import pytest
import torch
from ltcore_cam_sampling import CamSampling, boxes, class_activation, foreground, made_share, moved, paste, sources
from scipy.ndimage import affine_transform

SIZE = 9


def mask_of():
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 2:5, 3:7] = True
    return mask


def places_of(*uniform):
    return sources(boxes(mask_of()), torch.tensor([uniform]), SIZE, SIZE)


def test_shares_fill_the_classes_up():
    counts = torch.tensor([500, 150, 40, 5])
    assert made_share(counts, None).tolist() == pytest.approx([5 / 505, 355 / 505, 465 / 505, 500 / 505])
    assert made_share(counts, 100).tolist() == pytest.approx([0, 0, 100 / 140, 100 / 105])
    assert CamSampling().options.model_dump() == {"guide": None, "share": 0.75, "at_most": None}


def test_activation_and_foreground_are_loops():
    torch.manual_seed(0)
    maps, weight = torch.randn(3, 5, 4, 4), torch.randn(3, 5)
    found = class_activation(maps, weight, 4, 4)
    for image in range(3):
        cam = sum(weight[image, d] * maps[image, d] for d in range(5))
        cam = (cam - cam.min()) / (cam.max() - cam.min())
        torch.testing.assert_close(found[image], cam)
        assert torch.equal(foreground(found, 0.75)[image], found[image] >= 0.75 * found[image].mean())
    assert class_activation(torch.ones(1, 5, 4, 4), weight[:1], 8, 8).abs().max() == 0


def test_boxes_are_the_first_and_the_last_pixel():
    assert boxes(mask_of()).tolist() == [[3, 2, 6, 4]]
    assert boxes(torch.zeros(1, 4, 6, dtype=torch.bool)).tolist() == [[0, 0, 5, 3]]


def test_a_turn_is_scipys():
    image, angle, scale = torch.rand(1, 1, SIZE, SIZE), np.deg2rad(90 * 0.8 - 45), 0.8 + 0.4 * 0.3
    found = moved(image, places_of(0.1, 0.8, 0.3, 0, 0))[0, 0]
    middle = np.array([3.0, 4.5])  # y, x
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    expected = affine_transform(image[0, 0].numpy(), matrix, middle - matrix @ middle, order=1, mode="grid-constant")
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("x", "y", "by"), [(0.0, 0.0, (-3, -2)), (0.999, 0.999, (2, 4))])
def test_a_shift_keeps_the_box_in_the_frame(x, y, by):
    now = moved(mask_of().float()[:, None], places_of(0.5, 0, 0, x, y))[:, 0]
    assert now.sum() == mask_of().sum()
    assert boxes(now > 0.5).tolist() == [[3 + by[0], 2 + by[1], 6 + by[0], 4 + by[1]]]


def test_a_flip_is_pasted_where_the_foreground_was_and_is():
    image = torch.rand(1, 2, SIZE, SIZE)
    mask, flipped = mask_of(), image.flip(3)
    found = paste(image, mask, places_of(0.9, 0, 0, 0, 0))
    taken = mask | mask.flip(2)
    torch.testing.assert_close(found, torch.where(taken[:, None], flipped, image), atol=1e-5, rtol=0)


def test_nothing_comes_from_outside_of_the_frame():
    image = torch.rand(4, 1, SIZE, SIZE) + 1
    uniform = torch.tensor([[0.1, 1.0, 0.0, 0, 0], [0.1, 0.0, 1.0, 0, 0], [0.5, 0, 0, 0, 0], [0.5, 0, 0, 0.99, 0.99]])
    mask = mask_of().expand(4, -1, -1)
    found = paste(image, mask, sources(boxes(mask), uniform, SIZE, SIZE))
    assert found.min() > 0.99
