"""Where nodes stand when each token has a column of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.pictures.ordering import Placement, deal, mean_x
from core.pictures.text import ELLIPSIS, fit, text_width, token_text
from core.types import Circuit, Edge

TOKEN_SIZE = 14.0
_PADDING = 16.0
_WIDEST_TOKEN = 150.0
_COLUMNS_IN_FULL = 16
_ROOM = 2000.0


@dataclass(frozen=True)
class Column:
    """One token's column, or a run of tokens without a node.

    Attributes:
        x: its centre.
        width: its width in pixels.
        text: what is written under it.
        tooltip: the token, or tokens, in full.
    """

    x: float
    width: float
    text: str
    tooltip: str


def _spans(busy: set[int], n_tokens: int) -> list[range]:
    """Runs of positions that share a column: single ones, except runs without a node where there
    are too many tokens for a column each."""
    if n_tokens <= _COLUMNS_IN_FULL:
        return [range(pos, pos + 1) for pos in range(n_tokens)]
    spans: list[range] = []
    for pos in range(n_tokens):
        empty = pos not in busy
        if empty and spans and spans[-1][-1] not in busy:
            spans[-1] = range(spans[-1].start, pos + 1)
        else:
            spans.append(range(pos, pos + 1))
    return spans


def _columns(
    spans: list[range], tokens: Sequence[str], inner: Mapping[int, float]
) -> tuple[list[Column], dict[int, float]]:
    """The columns side by side, and the x of each position's column."""
    columns: list[Column] = []
    x_of: dict[int, float] = {}
    left = 0.0
    for span in spans:
        texts = [token_text(tokens[pos]) for pos in span]
        text = texts[0] if len(texts) == 1 else ELLIPSIS
        text = fit(text, max(_WIDEST_TOKEN, inner.get(span.start, 0.0)), TOKEN_SIZE, bold=True)
        room = max(inner.get(span.start, 0.0), text_width(text, TOKEN_SIZE, bold=True))
        column = Column(left + room / 2 + _PADDING, room + 2 * _PADDING, text, " ".join(texts))
        columns.append(column)
        x_of.update({pos: column.x for pos in span})
        left += column.width
    return columns, x_of


def arrange_columns(
    circuit: Circuit,
    rows: Sequence[Sequence[int]],
    edges: Sequence[Edge],
    widths: Mapping[int, float],
    gap: float,
) -> tuple[Placement, list[Column]]:
    """Place the nodes of `rows`, given from the bottom up, each in its token's column.

    A cell (submodule, token) holds its nodes side by side, in several lines if they are many.
    """
    pos_of = {node: circuit.nodes[node].pos or 0 for row in rows for node in row}
    busy = set(pos_of.values())
    tokens = circuit.tokens or tuple(f"token {pos}" for pos in range(max(busy, default=-1) + 1))
    spans = _spans(busy, len(tokens))
    cells: dict[tuple[int, int], list[int]] = {}
    for level, row in enumerate(rows):
        for node in row:
            cells.setdefault((level, pos_of[node]), []).append(node)
    for per_line in (3, 2, 1):
        columns, x_of = _columns(spans, tokens, _inner_widths(cells, widths, per_line, gap))
        if sum(column.width for column in columns) <= _ROOM:
            break

    x: dict[int | None, float] = {node: x_of[pos] for node, pos in pos_of.items()}
    x[None] = columns[-1].x if columns else 0.0
    placed: list[list[list[int]]] = [[] for _ in rows]
    for (level, pos), nodes in cells.items():
        ordered = sorted(nodes, key=lambda node: (_pull(node, x, edges), node))
        for i, line in enumerate(deal(ordered, -(-len(nodes) // per_line))):
            if i == len(placed[level]):
                placed[level].append([])
            placed[level][i].extend(line)
            x.update(_side_by_side(line, x_of[pos], widths, gap))
    lines = [[sorted(line, key=lambda n: (x[n], n)) for line in row] for row in placed]
    return Placement(x, lines), columns


def _inner_widths(
    cells: Mapping[tuple[int, int], list[int]],
    widths: Mapping[int, float],
    per_line: int,
    gap: float,
) -> dict[int, float]:
    """What each position's boxes need, `per_line` of its widest side by side in each cell."""
    inner: dict[int, float] = {}
    for (_, pos), nodes in cells.items():
        n_across = min(len(nodes), per_line)
        need = n_across * (max(widths[node] for node in nodes) + gap) - gap
        inner[pos] = max(inner.get(pos, 0.0), need)
    return inner


def _pull(node: int, x: Mapping[int | None, float], edges: Sequence[Edge]) -> float:
    """Mean x of a node's neighbours: where in its cell it would best stand."""
    near = [(e.downstream, abs(e.weight)) for e in edges if e.upstream == node]
    near += [(e.upstream, abs(e.weight)) for e in edges if e.downstream == node]
    mean = mean_x(x, near)
    return x[node] if mean is None else mean


def _side_by_side(
    line: Sequence[int], centre: float, widths: Mapping[int, float], gap: float
) -> dict[int | None, float]:
    """Centres of one cell's line of boxes."""
    left = centre - (sum(widths[node] for node in line) + gap * (len(line) - 1)) / 2
    centres: dict[int | None, float] = {}
    for node in line:
        centres[node] = left + widths[node] / 2
        left += widths[node] + gap
    return centres
