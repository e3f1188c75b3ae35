"""What a recipe may say. The attribute docstrings are the descriptions in the JSON Schema that editors read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator
from pydantic import BaseModel as PydanticModel
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from ltcore.contract.imbalance import Imbalance
from ltcore.errors import listed, nearest

#: Where a value stands in a recipe: ``("stages", 1, "epochs")``.
KeyPath: TypeAlias = tuple[str | int, ...]

_RESERVED = ("backbone", "classifier")


def _check_name(name: str) -> str:
    """A name that can stand in a path and in a parameter's name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("a name is made of a-z, 0-9 and _, and begins with a letter")
    return name


def _check_method_name(name: str) -> str:
    """A name that can also stand in ``trainable``, where ``backbone`` and ``classifier`` mean the model's parts."""
    if name in _RESERVED:
        raise ValueError(f"the name '{name}' is taken by a part of the model; choose another and say 'use: {name}'")
    return _check_name(name)


Name = Annotated[str, AfterValidator(_check_name)]
MethodName = Annotated[str, AfterValidator(_check_method_name)]


class BaseModel(PydanticModel):
    """Frozen, nothing unknown, and docstrings that reach the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Use(BaseModel):
    """Something that core or a plugin offers, with its options."""

    use: str
    """The name under which it is installed, as `ltcore plugins` shows it; or `./FILE.py:CLASS`."""
    options: dict[str, Any] = {}
    """Its options; `ltcore plugins show NAME` describes them."""


class Backbone(Use):
    """The network before the classifier, and what is added to it."""

    adapt: list[str] = []
    """Names of the recipe's methods that add to the network what is trained in its place (adapters), in order."""


class MethodEntry(BaseModel):
    """A method of this recipe."""

    use: str | None = None
    """The name under which the method is installed, or `./FILE.py:CLASS`; by default the entry's own key."""
    options: dict[str, Any] = {}
    """The method's options; `ltcore plugins show NAME` describes them."""


class Transform(BaseModel):
    """How images are prepared, where the data set's own way does not suit."""

    name: Literal["none", "cifar", "imagenet", "resize_crop", "autoaugment_cutout", "randaugment"] | None = None
    """Which transform; by default the data set's own. [data.md](data.md) says what each does."""
    image_size: int | None = Field(default=None, ge=1, le=4096)
    """Height and width in pixels that images are brought to; by default as the data set says, or as they are stored."""
    crop_padding: int | None = Field(default=None, ge=0)
    """Pixels of zero padding for the random crop; 0 for no crop. By default the transform's own."""
    flip: bool | None = None
    """Whether images are flipped left to right half of the time. By default the transform's own."""
    color_jitter: float | None = Field(default=None, ge=0, le=1)
    """Largest relative change of brightness, contrast and saturation; 0 for none. By default the transform's own."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized; by default as pre-trained weights of the backbone ask for, else bilinear."""
    test_crops: Literal[1, 5, 10] = 1
    """Crops of each image whose logits are averaged where the model is tested or used: 5 are the centre and the four
    corners, 10 those and their mirror images. Training and methods see the one crop of evaluation."""
    test_margin: int | None = Field(default=None, ge=1, le=4096)
    """Pixels by which the shorter side of an image is longer than its `test_crops`; by default 24 where they have
    224."""

    @model_validator(mode="after")
    def _has_crops(self) -> Transform:
        if self.test_margin is not None and self.test_crops == 1:
            problem = (
                "there is one crop of each image, which needs no margin; set test_crops to 5 or 10, or leave it out"
            )
            _refuse(self, [(("test_margin",), problem)])
        return self


class Normalize(BaseModel):
    """What is subtracted from each channel, and what it is divided by, on the scale 0..1."""

    mean: list[float] = Field(min_length=1)
    """A value a channel."""
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """A value a channel."""


class Data(Use):
    """The data set, and what is cut from it."""

    imbalance: Imbalance | None = None
    """The long tail to cut; by default the one that the data set has by definition, if it has one."""
    holdout: int = Field(default=0, ge=0)
    """Training images per class that are held out for validation."""
    holdout_before_cut: bool = False
    """Whether they are held out before the long tail is cut, of all images that the data set has: then each class has
    some, and the tail is cut from the others."""
    transform: Transform = Transform()
    """Changes to how the data set prepares its images."""
    normalize: Normalize | None = None
    """How images are normalised; by default as pre-trained weights of the backbone ask for, else as the data set
    says."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes that decode images which are not in memory; 0 decodes in the training process. Results do not depend
    on it."""
    broken: Literal["error", "skip"] = "error"
    """What becomes of images that cannot be decoded: `error` ends the run at the first one, by name; `skip` decodes all
    images once before training and leaves those out."""
    range: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """The values that become black and white in images of more than eight bits a channel, such as `[0, 4095]` for
    twelve; what lies between is scaled. By default sixteen bits are taken as they are, and images of 32-bit integers
    or floating-point numbers count as broken."""
    duplicates: Literal["auto", "look", "off"] = "auto"
    """Whether images are compared byte for byte across splits and classes before training: `auto` does so up to
    100,000 images, `look` always. What is found is told and counted, and changes nothing."""

    @field_validator("range")
    @classmethod
    def _rises(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the first value becomes black and must be below the second, which becomes white")
        return value


class OptimizerGroup(BaseModel):
    """What differs for some of the parameters; any further key is an option of the optimiser (`weight_decay`, ...)."""

    model_config = ConfigDict(extra="allow")

    lr: float | None = Field(default=None, gt=0)
    """Their learning rate, scaled by the schedule as the stage's is; by default the stage's."""


class Optimizer(BaseModel):
    """The optimiser; any further key is passed on to it (`momentum`, `weight_decay`, ...)."""

    model_config = ConfigDict(extra="allow")

    name: str = "sgd"
    """The optimiser's name."""
    lr: float = Field(gt=0)
    """The learning rate, reached after the warm-up."""
    groups: dict[Annotated[str, Field(min_length=1)], OptimizerGroup] = {}
    """Parameters with a rate and options of their own, by name or glob as in `trainable`; the first match wins."""


class _Schedule(BaseModel):
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs in which the learning rate rises linearly to its full value."""


class ConstantSchedule(_Schedule):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"
    """Which schedule."""


class StepSchedule(_Schedule):
    """The learning rate is multiplied by `gamma` every so many epochs."""

    name: Literal["step"]
    """Which schedule."""
    every: int = Field(gt=0)
    """Epochs between two changes."""
    gamma: float = Field(default=0.1, gt=0)
    """The factor of each change."""


class MultistepSchedule(_Schedule):
    """The learning rate is multiplied by `gamma` at each milestone."""

    name: Literal["multistep"]
    """Which schedule."""
    milestones: list[Annotated[int, Field(gt=0)]] = Field(min_length=1)
    """Epochs at whose beginning the learning rate changes, in increasing order."""
    gamma: float = Field(default=0.1, gt=0)
    """The factor of each change."""

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, milestones: list[int]) -> list[int]:
        if milestones != sorted(set(milestones)):
            raise ValueError(f"should increase from each milestone to the next, not {milestones}")
        return milestones


class CosineSchedule(_Schedule):
    """The learning rate falls to `min_lr` along half a cosine, over the whole stage."""

    name: Literal["cosine"]
    """Which schedule."""
    min_lr: float = Field(default=0.0, ge=0)
    """The learning rate at the end of the stage."""


Schedule = Annotated[ConstantSchedule | StepSchedule | MultistepSchedule | CosineSchedule, Field(discriminator="name")]


class StageData(BaseModel):
    """Another cut of the recipe's data set."""

    imbalance: Imbalance
    """The long tail to cut from the whole training split."""


class Stage(BaseModel):
    """A stretch of training with its own methods, trainable parts, sampler, optimiser and schedule."""

    name: Name
    """The stage's name, unique in the recipe."""
    epochs: int | None = Field(default=None, gt=0)
    """How many epochs the stage lasts; a stage has either `epochs` or `iterations`."""
    iterations: int | None = Field(default=None, gt=0)
    """How many steps the stage lasts; a stage has either `epochs` or `iterations`."""
    methods: list[str] = []
    """Names of the recipe's methods that take part, in the order in which they act."""
    trainable: list[str] = Field(default=["backbone", "classifier"], min_length=1)
    """What trains: `backbone`, `classifier`, a method's name, or globs over parameters (`backbone.layer4.*`)."""
    data: StageData | None = None
    """What this stage trains on, where it is not what the recipe's `data` says."""
    backbone: Literal["keep", "rebuild"] = "keep"
    """`rebuild` starts the stage with a new backbone, as the first stage did: a student beside its teachers."""
    classifier: Literal["keep", "rebuild"] = "keep"
    """`rebuild` starts the stage with a new classifier."""
    classification: bool = True
    """Whether the stage has a classification loss; without one it has auxiliary losses only."""
    sampler: Literal["instance", "class_balanced", "square_root"] | None = None
    """How often each class is drawn; by default as one of the stage's methods says, else every image once."""
    batch_size: int = Field(default=128, gt=0)
    """Images in a training batch."""
    accumulate: int = Field(default=1, ge=1)
    """In how many parts a batch goes through the backbone, whose activations are held one part at a time; `batch_size`
    stays the whole."""
    optimizer: Optimizer
    """The optimiser."""
    schedule: Schedule = ConstantSchedule()
    """How the learning rate changes."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """The arithmetic of the forward pass; `auto` is bf16 on a GPU, else fp32. With `tf32` a GPU may round what it
    multiplies in fp32 to ten bits, with the others it may not; a CPU never does."""
    accelerate: Literal["auto", "off", "compile", "graphs", "step_graphs"] = "auto"
    """How steps are made quicker: `compile` the backbone by PyTorch's compiler; `graphs` of the backbone, or
    `step_graphs` of the whole step, as CUDA graphs. `auto` is `graphs` on a GPU where the stage allows it, else `off`;
    [performance.md](performance.md#acceleration) says more."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """The largest norm of the whole gradient; by default gradients are not clipped."""
    batch_norm: Literal["frozen", "adapt"] = "frozen"
    """Whether frozen batch norm stays as it is, or goes on with the statistics of its batches (MiSLAS)."""
    cache: str = "off"
    """Whether the frozen part runs once and its features are kept: `off`; `eval` for images without random changes;
    `views:V` for V random views of every image."""
    cache_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What cached features are kept in; methods and the classifier get float32 all the same."""
    auxiliary_weights: dict[str, float] = {}
    """Weights of the methods' auxiliary losses, by `method/term`; 1 where none is given."""
    validate_every: int | None = Field(default=None, gt=0)
    """How many epochs pass between two looks at the held-out images, whose figures are written for each; by default
    they are looked at when the stage ends."""
    stop_after: int | None = Field(default=None, gt=0)
    """After how many such validations without a better balanced accuracy the stage ends early; by default it does
    not."""
    keep: Literal["last", "best"] = "last"
    """Which weights the stage ends with: those of its `last` epoch, or of the validation with the `best` balanced
    accuracy."""

    @property
    def cache_views(self) -> int | None:
        """Random views that are cached for each image: None for no cache, 0 for the image as in evaluation."""
        if self.cache == "off":
            return None
        return 0 if self.cache == "eval" else int(self.cache.removeprefix("views:"))

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, cache: str) -> str:
        if not re.fullmatch(r"off|eval|views:[1-9][0-9]{0,5}", cache):
            raise ValueError(f"should be off, eval or views:V with V at least 1, not '{cache}'")
        return cache

    @model_validator(mode="after")
    def _check(self) -> Stage:
        _refuse(self, self._problems())
        return self

    def _problems(self) -> Iterator[tuple[KeyPath, str]]:
        if self.epochs is None and self.iterations is None:
            yield (), "give the stage's length: either epochs or iterations"
        if self.epochs is not None and self.iterations is not None:
            yield (), "give either epochs or iterations, not both"
        if self.cache == "off" and self.cache_precision != "fp32":
            yield ("cache_precision",), "nothing is cached here; set cache to eval or views:V, or leave this out"
        if self.accumulate > self.batch_size:
            yield (
                ("accumulate",),
                f"a batch of {self.batch_size} images has no {self.accumulate} parts; give at most batch_size, which "
                "is the number of all parts together",
            )
        for key, asked in (("stop_after", self.stop_after is not None), ("keep", self.keep == "best")):
            if asked and self.validate_every is None:
                yield (key,), "nothing is validated here; set validate_every: 1, or leave this out"
        if self.validate_every and not self.classification:
            yield ("validate_every",), "a stage without classification has no figures; leave this out"
        for key in ("methods", "trainable"):
            yield from (((key, *path), message) for path, message in _repeated(getattr(self, key)))
        for key in self.auxiliary_weights:
            method, slash, term = key.partition("/")
            if not (method and slash and term):
                yield ("auxiliary_weights", key), "the key should be METHOD/TERM, such as safa/cycle"
            elif method not in self.methods:
                near = nearest(method, self.methods) or f"; known: {listed(self.methods)}"
                yield ("auxiliary_weights", key), f"the stage has no method '{method}'{near}"


class Select(BaseModel):
    """Values to choose on held-out training images before the run proper (CDT, appendix B.6)."""

    options: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    """Candidates by path, as in `--set` (`methods.cdt.options.gamma: [0.1, 0.2]`); every combination is tried."""
    holdout: int = Field(default=3, ge=0)
    """Training images per class that are held out to choose on; 0 where the data set has a validation split."""
    retrain: bool = True
    """Whether the chosen values are trained with once more on all images; else the run ends with the network that was
    trained without the held-out ones."""

    @field_validator("options")
    @classmethod
    def _check_paths(cls, options: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for path in options:
            if path.split(".")[0] not in ("methods", "stages", "backbone"):
                raise ValueError(
                    f"'{path}' should lead into methods, stages or backbone, such as methods.cdt.options.gamma"
                )
        return options


class Unsure(BaseModel):
    """Which predictions are marked as unsure: a threshold for each class, chosen on held-out images."""

    precision: float = Field(gt=0, le=1)
    """How often the predictions that are not unsure shall be right, for each class; such as 0.95."""
    least: int = Field(default=10, ge=1)
    """How many sure predictions of held-out images a threshold rests on. Classes with fewer predictions share a
    threshold."""


class Published(BaseModel):
    """Figures that a paper printed for what the recipe describes, to stand beside our own."""

    value: float = Field(ge=0, le=100)
    """The mean top-1 accuracy in percent."""
    sd: float | None = Field(default=None, ge=0, le=100)
    """Its standard deviation in percent, where it is printed."""
    top5: float | None = Field(default=None, ge=0, le=100)
    """The top-5 accuracy in percent, where it is printed."""
    many: float | None = Field(default=None, ge=0, le=100)
    """The accuracy of the many-shot classes in percent, where it is printed."""
    medium: float | None = Field(default=None, ge=0, le=100)
    """The accuracy of the medium-shot classes in percent, where it is printed."""
    few: float | None = Field(default=None, ge=0, le=100)
    """The accuracy of the few-shot classes in percent, where it is printed."""
    source: str = Field(min_length=1)
    """The paper, and the table or figure in it."""
    note: str = ""
    """What a reader should know beside it."""
    precision: Literal["fp32", "half"] = "fp32"
    """The arithmetic that it was trained in, where it is known; `half` for bf16, or fp16 with scaled losses."""
    when: dict[str, str | int | float | bool] = {}
    """Values in the recipe, by path, without which the figure is another experiment's."""

    def figures(self) -> dict[str, float]:
        """What is printed, in percent, by the names in ``result.json``: ``top1`` first."""
        printed = {"top1": self.value, "top5": self.top5, "many": self.many, "medium": self.medium, "few": self.few}
        return {metric: value for metric, value in printed.items() if value is not None}


class Recipe(BaseModel):
    """A whole experiment: the data, the backbone, the methods and the stages."""

    name: str
    """The recipe's name, and the folder of its runs; by default the file's name without its suffix."""
    description: str = ""
    """What the recipe is for."""
    published: list[Published] = []
    """Figures of papers for this recipe, which `ltcore compare` shows beside ours; nothing else reads them."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The run's seed; `--seed` overrides it."""
    device: str = "auto"
    """Where to train: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Threads that PyTorch computes with on the CPU; figures depend on it. `auto` is OMP_NUM_THREADS where that is set,
    else half of the machine's cores, rounded up; `--threads` overrides it."""
    data: Data
    """The data set."""
    backbone: Backbone
    """The network up to and including the global pool."""
    methods: dict[MethodName, MethodEntry] = {}
    """The methods that stages, `calibrate` and `adapt` name, each with its options."""
    stages: list[Stage]
    """The stages, in order."""
    calibrate: list[str] = []
    """Names of the methods that change the trained classifier after the last stage, in order."""
    unsure: Unsure | None = None
    """Whether predictions below a threshold of their class are marked as unsure, and how often the others shall be
    right."""
    select: Select | None = None
    """Values to choose on held-out training images before the run proper."""
    diagnostics: Literal["off", "stage", "epoch"] = "stage"
    """When each class's train and test accuracy, classifier norm and feature deviation are written (CDT, figure 3)."""
    checkpoint_seconds: float = Field(default=30, ge=0)
    """A checkpoint is written at least this often; 0 for after every step."""
    eval_batch_size: int = Field(default=500, gt=0)
    """Images in a batch of evaluation."""
    sync_batch_norm: bool = False
    """Where several processes train together (`torchrun`), whether batch norm takes the mean and variance of all their
    rows; else each takes those of its own, and the first one's running statistics count."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.strip() or name.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", name):
            raise ValueError(f"the name is also a folder's: no / or \\, no dot at the start, not empty; got {name!r}")
        return name

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", device):
            raise ValueError(f"should be auto, cpu, cuda or cuda:N, not '{device}'")
        return device

    @field_validator("stages")
    @classmethod
    def _check_stages(cls, stages: list[Stage]) -> list[Stage]:
        if not stages:
            raise ValueError("the list of stages is empty; a recipe needs at least one")
        return stages

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        _refuse(self, self._problems())
        return self

    def _problems(self) -> Iterator[tuple[KeyPath, str]]:
        for index, figure in enumerate(self.published):
            for condition in figure.when:
                key = condition.split(".")[0]
                if key not in type(self).model_fields:
                    near = nearest(key, type(self).model_fields)
                    yield ("published", index, "when", condition), f"a recipe has no key '{key}'{near}"
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            if stage.data and self.data.holdout:
                yield (
                    ("stages", index, "data"),
                    "the held-out images could be among the images of a stage with data of its own; hold none out",
                )
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("stages", index, "name"), f"another stage has the name '{name}' already"
        users: list[tuple[KeyPath, list[str]]] = [
            *((("stages", index, "methods"), stage.methods) for index, stage in enumerate(self.stages)),
            (("calibrate",), self.calibrate),
            (("backbone", "adapt"), self.backbone.adapt),
        ]
        yield from ((("calibrate", *path), message) for path, message in _repeated(self.calibrate))
        yield from ((("backbone", "adapt", *path), message) for path, message in _repeated(self.backbone.adapt))
        for path, used in users:
            for index, name in enumerate(used):
                if name not in self.methods:
                    near = nearest(name, self.methods) or f"; known: {listed(self.methods)}"
                    yield (*path, index), f"'{name}' is not one of the recipe's methods{near}"
        for name in self.methods:
            if not any(name in used for _, used in users):
                yield (
                    ("methods", name),
                    f"method '{name}' is declared but no stage, calibration or adaptation uses it; "
                    f"name it in a stage's methods, or remove it (with extends: `{name}: null`)",
                )


def _repeated(names: Iterable[str]) -> Iterator[tuple[KeyPath, str]]:
    """Entries of a list that stand in it already."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield (index,), f"'{name}' is named twice"
        seen.add(name)


def _refuse(model: PydanticModel, problems: Iterable[tuple[KeyPath, str]]) -> None:
    """Raise the problems that a model's own validator found, each at its own path below the model; none pass.

    Raises:
        ValidationError: at least one problem.
    """
    errors = [
        InitErrorDetails(type=PydanticCustomError("ltcore", "{message}", {"message": message}), loc=path, input=None)
        for path, message in problems
    ]
    if errors:
        raise ValidationError.from_exception_data(type(model).__name__, errors)
