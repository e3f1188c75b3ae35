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

    Called once a run, for the recipe's ``data.use``. Returns the whole training and test splits, and a validation split
    if the set has one: images [N, C, H, W] uint8 with H = W, targets [N] int64, ``mean`` and ``std`` for each channel
    on the scale 0..1. Core cuts the long tail and the held-out images, and checks all of it.
    """


@hook("one", called="setup")
def build_backbone(in_channels: int, image_size: int) -> Backbone:
    """The network up to and including the global pool, for images of `in_channels` x `image_size` x `image_size`.

    Called once while planning, on the meta device (names and shapes, no values), and once a run. Returns an
    ``ltcore.Backbone``: it sets ``feature_dim`` and ``inner_taps``, and turns images into maps; ``pool`` is the plain
    mean unless it is replaced, and ``spatial`` says whether it is. ``has_maps(tap)`` says where features are
    [N, D, H, W]: everywhere but at ``pooled``, unless it is replaced. Options named ``pretrained`` and ``weights``
    choose the values to start from; a rehearsal, and opening a run that has ended, leave them out.
    """


@hook("fold", called="setup", problem=defaults.no_backbone)
def adapt_backbone(backbone: Backbone, num_classes: int) -> Backbone:
    """Add to the network what is trained in its place: low-rank matrices, bottlenecks, prompts.

    Called for the methods under ``backbone.adapt``, in their order, with the network that ``build_backbone`` made and
    pre-trained weights are loaded into: once while planning, on the meta device, once a run, and whenever a run that
    has ended is opened. Global randomness is seeded for each method, and is free to be drawn from. `num_classes` is for
    what the network has for each class; the plan, which reads no data, has 2 there.

    Returns the changed network, or an ``ltcore.Backbone`` around it, with its taps and its width. New parameters
    belong to the network and to nothing else: a recipe names them as ``backbone.blocks.0.attn.qkv.lora_a``, and by
    the method's name, ``lora.blocks.0.attn.qkv.lora_a`` or ``lora`` for all. At first they had better change nothing,
    so that training begins with the network as it was. A module that is a plain one in the end is an
    ``ltcore.Mergeable`` too: exports replace it by what its ``merged`` returns. Layers that keep their names keep what
    recipes and files call them.
    """


@hook("all", called="run")
def on_run_start(context: Context) -> None:
    """Create modules and buffers whose shapes depend on the data; called once, before anything is restored.

    Called once a run for every method of the recipe, whether it runs anew or goes on, before a checkpoint is loaded.
    This is the place for modules and buffers whose shapes depend on the data, and for random initial values; what is
    made here is saved and restored.
    """


@hook(
    "one",
    called="stage",
    acts="build the classifier",
    default=Default("linear", defaults.linear_classifier),
)
def build_classifier(feature_dim: int, num_classes: int, previous: nn.Module | None, context: Context) -> nn.Module:
    """The last layer, [N, feature_dim] to [N, num_classes]; `previous` is the classifier of the stage before.

    Called at the start of the first stage, of a stage with ``classifier: rebuild``, and of one in which another method
    builds the classifier than before. ``previous`` is the classifier of the stage before, None in the first stage.
    Returns a module from [N, feature_dim] to [N, num_classes] with ``weight`` [C, D] and ``bias`` ([C] or None), as
    they are applied: calibrations and class activation maps read them. Default: linear, with a bias. A module whose
    logits are no linear function of the features says ``linear = False``; its `weight` and `bias` are then those of
    some usual row.

    With a backbone that has experts it is called once for each of them. Meanwhile ``previous`` is that expert's own,
    and what the context says of features is of that expert alone, [N, D].
    """


@hook(
    "one",
    called="stage",
    acts="combine the experts",
    default=Default("the mean of the experts' logits", defaults.mean_of_experts),
)
def build_ensemble(feature_dim: int, num_classes: int, experts: int, context: Context) -> nn.Module:
    """How the logits of a backbone's experts become one in evaluation: a module from [N, E, D], [N, E, C] to [N, C].

    Called where the backbone has experts (``Backbone.experts`` above 1), when ``build_classifier`` would be: at the
    start of the first stage, of a stage with ``classifier: rebuild``, and of one in which another method answers it
    than before. Returns a module that is called with pooled features [N, E, D] and the experts' logits [N, E, C] and
    returns logits [N, C]. It is part of the classifier: a recipe trains it as ``classifier.ensemble``, and evaluation,
    calibration, ``ltcore.load`` and export use it. Training does not: there every row has the logits of its own
    expert. Default: the mean of the logits.
    """


@hook("all", called="stage")
def on_stage_start(context: Context) -> None:
    """A stage begins; what is learned here is kept in buffers, because a resumed stage does not begin again.

    Called when a stage begins, after its classifier is built and what does not train is frozen, before its sampler is
    made. Not called again in a run that goes on inside the stage, so what is learned here belongs in buffers, which
    ``on_run_start`` made.
    """


@hook(
    "one",
    called="stage",
    acts="lay out the batch",
    default=Default("plain batches", defaults.plain_batches),
)
def build_sampler(batch_size: int, context: Context) -> Sampler:
    """How a batch is laid out, given how often each class is drawn; called once a stage, again in a resumed one.

    Called when a stage begins, and again where a run goes on inside it. Returns an object with
    ``steps_per_epoch() -> int`` and ``draw(steps, distribution, generator) -> EpochBatches``
    (``ltcore.Sampler``). ``draw`` is called once an epoch with what ``class_distribution`` said and a CPU
    generator that is all the randomness there is; it gives the first ``steps`` batches, each a tensor of indices [B]
    into the training split, on the CPU. Images that are not trained on come from ``extra_rows``. Default: batches of
    any images.
    """


@hook("all", called="epoch")
def on_epoch_start(context: Context) -> None:
    """An epoch begins, before its images are drawn; what is learned here is kept in buffers, as in a stage.

    Called before an epoch's images are drawn; not again in a run that goes on inside the epoch.
    """


@hook("product", called="epoch", classification=True, may_be_none=True, problem=defaults.wrong_weights)
def class_weights(context: Context) -> Tensor | None:
    """A weight for each class's loss values, [C]; core takes the weighted mean over the batch; None: no weights.

    Called at the start of every epoch, and again where a run goes on inside it. Returns a weight for each class's loss
    values, [C]; the scale does not matter, since core divides by the sum of the samples' weights. None is no weights in
    this epoch; unless another method gives some, training is then, bit for bit, what it is without the method. Weights
    of one do not promise that.
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

    Called at the start of every epoch, and again where a run goes on inside it: it must give the same answer for the
    same epoch. Returns how often each class is drawn, [C], summing to 1, on any device; None for every image once. A
    stage's ``sampler:`` answers the same question, so the two exclude each other.
    """


@hook("own", called="epoch", may_be_none=True)
def extra_rows(indices: list[Tensor], generator: torch.Generator, context: Context) -> list[Tensor] | None:
    """More training images for this method alone, for each batch of the epoch: indices [M]; None: none in this epoch.

    Called at the start of every epoch once its batches are drawn, and again where a run goes on inside it.
    ``indices`` has the epoch's batches, each [B] int64 on the CPU; the answer has a tensor [M] int64 on the CPU for
    each, and M may differ and be 0. All randomness is in ``generator``, on the CPU, which is seeded for this method,
    stage and epoch.

    The method meets its rows as ``batch.extra`` in ``mix_inputs`` and as ``features.extra`` in the hooks that get
    features; nobody else sees them. They go through the backbone behind the batch, in its normalisation's statistics
    too, and never reach the classifier. A method that is done with them returns a record with ``extra=None``, and the
    network goes on without them. One that makes them of the batch's own images answers with tensors of no index, and
    returns the rows as ``extra`` from ``mix_inputs``.
    """


@hook("own", called="epoch", may_be_none=True)
def image_transform(context: Context) -> ImageFunction | ForExtraRows | None:
    """A function that changes training images one by one, where they are prepared; None: none in this epoch.

    Called at the start of every epoch, and again where a run goes on inside it: it must give the same function for the
    same epoch, from what is in options and buffers. The function is called as ``function(image, target, generator)``
    for every training image of the epoch, behind core's own crop, flip and policy and before normalisation, and
    returns an image of the same shape and type. ``image`` is [C, H, W] uint8 on the CPU, and the function's own to
    write into; ``target`` is its label, an int; ``generator`` is on the CPU, seeded for this image, and all the
    randomness there is. The functions of several methods act in the recipe's order.

    It travels to the processes that decode images, with every batch, so it must be one that pickle takes and small: a
    function at module level, a ``functools.partial`` of one, or an instance of a class at module level, which holds
    plain values and no tensor of another device. ``ltcore.ForExtraRows(function)`` acts on the method's own extra rows
    alone; any other function acts on those of every method, too. It is refused in a stage with a cache.
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
    through every method's hooks, 0-d; ``objective(at=parameters)`` at other parameters and
    ``objective(sample_weights=w)`` with rows weighed by w [N]. Each call draws the same random numbers, and buffers
    learn in the first only. ``objective.gradients(loss)`` is what a backward pass gives. Returns gradients by the names
    of ``objective.parameters``, each in its parameter's shape; one that is left out stays where it is. Core clips them
    and takes the optimiser's step. Default: one backward pass.
    """


@hook("fold", called="step", problem=defaults.wrong_batch)
def mix_inputs(batch: Batch, context: Context) -> Batch:
    """Change a training batch before the backbone sees it (mixup and its kin).

    Called for every training batch before the backbone, outside of autocast. A mixed batch names the second label of
    each row in ``partner_targets`` and the share of the first in ``target_weight``; core then takes the loss for both.
    It is refused in a stage with a cache.
    """


@hook("fold", called="step", by_tap=True, problem=defaults.wrong_features)
def augment_features(features: Features, context: Context) -> Features:
    """Change, replace or append feature rows at the method's tap.

    Called for every training batch when its rows reach the method's ``tap`` (a class attribute, or a property that
    reads the options; ``pooled`` by default), under autocast where the stage has bf16. At a spatial tap rows are [N, D,
    H, W], at ``pooled`` [N, D]. Rows may be changed, replaced or appended, always in the same numbers, so that shapes
    stay constant; made rows are marked ``synthetic``, and those of others are left alone. Terms of a loss that live
    here are returned with the record (``Features.with_losses``).
    Behind the split of a backbone with experts, the rows are those of all experts, and ``features.expert`` says whose
    each is.
    """


@hook("fold", called="step", classification=True, problem=defaults.wrong_logits)
def adjust_logits(logits: Tensor, targets: Tensor, features: Features, context: Context) -> Tensor:
    """Change the training logits [N, C] before the loss, knowing the targets [N]; evaluation never calls it.

    Called for every training batch with float32 logits [N, C], targets [N] and the rows that reached the classifier;
    twice where the batch is mixed, once with each row's labels (in ``features.targets`` too). Returns logits of the
    same shape. A method that does not take ``logits`` gives its own in their place, and is refused behind another one.
    Evaluation never calls it, nor does a stage with ``classification: false``.
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
    """One loss value a sample, [N], from logits [N, C] in float32 and targets [N]; core weighs and reduces.

    Called as ``adjust_logits``, with what its fold returned. Returns one value a sample, [N]: core weighs, mixes and
    takes the mean. Default: cross-entropy.
    """


@hook("product", called="step", classification=True, may_be_none=True, problem=defaults.wrong_factors)
def sample_weights(values: Tensor, features: Features, context: Context) -> Tensor | None:
    """A factor for each row's loss value, [N]; None: none.

    Called as ``adjust_logits``, with the loss values [N] that ``compute_loss`` gave. They carry their gradient: a
    method whose weights are not to be learned through them takes ``values.detach()``. The factors scale the values
    before the class-weighted mean, and are not normalised: with factors of 0 the loss is 0.
    """


@hook("sum", called="step", declared_in="auxiliary", problem=defaults.wrong_terms)
def auxiliary_losses(features: Features, logits: Tensor, context: Context) -> dict[str, Tensor]:
    """Scalar loss terms by name, as declared in the method's `auxiliary`; the recipe weighs ``method/term``.

    Called for every training batch after the classification loss, with the rows that reached the classifier and their
    float32 logits as they were before ``adjust_logits``, under autocast where the stage has bf16. Returns 0-d terms
    under exactly the names that the class declares in ``auxiliary``, but for those that ``augment_features`` has
    returned with its record. The recipe weighs them as ``METHOD/TERM``.
    """


@hook("all", called="step", writes=True)
def after_step(context: Context) -> None:
    """The optimiser has taken a step; a method may write into what trains, and into its own modules and buffers.

    Called without gradients after every step of the optimiser, before a checkpoint is written. What the stage trains
    may be written into (a norm that is bounded, an encoder that follows another one), and what is learned is kept in
    buffers. What is frozen stays as it is.
    """


@hook("all", called="epoch")
def on_epoch_end(context: Context) -> None:
    """An epoch has ended; what is learned here is kept in buffers.

    Called after an epoch's last step. What is learned here belongs in buffers. Validation images are there where the
    recipe sets ``data.holdout`` or the data set brings its own; ``requires = {"validation"}`` has the plan see to it.
    """


@hook("all", called="stage", writes=True)
def on_stage_end(context: Context) -> None:
    """The stage's last epoch has ended, and it is evaluated next; a method may give the model its final weights.

    Called without gradients after the stage's last ``on_epoch_end``, before the stage is evaluated and saved. What it
    writes into what the stage trains is what the figures, the stage's file and all later stages are of (an average of
    the weights). A run that was killed in it calls it again, from the weights of the last checkpoint.
    """


@hook("fold", called="end")
def post_calibrate(classifier: nn.Module, context: Context) -> nn.Module:
    """Change a copy of the trained classifier, without gradient steps; called once after the last stage.

    Called once after the last stage, without gradients, for the methods under ``calibrate``, in their order. The first
    one gets a copy of the trained classifier. ``ltcore.CalibratedClassifier`` wraps one as ``scale * logits
    + shift`` and keeps ``weight`` and ``bias`` as they are applied. ``result.json`` has the figures before and after.
    With a backbone that has experts, each expert's classifier goes through all of this by itself, and what the context
    says of features is of that expert.

    When a run that has ended is opened (``ltcore.load``, ``ltcore predict``, ``ltcore export``), its model is built
    again without the data: ``on_run_start``, ``build_classifier`` and ``post_calibrate`` are called once more, class
    counts as in the run, features of one row a class that mean nothing. Then all tensors are loaded, so what a
    classifier has learnt or is calibrated to belongs in its parameters and buffers.
    """
