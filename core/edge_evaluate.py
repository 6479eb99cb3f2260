"""How much of a behaviour a circuit's edges carry: its nodes with some of the edges between them.

What a run with edges ablated is, `core.edge_runs` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.budget import plan_passes
from core.edge_runs import METRIC, NodesAt, Wiring, run_wired
from core.edges import edge_kinds
from core.errors import InputError
from core.evaluate import Evaluator
from core.options import check_list
from core.types import Circuit, Edge, Node, Submodule, causal_order

_Ends = tuple[int, int | None]


@dataclass(frozen=True)
class EdgeEvaluation:
    """How much of a behaviour a circuit's nodes explain through some of the edges between them.

    Attributes:
        n_edges: edges kept, of the `n_possible` between nodes that can be ablated; those into the
            metric count, those out of what is never ablated do not.
        n_nodes: nodes that can be ablated.
        m_full, m_empty: the mean metric of the whole model, and with all nodes ablated.
        m_edges: with the kept edges alone.
        faithfulness: (m_edges - m_empty) / (m_full - m_empty); NaN as in `Evaluation`.
    """

    n_edges: int
    n_possible: int
    n_nodes: int
    n_examples: int
    m_full: float
    m_empty: float
    m_edges: float
    faithfulness: float


@dataclass(frozen=True)
class _Possible:
    """The edges of one kind that could be.

    Attributes:
        up, down: ``(n,)``, indices into the nodes of the upstream and the downstream submodule; -1
            for the metric.
        numbers: the same as places in the circuit, None for the metric.
    """

    up: Tensor
    down: Tensor
    numbers: Sequence[_Ends]


class EdgeEvaluator:
    """Evaluates sets of edges between the nodes of one circuit.

    Args:
        evaluator: holds inputs, ablation values and start layer.
        circuit: its nodes are kept, all at positions or none.
        budget_bytes: memory for the activations of a pass through one submodule.

    Raises:
        InputError, MissingSubmodule, ShapeMismatch: a node is none of the evaluator's dictionaries
            or at no position of its inputs; or only some nodes have a position.
        OutOfBudget: not even one example fits the budget.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        circuit: Circuit | Sequence[Node],
        *,
        budget_bytes: int = 2 << 30,
    ) -> None:
        self.evaluator, self.model = evaluator, evaluator.model
        counted = evaluator.counted(circuit)
        nodes = circuit.nodes if isinstance(circuit, Circuit) else circuit
        if len({node.pos is None for node in counted}) > 1:
            raise InputError(
                "some nodes of the circuit are at a position and some at all: an edge would join "
                "two different things. Find the circuit by position, or summed over positions."
            )
        self.n_circuit, self.n_nodes = len(nodes), len(counted)
        of_submodule: dict[str, list[tuple[int, Node]]] = {n: [] for n in evaluator.dictionaries}
        for number, node in enumerate(nodes):
            if node.submodule in of_submodule:
                of_submodule[node.submodule].append((number, node))
        self.nodes = {
            name: NodesAt.of(of_submodule[name], self.model.device)
            for name in causal_order(of_submodule)
        }
        self._numbers = {n for at in self.nodes.values() for n in at.number.tolist()}
        self.n_pos = evaluator.inputs.clean.shape[1]
        self._possible = self._possible_edges()
        self._known = {ends for kind in self._possible.values() for ends in kind.numbers}
        self.n_possible = len(self._known)
        self.copies = plan_passes(self.model, self.n_pos, budget_bytes).rows
        self._metrics: dict[frozenset[_Ends], float] = {}

    def _possible_edges(self) -> dict[tuple[str, str], _Possible]:
        """By kind, in the order of what is downstream: every pair that a direct path could join."""
        kinds = sorted(
            edge_kinds(self.model, self.nodes), key=lambda kind: Submodule.parse(kind[1]).order
        )
        possible = {
            (up, down): _pairs(self.nodes[up], self.nodes[down], down) for up, down in kinds
        }
        readout = self.evaluator.inputs.readout
        if (end := readout.end(self.model.n_layers).name) in self.nodes:
            nodes = self.nodes[end]
            seen = torch.ones_like(nodes.number, dtype=torch.bool)
            if nodes.pos is not None and readout.pooling == "last":
                seen = nodes.pos == self.n_pos - 1  # all examples are of one length
            up = seen.nonzero().flatten()
            numbers = [(number, None) for number in nodes.number[up].tolist()]
            possible[end, METRIC] = _Possible(up, torch.full_like(up, -1), numbers)
        return possible

    def ranked(self, edges: Iterable[Edge]) -> list[Edge]:
        """Every edge that could be ablated, strongest first; weight 0 where it is not in `edges`.

        Edges of nodes that are never ablated are left out.

        Raises:
            InputError: an edge joins no nodes of the circuit, or two that no direct path joins.
        """
        given = {(edge.upstream, edge.downstream): edge for edge in self._usable(edges)}
        every = [
            given.get(ends, Edge(*ends, 0.0))
            for kind in self._possible.values()
            for ends in kind.numbers
        ]
        return sorted(every, key=lambda edge: -abs(edge.weight))

    def _usable(self, edges: Iterable[Edge]) -> Iterator[Edge]:
        """Those that could be ablated."""
        edges = list(edges)
        check_list("edges", edges, Edge)
        for edge in edges:
            ends = {edge.upstream} | ({edge.downstream} - {None})
            if not all(end is not None and 0 <= end < self.n_circuit for end in ends):
                raise InputError(
                    f"edge {edge.upstream} -> {edge.downstream} joins nodes that the circuit does "
                    f"not have: it has {self.n_circuit}, counted from 0. Are the edges another's?"
                )
            if (edge.upstream, edge.downstream) in self._known:
                yield edge
            elif edge.downstream is not None and ends <= self._numbers:
                raise InputError(
                    f"edge {edge.upstream} -> {edge.downstream} joins two nodes between which "
                    "there is no direct path: edges run from one submodule to the next that reads "
                    "it, and not back in position (core.edges)."
                )

    def evaluate(self, edges: Iterable[Edge]) -> EdgeEvaluation:
        """The circuit's nodes with only these edges between them, and into the metric.

        Raises:
            InputError: see `ranked`.
        """
        kept = frozenset((edge.upstream, edge.downstream) for edge in self._usable(edges))
        if kept not in self._metrics:
            wiring = self._wiring(kept)
            dictionaries, values = self.evaluator.dictionaries, self.evaluator.values
            metrics = [
                run_wired(runs, wiring, dictionaries, values, self.copies)
                for runs in self.evaluator.runs()
            ]
            self._metrics[kept] = float(torch.cat(metrics).double().mean())
        m_edges = self._metrics[kept]
        return EdgeEvaluation(
            n_edges=len(kept),
            n_possible=self.n_possible,
            n_nodes=self.n_nodes,
            n_examples=self.evaluator.inputs.n_examples,
            m_full=self.evaluator.m_full,
            m_empty=self.evaluator.m_empty,
            m_edges=m_edges,
            faithfulness=self.evaluator.share(m_edges),
        )

    def curve(self, edges: Iterable[Edge], thresholds: Iterable[float]) -> list[EdgeEvaluation]:
        """Evaluations of the edges whose absolute weight exceeds each threshold, in its order."""
        edges, thresholds = list(edges), list(thresholds)
        check_list("thresholds", thresholds)
        return [
            self.evaluate([edge for edge in edges if abs(edge.weight) > threshold])
            for threshold in thresholds
        ]

    def _wiring(self, kept: frozenset[_Ends]) -> Wiring:
        read = {
            name: torch.zeros_like(n.number, dtype=torch.bool) for name, n in self.nodes.items()
        }
        reached = self.evaluator.inputs.readout.reached_by(self.model.submodules, self.model)
        for up, down in edge_kinds(self.model, dict.fromkeys(reached)):
            if up in read and down not in read:  # it is read by what is never ablated
                read[up][:] = True
        seen = {}
        for (up, down), edges in reversed(self._possible.items()):
            chosen = torch.tensor([ends in kept for ends in edges.numbers], dtype=torch.bool)
            chosen = chosen.to(self.model.device).nonzero().flatten()
            if down != METRIC:
                chosen = chosen[read[down][edges.down[chosen]]]
            read[up][edges.up[chosen]] = True
            seen[up, down] = self._seen(up, down, edges.up[chosen], edges.down[chosen])
        return Wiring(self.nodes, seen, read)

    def _seen(self, up: str, down: str, upstream: Tensor, downstream: Tensor) -> Tensor:
        """1 where a node sees another; see `Wiring`."""
        nodes = self.nodes[up]
        column, width = nodes.column[upstream], len(nodes.features) + 1
        weights = self.evaluator.dictionaries[up].decoder
        if down == METRIC:
            seen = weights.new_zeros(width)
            seen[column] = 1
        elif down.startswith("attn") and nodes.pos is not None:
            seen = weights.new_zeros(len(self.nodes[down].number), self.n_pos, width)
            seen[downstream, nodes.pos[upstream], column] = 1
        else:
            seen = weights.new_zeros(len(self.nodes[down].number), width)
            seen[downstream, column] = 1
        return seen


def _pairs(up: NodesAt, down: NodesAt, downstream: str) -> _Possible:
    """Every pair of nodes of two submodules: at one token, into attention at earlier ones too."""
    joined = torch.ones(len(up.number), len(down.number), dtype=torch.bool, device=up.number.device)
    if up.pos is not None and down.pos is not None:
        before = up.pos[:, None] <= down.pos
        joined = before if downstream.startswith("attn") else up.pos[:, None] == down.pos
    at, of = joined.nonzero(as_tuple=True)
    numbers = list(zip(up.number[at].tolist(), down.number[of].tolist(), strict=True))
    return _Possible(at, of, numbers)
