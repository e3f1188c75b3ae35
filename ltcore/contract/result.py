"""What ``result.json`` holds, field by field, as typed records for whoever reads it.

They are plain dictionaries, as JSON gives them. A field that is not there in every file is marked `NotRequired`: read
it with ``.get``. All others have been written since the first version.
"""

from typing import Any, Literal, TypeAlias

# pydantic cannot check the TypedDict of Python 3.11.
from typing_extensions import NotRequired, TypedDict  # noqa: UP035

PerClass: TypeAlias = list[float | None]
"""C values, in label order; None for a class that has none."""


class Figures(TypedDict):
    """The figures of one evaluation, fractions in 0..1, computed in float64.

    The names that stand in `ltcore.contract.figures.FIGURES` are single figures. A group's figure is None where no
    class of the group has a test image.
    """

    top1: float
    """Accuracy."""
    top5: float | None
    """Accuracy in five guesses; None for five classes or fewer, where it would always be 1."""
    many: float | None
    """Mean accuracy of the classes of the shot group ``many``."""
    medium: float | None
    """Mean accuracy of the classes of the shot group ``medium``."""
    few: float | None
    """Mean accuracy of the classes of the shot group ``few``."""
    balanced_accuracy: float
    """Mean accuracy (recall) of the classes that have test images."""
    macro_f1: float
    """Mean F1 of the classes that occur among the targets or the predictions."""
    per_class_accuracy: PerClass
    """Accuracy of each class; None where it has no test image."""
    ece: float
    """Expected calibration error of the largest softmax value, 15 bins of equal width (Guo et al. 2017, equation 3)."""


Interval: TypeAlias = list[float]
"""The lower and the upper end of an interval of confidence of 95 percent, fractions: what so few test images leave
open, and nothing of what another seed or another training set would change."""


class Intervals(TypedDict):
    """Intervals of figures: Wilson's for accuracy, and for means over classes what follows from the classes' own.

    None where the figure is None. See `ltcore.evaluation.intervals`.
    """

    top1: Interval
    many: Interval | None
    medium: Interval | None
    few: Interval | None
    balanced_accuracy: Interval


class ClassFigures(TypedDict):
    """Figures of each class, C values in label order."""

    support: list[int]
    """Test images of the class."""
    predicted: list[int]
    """Test images that were taken for the class."""
    correct: list[int]
    """Those of them that are of the class."""
    recall: PerClass
    """Correct over support, the class's accuracy; None without test images."""
    recall_interval: list[Interval | None]
    """Its interval (Wilson)."""
    precision: PerClass
    """Correct over predicted; None where no image was taken for the class."""
    precision_interval: list[Interval | None]
    """Its interval (Wilson)."""
    f1: PerClass
    """Harmonic mean of precision and recall, 2 correct / (support + predicted); None where both are 0."""


class SurenessRecord(TypedDict):
    """How many images a model is sure of, and how often it is then right."""

    coverage: float
    """The share of images that it is sure of."""
    precision: float | None
    """The share of right ones among those; None where it is sure of none."""
    sure: list[int]
    """Images that are taken for each class, and surely, [C]."""
    right: list[int]
    """Those of them that are of the class, [C]."""


class UnsureRecord(TypedDict):
    """The thresholds below which predictions are unsure (`unsure` in the recipe), chosen on held-out images."""

    precision: float
    """How often sure predictions were asked to be right."""
    least: int
    """How many sure predictions a threshold rests on, at least."""
    images: int
    """Held-out images that it was chosen on."""
    thresholds: PerClass
    """From which probability on the predictions of each class are sure; None: never."""
    shared: list[str]
    """Names of the classes with too few predictions for a threshold of their own, which share one."""
    always: list[str]
    """Names of the classes whose predictions are always unsure: no threshold reaches the precision."""
    held_out: SurenessRecord
    """On the held-out images."""
    test: SurenessRecord
    """On the test images."""


class Diagnostics(TypedDict):
    """What is found out about each class at a stage's end, on training and test images as they are.

    Source: CDT (Ye et al. 2020), section 3.3 and figure 3. None stands for a class without images to look at.
    """

    train_accuracy: PerClass
    """Accuracy on the class's training images."""
    test_accuracy: PerClass
    """Accuracy on the class's test images."""
    classifier_norm: list[float]
    """Euclidean norm of the class's row of the classifier's weight."""
    feature_deviation: PerClass
    """Distance of the mean training feature from the mean test feature, both of unit length: CDT's dis(c)."""
    rounds: int
    """How many sub-samples of training images the deviation is averaged over."""


class Evaluation(TypedDict, total=False):
    """What is found out about the model at a stage's end; each may be absent."""

    test: Figures
    """Figures on the test images; absent only while a selection trains, which has no test data."""
    validation: Figures
    """The same on the validation images; absent where there are none."""
    diagnostics: Diagnostics
    """Class by class; absent with ``diagnostics: off``, and in files from before there were any."""


class AccelerationRecord(TypedDict):
    """How a stage's steps were made quicker, or why they were not."""

    asked: str
    """The stage's `accelerate`."""
    chosen: str
    """``off``, ``compile``, ``graphs`` or ``step_graphs``."""
    why: str
    """Why it was not more, or not for all steps; empty where nothing stood in its way."""
    features_difference: NotRequired[float]
    """Where it was tried: how far what the backbone gave, and wrote into its buffers, was off from the eager one on the
    stage's first batch, relative to its size. Of ``step_graphs``: how far the losses were off, on the batch of the last
    recording."""
    gradients_difference: NotRequired[float]
    """The same of the parameters' gradients, the largest of all parameters."""


class ValidationRecord(TypedDict):
    """What the validations of a stage have come to (`validate_every`)."""

    best: float
    """The best balanced accuracy on held-out images."""
    best_epoch: int
    """The epoch that had it, from 0; the first of several."""
    since: int
    """How many validations came after it."""
    epochs: int
    """How many epochs were trained when the last validation was made."""
    stopped: bool
    """Whether the stage was ended early (`stop_after`)."""


class StageResult(Evaluation):
    """What is recorded of a stage that has ended."""

    name: str
    """The stage's name."""
    seconds: float
    """Time in its steps, checkpoints and the filling of a cache included; epoch events and evaluation are not."""
    images_per_second: float
    """Rows trained on, over that time."""
    acceleration: NotRequired[AccelerationRecord]
    """How its steps were made quicker; absent in files from before it was recorded."""
    validations: NotRequired[ValidationRecord]
    """Only where the stage has `validate_every`."""


class Candidate(TypedDict):
    """One combination of values that a selection tried."""

    options: dict[str, Any]
    """The values by their paths in the recipe."""
    network: int
    """Which network it was tried on, from 0; candidates that only calibrate share one."""
    score: float
    """What it reached; a fraction."""


class SplitRecord(TypedDict):
    """What tells a split of the data set from another."""

    images: int
    """How many images it has."""
    digest: str
    """A digest of its fingerprint."""


class EnvironmentRecord(TypedDict):
    """An entry of ``environment.json``: what a run was begun, or gone on, with."""

    began: NotRequired[str]
    """Date and time."""
    python: str
    """Python's version."""
    platform: str
    """The system, in the words of the standard library's `platform`."""
    device: str
    """Where it was trained."""
    device_name: str
    """The GPU's name, or the processor's."""
    threads: int
    """Threads that PyTorch computes with."""
    versions: dict[str, str]
    """Versions by distribution."""
    code: dict[str, str]
    """By distribution a digest of the source files."""
    processes: NotRequired[int]
    """How many processes train together, where it is more than one."""
    mps: NotRequired[bool]
    """On a GPU, whether processes share it through NVIDIA's MPS."""
    data_changed: NotRequired[list[str]]
    """What of the data has changed since the entry before (``--data-changed``)."""


class SelectionRecord(TypedDict):
    """How values were chosen on held-out images."""

    holdout: int
    """Training images per class that were held out."""
    images: int
    """Images that were chosen on."""
    classes: int
    """Classes that these images are of."""
    score: str
    """What was compared, in words."""
    retrained: bool
    """Whether the run was trained once more, on all images."""
    candidates: list[Candidate]
    """Everything that was tried, in order."""
    chosen: dict[str, Any]
    """The values of the best candidate, by path."""


class ReuseRecord(TypedDict):
    """Stages that were taken over from another run (``--from``)."""

    run: str
    """The other run's directory."""
    stages: int
    """How many of its first stages."""
    data_changed: NotRequired[list[str]]
    """What of the data was another there; only with ``--data-changed``."""


class Preparation(TypedDict):
    """How images were prepared."""

    transform: str
    """The transform's name."""
    image_size: int
    """Height and width in pixels."""
    interpolation: str
    """How they were resized."""
    test_crops: NotRequired[int]
    """Of how many crops of a test image the logits are the mean; absent where it is one."""
    test_margin: NotRequired[int]
    """By how many pixels the shorter side was longer than such a crop."""
    mean: list[float]
    """What was subtracted from each channel, on the scale 0..1."""
    std: list[float]
    """What each channel was then divided by."""


class DuplicatesRecord(TypedDict):
    """Images that are byte for byte the same, as they were found before training."""

    across_splits: int
    """Validation and test images that an earlier split has, too."""
    two_classes: int
    """Images that stand under two classes."""


class Result(TypedDict):
    """The content of ``result.json``."""

    recipe: str
    """The recipe's name."""
    seed: int
    """The run's seed."""
    data: str
    """The data set's name."""
    num_classes: int
    """C."""
    class_counts: list[int]
    """Training images of each class, [C]."""
    class_names: list[str]
    """A name for each class, [C]."""
    data_fingerprint: NotRequired[dict[str, str | SplitRecord]]
    """The splits ``train``, ``val`` and ``test`` of the data set, and under ``classes`` a digest of the classes' names;
    absent in files from before there was any."""
    data_changed: NotRequired[list[str]]
    """What changed of the data while the run was trained; only where something did (``--data-changed``)."""
    environments: NotRequired[list[EnvironmentRecord]]
    """The entries of ``environment.json``; only where the environment, or the data, changed while it was trained."""
    duplicates: NotRequired[DuplicatesRecord]
    """Absent where it was not looked for them."""
    reported_epoch: Literal["last", "best"]
    """Which epoch the figures are of: `best` where a stage has `keep: best`, which was chosen on held-out images;
    nothing is chosen on test data."""
    selection: NotRequired[SelectionRecord]
    """Only where the recipe has `select`."""
    reused: NotRequired[ReuseRecord]
    """Only where stages were taken over."""
    calibration: list[str]
    """The methods of `calibrate`, by their names in the recipe."""
    before_calibration: Figures
    """Figures on the test images."""
    after_calibration: Figures
    """Figures on the test images; equal to those before where nothing calibrates."""
    intervals: NotRequired[Intervals]
    """How far figures after calibration may be off for want of test images; absent in files from before there were
    any, as `classes`."""
    classes: NotRequired[ClassFigures]
    """Precision, recall and F1 of each class after calibration."""
    unsure: NotRequired[UnsureRecord]
    """Only where the recipe has `unsure`."""
    stages: list[StageResult]
    """A record for each stage, in order."""
    preparation: NotRequired[Preparation]
    """How images were prepared; absent in files from before it was recorded."""
    device: str
    """Where it was trained."""
    processes: NotRequired[int]
    """How many processes trained it together, where it was more than one."""
    threads: NotRequired[int]
    """Threads that PyTorch computed with; absent in files from before it was recorded."""
    code: NotRequired[dict[str, str]]
    """By distribution a digest of the source files; absent in files from before there was any."""
    device_name: NotRequired[str]
    """The GPU's name, or the processor's; absent in files from before it was recorded."""
    versions: dict[str, str]
    """Python, core, plugins and libraries."""


class EpochLine(TypedDict):
    """A line of ``metrics.jsonl``: an epoch."""

    stage: str
    """The stage's name."""
    epoch: int
    """From 0."""
    loss: float | None
    """Mean loss; None where the stage has none."""
    lr: float
    """The last step's learning rate."""
    seconds: float
    """How long it took."""
    images_per_second: float
    """Rows trained on, over that time."""
    validation: NotRequired[dict[str, float | None]]
    """Figures on held-out images by name, and the ``loss`` there, where it was the epoch's turn (`validate_every`)."""
    diagnostics: NotRequired[Diagnostics]
    """Class by class, where the recipe asks for it each epoch."""
    methods: NotRequired[dict[str, dict[str, float | list[float | None] | None]]]
    """What methods log of the epoch, by method and name."""
