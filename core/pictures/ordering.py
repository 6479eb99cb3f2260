"""Where nodes stand in their rows so that few edges cross: barycentre sweeps.

Each sweep visits the rows in turn, moves every node towards the weighted mean of its neighbours
above or below, and pushes nodes of one line apart where they would overlap. The arrangement with
the fewest crossings that any sweep produced is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from core.types import Edge

METRIC = None
"""Key of the metric's own node where nodes are keyed by their index."""

_SWEEPS = 18
_IDLE_PULL = 1e-3  # of a node without edges, against 1: it makes room for the others


@dataclass(frozen=True)
class Placement:
    """Where nodes stand before rows have heights.

    Attributes:
        x: centre of each node, in pixels from an arbitrary origin.
        rows: rows from the bottom up, each of lines from the bottom up, each of node indices from
            left to right.
    """

    x: Mapping[int | None, float]
    rows: list[list[list[int]]]


def spread(
    desired: Sequence[float],
    widths: Sequence[float],
    gap: float,
    pulls: Sequence[float] | None = None,
) -> list[float]:
    """Centres nearest to `desired` (least squares), in its order, boxes `gap` or more apart.

    `pulls` weighs the squares; all alike by default.

    Subtracting the least offsets turns "apart" into "not decreasing": isotonic regression, solved
    by pooling adjacent violators.
    """
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    pools: list[tuple[float, float, int]] = []  # (mean, pull, size)
    for i, want in enumerate(desired):
        mean, pull, size = want - offsets[i], pulls[i] if pulls else 1.0, 1
        while pools and pools[-1][0] > mean:
            other, force, n = pools.pop()
            mean = (mean * pull + other * force) / (pull + force)
            pull, size = pull + force, size + n
        pools.append((mean, pull, size))
    levels = [mean for mean, _, size in pools for _ in range(size)]
    return [level + offset for level, offset in zip(levels, offsets, strict=False)]


def deal(nodes: Sequence[int], n_lines: int) -> list[list[int]]:
    """Nodes dealt to lines in turn, so that each line is spread over the whole row."""
    return [list(nodes[first::n_lines]) for first in range(n_lines)]


def mean_x(
    x: Mapping[int | None, float], neighbours: Sequence[tuple[int | None, float]]
) -> float | None:
    """Mean x of ``(node, weight)`` neighbours by weight; None where there are none."""
    total = sum(weight for _, weight in neighbours)
    return sum(x[node] * weight for node, weight in neighbours) / total if total else None


def n_crossings(
    edges: Sequence[Edge], x: Mapping[int | None, float], level: Mapping[int | None, int]
) -> int:
    """How many pairs of edges cross when each is a straight line between rows."""
    if len(edges) < 2:
        return 0
    ends = torch.tensor(
        [[x[e[0]], level[e[0]], x[e[1]], level[e[1]]] for e in edges], dtype=torch.float64
    )
    x0, y0, x1, y1 = ends.T
    slope = (x1 - x0) / (y1 - y0)
    low = torch.maximum(y0[:, None], y0[None, :])
    high = torch.minimum(y1[:, None], y1[None, :])

    def lead(y: torch.Tensor) -> torch.Tensor:
        """How far right of the column's edge the row's edge is at height y."""
        at_y = x0[:, None] + slope[:, None] * (y - y0[:, None])
        return at_y - (x0[None, :] + slope[None, :] * (y - y0[None, :]))

    crossing = (low < high) & (lead(low) * lead(high) < -1e-9)
    return int(crossing.sum()) // 2


class _Sweeper:
    """The state of the sweeps: where each node stands, and who its neighbours are."""

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        edges: Sequence[Edge],
        widths: Mapping[int, float],
        per_line: int,
        gap: float,
    ) -> None:
        self.edges, self.widths, self.gap = edges, widths, gap
        self.level: dict[int | None, int] = {n: i for i, row in enumerate(rows) for n in row}
        self.level[METRIC] = len(rows)
        self.below: dict[int | None, list[tuple[int | None, float]]] = {n: [] for n in self.level}
        self.above: dict[int | None, list[tuple[int | None, float]]] = {n: [] for n in self.level}
        for up, down, weight, _ in edges:
            # A weight of nearly nothing still pulls a little.
            pull = abs(weight) + 1e-12
            self.below[down].append((up, pull))
            self.above[up].append((down, pull))
        self.x: dict[int | None, float] = {METRIC: 0.0}
        self.rows: list[list[list[int]]] = []
        for row in rows:
            lines = deal(row, -(-len(row) // per_line))
            self.rows.append(lines)
            for line in lines:
                self._settle(line, [0.0] * len(line))

    def _settle(self, line: list[int], desired: Sequence[float]) -> None:
        widths = [self.widths[node] for node in line]
        pulls = [1.0 if self.below[node] or self.above[node] else _IDLE_PULL for node in line]
        self.x.update(zip(line, spread(desired, widths, self.gap, pulls), strict=True))

    def _wish(self, node: int | None, side: str) -> float:
        near = {
            "below": self.below[node],
            "above": self.above[node],
            "both": self.below[node] + self.above[node],
        }[side]
        mean = mean_x(self.x, near)
        return self.x[node] if mean is None else mean

    def sweep(self, side: str) -> None:
        """Move every node towards its neighbours on one side, or on both."""
        levels = range(len(self.rows))
        if side != "above":
            self.x[METRIC] = self._wish(METRIC, "below")
        for level in reversed(levels) if side == "above" else levels:
            nodes = [node for line in self.rows[level] for node in line]
            wish = {node: self._wish(node, side) for node in nodes}
            # Nodes without edges line up on the right of the others.
            busy = [wish[node] for node in nodes if self.below[node] or self.above[node]]
            for node in nodes:
                if not (self.below[node] or self.above[node]):
                    wish[node] = max(busy, default=self.x[METRIC])
            nodes.sort(key=lambda node: (wish[node], self.x[node], node))
            self.rows[level] = deal(nodes, len(self.rows[level]))
            for line in self.rows[level]:
                self._settle(line, [wish[node] for node in line])
        self.x[METRIC] = self._wish(METRIC, "below")

    def cost(self) -> tuple[int, float]:
        """Crossings, then how far edges run sideways."""
        sideways = sum(abs(self.x[up] - self.x[down]) for up, down, *_ in self.edges)
        return n_crossings(self.edges, self.x, self.level), round(sideways, 6)


def arrange_rows(
    rows: Sequence[Sequence[int]],
    edges: Sequence[Edge],
    widths: Mapping[int, float],
    *,
    per_line: int,
    gap: float,
) -> Placement:
    """Place the nodes of `rows`, given from the bottom up, `per_line` of them to a line.

    The same rows and edges always give the same placement.
    """
    sweeper = _Sweeper(rows, edges, widths, per_line, gap)
    best = (sweeper.cost(), dict(sweeper.x), list(sweeper.rows))
    for step in range(_SWEEPS):
        sweeper.sweep(("below", "above", "both")[step % 3])
        cost = sweeper.cost()
        if cost < best[0]:
            best = (cost, dict(sweeper.x), list(sweeper.rows))
    return Placement(best[1], best[2])
