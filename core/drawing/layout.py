"""The place of everything in the picture of a circuit, in pixels, y downwards.

Rows are submodules in causal order from the bottom up, the metric above them. What is laid out
here is drawn by `core.draw`; nothing here knows about SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.drawing.columns import Column, arrange_columns
from core.drawing.ordering import METRIC, Placement, arrange_rows, mean_x
from core.drawing.selection import Selection, plain_name
from core.drawing.text import printable, text_width, wrap
from core.types import Circuit, causal_order

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


def _box_width(circuit: Circuit, selection: Selection, labelled: bool) -> float:
    """One width for all features: what the longest name needs, more if there are labels."""
    names = [plain_name(circuit.nodes[i]) for i in selection.nodes if not circuit.nodes[i].is_error]
    longest = max((text_width(name, NAME_SIZE, bold=True) for name in names), default=60.0)
    return max(longest + 2 * _SIDE, 136.0 if labelled else 84.0)


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
    circuit: Circuit, selection: Selection, labels: Mapping[str, str], metric_width: float
) -> Layout:
    """Lay out the selected part of a circuit, with a box of `metric_width` for the metric."""
    nodes = circuit.nodes
    names = causal_order({nodes[i].submodule for i in selection.nodes})
    rows = [[i for i in selection.nodes if nodes[i].submodule == name] for name in names]
    labelled = any(plain_name(nodes[i]) in labels for i in selection.nodes)
    width = _box_width(circuit, selection, labelled)
    text = _label_lines(circuit, selection, labels, width)
    widths = {i: _TRIANGLE if nodes[i].is_error else width for i in selection.nodes}
    columns: list[Column] = []
    if circuit.by_position:
        placement, columns = arrange_columns(circuit, rows, selection.edges, widths, _GAP)
    else:
        per_line = max(3, int(_ROOM / (width + _GAP)))
        placement = arrange_rows(rows, selection.edges, widths, per_line=per_line, gap=_GAP)

    left = max([text_width(name, 13, bold=True) for name in names] + [70.0]) + 30.0
    lines_of_label = max((len(lines) for lines in text.values()), default=0)
    height = 40.0 + LABEL_LEADING * lines_of_label
    return _stack(names, placement, columns, widths, text, (height, metric_width, left), selection)


def _stack(
    names: Sequence[str],
    placement: Placement,
    columns: Sequence[Column],
    widths: Mapping[int, float],
    labels: Mapping[int, list[str]],
    sizes: tuple[float, float, float],
    selection: Selection,
) -> Layout:
    """Give rows their heights and shift everything right of the rows' names."""
    height, metric_width, left = sizes
    edges_x = [x + s * widths[i] / 2 for i, x in placement.x.items() if i is not None for s in (-1, 1)]
    edges_x += [column.x + s * column.width / 2 for column in columns for s in (-1, 1)]
    start, end = min(edges_x, default=0.0), max(edges_x, default=0.0)
    extent = max(end - start, metric_width)
    channel = 6.0 if columns else _CHANNEL
    shift = left + channel - start + (extent - (end - start)) / 2

    into_metric = [(e.upstream, abs(e.weight)) for e in selection.edges if e.downstream is None]
    centre = mean_x(placement.x, into_metric)
    metric_x = (placement.x[METRIC] if centre is None else centre) + shift
    low = left + channel + metric_width / 2
    metric_x = min(max(metric_x, low), max(low, low + extent - metric_width))
    boxes: dict[int | None, Box] = {
        METRIC: Box(metric_x, 8 + _METRIC_HEIGHT / 2, metric_width, _METRIC_HEIGHT)
    }
    lines: list[list[int | None]] = [[METRIC]]
    rows: list[Row] = []
    y = 8 + _METRIC_HEIGHT + 12
    for name, row in reversed(list(zip(names, placement.rows, strict=True))):
        top = y
        y += _ROW_PADDING
        for i, line in enumerate(reversed(row)):
            y += _LINE_GAP if i else 0.0
            for node in line:
                tall = 40.0 if widths[node] == _TRIANGLE else height
                boxes[node] = Box(placement.x[node] + shift, y + height / 2, widths[node], tall)
            lines.append(list(line))
            y += height
        y += _ROW_PADDING
        rows.append(Row(name, top, y))
    return Layout(
        boxes=boxes,
        lines=lines[::-1],
        rows=rows[::-1],
        columns=[Column(c.x + shift, c.width, c.text, c.tooltip) for c in columns],
        labels=labels,
        left=left,
        width=left + extent + 2 * channel,
        height=y + (_TOKENS_HEIGHT if columns else 0.0),
    )
