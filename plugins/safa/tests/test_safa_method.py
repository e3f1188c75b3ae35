"""The method in a small run: the fold at the tap, its terms, what trains, what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ltcore_safa import SAFA
from ltcore_safa.functional import channel_statistics, contrastive_loss, same_class
from pydantic import ValidationError
from torch import nn

from ltcore import Backbone, Batch, Features, Model, RecipeError
from ltcore.contract.model import set_trainable
from ltcore.testing import make_context, move_context

COUNTS = torch.tensor([4, 40, 1, 20, 8])  # head at 0.4: classes 1 and 3
BATCH = 13  # 6 pairs: 4 head, 1 tail, 1 spare; and a single image
BALANCED = torch.full((5,), 0.2)  # 2 head pairs, 3 tail pairs, 1 spare
TERMS = ("cycle", "tail_mode_seeking", "head_mode_seeking", "contrastive")


class Tiny(Backbone):
    """Two strided convolutions; 8x8 images give 4x4 at layer1 and 3x3 maps."""

    feature_dim = 6
    inner_taps = ("layer1",)

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(5, 6, 2), nn.ReLU())

    def forward_maps(self, images):
        return self.layer2(self.layer1(images))


class Run:
    """What a trainer keeps, as far as SAFA asks."""

    def __init__(self, counts=COUNTS, device="cpu", distribution=BALANCED, trains=True, dtype=None, **options):
        torch.manual_seed(0)
        classes = len(counts)
        self.method = SAFA(SAFA.Options(**{"tap": "layer1", "head_ratio": 0.4, "start_epoch": 3, **options}))
        self.model = Model(Tiny(), nn.Linear(6, classes), {"safa": self.method}).to(device)
        self.context = make_context(counts, seed=3, owner="safa", model=self.model, device=device)
        self.targets, self.distribution = self.context.training_targets, distribution
        self.images = torch.randn(len(self.targets), 3, 8, 8, device=device, dtype=dtype)
        self.method.on_run_start(context=self.context)
        self.model.to(device, dtype)
        if not trains:
            set_trainable(self.model, {"classifier.weight"})

    def begin(self, epoch=3, batch_size=BATCH):
        self.sampler = self.method.build_sampler(batch_size=batch_size, context=self.context)
        move_context(self.context, epoch=epoch, step=0)
        drawn = self.sampler.draw(2, self.distribution, torch.Generator().manual_seed(5))
        index, device, self.layout = drawn.indices[0], self.images.device, drawn.layout
        rows = self.images[index.to(device)], self.targets[index].to(device), index.to(device)
        self.batch = Batch(*rows, layout=drawn.layout)
        return self

    def fold(self, change_before=lambda features: features, batch=None):
        """Features before and after SAFA, the logits that follow, and the terms."""
        batch, seen = batch or self.batch, {}

        def change(x):
            seen["before"] = change_before(Features.of(batch, x, batch.images))
            seen["after"] = self.method.augment_features(features=seen["before"], context=self.context)
            return seen["after"].features

        pooled = self.model.backbone.run(batch.images, at={self.method.tap: change})
        logits = self.model.classifier(pooled)
        terms = seen["after"].losses["safa"]
        return seen["before"], seen["after"], logits, terms


# ---------------------------------------------------------------- the fold


@pytest.mark.parametrize("tap", ["layer1", "maps"])
@pytest.mark.parametrize("batch_size", [4, 13, 32])
def test_one_row_is_appended_for_each_tail_row(tap, batch_size):
    run = Run(tap=tap).begin(batch_size=batch_size)
    before, after, logits, _ = run.fold()
    layout = run.layout
    tails = slice(2 * layout.head_pairs, 2 * layout.head_pairs + 2 * layout.tail_pairs)
    made = 2 * layout.tail_pairs
    assert len(after.targets) == batch_size + made == len(logits)
    assert torch.equal(after.features[:batch_size], before.features)
    assert torch.equal(after.targets, torch.cat([before.targets, before.targets[tails]]))
    assert torch.equal(after.source_index, torch.cat([before.source_index, before.source_index[tails]]))
    assert after.synthetic.tolist() == [False] * batch_size + [True] * made
    assert torch.isin(after.targets[batch_size:], torch.tensor([0, 2, 4])).all()
    assert torch.isfinite(after.features).all()


def linear(run, seed=0):
    """E, D and G that are linear maps of the channels, without batch norm, so that a loop can follow them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(5, 10 if name == "D" else 5, generator=generator, dtype=torch.float64) for name in "EDG"
    }
    for name, weight in weights.items():
        layer = nn.Conv2d(weight.shape[1], 5, 1, bias=False).double()
        layer.weight.data.copy_(weight[:, :, None, None])
        setattr(run.method, name, layer)
    return {name: lambda x, w=weight: torch.einsum("dc,chw->dhw", w, x) for name, weight in weights.items()}


PAPER = {
    "generation": "whole",
    "standardise": False,
    "detach": False,
    "numerators": "trained",
    "generated_weight": 1.0,
    "cycle_halves": "printed",
}


@pytest.mark.parametrize(
    "reading",
    [PAPER, {}, PAPER | {"generation": "added"}, PAPER | {"standardise": True}, PAPER | {"cycle_halves": "even"}],
    ids=["paper", "default", "added", "standardised", "even"],
)
def test_every_row_and_term_is_the_loops(reading):
    weights = {"cycle": 2.0, "tail_mode_seeking": 3.0, "head_mode_seeking": 5.0, "contrastive": 7.0}
    run = Run(dtype=torch.float64, epsilon=0.01, delta_cycle=0.5, **weights, **reading).begin()
    call, options = linear(run), run.method.options
    before, after, _, terms = run.fold()
    layout = run.layout
    seen = before.features.detach()
    mean, deviation = torch.zeros(5), torch.ones(5)
    if options.standardise:
        mean = torch.stack([seen[:BATCH, d].mean() for d in range(5)])
        deviation = torch.stack([seen[:BATCH, d].std(correction=0) for d in range(5)])
    mean, deviation = mean[:, None, None], deviation[:, None, None]
    maps = torch.stack([(row - mean) / deviation for row in seen])
    H, T = layout.head_pairs, layout.tail_pairs
    draws = move_context(run.context).generator
    one = torch.randint(2 * H, (T,), generator=draws).tolist()
    steps = torch.randint(1, 2 * H, (T,), generator=draws).tolist()
    other = [(k + step) % (2 * H) for k, step in zip(one, steps, strict=True)]

    def origin(k):
        return maps[k + H] if k < H else maps[k - H]

    def delta(k):
        return call["E"](maps[k] - origin(k))

    def translate(d, f):
        made = call["G"](call["D"](torch.cat([d, f])) + f)
        return f + made if options.generation == "added" else made

    def distance(a, b):
        return (a - b).abs().mean().item()

    cycle, tail, head, rows = [], [], [], {}
    for t in range(T):
        assert one[t] != other[t]
        made = []
        for row in (t, t + T):
            f = maps[2 * H + row]
            made.append(translate(delta(one[t]), f))
            torch.testing.assert_close(after.features[BATCH + row], mean + deviation * made[-1])
            rows[BATCH + row] = made[-1]
            found = call["E"](made[-1] - f)
            rebuilt = translate(found, origin(one[t]))
            size = found.numel() ** (0.5 if options.cycle_halves == "even" else 1)
            of_delta = (found - delta(one[t])).square().sum().sqrt() / size
            cycle.append(0.5 * of_delta + (rebuilt - maps[one[t]]).square().mean())
            head.append(distance(maps[one[t]], origin(one[t])) / (distance(made[-1], f) + 0.01))
        again = translate(delta(other[t]), maps[2 * H + t])
        tail.append(distance(delta(one[t]), delta(other[t])) / (distance(made[0], again) + 0.01))
        tail[-1] += distance(maps[2 * H + t], maps[2 * H + t + T]) / (distance(made[0], made[1]) + 0.01)
    assert terms["cycle"].item() == pytest.approx(2 * sum(cycle).item() / (2 * T))
    assert terms["tail_mode_seeking"].item() == pytest.approx(3 * sum(tail) / T)
    assert terms["head_mode_seeking"].item() == pytest.approx(5 * sum(head) / (2 * T))
    order = torch.randperm(BATCH + 2 * T, generator=draws)
    half = (BATCH + 2 * T) // 2
    first, second = order[:half], order[half : 2 * half]
    whole = torch.cat([maps, torch.stack([rows[row] for row in sorted(rows)])])
    logits = run.method.Q(whole[first], whole[second])
    expected = contrastive_loss(logits, (after.targets[first] == after.targets[second]).float())
    assert terms["contrastive"].item() == pytest.approx(7 * expected.item())


def test_the_cycle_is_zero_where_d_and_g_undo_e():
    class Delta(nn.Module):
        def forward(self, x):
            return 0.5 * x[:, :5]  # D undoes an E that doubles

    run = Run(dtype=torch.float64, **PAPER).begin()
    double = nn.Conv2d(5, 5, 1, bias=False).double()
    double.weight.data.copy_(2 * torch.eye(5)[:, :, None, None])
    run.method.E, run.method.D, run.method.G = double, Delta(), nn.Identity()
    assert run.fold()[3]["cycle"] < 1e-12
    run.method.G = nn.ReLU()
    assert run.fold()[3]["cycle"] > 1e-3


def test_the_rows_that_join_do_not_depend_on_the_terms_that_are_on():
    rows = []
    for off in ((), ("cycle", "contrastive"), ("cycle", "head_mode_seeking", "contrastive")):
        run = Run(dtype=torch.float64, **dict.fromkeys(off, 0)).begin()
        linear(run)
        rows.append(run.fold()[1].features)
    torch.testing.assert_close(rows[1], rows[0])
    torch.testing.assert_close(rows[2], rows[0])


@pytest.mark.parametrize("off", TERMS)
def test_a_term_that_is_off_is_zero_and_the_others_stay(off):
    whole, without = Run(dtype=torch.float64).begin(), Run(dtype=torch.float64, **{off: 0}).begin()
    linear(whole), linear(without)
    terms, rest = whole.fold()[3], without.fold()[3]
    assert rest[off] == 0 and terms[off] > 0
    for name in set(TERMS) - {off}:
        torch.testing.assert_close(rest[name], terms[name])


def test_a_step_draws_the_same_numbers_in_every_run_and_the_next_step_others():
    run = Run().begin()
    first = run.fold()[1].features
    assert torch.equal(Run().begin().fold()[1].features, first)
    move_context(run.context, step=1)
    assert not torch.equal(run.fold()[1].features, first)


# ---------------------------------------------------------------- other methods' rows and labels


def test_rows_that_an_earlier_method_appended_stay_and_are_left_out():
    run, other = Run(dtype=torch.float64).begin(), Run(dtype=torch.float64).begin()
    linear(run), linear(other)
    alone = other.fold()

    def append(features):
        return features.append(features.features[:3] * 50, features.targets[:3], features.source_index[:3])

    before, after, _, terms = run.fold(append)
    assert torch.equal(after.features[: BATCH + 3], before.features)
    torch.testing.assert_close(after.features[BATCH + 3 :], alone[1].features[BATCH:])
    assert after.synthetic[BATCH:].all() and len(after.targets) == len(alone[1].targets) + 3
    for name in TERMS:
        torch.testing.assert_close(terms[name], alone[3][name])


def test_augmented_rows_of_a_mixed_batch_have_both_labels_of_their_row():
    run = Run().begin()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(BATCH, generator=torch.Generator().manual_seed(1))
    mixed = replace(run.batch, partner_targets=run.batch.targets[order], target_weight=weight)
    _, after, _, terms = run.fold(batch=mixed)
    layout = run.layout
    tails = torch.arange(2 * layout.head_pairs, 2 * layout.head_pairs + 2 * layout.tail_pairs)
    assert torch.equal(after.partner_targets[BATCH:], mixed.partner_targets[tails])
    assert torch.equal(after.target_weight[BATCH:], weight[tails])
    assert torch.equal(after.partner_targets[:BATCH], mixed.partner_targets)
    draws = move_context(run.context).generator
    H, T = layout.head_pairs, layout.tail_pairs
    torch.randint(2 * H, (T,), generator=draws), torch.randint(1, 2 * H, (T,), generator=draws)
    pairs = torch.randperm(len(after.targets), generator=draws)
    half = len(pairs) // 2
    first, second = pairs[:half], pairs[half : 2 * half]
    same = same_class(first, second, after.targets, after.partner_targets, after.target_weight)
    mean, deviation = channel_statistics(after.features[:BATCH])
    rows = (after.features - mean) / deviation
    expected = contrastive_loss(run.method.Q(rows[first], rows[second]), same)
    torch.testing.assert_close(terms["contrastive"], 0.1 * expected)
    assert 0 < same.sum() and not torch.equal(same, same.round())


# ---------------------------------------------------------------- what trains


def reached(run, loss):
    run.model.zero_grad(set_to_none=True)
    loss.backward()
    modules = {
        **{name: getattr(run.method, name) for name in "EDGQ"},
        "before": run.model.backbone.layer1,
        "behind": run.model.backbone.layer2,
        "classifier": run.model.classifier,
    }
    return {
        name
        for name, module in modules.items()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    }


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("term", TERMS)
def test_a_term_trains_what_the_card_says(term, detach):
    run = Run(detach=detach).begin()
    expected = {"E", "D", "G"} | ({"Q"} if term == "contrastive" else set()) | (set() if detach else {"before"})
    assert reached(run, run.fold()[3][term]) == expected


@pytest.mark.parametrize("detach", [False, True])
def test_the_classification_of_augmented_rows_trains_all_but_q(detach):
    run = Run(detach=detach).begin()
    _, after, logits, _ = run.fold()
    loss = F.cross_entropy(logits[BATCH:], after.targets[BATCH:])
    assert reached(run, loss) == {"E", "D", "G", "behind", "classifier"} | (set() if detach else {"before"})


def test_the_classification_of_real_rows_trains_the_backbone_whether_or_not_the_networks_do():
    run = Run(detach=True).begin()
    _, after, logits, _ = run.fold()
    assert reached(run, F.cross_entropy(logits[:BATCH], after.targets[:BATCH])) == {"before", "behind", "classifier"}


@pytest.mark.parametrize(("numerators", "gradient"), [("constant", False), ("trained", True)])
def test_constant_numerators_do_not_teach_e_to_shrink_its_deltas(numerators, gradient):
    run = Run(dtype=torch.float64, numerators=numerators, generation="added").begin()
    linear(run)
    for parameter in run.method.D.parameters():
        parameter.data[:, :5] = 0  # D does not look at the delta, so E acts on the numerators alone
    run.fold()[3]["tail_mode_seeking"].backward()
    assert bool(run.method.E.weight.grad.abs().sum() > 0) == gradient


def test_augmented_rows_count_for_their_weight_in_a_weighted_mean():
    run = Run(generated_weight=0.2).begin()
    _, after, *_ = run.fold()
    made = 2 * run.layout.tail_pairs
    after = after.append(after.features[:2], after.targets[:2], after.source_index[:2])  # another method's rows
    values = torch.linspace(1, 3, BATCH + made + 2)
    weights = run.method.sample_weights(values=values, features=after, context=run.context)
    expected = torch.tensor([1.0] * BATCH + [0.2] * made + [1.0] * 2)
    torch.testing.assert_close((weights * values).mean(), (expected * values).sum() / expected.sum())
    torch.testing.assert_close(weights / weights[0], expected)
    run = Run(generated_weight=1).begin()
    assert run.method.sample_weights(values=values, features=run.fold()[1], context=run.context) is None


def test_training_lowers_the_cycle():
    run = Run().begin()
    parameters = [p for name in "EDG" for p in getattr(run.method, name).parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    seen = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = run.fold()[3]["cycle"]
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.5 * seen[0]


def test_before_the_start_nothing_happens():
    run = Run(start_epoch=4).begin(epoch=3)
    for name in "EDGQ":
        setattr(run.method, name, None)
    before, after, _, terms = run.fold()
    assert after.features is before.features and set(terms) == set(TERMS) and not any(terms.values())
    drawn = torch.rand(3, generator=run.context.generator)
    assert torch.equal(drawn, torch.rand(3, generator=move_context(run.context).generator))


def test_bf16_and_channels_last_are_kept():
    run = Run().begin()
    run.model.to(memory_format=torch.channels_last)
    run.batch = replace(run.batch, images=run.batch.images.to(memory_format=torch.channels_last))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before, after, _, terms = run.fold()
    assert before.features.dtype == after.features.dtype == torch.bfloat16
    assert after.features.is_contiguous(memory_format=torch.channels_last)
    assert all(terms[name].dtype == torch.float32 and torch.isfinite(terms[name]) for name in TERMS)


def test_the_fold_never_waits_for_the_device(no_sync):
    run = Run().begin()
    with no_sync():
        run.fold()


@pytest.mark.gpu
def test_the_fold_on_a_gpu_never_synchronises():
    run = Run(device="cuda").begin()
    run.fold()  # what is compiled or allocated on first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.fold()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- options, and what is refused


def test_defaults():
    assert SAFA().options.model_dump() == {
        "tap": "layer2",
        "start_epoch": 160,
        "head_ratio": 0.2,
        "generation": "added",
        "standardise": True,
        "detach": True,
        "generated_weight": 1.0,
        "hidden_channels": None,
        "cycle": 1.0,
        "delta_cycle": 1.0,
        "cycle_halves": "printed",
        "tail_mode_seeking": 0.01,
        "head_mode_seeking": 0.01,
        "numerators": "constant",
        "contrastive": 0.1,
        "epsilon": 1e-3,
    }
    assert SAFA().tap == "layer2" and SAFA.auxiliary == TERMS
    assert all(field.description for field in SAFA.Options.model_fields.values())


@pytest.mark.parametrize(
    "options",
    [
        {"tap": "pooled"},
        {"start_epoch": -1},
        {"head_ratio": 0},
        {"head_ratio": 1},
        {"hidden_channels": 0},
        {"cycle": -1},
        {"epsilon": 0},
        {"generation": "changed"},
        {"generated_weight": -0.1},
        {"numerators": "detached"},
        {"cycle_halves": "both"},
        {"cycles": 1},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        SAFA.Options(**options)


def test_the_networks_are_conv_bn_relu_conv():
    run = Run(hidden_channels=9)
    shapes = {"E": (5, 9), "D": (10, 9), "G": (5, 9)}
    blocks = {**{name: getattr(run.method, name) for name in shapes}, "Q": run.method.Q.convolutions}
    for name, block in blocks.items():
        kinds = [type(layer) for layer in block]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
        assert (block[0].in_channels, block[0].out_channels) == shapes.get(name, (10, 9))
        assert block[3].out_channels == 5
    assert (run.method.Q.fc.in_features, run.method.Q.fc.out_features) == (5, 1)


def test_a_stage_that_cannot_work_is_refused():
    assert SAFA().acts_from == 160
    SAFA().check_stage(SimpleNamespace(epochs=None, batch_size=4))
    with pytest.raises(RecipeError, match="batch_size 3 does not hold a pair"):
        SAFA().check_stage(SimpleNamespace(epochs=None, batch_size=3))


def test_networks_that_nothing_trained_are_refused():
    run = Run(trains=False)
    with pytest.raises(RecipeError, match=r"stage 'joint' does not train SAFA's networks.*trainable"):
        run.method.on_stage_start(context=run.context)
    trained = Run()
    trained.method.on_stage_start(context=trained.context)
    run.method.load_state_dict(trained.method.state_dict())
    run.method.on_stage_start(context=run.context)  # an earlier stage trained them


def test_a_tap_without_maps_is_refused():
    context = make_context(COUNTS, owner="safa", features=lambda split, tap: torch.zeros(73, 7, 5))
    with pytest.raises(RecipeError, match=r"tap 'flat' has rows of shape \[7, 5\]"):
        SAFA(SAFA.Options(tap="flat", head_ratio=0.4)).on_run_start(context=context)


def test_a_batch_of_another_layout_is_refused():
    run = Run().begin()
    with pytest.raises(RecipeError, match="has not the layout of SAFA's sampler"):
        run.fold(batch=Batch(*(x[:5] for x in (run.batch.images, run.batch.targets, run.batch.source_index))))


def test_directions_of_head_pairs_are_carried_over_to_tail_rows():
    """Head maps vary along one direction, tail maps not at all; what is made of tail maps learns to vary along it.

    The feature direction of the cycle alone: it is what the direction has to come through for.
    """
    options = {"delta_cycle": 0, "contrastive": 0, "epsilon": 0.1}
    run = Run(counts=torch.tensor([60, 60, 2, 2, 2]), **options).begin(batch_size=32)
    generator = torch.Generator().manual_seed(1)
    means, direction = torch.randn(5, 5, generator=generator), F.normalize(torch.randn(5, generator=generator), dim=0)
    optimizer = torch.optim.Adam([p for name in "EDG" for p in getattr(run.method, name).parameters()], 1e-2)

    def step(number):
        """How far each delta's pair and each made row moved along the direction; and the terms."""
        move_context(run.context, step=number)
        batches = run.sampler.draw(1, BALANCED, torch.Generator().manual_seed(number))
        drawn, layout = batches.indices[0], batches.layout
        targets = run.targets[drawn]
        amplitude = 2 * torch.randn(32, 1, generator=generator) * (targets < 2)[:, None]
        rows = (means[targets] + amplitude * direction)[:, :, None, None].expand(-1, -1, 4, 4)
        record = Features.of(Batch(rows, targets, drawn, layout=layout), rows, None)
        after = run.method.augment_features(features=record, context=run.context)
        made = after.features[32:]
        H, T = layout.head_pairs, layout.tail_pairs
        one = torch.randint(2 * H, (T,), generator=move_context(run.context).generator)
        led = (rows[: 2 * H] - rows[: 2 * H].roll(H, 0))[one.repeat(2)]
        moved = made - rows[2 * H : 2 * H + 2 * T]
        terms = after.losses["safa"]
        return *(x.mean((2, 3)) @ direction for x in (led, moved)), terms

    def correlation():
        with torch.no_grad():
            seen = [step(1000 + k)[:2] for k in range(8)]
        return torch.corrcoef(torch.stack([torch.cat(parts) for parts in zip(*seen, strict=True)]))[0, 1].item()

    before = correlation()
    for number in range(200):
        optimizer.zero_grad()
        step(number)[2]["cycle"].backward()
        optimizer.step()
    assert abs(before) < 0.3
    assert abs(correlation()) > 0.6  # the cycle does not see the sign
