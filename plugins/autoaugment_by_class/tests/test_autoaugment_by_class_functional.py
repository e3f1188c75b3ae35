"""The levels against a slow loop, and each operation against figures of the authors' code."""

import random

import numpy as np
import pytest
import torch
from ltcore_autoaugment_by_class import (
    OPERATIONS,
    Augmentation,
    cut_square,
    draw_test,
    next_levels,
    passed,
    transformed,
)
from PIL import Image

from ltcore import DataError

#: Of each operation at strengths 1/30, 4/30 and 10/30, the second line of two with the sign turned where that changes
#: anything at the last one: the sum of the pixels of a picture of three channels, the same weighed by their places, and
#: both for a grey one. Computed with the authors' code (cifar/aug/cuda.py of CUDA_LTR), with Pillow 13.0.
PUBLIC = {
    "flip": [[99904, 12256190, 32448, 3949681], [99904, 12256190, 32448, 3949681], [99904, 12256190, 32448, 3949681]],
    "mirror": [[99904, 12314326, 32448, 4134439], [99904, 12314326, 32448, 4134439], [99904, 12314326, 32448, 4134439]],
    "edge_enhance": [
        [99134, 12106876, 32587, 4029967],
        [99134, 12106876, 32587, 4029967],
        [99134, 12106876, 32587, 4029967],
    ],
    "detail": [[98986, 12098181, 32413, 4046241], [98986, 12098181, 32413, 4046241], [98986, 12098181, 32413, 4046241]],
    "smooth": [
        [100059, 12423889, 32166, 4054585],
        [100059, 12423889, 32166, 4054585],
        [100059, 12423889, 32166, 4054585],
    ],
    "autocontrast": [
        [99907, 12274386, 32448, 4077553],
        [99907, 12274386, 32448, 4077553],
        [99907, 12274386, 32448, 4077553],
    ],
    "equalize": [
        [99077, 12172831, 32448, 4077553],
        [99077, 12172831, 32448, 4077553],
        [99077, 12172831, 32448, 4077553],
    ],
    "invert": [[95936, 11950540, 32832, 3990902], [95936, 11950540, 32832, 3990902], [95936, 11950540, 32832, 3990902]],
    "gaussian_blur": [
        [99904, 12273950, 32448, 4077553],
        [99398, 12227576, 32279, 4058725],
        [100129, 12369862, 32524, 4096382],
    ],
    "resize_crop": [
        [99904, 12273950, 32448, 4077553],
        [99373, 12293162, 32422, 4178282],
        [100117, 12330247, 33432, 4191464],
    ],
    "rotate": [
        [99904, 12273950, 32448, 4077553],
        [98791, 12092348, 32289, 4092246],
        [98279, 12132200, 32033, 4072768],
        [93956, 11869168, 30716, 3954858],
        [94468, 11680106, 30204, 3786408],
    ],
    "posterize": [[49664, 6107776, 15488, 1942144], [49664, 6107776, 15488, 1942144], [49664, 6107776, 15488, 1942144]],
    "solarize": [[90476, 11226371, 30848, 3737309], [77366, 9645508, 25856, 3264150], [54297, 6714340, 17657, 2176443]],
    "solarize_add": [
        [49106, 6069816, 16292, 2013983],
        [48860, 6054097, 16328, 2012811],
        [46953, 5828735, 15800, 1938116],
    ],
    "color": [
        [100273, 12355512, 32448, 4077553],
        [100176, 12336197, 32448, 4077553],
        [99929, 12290021, 32448, 4077553],
    ],
    "contrast": [
        [100123, 12370271, 32376, 4012134],
        [100002, 12341715, 32370, 4023672],
        [99768, 12282709, 32353, 4045771],
    ],
    "brightness": [[15617, 1917030, 5068, 636843], [33581, 4127147, 10905, 1370945], [69573, 8546659, 22586, 2838302]],
    "sharpness": [
        [99704, 12357931, 32102, 4044091],
        [99835, 12350989, 32204, 4054766],
        [99650, 12281389, 32262, 4057716],
    ],
    "shear_x": [
        [99904, 12273950, 32448, 4077553],
        [99117, 12166387, 32174, 4068964],
        [98684, 12011476, 31859, 3968864],
        [95805, 11867575, 31035, 3896972],
        [94902, 11491722, 30734, 3810200],
    ],
    "shear_y": [
        [99904, 12273950, 32448, 4077553],
        [98645, 12262837, 32102, 4111354],
        [98596, 12228448, 31915, 4070675],
        [95271, 11922742, 31369, 3900510],
        [95136, 12324024, 31068, 4098878],
    ],
    "translate_x": [
        [81280, 10006246, 26736, 3378842],
        [80648, 9831015, 26184, 3350863],
        [19256, 2467983, 6264, 786560],
        [18624, 2400068, 5712, 755007],
        [0, 0, 0, 0],
    ],
    "translate_y": [
        [81808, 9277676, 27168, 2844448],
        [80920, 10873750, 25848, 3824489],
        [18984, 1339192, 6600, 153096],
        [18096, 3082114, 5280, 1123665],
        [0, 0, 0, 0],
    ],
}
STRENGTHS = (1 / 30, 4 / 30, 10 / 30)


def picture(side, channels):
    y, x, c = np.mgrid[0:side, 0:side, 0:channels]
    return ((37 * y + 11 * x * x + 53 * c + 7 * x * y) % 256).astype(np.uint8)


def figures(image):
    pixels = np.asarray(image).astype(np.int64).ravel()
    return [int(pixels.sum()), int((pixels * (np.arange(len(pixels)) % 251 + 1)).sum())]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_authors(name):
    colour, grey = Image.fromarray(picture(16, 3)), Image.fromarray(picture(16, 1)[:, :, 0])
    found = []
    for strength in STRENGTHS:
        rows = [
            [*figures(transformed(colour, name, strength, sign)), *figures(transformed(grey, name, strength, sign))]
            for sign in (False, True)
        ]
        found += rows[:1] if rows[0] == rows[1] else rows
    assert found == PUBLIC[name]
    assert figures(colour) == figures(picture(16, 3)), "what came in is left alone"
    odd = transformed(Image.fromarray(picture(9, 3)), name, 0.2)
    assert odd.size == (9, 9) and odd.mode == "RGB"


def test_there_are_22_of_which_five_have_no_strength_that_shifts():
    assert len(OPERATIONS) == len(PUBLIC) == 22
    signed = {name for name, operation in OPERATIONS.items() if operation.signed}
    assert signed == {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    shifted = np.asarray(transformed(Image.fromarray(picture(8, 3)), "translate_x", 0.1, True, largest_shift=20.0))
    assert (shifted[:, :2] == 0).all() and np.array_equal(shifted[:, 2:], picture(8, 3)[:, :-2])


def slow_change(pixels, level, drawn, scale):
    """Operation by operation, each number drawn on its own."""
    names = list(OPERATIONS)
    image = Image.fromarray(pixels)
    for number in torch.randint(22, (level,), generator=drawn):
        name = names[int(number)]
        has_sign = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        negated = has_sign and int(torch.randint(2, (), generator=drawn)) == 1
        image = transformed(image, name, level / scale, negated)
    return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_a_level_gets_so_many_operations(channels):
    pixels = picture(16, channels)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    augmentation = Augmentation((0, 3, 10), probability=1.0)
    for target, level in enumerate((0, 3, 10)):
        for seed in range(4):
            found = augmentation(image.clone(), target, torch.Generator().manual_seed(seed))
            assert found.dtype == torch.uint8 and found.shape == image.shape
            drawn = torch.Generator().manual_seed(seed)
            if level == 0:
                assert torch.equal(found, image)
                continue
            torch.rand((), generator=drawn)  # the coin
            expected = slow_change(pixels[:, :, 0] if channels == 1 else pixels, level, drawn, 30)
            assert np.array_equal(found.permute(1, 2, 0).numpy().reshape(expected.shape), expected)


def test_the_coin_is_thrown_for_each_image():
    image = torch.from_numpy(picture(16, 3)).permute(2, 0, 1)
    augmentation = Augmentation((5,), probability=0.3)
    changed = [
        not torch.equal(augmentation(image.clone(), 0, torch.Generator().manual_seed(seed)), image)
        for seed in range(400)
    ]
    assert 0.22 < np.mean(changed) < 0.36  # a few draws of five operations leave an image as it is
    never = Augmentation((5,), probability=0.0)
    assert all(torch.equal(never(image.clone(), 0, torch.Generator().manual_seed(seed)), image) for seed in range(50))
    with pytest.raises(DataError, match="images of 2 channels cannot be augmented; its operations take 1 or 3"):
        Augmentation((5,), probability=1.0)(image[:2], 0, torch.Generator())


def test_the_square_is_clipped_at_the_borders():
    corners = set()
    for seed in range(300):
        drawn = torch.Generator().manual_seed(seed)
        y, x = (int(torch.randint(8, (), generator=drawn)) for _ in range(2))
        found = cut_square(torch.full((3, 8, 8), 9, dtype=torch.uint8), 4, torch.Generator().manual_seed(seed))
        for row in range(8):
            for column in range(8):
                inside = y - 2 <= row < y + 2 and x - 2 <= column < x + 2
                assert (found[:, row, column] == (0 if inside else 9)).all()
        corners.add((y, x))
    assert len(corners) > 60
    image = torch.full((1, 8, 8), 9, dtype=torch.uint8)
    both = Augmentation((0,), cutout=4)(image.clone(), 0, torch.Generator().manual_seed(0))
    assert torch.equal(both, cut_square(image.clone(), 4, torch.Generator().manual_seed(0)))


# -- levels ------------------------------------------------------------------------------------------------------------


def slow_update(levels, recognised, tries, threshold, highest):
    """Ahn et al. 2023, algorithm 2, class by class and image by image.

    Args:
        recognised: says whether an image, by class, level and number, is.
    """
    found = []
    for label, level in enumerate(levels):
        rises = True
        for each in range(level + 1):
            hits = [recognised(label, each, number) for number in range(tries * (each + 1))]
            if not sum(hits) / len(hits) > threshold:
                rises = False
        found.append(min(max(level + (1 if rises else -1), 0), highest))
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6])
def test_levels_are_those_of_a_slow_loop(threshold):
    chance, levels, slow = random.Random(3), torch.zeros(7, dtype=torch.int64), [0] * 7
    for _ in range(60):
        ease = [chance.random() ** 0.3 for _ in range(7)]
        seen = {}

        def recognised(label, level, number, ease=ease, seen=seen):
            return seen.setdefault((label, level, number), chance.random() < ease[label])

        slow = slow_update(slow, recognised, 3, threshold, 4)
        plan = draw_test(levels, 3)
        correct, shown = torch.zeros(7, len(plan), dtype=torch.int64), torch.zeros(7, len(plan), dtype=torch.int64)
        for level, classes in enumerate(plan):
            for label in range(7):
                for number in range(int((classes == label).sum())):
                    correct[label, level] += recognised(label, level, number)
                    shown[label, level] += 1
        levels = next_levels(levels, passed(correct, shown, levels, threshold), 4)
        assert levels.tolist() == slow
    assert len(set(slow)) > 1


def test_a_share_of_exactly_the_threshold_does_not_pass():
    shown = torch.tensor([[10, 20], [10, 20], [10, 0]])
    levels = torch.tensor([1, 1, 0])
    assert passed(torch.tensor([[7, 13], [7, 12], [7, 0]]), shown, levels, 0.6).tolist() == [True, False, True]
    assert passed(torch.tensor([[6, 20], [10, 13], [6, 0]]), shown, levels, 0.6).tolist() == [False, True, False]


def test_how_many_images_are_shown():
    plan = draw_test(torch.tensor([0, 2, 1]), 2)
    assert [part.tolist() for part in plan] == [[0, 0, 1, 1, 2, 2], [1] * 4 + [2] * 4, [1] * 6]
