"""A circuit in the formats of other viewers: DOT, GraphML, and the graph JSON of circuit-tracer.

Graph JSON is read by circuit-tracer's own page and by Neuronpedia. Both are made for attribution
graphs of transcoders; a circuit of ours is told to them so that nothing of it is dropped:

- rows are submodules in causal order, embed 0, attn_0 1, mlp_0 2 and so on; names stand in
  ``clerp``;
- every feature is a "cross layer transcoder", the only type with a detail pane;
- an error node has an id of its own making, since theirs collide with those of features;
- no ``node_threshold``, and ``influence`` of every node, or nodes vanish; it is cumulative:
  the share of |effect| in stronger nodes and the node itself;
- a graph of one token loses every node, so a circuit summed over positions gets a column for each
  layer, called by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from core.pictures import colours
from core.pictures.selection import plain_name
from core.pictures.text import printable
from core.pictures.wording import signed
from core.types import Circuit, Node, Submodule

if TYPE_CHECKING:
    from explorer.circuits import Card

FEATURE, ERROR = "cross layer transcoder", "mlp reconstruction error"
LOCAL = "./data/features"
"""``scan`` of graphs whose feature JSON lies beside them, as circuit-tracer's page serves it."""
VERSION = "1"


@cache
def row_of(submodule: str) -> int:
    """A submodule's row: embed 0, attn_0 1, mlp_0 2, resid_0 3, attn_1 4 and so on."""
    return Submodule.parse(submodule).order


def cantor(row: int, feature: int) -> int:
    """The one number that stands for a row and a feature: the pairing of Cantor."""
    return (row + feature) * (row + feature + 1) // 2 + feature


def columns_of(circuit: Circuit) -> list[str]:
    """The columns of a graph: tokens, or a column for each layer; two or more."""
    if circuit.by_position and circuit.tokens:
        columns = [printable(token) for token in circuit.tokens]
    else:
        last = max((_layer(node) for node in circuit.nodes), default=0)
        columns = ["embed", *(f"layer {layer}" for layer in range(last + 1))]
    return columns if len(columns) > 1 else [*columns, "end"]


def _layer(node: Node) -> int:
    return -(-row_of(node.submodule) // 3) - 1


def _column(circuit: Circuit, node: Node) -> int:
    return (node.pos or 0) if circuit.by_position and circuit.tokens else _layer(node) + 1


def node_id(circuit: Circuit, node: Node) -> str:
    """A node's id in a graph, unlike that of any other."""
    column = _column(circuit, node)
    if node.is_error:
        return f"err_{node.submodule}_{column}"
    return f"{row_of(node.submodule)}_{node.feature}_{column}"


def graph(
    circuit: Circuit,
    *,
    slug: str,
    model: str,
    about: str,
    labels: Mapping[str, str],
    scan: str = LOCAL,
) -> dict[str, Any]:
    """A circuit as graph JSON.

    Args:
        slug: what the graph is called.
        model: for people.
        about: an example, for people.
        labels: of features, by name.
        scan: where circuit-tracer's page finds the feature JSON, or what Neuronpedia calls the
            model.
    """
    columns = columns_of(circuit)
    total = sum(abs(node.effect) for node in circuit.nodes)
    ranked = sorted(circuit.nodes, key=lambda node: -abs(node.effect))
    influence, so_far = dict[Any, float](), 0.0
    for node in ranked:
        so_far += abs(node.effect)
        influence[node] = min(1.0, so_far / total) if total else 1.0
    metric = _metric_node(circuit, len(columns) - 1)
    ids = [node_id(circuit, node) for node in circuit.nodes]
    links = [
        {
            "source": ids[edge.upstream],
            "target": metric["node_id"] if edge.downstream is None else ids[edge.downstream],
            "weight": edge.weight,
        }
        for edge in circuit.edges
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": columns,
            "prompt": printable(about) or slug,
            "schema_version": 1,
            "info": {
                "description": f"Sparse feature circuit of {model}; activation: the node's effect "
                "on the metric.",
                "generator": {"name": "sparse-feature-circuits", "version": VERSION},
            },
            "generation_settings": {
                key: value
                for key, value in circuit.settings.items()
                if isinstance(value, str | int | float)
            },
        },
        "qParams": _NOTHING_CHOSEN,
        "nodes": [
            *(_node(circuit, node, labels, influence[node]) for node in circuit.nodes),
            metric,
        ],
        "links": links,
    }


_NOTHING_CHOSEN = {
    "pinnedIds": [],
    "supernodes": [],
    "linkType": "both",
    "clickedId": "",
    "sg_pos": "",
}


def _metric_node(circuit: Circuit, column: int) -> dict[str, Any]:
    """The metric as the node in which all paths end, above the others in the last column."""
    row = 1 + max((row_of(node.submodule) for node in circuit.nodes), default=0)
    return {
        "node_id": f"{row}_0_{column}",
        "feature": 0,
        "layer": str(row),
        "ctx_idx": column,
        "feature_type": "logit",
        "token_prob": 1.0,
        "is_target_logit": True,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"L_0-{column}",
        # Their page takes a probability out of this text, and fails where there is none.
        "clerp": f'Output "{_metric(circuit)}" (p=1.000)',
        "influence": None,
        "activation": None,
    }


def _node(
    circuit: Circuit, node: Node, labels: Mapping[str, str], influence: float
) -> dict[str, Any]:
    row, column, plain = (
        row_of(node.submodule),
        _column(circuit, node),
        plain_name(node),
    )
    layer = str(row)
    label = labels.get(plain, "")
    return {
        "node_id": node_id(circuit, node),
        "feature": -1 if node.is_error else cantor(row, node.feature),
        "layer": layer,
        "ctx_idx": column,
        "feature_type": ERROR if node.is_error else FEATURE,
        "token_prob": 0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{column if node.is_error else node.feature}-0",
        "clerp": printable(f"{plain}: {label}" if label else plain),
        "influence": influence,
        "activation": node.effect,
    }


def feature_json(card: Card, text: Callable[[int], str]) -> dict[str, Any]:
    """A feature's card as the JSON that both viewers read beside a graph.

    Args:
        card: empty where it has none yet.
        text: what a token looks like.
    """
    row = card.row or {}
    return {
        "index": cantor(row_of(card.submodule), card.feature),
        "transcoder_id": card.submodule,
        "examples_quantiles": [
            {
                "quantile_name": name,
                "examples": [
                    {
                        "tokens": [text(token) for token in one["tokens"]],
                        "tokens_acts_list": list(one["activations"]),
                        "train_token_ind": one["pos"] - one["start"],
                        "is_repeated_datapoint": False,
                    }
                    for one in rows
                ],
            }
            for name, rows in card.groups
        ],
        "top_logits": [text(token) for token in row.get("promoted", ())],
        "bottom_logits": [text(token) for token in row.get("suppressed", ())],
        "act_min": 0.0,
        "act_max": row.get("max_activation", 0.0),
        "quantile_values": list(row.get("histogram_edges", ())),
        "histogram": list(row.get("histogram_counts", ())),
        "activation_frequency": row.get("density", 0.0),
    }


# -- DOT and GraphML ------------------------------------------------------------------------------


def dot(circuit: Circuit, title: str, labels: Mapping[str, str]) -> str:
    """A circuit for Graphviz: features as boxes, errors as triangles, a rank for each submodule."""
    lines = [f"digraph {_quoted(title)} {{", "  rankdir=BT;", '  node [fontname="Helvetica"];']
    strongest = max((abs(node.effect) for node in circuit.nodes), default=0.0) or 1.0
    of_submodule: dict[str, list[int]] = {}
    for i, node in enumerate(circuit.nodes):
        of_submodule.setdefault(node.submodule, []).append(i)
        label = labels.get(plain_name(node), "")
        text = "\n".join(
            filter(None, (printable(node.name), printable(label), signed(node.effect)))
        )
        fill, ink = colours.fill(node.effect / strongest), colours.ink_on(node.effect / strongest)
        lines.append(
            f"  n{i} [shape={'triangle' if node.is_error else 'box'}, style=filled, "
            f"fillcolor={_quoted(fill)}, fontcolor={_quoted(ink)}, "
            f"label={_quoted(text)}];"
        )
    lines.append(f"  metric [shape=oval, label={_quoted(_metric(circuit))}];")
    for members in of_submodule.values():
        lines.append(f"  {{ rank=same; {' '.join(f'n{i};' for i in members)} }}")
    widest = max((abs(edge.weight) for edge in circuit.edges), default=0.0) or 1.0
    for edge in circuit.edges:
        end = "metric" if edge.downstream is None else f"n{edge.downstream}"
        width = 0.5 + 4.5 * abs(edge.weight) / widest
        lines.append(
            f"  n{edge.upstream} -> {end} [color={_quoted(colours.line(edge.weight))}, "
            f"penwidth={width:.2f}, tooltip={_quoted(signed(edge.weight))}];"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _metric(circuit: Circuit) -> str:
    return printable(str(circuit.settings.get("metric", "metric")))


_KEYS = {
    "submodule": ("node", "string"),
    "feature": ("node", "int"),
    "pos": ("node", "int"),
    "effect": ("node", "double"),
    "label": ("node", "string"),
    "weight": ("edge", "double"),
}


def graphml(circuit: Circuit, title: str, labels: Mapping[str, str]) -> str:
    """A circuit as GraphML, which NetworkX, Gephi, yEd and Cytoscape read."""
    root = ET.Element("graphml", {"xmlns": "http://graphml.graphdrawing.org/xmlns"})
    for name, (side, kind) in _KEYS.items():
        ET.SubElement(root, "key", {"id": name, "for": side, "attr.name": name, "attr.type": kind})
    body = ET.SubElement(root, "graph", {"id": printable(title), "edgedefault": "directed"})

    def add(parent: ET.Element, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if value is not None and value != "":
                ET.SubElement(parent, "data", {"key": name}).text = printable(str(value))

    for node in circuit.nodes:
        label = labels.get(plain_name(node), "")
        add(
            ET.SubElement(body, "node", {"id": node.name}),
            {**node._asdict(), "effect": repr(node.effect), "label": label},
        )
    add(ET.SubElement(body, "node", {"id": "metric"}), {"label": _metric(circuit)})
    for edge in circuit.edges:
        end = "metric" if edge.downstream is None else circuit.nodes[edge.downstream].name
        ends = {"source": circuit.nodes[edge.upstream].name, "target": end}
        add(ET.SubElement(body, "edge", ends), {"weight": repr(edge.weight)})
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def as_json(value: object) -> str:
    """JSON in ASCII, finite numbers only; on one line, which is written ten times as fast."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"
