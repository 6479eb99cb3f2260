"""The way of each edge from box to box, through the gaps between the boxes it passes.

Edges climb line by line. At each line that an edge only passes, it takes the gap nearest to the
straight way; edges in one gap are set side by side. The curve through these points keeps between
them (monotone cubic), so an edge never runs under a box that is not one of its ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.pictures.layout import Box, Layout
from core.pictures.ordering import spread
from core.types import Edge

_CLEARANCE = 6.0
_APART = 5.0
_PORT = 7.0


@dataclass
class _Way:
    """One edge on its way up.

    It leaves line `first` for line `last`; `points` are those so far, `goal` is where it enters the
    last line's band, `end` where it meets its box, straight above.
    """

    first: int
    last: int
    points: list[tuple[float, float]]
    goal: tuple[float, float]
    end: tuple[float, float]


def route(layout: Layout, edges: Sequence[Edge]) -> list[list[tuple[float, float]]]:
    """Points of each edge from the bottom up, in the order of `edges`."""
    line_of = {node: i for i, line in enumerate(layout.lines) for node in line}
    starts = _ports(layout.boxes, edges, upper=True)
    ends = _ports(layout.boxes, edges, upper=False)
    bands = [_band([layout.boxes[node] for node in line]) for line in layout.lines]
    ways = []
    for edge, (x, y), end in zip(edges, starts, ends, strict=True):
        first, last = line_of[edge.upstream], line_of[edge.downstream]
        # A triangle beside taller boxes: rise straight until clear of them, and sink likewise.
        rise = [(x, bands[first][0])] if y > bands[first][0] else []
        ways.append(_Way(first, last, [(x, y), *rise], (end[0], bands[last][1]), end))
    for i, line in enumerate(layout.lines):
        passing = [way for way in ways if way.first < i < way.last]
        if passing:
            boxes = sorted((layout.boxes[node] for node in line), key=lambda box: box.x)
            _pass(_gaps(boxes, layout), bands[i], passing)
    for way in ways:
        way.points += [way.goal] if way.goal == way.end else [way.goal, way.end]
    return [way.points for way in ways]


def _band(boxes: Sequence[Box]) -> tuple[float, float]:
    """Top and bottom of a line of boxes."""
    return min(box.top for box in boxes), max(box.bottom for box in boxes)


def _ports(
    boxes: Mapping[int | None, Box], edges: Sequence[Edge], *, upper: bool
) -> list[tuple[float, float]]:
    """Where each edge leaves the top of its upstream box, or enters the bottom of the other.

    Edges of one box are set side by side in the order of their other ends.
    """
    by_box: dict[int | None, list[int]] = {}
    for i, edge in enumerate(edges):
        by_box.setdefault(edge.upstream if upper else edge.downstream, []).append(i)
    ports: dict[int, tuple[float, float]] = {}
    for key, members in by_box.items():
        box = boxes[key]
        members.sort(key=lambda i: (boxes[edges[i][1] if upper else edges[i][0]].x, i))
        # Edges leave a triangle by its tip; its sides would leave a gap.
        room = 0.0 if upper and box.width < 70 else 0.7 * box.width
        step = min(_PORT, room / len(members))
        for rank, i in enumerate(members):
            x = box.x + step * (rank - (len(members) - 1) / 2)
            ports[i] = (x, box.top if upper else box.bottom)
    return [ports[i] for i in range(len(edges))]


def _gaps(boxes: Sequence[Box], layout: Layout) -> list[tuple[float, float]]:
    """Open stretches of x between the boxes of one line, from the left."""
    sides = [layout.left - _CLEARANCE]
    for box in boxes:
        sides += [box.left, box.right]
    sides.append(layout.width + _CLEARANCE)
    gaps = [
        (left + _CLEARANCE, right - _CLEARANCE)
        for left, right in zip(sides[::2], sides[1::2], strict=True)
    ]
    return [gap for gap in gaps if gap[0] <= gap[1]]


def _pass(
    gaps: Sequence[tuple[float, float]], band: tuple[float, float], ways: Sequence[_Way]
) -> None:
    """Lead `ways` through the gaps of one line of boxes."""
    top, bottom = band
    crowd: dict[tuple[float, float], list[tuple[float, int]]] = {}
    for i, way in enumerate(ways):
        straight = _on_the_way(way, (top + bottom) / 2)
        gap = min(gaps, key=lambda gap: (max(gap[0] - straight, straight - gap[1], 0.0), gap))
        crowd.setdefault(gap, []).append((straight, i))
    for gap, members in crowd.items():
        order = [i for _, i in sorted(members)]
        for y in (bottom, top):
            wishes = [_on_the_way(ways[i], y) for i in order]
            for i, x in zip(order, _abreast(wishes, gap), strict=True):
                ways[i].points.append((x, y))


def _on_the_way(way: _Way, y: float) -> float:
    """Where the straight line from a way's last point to its goal is at height y."""
    (x, last_y), (end_x, end_y) = way.points[-1], way.goal
    return x + (end_x - x) * (y - last_y) / (end_y - last_y)


def _abreast(wishes: Sequence[float], gap: tuple[float, float]) -> list[float]:
    """Places in `gap` nearest to `wishes`, in their order and apart as far as the gap allows."""
    left, right = gap
    n = len(wishes)
    apart = min(_APART, (right - left) / max(1, n - 1))
    places = spread([min(max(wish, left), right) for wish in wishes], [0.0] * n, apart)
    # Spreading can push the outer ones past a side: push back by what the others need.
    return [
        min(max(place, left + apart * i), right - apart * (n - 1 - i))
        for i, place in enumerate(places)
    ]


def curve(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path through `points`: monotone cubic in y, vertical at both ends."""
    n = len(points)
    slopes = [0.0] * n
    secants = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(points)]
    for i in range(1, n - 1):
        before, after = secants[i - 1], secants[i]
        if before * after > 0:
            slopes[i] = 2 * before * after / (before + after)
    path = [f"M{_xy(*points[0])}"]
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        third = (y1 - y0) / 3
        path.append(
            f"C{_xy(x0 + slopes[i] * third, y0 + third)} "
            f"{_xy(x1 - slopes[i + 1] * third, y1 - third)} {_xy(x1, y1)}"
        )
    return " ".join(path)


def _xy(x: float, y: float) -> str:
    return f"{x:.1f},{y:.1f}"
