"""What the model of a run gives on its splits, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor, nn

from ltcore.contract.result import Diagnostics, Figures
from ltcore.contract.result import Evaluation as SplitFigures
from ltcore.evaluation import diagnostics
from ltcore.evaluation.metrics import evaluate_logits
from ltcore.evaluation.outputs import logits_of, mean_over_crops
from ltcore.seeding import generator_for
from ltcore.training.assembly import Assembly

#: See `Evaluation.outputs`.
Outputs: TypeAlias = tuple[tuple[Tensor, ...], Tensor, Tensor]


class Evaluation:
    """Evaluates the model as it is; a classifier may be given in place of its own."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly, self._batch_size = assembly, assembly.recipe.eval_batch_size

    def outputs(self, split: str) -> Outputs:
        """Pooled features, logits [N, C] and targets [N] of a split's plain images.

        The features are [N, D] ([N, E, D] of experts) for each of an image's test crops, the centre first, over which
        the logits are the mean. Of training images, which nothing is tested on, there is one crop.
        """
        data, model = self._assembly.data, self._assembly.model
        crops = 1 if split == "train" else data.whole.transform.crops
        # Methods reach the provider, and no test image may be reached from there.
        kept = self._assembly.tested if split == "test" else self._assembly.provider.pooled
        pooled = kept.crops(model, data.loaders[split], self._batch_size, crops)
        return pooled, self.logits(model.classifier, pooled), data.split(split).targets

    def logits(self, classifier: nn.Module, pooled: Sequence[Tensor]) -> Tensor:
        """Logits [N, C] of pooled features, see `outputs`."""
        return mean_over_crops([logits_of(classifier, each, self._batch_size) for each in pooled])

    def figures_of(self, logits: Tensor, targets: Tensor) -> Figures:
        """Figures of logits [N, C], with the shot groups of the recipe's training images."""
        return evaluate_logits(logits, targets, self._assembly.data.whole.class_counts)

    def figures(self) -> SplitFigures:
        """Figures on the test images, and on the validation images where there are any, with diagnostics."""
        figures: SplitFigures = {}
        data = self._assembly.data.whole
        test = None if data.test is None else self.outputs("test")
        if test is not None:
            figures["test"] = self.figures_of(*test[1:])
        if data.val is not None:
            figures["validation"] = self.figures_of(*self.outputs("val")[1:])
        if self._assembly.recipe.diagnostics != "off":
            figures["diagnostics"] = self.diagnose(test)
        return figures

    def diagnose(self, test: Outputs | None = None) -> Diagnostics:
        """See `ltcore.evaluation.diagnostics.diagnose`; `test` saves computing what `outputs` gave already."""
        state, classifier = self._assembly.state, self._assembly.model.classifier
        generator = generator_for("cpu", state.seed, "diagnostics", state.stage)
        # The features are those of the first crop.
        seen, seen_logits, seen_targets = self.outputs("train")
        tested, logits, targets = test or self.outputs("test")
        return diagnostics.diagnose(
            classifier,
            (seen[0], seen_logits, seen_targets),
            (tested[0], logits, targets),
            state.num_classes,
            generator,
        )

    def validation_score(self) -> float:
        """Balanced accuracy of the trained and calibrated model on the validation images."""
        classifier = self._assembly.calibrated()
        pooled, _, targets = self.outputs("val")
        return self.figures_of(self.logits(classifier, pooled), targets)["balanced_accuracy"]
