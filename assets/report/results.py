"""Sections on circuits: their pictures, how faithful, how stable, what they share and explain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from assets.evaluations.overlap import captions, square
from assets.evaluations.transfer import transfer_square
from assets.report import charts
from assets.report.blocks import (
    Charts,
    Drawing,
    Facts,
    HeatMap,
    Section,
    Table,
    Text,
    number,
    table,
)
from assets.report.found import WHAT, Found, each
from assets.tables.conversions import Frame
from assets.tables.places import (
    CIRCUIT_OVERLAP,
    CIRCUIT_TRANSFER,
    EVALUATION_SUMMARY,
    FEATURE_CIRCUITS,
    LABELS,
    RULE_LABELS,
    BehaviourSource,
    evaluation,
)

if TYPE_CHECKING:
    from core.types import Circuit

_DRAWN_NODES = 36
_LISTED_NODES = 10
_MOST_ROWS = 60
_MOST_SQUARE = 40


def in_short(found: Found) -> dict[str, str]:
    """The numbers at the head of the page."""
    facts = {}
    for source in each(found):
        rows = found.first[found.first["source"] == source]
        if len(rows):
            facts[f"circuits of {WHAT[source]}"] = number(len(rows))
            facts[f"nodes of {WHAT[source]}, median"] = number(int(rows["n_nodes"].median()))
            facts[f"faithfulness of {WHAT[source]}, median"] = number(rows["faithfulness"].median())
    return facts


# -- circuits -------------------------------------------------------------------------------------


def circuits(found: Found) -> Iterator[Section]:
    """The circuits drawn, and the others in rows."""
    for source in each(found):
        rows = found.first[found.first["source"] == source]
        of_name = {row["name"]: row for row in rows.to_dict("records")}
        drawn = [name for name in found.examined[source] if name in of_name]
        blocks: list[Any] = [Text(_introduction(source, len(drawn), len(rows)))]
        blocks += [
            block
            for name in drawn
            if (block := _drawing(found, source, name, of_name[name])) is not None
        ]
        rest = rows[~rows["name"].isin(drawn)]
        if len(rest):
            blocks.append(
                table(rest.head(_MOST_ROWS), _COLUMNS, "Circuits that are not drawn here")
            )
        if len(rest) > _MOST_ROWS:
            blocks.append(Text(f"{len(rest) - _MOST_ROWS} more are in evaluation_summary."))
        yield Section(f"circuits-{source}", f"Circuits of {WHAT[source]}", blocks)


_COLUMNS = {
    "name": "circuit",
    "label": "known behaviour",
    "size": "size",
    "n_nodes": "nodes",
    "n_edges": "edges",
    "faithfulness": "faithfulness",
    "completeness": "complement",
    "stability": "stability",
    "about": "example",
}


def _introduction(source: BehaviourSource, n_drawn: int, n: int) -> str:
    said = f"{n_drawn} of {n} circuits, the strongest {_DRAWN_NODES} nodes of each. "
    said += (
        "Rectangles are features and triangles what dictionaries leave unexplained; blue raises "
    )
    said += "the metric, red lowers it; rows are submodules, the embedding at the bottom. "
    said += "Outlines: whole for core nodes, dashed for contingent ones, dotted for noise. "
    if source == "tasks":
        return said + "Columns are tokens: each position of a node is a node of its own."
    return said + "Effects are summed over positions."


def _drawing(
    found: Found, source: BehaviourSource, name: str, row: dict[str, Any]
) -> Drawing | None:
    from core.pictures.draw import draw_circuit

    one = found.circuit(source, name)
    if one is None or not one.nodes:
        return None
    facts = {
        "nodes": number(row["n_nodes"]),
        "edges": number(row["n_edges"]),
        "faithfulness": number(row["faithfulness"]),
        "of its complement": number(row["completeness"]),
        "stability": number(row["stability"]),
        "examples": number(one.n_examples),
    }
    if isinstance(row["label"], str) and row["label"] != name:
        facts = {"known behaviour": row["label"], **facts}
    svg = draw_circuit(
        one,
        labels=found.labels,
        title=name,
        max_nodes=_DRAWN_NODES,
        max_edges=2 * _DRAWN_NODES,
        alone=False,
    )
    return Drawing(name, row["about"], facts, svg, _strongest(found, one), open=source == "tasks")


def _strongest(found: Found, one: Circuit) -> Table:
    """The nodes with the largest effects, and what their features are called."""
    from core.pictures.text import token_text
    from core.stability import standing_of

    known = dict(zip(one.nodes, standing_of(one), strict=True))
    nodes = sorted(one.nodes, key=lambda node: -abs(node.effect))[:_LISTED_NODES]
    head = ["node", "effect", "standard error", "stands", "label"]
    rows: list[list[Any]] = []
    for node in nodes:
        plain = node._replace(pos=None).name
        rows.append([plain, node.effect, node.stderr, known[node], found.labels.get(plain, "")])
        if one.tokens and node.pos is not None:
            rows[-1].insert(1, token_text(one.tokens[node.pos]))
    if rows and len(rows[0]) > len(head):
        head.insert(1, "at")
    return Table(head, rows)


# -- how faithful ---------------------------------------------------------------------------------


def faithfulness(found: Found) -> Iterator[Section]:
    """How much of each behaviour its circuit explains, at every size."""
    if not found.has(EVALUATION_SUMMARY):
        return
    blocks: list[Any] = [
        Text(
            "Faithfulness is the share of the model's behaviour, on examples kept back, that is "
            "left when every node outside of the circuit is ablated; that of its complement is "
            "what is left without the circuit. 1 is the whole model and 0 nothing but ablated "
            "nodes."
        ),
        _by_policy(found.summary),
    ]
    pictures: dict[str, str] = {}
    for source in each(found):
        curves = found.every(source, lambda name, s=source: evaluation(s, name))
        if curves is not None:
            pictures |= _curves(source, curves.dropna(subset="threshold"))
        values = found.first[found.first["source"] == source]["faithfulness"].dropna()
        if len(values) > 8:
            pictures[f"Faithfulness of circuits of {WHAT[source]}"] = charts.histogram(
                f"faithfulness-{source}", values.tolist(), "faithfulness", "circuits", -0.25, 1.25
            )
    yield Section("faithfulness", "Faithfulness", [*blocks, Charts(pictures)])


def _by_policy(summary: Frame) -> Table:
    rows = []
    keys = ["source", "start_layer", "error_nodes"]
    for (source, start_layer, error_nodes), of in summary.groupby(keys, sort=False):
        faithful = of["faithfulness"].dropna()
        quartiles = (
            faithful.quantile([0.25, 0.5, 0.75]).tolist() if len(faithful) else [math.nan] * 3
        )
        rows.append(
            [
                f"{source}, error nodes: {error_nodes}",
                int(start_layer),
                len(faithful),
                round(of["n_judged"].median()),
                *(float(value) for value in quartiles),
                float(of["completeness"].median()),
                float(of["at_100"].median()),
                float(of["area"].median()),
            ]
        )
    head = ["circuits", "from layer", "judged", "nodes", "lower quarter", "median"]
    head += ["upper quarter", "complement", "100 nodes", "area"]
    return Table(head, rows, "Medians over circuits; 100 nodes: faithfulness of the strongest 100")


def _curves(source: BehaviourSource, curves: Frame) -> dict[str, str]:
    """Faithfulness against the number of nodes, for each policy."""
    shown = {}
    for error_nodes, of in curves.groupby("error_nodes", sort=False):
        lines = {
            str(name): _by_size(rows["n_nodes"], rows["faithfulness"])
            for name, rows in of.groupby("name", sort=False)
        }
        faint = source == "clusters"
        if faint:
            middle = of.groupby("threshold")[["n_nodes", "faithfulness"]].median()
            lines["median"] = _by_size(middle["n_nodes"], middle["faithfulness"])
        caption = f"Faithfulness by size, {WHAT[source]}, error nodes: {error_nodes}"
        shown[caption] = charts.lines(
            f"curve-{source}-{error_nodes}", lines, "nodes", "faithfulness", one=True, faint=faint
        )
    return shown


def _by_size(n_nodes: Any, values: Any) -> charts.Line:
    pairs = sorted(zip(n_nodes.tolist(), (v for v in values.tolist()), strict=True))
    return [n for n, _ in pairs], [min(max(v, -0.5), 1.5) for _, v in pairs]


# -- what circuits share and explain of each other ------------------------------------------------


def overlap(found: Found) -> Iterator[Section]:
    """Features and edges that circuits share."""
    if not found.has(CIRCUIT_OVERLAP):
        return
    rows = found.read(CIRCUIT_OVERLAP)
    summed = rows[~rows["by_position"]]
    blocks: list[Any] = [
        Text(
            "Parts of circuits by position are summed over positions here. Weighted: the smaller "
            "shares of the summed |effect| over the larger ones, 1 where two circuits are the same."
        )
    ]
    for source in each(found):
        names = found.names[source][:_MOST_SQUARE]
        if len(names) < 2:
            continue
        called = captions(found.store, source, names)
        of = summed[(summed["source"] == source) & (summed["other_source"] == source)]
        for part, column, mirrored, said in (
            ("features", "weighted", "weighted", "features, weighted by |effect|"),
            (
                "features",
                "contained",
                "other_contained",
                "share of the row's features in the column",
            ),
            ("edges", "weighted", "weighted", "edges, weighted by |weight|"),
        ):
            if source == "clusters" and part == "edges":
                continue
            values = square(of[of["part"] == part], names, column, mirrored)
            caption = f"{WHAT[source]}: {said}"
            blocks.append(HeatMap(caption, called, called, values.tolist()))
    apart = rows[rows["by_position"] & (rows["part"] == "nodes")]
    shown = {"name": "circuit", "other": "and", "n": "nodes", "n_other": "nodes of it"}
    shown |= {"n_shared": "shared", "jaccard": "Jaccard", "weighted": "weighted"}
    if len(apart):
        blocks.append(table(apart, shown, "Position by position, for tasks of as many tokens"))
    alike = summed[summed["part"] == "nodes"].sort_values("weighted", ascending=False).head(15)
    yield Section(
        "overlap", "What circuits share", [*blocks, table(alike, shown, "The most alike circuits")]
    )


def transfer(found: Found) -> Iterator[Section]:
    """What circuits explain of each other's behaviour."""
    if not found.has(CIRCUIT_TRANSFER):
        return
    rows = found.read(CIRCUIT_TRANSFER)
    blocks: list[Any] = [
        Text(
            "Each row is a behaviour, each column the circuit of one: its faithfulness on the "
            "row's examples. Nodes of circuits by position are kept at every position."
        )
    ]
    for source in each(found):
        of = rows[(rows["source"] == source) & ~rows["by_position"]]
        names = [name for name in found.names[source] if name in set(of["name"])]
        if names:
            called = captions(found.store, source, names)
            values = transfer_square(of, names).tolist()
            blocks.append(HeatMap(f"{WHAT[source]}: faithfulness", called, called, values))
    if len(blocks) > 1:
        yield Section("transfer", "What circuits explain of each other", blocks)


# -- stability ------------------------------------------------------------------------------------


def stability(found: Found) -> Iterator[Section]:
    """Which nodes other examples would keep."""
    rows = found.first.dropna(subset="n_core")
    if not len(rows):
        return
    parts = ("n_core", "n_contingent", "n_noise")
    totals = rows.groupby("source")[[*parts, "n_nodes"]].sum()
    facts = {
        f"{part[2:]} nodes, {WHAT[str(source)]}": f"{of[part] / of['n_nodes']:.0%}"
        for source, of in totals.iterrows()
        for part in parts
    }
    pictures = {}
    for source in each(found):
        of = rows[rows["source"] == source].head(_MOST_ROWS)
        if len(of):
            pictures[f"Nodes of circuits of {WHAT[source]}"] = charts.stacked(
                f"standings-{source}",
                of["name"].tolist(),
                {part[2:]: of[part].tolist() for part in parts},
                "nodes",
            )
    halves = rows["stability"].dropna()
    if len(halves) > 8:
        pictures["Nodes that circuits from either half of the examples share"] = charts.histogram(
            "stability", halves.tolist(), "Jaccard index", "circuits", 0, 1
        )
    said = (
        "Core nodes would be kept in nine of ten draws of as many examples, if effects are normal; "
        "noise is within half a standard error of the threshold; contingent are the others. Halves "
        "of the examples share fewer nodes than two draws of all would."
    )
    yield Section("stability", "Stability", [Text(said), Facts(facts), Charts(pictures)])


# -- features -------------------------------------------------------------------------------------


def features(found: Found) -> Iterator[Section]:
    """Features that many circuits hold, with their labels."""
    if not found.has(FEATURE_CIRCUITS):
        return
    rows = found.read(FEATURE_CIRCUITS)
    rows["feature"] = rows["submodule"] + "/" + rows["feature"].astype(str)
    rows["size"] = rows["effect"].abs()
    held = rows.groupby("feature").agg(
        circuits=("name", "nunique"), effect=("size", "max"), where=("name", _few)
    )
    held = held.sort_values(["circuits", "effect"], ascending=False).head(30).reset_index()
    held["label"] = [found.labels.get(name, "") for name in held["feature"]]
    shown = {"feature": "feature", "circuits": "circuits", "effect": "largest |effect|"}
    blocks: list[Any] = [
        Facts(_label_facts(found, rows)),
        table(held, {**shown, "label": "label", "where": "held by"}, "Held by most circuits"),
    ]
    if found.has(RULE_LABELS):
        scores = found.read(RULE_LABELS).query("basis == 'features'")["score"].dropna().tolist()
        caption = "How well rules predict activation on text that they were not made from"
        drawn = charts.histogram("scores", scores, "correlation", "features", 0, 1)
        blocks.append(Charts({caption: drawn}))
    yield Section("features", "Features and their labels", blocks)


def _few(names: Any) -> str:
    every = list(dict.fromkeys(names))
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")


def _label_facts(found: Found, rows: Frame) -> dict[str, str]:
    facts = {"features in circuits": number(rows["feature"].nunique())}
    if found.has(LABELS):
        facts["labels"] = number(found.store.n_rows(LABELS))
    notes = found.notes(RULE_LABELS) if found.has(RULE_LABELS) else {}
    if "median score" in notes:
        facts["median score of rules"] = f"{notes['median score']:.2f}"
    return facts


RESULTS: Sequence[Any] = (faithfulness, overlap, transfer, stability, features)
