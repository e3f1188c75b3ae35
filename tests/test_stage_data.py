"""A stage with data of its own: it trains on that, everything else stays the recipe's (CDT, table 5)."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch

from ltcore import Method, hookimpl

DATA = "{use: synthetic, options: {class_counts: [24, 24, 24, 24], image_size: 8, test_per_class: 4}, "
LONG = "{kind: exponential, factor: 8}"  # 24, 12, 6, 3
EVEN = "{kind: balanced_like, factor: 8}"  # 45 images: 12, 11, 11, 11
COMMON = "batch_size: 8, optimizer: {name: sgd, lr: 0.05}"


def stages(own="", more=""):
    return (
        f"[{{name: one, epochs: 2, {COMMON}}}, "
        f"{{name: two, epochs: 2, classifier: rebuild, trainable: [classifier], {own}{more}{COMMON}}}]"
    )


class Witness(Method):
    seen: ClassVar[list] = []

    @hookimpl
    def on_epoch_start(self, context):
        self.seen.append(
            (
                context.stage,
                context.class_counts.tolist(),
                len(context.training_targets),
                len(context.training_features()),
            )
        )

    @hookimpl
    def mix_inputs(self, batch, context):
        assert torch.equal(context.training_targets[batch.source_index], batch.targets)
        return batch

    @hookimpl
    def post_calibrate(self, classifier, context):
        self.seen.append((context.stage, context.class_counts.tolist(), len(context.training_targets), None))
        return classifier


def test_the_stage_sees_its_own_images_and_calibration_the_recipes(make_run, offer_methods):
    offer_methods(witness=Witness)
    Witness.seen = []
    run = make_run(
        data=DATA + f"imbalance: {LONG}}}",
        methods="{witness: {}}",
        calibrate="[witness]",
        stages=stages(f"data: {{imbalance: {EVEN}}}, ").replace("epochs: 2", "epochs: 1, methods: [witness]"),
    )
    result = run.execute()
    long, even = [24, 12, 6, 3], [12, 11, 11, 11]
    assert Witness.seen == [("one", long, 45, 45), ("two", even, 45, 45), ("calibration", long, 45, None)]
    assert result["class_counts"] == long
    test = result["stages"][1]["test"]
    assert test["many"] is None and test["medium"] is not None and test["few"] is not None  # groups: the recipe's


def test_the_same_images_give_the_same_run(make_run):
    plain = make_run("a", data=DATA + f"imbalance: {LONG}}}", stages=stages()).execute()
    same = make_run("b", data=DATA + f"imbalance: {LONG}}}", stages=stages(f"data: {{imbalance: {LONG}}}, ")).execute()
    other = make_run("c", data=DATA + f"imbalance: {LONG}}}", stages=stages(f"data: {{imbalance: {EVEN}}}, ")).execute()
    figures = [[(stage["test"], stage["diagnostics"]) for stage in result["stages"]] for result in (plain, same, other)]
    assert figures[0] == figures[1]
    assert figures[0][0] == figures[2][0] and figures[0][1] != figures[2][1]


def test_the_classifier_is_that_of_a_run_on_those_images(make_run):
    """With a cache of plain features, stage two is softmax regression on the cut's features; here it is by hand."""
    run = make_run(
        data=DATA + f"imbalance: {LONG}}}",
        stages=stages(f"data: {{imbalance: {EVEN}}}, ", "cache: eval, ").replace("batch_size: 8", "batch_size: 100"),
    )
    run.execute()
    data = run.assembly.data
    assert data.enter(1)
    cut, loader, backbone = data.current, data.loaders["train"], run.assembly.model.backbone
    features = torch.cat([backbone(loader.eval_batch(i, i + 1)) for i in range(len(cut.train))]).detach().double()
    from ltcore.contract.defaults import linear_classifier
    from ltcore.seeding import derive_seed

    torch.manual_seed(derive_seed(0, "classifier", "two"))
    classifier = linear_classifier(features.shape[1], 4).double()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(features), cut.train.targets).backward()
        optimizer.step()
    assert torch.allclose(classifier.weight.float(), run.assembly.model.classifier.weight, atol=1e-4)


class Killed(BaseException):
    """Ends the process as far as the test is concerned."""


@pytest.mark.parametrize("call", [4, 16, 22])
def test_resume(call, cli, write_recipe, tmp_path, look_on):
    recipe = write_recipe(
        data=DATA + f"imbalance: {LONG}}}", stages=stages(f"data: {{imbalance: {EVEN}}}, "), checkpoint_seconds="0"
    )
    assert cli("run", recipe, "--out", tmp_path / "whole").code == 0
    calls = []

    def armed(*_):
        calls.append(1)
        if len(calls) == call:
            raise Killed

    look_on(checkpoint_written=armed)
    with pytest.raises(Killed):
        cli("run", recipe, "--out", tmp_path / "killed")
    look_on()
    assert cli("run", recipe, "--out", tmp_path / "killed", "--resume").code == 0
    found = []
    for name in ("whole", "killed"):
        (directory,) = (tmp_path / name / "r").iterdir()
        with np.load(directory / "predictions.npz") as arrays:
            found.append(
                (arrays["logits"].tobytes(), json.loads((directory / "result.json").read_text())["stages"][1]["test"])
            )
    assert found[0] == found[1]


def test_mistakes(cli, write_recipe):
    own = f"data: {{imbalance: {EVEN}}}, "
    held = write_recipe(data=DATA + "holdout: 2}", stages=stages(own))
    cli("plan", held).is_one_message(2, "stages.two.data", "held-out images", "hold none out")
    many = write_recipe(data=DATA + "}", stages=stages("data: {imbalance: {kind: counts, counts: [25, 1, 1, 1]}}, "))
    cli("run", many).is_one_message(2, "class 0", "25", "24")
