"""What of a circuit is shown when not all of it can be, and whether it can be shown at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import InputError, NotFinite
from core.types import Circuit, Edge, Node, Submodule


@dataclass(frozen=True)
class Selection:
    """The strongest part of a circuit.

    Attributes:
        nodes: indices into the circuit's nodes, in causal order.
        edges: edges between them and into the metric, strongest first.
        n_nodes_left_out, n_edges_left_out: how many of the circuit's are not among them.
        left_out: nodes left out, counted by submodule.
    """

    nodes: tuple[int, ...]
    edges: tuple[Edge, ...]
    n_nodes_left_out: int
    n_edges_left_out: int
    left_out: Mapping[str, int]


def plain_name(node: Node) -> str:
    """A node's name without its position, ``attn_3/1234``: the key of its label."""
    return node._replace(pos=None).name


def causal_rank(node: Node) -> int:
    """Rank of a node's submodule in the forward pass."""
    return Submodule.parse(node.submodule).order


def check_circuit(circuit: Circuit) -> None:
    """Refuse a circuit that no picture or table could tell the truth about.

    Raises:
        InputError: an edge's end is no node of the circuit, or does not come after its start; some
            nodes have a position and others not; a position has no token.
        MissingSubmodule: a node's submodule has a name that none can have.
        NotFinite: an effect or a weight is NaN or infinite.
    """
    ranks = [causal_rank(node) for node in circuit.nodes]
    by_position = circuit.by_position
    n_tokens = math.inf if circuit.tokens is None else len(circuit.tokens)
    for node in circuit.nodes:
        if not math.isfinite(node.effect):
            raise NotFinite(f"the effect of {node.name} is {node.effect}: find the circuit again.")
        if (node.pos is None) == by_position:
            raise InputError(
                f"{node.name} {'lacks' if node.pos is None else 'has'} a position, unlike other "
                "nodes: a circuit is by position or summed over positions, not both."
            )
        if node.pos is not None and not 0 <= node.pos < n_tokens:
            raise InputError(f"{node.name} is at no token: the circuit names {n_tokens} tokens.")
    for edge in circuit.edges:
        ends = [end for end in edge[:2] if end is not None]
        if any(not 0 <= end < len(ranks) for end in ends):
            raise InputError(f"{edge} joins no nodes: the circuit has {len(ranks)}, from 0.")
        if edge.downstream is not None and ranks[edge.upstream] >= ranks[edge.downstream]:
            raise InputError(
                f"the edge {circuit.nodes[edge.upstream].name} -> "
                f"{circuit.nodes[edge.downstream].name} runs against the forward pass: were "
                "upstream and downstream swapped?"
            )
        if not math.isfinite(edge.weight):
            raise NotFinite(f"the weight of {edge} is not finite: find the circuit again.")


def strongest_first(edges: list[Edge]) -> list[Edge]:
    """Edges by |weight|, the strongest first; equal ones as the circuit numbers its nodes."""
    return sorted(
        edges,
        key=lambda e: (-abs(e.weight), e.upstream, math.inf if e.downstream is None else e[1]),
    )


def select(circuit: Circuit, max_nodes: int, max_edges: int) -> Selection:
    """The `max_nodes` nodes of largest |effect| and, between them, the `max_edges` strongest edges.

    Raises:
        InputError: a limit is below what can be drawn; and as `check_circuit`.
        NotFinite: as `check_circuit`.
    """
    if max_nodes < 1 or max_edges < 0:
        raise InputError(
            f"max_nodes={max_nodes}, max_edges={max_edges}: at least one node and no fewer than "
            "zero edges can be shown."
        )
    check_circuit(circuit)
    nodes = circuit.nodes
    ranked = sorted(range(len(nodes)), key=lambda i: (-abs(nodes[i].effect), i))
    in_order = sorted(ranked[:max_nodes], key=lambda i: (causal_rank(nodes[i]), i))
    shown = set(in_order)
    between = [
        edge
        for edge in circuit.edges
        if edge.upstream in shown and (edge.downstream is None or edge.downstream in shown)
    ]
    edges = strongest_first(between)[:max_edges]
    return Selection(
        nodes=tuple(in_order),
        edges=tuple(edges),
        n_nodes_left_out=len(nodes) - len(in_order),
        n_edges_left_out=len(circuit.edges) - len(edges),
        left_out=Counter(nodes[i].submodule for i in ranked[max_nodes:]),
    )
