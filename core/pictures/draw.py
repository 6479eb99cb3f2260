"""A circuit as a picture, in the style of the paper's figures: one SVG document, no other files.

Rectangles are features, triangles errors; blue raises the metric, red lowers it, deeper the
stronger; broken outlines are nodes that other examples might not have (`core.stability`). Rows are
submodules, the embedding at the bottom and the metric on top; columns are tokens where the circuit
keeps positions. `core.pictures.layout` decides what stands where, this draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from core.pictures import colours
from core.pictures.columns import TOKEN_SIZE
from core.pictures.layout import (
    LABEL_LEADING,
    LABEL_SIZE,
    NAME_SIZE,
    NUMBER_SIZE,
    ROW_SIZE,
    Box,
    Layout,
    arrange,
)
from core.pictures.legend import (
    MARGIN,
    draw_footer,
    draw_heading,
    draw_legend,
    edge_width,
    outline,
)
from core.pictures.ordering import METRIC
from core.pictures.routes import curve, route
from core.pictures.selection import Selection, plain_name, select
from core.pictures.svg import FONT, add, group, rectangle, triangle, write
from core.pictures.text import fit, printable, text_width
from core.pictures.wording import metric_text, metric_values, signed
from core.stability import Standing, standing_of
from core.types import Circuit, Edge, Node

_LEAST_WIDTH = 800.0
_WIDEST_METRIC = 360.0


def draw_circuit(
    circuit: Circuit,
    *,
    labels: Mapping[str, str] | None = None,
    title: str = "",
    max_nodes: int = 60,
    max_edges: int = 150,
    alone: bool = True,
) -> str:
    """The picture of a circuit, as the text of a standalone SVG document.

    Args:
        circuit: by position or summed over positions; may be empty.
        labels: what a person calls a feature, by its name without position, ``attn_3/1234``.
        title: written on top; "Sparse feature circuit" if empty.
        max_nodes, max_edges: of a larger circuit, only this many of the largest |effect| and, among
            them, of the largest |weight| are drawn, and the picture says how many are left out.
        alone: with heading, legend and settings; without them for a page that has its own.

    Returns:
        The document; the same for the same arguments. Each node is a ``<g class="node">`` with
        ``data-name``, ``data-effect`` and, where it is known, ``data-standing``, each edge a
        ``<path class="edge">`` with ``data-upstream``, ``data-downstream`` and ``data-weight``.

    Raises:
        InputError: a limit is out of range, or nodes, edges and positions do not fit together.
        MissingSubmodule: a node is at a submodule that cannot be.
        NotFinite: an effect or a weight is NaN or infinite.
    """
    labels = labels or {}
    title = title or "Sparse feature circuit"
    selection = select(circuit, max_nodes, max_edges)
    metric = metric_text(circuit), metric_values(circuit)
    metric_width = min(
        _WIDEST_METRIC, max(text_width(m, NAME_SIZE, bold=True) for m in metric) + 28
    )
    layout = arrange(
        circuit, selection, labels, metric_width=metric_width, least_width=_LEAST_WIDTH
    )
    width = layout.width + 2 * MARGIN
    strongest = (
        max((abs(node.effect) for node in circuit.nodes), default=0.0),
        max((abs(edge.weight) for edge in circuit.edges), default=0.0),
    )

    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
    root.set("font-family", FONT)
    add(root, "title").text = printable(title)
    add(root, "rect", width="100%", height="100%", fill="#ffffff")
    top = draw_heading(root, circuit, selection, title, width) if alone else 0.0
    graph = group(root, "graph", transform=f"translate({MARGIN:g},{top:.1f})")
    _draw_rows(graph, layout, selection)
    _draw_edges(graph, circuit, selection, layout, strongest[1])
    _draw_nodes(graph, circuit, selection, layout, labels, strongest[0])
    _draw_metric(graph, layout.boxes[METRIC], metric)
    height = top + layout.height + 16
    if alone:
        y = draw_legend(root, circuit, strongest, height, width)
        height = draw_footer(root, circuit, y + 6, width) + MARGIN - 8

    root.attrib.update(width=f"{width:.0f}", height=f"{height:.0f}")
    root.set("viewBox", f"0 0 {width:.0f} {height:.0f}")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _draw_rows(graph: ET.Element, layout: Layout, selection: Selection) -> None:
    """Bands with the submodules' names, and under them the tokens."""
    if not layout.rows:
        x, y = layout.boxes[METRIC].x, layout.boxes[METRIC].bottom + 32
        text = "No node passed the threshold."
        write(graph, text, x, y, ROW_SIZE, colour=colours.PALE_INK, anchor="middle")
    for i, row in enumerate(layout.rows):
        band = group(graph, "row", data_submodule=row.submodule)
        box = Box(layout.width / 2, (row.top + row.bottom) / 2, layout.width, row.bottom - row.top)
        rectangle(band, box, fill=colours.BAND if i % 2 == 0 else "#ffffff")
        write(band, row.submodule, 12.0, box.y + 4, ROW_SIZE, bold=True)
        n_left_out = selection.left_out.get(row.submodule, 0)
        if n_left_out:
            write(band, f"+{n_left_out} more", 12.0, box.y + 20, 11, colour=colours.PALE_INK)
    for column in layout.columns:
        heading = group(graph, "column", column.tooltip)
        y = layout.rows[0].bottom
        write(heading, column.text, column.x, y + 21, TOKEN_SIZE, anchor="middle", bold=True)
    for left, right in zip(layout.columns, layout.columns[1:], strict=False):
        x = (left.x + left.width / 2 + right.x - right.width / 2) / 2
        add(
            graph, "line", x1=x, x2=x, y1=layout.rows[-1].top, y2=layout.rows[0].bottom,
            stroke=colours.RULE, stroke_dasharray="2 4",
        )  # fmt: skip


def _draw_edges(
    graph: ET.Element, circuit: Circuit, selection: Selection, layout: Layout, strongest: float
) -> None:
    """All edges, the strongest on top."""
    edges = group(graph, "edges", fill="none")
    ways = route(layout, selection.edges)
    for edge, points in reversed(list(zip(selection.edges, ways, strict=True))):
        share = edge.weight / strongest if strongest else 0.0
        upstream, downstream = _end_names(circuit, edge)
        path = add(
            edges,
            "path",
            class_="edge",
            d=curve(points),
            stroke=colours.line(edge.weight),
            stroke_width=edge_width(share),
            stroke_opacity=f"{0.45 + 0.4 * abs(share):.2f}",
            data_upstream=upstream,
            data_downstream=downstream,
            data_weight=repr(edge.weight),
        )
        add(path, "title").text = f"{upstream} → {downstream}: {signed(edge.weight)}"


def _end_names(circuit: Circuit, edge: Edge) -> tuple[str, str]:
    """Names of an edge's two ends."""
    downstream = "metric" if edge.downstream is None else circuit.nodes[edge.downstream].name
    return circuit.nodes[edge.upstream].name, downstream


def _draw_nodes(
    graph: ET.Element,
    circuit: Circuit,
    selection: Selection,
    layout: Layout,
    labels: Mapping[str, str],
    strongest: float,
) -> None:
    """Every selected node, with its name, label and effect."""
    known = standing_of(circuit)
    for i in selection.nodes:
        node, box, stands = circuit.nodes[i], layout.boxes[i], known[i]
        depth = node.effect / strongest if strongest else 0.0
        label = printable(labels.get(plain_name(node), ""))
        tooltip = "\n".join(_told(node, label, stands))
        element = group(graph, "node", tooltip, data_name=node.name, data_effect=repr(node.effect))
        style = {"fill": colours.fill(depth), "stroke": colours.line(node.effect)}
        if stands is not None:
            element.set("data-standing", stands)
            style |= outline(stands)
        ink = colours.ink_on(depth)
        if node.is_error:
            triangle(element, box, stroke_linejoin="round", stroke_width=1.2, **style)
            write(element, "ε", box.x, box.top + 23, 13, colour=ink, anchor="middle", bold=True)
            effect = fit(signed(node.effect), 0.8 * box.width, 9.5)
            write(element, effect, box.x, box.bottom - 4, 9.5, colour=ink, anchor="middle")
        else:
            rectangle(element, box, rx=4, stroke_width=1.2, **style)
            _write_feature(
                element, box, plain_name(node), layout.labels.get(i, ()), node.effect, ink
            )


def _told(node: Node, label: str, stands: Standing | None) -> Iterator[str]:
    """What pointing at a node says of it."""
    yield node.name
    error = "" if node.stderr is None else f", standard error {node.stderr:.2g}"
    yield f"effect {signed(node.effect)}{error}" + ("" if stands is None else f": {stands}")
    if label:
        yield label


def _write_feature(
    element: ET.Element, box: Box, name: str, label: Sequence[str], effect: float, ink: str
) -> None:
    """Name, label and effect under each other in the middle of the box."""
    y = box.y + 4.0 - (LABEL_LEADING * (len(label) + 1) + 1) / 2
    write(element, name, box.x, y, NAME_SIZE, colour=ink, anchor="middle", bold=True)
    for line in label:
        y += LABEL_LEADING
        write(element, line, box.x, y, LABEL_SIZE, colour=ink, anchor="middle")
    y += LABEL_LEADING + 1
    write(element, signed(effect), box.x, y, NUMBER_SIZE, colour=ink, anchor="middle")


def _draw_metric(graph: ET.Element, box: Box, texts: tuple[str, str]) -> None:
    """The metric, which every path ends in."""
    element = group(graph, "metric", "\n".join(texts))
    rectangle(element, box, rx=box.height / 2, fill="#ffffff", stroke=colours.INK, stroke_width=1.6)
    name, values = texts
    name = fit(name, box.width - 24, NAME_SIZE, bold=True)
    write(element, name, box.x, box.y - 3, NAME_SIZE, anchor="middle", bold=True)
    write(element, values, box.x, box.y + 13, NAME_SIZE, anchor="middle")
