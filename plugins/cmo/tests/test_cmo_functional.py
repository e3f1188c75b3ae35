"""Donors, shares and boxes against SciPy, loops and figures that the authors' code gave."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from ltcore_cmo import box, donor_distribution, draw_one_label, paste, symmetric_beta

#: Height and width, share, the center's pixel: first and last row and column of the box, and the share that is left.
#: From rand_bbox_withcenter and train in the authors' cifar_train.py (naver-ai/cmo at 10d2d09).
PUBLIC = [
    (((32, 32), 0.5, (16, 16)), (5, 27, 5, 27), 0.52734375),
    (((32, 32), 0.9, (0, 31)), (0, 5, 26, 32), 0.970703125),
    (((32, 32), 0.0, (10, 20)), (0, 26, 4, 32), 0.2890625),
    (((32, 32), 1.0, (5, 5)), (5, 5, 5, 5), 1.0),
    (((8, 8), 0.3, (7, 1)), (4, 8, 0, 4), 0.75),
    (((8, 12), 0.75, (3, 11)), (1, 5, 8, 12), 0.8333333333333334),
    (((224, 224), 0.123, (200, 17)), (96, 224, 0, 121), 0.6913265306122449),
]


@pytest.mark.parametrize(("case", "sides", "share"), PUBLIC)
def test_boxes_are_those_of_the_authors_code(case, sides, share):
    (height, width), kept, (row, column) = case
    center = torch.tensor([(row + 0.5) / height, (column + 0.5) / width], dtype=torch.float64)
    inside, left = box(torch.tensor(kept, dtype=torch.float64), center, height, width)
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[sides[0] : sides[1], sides[2] : sides[3]] = True
    assert torch.equal(inside, expected)
    assert left.item() == pytest.approx(share, rel=1e-6) and left.dtype == torch.float32


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_what_is_left_is_the_share_outside_of_the_box(share, row, column):
    center = torch.tensor([row, column], dtype=torch.float64)
    inside, left = box(torch.tensor(share, dtype=torch.float64), center, 8, 11)
    assert left.item() == pytest.approx(1 - inside.sum().item() / 88, abs=1e-6)
    assert share - 1e-6 <= left.item() <= 1  # a border only takes away


def test_pixels_are_pasted_and_not_blended():
    images, donors = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    inside = torch.zeros(4, 5, dtype=torch.bool)
    inside[1:3, 2:] = True
    for layout in (torch.contiguous_format, torch.channels_last):
        pasted = paste(*(x.contiguous(memory_format=layout) for x in (images, donors)), inside)
        assert pasted.is_contiguous(memory_format=layout)
        for row in range(4):
            for column in range(5):
                source = donors if 1 <= row < 3 and column >= 2 else images
                assert torch.equal(pasted[:, :, row, column], source[:, :, row, column])


@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0, 2.0, 50.0])
def test_shares_are_drawn_from_the_beta_distribution(beta):
    uniform = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = symmetric_beta(uniform, beta).numpy()
    assert scipy.stats.kstest(found, scipy.stats.beta(beta, beta).cdf).pvalue > 0.01


@pytest.mark.parametrize("beta", [0.01, 1.0, 1e4])
def test_no_uniform_number_gives_a_share_that_is_none(beta):
    ends = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    found = symmetric_beta(torch.cartesian_prod(ends, ends, ends), beta)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_donors_are_drawn_as_by_the_authors_sampler(power):
    """Each image of class k has the weight n_k ** -r there; summed over the images of each class."""
    counts = np.array([50, 20, 7, 1])
    weight_of_each_image = np.repeat(1.0 / counts**power, counts)
    expected = np.bincount(np.repeat(np.arange(4), counts), weight_of_each_image / weight_of_each_image.sum())
    found = donor_distribution(torch.tensor(counts), power)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_donors_by_class_follow_the_papers_text(power):
    counts = torch.tensor([50, 20, 7, 1])
    weights = [n**-power for n in counts.tolist()]
    expected = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(donor_distribution(counts, power, "class"), expected)


@pytest.mark.parametrize("per", ["image", "class"])
def test_a_class_without_images_is_never_pasted(per):
    found = donor_distribution(torch.tensor([4, 0, 2]), 1.5, per)
    assert found[1] == 0 and found.sum() == pytest.approx(1)


def test_one_of_two_labels_is_drawn_by_its_share():
    targets, partners = torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    share, uniform = torch.tensor([0.3, 0.3, 1.0]), torch.tensor([0.29, 0.3, 0.999])
    assert draw_one_label(targets, partners, share, uniform).tolist() == [0, 6, 2]
