"""The picture of a circuit, read back from its own SVG."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from core.errors import InputError, NotFinite
from core.pictures import colours
from core.pictures.draw import draw_circuit
from core.pictures.ordering import arrange_rows, n_crossings, spread
from core.pictures.text import fit, text_width, wrap
from core.types import ERROR, Circuit, Edge, Node, Submodule

SVG = "{http://www.w3.org/2000/svg}"
TOKENS = ("The", " manager", " that", " the", " parents", " likes")


def make_circuit(
    n_layers: int, n_nodes: int, n_edges: int, tokens: tuple[str, ...] | None = None
) -> Circuit:
    """A circuit of nodes and upward edges drawn at random, always the same ones."""
    draw = random.Random(n_nodes)
    names = ["embed"]
    names += [f"{kind}_{i}" for i in range(n_layers) for kind in ("attn", "mlp", "resid")]
    places: set[tuple[str, int, int | None]] = set()
    while len(places) < n_nodes:
        feature = ERROR if draw.random() < 0.2 else draw.randrange(32768)
        pos = draw.randrange(len(tokens)) if tokens else None
        places.add((draw.choice(names), feature, pos))
    rank = {name: i for i, name in enumerate(names)}
    ordered = sorted(places, key=lambda place: (rank[place[0]], place[2] or 0, place[1]))
    nodes = tuple(Node(*place, draw.gauss(0, 1)) for place in ordered)
    pairs = [
        (i, j)
        for i, j in combinations(range(n_nodes), 2)
        if rank[nodes[i].submodule] < rank[nodes[j].submodule]
    ]
    edges = [Edge(i, j, draw.gauss(0, 0.3)) for i, j in sorted(draw.sample(pairs, n_edges))]
    edges += [
        Edge(i, None, node.effect)
        for i, node in enumerate(nodes)
        if node.submodule == names[-1] and n_edges
    ]
    settings = {"metric": "logit difference", "node_threshold": 0.1, "faithfulness": 0.87}
    return Circuit(nodes, tuple(edges), settings, 100, 3.2, -2.1, {}, tokens)


def make_labels(circuit: Circuit) -> dict[str, str]:
    texts = [
        "plural nouns",
        "subject of a relative clause, in long words",
        "日本語",
        "Unbreakably" * 4,
    ]
    return {
        node._replace(pos=None).name: texts[i % 4] for i, node in enumerate(circuit.nodes) if i % 3
    }


CIRCUITS = {
    "small": make_circuit(2, 12, 18),
    "summed": make_circuit(4, 40, 80),
    "crowded rows": make_circuit(1, 50, 60),
    "by position": make_circuit(4, 50, 90, TOKENS),
    "deep": make_circuit(6, 60, 120),
    "one node": make_circuit(3, 1, 0),
    "no edges": make_circuit(3, 14, 0),
    "empty": make_circuit(3, 0, 0),
}


# Whoever means to change the drawing looks at the pictures, then puts in what it is now.
FROZEN = {
    "small": "1ed27cd378518795",
    "summed": "8615bfa40a175de8",
    "crowded rows": "68b71220843835f6",
    "by position": "7686711af5a29394",
    "deep": "ea459b3225e4202c",
    "one node": "d8251b691b279b66",
    "no edges": "60a295bf9bfd7b93",
    "empty": "fa629da84aed37b7",
}


@pytest.mark.parametrize("name", list(CIRCUITS))
def test_the_drawing_is_the_same_to_the_byte(name: str) -> None:
    circuit = CIRCUITS[name]
    svg = draw_circuit(circuit, labels=make_labels(circuit), title=name)
    assert hashlib.sha256(svg.encode()).hexdigest()[:16] == FROZEN[name]


@pytest.fixture(params=[(name, labelled) for name in CIRCUITS for labelled in (False, True)])
def drawn(request: pytest.FixtureRequest) -> tuple[Circuit, ET.Element]:
    name, labelled = request.param
    circuit = CIRCUITS[name]
    labels = make_labels(circuit) if labelled else {}
    return circuit, ET.fromstring(draw_circuit(circuit, labels=labels, title=name))


@dataclass(frozen=True)
class Shape:
    """A drawn shape's extent and fill."""

    left: float
    top: float
    right: float
    bottom: float
    fill: str

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2


def groups(root: ET.Element, kind: str) -> list[ET.Element]:
    return [g for g in root.iter(f"{SVG}g") if g.get("class") == kind]


def number(element: ET.Element, key: str) -> float:
    return float(element.attrib[key])


def shape_of(group: ET.Element) -> Shape:
    rectangle, polygon = group.find(f"{SVG}rect"), group.find(f"{SVG}polygon")
    if rectangle is not None:
        left, top = number(rectangle, "x"), number(rectangle, "y")
        right, bottom = left + number(rectangle, "width"), top + number(rectangle, "height")
        return Shape(left, top, right, bottom, rectangle.attrib["fill"])
    assert polygon is not None
    points = [tuple(map(float, point.split(","))) for point in polygon.attrib["points"].split()]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Shape(min(xs), min(ys), max(xs), max(ys), polygon.attrib["fill"])


def shapes(root: ET.Element) -> dict[str, Shape]:
    return {g.attrib["data-name"]: shape_of(g) for g in groups(root, "node")}


def text_of(root: ET.Element, kind: str) -> str:
    return " ".join(t.text or "" for g in groups(root, kind) for t in g.iter(f"{SVG}text"))


def test_every_node_is_drawn_once_in_its_shape_and_the_colour_of_its_sign(drawn):
    circuit, root = drawn
    found = groups(root, "node")
    assert sorted(g.attrib["data-name"] for g in found) == sorted(n.name for n in circuit.nodes)
    by_name = {node.name: node for node in circuit.nodes}
    for group in found:
        node = by_name[group.attrib["data-name"]]
        assert (group.find(f"{SVG}polygon") is not None) == node.is_error
        assert (group.find(f"{SVG}rect") is not None) == (not node.is_error)
        fill = shape_of(group).fill
        red, blue = int(fill[1:3], 16), int(fill[5:7], 16)
        assert (blue > red) == (node.effect > 0)
        assert float(group.attrib["data-effect"]) == node.effect


def test_every_edge_is_drawn_once_between_its_ends(drawn):
    circuit, root = drawn
    found = [
        (e.attrib["data-upstream"], e.attrib["data-downstream"], number(e, "data-weight"))
        for e in root.iter(f"{SVG}path")
    ]
    names = [node.name for node in circuit.nodes]
    assert sorted(found) == sorted(
        (names[e.upstream], "metric" if e.downstream is None else names[e.downstream], e.weight)
        for e in circuit.edges
    )


def test_no_two_boxes_overlap_and_none_leaves_the_picture(drawn):
    _, root = drawn
    boxes = [*shapes(root).values(), shape_of(groups(root, "metric")[0])]
    for a, b in combinations(boxes, 2):
        beside = a.right < b.left or b.right < a.left
        assert beside or a.bottom < b.top or b.bottom < a.top
    width = number(root, "width")
    assert all(box.left >= 0 and box.right <= width for box in boxes)


def sampled(path: str) -> list[tuple[float, float]]:
    """Points along an SVG path of one M and absolute C commands."""
    numbers = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", path)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    curve = []
    for i in range(0, len(points) - 1, 3):
        for step in range(12):
            t = step / 12
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            pairs = list(zip(weights, points[i : i + 4], strict=True))
            curve.append((sum(w * p[0] for w, p in pairs), sum(w * p[1] for w, p in pairs)))
    return curve


def test_no_edge_runs_under_a_box_that_is_not_its_end(drawn):
    _, root = drawn
    boxes = {**shapes(root), "metric": shape_of(groups(root, "metric")[0])}
    for edge in root.iter(f"{SVG}path"):
        ends = (edge.attrib["data-upstream"], edge.attrib["data-downstream"])
        others = [box for name, box in boxes.items() if name not in ends]
        for x, y in sampled(edge.attrib["d"]):
            assert not any(b.left < x < b.right and b.top < y < b.bottom for b in others), ends


def test_rows_climb_in_causal_order_to_the_metric(drawn):
    circuit, root = drawn
    rows = {g.attrib["data-submodule"]: shape_of(g) for g in groups(root, "row")}
    assert set(rows) == {node.submodule for node in circuit.nodes}
    upwards = sorted(rows, key=lambda name: -rows[name].y)
    assert upwards == sorted(rows, key=lambda name: Submodule.parse(name).order)
    metric = shape_of(groups(root, "metric")[0])
    assert all(metric.bottom < row.top for row in rows.values())
    drawn_at = shapes(root)
    for node in circuit.nodes:
        row, box = rows[node.submodule], drawn_at[node.name]
        assert row.top <= box.top
        assert box.bottom <= row.bottom


def test_text_fits_its_box(drawn):
    _, root = drawn
    for group in groups(root, "node") + groups(root, "metric"):
        box = shape_of(group)
        for text in group.iter(f"{SVG}text"):
            bold = text.get("font-weight") == "bold"
            size = number(text, "font-size")
            assert text_width(text.text or "", size, bold=bold) <= box.right - box.left
            assert box.top < number(text, "y") - 0.7 * size
            assert number(text, "y") < box.bottom


def test_a_label_too_long_for_its_box_is_cut_and_whole_in_the_tooltip():
    label = "a long label that no box could ever hold in two lines"
    circuit = Circuit((Node("mlp_0", 7, None, 1.0),), (), {}, 1, 0.0, None)
    (node,) = groups(ET.fromstring(draw_circuit(circuit, labels={"mlp_0/7": label})), "node")
    name, first, second, effect = [text.text or "" for text in node.iter(f"{SVG}text")]
    assert (name, effect) == ("mlp_0/7", "+1")
    assert label.startswith(f"{first} {second.removesuffix('…')}")
    assert second.endswith("…")
    assert label in (node.findtext(f"{SVG}title") or "")


def test_each_token_has_a_column_and_nodes_stand_in_theirs():
    circuit = CIRCUITS["by position"]
    root = ET.fromstring(draw_circuit(circuit))
    headings = [t for g in groups(root, "column") for t in g.iter(f"{SVG}text")]
    assert [t.text for t in headings] == [token.strip() for token in TOKENS]
    centres = [number(t, "x") for t in headings]
    for node in circuit.nodes:
        x = shapes(root)[node.name].x
        assert min(range(len(centres)), key=lambda i: abs(centres[i] - x)) == node.pos


def test_tokens_without_a_node_share_a_column_when_there_are_many():
    tokens = tuple(f"t{i}" for i in range(40))
    nodes = (Node("embed", 3, 5, 1.0), Node("resid_0", 4, 39, -1.0))
    circuit = Circuit(nodes, (Edge(0, 1, 0.5),), {}, 1, 0.0, None, {}, tokens)
    root = ET.fromstring(draw_circuit(circuit))
    assert text_of(root, "column") == "… t5 … t39"


def test_legend_shows_shapes_scales_and_units(drawn):
    circuit, root = drawn
    (legend,) = groups(root, "legend")
    text = text_of(root, "legend")
    assert legend.find(f"{SVG}polygon") is not None
    assert "feature" in text
    assert "error" in text
    assert "logit difference" in text
    if circuit.nodes:
        strongest = max(abs(node.effect) for node in circuit.nodes)
        assert f"+{strongest:.3g}" in text
        assert f"-{strongest:.3g}" in text
    footer = text_of(root, "footer")
    assert f"{len(circuit.nodes)} node" in footer
    assert "node threshold 0.1" in footer
    assert "faithfulness 0.87" in footer


def test_outlines_say_which_nodes_other_examples_would_have():
    nodes = (
        Node("embed", 1, None, 1.0, 0.05),
        Node("embed", 2, None, -0.35, 0.1),
        Node("embed", ERROR, None, 0.9, 2.0),
        Node("resid_0", 4, None, 0.5),
    )
    settings = {"node_threshold": 0.25}
    root = ET.fromstring(draw_circuit(Circuit(nodes, (), settings, 16, 0.0, None)))
    stands = {g.get("data-name"): g.get("data-standing") for g in groups(root, "node")}
    dashes = {g.get("data-name"): g[1].get("stroke-dasharray") for g in groups(root, "node")}
    assert stands == {
        "embed/1": "core",
        "embed/2": "contingent",
        "embed/error": "noise",
        "resid_0/4": None,
    }
    assert dashes["embed/1"] is dashes["resid_0/4"] is None
    assert len({dashes["embed/2"], dashes["embed/error"], None}) == 3
    assert "noise: hardly above the threshold" in text_of(root, "legend")
    unknown = draw_circuit(Circuit(nodes, (), {}, 16, 0.0, None))
    assert "data-standing" not in unknown
    assert "noise" not in unknown


def test_zero_ablation_is_explained_as_such():
    circuit = replace(CIRCUITS["small"], metric_patch=None)
    text = text_of(ET.fromstring(draw_circuit(circuit)), "legend")
    assert "set to zero" in text
    assert "patch" not in text


def test_of_a_large_circuit_the_strongest_part_is_drawn_and_the_rest_counted():
    circuit = make_circuit(6, 150, 400)
    root = ET.fromstring(draw_circuit(circuit, max_nodes=60, max_edges=50))
    strongest = sorted(circuit.nodes, key=lambda node: -abs(node.effect))[:60]
    assert set(shapes(root)) == {node.name for node in strongest}
    edges = list(root.iter(f"{SVG}path"))
    assert len(edges) == 50
    heading = text_of(root, "heading")
    assert "strongest 60 of 150 nodes" in heading
    assert f"left out: 90 nodes and {len(circuit.edges) - 50} edges" in heading
    more = [int(n) for n in re.findall(r"\+(\d+) more", text_of(root, "row"))]
    rows = {node.submodule for node in strongest}
    assert sum(more) == sum(node.submodule in rows for node in circuit.nodes) - 60


def test_a_circuit_drawn_whole_announces_nothing_left_out():
    assert "left out" not in draw_circuit(CIRCUITS["summed"])


def test_drawing_twice_gives_the_same_bytes():
    for circuit in CIRCUITS.values():
        assert draw_circuit(circuit) == draw_circuit(circuit)


def test_the_document_stands_alone_whatever_the_texts_hold():
    circuit = replace(
        make_circuit(1, 3, 0, ("<a>&", "\x00\n", "\ud800\u202e")),
        settings={"metric": "a < b & 'c' \x07", "model": "m" * 400},
    )
    labels = {node._replace(pos=None).name: "]]><&\x01\ufffe" for node in circuit.nodes}
    svg = draw_circuit(circuit, labels=labels, title="<title> & \x0b")
    root = ET.fromstring(svg)
    assert len(groups(root, "node")) == 3
    assert re.findall(r"href|url\(|<script|<style|@import", svg) == []
    svg.encode("utf-8")


def test_an_empty_circuit_says_so():
    assert "No node passed the threshold" in draw_circuit(CIRCUITS["empty"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nodes": (Node("embed", 1, None, float("nan")),)}, NotFinite, "embed/1 is nan"),
        ({"edges": (Edge(2, 0, 0.1),)}, InputError, "against the forward pass"),
        ({"edges": (Edge(0, 9, 0.1),)}, InputError, "joins no nodes"),
        ({"edges": (Edge(-1, None, 0.1),)}, InputError, "joins no nodes"),
        ({"edges": (Edge(0, 2, float("inf")),)}, NotFinite, "not finite"),
        (
            {"nodes": (Node("embed", 1, None, 1.0), Node("embed", 1, 0, 1.0))},
            InputError,
            "not both",
        ),
        ({"nodes": (Node("embed", 1, 3, 1.0),), "tokens": ("a",)}, InputError, "at no token"),
    ],
)
def test_a_circuit_that_makes_no_sense_is_refused(change, error, message):
    nodes = tuple(Node(name, 1, None, 1.0) for name in ("embed", "attn_0", "resid_0"))
    circuit = Circuit(nodes, (), {}, 1, 0.0, None)
    with pytest.raises(error, match=message):
        draw_circuit(replace(circuit, **({"edges": ()} | change)))


def test_limits_that_would_draw_nothing_are_refused():
    with pytest.raises(InputError, match="max_nodes=0"):
        draw_circuit(CIRCUITS["small"], max_nodes=0)


def test_crossing_edges_are_uncrossed():
    edges = [Edge(i, 7 - i, 1.0) for i in range(4)]
    level: dict[int | None, int] = {i: i // 4 for i in range(8)} | {None: 2}
    crossed: dict[int | None, float] = {i: float(i % 4) for i in range(8)}
    assert n_crossings(edges, crossed, level) == 6
    widths = dict.fromkeys(range(8), 10.0)
    placed = arrange_rows([range(4), range(4, 8)], edges, widths, per_line=8, gap=5)
    assert n_crossings(edges, placed.x, level) == 0


def test_spreading_moves_boxes_apart_as_little_as_possible():
    assert spread([0.0, 0.0], [10.0, 10.0], 2.0) == [-6.0, 6.0]
    assert spread([0.0, 50.0, 51.0], [10.0, 10.0, 10.0], 0.0) == [0.0, 45.5, 55.5]
    draw = random.Random(0)
    desired = sorted(draw.gauss(0, 20) for _ in range(8))
    widths = [draw.uniform(5, 15) for _ in desired]
    best = spread(desired, widths, 3.0)

    def cost(centres: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(centres, desired, strict=True))

    def apart(centres: list[float]) -> bool:
        needs = [(a + b) / 2 + 3 - 1e-9 for a, b in pairwise(widths)]
        gaps = [b - a for a, b in pairwise(centres)]
        return all(gap >= need for gap, need in zip(gaps, needs, strict=True))

    assert apart(best)
    for _ in range(500):
        other = [x + draw.gauss(0, 0.5) for x in best]
        assert not apart(other) or cost(other) > cost(best)


@pytest.mark.parametrize("bold", [False, True])
@pytest.mark.parametrize(
    "text",
    ["resid_11/32767", "The quick brown fox jumps over the lazy dog", "+0.0312 -1.2e-05", "WMmw@%",
     "SPHINX OF BLACK QUARTZ, JUDGE MY VOW", "Drawn: 60 of 150 (left out: 90)", "→ε…·'fijlt\"[]"],
)  # fmt: skip
def test_estimated_widths_are_no_less_than_dejavu_sans_draws(text, bold):
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=12)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    assert 0.97 * width <= text_width(text, 12, bold=bold) <= 1.35 * width


def test_cut_text_keeps_as_much_as_fits():
    assert fit("abc", 100, 10) == "abc"
    cut = fit("abcdefghij", 40, 10)
    kept = cut.removesuffix("…")
    assert "abcdefghij".startswith(kept)
    assert text_width(cut, 10) <= 40
    assert text_width("abcdefghij"[: len(kept) + 1] + "…", 10) > 40
    assert wrap("one two three four", 60, 10, n_lines=2)[0] == "one two"


@pytest.mark.parametrize("depth", [x / 20 for x in range(-20, 21)])
def test_text_contrasts_with_its_fill_at_every_depth(depth):
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(colours.fill(depth)), luminance(colours.ink_on(depth))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5
