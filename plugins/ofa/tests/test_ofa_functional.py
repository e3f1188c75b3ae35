"""The pure functions against a slow reading of Algorithm 1, hand cases and properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from ltcore_ofa.functional import (
    class_activation_maps,
    confusing_classes,
    draw_locations,
    fuse_pooled,
    fuse_spatial,
    generic_mask,
    head_classes,
    most_confusing,
    specific_mask,
)

CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


# The slow reading: one image, one slot, one vector at a time, in float64.


def slow_activation(maps, weight):
    depth, height, width = maps.shape
    activation = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            for k in range(depth):
                activation[y, x] += weight[k] * maps[k, y, x]
    low, high = activation.min(), activation.max()
    return np.zeros_like(activation) if high == low else (activation - low) / (high - low)


def slow_places(activation, threshold, specific):
    flat = activation.reshape(-1)
    chosen = [i for i in range(flat.size) if (flat[i] >= threshold if specific else flat[i] <= threshold)]
    extreme = flat.max() if specific else flat.min()
    return chosen or [i for i in range(flat.size) if flat[i] == extreme]


def slow_draw(places, u):
    return places[int(u * len(places))]


def slow_pooled(tail, generic, tail_weight, generic_weight, ratio, u_specific, u_generic, tau_s, tau_g):
    """Algorithm 1, lines 5 to 17, for one tail image and one image of a confusing class."""
    size = tail.shape[1] * tail.shape[2]
    specific = slow_places(slow_activation(tail, tail_weight), tau_s, specific=True)
    rest = slow_places(slow_activation(generic, generic_weight), tau_g, specific=False)
    out = np.zeros((tail.shape[0], size))
    from_tail = int(np.round(ratio * size))
    for slot in range(size):
        if slot < from_tail:
            out[:, slot] = tail.reshape(len(tail), -1)[:, slow_draw(specific, u_specific[slot])]
        else:
            out[:, slot] = generic.reshape(len(tail), -1)[:, slow_draw(rest, u_generic[slot])]
    return out.reshape(tail.shape)


def slow_spatial(tail, generic, tail_weight, generic_weight, ratio, u_specific, tau_s):
    size = tail.shape[1] * tail.shape[2]
    specific = slow_places(slow_activation(tail, tail_weight), tau_s, specific=True)
    activation = slow_activation(generic, generic_weight).reshape(-1)
    out = generic.reshape(len(tail), -1).copy()
    by_activation = sorted(range(size), key=lambda place: (-activation[place], place))
    for place in by_activation[: int(np.round(ratio * size))]:
        out[:, place] = tail.reshape(len(tail), -1)[:, slow_draw(specific, u_specific[place])]
    return out.reshape(tail.shape)


def random_case(seed, pairs=6, depth=5, height=3, width=4, classes=4):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return {
        "tail": rand(pairs, depth, height, width),
        "generic": rand(pairs, depth, height, width),
        "weight": rand(classes, depth) - 0.5,
        "tail_targets": torch.randint(classes, (pairs,), generator=generator),
        "generic_targets": torch.randint(classes, (pairs,), generator=generator),
        "ratio": torch.cat([torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), rand(pairs - 3)]),
        "u_specific": rand(pairs, height * width),
        "u_generic": rand(pairs, height * width),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tau_s", "tau_g"), [(0.8, 0.2), (0.5, 0.5)])
def test_pooled_fusion_follows_algorithm_one(seed, tau_s, tau_g):
    case = random_case(seed)
    tail_activation = class_activation_maps(case["tail"], case["weight"], case["tail_targets"])
    generic_activation = class_activation_maps(case["generic"], case["weight"], case["generic_targets"])
    fused = fuse_pooled(
        case["tail"],
        specific_mask(tail_activation, tau_s),
        case["generic"],
        generic_mask(generic_activation, tau_g),
        case["ratio"],
        case["u_specific"],
        case["u_generic"],
    )
    weight = case["weight"].numpy()
    for row in range(len(fused)):
        expected = slow_pooled(
            case["tail"][row].numpy(),
            case["generic"][row].numpy(),
            weight[case["tail_targets"][row]],
            weight[case["generic_targets"][row]],
            float(case["ratio"][row]),
            case["u_specific"][row].numpy(),
            case["u_generic"][row].numpy(),
            tau_s,
            tau_g,
        )
        np.testing.assert_array_equal(fused[row].numpy(), expected)


@pytest.mark.parametrize("seed", range(5))
def test_spatial_fusion_follows_the_slow_reading(seed):
    case = random_case(seed)
    tail_activation = class_activation_maps(case["tail"], case["weight"], case["tail_targets"])
    generic_activation = class_activation_maps(case["generic"], case["weight"], case["generic_targets"])
    mask = specific_mask(tail_activation, 0.8)
    fused = fuse_spatial(case["tail"], mask, case["generic"], generic_activation, case["ratio"], case["u_specific"])
    weight = case["weight"].numpy()
    for row in range(len(fused)):
        expected = slow_spatial(
            case["tail"][row].numpy(),
            case["generic"][row].numpy(),
            weight[case["tail_targets"][row]],
            weight[case["generic_targets"][row]],
            float(case["ratio"][row]),
            case["u_specific"][row].numpy(),
            0.8,
        )
        np.testing.assert_array_equal(fused[row].numpy(), expected)


# Head and tail.


@pytest.mark.parametrize(
    ("counts", "ratio", "head"),
    [
        # 12,406 images, 0.9 of them are 11,165.4; the first four classes hold 10,870, the first five 11,515.
        (CIFAR10_LT_100, 0.9, [0, 1, 2, 3, 4]),
        (CIFAR10_LT_100[::-1], 0.9, [5, 6, 7, 8, 9]),
        (CIFAR10_LT_100, 0.4, [0]),  # 5,000 are 0.403
        ([1, 7, 2], 0.7, [1]),  # exactly the share is enough
        ([55, 45], 0.55, [0]),  # 0.55 * 100 is above 55 in float64, 55 / 100 is not above 0.55
        ([5, 5, 5, 5], 0.5, [0, 1]),  # ties by label
        ([5, 9, 5, 9], 0.7, [0, 1, 3]),
        ([5, 5, 5, 5, 5], 0.9, [0, 1, 2, 3, 4]),  # no tail is left
        ([3, 0, 1], 0.9, [0, 2]),
    ],
)
def test_head_classes_by_hand(counts, ratio, head):
    mask = head_classes(torch.tensor(counts), ratio)
    assert mask.dtype == torch.bool
    assert mask.nonzero().flatten().tolist() == head


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_head_is_the_smallest_sufficient_prefix(counts, ratio):
    mask = head_classes(torch.tensor(counts), ratio).tolist()
    head = [n for n, is_head in zip(counts, mask, strict=True) if is_head]
    assert sum(head) / sum(counts) >= ratio
    assert (sum(head) - min(head)) / sum(counts) < ratio
    assert all(n <= min(head) for n, is_head in zip(counts, mask, strict=True) if not is_head)


# Class activation maps and masks.


def test_activation_is_scaled_an_image_and_uses_its_own_label():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]], [[4.0, 0.0], [0.0, 0.0]]]]).expand(2, -1, -1, -1)
    weight = torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    activation = class_activation_maps(maps, weight, torch.tensor([0, 1]))
    torch.testing.assert_close(activation[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    torch.testing.assert_close(activation[1], torch.tensor([[0.0, 1.0], [1.0, 1.0]]))


def test_a_positive_scale_of_the_classifier_or_of_the_image_changes_no_activation():
    case = random_case(0)
    targets = case["tail_targets"]
    plain = class_activation_maps(case["tail"], case["weight"], targets)
    torch.testing.assert_close(class_activation_maps(30 * case["tail"], case["weight"], targets), plain)
    torch.testing.assert_close(class_activation_maps(case["tail"], 7 * case["weight"], targets), plain)


def test_a_constant_map_gives_zeros_and_a_draw_is_still_possible():
    maps = torch.full((3, 4, 2, 2), 0.3)
    activation = class_activation_maps(maps, torch.randn(5, 4), torch.tensor([0, 1, 2]))
    assert torch.equal(activation, torch.zeros(3, 2, 2))
    specific, generic = specific_mask(activation, 0.8), generic_mask(activation, 0.2)
    assert specific.all() and generic.all()  # every location is the extreme one
    uniform = torch.rand(3, 4)
    fused = fuse_pooled(maps, specific, maps, generic, torch.tensor([0.0, 0.5, 1.0]), uniform, uniform)
    assert torch.equal(fused, maps)


def test_activation_is_resized_before_it_is_scaled():
    maps, weight = torch.rand(2, 3, 2, 2), torch.randn(4, 3)
    targets = torch.tensor([1, 3])
    raw = torch.stack([(maps[n] * weight[targets[n], :, None, None]).sum(0) for n in range(2)])
    resized = F.interpolate(raw[:, None], (5, 4), mode="bilinear", align_corners=False)[:, 0]
    low, high = resized.amin((1, 2), keepdim=True), resized.amax((1, 2), keepdim=True)
    activation = class_activation_maps(maps, weight, targets, (5, 4))
    torch.testing.assert_close(activation, (resized - low) / (high - low))
    assert torch.equal(activation.amax((1, 2)), torch.ones(2))


def test_activation_is_float32_for_bf16_features_even_under_autocast():
    maps, weight, targets = torch.rand(4, 16, 3, 3).bfloat16(), torch.randn(5, 16), torch.tensor([0, 1, 2, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activation = class_activation_maps(maps, weight, targets)
    assert activation.dtype == torch.float32
    assert torch.equal(activation, class_activation_maps(maps.float(), weight, targets))


def test_masks_include_their_thresholds():
    activation = torch.tensor([[[0.0, 0.2, 0.8, 1.0]]])
    assert specific_mask(activation, 0.8).tolist() == [[[False, False, True, True]]]
    assert generic_mask(activation, 0.2).tolist() == [[[True, True, False, False]]]


def test_an_empty_mask_becomes_the_extreme_location():
    activation = torch.tensor([[[0.3, 0.6, 0.5, 0.6]], [[0.9, 0.7, 0.6, 0.8]]])
    assert specific_mask(activation, 0.8).tolist() == [[[False, True, False, True]], [[True, False, False, True]]]
    assert generic_mask(activation, 0.2).tolist() == [[[True, False, False, False]], [[False, False, True, False]]]


# Draws.


@given(st.data())
def test_draw_locations_takes_the_named_allowed_location(data):
    rows, places, draws = (data.draw(st.integers(1, n)) for n in (4, 9, 5))
    row = st.lists(st.booleans(), min_size=places, max_size=places).filter(any)
    mask = data.draw(st.lists(row, min_size=rows, max_size=rows))
    number = st.floats(0, 1, exclude_max=True, width=32)
    uniform = data.draw(st.lists(st.lists(number, min_size=draws, max_size=draws), min_size=rows, max_size=rows))
    drawn = draw_locations(torch.tensor(mask), torch.tensor(uniform))
    for n in range(rows):
        allowed = np.flatnonzero(mask[n])
        for s in range(draws):
            product = np.float32(uniform[n][s]) * np.float32(len(allowed))
            assert drawn[n, s] == allowed[min(int(product), len(allowed) - 1)]


@pytest.mark.parametrize("largest", [1 - 2**-24, 1.0])  # the largest float32 below 1; a number that was rounded to 1
def test_the_largest_number_stays_inside(largest):
    counts = torch.arange(1, 200)
    mask = torch.arange(202) < counts[:, None]
    assert torch.equal(draw_locations(mask, torch.full((199, 1), largest))[:, 0], counts - 1)


def test_draws_are_uniform_over_the_allowed_locations():
    mask = torch.tensor([[True, False, True, True, False]])
    drawn = draw_locations(mask, (torch.arange(300) / 300)[None])
    assert torch.bincount(drawn[0], minlength=5).tolist() == [100, 0, 100, 100, 0]


# Confusing classes.


def test_confusing_classes_are_the_largest_mean_scores_of_others():
    probabilities = torch.tensor(
        [
            [0.7, 0.2, 0.1, 0.0],
            [0.7, 0.0, 0.1, 0.2],
            [0.1, 0.1, 0.1, 0.7],  # class 0: means .5 .1 .1 .3, so 3 first, then 1 (tie with 2, by label)
            [0.6, 0.3, 0.1, 0.0],
            [0.0, 0.1, 0.9, 0.0],
            [0.3, 0.3, 0.2, 0.2],
        ]
    )
    table = confusing_classes(probabilities, torch.tensor([0, 0, 0, 1, 2, 3]), 4, 2)
    assert table.tolist() == [[3, 1], [0, 2], [1, 0], [0, 1]]
    assert confusing_classes(probabilities, torch.tensor([0, 0, 0, 1, 2, 3]), 4, 3).shape == (4, 3)


@pytest.mark.parametrize("k", [0, 4])
def test_more_confusing_classes_than_others_are_refused(k):
    with pytest.raises(ValueError, match="3 other classes"):
        confusing_classes(torch.rand(8, 4), torch.arange(8) % 4, 4, k)


def test_a_class_without_images_confuses_nobody():
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4], [0.4, 0.5, 0.1]])
    assert most_confusing(scores, torch.tensor([4, 0, 2]), 1).tolist() == [[2], [2], [0]]
    with pytest.raises(ValueError, match="1 other classes"):
        most_confusing(scores, torch.tensor([4, 0, 2]), 2)


# Fusion.


def labelled_maps(images, height, width, start):
    """Maps whose vectors say which image and which location they are."""
    image = torch.arange(start, start + images).float()[:, None, None].expand(-1, height, width)
    place = torch.arange(height * width).float().view(1, height, width).expand(images, -1, -1)
    return torch.stack([image, place], 1)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_pooled_rows_hold_only_allowed_vectors_of_their_two_images(seed, height, width, pairs):
    generator = torch.Generator().manual_seed(seed)
    size = height * width
    tail, generic = labelled_maps(pairs, height, width, 0), labelled_maps(pairs, height, width, 100)
    activation = torch.rand(2, pairs, height, width, generator=generator)
    tail_mask, rest = specific_mask(activation[0], 0.8), generic_mask(activation[1], 0.2)
    ratio = torch.rand(pairs, generator=generator)
    uniform = torch.rand(2, pairs, size, generator=generator)
    fused = fuse_pooled(tail, tail_mask, generic, rest, ratio, uniform[0], uniform[1]).flatten(2)
    for row in range(pairs):
        from_tail = fused[row, 0] < 100
        assert from_tail.sum() == torch.round(ratio[row] * size)
        place = fused[row, 1].long()
        assert (fused[row, 0, from_tail] == row).all() and tail_mask[row].flatten()[place[from_tail]].all()
        assert (fused[row, 0, ~from_tail] == 100 + row).all() and rest[row].flatten()[place[~from_tail]].all()


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_spatial_rows_keep_their_most_generic_places(seed, height, width, pairs):
    generator = torch.Generator().manual_seed(seed)
    size = height * width
    tail, generic = labelled_maps(pairs, height, width, 0), labelled_maps(pairs, height, width, 100)
    activation = torch.rand(2, pairs, height, width, generator=generator)
    tail_mask = specific_mask(activation[0], 0.8)
    ratio = torch.rand(pairs, generator=generator)
    uniform = torch.rand(pairs, size, generator=generator)
    fused = fuse_spatial(tail, tail_mask, generic, activation[1], ratio, uniform).flatten(2)
    for row in range(pairs):
        replaced = fused[row, 0] < 100
        assert replaced.sum() == torch.round(ratio[row] * size)
        kept = torch.arange(size)[~replaced]
        assert (fused[row, 1].long()[~replaced] == kept).all()
        assert tail_mask[row].flatten()[fused[row, 1].long()[replaced]].all()
        flat = activation[1][row].flatten()
        if replaced.any() and len(kept):
            assert flat[kept].max() <= flat[replaced].min()


def test_ratio_zero_and_one_are_pure():
    tail, generic = labelled_maps(2, 2, 2, 0), labelled_maps(2, 2, 2, 100)
    everywhere = torch.ones(2, 2, 2, dtype=torch.bool)
    ratio, uniform = torch.tensor([0.0, 1.0]), torch.rand(2, 4)
    pooled = fuse_pooled(tail, everywhere, generic, everywhere, ratio, uniform, uniform)
    assert (pooled[0, 0] == 100).all() and (pooled[1, 0] == 1).all()
    spatial = fuse_spatial(tail, everywhere, generic, torch.rand(2, 2, 2), ratio, uniform)
    assert torch.equal(spatial[0], generic[0]) and (spatial[1, 0] == 1).all()


def test_the_share_is_rounded_half_to_even():
    tail, generic = labelled_maps(2, 1, 4, 0), labelled_maps(2, 1, 4, 100)
    everywhere = torch.ones(2, 1, 4, dtype=torch.bool)
    ratio = torch.tensor([0.125, 0.375])  # of 4 locations: 0.5 and 1.5
    uniform = torch.zeros(2, 4)
    pooled = fuse_pooled(tail, everywhere, generic, everywhere, ratio, uniform, uniform)
    assert (pooled[:, 0] < 100).sum((1, 2)).tolist() == [0, 2]
    spatial = fuse_spatial(tail, everywhere, generic, torch.zeros(2, 1, 4), ratio, uniform)
    assert (spatial[1, 0] < 100).tolist() == [[True, True, False, False]]  # ties by location


def test_gradients_reach_the_vectors_that_were_drawn():
    case = random_case(3)
    tail, generic = case["tail"].requires_grad_(), case["generic"].requires_grad_()
    mask = torch.ones(tail.shape[0], *tail.shape[2:], dtype=torch.bool)
    fuse_pooled(tail, mask, generic, mask, case["ratio"], case["u_specific"], case["u_generic"]).sum().backward()
    assert tail.grad is not None and generic.grad is not None
    # Row 0 has ratio 0, row 1 ratio 1; each of 12 slots gives one unit to one vector.
    assert tail.grad[0].sum() == 0 and generic.grad[0, 0].sum() == 12
    assert tail.grad[1, 0].sum() == 12 and generic.grad[1].sum() == 0
