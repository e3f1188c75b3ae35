"""The contrast against SciPy's Bessel functions, draws and the authors' code; means; and the method in a run."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ltcore_logit_adjustment import class_log_prior
from ltcore_proco import LEAST_WIDTH, ProCo, ProCoOptions, concentrations, contrast_logits, running_means
from pydantic import ValidationError
from scipy import special, stats
from torch.nn.functional import cross_entropy, normalize

import ltcore
from ltcore import Batch, DataError, ForExtraRows, RecipeError
from ltcore.testing import make_context, step_losses, write_short_recipe

#: Means of three classes and four embeddings, from a formula; what the authors' code (LeapLabTHU/ProCo, loss/proco.py,
#: with its recurrence for Bessel functions) makes of them at T 0.1.
WIDTH = 16
LENGTHS = torch.tensor([[0.3], [0.9], [0.99]])
MEANS = LENGTHS * normalize(torch.tensor([[(3 * i + 5 * j) % 11 - 5.0 for j in range(WIDTH)] for i in range(3)]), dim=1)
ROWS = normalize(torch.tensor([[(2 * i + 7 * j) % 13 - 6.0 for j in range(WIDTH)] for i in range(4)]), dim=1)
KAPPA = [5.274725914001465, 75.78939819335938, 795.9765014648438]
LOGITS = [
    [0.7174819231303662, 4.082487950876256, 3.4880803376828453],
    [2.270402774075931, 5.741039049477507, 1.6471290837034758],
    [3.1566384898022513, 4.803664765673048, -3.2007345209595996],
    [3.5252484814182186, 0.0018063794470180028, -6.583193826493243],
]


def test_values_are_those_of_the_authors_code():
    directions, kappa = concentrations(MEANS)
    assert kappa.tolist() == pytest.approx(KAPPA, rel=1e-4)  # theirs are in float32, and 1 - R ** 2 is small
    found = contrast_logits(ROWS, directions, kappa, 0.1)
    # Their recurrence begins at twice the order, and is off by up to 0.04 where its argument is larger than that.
    torch.testing.assert_close(found, torch.tensor(LOGITS), rtol=0, atol=0.04)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 2e-6)])
@pytest.mark.parametrize("width", [LEAST_WIDTH, 33, 128])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_contrast_is_that_of_bessel_functions(width, temperature, dtype, tolerance):
    generator = torch.Generator().manual_seed(width)
    kappa = torch.tensor([0.01, 1.0, 5.0, 14.0, 200.0, 1e4, 1e5], dtype=torch.float64)
    directions = normalize(torch.randn(7, width, generator=generator, dtype=torch.float64), dim=1)
    others = normalize(torch.randn(20, width, generator=generator, dtype=torch.float64), dim=1)
    rows = torch.cat([directions, -directions, others])
    order = width / 2 - 1

    def ratio(x):
        with np.errstate(divide="ignore", invalid="ignore"):  # what underflows is left out below
            return np.log(special.ive(order, x)) + x - order * np.log(x)

    together = np.linalg.norm((kappa[:, None] * directions).numpy() + rows.numpy()[:, None] / temperature, axis=2)
    expected = ratio(together) - ratio(kappa.numpy())
    found = contrast_logits(rows.to(dtype), directions.to(dtype), kappa.to(dtype), temperature)
    clear = together > 0.01  # SciPy's functions of high order underflow at 0
    np.testing.assert_allclose(found.double().numpy()[clear], expected[clear], rtol=tolerance, atol=tolerance)


def test_the_contrast_is_the_mean_similarity_with_the_classes_embeddings():
    directions, kappa = concentrations(MEANS[:2].double())
    rows, temperature = ROWS.double(), 0.5
    found = contrast_logits(rows, directions, kappa, temperature)
    for c in range(2):
        drawn = stats.vonmises_fisher(directions[c].numpy(), kappa[c].item(), seed=0).rvs(200_000)
        expected = np.log(np.exp(drawn @ rows.numpy().T / temperature).mean(0))
        np.testing.assert_allclose(found[:, c].numpy(), expected, atol=0.02)


def test_gradients_are_numerical_and_finite():
    directions, kappa = concentrations(MEANS.double())
    rows = ROWS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: contrast_logits(z, directions, kappa, 0.1), (rows,))
    # Against the direction, with kappa = 1 / T, the Bessel functions' argument is 0.
    row = -directions[:1].clone().requires_grad_()
    loss = contrast_logits(row, directions[:1], torch.tensor([10.0], dtype=torch.float64), 0.1).sum()
    (gradient,) = torch.autograd.grad(loss, row)
    assert loss.isfinite() and gradient.isfinite().all()


def test_means_are_those_of_all_rows_whatever_batches_they_came_in():
    generator = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(50, 6, generator=generator), torch.randint(3, (50,), generator=generator)
    means, seen = torch.full((4, 6), 9.0), torch.zeros(4)
    for some, labels in zip(rows.split(7), targets.split(7), strict=True):
        means, seen = running_means(means, seen, some, labels)
    for c in range(3):
        torch.testing.assert_close(means[c], rows[targets == c].mean(0))
        assert seen[c] == (targets == c).sum()
    assert (means[3] == 9).all() and seen[3] == 0  # a class without rows keeps what it began at


def test_concentrations_are_bounded():
    same = normalize(torch.ones(1, 16), dim=1)
    for means in (same, 1.0001 * same):
        directions, kappa = concentrations(means)
        assert kappa.item() == pytest.approx(1e5)
        torch.testing.assert_close(directions, same)


def test_options_and_errors():
    assert ProCo().options.model_dump() == {
        "temperature": 0.07,
        "weight": 1.0,
        "hidden_dim": None,
        "embedding_dim": 1024,
        "views": "strong",
        "smallest_crop": 0.08,
        "blur": 0.0,
    }
    for wrong in [{"temperature": 0}, {"weight": -1}, {"embedding_dim": 8}, {"views": "weak"}, {"alpha": 1}]:
        with pytest.raises(ValidationError):
            ProCoOptions(**wrong)
    assert all(field.description for field in ProCoOptions.model_fields.values())
    with pytest.raises(ValueError, match="at least 16 numbers, not 4"):
        contrast_logits(torch.eye(4), torch.eye(4), torch.ones(4))
    with pytest.raises(ValueError, match="temperature must be above 0, not -1"):
        contrast_logits(torch.eye(16), torch.eye(16), torch.ones(16), -1)
    with pytest.raises(DataError, match="no training images of class 1"):
        ProCo().on_run_start(context=make_context((3, 0), owner="proco"))
    assert ProCo(ProCoOptions(views="data")).image_transform() is None
    assert isinstance(ProCo().image_transform(), ForExtraRows)


def test_the_term_of_a_step_and_what_is_learned_in_it():
    torch.manual_seed(0)
    context = make_context((9, 5, 3, 1), owner="proco")
    method = ProCo(ProCoOptions(temperature=0.2, weight=0.5, hidden_dim=5, embedding_dim=16))
    method.on_run_start(context=context)
    first = method.next_means.clone()
    method.on_epoch_start(context=context)
    assert torch.equal(method.means, first) and not torch.equal(method.next_means, first)
    context.model.eval().methods["proco"] = method.eval()
    index = torch.arange(6)
    (twice,) = method.extra_rows(indices=[index])
    images = torch.randn(18, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    views = Batch(images[6:], twice % 3, twice)
    batch = replace(Batch(images[:6], index % 3, index), extras={"proco": views})
    losses = step_losses(batch, {"proco": method}, context)
    embeddings = normalize(method.of_features(context.model.backbone(images[6:])), dim=1).detach()
    for c in range(3):
        expected = embeddings[twice % 3 == c].mean(0)
        torch.testing.assert_close(method.means[c], expected)
        torch.testing.assert_close(method.next_means[c], expected)
    assert torch.equal(method.means[3], first[3]) and method.seen.tolist() == [4, 4, 4, 0]
    logits = contrast_logits(embeddings, *concentrations(method.means), 0.2)
    term = 0.5 * cross_entropy(logits + class_log_prior(context.class_counts), twice % 3)
    torch.testing.assert_close(losses["proco/contrastive"].detach(), term)


def test_in_a_run_its_network_has_to_train_and_it_learns(tmp_path):
    def recipe(trainable):
        return write_short_recipe(
            tmp_path / "r.yaml",
            methods={"proco": {"options": {"hidden_dim": 16, "embedding_dim": 16, "views": "data"}}},
            stages=[{"trainable": trainable, "epochs": 6}],
        )

    with pytest.raises(RecipeError, match="proco"):
        ltcore.run(recipe(["backbone", "classifier"]), out=tmp_path)
    made = ltcore.run(recipe(["backbone", "classifier", "proco"]), out=tmp_path, seed=1)
    losses = [json.loads(line)["loss"] for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
