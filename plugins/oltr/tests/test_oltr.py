"""Functions against loops, the network's phases, and a run that is killed and gone on with by `ltcore check`."""

import math

import numpy as np
import pytest
import torch
from ltcore_oltr import (
    OLTR,
    CosineNorm,
    ModulatedAttention,
    OLTRNetwork,
    OLTROptions,
    attraction,
    meta_embedding,
    repulsion,
)
from pydantic import ValidationError
from scipy.special import softmax

import ltcore
from ltcore import Backbone, RecipeError

ROWS, CLASSES, WIDTH = 6, 4, 5
TARGETS = torch.tensor([0, 1, 1, 3, 1, 0])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


F, M = drawn(ROWS, WIDTH), drawn(CLASSES, WIDTH, seed=1)


def test_meta_embedding_against_a_loop():
    o, e = drawn(ROWS, CLASSES, seed=2), drawn(ROWS, WIDTH, seed=3)
    found = meta_embedding(F, M, o, e, 10.0).numpy()
    for i in range(ROWS):
        shares = softmax(o[i].numpy())
        memory = sum(shares[k] * M[k].numpy() for k in range(CLASSES))
        reach = 10 / min(math.dist(F[i].tolist(), M[k].tolist()) for k in range(CLASSES))
        u = reach * (F[i].numpy() + np.tanh(e[i].numpy()) * memory)
        norm = np.linalg.norm(u)
        np.testing.assert_allclose(found[i], norm / (1 + norm) * u / norm, rtol=1e-9)


def test_centroids_enter_as_data_and_a_feature_on_one_has_a_finite_gradient():
    f, m = F.clone().requires_grad_(), M.clone().requires_grad_()
    with torch.no_grad():
        f[0] = m[2]
    meta_embedding(f, m, f @ m.detach().T, f, 10.0).sum().backward()
    assert m.grad is None and torch.isfinite(f.grad).all() and (f.grad != 0).any()


def test_attraction_and_its_own_gradient_of_centroids():
    f, m = F.clone().requires_grad_(), M.clone().requires_grad_()
    loss = attraction(f, m, TARGETS)
    loss.backward()
    own = M[TARGETS]
    assert loss.item() == pytest.approx(float((F - own).square().sum()) / (2 * ROWS))
    torch.testing.assert_close(f.grad, (F - own) / ROWS)
    for k in range(CLASSES):
        rows = [i for i in range(ROWS) if TARGETS[i] == k]
        expected = sum((M[k] - F[i] for i in rows), torch.zeros(WIDTH, dtype=torch.float64)) / (1 + len(rows)) / ROWS
        torch.testing.assert_close(m.grad[k], expected)


@pytest.mark.parametrize("margin", [1.0, 10.0, 40.0])
def test_repulsion_against_a_loop(margin):
    total = sum(
        math.dist(F[i].tolist(), M[k].tolist()) ** 2 for i in range(ROWS) for k in range(CLASSES) if TARGETS[i] != k
    )
    found = repulsion(F, M, TARGETS, margin).item()
    assert found == pytest.approx(max(0.0, margin - total / (ROWS * CLASSES)))
    assert torch.autograd.gradcheck(
        lambda f, m: repulsion(f, m, TARGETS, 40.0), (F.requires_grad_(), M.requires_grad_())
    )
    F.requires_grad_(False), M.requires_grad_(False)


def test_attention_against_a_loop_over_locations():
    torch.manual_seed(0)
    attention, maps = ModulatedAttention(4, 2).double(), drawn(3, 4, 2, 2)
    found = attention(maps)

    def layer(conv, x):  # a 1 x 1 convolution at one location
        return conv.weight[:, :, 0, 0] @ x + conv.bias

    for i in range(3):
        places = [maps[i, :, y, x] for y in range(2) for x in range(2)]
        shares = (attention.spatial.weight @ maps[i].flatten() + attention.spatial.bias).softmax(0)
        for p, here in enumerate(places):
            scores = torch.stack([layer(attention.query, here) @ layer(attention.key, there) for there in places])
            mixed = sum(s * layer(attention.value, there) for s, there in zip(scores.softmax(0), places, strict=True))
            expected = here + shares[p] * layer(attention.out, mixed)
            torch.testing.assert_close(found[i, :, p // 2, p % 2], expected)


class Tiny(Backbone):
    feature_dim = 4

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward_maps(self, images):
        return self.stem(images).relu()


def network(**changes):
    torch.manual_seed(0)
    return OLTRNetwork(Tiny(), **{"classes": CLASSES, "size": 2, "width": None, "reach": 10.0, **changes}).eval()


def test_phases():
    images, made = drawn(3, 3, 8, 8).float(), network()
    plain = made(images)
    torch.testing.assert_close(plain, made.inner(images))
    made.enter(1)
    attended = made(images)
    torch.testing.assert_close(attended, made.attention(made.inner.forward_maps(images)).mean((2, 3)))
    assert not torch.allclose(attended, plain)
    made.remember(drawn(CLASSES, 4).float(), drawn(CLASSES, 4, seed=1).float(), None)
    made.enter(2)
    torch.testing.assert_close(made(images), made.memory(attended))
    # A network that is built again is where the tensors say.
    again = network()
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again(images), made(images))


def test_a_layer_behind_the_pool():
    made, images = network(width=7, size=None), drawn(3, 3, 8, 8).float()
    assert made.feature_dim == 7 and made.attention is None and not made.spatial
    torch.testing.assert_close(made(images), made.embedding(made.inner(images)).relu())


def test_the_classifier_is_linear_in_meta_embeddings():
    classifier = CosineNorm(5, 3, 16.0)
    torch.testing.assert_close(classifier.weight.norm(dim=1), torch.full((3,), 16.0))
    torch.testing.assert_close(classifier(F.float()), F.float() @ classifier.weight.T)


def test_options():
    for wrong in [{"map_size": 0}, {"reach": 0}, {"scale": -1}, {"margin": -1}, {"centroids": 1}]:
        with pytest.raises(ValidationError):
            OLTROptions(**wrong)
    assert all(field.description for field in OLTROptions.model_fields.values())
    with pytest.raises(RecipeError, match="has them already"):
        OLTR(OLTROptions(map_size=2)).adapt_backbone(backbone=network(), num_classes=3)


RECIPE = """
threads: 1
data: {use: digits_lt}
backbone: {use: cifar_resnet, options: {depth: 8}, adapt: [ADAPT]}
methods:
  oltr: {options: {map_size: SIZE, width: 16}}
stages:
  - {name: first, epochs: 8, batch_size: 32, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
  - name: second
    epochs: 4
    methods: [oltr]
    batch_size: 32
    trainable: [oltr, classifier]
    optimizer: {name: sgd, lr: 0.01, momentum: 0.9, groups: {oltr.memory.centroids: {lr: 0.02}}}
"""


def ran(folder, adapt="oltr", size="2"):
    (folder / "r.yaml").write_text(RECIPE.replace("ADAPT", adapt).replace("SIZE", size))
    return ltcore.run(folder / "r.yaml", out=folder / "out").path


def test_a_run_and_what_it_is_opened_as(tmp_path):
    """Memory and attention act in what is opened again, and it has learned something."""
    saved = ltcore.load(ran(tmp_path))
    made = saved.model.backbone
    assert made.remembers and made.memory.centroids.shape == (10, 16)
    assert float(saved.model.classifier.weight.norm(dim=1).min()) == pytest.approx(16, rel=1e-4)
    assert float((made.memory.centroids - made.memory.centroids.mean(0)).norm()) > 0
    assert float(saved.metrics["top1"]) > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"size": "7"}, "map_size is 7, and the network's maps are 2 x 2; set map_size: 2"), ({"adapt": ""}, "oltr")],
    ids=["size", "adapt"],
)
def test_mistakes_are_one_message(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        ran(tmp_path, **change)
