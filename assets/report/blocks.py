"""What a section of the report is made of; `templates/report.html` says how each looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assets.corpus.text import harmless

_MOST_DIGITS = 16  # columns of a heat map up to which numbers have two digits
Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Facts:
    """A few numbers that matter, each with its name."""

    facts: Mapping[str, str]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows under a head; columns of numbers stand to the right.

    Attributes:
        head: names of columns.
        rows: a cell for each; None and NaN are a dash.
        caption: what it shows.
        closed: it is folded until somebody opens it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    closed: bool = False
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [
            any(isinstance(row[i], int | float) for row in self.rows)
            and not any(isinstance(row[i], str) for row in self.rows)
            for i in range(len(self.head))
        ]


@dataclass(frozen=True)
class Charts:
    """Pictures side by side, as many as there is room for: captions and SVG."""

    charts: Mapping[str, str]
    kind: str = "charts"


@dataclass(frozen=True)
class HeatMap:
    """A square of shaded numbers.

    Attributes:
        caption: what it shows.
        rows, columns: their names.
        values: ``(row, column)``; NaN stays empty.
    """

    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    kind: str = "heat"


@dataclass(frozen=True)
class Drawing:
    """One circuit: its picture and its strongest features.

    Attributes:
        name: of its behaviour.
        about: an example, the answer in brackets.
        facts: numbers by name.
        svg: the picture.
        features: a row for each of the strongest.
        open: it is unfolded at first.
    """

    name: str
    about: str
    facts: Mapping[str, str]
    svg: str
    features: Table
    open: bool = False
    kind: str = "drawing"


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        key: its place in the page, an HTML id.
        title: its heading.
        blocks: what it shows, in order.
    """

    key: str
    title: str
    blocks: Sequence[Any] = field(default_factory=list)


def number(value: Any) -> str:
    """A cell as text: counts whole, other numbers with three digits, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        size = abs(value)
        if 0 < size < 5e-4:
            said = "0.00" if size < 5e-6 else f"{value:.1e}"
        else:
            said = (
                f"{value:,.0f}"
                if size >= 1000
                else f"{value:.3f}"
                if size < 0.01
                else f"{value:.2f}"
            )
        return said.replace("-", "\u2212") if value else "0.00"
    return harmless(str(value))


def in_square(value: float, n_columns: int) -> str:
    """A number of a heat map; where it has many columns, one digit, and nothing below .05."""
    if math.isnan(value) or (n_columns > _MOST_DIGITS and value < 0.05):
        return ""
    return number(round(value, 2)) if n_columns <= _MOST_DIGITS else f"{value:.1f}"


def table(
    frame: Any, columns: Mapping[str, str], caption: str = "", *, closed: bool = False
) -> Table:
    """A table of these columns of a data frame, by what they are called on the page."""
    rows = [[_plain(row[column]) for column in columns] for row in frame.to_dict("records")]
    return Table(list(columns.values()), rows, caption, closed)


def _plain(value: Any) -> Cell:
    """A value of pandas as Python has it; whole floats of columns with nulls stay numbers."""
    if hasattr(value, "item"):
        value = value.item()
    return value


def joined(texts: Iterable[str]) -> str:
    """Texts of a cell, one after the other."""
    return ", ".join(texts)
