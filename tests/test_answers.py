"""What a hook returns is of the type, shape and place of what it was given; else one message says what is not."""

from dataclasses import replace

import pytest
import torch

from ltcore import Batch, Features, Method, PluginError, hookimpl
from ltcore.contract import hookspecs
from ltcore.contract.hookspecs import HOOKS
from ltcore.discovery.binding import Entry, Hooks, implementations
from ltcore.discovery.offer import Offer

N, C = 6, 3
IMAGES, LOGITS, VALUES = torch.zeros(N, 3, 8, 8), torch.zeros(N, C), torch.zeros(N)
TARGETS, SOURCES = torch.arange(N) % C, torch.arange(N)
BATCH = Batch(IMAGES, TARGETS, SOURCES)
MIXED = replace(BATCH, partner_targets=TARGETS.flip(0), target_weight=VALUES)
FEATURES = Features(torch.zeros(N, 4), TARGETS, SOURCES, torch.zeros(N, dtype=torch.bool))
LOW = replace(FEATURES, features=FEATURES.features.bfloat16())
#: What a hook is given.
GIVEN = {
    "mix_inputs": (BATCH,),
    "augment_features": (FEATURES,),
    "adjust_logits": (LOGITS, TARGETS, FEATURES),
    "compute_loss": (LOGITS, TARGETS, FEATURES),
    "sample_weights": (VALUES, FEATURES),
    "auxiliary_losses": (FEATURES, LOGITS),
    "class_weights": (),
}
ELSEWHERE = "meta"

WRONG = [
    ("mix_inputs", IMAGES, "returned a Tensor; it returns a Batch"),
    (
        "mix_inputs",
        replace(BATCH, images=IMAGES.double()),
        "returned images as float64 [6, 3, 8, 8] on cpu; they came as",
    ),
    (
        "mix_inputs",
        replace(BATCH, images=IMAGES[:, :1]),
        "returned images as float32 [6, 1, 8, 8] on cpu; they came as",
    ),
    (
        "mix_inputs",
        replace(BATCH, images=IMAGES.to(ELSEWHERE)),
        "[6, 3, 8, 8] on meta; they came as float32 [6, 3, 8, 8]",
    ),
    ("mix_inputs", replace(BATCH, images=None), "returned images as nothing; they came as float32"),
    (
        "mix_inputs",
        replace(BATCH, images=IMAGES[:4]),
        "'targets' as int64 [6] on cpu; for 4 rows it is int64 [4] on cpu",
    ),
    ("mix_inputs", replace(BATCH, targets=TARGETS.int()), "'targets' as int32 [6] on cpu; for 6 rows it is int64 [6]"),
    (
        "mix_inputs",
        replace(BATCH, targets=TARGETS[:, None]),
        "'targets' as int64 [6, 1] on cpu; for 6 rows it is int64",
    ),
    ("mix_inputs", replace(BATCH, source_index=SOURCES[:4]), "'source_index' as int64 [4] on cpu; for 6 rows it is"),
    ("mix_inputs", replace(BATCH, source_index=None), "'source_index' as nothing; for 6 rows it is int64 [6] on cpu"),
    ("mix_inputs", replace(MIXED, partner_targets=None), "'target_weight' without 'partner_targets'; a mixed row has"),
    ("mix_inputs", replace(MIXED, target_weight=None), "'partner_targets' without 'target_weight'; a mixed row has"),
    (
        "mix_inputs",
        replace(MIXED, partner_targets=VALUES),
        "'partner_targets' as float32 [6] on cpu; for 6 rows it is int",
    ),
    (
        "mix_inputs",
        replace(MIXED, target_weight=0.5),
        "'target_weight' as a float; for 6 rows it is a float type [6] on",
    ),
    (
        "mix_inputs",
        replace(MIXED, target_weight=TARGETS),
        "'target_weight' as int64 [6] on cpu; for 6 rows it is a float",
    ),
    ("mix_inputs", replace(MIXED, target_weight=VALUES.to(ELSEWHERE)), "'target_weight' as float32 [6] on meta; for 6"),
    ("augment_features", FEATURES.features, "returned a Tensor; it returns Features"),
    ("augment_features", replace(FEATURES, features=None), "returned features as nothing; they came as float32 [6, 4]"),
    (
        "augment_features",
        replace(FEATURES, features=LOGITS.double()),
        "returned features as float64 [6, 3] on cpu; they",
    ),
    (
        "augment_features",
        replace(FEATURES, features=IMAGES),
        "returned features as float32 [6, 3, 8, 8] on cpu; they came",
    ),
    (
        "augment_features",
        replace(FEATURES, features=LOGITS.to(ELSEWHERE)),
        "returned features as float32 [6, 3] on meta",
    ),
    (
        "augment_features",
        replace(FEATURES, features=torch.zeros(7, 4)),
        "'targets' as int64 [6] on cpu; for 7 rows it is",
    ),
    (
        "augment_features",
        replace(FEATURES, targets=TARGETS.int()),
        "'targets' as int32 [6] on cpu; for 6 rows it is int64",
    ),
    (
        "augment_features",
        replace(FEATURES, synthetic=TARGETS),
        "'synthetic' as int64 [6] on cpu; for 6 rows it is bool",
    ),
    ("augment_features", replace(FEATURES, partner_targets=TARGETS), "'partner_targets' without 'target_weight'"),
    ("adjust_logits", LOGITS.double(), "returned logits as float64 [6, 3] on cpu; they came as float32 [6, 3] on cpu"),
    ("adjust_logits", LOGITS[:, :2], "returned logits as float32 [6, 2] on cpu; they came as float32 [6, 3] on cpu"),
    (
        "adjust_logits",
        LOGITS.to(ELSEWHERE),
        "returned logits as float32 [6, 3] on meta; they came as float32 [6, 3] on",
    ),
    ("adjust_logits", (LOGITS,), "returned logits as a tuple; they came as float32 [6, 3] on cpu"),
    ("compute_loss", VALUES.mean(), "returned shape [] for 6 samples; it returns one value per sample"),
    ("compute_loss", 0.5, "returned shape [] for 6 samples; it returns one value per sample"),
    (
        "compute_loss",
        VALUES.double(),
        "returned its values as float64 [6] on cpu; the logits are float32 [6, 3] on cpu",
    ),
    ("compute_loss", VALUES.to(ELSEWHERE), "returned its values as float32 [6] on meta; the logits are float32 [6, 3]"),
    ("sample_weights", VALUES[:3], "'weights' as float32 [3] on cpu; for 6 rows it is a float type [6] on cpu"),
    ("sample_weights", TARGETS, "'weights' as int64 [6] on cpu; for 6 rows it is a float type [6] on cpu"),
    (
        "sample_weights",
        VALUES.to(ELSEWHERE),
        "'weights' as float32 [6] on meta; for 6 rows it is a float type [6] on cpu",
    ),
    ("auxiliary_losses", VALUES.sum(), "returned a Tensor; it returns its terms by name"),
    ("auxiliary_losses", {"term": TARGETS.sum()}, "returned 'term' as int64 [] on cpu; a term is a float on cpu"),
    (
        "auxiliary_losses",
        {"term": VALUES.sum().to(ELSEWHERE)},
        "returned 'term' as float32 [] on meta; a term is a float",
    ),
    ("class_weights", torch.ones(C, dtype=torch.int64), "returned int64 [3] on cpu; it returns a float a class, [C]"),
    ("class_weights", torch.ones(()), "returned float32 [] on cpu; it returns a float a class, [C]"),
    ("class_weights", [1.0, 2.0], "returned a list; it returns a float a class, [C]"),
]
RIGHT = [
    ("mix_inputs", BATCH),
    ("mix_inputs", MIXED),
    ("mix_inputs", replace(BATCH, images=IMAGES[:, :, :4, :4])),
    ("mix_inputs", replace(BATCH, images=IMAGES[:4], targets=TARGETS[:4], source_index=SOURCES[:4])),
    ("mix_inputs", replace(MIXED, target_weight=VALUES.double())),
    ("augment_features", FEATURES),
    ("augment_features", FEATURES.append(torch.zeros(2, 4), TARGETS[:2], SOURCES[:2])),
    ("augment_features", LOW),
    ("adjust_logits", LOGITS + 1),
    ("compute_loss", VALUES),
    ("sample_weights", VALUES),
    ("sample_weights", None),
    ("auxiliary_losses", {"term": VALUES.sum().double()}),
    ("class_weights", torch.ones(C)),
    ("class_weights", None),
]


def answer(name, value):
    """What core says of a method that answers a hook with a value."""

    class Mine(Method):
        interface = "1.1"
        auxiliary = ("term",) if name == "auxiliary_losses" else ()

    def hook(self):
        return value

    hook.__name__ = name
    setattr(Mine, name, hookimpl(hook))
    entry = Entry("mine", Offer("mine", "", "ltcore-mine", "0.2"), Mine())
    hooks = Hooks(implementations([entry]), {})
    if HOOKS[name].by_tap:
        return hooks.taps["pooled"](*GIVEN[name])
    return hooks.call(getattr(hookspecs, name), *GIVEN[name])


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{name}: {what[:45]}" for name, _, what in WRONG])
def test_an_answer_of_another_kind_is_refused_by_name(name, value, message):
    with pytest.raises(PluginError) as caught:
        answer(name, value)
    said = str(caught.value)
    assert said.startswith(f"'mine' (ltcore-mine 0.2): {name} returned") and said.endswith("; tell its author")
    assert message in said and "\n" not in said, said


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_a_right_answer_goes_through(name, value):
    answer(name, value)


def test_every_hook_of_a_step_that_returns_something_is_asked():
    returning = {name for name, hook in HOOKS.items() if hook.called == "step" and hook.kind != "all"}
    assert returning - {name for name, hook in HOOKS.items() if hook.problem} == {
        "compute_gradients"
    }  # the loop sees to it
