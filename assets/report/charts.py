"""Charts for a page: SVG that takes the page's text colour, and asks for no file of its own."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assets.plots import figure_of

COLOURS = ("#2166ac", "#b2182b", "#7a828c", "#1b7837", "#8073ac", "#b35806", "#c2479b")
"""Of lines and bars, in order; they differ for every common kind of colour blindness."""

_INK = "#010203"  # what matplotlib writes and the page's own colour replaces
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.linewidth": 0.6,
}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": _INK}
_SHADES = ("#2166ac", "#8fbfde", "#b9bfc6")
"""Of parts that go from the most to the least certain."""
_MOST_POINTS = 1500
Line = tuple[Sequence[float], Sequence[float]]


def _svg(figure: Any, name: str) -> str:
    """A figure as an element of a page; `name` keeps its ids apart from other figures'."""
    from matplotlib import rc_context

    data = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.S)
    # Sizes are those of the drawing; the page makes them smaller where there is no room.
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1, flags=re.S)
    ids = {found: f"{name}-{found}" for found in re.findall(r'id="([^"]+)"', text)}
    text = re.sub(r'id="([^"]+)"', lambda m: f'id="{ids[m[1]]}"', text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + ids.get(m[2], m[2]), text)
    return text.replace(_INK, "currentColor").replace("\n", " ")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure, axes = figure_of(width, height, dpi=72)
        axes.grid(axis="y", color="#8888", linewidth=0.4)
    return figure, axes


def lines(
    name: str,
    of: Mapping[str, Line],
    x: str,
    y: str,
    *,
    log: bool = True,
    one: bool = False,
    faint: bool = False,
) -> str:
    """Curves.

    Args:
        name: of the figure, unlike any other's on the page.
        of: x and y of each line.
        log: the x axis is logarithmic above 1.
        one: with a line at y = 1.
        faint: many lines that nothing names, the last of them in front.
    """
    figure, axes = _figure(4.6, 2.7)
    for i, (label, (xs, ys)) in enumerate(of.items()):
        last = i == len(of) - 1
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.6}
        if faint:
            style = {"color": COLOURS[0] if last else COLOURS[2]}
            style |= {"linewidth": 2.2 if last else 0.6, "alpha": 1.0 if last else 0.5}
        named = label if last or not faint else None
        axes.plot(xs, ys, label=named, marker=None if faint else "o", markersize=2.5, **style)
    if log:
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter(lambda value, _at: f"{value:,.0f}")
    if one:
        axes.axhline(1.0, color=COLOURS[2], linewidth=0.8, linestyle="--")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(**_LEGEND)
    return _svg(figure, name)


def bars(name: str, of: Mapping[str, float], y: str, *, top: float | None = None) -> str:
    """A bar for each name."""
    figure, axes = _figure(max(3.0, 0.8 + 0.28 * len(of)), 2.4)
    axes.bar(range(len(of)), list(of.values()), color=COLOURS[0], width=0.7)
    axes.set_xticks(range(len(of)), list(of), rotation=90)
    axes.set(ylabel=y, ylim=(0, top))
    return _svg(figure, name)


def stacked(name: str, names: Sequence[str], parts: Mapping[str, Sequence[float]], y: str) -> str:
    """A bar for each name, made of up to three parts, the most certain at the bottom."""
    figure, axes = _figure(max(4.6, 1.0 + 0.2 * len(names)), 2.9)
    below = np.zeros(len(names))
    for i, (label, values) in enumerate(parts.items()):
        axes.bar(range(len(names)), values, 0.75, bottom=below, color=_SHADES[i], label=label)
        below = below + np.asarray(values, dtype=float)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set(ylabel=y)
    axes.legend(
        frameon=False, fontsize=8, ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1)
    )
    return _svg(figure, name)


def histogram(name: str, values: Sequence[float], x: str, y: str, low: float, high: float) -> str:
    """How often each value occurs; what lies outside is in the first and the last bar."""
    figure, axes = _figure(4.0, 2.4)
    finite = [min(max(value, low), high) for value in values if math.isfinite(value)]
    axes.hist(finite, bins=30, range=(low, high), color=COLOURS[0])
    axes.set(xlabel=x, ylabel=y)
    return _svg(figure, name)


def scatter(name: str, of: Mapping[str, Line], x: str, y: str, *, diagonal: bool = False) -> str:
    """Points in groups; of very many, evenly chosen ones."""
    figure, axes = _figure(3.6, 3.2)
    for i, (label, (xs, ys)) in enumerate(of.items()):
        step = max(1, len(xs) // _MOST_POINTS)
        colour = COLOURS[i % len(COLOURS)]
        axes.scatter(xs[::step], ys[::step], s=5, alpha=0.6, color=colour, label=label, lw=0)
    if diagonal:
        axes.axline((0, 0), slope=1, color=COLOURS[2], linewidth=0.8, linestyle="--")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(**_LEGEND)
    return _svg(figure, name)


def spans(name: str, of: Mapping[str, Mapping[str, tuple[float, float]]], x: str) -> str:
    """Means and their spreads, from 0 to 1, a row for each name and a colour for each series."""
    rows = list(dict.fromkeys(row for own in of.values() for row in own))
    figure, axes = _figure(6.4, 0.8 + 0.26 * len(rows))
    for i, (label, own) in enumerate(of.items()):
        middle, spread = zip(*own.values(), strict=True)
        below = 0.22 * (i - (len(of) - 1) / 2)  # so that series stand apart
        axes.errorbar(
            middle, [rows.index(row) + below for row in own], xerr=spread, fmt="osD"[i % 3],
            color=COLOURS[i % len(COLOURS)], linewidth=1, markersize=4.5, label=label,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#8888", linewidth=0.4)
    axes.set(xlabel=x, xlim=(-0.02, 1.02))
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), **_LEGEND)
    return _svg(figure, name)


def shade(value: float, low: float = 0.0, high: float = 1.0) -> int:
    """Which of the page's steps of blue, from 0 to 8."""
    if not math.isfinite(value):
        return 0
    return round(8 * min(max((value - low) / (high - low), 0.0), 1.0))
