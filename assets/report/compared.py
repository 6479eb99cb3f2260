"""Sections on what circuits are held against: baselines, their edges, exact effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from assets.report import charts
from assets.report.blocks import Charts, Section, Table, Text
from assets.report.found import WHAT, Found, each
from assets.tables.conversions import Frame
from assets.tables.places import approximation, baselines, edge_evaluation

_MOST_CHARTS = 6
"""Behaviours of one source that have a chart of their own."""


def held_against(found: Found) -> Iterator[Section]:
    """Circuits of every size against neurons, random nodes and the like (Figure 3)."""
    pictures: dict[str, str] = {}
    tables: list[Any] = []
    for source in each(found):
        points = found.every(source, lambda name, s=source: baselines(s, name))
        scores = found.every(source, lambda name, s=source: baselines(s, name, "baseline_scores"))
        if points is None or scores is None:
            continue
        points = points[points["start_layer"] == points["start_layer"].iloc[0]]
        for name, rows in list(points.groupby("name", sort=False))[:_MOST_CHARTS]:
            pictures[f"{name}: faithfulness by size"] = charts.lines(
                f"baselines-{source}-{name}", _variants(rows), "nodes", "faithfulness", one=True
            )
        tables.append(_scores(scores, f"Medians over {WHAT[source]}"))
    if tables:
        said = (
            "Circuits made of other things, of every size: the strongest neurons instead of "
            "features, features without error nodes, nodes drawn at random, directions drawn at "
            "random. A dash: no size reaches it."
        )
        yield Section("baselines", "Against baselines", [Text(said), Charts(pictures), *tables])


def _variants(rows: Frame) -> dict[str, charts.Line]:
    """Faithfulness by size of each kind of nodes; draws of one size as their mean."""
    of_curve = rows[rows["fraction"].isna() & ~rows["of_circuit"]]
    lines = {}
    for variant, of in of_curve.groupby("variant", sort=False):
        by_size = of.groupby("n_nodes")["faithfulness"].mean()
        lines[str(variant)] = by_size.index.tolist(), by_size.clip(-0.5, 1.5).tolist()
    return lines


def _scores(scores: Frame, caption: str) -> Table:
    columns = ["nodes_half", "nodes_eight_tenths", "nodes_nine_tenths", "area", "cpr", "cmd"]
    middle = scores.groupby(["start_layer", "variant"], sort=False)[columns].median()
    rows = [
        [variant, int(layer), *(float(of[column]) for column in columns)]
        for (layer, variant), of in middle.iterrows()
    ]
    head = ["nodes", "from layer", "for .5", "for .8", "for .9", "area", "CPR", "CMD"]
    return Table(head, rows, caption)


def edges(found: Found) -> Iterator[Section]:
    """What edges carry together, and how far single weights can be trusted."""
    pictures: dict[str, str] = {}
    tables: list[Any] = []
    for source in each(found):
        judged = found.every(source, lambda name, s=source: edge_evaluation(s, name))
        if judged is None:
            continue
        pictures[f"Faithfulness with a share of the edges, {WHAT[source]} (median)"] = charts.lines(
            f"edges-{source}", _shares(judged), "share of edges between nodes", "faithfulness",
            log=False, one=True,
        )  # fmt: skip
        tables.append(_whole(judged, f"Nodes, and their circuit's edges, of {WHAT[source]}"))
        single = found.every(
            source, lambda name, s=source: edge_evaluation(s, name, "interventions")
        )
        if single is not None:
            pictures[f"Single edges of {WHAT[source]} by intervention"] = charts.scatter(
                f"edge-{source}",
                _by_error(single),
                "weight",
                "along the direct path",
                diagonal=True,
            )
            tables.append(_kinds(single, f"Weights of edges of {WHAT[source]} by intervention"))
    if tables:
        said = (
            "Every node of the circuit is computed from its own input, in which only its kept "
            "edges are in place; with all of them, nodes are as faithful as without ablating edges."
        )
        yield Section("edges", "Edges", [Text(said), Charts(pictures), *tables])


def _shares(judged: Frame) -> dict[str, charts.Line]:
    lines = {}
    for kept, rows in judged.dropna(subset="share").groupby("kept", sort=False):
        middle = rows.groupby("share")["faithfulness"].median()
        lines[str(kept)] = middle.index.tolist(), middle.clip(-0.5, 1.5).tolist()
    return lines


def _whole(judged: Frame, caption: str) -> Table:
    """Faithfulness of nodes alone, and with the circuit's edges alone."""
    wide = judged[judged["share"].isna()].set_index(["name", "kept"])
    rows = [
        [
            name,
            float(wide.loc[(name, "nodes"), "faithfulness"]),
            int(wide.loc[(name, "circuit"), "n_edges"]),
            int(wide.loc[(name, "circuit"), "n_possible"]),
            float(wide.loc[(name, "circuit"), "faithfulness"]),
        ]
        for name in judged["name"].unique()
        if {(name, "nodes"), (name, "circuit")} <= set(wide.index)
    ]
    return Table(["circuit", "nodes", "edges", "possible", "with its edges"], rows, caption)


def _by_error(single: Frame) -> dict[str, charts.Line]:
    touches: Any = single["from_error"] | single["into_error"]
    return {
        label: (rows["weight"].tolist(), rows["path"].tolist())
        for label, rows in (("features", single[~touches]), ("at an error node", single[touches]))
        if len(rows)
    }


def _kinds(single: Frame, caption: str) -> Table:
    """Correlation and slope of weights with interventions, by kind of edge."""
    touches: Any = single["from_error"] | single["into_error"]
    single = single.assign(kind=single["kind"].where(~touches, "at an error node"))
    rows = []
    for kind, of in single.groupby("kind", sort=True):
        squares = float((of["weight"] ** 2).sum())
        rows.append(
            [
                str(kind),
                len(of),
                float(of["weight"].corr(of["path"], "spearman")),
                float((of["weight"] * of["path"]).sum() / squares) if squares else None,
                float(((of["weight"] * of["path"]) > 0).mean()),
            ]
        )
    head = ["kind", "edges", "Spearman", "slope", "same sign"]
    return Table(head, rows, caption)


def estimates(found: Found) -> Iterator[Section]:
    """How good estimates of effects are (Figure 8)."""
    blocks: list[Any] = []
    pictures: dict[str, str] = {}
    for source in each(found):
        fits = found.every(source, lambda name, s=source: approximation(s, name, "fits"))
        nodes = found.every(source, lambda name, s=source: approximation(s, name))
        if fits is None or nodes is None:
            continue
        pictures[f"Effects by either estimator, {WHAT[source]}"] = charts.scatter(
            f"estimates-{source}",
            {
                name: (nodes["exact"].tolist(), nodes[name].tolist())
                for name in ("attribution", "integrated")
            },
            "exact effect",
            "estimate",
            diagonal=True,
        )
        blocks.append(_fits(fits, f"Medians over {WHAT[source]}, by submodule"))
        ranked = found.every(source, lambda name, s=source: approximation(s, name, "rankings"))
        if ranked is not None:
            lines = {
                str(estimator): (of.index.tolist(), of.tolist())
                for estimator, of in (
                    (e, rows.groupby("n_nodes")["faithfulness"].median())
                    for e, rows in ranked.groupby("estimator", sort=False)
                )
            }
            pictures[f"Circuits chosen by either, {WHAT[source]} (median)"] = charts.lines(
                f"rankings-{source}", lines, "nodes", "faithfulness", one=True
            )
    if blocks:
        said = (
            "Nodes patched one at a time against what estimators say of them. Attribution answers "
            "what a node does alone, if the metric were linear in it; integrated gradients share "
            "out what all nodes of a submodule do together, so their slope need not be one."
        )
        yield Section("estimates", "How good effects are", [Text(said), Charts(pictures), *blocks])


def _fits(fits: Frame, caption: str) -> Table:
    columns = ["pearson", "spearman", "slope", "sign", "gap"]
    middle = fits.groupby(["submodule", "estimator"], sort=False)[columns].median()
    rows = [
        [submodule, estimator, *(float(of[column]) for column in columns)]
        for (submodule, estimator), of in middle.iterrows()
    ]
    return Table(["submodule", "estimator", *columns[:4], "completeness gap"], rows, caption)


COMPARED: Sequence[Any] = (held_against, edges, estimates)
