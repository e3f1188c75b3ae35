"""What the plan refuses, and that nothing was read by then."""

import pytest
import torch
from torch import Tensor

from ltcore import Batch, Context, Features, Method, Options, RecipeError, hookimpl
from ltcore.plan.plan import make_plan
from ltcore.recipe.loading import load_recipe


class Loss(Method):
    @hookimpl
    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.logsumexp(1)


class Balanced(Method):
    @hookimpl
    def class_distribution(self, context: Context) -> Tensor:
        return torch.ones(context.num_classes)


class Mix(Method):
    breaks = frozenset({"hard_labels"})

    @hookimpl
    def mix_inputs(self, batch: Batch) -> Batch:
        return batch


class Augment(Method):
    tap = "maps"

    @hookimpl
    def augment_features(self, features: Features) -> Features:
        return features


class Deep(Augment):
    tap = "layer2"


class Wrong(Augment):
    tap = "layer9"


class Needy(Augment):
    requires = frozenset({"spatial_features", "hard_labels"})


class NeedyPooled(Needy):
    tap = "pooled"


class Convolving(Augment):
    requires = frozenset({"feature_maps"})


class Later(Augment):
    requires = frozenset({"earlier_stage"})


class Validated(Augment):
    requires = frozenset({"validation"})


class Paired(Augment):
    requires = frozenset({"paired_batches"})


class Pairs(Augment):
    provides = frozenset({"paired_batches"})


class Aux(Method):
    auxiliary = ("term",)

    @hookimpl
    def auxiliary_losses(self, logits: Tensor) -> dict[str, Tensor]:
        return {"term": logits.mean()}


class Picky(Loss):
    def check_stage(self, stage) -> None:
        if stage.batch_size % 3:
            raise RecipeError(f"batch_size {stage.batch_size} is not a multiple of 3; use 9")


class Still(Augment):
    requires = frozenset({"fixed_backbone"})


class Bringing(Augment):
    @hookimpl
    def extra_rows(self, indices):
        """Rows of its own stand beside those of the batch."""


class Pairing(Bringing):
    breaks = frozenset({"single_images"})


class Learning(Augment):
    requires = frozenset({"own_parameters_train"})

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.shift = torch.nn.Parameter(torch.zeros(()))


class Random(Augment):
    """Has parameters, and requires nothing of them."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.shift = torch.nn.Parameter(torch.zeros(()))


class Follower(Random):
    frozen = ("shift",)


class Late(Loss):
    acts_from = 3


class LateOptions(Options):
    start_epoch: int = 2


class LateByOption(Method[LateOptions]):
    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return logits


class Calibrate(Method):
    @hookimpl
    def on_run_start(self) -> None:
        """Acts in every run, and in no stage."""

    @hookimpl
    def post_calibrate(self, classifier):
        return classifier


class CalibrateOn(Calibrate):
    """With what it is asked to require."""

    def __init__(self, options=None) -> None:
        super().__init__(options)
        self.shift = torch.nn.Parameter(torch.zeros(()))

    @hookimpl
    def adjust_logits(self, logits: Tensor) -> Tensor:
        return logits


class CalValidated(Calibrate):
    requires = frozenset({"validation"})


class CalPaired(Calibrate):
    requires = frozenset({"paired_batches", "earlier_stage", "hard_labels", "fixed_backbone"})


class CalAnew(Method):
    """Makes a classifier of the features, and does not ask for the trained one."""

    @hookimpl
    def post_calibrate(self):
        return torch.nn.Linear(8, 4)


class OwnLogits(Method):
    """Gives logits of its own, and does not ask for the classifier's."""

    @hookimpl
    def adjust_logits(self, features: Features) -> Tensor:
        return features.features[:, :4]


class CalSpatial(Calibrate):
    requires = frozenset({"spatial_features"})


class CalLearning(CalibrateOn):
    requires = frozenset({"own_parameters_train"})


class Building(Method):
    """A classifier of two layers."""

    @hookimpl
    def build_classifier(self, feature_dim: int, num_classes: int):
        return torch.nn.Sequential(torch.nn.Linear(feature_dim, 3), torch.nn.Linear(3, num_classes))


class Unspatial(Method):
    @hookimpl
    def build_backbone(self, in_channels: int):
        from ltcore_cifar_resnet.network import ResNet

        return type("Tokens", (ResNet,), {"spatial": False})(8, 4, in_channels)


METHODS = {
    kind.__name__.lower(): kind
    for kind in [
        *[
            Loss,
            Balanced,
            Mix,
            Augment,
            Deep,
            Wrong,
            Needy,
            NeedyPooled,
            Convolving,
            Later,
            Validated,
            Paired,
            Pairs,
            Aux,
            Picky,
        ],
        *[Calibrate, Unspatial, Building, Still, Bringing, Pairing, Learning, Random, Follower, Late, LateByOption],
        *[OwnLogits, CalValidated, CalPaired, CalAnew, CalSpatial, CalLearning],
    ]
}


@pytest.fixture
def plan(offer_methods, write_recipe, monkeypatch):
    """Plan a recipe of one stage, or of `stages`."""
    offer_methods(METHODS)
    monkeypatch.setattr("ltcore.training.data.prepare", lambda *_: pytest.fail("data was read"))

    def make(methods=(), calibrate=(), backbone=None, data=None, stages=None, **stage):
        stage = {"name": "s", "epochs": 1, "batch_size": 8, "optimizer": {"lr": 0.1}, "methods": [*methods], **stage}
        listed = [*methods, *calibrate, *(name for each in stages or [] for name in each.get("methods", []))]
        used = {name: {} for name in listed}
        parts = {"methods": used, "stages": [*(stage | each for each in stages)] if stages else [stage]}
        parts |= {"backbone": backbone} if backbone else {}
        parts |= {"data": data} if data else {}
        return make_plan(load_recipe(write_recipe(**parts, calibrate=[*calibrate])))

    return make


# A recipe's parts, and what the message says; @ stands for distribution and version.
REFUSED = [
    (
        {"methods": ["loss", "picky"]},
        "stage 's': 'loss' and 'picky' both compute the loss (hook compute_loss); keep one",
    ),
    (
        {"methods": ["balanced"], "sampler": "class_balanced"},
        "sampler 'class_balanced' and 'balanced' both set how often each class is drawn (hook class_distribution)",
    ),
    (
        {"methods": ["calibrate"]},
        "'calibrate' @ does nothing in a stage; if it calibrates, name it in",
    ),
    (
        {"methods": ["aux", "loss"], "classification": False},
        "'loss' @ does nothing in a stage without classification",
    ),
    ({"classification": False}, "without classification it needs a method with auxiliary losses, and has none"),
    ({"calibrate": ["loss"]}, "'loss' @ does not calibrate (hook post_calibrate); name it in a stage"),
    (
        {"methods": ["wrong"]},
        "'wrong' @ acts at tap 'layer9', which backbone 'cifar_resnet' does not have; did you mean "
        "'layer3'? it has 'layer1', 'layer2', 'layer3', 'maps', 'pooled'",
    ),
    ({"methods": ["later"]}, "'later' @ needs earlier_stage (a stage before this one), and nothing"),
    ({"methods": ["validated"]}, "needs validation (held-out images: set data.holdout), and nothing provides it"),
    ({"methods": ["paired"]}, "'paired' @ needs paired_batches, and nothing provides it"),
    (
        {"methods": ["needypooled"]},
        "needs spatial_features (a tap with feature maps whose plain mean the classifier reads), and backbone "
        "'cifar_resnet' has none at 'pooled'; choose another tap",
    ),
    (
        {"methods": ["needy"], "backbone": "{use: unspatial}"},
        "whose plain mean the classifier reads), and backbone 'unspatial' does more than that mean between maps and "
        "the classifier; choose a network without",
    ),
    (
        {"methods": ["needy"], "backbone": "{use: timm, options: {model: mobilenetv3_small_100}}"},
        "and backbone 'timm' (mobilenetv3_small_100) has 'conv_head', 'act2' between the global pool",
    ),
    (
        {"methods": ["convolving"], "backbone": "{use: timm, options: {model: test_vit}}"},
        "'convolving' @ needs feature_maps (a tap with feature maps [N, D, H, W]), and backbone 'timm' (test_vit) has "
        "none at",
    ),
    (
        {"methods": ["needy", "mix"]},
        "'needy' @ needs hard_labels (one label per image), which 'mix' @ breaks; keep one, or use two stages",
    ),
    (
        {"methods": ["still"]},
        "'still' @ needs fixed_backbone (a backbone that stays as it is), and trainable 'backbone' trains it; name "
        "what else should train, such as trainable: [classifier]",
    ),
    ({"methods": ["still"], "trainable": ["classifier", "*.layer3.*"]}, "and trainable '*.layer3.*' trains it"),
    (
        {"methods": ["still"], "trainable": ["classifier"], "batch_norm": "adapt"},
        "and batch_norm: adapt moves its statistics; use batch_norm: frozen",
    ),
    (
        {"methods": ["pairing", "bringing"]},
        "'bringing' @ needs single_images (one image per row), which 'pairing' @ breaks; keep one, or use two stages",
    ),
    (
        {"methods": ["learning"]},
        "'learning' @ needs own_parameters_train (that the stage trains the method's own parameters), and trainable "
        "does not name it; write trainable: [backbone, classifier, learning]",
    ),
    (
        {"methods": ["loss"], "calibrate": ["calvalidated"]},
        "calibrate: 'calvalidated' @ needs validation (held-out images: set data.holdout), and nothing provides it",
    ),
    (
        {"calibrate": ["calibrate", "calpaired"]},
        "calibrate: 'calpaired' @ needs paired_batches, and nothing provides it",
    ),
    (
        {"calibrate": ["calibrate", "calanew"]},
        "calibrate: 'calanew' @ makes a classifier of its own in post_calibrate, so what 'calibrate' @ has made of "
        "the trained one would be lost; put 'calanew' first, or leave one out",
    ),
    (
        {"methods": ["callearning", "ownlogits"]},
        "'ownlogits' @ gives logits of its own in adjust_logits, so what 'callearning' @ has made of the classifier's "
        "would be lost; name 'ownlogits' first, or leave one out",
    ),
    ({"calibrate": ["calspatial"]}, "calibrate: 'calspatial' @ needs spatial_features (a tap with"),
    (
        {"calibrate": ["callearning"]},
        "'callearning' @ needs own_parameters_train (that the stage trains the method's own parameters), and nothing "
        "trains while a classifier is calibrated; name it in the methods and the trainable of a stage, too",
    ),
    (
        {"methods": ["late"], "epochs": 3},
        "'late' @ would never act: start_epoch 3 never comes in 3 epochs, counted from 0; set it to an epoch of",
    ),
    (
        {"methods": ["latebyoption"], "epochs": 2},
        "'latebyoption' @ would never act: start_epoch 2 never comes in 2 epochs",
    ),
    ({"cache": "eval"}, "cache 'eval' needs a frozen backbone; 'backbone' trains it"),
    (
        {"cache": "views:2", "trainable": ["backbone.layer3.*"]},
        "needs a frozen backbone; 'backbone.layer3.*' trains it",
    ),
    (
        {"methods": ["deep"], "cache": "eval", "trainable": ["classifier"]},
        "'deep' @ acts at 'layer2', inside the backbone, and cache 'eval' holds what comes out of it",
    ),
    (
        {"methods": ["mix"], "cache": "eval", "trainable": ["classifier"]},
        "'mix' @ changes the images, which cache 'eval' skips; use cache: off",
    ),
    (
        {"cache": "eval", "batch_norm": "adapt"},
        "cache 'eval' needs a backbone that stays as it is, and batch_norm: adapt changes it; use cache: off",
    ),
    (
        {"trainable": ["backbon"]},
        "trainable 'backbon' matches nothing; did you mean 'backbone'? there is 'backb",
    ),
    ({"trainable": ["classifier", "backbone.layer4.*"]}, "trainable 'backbone.layer4.*' matches nothing; did you mean"),
    ({"trainable": ["aux"]}, "trainable 'aux' matches nothing"),  # a method of no stage, let alone this one
    ({"trainable": ["classifier.1"]}, "trainable 'classifier.1' matches nothing"),
    (
        {"stages": [{"name": "a", "methods": ["building"]}, {"classifier": "rebuild", "trainable": ["classifier.1"]}]},
        "trainable 'classifier.1' matches nothing",
    ),
    (
        {"methods": ["aux"], "auxiliary_weights": {"aux/trem": 2.0}},
        "there is no auxiliary loss 'aux/trem'; did you mean 'aux/term'? there is 'aux/term'",
    ),
    ({"optimizer": {"name": "sdg", "lr": 0.1}}, "there is no optimizer 'sdg'; did you mean 'sgd'?"),
    ({"optimizer": {"lr": 0.1, "momentun": 0.9}}, "optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?"),
    (
        {"methods": ["picky"]},
        "'picky' @ refuses the stage: batch_size 8 is not a multiple of 3; use 9",
    ),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused_with_the_place_the_names_and_a_way_out(plan, parts, message):
    with pytest.raises(RecipeError) as error:
        plan(**parts)
    assert message.replace("@", "(ltcore-tests 0.0)") in str(error.value)
    place, _, rest = str(error.value).partition(": ")
    assert place.rpartition("r.yaml:")[2].isdigit(), place
    assert rest.startswith("stage 's': ") or "calibrate" in parts
    assert "\n" not in rest


ACCEPTED = [
    {"methods": ["needy", "augment", "deep", "loss", "balanced"]},
    {"methods": ["balanced"]},
    {"methods": ["convolving"], "backbone": "{use: timm, options: {model: test_convnext}}"},
    {"methods": ["aux"], "classification": False, "auxiliary_weights": {"aux/term": 0.5}},
    {"methods": ["paired", "pairs"]},
    {"methods": ["validated"], "data": "{use: synthetic, holdout: 1}"},
    {"methods": ["picky"], "batch_size": 9},
    {"methods": ["mix", "loss"]},
    {"methods": ["augment"], "cache": "views:3", "trainable": ["classifier"]},
    {"methods": ["deep"], "trainable": ["backbone.layer3.*", "classifier.bias"]},
    {"methods": ["loss"], "calibrate": ["calibrate"]},
    {"methods": ["still"], "trainable": ["classifier"]},
    {"methods": ["still"], "trainable": ["classifier"], "cache": "eval"},
    {"methods": ["pairing"]},
    {"methods": ["bringing", "loss"]},
    {"methods": ["learning"], "trainable": ["backbone", "learning.shift"]},
    {"methods": ["learning"], "trainable": ["*"]},
    {"methods": ["late"], "epochs": 4},
    {"methods": ["latebyoption"], "epochs": 3},
    {"methods": ["latebyoption"], "epochs": None, "iterations": 1},  # the run knows its epochs
    {"calibrate": ["calvalidated"], "data": "{use: synthetic, holdout: 1}"},
    {"methods": ["pairs"], "calibrate": ["calpaired"]},
    {"calibrate": ["calanew", "calibrate"]},
    {"methods": ["ownlogits", "callearning"], "trainable": ["classifier", "callearning"]},
    {"methods": ["callearning"], "calibrate": ["callearning"], "trainable": ["classifier", "callearning"]},
    {"methods": ["aux"], "trainable": ["aux.whatever.*"]},  # known when the method has made its modules
    {"methods": ["building"], "trainable": ["backbone", "classifier.1"]},
    {"stages": [{"name": "a", "methods": ["building"]}, {"name": "b", "trainable": ["classifier.1"]}]},
    {"stages": [{"name": "a", "methods": ["mix"]}, {"name": "b", "methods": ["needy", "later"]}]},
    {"stages": [{"name": "a", "methods": ["loss"]}, {"name": "b", "methods": ["picky"], "batch_size": 3}]},
]


@pytest.mark.parametrize("parts", ACCEPTED, ids=str)
def test_accepted(plan, parts):
    made = plan(**parts)
    assert next(made.skeleton.parameters()).is_meta
    assert [stage.stage.name for stage in made.stages] == [
        stage["name"] for stage in parts.get("stages", [{"name": "s"}])
    ]


UNTRAINED = [
    ({"methods": ["random"]}, "backbone, classifier, random"),
    ({"methods": ["random"], "trainable": ["classifier"]}, "classifier, random"),
    ({"stages": [{"name": "a", "methods": ["random"]}, {"name": "b", "trainable": ["random"]}]}, "backbone, classif"),
    ({"methods": ["random"], "trainable": ["backbone", "random"]}, None),
    ({"methods": ["random"], "trainable": ["*"]}, None),
    ({"methods": ["follower"]}, None),
    ({"methods": ["loss"], "calibrate": ["calibrate"]}, None),
    (
        {
            "stages": [
                {"name": "a", "methods": ["random"], "trainable": ["random"]},
                {"name": "b", "methods": ["random"]},  # which uses what the first one trained
            ]
        },
        None,
    ),
]


@pytest.mark.parametrize(("parts", "asked"), UNTRAINED, ids=lambda part: str(part)[:60])
def test_parameters_that_nothing_trains_are_said_with_what_to_write(plan, parts, asked):
    if "stages" in parts and asked:
        parts = {"stages": [parts["stages"][0], parts["stages"][1] | {"methods": ["random"]}]}
    warnings = plan(**parts).warnings
    if asked is None:
        assert not [text for text in warnings if "parameters" in text]
        return
    (text,) = warnings
    place, _, said = text.partition(": ")
    assert place.rpartition("r.yaml:")[2].isdigit()
    assert (
        said.startswith("stage '") and "'random' (ltcore-tests 0.0) has parameters of its own, and no stage has" in said
    )
    assert f"they stay as they are made. Write trainable: [{asked}" in said


class MadeLater(Augment):
    """Its parameters are made when the data is known, so that only the run can say it."""

    @hookimpl
    def on_run_start(self, context: Context) -> None:
        self.shift = torch.nn.Parameter(torch.zeros(context.num_classes))


@pytest.mark.parametrize("kind", [Random, MadeLater])
def test_the_run_says_it_once(offer_methods, write_recipe, cli, tmp_path, kind):
    offer_methods(random=kind)
    stage = {"name": "s", "epochs": 1, "methods": ["random"], "optimizer": {"lr": 0.1}}
    ended = cli("run", write_recipe(methods={"random": {}}, stages=[stage]), "--out", tmp_path)
    lines = [line for line in ended.out.splitlines() if "has parameters of its own" in line]
    assert ended.code == 0 and len(lines) == 1 and lines[0].lstrip().startswith("warning")


@pytest.mark.parametrize(("steps", "comes"), [(12, False), (13, True)])
def test_a_start_behind_the_end_of_a_stage_of_iterations_is_refused_by_the_run(offer_methods, make_run, steps, comes):
    offer_methods(METHODS)
    stage = {"name": "s", "batch_size": 9, "methods": ["latebyoption"], "optimizer": {"lr": 0.1}, "iterations": steps}
    run = make_run(methods={"latebyoption": {}}, stages=[stage])
    if comes:
        run.execute()
        return
    with pytest.raises(RecipeError) as error:
        run.execute()
    assert "r.yaml:3: stage 's': 'latebyoption' (ltcore-tests 0.0) would never act: start_epoch 2 never" in str(
        error.value
    )


def test_a_trainable_name_that_no_parameter_of_the_method_has(offer_methods, make_run):
    offer_methods(METHODS)
    stage = {"name": "s", "epochs": 1, "methods": ["aux"], "trainable": ["aux.layer"], "optimizer": {"lr": 0.1}}
    with pytest.raises(
        RecipeError, match=r"r\.yaml:\d+: stage 's': trainable 'aux\.layer' matches nothing; the method has"
    ):
        make_run(methods={"aux": {}}, stages=[stage]).execute()
