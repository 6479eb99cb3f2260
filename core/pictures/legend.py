"""What stands around the picture: heading, legend and settings."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from core.pictures import colours
from core.pictures.layout import Box
from core.pictures.selection import Selection
from core.pictures.svg import add, group, rectangle, triangle, write, write_lines
from core.pictures.text import flow, printable, wrap
from core.pictures.wording import (
    edges_at_errors,
    footer_parts,
    left_out_text,
    meaning_of_effect,
    metric_text,
    signed,
)
from core.stability import Standing, standing_of
from core.types import Circuit

MARGIN = 20.0
_TITLE_SIZE = 18.0
_TEXT_SIZE = 12.0


def draw_heading(
    root: ET.Element, circuit: Circuit, selection: Selection, title: str, width: float
) -> float:
    """Title, and what is left out; returns the height they take."""
    heading = group(root, "heading", printable(title))
    room = width - 2 * MARGIN
    y = MARGIN + _TITLE_SIZE
    for text in wrap(printable(title), room, _TITLE_SIZE, n_lines=2, bold=True):
        write(heading, text, MARGIN, y, _TITLE_SIZE, bold=True)
        y += 1.35 * _TITLE_SIZE
    left_out = wrap(left_out_text(circuit, selection), room, _TEXT_SIZE)
    y = write_lines(heading, left_out, MARGIN, y, _TEXT_SIZE, colours.PALE_INK)
    return y - 0.4 * _TEXT_SIZE


def draw_legend(
    root: ET.Element, circuit: Circuit, strongest: tuple[float, float], top: float, width: float
) -> float:
    """Shapes, colour scale, edge scale, and what effects mean; returns the y below them.

    `strongest` is max|effect| and max|weight| of the circuit, the ends of the two scales.
    """
    legend = group(root, "legend")
    add(legend, "line", x1=MARGIN, x2=width - MARGIN, y1=top, y2=top, stroke=colours.RULE)
    _shapes(legend, MARGIN, top + 16)
    _colour_scale(legend, MARGIN + 250, top + 16, strongest[0])
    _edge_scale(legend, MARGIN + 530, top + 16, strongest[1])
    edges = (
        "Edges run upwards; the weight of an edge: the part of the upstream node's effect that "
        "reaches the metric through the downstream node."
    )
    units = f"Metric, and unit of all effects: {metric_text(circuit)}."
    y = top + 92
    if any(standing_of(circuit)):
        _outlines(legend, MARGIN, y - 4)
        y += 28
    for sentence in (meaning_of_effect(circuit), edges, edges_at_errors(circuit) or "", units):
        lines = wrap(sentence, width - 2 * MARGIN, _TEXT_SIZE)
        y = write_lines(legend, lines, MARGIN, y, _TEXT_SIZE, colours.PALE_INK)
    return y


def _shapes(legend: ET.Element, x: float, y: float) -> None:
    style = {"fill": "#ffffff", "stroke": colours.INK}
    rectangle(legend, Box(x + 17, y + 8, 34, 16), rx=3, **style)
    write(legend, "feature of a dictionary", x + 44, y + 12, _TEXT_SIZE)
    triangle(legend, Box(x + 17, y + 32, 26, 18), **style)
    write(legend, "ε", x + 17, y + 39, 10.5, anchor="middle")
    write(legend, "error: what the dictionary", x + 44, y + 30, _TEXT_SIZE)
    write(legend, "leaves unexplained", x + 44, y + 44, _TEXT_SIZE)


_DASHES: dict[Standing, str] = {"core": "", "contingent": "6 3", "noise": "1.5 3"}
_STANDS: dict[Standing, tuple[str, float]] = {
    "core": ("core: in 9 of 10 draws of examples", 276),
    "contingent": ("contingent: in some", 200),
    "noise": ("noise: hardly above the threshold", 0),
}
"""What is said of each standing, and how far away the next begins."""


def outline(stands: Standing) -> dict[str, str]:
    """How the outline of a node that stands so is broken."""
    return {"stroke_dasharray": _DASHES[stands]} if _DASHES[stands] else {}


def _outlines(legend: ET.Element, x: float, y: float) -> None:
    """How the outlines of nodes say whether other examples would have them."""
    for stands, (text, width) in _STANDS.items():
        box = Box(x + 17, y, 34, 16)
        style = {"fill": "#ffffff", "stroke": colours.INK, **outline(stands)}
        rectangle(legend, box, rx=3, stroke_width=1.2, **style)
        write(legend, text, x + 44, y + 4, _TEXT_SIZE)
        x += width


def _colour_scale(legend: ET.Element, x: float, y: float, strongest: float) -> None:
    if strongest == 0:
        write(legend, "no effects", x, y + 12, _TEXT_SIZE)
        return
    n_steps, step, height = 20, 11.0, 14.0
    for i in range(-n_steps // 2, n_steps // 2 + 1):
        left = x + (i + n_steps // 2) * step
        depth = 2 * i / n_steps
        add(legend, "rect", x=left, y=y, width=step, height=height, fill=colours.fill(depth))
    end = x + (n_steps + 1) * step
    add(
        legend, "rect", x=x, y=y, width=end - x, height=height, fill="none", stroke=colours.PALE_INK
    )
    middle = (x + end) / 2
    for at, text, anchor in (
        (x, signed(-strongest), "start"),
        (middle, "0", "middle"),
        (end, signed(strongest), "end"),
    ):
        write(legend, text, at, y + 29, _TEXT_SIZE, anchor=anchor)
    write(legend, "effect of a node", middle, y + 50, _TEXT_SIZE, anchor="middle")


def _edge_scale(legend: ET.Element, x: float, y: float, strongest: float) -> None:
    if strongest == 0:
        write(legend, "no edges", x, y + 12, _TEXT_SIZE)
        return
    for i, share in enumerate((1.0, -1.0, 0.25, -0.25)):
        left, height = x + 120 * (i % 2), y + 7 + 19 * (i // 2)
        add(
            legend, "line", x1=left, x2=left + 34, y1=height, y2=height,
            stroke=colours.line(share), stroke_width=edge_width(share),
        )  # fmt: skip
        write(legend, signed(share * strongest), left + 42, height + 4, _TEXT_SIZE)
    write(legend, "weight of an edge", x, y + 50, _TEXT_SIZE)


def edge_width(share: float) -> float:
    """Pixels of an edge of ``weight / max|weight| = share``."""
    return 0.8 + 5.2 * abs(share)


def draw_footer(root: ET.Element, circuit: Circuit, top: float, width: float) -> float:
    """Settings and counts; returns the y below them."""
    footer = group(root, "footer")
    room = width - 2 * MARGIN
    lines = flow(footer_parts(circuit), room, _TEXT_SIZE, joiner="  ·  ")
    return write_lines(footer, lines, MARGIN, top, _TEXT_SIZE)
