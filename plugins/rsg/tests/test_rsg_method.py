"""The method on one batch: the published code's figures, what each loss trains, the rows made, what is refused."""

import math

import pytest
import torch
from ltcore_rsg import RSG
from ltcore_rsg.functional import off_centre
from pydantic import ValidationError
from torch import nn

from ltcore import Batch, Features, RecipeError
from ltcore.testing import make_context, move_context

COUNTS = torch.tensor([40, 30, 8, 4, 2])  # head at 0.4: classes 0 and 1
START = 3


def make(targets, epoch=START, device="cpu", dtype=None, counts=COUNTS, **options):
    """The method, its context, and a function from maps [N, 6, 4, 4] to the record that it is given."""
    torch.manual_seed(0)
    fixed = {"tap": "layer1", "start_epoch": START, "head_ratio": 0.4, "centres": 3, "pair_channels": 8}
    method = RSG(RSG.Options(**{**fixed, "cesc_weight": 1.0, "mv_weight": 1.0, **options}))
    maps = torch.zeros(len(targets), 6, 4, 4)
    context = make_context(
        counts, seed=3, owner="rsg", targets=targets, features=lambda split, tap: maps, device=device
    )
    method.on_run_start(context=context)
    method.to(device, dtype)
    plan(method, context, torch.arange(len(targets)), epoch=epoch)
    batch = Batch(torch.zeros(len(targets), 1), targets.to(device), torch.arange(len(targets), device=device) + 100)
    return method, context, lambda maps: Features.of(batch, maps, None)


def plan(method, context, *batches, epoch=START):
    """Begin an epoch of these batches, and stand at its first."""
    move_context(context, epoch=epoch, epochs=5, step=0)
    method.on_epoch_start(context=context)
    assert method.extra_rows(indices=list(batches), context=context) is None


def maps_of(targets, seed=2, device="cpu"):
    return torch.randn(len(targets), 6, 4, 4, generator=torch.Generator().manual_seed(seed)).to(device)


# ---------------------------------------------------------------- the published code
#
# What Jianf-Wang/RSG (models/RSG.py at 3c507451) gave on 2026-11-27 for the inputs below, with 3 centres, 5 classes of
# which 0 and 1 are the head, and a pair network of 8 channels: its losses, the rows it made (their labels, and a sum
# with fixed weights), and the norms of the gradients of all three together.

PUBLISHED = {
    "learning": {
        "targets": [0, 1, 2, 3, 4, 0, 0, 1, 2, 2, 4, 0],
        "strength": 1.0,
        "cesc": 122.90412139892578,
        "mv": 0.0,
        "labels": [],
        "sum": 0.0,
        "gradients": {
            "weight": 0.15066,
            "bias": 1.492927,
            "centres": 12.606849,
            "first": 0.758235,
            "second": 15.968622,
            "fc": 0.640141,
        },
    },
    "more_heads": {
        "targets": [0, 1, 2, 0, 4, 0, 0, 1, 3, 0],
        "strength": 1.0,
        "cesc": 120.03753662109375,
        "mv": 126.91622924804688,
        "labels": [2, 4, 3, 2, 4, 3],
        "sum": 147.53424072265625,
        "gradients": {"weight": 0.098356, "bias": 1.292575, "centres": 15.08353, "transform": 184.955162},
    },
    "more_tails": {
        "targets": [2, 3, 2, 0, 4, 2, 4, 1, 3, 2, 2, 4],
        "strength": 1.0,
        "cesc": 118.62830352783203,
        "mv": 127.6496353149414,
        "labels": [2, 3, 2, 4, 2, 4, 3, 2, 2, 4],
        "sum": -16.61863136291504,
        "gradients": {"weight": 0.081691, "bias": 1.602308, "centres": 12.608146, "transform": 198.08588},
    },
    "half_strength": {
        "targets": [0, 1, 2, 0, 0, 0, 0, 1, 3, 0],
        "strength": 0.5,
        "cesc": 120.36155700683594,
        "mv": 127.08828735351562,
        "labels": [2, 3, 2, 3],
        "sum": -25.02558135986328,
        "gradients": {"weight": 0.068952, "bias": 1.536359, "centres": 17.142545, "transform": 229.360572},
    },
}


def wave(*shape, k, scale=1.0):
    """The inputs, which can be written down anywhere."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(0.37 * n + k) + torch.cos(1.3 * n * (1 + k))).float().reshape(shape) * scale


@pytest.mark.parametrize("case", PUBLISHED)
def test_losses_made_rows_and_gradients_are_those_of_the_published_code(case):
    expected = PUBLISHED[case]
    targets = torch.tensor(expected["targets"])
    method, context, record = make(targets, 2 if case == "learning" else 3, rows="batch", strength=expected["strength"])
    with torch.no_grad():
        method.centres.weight.copy_(wave(5, 6, 3, k=0.1))
        method.centres.bias.copy_(wave(5, 3, k=0.2))
        method.centres.centres.copy_(wave(5, 3, 6, k=0.3, scale=0.5))
        layers = [method.transform, method.pairs.convolutions[0], method.pairs.convolutions[2]]
        for layer, k, scale in zip(layers, (0.4, 0.6, 0.8), (0.1, 0.3, 0.1), strict=True):
            layer.weight.copy_(wave(*layer.weight.shape, k=k, scale=scale))
            layer.bias.copy_(wave(*layer.bias.shape, k=k + 0.1, scale=0.1))
        method.pairs.fc.weight.copy_(wave(2, 8, k=1.0))
        method.pairs.fc.bias.copy_(wave(2, k=1.1))
    maps = wave(len(targets), 6, 4, 4, k=1.2).requires_grad_()
    after = method.augment_features(features=record(maps), context=context)
    made = after.features[len(targets) :]
    assert after.targets[len(targets) :].tolist() == expected["labels"]
    total = (made * wave(*made.shape, k=1.3)).sum() if len(made) else torch.zeros(())
    assert total.item() == pytest.approx(expected["sum"], rel=1e-5, abs=1e-4)
    terms = after.losses["rsg"]
    offset = 5 * 16 if len(made) else 0  # D - 1 for each of 16 vectors: see vector_loss
    assert terms["cesc"].item() == pytest.approx(expected["cesc"], rel=1e-5)
    assert terms["mv"].item() + offset == pytest.approx(expected["mv"], rel=1e-5)
    (terms["cesc"] + terms["mv"] + total).backward()
    named: dict[str, nn.Parameter] = {
        "weight": method.centres.weight,
        "bias": method.centres.bias,
        "centres": method.centres.centres,
        "transform": method.transform.weight,
        "first": method.pairs.convolutions[0].weight,
        "second": method.pairs.convolutions[2].weight,
        "fc": method.pairs.fc.weight,
    }
    for name, parameter in named.items():
        if name in expected["gradients"]:
            assert float(parameter.grad.norm()) == pytest.approx(expected["gradients"][name], rel=1e-4), name
        else:
            assert parameter.grad is None, name
    assert maps.grad is None or not maps.grad.any()  # zero where a made row is cut out of the whole


# ---------------------------------------------------------------- the rows

MIXED = torch.tensor([0, 1, 2, 0, 4, 0, 0, 1, 3, 0])  # 7 head rows, 3 tail rows


def test_made_rows_are_tail_rows_and_a_moved_variation():
    method, context, record = make(MIXED, rows="batch")
    nn.init.normal_(method.centres.centres)
    maps = maps_of(MIXED)
    before = record(maps)
    after = method.augment_features(features=before, context=context)
    assert torch.equal(after.features[:10], maps) and torch.equal(after.targets[:10], MIXED)
    assert after.synthetic.tolist() == [False] * 10 + [True] * 6
    tails, heads = [2, 4, 8, 2, 4, 8], [0, 1, 3, 5, 6, 7]
    assert after.source_index[10:].tolist() == [100 + row for row in tails]
    assert after.targets[10:].tolist() == MIXED[tails].tolist()
    pooled = maps.mean((2, 3))
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        y = MIXED[head]
        scores = [pooled[head] @ method.centres.weight[y, :, j] + method.centres.bias[y, j] for j in range(3)]
        nearest = method.centres.centres[y, int(torch.stack(scores).argmax())]
        moved = method.transform((maps[head] - nearest[:, None, None])[None])[0]
        torch.testing.assert_close(after.features[10 + row], maps[tail] + moved)


def test_every_batch_of_an_epoch_gets_as_many_rows():
    targets = torch.cat(
        [MIXED, torch.tensor([0, 0, 0, 2, 2, 1, 0, 0, 1, 1]), torch.tensor([2, 3, 4, 4, 0, 2, 2, 2, 3, 4])]
    )
    method, context, _ = make(targets)  # 16 head rows, 14 tail rows: once 14 of 30
    plan(method, context, *torch.arange(30).split(10))
    assert [len(each.heads) for each in method._plans] == [5, 5, 5]
    assert method._plans[2].heads.tolist() == [4] * 5 and method._plans[2].tails.tolist() == [0, 1, 2, 3, 5]
    plan(method, context, *torch.arange(30).split(12))
    assert [(each.size, len(each.heads)) for each in method._plans] == [(12, 6), (12, 6), (6, 3)]
    method, context, _ = make(targets, rows="batch")
    plan(method, context, *torch.arange(30).split(10))
    assert [len(each.heads) for each in method._plans] == [6, 8, 9]


def test_the_head_is_the_most_frequent_classes_wherever_they_stand():
    method, context, _ = make(MIXED, rows="batch", counts=COUNTS.flip(0))  # head: classes 3 and 4
    plan(method, context, torch.arange(10))
    assert method._plans[0].heads.tolist() == [4, 8] * 4  # 8 tail rows, two head rows: four times


@pytest.mark.parametrize("targets", [[0, 1, 0, 1], [2, 3, 4, 2]], ids=["no tail", "no head"])
@pytest.mark.parametrize("rows", ["constant", "batch"])
def test_a_batch_of_one_side_only_makes_none(targets, rows):
    targets = torch.tensor(targets)
    method, context, record = make(targets, rows=rows)
    after = method.augment_features(features=record(maps_of(targets)), context=context)
    assert len(after.targets) == 4 and float(after.losses["rsg"]["mv"]) == 0 < float(after.losses["rsg"]["cesc"])


def test_a_batch_beside_full_ones_makes_none_either():
    targets = torch.cat([MIXED, torch.zeros(10, dtype=torch.int64)])
    method, context, _ = make(targets)
    plan(method, context, *torch.arange(20).split(10))
    assert [len(each.heads) for each in method._plans] == [8, 0]  # 17 and 3: five times 3 of 20


def test_rows_that_another_method_appended_are_left_alone():
    method, context, record = make(MIXED, rows="batch")
    maps = maps_of(MIXED)
    alone = method.augment_features(features=record(maps), context=context)
    appended = record(maps).append(torch.full((2, 6, 4, 4), 9.0), torch.tensor([4, 0]), torch.tensor([1, 2]))
    beside = method.augment_features(features=appended, context=context)
    assert torch.equal(beside.features[12:], alone.features[10:]) and torch.equal(
        beside.features[:12], appended.features
    )
    for name, term in alone.losses["rsg"].items():
        assert torch.equal(beside.losses["rsg"][name], term)


def test_missing_rows_are_refused():
    method, context, _ = make(MIXED)
    with pytest.raises(RecipeError, match="has 4 rows where the sampler drew 10"):
        method.augment_features(
            features=Features.of(Batch(torch.zeros(4, 1), MIXED[:4], torch.arange(4)), maps_of(MIXED[:4]), None),
            context=context,
        )


# ---------------------------------------------------------------- what each loss trains

CENTRES = {"centres.weight", "centres.bias", "centres.centres"}
PAIRS = {f"pairs.{each}" for each in ("convolutions.0.weight", "convolutions.0.bias", "convolutions.2.weight")}
PAIRS |= {"pairs.convolutions.2.bias", "pairs.fc.weight", "pairs.fc.bias"}
TRANSFORM = {"transform.weight", "transform.bias"}


def reached(method, value):
    names, parameters = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()}


def test_each_term_reaches_its_own_parameters_and_none_the_backbone():
    method, context, record = make(MIXED, epoch=START - 1)
    nn.init.normal_(method.centres.centres)  # at zero, where they begin, the shares get no gradient
    maps = maps_of(MIXED).requires_grad_()
    terms = method.augment_features(features=record(maps), context=context).losses["rsg"]
    assert reached(method, terms["cesc"]) == CENTRES | PAIRS
    assert float(terms["mv"]) == 0 and not terms["mv"].requires_grad
    assert torch.autograd.grad(terms["cesc"], maps, allow_unused=True, retain_graph=True) == (None,)
    plan(method, context, torch.arange(10))
    after = method.augment_features(features=record(maps), context=context)
    terms, made = after.losses["rsg"], after.features[10:].square().sum()
    assert reached(method, terms["cesc"]) == CENTRES
    assert reached(method, terms["mv"]) == reached(method, made) == TRANSFORM
    for value in (terms["cesc"], terms["mv"]):
        assert torch.autograd.grad(value, maps, allow_unused=True, retain_graph=True) == (None,)
    assert not torch.autograd.grad(made, maps, retain_graph=True)[0].any()
    assert torch.equal(*[torch.autograd.grad(after.features[:10].sum(), maps)[0], torch.ones_like(maps)])


def test_the_pair_network_has_learned_for_good_once_rows_were_made():
    method, context, record = make(MIXED, epoch=START - 1)
    assert not bool(method.generated) and method._pairs_learn
    plan(method, context, torch.arange(10), epoch=START)
    assert bool(method.generated) and not method._pairs_learn
    plan(method, context, torch.arange(10), epoch=0)  # a later stage
    terms = method.augment_features(features=record(maps_of(MIXED)), context=context).losses["rsg"]
    assert reached(method, terms["cesc"]) <= CENTRES
    again, _, _ = make(MIXED, epoch=0)  # a run that goes on: the buffer is all that there is
    again.load_state_dict(method.state_dict())
    again.extra_rows(indices=[torch.arange(10)], context=context)
    assert not again._pairs_learn


def test_weights_scale_the_terms():
    terms = {}
    for name, options in {"one": {}, "own": {"cesc_weight": 0.1, "mv_weight": 0.01}}.items():
        method, context, record = make(MIXED, **options)
        terms[name] = method.augment_features(features=record(maps_of(MIXED)), context=context).losses["rsg"]
    assert float(terms["own"]["cesc"]) == pytest.approx(0.1 * float(terms["one"]["cesc"]))
    assert float(terms["own"]["mv"]) == pytest.approx(0.01 * float(terms["one"]["mv"]))


def test_a_step_of_transform_brings_the_moved_variation_into_line():
    method, context, record = make(MIXED)
    maps = maps_of(MIXED)
    optimizer = torch.optim.SGD(method.transform.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        loss = method.augment_features(features=record(maps), context=context).losses["rsg"]["mv"]
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_bf16_features_give_bf16_rows_and_float32_terms():
    method, context, record = make(MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        after = method.augment_features(features=record(maps_of(MIXED).to(torch.bfloat16)), context=context)
    assert after.features.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in after.losses["rsg"].values())


@pytest.mark.parametrize("epoch", [START - 1, START])
def test_the_fold_never_waits_for_the_device(epoch, no_sync):
    method, context, record = make(MIXED, epoch=epoch)
    before = record(maps_of(MIXED))
    with no_sync():
        method.augment_features(features=before, context=context)


# ---------------------------------------------------------------- options, and what is refused


def test_defaults_are_the_published_codes():
    assert RSG().options.model_dump() == {
        "tap": "layer2",
        "start_epoch": 160,
        "head_ratio": 0.2,
        "centres": 15,
        "pair_channels": 256,
        "strength": 1.0,
        "rows": "constant",
        "vectors": "stored",
        "cesc_weight": 0.1,
        "mv_weight": 0.01,
    }
    assert all(field.description for field in RSG.Options.model_fields.values())


@pytest.mark.parametrize(
    "options",
    [
        {"tap": "pooled"},
        {"start_epoch": -1},
        {"head_ratio": 0.0},
        {"head_ratio": 1.0},
        {"centres": 0},
        {"pair_channels": 0},
        {"strength": 0.0},
        {"rows": "many"},
        {"vectors": "columns"},
        {"cesc_weight": -0.1},
        {"mv_weight": -0.1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        RSG.Options(**options)


def test_what_was_never_trained_makes_no_rows():
    method, context, _ = make(MIXED)
    method.requires_grad_(False)
    with pytest.raises(RecipeError, match="does not train RSG's centres and networks"):
        method.on_stage_start(context=context)
    at_once, context, _ = make(MIXED, start_epoch=0)
    with pytest.raises(RecipeError, match="start_epoch 0 leaves stage 'joint' no epoch"):
        at_once.on_stage_start(context=context)
    for each in (method, at_once):
        each.trained.fill_(True)  # by an earlier stage
        each.on_stage_start(context=context)


def test_networks_begin_as_in_the_published_code():
    method, _, _ = make(MIXED, pair_channels=256, centres=15)
    assert not method.centres.centres.any() and (method.centres.bias == 1).all()
    assert float(method.centres.weight.std()) == pytest.approx(1, abs=0.1)
    for layer in (method.transform, method.pairs.convolutions[0], method.pairs.convolutions[2]):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.15) and not layer.bias.any()
    assert float(method.pairs.fc.weight.std()) == pytest.approx(1, abs=0.15) and not method.pairs.fc.bias.any()
    assert method.transform.weight.shape == (6, 6, 3, 3) and method.pairs.fc.weight.shape == (2, 256)
    zero = method.centres.centres.detach()
    shares = torch.full((10, 15), 1 / 15)
    assert torch.equal(off_centre(maps_of(MIXED), zero, shares, MIXED), maps_of(MIXED))
