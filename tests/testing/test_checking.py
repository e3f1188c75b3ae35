"""Wrong plugins are caught by the check that is meant for them, and their correct twins pass."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from ltcore.discovery import catalogue
from ltcore.testing import ConformanceError, check_method, checking, conformance, pairs
from ltcore.testing.recipes import part_of
from ltcore.testing.report import CHECKS

spec = spec_from_file_location("wrong_plugins", Path(__file__).parents[1] / "wrong_plugins.py")
made = sys.modules["wrong_plugins"] = module_from_spec(spec)
spec.loader.exec_module(made)

#: A wrong class, the check that must catch it, and a part of its message.
WRONG = [
    (made.ChangesItsInput, "inputs", "mix_inputs changed its argument 'batch.images'"),
    (made.ForgetsALoss, "auxiliary", "auxiliary_losses left out ['late']; the class declares ['late', 'norm']"),
    (made.UsesGlobalRandomState, "randomness", "augment_features draws from torch's global generator in a step"),
    (made.HidesAParameter, "gradients", "held in 'scales[0]', takes part in the loss, and no optimiser sees it"),
    (made.KeepsStateOutside, "resume", "other values after the restart: keeps_state_outside.running"),
    (made.IsNaNForOneImage, "batch_sizes", "with batches of 1: stage 'second', epoch 1, step 1: the classification"),
    (made.ReadsTestData, "test_data", "post_calibrate reads the test split of a data set"),
    (made.MisspellsAHook, "hooks", "'adjust_logit' looks like the hook 'adjust_logits' and is not marked"),
    (made.MarksAMisspelledHook, "hooks", "there is no hook 'compute_los'; did you mean 'compute_loss'?"),
    (made.TakesAForeignArgument, "hooks", "hook adjust_logits has no argument 'labels'; it has logits, targets"),
    (made.DoesNotDescribeAnOption, "options", "UndescribedOptions.strength is not described"),
    (made.DropsItsOptions, "options", "not those it was given"),
    (made.IsFromTheFuture, "interface", "is written for hook interface 99.0"),
    (made.Fails, "steps", "failed in adjust_logits: RuntimeError"),
    (made.HasAnEndlessGradient, "gradients", "the gradient of 'classifier.weight' is not finite"),
    (made.NeverUsesItsParameter, "gradients", "'never_uses_its_parameter.scale' trains and never got a gradient"),
    (made.ChangesTheModel, "inputs", "on_epoch_end changed context.model.classifier.weight"),
    (made.UsesPythonsRandom, "randomness", "class_weights uses Python's global random state"),
    (made.UsesNumpysRandom, "randomness", "the sampler's draw uses NumPy's global random state"),
    (made.SeedsTorch, "randomness", "on_epoch_start seeds torch's global generator"),
    (made.ImagesDrawGlobally, "randomness", "the function of image_transform draws from torch's global generator"),
    (made.ImagesKeepAState, "seed", "the function of image_transform gave two images for the same image, label and"),
    (made.SamplerKeepsAState, "seed", "the sampler drew other batches for the same arguments"),
    (made.WaitsForTheDevice, "synchronisation", "adjust_logits waits for the device in every step: the value of a"),
    (made.SelectsWithAMask, "synchronisation", "auxiliary_losses waits for the device in every step: an index that"),
    (made.FindsTheRun, "test_data", "with other test images and labels, the training differs in calibrated logits"),
    (made.DrawsFromTheSystem, "seed", "two trainings differ in the mean loss of stage 'second'"),
    (made.DependsOnHashes, "processes", "another process gets another training: it differs in the mean loss"),
    # What they get wrong in meaning.
    (made.CutsTheGradient, "gradient_flow", "augment_features cuts the gradient to the backbone off for 16 of 16 real"),
    (made.CutsTheGradientOfTheTail, "gradient_flow", "augment_features cuts the gradient to the backbone off for"),
    (made.CutsTheGradientOfLogits, "gradient_flow", "adjust_logits cuts the gradient off: what it returns does not"),
    (made.BuildsAClassifierThatDetaches, "gradient_flow", "nothing of the backbone got a gradient in stage 'second'"),
    (made.NormalisesTheTeacher, "frozen_models", "on_stage_start changed classifier.weight of stage 'first'"),
    (made.TrainsTheTeacher, "frozen_models", "auxiliary_losses changed the train or eval mode of stage 'first'"),
    (made.NormalisesWhatAllAreGiven, "inputs", "on_epoch_start changed context.training_features() in place"),
    (
        made.DoesNotMarkItsRows,
        "synthetic",
        "augment_features returned 4 rows that it was not given (20 in all, for 16)",
    ),
    (made.NamesTheDonor, "sources", "rows whose label is not that of the image in their `source_index`"),
    (made.ForgetsToMoveSources, "sources", "mix_inputs returned"),
    (made.Relabels, "relabelling", "real rows another label than their image's (row"),
    (made.MixesInSilence, "relabelling", "mix_inputs gave the rows a second label, and its class does not say so"),
    (made.LearnsFromHeldOutImages, "validation", "the training differs in the mean loss of stage 'second', epoch 1"),
    (made.KeepsEveryLoss, "growth", "what 'keeps_every_loss.history' holds grows with every step"),
    (made.ChainsItsSteps, "growth", "what 'chains_its_steps.mean' holds grows with every step"),
    (made.KeepsEveryLossElsewhere, "growth", "1 more tensors live after every step, held outside of the method"),
    (made.AsksForAllImagesInEveryStep, "passes", "auxiliary_losses has all training images go through the network"),
    (made.ReturnsSmallLabels, "answers", "augment_features returned 'targets' as int32 [16] on cpu"),
    (made.ReturnsLargeLogits, "answers", "adjust_logits returned logits as float64 [16, 4] on cpu"),
    (made.MakesItsMarginsOnTheCPU, "device", "adjust_logits computes with a tensor [1, 4] that it made on the CPU"),
    (made.WeighsOnTheCPU, "device", "sample_weights returns a tensor that it made on the CPU"),
    (made.MixesOneSideOnly, "answers", "mix_inputs returned 'target_weight' without 'partner_targets'"),
    (made.WeighsTheBatchAsItWas, "answers", "sample_weights returned 'weights' as float32 [8] on cpu; for 16 rows"),
    (made.DropsOthersRows, "others_rows", "changed the features of 3 of 3 rows that another method made"),
    (made.ChangesOthersRows, "others_rows", "changed the features of 3 of 3 rows that another method made"),
    (made.MakesANewRecord, "others_rows", "augment_features dropped `partner_targets` and `target_weight`"),
    (made.TakesTheMarkAway, "others_rows", "augment_features took the mark `synthetic` from rows that another"),
    (made.HasAnIdleModule, "idle_modules", "the gradient of 'has_an_idle_module.branch' is zero in every step"),
    (made.KeepsItsTemperatureAside, "reopening", "the run opened again is another model: its logits are off by"),
    (made.BranchesOnTheBatch, "reopening", "the model exported by tracing is another one: its logits are off by"),
    (made.TakesTheFirstHalfForTheTail, "row_order", "in another order, the training differs in the mean loss of stage"),
    (made.LetsExtraRowsThrough, "extra_rows", "augment_features put 2 of the method's extra rows among the batch's"),
    (made.DropsTheRowsOfAnExpert, "answers", "augment_features "),
    (made.KeepsItsGateAside, "reopening", "the run opened again is another model: its logits are off by"),
    (made.GivesGradientsOfWhatIsFrozen, "given_gradients", "gave a gradient for 'backbone.layer1.0.weight', which the"),
    (
        made.PerturbsTheWeightsAndLeavesThem,
        "inputs",
        "compute_gradients changed context.model.backbone.layer1.0.weight",
    ),
    (made.BuildsAClassifierWithAnOldWeight, "classifier", "once its parameters have changed"),
    # In two processes.
    (made.DrawsByRank, "together", "stage 'second', epoch 1, step 1: the loss 'classification' is "),
    (
        made.KeepsStatisticsOfItsOwnRows,
        "together",
        "stage 'second', epoch 1, step 1: 'keeps_statistics_of_its_own_rows.mean' is another one in the second process",
    ),
    (made.SumsWhatAllHave, "together", " in two together"),
    (made.DrawsItsShareOfTheBatch, "together", "two processes have seen 8 images of the stage, and one has seen 16"),
    (made.TakesGradientsOfGradients, "together", "takes gradients of gradients, and 2 processes share the batch out"),
]
RIGHT = {
    made.LeavesItsInput: "inputs",
    made.WritesIntoWhatTrains: "inputs",
    made.ReturnsEveryLoss: "auxiliary",
    made.UsesItsGenerator: "randomness",
    made.ImagesDrawTheirOwn: "randomness",
    made.RegistersItsParameter: "gradients",
    made.KeepsStateInABuffer: "resume",
    made.IsFiniteForOneImage: "batch_sizes",
    made.RefusesOneImage: "batch_sizes",
    made.ReadsValidationData: "test_data",
    made.SpellsAHook: "hooks",
    made.MakesTailRowsOfNoGradient: "gradient_flow",
    made.BuildsAClassifierThatDoesNot: "gradient_flow",
    made.DetachesOnPurpose: "gradient_flow",
    made.NormalisesACopy: "frozen_models",
    made.MarksItsRows: "synthetic",
    made.MovesAll: "sources",
    made.RelabelsAndSaysSo: "relabelling",
    made.MixesAndSaysSo: "relabelling",
    made.KeepsTheLastLoss: "growth",
    made.AsksForAllImagesInEveryEpoch: "passes",
    made.ReturnsFloatLogits: "answers",
    made.MakesItsMarginsWhereTheLogitsAre: "device",
    made.LeavesOthersRows: "others_rows",
    made.HasAModuleThatMoves: "idle_modules",
    made.KeepsItsTemperatureInABuffer: "reopening",
    made.GoesByLabels: "row_order",
    made.MakesRowsOfExtraRows: "extra_rows",
    made.LooksAhead: "given_gradients",
    made.KeepsStatisticsOfTheBatch: "together",
}
#: Twins that are right because they say what they do, so that there is nothing to check.
SAYING = {
    made.LearnsFromHeldOutImagesAndSaysSo: "validation",
    made.SaysThatOrderMatters: "row_order",
    made.SaysThatItTakesGradientsOfGradients: "together",
    made.DrawsByRankAndSaysSo: "together",
}


#: How long the rest takes; the first eight are those that must always be caught.
QUICK = {"options", "hooks", "interface"}


def cases():
    for number, (kind, name, message) in enumerate(WRONG):
        marks = [] if number < 8 or name in QUICK else [pytest.mark.slow]
        yield pytest.param(kind, name, message, id=kind.__name__, marks=marks)


#: What a second check says, too: what draws where nobody has seeded a generator trains otherwise each time.
ALSO = {made.ImagesDrawGlobally: ["seed"]}


@pytest.mark.filterwarnings("ignore:std")  # of one row, which is what one of them does wrong
@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "name", "message"), list(cases()))
def test_a_wrong_plugin_is_caught_by_the_check_that_is_meant_for_it(kind, name, message):
    report = conformance(kind, without=["pairs"])
    assert [check.name for check in report.failures] == [name, *ALSO.get(kind, ())], str(report)
    assert message in report[name].message and report[name].change
    assert [check.name for check in report.checks] == list(CHECKS)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_its_correct_twin_passes_that_check(kind):
    report = conformance(kind, without=set(CHECKS) - {RIGHT[kind]})
    assert report.passed and report[RIGHT[kind]].outcome == "passed", str(report)


@pytest.mark.parametrize("kind", SAYING, ids=lambda kind: kind.__name__)
def test_a_twin_that_says_what_it_does_is_not_asked(kind):
    report = conformance(kind, without=set(CHECKS) - {SAYING[kind]})
    assert report.passed and report[SAYING[kind]].message.startswith("it says that"), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*RIGHT, *SAYING], ids=lambda kind: kind.__name__)
def test_its_correct_twin_passes_all_checks(kind):
    check_method(kind)


@pytest.mark.slow
def test_a_method_that_does_not_mix_and_does_not_say_so_is_caught():
    report = conformance(made.NeedsPlainRows, without=set(CHECKS) - {"pairs"})
    assert (
        "'needs_plain_rows'" in report["pairs"].message and "ended when data had been read" in report["pairs"].message
    )


def test_check_method_raises_with_every_failure():
    with pytest.raises(ConformanceError) as caught:
        check_method(made.MisspellsAHook, without=["pairs"])
    assert caught.value.report["hooks"].outcome == "failed"
    assert "misspells_a_hook (wrong_plugins MisspellsAHook) failed 1 of 33 checks" in str(caught.value)
    assert "change: mark it with @hookimpl and call it adjust_logits" in str(caught.value)


def test_what_was_not_tried_says_why():
    report = conformance(made.MisspellsAHook, without=["pairs"])
    assert report["seed"].message == "not tried, because of what failed: hooks"
    assert report["pairs"].message == "left out"


def test_a_check_that_does_not_exist_cannot_be_left_out():
    with pytest.raises(ValueError, match="there is no check 'pair'; did you mean 'pairs'"):
        conformance(made.SpellsAHook, without=["pair"])


@pytest.mark.parametrize(
    ("name", "asked", "outcome", "said"),
    [
        ("focal", {}, "passed", "beside every installed method: 2 recipes trained, 1 refused"),
        ("focal", {"calibrate": []}, "not applicable", "the recipe has parts of its own"),
        ("synthetic", {}, "not applicable", "a data set stands beside no method"),
    ],
)
def test_what_is_tried_beside_other_methods(name, asked, outcome, said, monkeypatch):
    offer = catalogue.find(name)
    outcomes = [("trained", None), ("refused", None), ("trained", None)]
    monkeypatch.setattr(pairs, "others", lambda part: [part] * 3)
    monkeypatch.setattr(pairs, "tried", lambda first, second: outcomes.pop(0))
    checks = checking._Conformance(offer, catalogue.load(offer), {}, asked, ())
    checks.part = part_of(offer)
    found = checks._pairs()
    assert (found.outcome, said in (found.tried, found.message)) == (outcome, True)
    assert outcomes == [] or outcome == "not applicable"


# -- first-party methods --------------------------------------------------------------------------------------------


INSTALLED = [offer.name for offer in catalogue.offers() if offer.distribution != "ltcore"]


@pytest.mark.parametrize("name", ["ofa", "tau_norm"])
def test_first_party_methods_pass(name):
    check_method(catalogue.load(catalogue.find(name)), without=["pairs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*INSTALLED, "timm"])
def test_every_first_party_method_passes(name):
    check_method(catalogue.load(catalogue.find(name)))
