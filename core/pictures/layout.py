"""The place of everything in the picture of a circuit, in pixels, y downwards.

Rows are submodules in causal order from the bottom up, the metric above them. What is laid out
here is drawn by `core.pictures.draw`; nothing here knows about SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.pictures.columns import Column, arrange_columns
from core.pictures.ordering import METRIC, Placement, arrange_rows, mean_x
from core.pictures.selection import Selection, plain_name
from core.pictures.text import printable, text_width, wrap
from core.types import Circuit, causal_order

ROW_SIZE = 13.0
NAME_SIZE = 12.0
LABEL_SIZE = 10.5
NUMBER_SIZE = 10.5
LABEL_LINES = 2
LABEL_LEADING = 13.0

_SIDE = 10.0  # between a box's text and its sides
_TRIANGLE = 64.0
_GAP = 26.0  # between boxes of a line: edges pass here
_LINE_GAP = 26.0
_ROW_PADDING = 24.0
_CHANNEL = 34.0  # beside the outermost boxes: edges pass here too
_ROOM = 1150.0
_METRIC_HEIGHT = 44.0
_PLAIN_WIDTH, _LABELLED_WIDTH = 84.0, 136.0  # of a feature's box, at least
_PLAIN_HEIGHT = 40.0  # of a box without a label
_TOKENS_HEIGHT = 30.0


@dataclass(frozen=True)
class Box:
    """A box by its centre and size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """Its left side's x."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Its right side's x."""
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        """Its upper side's y."""
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        """Its lower side's y."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Row:
    """One submodule's band across the picture."""

    submodule: str
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Attributes:
        boxes: by node index; the metric's under `METRIC`.
        lines: keys of `boxes` standing at one height, from the bottom up; the metric's line last.
        rows: submodules' bands, from the bottom up.
        columns: tokens' columns, from the left; empty where effects are summed over positions.
        labels: the lines of human text in each labelled node.
        left, width, height: where the rows begin after their names, and the picture's extent.
    """

    boxes: Mapping[int | None, Box]
    lines: Sequence[Sequence[int | None]]
    rows: Sequence[Row]
    columns: Sequence[Column]
    labels: Mapping[int, list[str]]
    left: float
    width: float
    height: float


def _box_width(circuit: Circuit, selection: Selection, labels: Mapping[str, str]) -> float:
    """One width for all features: what the longest name needs, more if one has a label."""
    names = [plain_name(circuit.nodes[i]) for i in selection.nodes if not circuit.nodes[i].is_error]
    longest = max((text_width(name, NAME_SIZE, bold=True) for name in names), default=60.0)
    return max(
        longest + 2 * _SIDE,
        _LABELLED_WIDTH if any(name in labels for name in names) else _PLAIN_WIDTH,
    )


def _label_lines(
    circuit: Circuit, selection: Selection, labels: Mapping[str, str], width: float
) -> dict[int, list[str]]:
    """Human text of each labelled feature, broken to its box."""
    lines = {}
    for i in selection.nodes:
        text = labels.get(plain_name(circuit.nodes[i]), "")
        if text.strip() and not circuit.nodes[i].is_error:
            room = width - 1.2 * _SIDE
            lines[i] = wrap(printable(text), room, LABEL_SIZE, n_lines=LABEL_LINES)
    return lines


def arrange(
    circuit: Circuit,
    selection: Selection,
    labels: Mapping[str, str],
    *,
    metric_width: float,
    least_width: float,
) -> Layout:
    """Lay out the selected part of a circuit, with a box of `metric_width` for the metric."""
    nodes = circuit.nodes
    names = causal_order({nodes[i].submodule for i in selection.nodes})
    rows = [[i for i in selection.nodes if nodes[i].submodule == name] for name in names]
    width = _box_width(circuit, selection, labels)
    text = _label_lines(circuit, selection, labels, width)
    widths = {i: _TRIANGLE if nodes[i].is_error else width for i in selection.nodes}
    columns: list[Column] = []
    if circuit.by_position:
        placement, columns = arrange_columns(circuit, rows, selection.edges, widths, _GAP)
    else:
        per_line = max(3, int(_ROOM / (width + _GAP)))
        placement = arrange_rows(rows, selection.edges, widths, per_line=per_line, gap=_GAP)

    left = max([text_width(name, ROW_SIZE, bold=True) for name in names] + [70.0]) + 30.0
    channel = 6.0 if columns else _CHANNEL
    start, end = _extent(placement, columns, widths)
    room = max(end - start, metric_width, least_width - left - 2 * channel)
    shift = left + channel + (room - (end - start)) / 2 - start

    into_metric = [(e.upstream, abs(e.weight)) for e in selection.edges if e.downstream is None]
    metric_x = mean_x(placement.x, into_metric)
    metric_x = shift + (placement.x[METRIC] if metric_x is None else metric_x)
    low, high = left + channel + metric_width / 2, left + channel + room - metric_width / 2
    metric = Box(
        min(max(metric_x, low), high), 8 + _METRIC_HEIGHT / 2, metric_width, _METRIC_HEIGHT
    )
    x = {i: placement.x[i] + shift for i in selection.nodes}
    n_label_lines = max((len(lines) for lines in text.values()), default=0)
    height = _PLAIN_HEIGHT + LABEL_LEADING * n_label_lines
    boxes, bands, bottom = _stack(placement.rows, x, widths, height, metric.bottom + 12)
    return Layout(
        boxes={METRIC: metric, **boxes},
        lines=[*(line for row in placement.rows for line in row), [METRIC]],
        rows=[Row(name, top, low) for name, (top, low) in zip(names, bands, strict=True)],
        columns=[replace(column, x=column.x + shift) for column in columns],
        labels=text,
        left=left,
        width=left + room + 2 * channel,
        height=bottom + (_TOKENS_HEIGHT if columns else 0.0 if rows else 36.0),
    )


def _extent(
    placement: Placement, columns: Sequence[Column], widths: Mapping[int, float]
) -> tuple[float, float]:
    """The least and the greatest x that a box or a column reaches."""
    spans = [(placement.x[i] - w / 2, placement.x[i] + w / 2) for i, w in widths.items()]
    spans += [(column.x - column.width / 2, column.x + column.width / 2) for column in columns]
    return min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)


def _stack(
    rows: Sequence[Sequence[Sequence[int]]],
    x: Mapping[int, float],
    widths: Mapping[int, float],
    height: float,
    top: float,
) -> tuple[dict[int, Box], list[tuple[float, float]], float]:
    """Give rows their heights, the last of them at `top`.

    Returns:
        Boxes by node; each row's (top, bottom), in the order of `rows`; the lowest row's bottom.
    """
    boxes: dict[int, Box] = {}
    bands: list[tuple[float, float]] = []
    for row in reversed(rows):
        y = top + _ROW_PADDING
        for line in reversed(row):
            for node in line:
                tall = _PLAIN_HEIGHT if widths[node] == _TRIANGLE else height
                boxes[node] = Box(x[node], y + height / 2, widths[node], tall)
            y += height + _LINE_GAP
        bottom = y - _LINE_GAP + _ROW_PADDING
        bands.append((top, bottom))
        top = bottom
    return boxes, bands[::-1], top
