"""The hooks: every named point where a method takes part, and how several answers compose.

A run with every hook where it is called. A name followed by ``(`` and marked with a kind is a hook; everything else is
core. docs/architecture.md shows this block, and a test compares it with a real run.

    plan = the recipe's methods, hook by hook, checked                      # nothing is read before this
    data = build_data()                                                     # one
    data = cut the long tail, hold validation images out, check labels and shapes
    backbone = build_backbone(in_channels, image_size)                      # one
    backbone = adapt_backbone(backbone)                                     # fold; the methods under `adapt`
    model = backbone + classifier + the methods' own modules
    on_run_start()                                                          # all; then --resume finds its place
    for stage in recipe.stages:
        classifier = build_classifier(feature_dim, num_classes, previous)   # one; only where a new one is asked for
        with experts, one for each, and build_ensemble(num_classes, experts)   # one
        freeze everything that `trainable` does not name
        on_stage_start()                                                    # all
        optimizer = over what trains
        sampler = build_sampler(batch_size)                                 # one
        fill the feature cache, if the stage has one
        for epoch in stage:
            on_epoch_start()                                                # all
            weights = class_weights()                                       # product
            batches = sampler.draw(steps, class_distribution(), generator)  # one
            extra = extra_rows(indices, generator), for each method its own   # own
            functions = image_transform(), each called for every image of the batches   # own
            for batch in batches:
                gradients = compute_gradients(of the loss as a function):   # one; by default a backward pass
                    batch = mix_inputs(batch)                               # fold
                    features = backbone(batch), with augment_features(features) at each tap   # fold
                    adjusted = adjust_logits(logits := classifier(features), targets, features)   # fold
                    values = compute_loss(adjusted, targets, features)      # one
                    values = values * sample_weights(values, features)      # product
                    loss = class-weighted mean of the values + auxiliary_losses(features, logits)   # sum
                clip, optimizer step
                after_step()                                                # all; then a checkpoint when it is time
            with `validate_every`, figures on held-out images, which may end the stage
            on_epoch_end()                                                  # all
        with `keep: best`, the weights of the best of these
        on_stage_end()                                                      # all
        evaluate, save the stage's model, keep a frozen copy of it
    classifier = post_calibrate(copy of the classifier)                     # fold
    evaluate again, write the calibrated model, predictions.npz and result.json

The kind stands beside each hook:

* ``one``: exactly one method answers; where none does, core's default applies; two are an error that names both.
* ``fold``: a record is passed through the methods in the recipe's order.
* ``product``: the answers are multiplied, those that are None left out.
* ``sum``: the answers are named terms, namespaced with the method's name, weighted and added.
* ``all``: every method is called in the recipe's order; nothing is returned.
* ``own``: any number of methods answer, each for itself; an answer stays its method's own.

The functions are specifications, never called. An implementation is a method of a `ltcore.Method`, marked with
`hookimpl`, that takes any of the hook's arguments by name. Everything that is true of a hook stands in its declaration
(`ltcore.contract.hook.Hook`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcore.contract import defaults
from ltcore.contract.hook import HOOKS as HOOKS
from ltcore.contract.hook import Default, hook

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ltcore.contract.backbone import Backbone
    from ltcore.contract.context import Context
    from ltcore.contract.images import ForExtraRows, ImageFunction
    from ltcore.contract.objective import Objective
    from ltcore.contract.records import Batch, Features
    from ltcore.contract.samplers import Sampler
    from ltcore.contract.splits import DataSplits


@hook("one", called="setup")
def build_data() -> DataSplits:
    """Training, validation and test images of a data set; core cuts the long tail and the held-out images itself.

    Called once per run, for the recipe's ``data.use``. Returns whole splits for training and test, and one for
    validation if the set has one. Images are [N, C, H, W] uint8 with H = W, and targets are [N] int64. ``mean`` and
    ``std`` have one value per channel, on the scale 0..1. Core checks all of this.
    """


@hook("one", called="setup")
def build_backbone(in_channels: int, image_size: int) -> Backbone:
    """The network up to and including the global pool, for images of `in_channels` x `image_size` x `image_size`.

    Called once during planning, on the meta device (names and shapes, no values), and once per run. Returns an
    ``ltcore.Backbone``. It sets ``feature_dim`` and ``inner_taps``, and turns images into maps. ``pool`` is the plain
    mean unless it is replaced; ``spatial`` says whether it is the plain mean. ``has_maps(tap)`` says where features are
    [N, D, H, W]: everywhere except at ``pooled``, unless it is replaced. Options named ``pretrained`` and ``weights``
    choose the initial values. They are left out in a rehearsal, and when a run that has ended is opened.
    """


@hook("fold", called="setup", problem=defaults.no_backbone)
def adapt_backbone(backbone: Backbone, num_classes: int) -> Backbone:
    """Add to the network what is trained in its place: low-rank matrices, bottlenecks, prompts.

    Called for the methods under ``backbone.adapt``, in their order, with the network that ``build_backbone`` made. Its
    pre-trained weights are already loaded. It is called once during planning, on the meta device, once per run, and
    whenever a run that has ended is opened. Global randomness is seeded for each method, and may be used. `num_classes`
    is for what the network has for each class; the plan, which reads no data, passes 2.

    Returns the changed network, or an ``ltcore.Backbone`` around it, with its taps and its width. New parameters belong
    to the network and to nothing else. A recipe names them as ``backbone.blocks.0.attn.qkv.lora_a``, or by the method's
    name: ``lora.blocks.0.attn.qkv.lora_a``, or ``lora`` for all. At first they should change nothing, so that training
    begins with the network as it was. A module that can become a plain one in the end is also an ``ltcore.Mergeable``:
    exports replace it by what its ``merged`` returns. Do not rename the network's own layers, because recipes and files
    name them.
    """


@hook("all", called="run")
def on_run_start(context: Context) -> None:
    """Create modules and buffers whose shapes depend on the data; called once, before anything is restored.

    Called for every method of the recipe, before a checkpoint is loaded, in a new run and in a resumed one. Draw random
    initial values here, too. What is made here is saved and restored.
    """


@hook(
    "one",
    called="stage",
    acts="build the classifier",
    default=Default("linear", defaults.linear_classifier),
)
def build_classifier(feature_dim: int, num_classes: int, previous: nn.Module | None, context: Context) -> nn.Module:
    """The last layer, [N, feature_dim] to [N, num_classes]; `previous` is the classifier of the stage before.

    Called at the start of the first stage, where ``previous`` is None, and of a stage with ``classifier: rebuild``. It
    is also called at the start of a stage in which another method builds the classifier than before. The returned
    module has ``weight`` [C, D] and ``bias`` ([C] or None) as they are applied, because calibrations and class
    activation maps read them. Default: linear, with a bias. If the logits are no linear function of the features, the
    module says ``linear = False``; its `weight` and `bias` are then those of some usual row.

    With a backbone that has experts it is called once for each of them. Then ``previous`` is the classifier of this
    expert, and the context gives the features of this expert alone, [N, D].
    """


@hook(
    "one",
    called="stage",
    acts="combine the experts",
    default=Default("the mean of the experts' logits", defaults.mean_of_experts),
)
def build_ensemble(feature_dim: int, num_classes: int, experts: int, context: Context) -> nn.Module:
    """How the logits of a backbone's experts become one in evaluation: a module from [N, E, D], [N, E, C] to [N, C].

    Called where the backbone has experts (``Backbone.experts`` above 1), at the start of the first stage and of a stage
    with ``classifier: rebuild``. It is also called at the start of a stage in which another method answers it than
    before. The module is called with pooled features [N, E, D] and the experts' logits [N, E, C], and returns logits
    [N, C]. It is part of the classifier. A recipe trains it as ``classifier.ensemble``, and evaluation, calibration,
    ``ltcore.load`` and export use it. Training does not use it: there every row has the logits of its own expert.
    Default: the mean of the logits.
    """


@hook("all", called="stage")
def on_stage_start(context: Context) -> None:
    """A stage begins; what is learned here is kept in buffers, because a resumed stage does not begin again.

    Called after the stage's classifier is built and frozen parts are frozen, and before its sampler is made. A run that
    goes on inside the stage does not call it again. Make the buffers in ``on_run_start``.
    """


@hook(
    "one",
    called="stage",
    acts="lay out the batch",
    default=Default("plain batches", defaults.plain_batches),
)
def build_sampler(batch_size: int, context: Context) -> Sampler:
    """How a batch is laid out, given how often each class is drawn; called once per stage, again in a resumed one.

    Returns an object with ``steps_per_epoch() -> int`` and ``draw(steps, distribution, generator) -> EpochBatches``
    (``ltcore.Sampler``). ``draw`` is called once per epoch with the answer of ``class_distribution`` and a CPU
    generator. It takes all its randomness from this generator. It gives the first ``steps`` batches, each a tensor of
    indices [B] into the training split, on the CPU. Images that are not trained on come from ``extra_rows``. Default:
    batches of any images.
    """


@hook("all", called="epoch")
def on_epoch_start(context: Context) -> None:
    """An epoch begins, before its images are drawn; what is learned here is kept in buffers, as in a stage.

    A run that goes on inside the epoch does not call it again.
    """


@hook("product", called="epoch", classification=True, may_be_none=True, problem=defaults.wrong_weights)
def class_weights(context: Context) -> Tensor | None:
    """A weight for each class's loss values, [C]; core takes the weighted mean over the batch; None: no weights.

    Called at the start of every epoch, and again where a run goes on inside it. The scale does not matter, because core
    divides by the sum of the samples' weights. If all methods return None, training is, bit for bit, the same as
    without them. Weights of one do not promise that.
    """


@hook(
    "one",
    called="epoch",
    may_be_none=True,
    acts="set how often each class is drawn",
    default=Default("instance-balanced", defaults.instance_balanced),
)
def class_distribution(context: Context) -> Tensor | None:
    """How often each class is drawn in this epoch, [C], summing to 1; None: every image once (instance-balanced).

    Called at the start of every epoch, and again where a run goes on inside it. So it must give the same answer for the
    same epoch. The answer may be on any device. A stage's ``sampler:`` answers the same question, so a stage cannot
    have both.
    """


@hook("own", called="epoch", may_be_none=True)
def extra_rows(indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor] | None:
    """More training images for this method alone, for each batch of the epoch: indices [M]; None: none in this epoch.

    Called at the start of every epoch once its batches are drawn, and again where a run goes on inside it. ``indices``
    has the epoch's batches, each [B] int64 on the CPU. The answer has one tensor [M] int64 on the CPU per batch; M may
    differ, and may be 0. Take all randomness from ``generator``, on the CPU, which is seeded for this method, stage and
    epoch.

    The method sees its rows as ``batch.extra`` in ``mix_inputs`` and as ``features.extra`` in the hooks that get
    features; no other method sees them. They go through the backbone after the batch's rows, and count in the
    statistics of its normalisation. They never reach the classifier. If a method needs them no more, it returns a
    record with ``extra=None``, and the network goes on without them. A method that makes extra rows of the batch's own
    images answers with empty tensors, and returns the rows as ``extra`` from ``mix_inputs``.
    """


@hook("own", called="epoch", may_be_none=True)
def image_transform(context: Context) -> ImageFunction | ForExtraRows | None:
    """A function that changes training images one by one, where they are prepared; None: none in this epoch.

    Called at the start of every epoch, and again where a run goes on inside it. So the hook must give the same function
    for the same epoch, from options and buffers. The function is called as ``function(image, target, generator)`` for
    every training image of the epoch, after core's own crop, flip and policy, and before normalisation. It returns an
    image of the same shape and type. ``image`` is [C, H, W] uint8 on the CPU, and the function may write into it.
    ``target`` is its label, an int. ``generator`` is on the CPU, seeded for this image; take all randomness from it.
    The functions of several methods act in the recipe's order.

    The function travels with every batch to the processes that decode images. So it must be small, and pickle must
    accept it. It can be a function at module level, a ``functools.partial`` of one, or an instance of a class at module
    level. It holds plain values and no tensor of another device. ``ltcore.ForExtraRows(function)`` acts only on the
    method's own extra rows; any other function acts on those of every method, too. It is refused in a stage with a
    cache.
    """


@hook(
    "one",
    called="step",
    acts="compute the gradients",
    default=Default("one backward pass", defaults.one_backward_pass),
)
def compute_gradients(objective: Objective, context: Context) -> dict[str, Tensor]:
    """The gradient of each parameter that trains, by name, from the stage's whole loss as a function (SAM, L2RW).

    Called for every training batch in place of the forward and backward pass. ``objective()`` is the loss of the batch
    through every method's hooks, 0-d. ``objective(at=parameters)`` is the loss at other parameters, and
    ``objective(sample_weights=w)`` the loss with rows weighed by w [N]. Each call draws the same random numbers, and
    buffers learn only in the first call. ``objective.gradients(loss)`` is what a backward pass gives. Returns gradients
    by the names of ``objective.parameters``, each in its parameter's shape. A parameter that is left out is not
    changed. Core clips the gradients and takes the optimiser's step. Default: one backward pass.
    """


@hook("fold", called="step", problem=defaults.wrong_batch)
def mix_inputs(batch: Batch, context: Context) -> Batch:
    """Change a training batch before the backbone sees it (mixup and its kin).

    Called for every training batch, outside of autocast. A mixed batch names the second label of each row in
    ``partner_targets``, and the share of the first in ``target_weight``. Core then takes the loss for both. It is
    refused in a stage with a cache.
    """


@hook("fold", called="step", by_tap=True, problem=defaults.wrong_features)
def augment_features(features: Features, context: Context) -> Features:
    """Change, replace or append feature rows at the method's tap.

    Called for every training batch when its rows reach the method's ``tap``, under autocast where the stage has bf16.
    ``tap`` is a class attribute, or a property that reads the options; it is ``pooled`` by default. At a spatial tap
    rows are [N, D, H, W], at ``pooled`` [N, D]. The number of rows must be the same in every step, so that shapes stay
    constant. Mark rows that you make as ``synthetic``, and leave such rows of other methods alone. Terms of a loss that
    are computed here are returned with the record (``Features.with_losses``). After the split of a backbone with
    experts, the rows are those of all experts, and ``features.expert`` says which expert each belongs to.
    """


@hook("fold", called="step", classification=True, problem=defaults.wrong_logits)
def adjust_logits(logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
    """Change the training logits [N, C] before the loss, knowing the targets [N]; evaluation never calls it.

    Called for every training batch with float32 logits and the rows that reached the classifier. Where the batch is
    mixed, it is called twice, once with each row's labels (in ``features.targets`` too). Returns logits of the same
    shape. A method that does not take ``logits`` gives its own in their place, and is refused after another one. A
    stage with ``classification: false`` does not call it, either.
    """


@hook(
    "one",
    called="step",
    classification=True,
    acts="compute the loss",
    default=Default("cross-entropy", defaults.cross_entropy),
    problem=defaults.wrong_loss,
)
def compute_loss(logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
    """One loss value per sample, [N], from logits [N, C] in float32 and targets [N]; core weighs and reduces.

    Called like ``adjust_logits``, with the logits that its fold returned. Core weighs and mixes the values, and takes
    the mean. Default: cross-entropy.
    """


@hook("product", called="step", classification=True, may_be_none=True, problem=defaults.wrong_factors)
def sample_weights(values: Tensor, features: Features, context: Context) -> Tensor | None:
    """A factor for each row's loss value, [N]; None: none.

    Called like ``adjust_logits``, with the loss values [N] that ``compute_loss`` gave. They carry their gradient; use
    ``values.detach()`` if weights must not be learned through them. The factors scale the values before the
    class-weighted mean, and are not normalised: with factors of 0 the loss is 0.
    """


@hook("sum", called="step", declared_in="auxiliary", problem=defaults.wrong_terms)
def auxiliary_losses(features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
    """Scalar loss terms by name, as declared in the method's `auxiliary`; the recipe weighs ``method/term``.

    Called for every training batch after the classification loss, under autocast where the stage has bf16. It gets the
    rows that reached the classifier, and their float32 logits as they were before ``adjust_logits``. Returns 0-d terms
    under exactly the names in the class's ``auxiliary``, except for terms that ``augment_features`` has returned with
    its record.
    """


@hook("all", called="step", writes=True)
def after_step(context: Context) -> None:
    """The optimiser has taken a step; a method may write into what trains, and into its own modules and buffers.

    Called without gradients, before a checkpoint is written. Examples are a norm that is bounded, or an encoder that
    follows another one. What is learned here is kept in buffers. Frozen parts must not change.
    """


@hook("all", called="epoch")
def on_epoch_end(context: Context) -> None:
    """An epoch has ended; what is learned here is kept in buffers.

    Called after an epoch's last step. There are validation images where the recipe sets ``data.holdout`` or the data
    set has its own. With ``requires = {"validation"}`` the plan checks this.
    """


@hook("all", called="stage", writes=True)
def on_stage_end(context: Context) -> None:
    """The stage's last epoch has ended, and it is evaluated next; a method may give the model its final weights.

    Called without gradients after the last ``on_epoch_end``, before the stage is evaluated and saved. The method may
    write into what the stage trains (an average of the weights). The figures, the stage's file and all later stages
    then use these weights. A run that was killed in this hook calls it again, with the weights of the last checkpoint.
    """


@hook("fold", called="end")
def post_calibrate(classifier: nn.Module, context: Context) -> nn.Module:
    """Change a copy of the trained classifier, without gradient steps; called once after the last stage.

    The methods under ``calibrate`` are called in their order. The first one gets a copy of the trained classifier.
    ``ltcore.CalibratedClassifier`` wraps it as ``scale * logits + shift``, and keeps ``weight`` and ``bias`` as they
    are applied. ``result.json`` has the figures before and after. With a backbone that has experts, the hook is called
    for each expert's classifier, and the context gives the features of that expert.

    When a run that has ended is opened (``ltcore.load``, ``ltcore predict``, ``ltcore export``), its model is built
    again without the data. ``on_run_start``, ``build_classifier`` and ``post_calibrate`` are called once more. Class
    counts are those of the run, but features are one row per class that means nothing. Then all tensors are loaded. So
    everything that a classifier has learned or is calibrated to must be in its parameters and buffers.
    """
