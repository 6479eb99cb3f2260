"""The few SVG elements a circuit needs, numbers rounded to a tenth of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from core.pictures.colours import INK
from core.pictures.layout import Box

FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


def number(value: float) -> str:
    """A coordinate with one decimal, or none if that is zero; never ``-0``."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def add(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    """A new element under `parent`; ``stroke_width=2`` writes ``stroke-width="2"``."""
    written = {
        key.rstrip("_").replace("_", "-"): number(v) if isinstance(v, float) else str(v)
        for key, v in attributes.items()
    }
    return ET.SubElement(parent, tag, written)


def group(parent: ET.Element, kind: str, tooltip: str = "", **attributes: object) -> ET.Element:
    """A group of class `kind`, with a tooltip."""
    element = add(parent, "g", class_=kind, **attributes)
    if tooltip:
        add(element, "title").text = tooltip
    return element


def write(
    parent: ET.Element,
    text: str,
    x: float,
    y: float,
    size: float,
    *,
    colour: str = INK,
    anchor: str = "start",
    bold: bool = False,
) -> ET.Element:
    """A line of text with its baseline at y."""
    element = add(parent, "text", x=x, y=y, font_size=size, fill=colour)
    if anchor != "start":
        element.set("text-anchor", anchor)
    if bold:
        element.set("font-weight", "bold")
    element.text = text
    return element


def write_lines(
    parent: ET.Element, lines: Sequence[str], x: float, y: float, size: float, colour: str = INK
) -> float:
    """Lines of text under each other from baseline y; returns the baseline after the last."""
    for text in lines:
        write(parent, text, x, y, size, colour=colour)
        y += 1.4 * size
    return y


def rectangle(parent: ET.Element, box: Box, **attributes: object) -> ET.Element:
    """A rectangle over `box`."""
    return add(
        parent, "rect", x=box.left, y=box.top, width=box.width, height=box.height, **attributes
    )


def triangle(parent: ET.Element, box: Box, **attributes: object) -> ET.Element:
    """A triangle that fills `box`, its tip up."""
    corners = ((box.left, box.bottom), (box.x, box.top), (box.right, box.bottom))
    points = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
    return add(parent, "polygon", points=points, **attributes)
