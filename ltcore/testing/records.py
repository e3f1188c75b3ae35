"""Whether what a hook returns is what the records promise: of the right type, rows marked, labels those of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltcore.contract.classifier import wrong_weight
from ltcore.contract.records import Batch, Features
from ltcore.testing.inspecting import Call, Inspector

if TYPE_CHECKING:
    pass

#: What a record hands on from hook to hook, beside its rows.
_MARK = "append with `features.append(...)`, which marks rows; mark those that are replaced in `synthetic`"
_LABELS = (
    "let `source_index` name the image whose label a row carries, and move features, targets and source_index together"
)
_SAY = (
    "mark a row that is made as `synthetic`; a method that gives images another or a second label says so: "
    "breaks = frozenset({'hard_labels'})"
)
_LEAVE = (
    "leave rows alone that `synthetic` marks (`torch.where(features.synthetic[:, None], old, new)`), and hand on the "
    "rest with `dataclasses.replace(features, ...)`, never with a new record"
)
_EXTRA = (
    "make rows of them that `synthetic` marks, or use them in a term of the loss; images that train come from a sampler"
)
_TYPES = (
    "return what came in, in its type and on its device: labels and indices int64, values float32; make tensors with "
    "`zeros_like`, `new_zeros` or `device=` and `dtype=`"
)


class AnswerTypes(Inspector):
    """Types, shapes and devices of answers, a classifier's weight, and names of gradients."""

    def after(self, call: Call, answer: Any, before: Any) -> None:
        """Ask what core asks, with a name for each mistake."""
        hook = call.hook
        if answer is None:
            return
        if hook.problem is not None and (wrong := hook.problem(answer, *call.values)):
            self.notes.fault("answers", f"{hook.name} {wrong}", _TYPES)
        if hook.name == "build_classifier" and (wrong := wrong_weight(answer, call.given["feature_dim"])):
            self.notes.fault(
                "classifier",
                f"the classifier's 'weight' or 'bias' is not what it applies: {wrong}",
                "make them properties that compute from the parameters what `forward` applies: [C, D], and [C] or None",
            )
        if hook.name == "compute_gradients":
            strangers = sorted(set(answer) - set(call.given["objective"].parameters))
            if strangers:
                self.notes.fault(
                    "given_gradients",
                    f"compute_gradients gave a gradient for '{strangers[0]}', which the stage does not train",
                    "go by `objective.parameters`, which are what trains, and not by the model's own parameters",
                )


class Records(Inspector):
    """The rows of batches and features: whose they are, what they carry, and that others' stay as they were.

    `others` alone is looked at where other methods' rows are put beside a method's on purpose.
    """

    def __init__(self, notes: Any, only_others: bool = False) -> None:
        super().__init__(notes)
        self.only_others = only_others

    def after(self, call: Call, answer: Any, before: Any) -> None:
        """Compare the record that a hook was given with the one that it returns."""
        given = next(iter(call.values), None)
        if call.hook.kind != "fold" or not isinstance(given, Batch | Features) or type(answer) is not type(given):
            return
        if answer is given or (call.hook.problem and call.hook.problem(answer, *call.values)) or call.state is None:
            return
        with torch.no_grad():
            found = _Compared(call, given, answer)
            for fault in found.of_others() if self.only_others else found.of_rows():
                self.notes.fault(*fault)


class _Compared:
    """A record that a hook was given, and what it made of it."""

    def __init__(self, call: Call, given: Batch | Features, answer: Any) -> None:
        assert call.state is not None
        self.name, self.key = call.hook.name, call.entry.key
        self.given, self.answer = given, answer
        self.mixes = "hard_labels" in call.entry.method.breaks
        self.labels = call.state.training_targets.to(answer.targets.device)
        self.was, self.now = _rows(given), _rows(answer)
        self.was_made, self.made = _made(given), _made(answer)

    def of_rows(self) -> Iterator[tuple[str, str, str]]:
        """What is wrong with the method's own rows."""
        yield from self._extra()
        yield from self._marks()
        yield from self._labels()

    # -- the method's own rows --------------------------------------------------------------------------------------

    def _extra(self) -> Iterator[tuple[str, str, str]]:
        extra = self.given.extra
        if extra is None or not len(extra.targets) or _rows(extra)[0].shape != self.now[0].shape:
            return
        through = int(
            _equal_rows(self.now, _rows(extra)).any(1).sum() - _equal_rows(self.was, _rows(extra)).any(1).sum()
        )
        if through > 0:
            yield (
                "extra_rows",
                f"{self.name} put {through} of the method's extra rows among the batch's, as they are, so that they "
                "reach the classifier",
                _EXTRA,
            )

    def _marks(self) -> Iterator[tuple[str, str, str]]:
        if isinstance(self.given, Batch):
            return
        # Of each image, how many real rows there are now, and were before.
        real, was = self.answer.source_index[~self.made], self.given.source_index[~self.was_made]
        extra = () if self.given.extra is None else self.given.extra.source_index.tolist()
        more = {int(image): int((real == image).sum() - (was == image).sum()) for image in real.unique()}
        unmarked = sum(max(0, number) for image, number in more.items() if image not in extra)
        if unmarked:
            yield (
                "synthetic",
                f"{self.name} returned {unmarked} rows that it was not given ({len(self.answer.targets)} in all, for "
                f"{len(self.given.targets)}) and that are not marked `synthetic`",
                _MARK,
            )

    def _labels(self) -> Iterator[tuple[str, str, str]]:
        given, answer = self.given, self.answer
        second = answer.partner_targets is not None and given.partner_targets is None
        if second and not self.mixes:
            yield "relabelling", f"{self.name} gave the rows a second label, and its class does not say so", _SAY
        source, targets = answer.source_index, answer.targets
        outside = (source < 0) | (source >= len(self.labels))
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            message = f"{self.name}: row {row} has source_index {int(source[row])}; there are {len(self.labels)} images"
            yield "sources", message, _LABELS
            return
        as_given = ((source[:, None] == given.source_index) & (targets[:, None] == given.targets)).any(1)
        wrong = (targets != self.labels[source]) & ~as_given
        if self.mixes:
            wrong &= self.made
        if not bool(wrong.any()):
            return
        row, number = int(wrong.nonzero()[0]), int(wrong.sum())
        label, image, own = int(targets[row]), int(source[row]), int(self.labels[source[row]])
        if self._is_relabelled(row):
            yield (
                "relabelling",
                f"{self.name} gave {number} real rows another label than their image's (row {row}: {own} became "
                f"{label}), and nothing says so",
                _SAY,
            )
        else:
            yield (
                "sources",
                f"{self.name} returned {number} rows whose label is not that of the image in their `source_index` "
                f"(row {row}: label {label}, and image {image} is of class {own})",
                _LABELS,
            )

    def _is_relabelled(self, row: int) -> bool:
        """Whether a row is the image's own, in its place, with another label."""
        if (
            row >= len(self.given.targets)
            or self.made[row]
            or self.answer.source_index[row] != self.given.source_index[row]
        ):
            return False
        same = _equal_rows(self.now[row : row + 1], self.was)[0] if self.now.shape[1:] == self.was.shape[1:] else None
        elsewhere = same is not None and bool(same.any()) and not bool(same[row])
        return not elsewhere

    # -- other methods' rows ----------------------------------------------------------------------------------------

    def of_others(self) -> Iterator[tuple[str, str, str]]:
        """What is wrong with what other methods made."""
        for message in (*self._handed_on(), *self._rows_of_others(), *self._second_labels()):
            yield "others_rows", f"{self.name} {message}", _LEAVE

    def _handed_on(self) -> Iterator[str]:
        given, answer = self.given, self.answer
        if answer.layout is not given.layout:
            yield "dropped or changed the batch's `layout`, which is its sampler's"
        for what in ("kept", "losses"):
            before, after = getattr(given, what, {}), getattr(answer, what, {})
            lost = [name for name, value in before.items() if name != self.key and after.get(name) is not value]
            if lost:
                yield f"dropped or changed what '{lost[0]}' hands on to itself in `{what}`"

    def _rows_of_others(self) -> Iterator[str]:
        made = self.was_made.nonzero()[:, 0]
        if not len(made):
            return
        if self.now.shape[1:] != self.was.shape[1:]:
            yield "gave the rows another shape"
            return
        found = _equal_rows(self.was[made], self.now)
        gone = ~found.any(1)
        if bool(gone.any()):
            yield f"dropped or changed the features of {int(gone.sum())} of {len(made)} rows that another method made"
            return
        place = found.int().argmax(1)
        here = (place.new_tensor(len(self.now)) > made) & found[
            torch.arange(len(made)), made.clamp(max=len(self.now) - 1)
        ]
        place = torch.where(here, made, place)
        if not bool(self.made[place].all()):
            yield "took the mark `synthetic` from rows that another method made"
        for name in ("targets", "source_index", "partner_targets", "target_weight"):
            before, after = getattr(self.given, name), getattr(self.answer, name)
            if before is not None and (after is None or not torch.equal(before[made], after[place])):
                yield f"dropped or changed the `{name}` of rows that another method made"

    def _second_labels(self) -> Iterator[str]:
        """Of real rows that stayed where they were."""
        given, answer = self.given, self.answer
        if self.mixes or given.partner_targets is None:
            return
        if answer.partner_targets is None:
            yield "dropped `partner_targets` and `target_weight`, the second labels of mixed rows"
            return
        rows = min(len(given.targets), len(answer.targets))
        stayed = ~self.was_made[:rows] & ~self.made[:rows] & (given.source_index[:rows] == answer.source_index[:rows])
        for name in ("partner_targets", "target_weight"):
            if not torch.equal(getattr(given, name)[:rows][stayed], getattr(answer, name)[:rows][stayed]):
                yield f"changed the `{name}` of mixed rows"


def _rows(record: Batch | Features) -> Tensor:
    """[N, ...] images or features, flat and in one type."""
    return (record.images if isinstance(record, Batch) else record.features).detach().flatten(1).float()


def _made(record: Batch | Features) -> Tensor:
    """[N] bool; a batch has no rows that are made."""
    return torch.zeros_like(record.targets, dtype=torch.bool) if isinstance(record, Batch) else record.synthetic


def _equal_rows(rows: Tensor, others: Tensor) -> Tensor:
    """Which rows [N, D] are which of others [M, D], bit for bit: [N, M] bool."""
    if rows.shape[1:] != others.shape[1:]:
        return torch.zeros(len(rows), len(others), dtype=torch.bool, device=rows.device)
    return (rows[:, None] == others[None]).all(2)
