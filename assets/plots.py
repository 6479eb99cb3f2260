"""What the UI shows: small pictures and tables.

Pictures live in the event log: keep them below about 50 kB.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

BLUE, RED, GRID = "#2b6cb0", "#c53030", "#dddddd"
_MOST_NUMBERS = 12
"""Columns of a heat map up to which numbers are written into it."""


def picture(png: bytes) -> dg.MetadataValue:
    """A PNG as metadata that the UI shows."""
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(png).decode()})")


def vector_picture(svg: str) -> dg.MetadataValue[Any]:
    """An SVG as metadata that the UI shows."""
    data = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(f"![picture](data:image/svg+xml;base64,{data})")


def records(rows: Iterable[Mapping[str, Any]]) -> dg.MetadataValue[Any]:
    """Rows as a table in the UI: numbers rounded, nulls empty, NaN said in words; none as text.

    A NaN as it is would break the row: JSON has none.
    """
    shown = [dg.TableRecord({str(k): cell(v) for k, v in row.items()}) for row in rows]
    return dg.MetadataValue.table(shown) if shown else dg.MetadataValue.text("none")


def cell(value: Any) -> str | int | float | bool:
    """One value of such a table."""
    if value is None:
        return ""
    if isinstance(value, float):  # numpy's floats are floats too
        if not math.isfinite(value):
            return "not defined" if math.isnan(value) else str(value)
        return float(f"{value:.4g}")
    return value


def figure_of(width: float, height: float, n_rows: int = 1, *, dpi: int = 80) -> tuple[Any, Any]:
    """A figure of so many inches and its axes: one, or `n_rows` with one x axis."""
    # A Figure of its own: pyplot keeps state that several runs in one process would share.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    axes = figure.subplots(n_rows, 1, sharex=True)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    return figure, axes


def png_of(figure: Any) -> bytes:
    """The figure as a PNG, the same bytes each time: the program's version is not written."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def bars(names: Sequence[str], figures: Mapping[str, Sequence[float]]) -> bytes:
    """One row of bars for each figure, a bar for each name."""
    figure, axes = figure_of(max(4.0, 0.32 * len(names)), 1.9 * len(figures), len(figures))
    for axis, (title, values) in zip(
        [axes] if len(figures) == 1 else axes, figures.items(), strict=True
    ):
        axis.bar(range(len(names)), values, color=BLUE)
        axis.set_ylabel(title)
        axis.set_xticks(range(len(names)), names, rotation=90)
    return png_of(figure)


def training_curves(curve: Sequence[Sequence[float]]) -> bytes:
    """Loss, L0 and the share of dead features over the steps of a training."""
    figure, axes = figure_of(5.5, 4.2, 3)
    steps, *columns = zip(*curve, strict=True)
    for axis, values, name in zip(axes, columns, ("loss", "L0", "dead"), strict=True):
        axis.plot(steps, values, color=BLUE, linewidth=1.2)
        axis.set_ylabel(name)
    axes[-1].set_xlabel("steps")
    return png_of(figure)


def histogram(values: Sequence[float], label: str, *, low: float, high: float) -> bytes:
    """How often each value occurs; what lies outside goes into the first and last bar."""
    import numpy as np

    figure, axis = figure_of(4.5, 2.4)
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    axis.hist(np.clip(finite, low, high), bins=30, range=(low, high), color=BLUE)
    axis.set_xlabel(label)
    axis.set_ylabel("circuits")
    return png_of(figure)


def density_histogram(densities: Any) -> bytes:
    """How many features are active how often, on a logarithmic axis; dead ones are counted."""
    import numpy as np

    figure, axis = figure_of(4.5, 2.4)
    alive = np.asarray(densities, dtype=float)
    n_dead = int((alive <= 0).sum())
    axis.hist(np.log10(alive[alive > 0]), bins=40, color=BLUE)
    axis.set_xlabel(f"log10 of the share of tokens; {n_dead:,} features never active")
    axis.set_ylabel("features")
    return png_of(figure)


Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Curves by name: where on the x axis, and how high."""


def curves(lines: Lines, x: str, y: str) -> bytes:
    """Several curves over a logarithmic axis."""
    return panels({y: lines}, x)


def panels(by_title: Mapping[str, Lines], x: str) -> bytes:
    """Panels of curves over one logarithmic axis, below each other; one legend for all."""
    height = 3.2 if len(by_title) == 1 else 2.2 * len(by_title)
    figure, axes = figure_of(5.5, height, len(by_title), dpi=80 if len(by_title) == 1 else 64)
    axes = [axes] if len(by_title) == 1 else list(axes)
    for axis, (title, lines) in zip(axes, by_title.items(), strict=True):
        for i, (name, (xs, ys)) in enumerate(lines.items()):
            axis.plot(xs, ys, marker="o", markersize=3, label=name, color=f"C{i}")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_ylabel(title)
        axis.axhline(1.0, color="#999999", linewidth=0.8)
    axes[0].legend(fontsize=7)
    axes[-1].set_xlabel(x)
    return png_of(figure)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Any,
    *,
    axes: tuple[str, str],
    label: str,
    low: float = 0.0,
    high: float = 1.0,
) -> bytes:
    """A coloured square for each value, with its number where there is room.

    Args:
        rows, columns: their names.
        values: ``(row, column)``; NaN stays white.
        axes: what rows and what columns are.
        low, high: ends of the colour scale.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    each = 0.55 if len(columns) <= _MOST_NUMBERS else 0.2
    width, height = (2.2 + each * max(4, len(names)) for names in (columns, rows))
    figure, axis = figure_of(width + 1.0, height)
    image = axis.imshow(values, vmin=low, vmax=high, cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel=axes[1], ylabel=axes[0])
    if len(columns) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value > (low + high) / 2
                axis.text(
                    column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                )  # fmt: skip
    figure.colorbar(image, ax=axis, label=label)
    return png_of(figure)


Points = tuple[Sequence[float], Sequence[float]]


def scatters(panels: Mapping[str, Mapping[str, Points]], x: str, n_columns: int = 4) -> bytes:
    """Small multiples: a scatter plot for each name, its axes of one scale, over the line y = x.

    Args:
        panels: by name the points of each series, in the same order everywhere.
        x: what stands on the horizontal axes; the series stand on the vertical ones.
    """
    from matplotlib.figure import Figure

    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(1.7 * n_columns, 1.6 * n_rows + 0.5), dpi=72)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axis, (name, series) in zip(axes, panels.items(), strict=False):
        most = max(abs(v) for points in series.values() for part in points for v in part) or 1.0
        axis.plot((-most, most), (-most, most), color=GRID, linewidth=0.8)
        for (label, (xs, ys)), colour in zip(series.items(), (BLUE, RED), strict=False):
            axis.plot(xs, ys, "o", markersize=3, color=colour, alpha=0.6, label=label)
        ticks = [float(f"{sign * most / 1.1:.1g}") for sign in (-1, 0, 1)]
        axis.set(xticks=ticks, yticks=ticks)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(x, fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="lower right")
    # By hand: looking for a layout that fits takes longer than the measurement.
    figure.subplots_adjust(0.07, 0.6 / (1.6 * n_rows), 0.99, 0.96, 0.35, 0.45)
    return png_of(figure)
