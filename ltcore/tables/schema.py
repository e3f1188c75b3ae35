"""What a table's file may say. The attribute docstrings are the descriptions of docs/tables_format.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from ltcore.contract.recipe import BaseModel, Name

#: What a table prints of a run.
Metric: TypeAlias = Literal[
    "top1", "error", "top5", "error5", "many", "medium", "few", "balanced_accuracy", "macro_f1", "ece", "other"
]

#: Figures that may stand beside a printed one.
BESIDE = ("top5", "many", "medium", "few")

#: Core's analyses, with the metrics of each. What methods show in reports has the metric `other`.
ANALYSES: dict[str, tuple[Metric, ...]] = {"test_means": ("top1", "error", "balanced_accuracy")}


def _check_place(path: str) -> str:
    if path.startswith("/") or not path.endswith(".yaml"):
        raise ValueError(f"should be the path of a recipe file from the table's folder, not '{path}'")
    return path


RecipePath = Annotated[str, AfterValidator(_check_place)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Printed(BaseModel):
    """A figure as the paper prints it, where it prints more than one number. In percent."""

    value: Percent | None = None
    """The headline, in the table's metric; absent where only the others are printed."""
    sd: Percent | None = None
    """Its standard deviation."""
    top5: Percent | None = None
    """Top-5 accuracy; with the metric `error`, the top-5 error."""
    many: Percent | None = None
    """Of the many-shot classes, in the table's metric."""
    medium: Percent | None = None
    """Of the medium-shot classes, in the table's metric."""
    few: Percent | None = None
    """Of the few-shot classes, in the table's metric."""
    note: str = ""
    """What a reader has to know of this figure alone."""


class _Part(BaseModel):
    recipe: RecipePath | None = None
    """The recipe that is changed, from the table's folder; `{WORD}` stands for one of the `words`."""
    changes: list[str] = Field(default_factory=list)
    """Changes of the recipe as of `--set`: `PATH=VALUE`, `PATH+=VALUE`, `PATH-=VALUE`; with `{WORD}` too."""
    words: dict[Name, str] = Field(default_factory=dict)
    """What `{WORD}` in `recipe`, `changes` and `analysis` stands for."""
    stage: Name | None = None
    """The stage at whose end the figure is taken; by default it is that of the whole run, after calibration."""
    metric: Metric | None = None
    """The metric, where it is not the table's."""
    analysis: str | None = Field(default=None, max_length=200)
    """An analysis of the run that is shown in place of its result, where it is not the table's; with `{WORD}` too."""
    waits: str = Field(default="", max_length=200)
    """What a cell waits for and cannot be run without, such as `method: OLTR`."""
    note: str = ""
    """What a reader has to know."""


class CellPart(_Part):
    """What is different for one cell."""


class Column(_Part):
    """A column."""

    label: str = Field(min_length=1)
    """Its title."""
    group: str = ""
    """A title over several columns that stand side by side."""


class Row(_Part):
    """A row."""

    label: str = Field(min_length=1)
    """Its title, as the paper has it."""
    printed: list[Percent | Printed | None] = Field(default_factory=list)
    """The paper's figures, column by column; null where it prints none. Empty where the table has none."""
    cells: dict[str, CellPart] = Field(default_factory=dict)
    """What is different in some columns, by their names."""


class TableFile(BaseModel):
    """A table: rows and columns as changes of recipes, with what a paper prints in its cells."""

    title: str = Field(min_length=1)
    """What the table shows."""
    source: str = ""
    """The paper and the place in it, such as `SAFA, table 1`; empty for a table of one's own."""
    metric: Metric = "top1"
    """What a cell shows: a figure of a run's result, or `error` and `error5`, which are 100 less top-1 and top-5;
    `other` is the number that an analysis of a method gives, as it is."""
    analysis: str | None = Field(default=None, max_length=200)
    """An analysis of the run that is shown in place of its result: `test_means`, the nearest class mean where the means
    are those of test features, or a number in a table that a method shows in reports, `METHOD/TITLE/ROW/COLUMN`. It is
    made once the run has ended, and nothing depends on it."""
    decimals: int = Field(default=2, ge=0, le=4)
    """Decimals, as the paper prints them."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """The seeds that `--run` trains where `--seeds` says no others."""
    recipe: RecipePath | None = None
    """The recipe of rows and columns that name none."""
    changes: list[str] = Field(default_factory=list)
    """Changes for every cell; they come first, then the row's, the column's and the cell's."""
    columns: dict[Name, Column] = Field(min_length=1)
    """The columns by name, in order."""
    rows: dict[Name, Row] = Field(min_length=1)
    """The rows by name, in order."""
    note: str = ""
    """What a reader has to know of the whole table."""

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: dict[str, Row], info: Any) -> dict[str, Row]:
        columns = info.data.get("columns", {})
        for name, row in rows.items():
            if row.printed and len(row.printed) != len(columns):
                raise ValueError(f"row '{name}' prints {len(row.printed)} figures for {len(columns)} columns")
            for column in row.cells:
                if column not in columns:
                    raise ValueError(f"row '{name}' has a cell in column '{column}', and the table has no such column")
        return rows
