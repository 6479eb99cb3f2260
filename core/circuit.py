"""From node effects to a circuit: aggregate over examples (App. A.2), threshold, join by edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from core.dictionaries import Dictionary, check_widths
from core.edges import EdgeEffects, edge_effects, node_keys
from core.effects import Effects, node_effects
from core.errors import InputError, ShapeMismatch
from core.estimators import Estimator, IntegratedGradients, check_estimator, check_gradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.options import check_list
from core.sparse import add_at
from core.types import ERROR, Circuit, Edge, Node, SubmoduleEffects, causal_order

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Aggregated:
    """Effects of every node, aggregated over examples (and positions, unless by position).

    Attributes:
        nodes: by submodule, ``(feature + 1,)`` or ``(pos, feature + 1)``; the last column is the
            error. Means over examples, in the metric's units.
        n_examples: number of examples.
        metric_clean, metric_patch: mean metric on either side; patch None for zero ablation.
        gaps: mean absolute completeness gap by submodule.
        estimator: what estimated the effects.
    """

    nodes: Mapping[str, Tensor]
    n_examples: int
    metric_clean: float
    metric_patch: float | None
    gaps: Mapping[str, float]
    estimator: Estimator

    def keep(self, threshold: float) -> dict[str, Tensor]:
        """Node keys with an absolute effect above `threshold`, by submodule."""
        return {
            name: (values.flatten().abs() > threshold).nonzero().flatten()
            for name, values in self.nodes.items()
        }

    def n_kept(self, threshold: float) -> int:
        """How many nodes have an absolute effect above `threshold`."""
        return sum(len(keys) for keys in self.keep(threshold).values())


class _Sum:
    """Running sums of node effects over batches of examples."""

    def __init__(self, estimator: Estimator, by_position: bool) -> None:
        self.estimator, self.by_position = estimator, by_position
        self.nodes: dict[str, Tensor] = {}
        self.gaps: dict[str, float] = {}
        self.n_examples = 0
        self.metric_clean = 0.0
        self.metric_patch: float | None = None

    def add(self, effects: Effects) -> None:
        self.n_examples += len(effects.metric_clean)
        self.metric_clean += float(effects.metric_clean.double().sum())
        if effects.metric_patch is not None:
            patch = float(effects.metric_patch.double().sum())
            self.metric_patch = (self.metric_patch or 0.0) + patch
        for name, at in effects.submodules.items():
            total = _summed(at, self.by_position)
            self.nodes[name] = self.nodes[name] + total if name in self.nodes else total
            gap = float(at.gap.double().abs().sum())
            self.gaps[name] = self.gaps.get(name, 0.0) + gap

    def mean(self) -> Aggregated:
        n = self.n_examples
        return Aggregated(
            {name: total / n for name, total in self.nodes.items()},
            n,
            self.metric_clean / n,
            None if self.metric_patch is None else self.metric_patch / n,
            {name: total / n for name, total in self.gaps.items()},
            self.estimator,
        )


def _summed(effects: SubmoduleEffects, by_position: bool) -> Tensor:
    """Sum over examples (and positions), ``([pos,] feature + 1)``."""
    _, n_pos, n_features = effects.features.shape
    shape = (n_pos, n_features + 1) if by_position else (n_features + 1,)
    total = effects.error.new_zeros(shape)
    features = effects.features
    key = node_keys(features.feature, features.pos, n_features, by_position)
    add_at(total.view(-1), key, features.value)
    total[..., -1] += effects.error.sum(0) if by_position else effects.error.sum()
    return total


def examples_per_batch(
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], n_pos: int, budget_bytes: int
) -> int:
    """How many examples' effects are held at once within a budget, at least 1.

    Each token of each submodule keeps its output, error, change and gradient, and about a hundred
    active features with four numbers each.
    """
    itemsize = max(4, model.dtype.itemsize)
    n_submodules = len(model.submodules)
    recorded = n_submodules * model.d_model
    kept = sum(4 * dictionary.d + 4 * 100 for dictionary in dictionaries.values())
    widest = max(dictionary.n_features for dictionary in dictionaries.values())
    fixed = 512 * widest * itemsize
    each = n_pos * itemsize * (2 * recorded + kept)
    return max(1, (budget_bytes - min(fixed, budget_bytes // 2)) // each)


class How(TypedDict, total=False):
    """Options of `attribute`, as `find_circuit` passes them on."""

    by_position: bool
    estimator: Estimator
    batch_size: int | None
    budget_bytes: int


def _check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    for name, value in (("node", node_threshold), ("edge", edge_threshold)):
        if not value >= 0:
            raise InputError(
                f"{name} threshold {value} is below zero: it bounds an absolute effect, in the "
                "metric's units; use 0 to keep every node with any effect."
            )


def find_circuit(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    *,
    node_threshold: float,
    edge_threshold: float,
    edges: bool = True,
    settings: Mapping[str, object] | None = None,
    tokens: tuple[str, ...] | None = None,
    progress: Progress | None = None,
    **how: Unpack[How],
) -> Circuit:
    """The circuit of a behaviour: nodes and edges whose aggregated effect exceeds a threshold.

    Effects are summed over positions (or kept by position), averaged over all examples, and
    compared strictly. Edges count every place where both kept nodes act (App. A.2).

    Args:
        dictionaries: by submodule name.
        inputs: pairs, or single inputs (zero ablation).
        node_threshold, edge_threshold, edges, settings, tokens, progress: see
            `Attributed.circuit`.
        how: by_position, estimator, batch_size, budget_bytes: see `attribute`.

    Raises:
        InputError, ShapeMismatch, WidthMismatch, MissingSubmodule, NotFinite, OutOfBudget: see
            `attribute` and `Attributed.circuit`.
    """
    _check_thresholds(node_threshold, edge_threshold)
    if edges and "estimator" in how:
        check_estimator(how["estimator"])
        check_gradients(how["estimator"])
    return attribute(model, dictionaries, inputs, **how).circuit(
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        edges=edges,
        settings=settings,
        tokens=tokens,
        progress=progress,
    )


def attribute(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    *,
    by_position: bool = False,
    estimator: Estimator = IntegratedGradients(),
    batch_size: int | None = None,
    budget_bytes: int = 2 << 30,
) -> Attributed:
    """Effects of every node on all examples, for circuits at thresholds chosen afterwards.

    When one batch holds all examples it is kept for the edges; otherwise batches are computed
    again there, so that memory does not grow with the number of examples.

    Args:
        dictionaries: by submodule name.
        inputs: pairs, or single inputs (zero ablation).
        by_position: for templatic data: each position of a node is a node of its own.
        estimator: see `core.effects.node_effects`.
        batch_size: examples at a time; as many as fit the budget where None. The result does not
            depend on it.
        budget_bytes: memory for effects held and, again, for activations in flight.

    Raises:
        InputError: not an estimator.
        ShapeMismatch: positions kept apart but examples of different lengths.
        WidthMismatch, MissingSubmodule, NotFinite, OutOfBudget: see `node_effects`.
    """
    if by_position and not bool(inputs.mask.all()):
        raise ShapeMismatch(
            "nodes by position need examples of one length, and these are padded: group them by "
            "length, or sum over positions."
        )
    check_widths(dictionaries, model.width)
    n_pos = inputs.clean.shape[1]
    if batch_size is None and dictionaries:
        batch_size = examples_per_batch(model, dictionaries, n_pos, budget_bytes)
    size = batch_size or inputs.n_examples

    def compute() -> Iterator[Effects]:
        for batch in inputs.batches(size):
            yield node_effects(
                model, dictionaries, batch, estimator=estimator, budget_bytes=budget_bytes
            )

    total, latest = _Sum(estimator, by_position), []
    for effects in compute():
        total.add(effects)
        latest = [effects]
    batches = (lambda: iter(latest)) if inputs.n_examples <= size else compute
    return Attributed(model, dictionaries, inputs, by_position, total.mean(), batches, budget_bytes)


@dataclass(frozen=True)
class Attributed:
    """Every node's effect on some inputs: circuits of any size follow without measuring again.

    Attributes:
        model, dictionaries, inputs, by_position, budget_bytes: as given to `attribute`.
        effects: of every node, aggregated over the examples.
        batches: goes through the effects of each batch of examples.
    """

    model: LanguageModel
    dictionaries: Mapping[str, Dictionary]
    inputs: Inputs
    by_position: bool
    effects: Aggregated
    batches: Callable[[], Iterator[Effects]]
    budget_bytes: int

    def circuit(
        self,
        *,
        node_threshold: float,
        edge_threshold: float,
        edges: bool = True,
        settings: Mapping[str, object] | None = None,
        tokens: tuple[str, ...] | None = None,
        progress: Progress | None = None,
    ) -> Circuit:
        """Nodes and edges whose aggregated effect exceeds these thresholds.

        Args:
            node_threshold, edge_threshold: in the metric's units, not below zero.
            edges: find edges too.
            settings: plain values to keep with the circuit: model, dictionaries, data.
            tokens: column labels for circuits by position.
            progress: told how many nodes and edges there are.

        Raises:
            InputError: a threshold below zero, tokens that are no list of texts, or edges of exact
                effects, which have no gradients.
        """
        _check_thresholds(node_threshold, edge_threshold)
        if tokens is not None:
            check_list("tokens", tokens, str)
        effects = self.effects
        if edges:
            check_gradients(effects.estimator)
        keep = effects.keep(node_threshold)
        nodes = _nodes(effects, keep, self.dictionaries, self.by_position)
        _tell(progress, f"{len(nodes)} nodes from {effects.n_examples} examples")
        strong: list[Edge] = []
        if edges and nodes:
            n_examples = effects.n_examples
            strong = _edges(nodes, self._edge_effects(keep), keep, n_examples, edge_threshold)
            strong += _into_metric(nodes, self.model, edge_threshold)
            _tell(progress, f"{len(strong)} edges")
        described = {
            "metric": self.inputs.metric.name,
            "ablation": "zero" if self.inputs.patch is None else "patch",
            "estimator": effects.estimator.label,
            "node_threshold": node_threshold,
            "edge_threshold": edge_threshold,
            "by_position": self.by_position,
        }
        return Circuit(
            nodes=tuple(nodes),
            edges=tuple(strong),
            settings={**(settings or {}), **described},
            n_examples=effects.n_examples,
            metric_clean=effects.metric_clean,
            metric_patch=effects.metric_patch,
            gaps=effects.gaps,
            tokens=tokens,
        )

    def _edge_effects(self, keep: Mapping[str, Tensor]) -> dict[tuple[str, str], list[EdgeEffects]]:
        """Effects of all edges between kept nodes, by kind, batch by batch."""
        total: dict[tuple[str, str], list[EdgeEffects]] = {}
        for effects in self.batches():
            of_batch = edge_effects(
                self.model,
                self.dictionaries,
                effects,
                keep=keep,
                by_position=self.by_position,
                budget_bytes=self.budget_bytes,
            )
            for kind, edges in of_batch.items():
                total.setdefault(kind, []).append(edges)
        return total


def _tell(progress: Progress | None, message: str) -> None:
    if progress is not None:
        progress(message)


def _nodes(
    aggregated: Aggregated,
    keep: Mapping[str, Tensor],
    dictionaries: Mapping[str, Dictionary],
    by_position: bool,
) -> list[Node]:
    nodes = []
    for name in causal_order(keep):
        width = dictionaries[name].n_features + 1
        effects = aggregated.nodes[name].flatten()
        for key in keep[name].tolist():
            feature = key % width
            pos = key // width if by_position else None
            feature = ERROR if feature == width - 1 else feature
            nodes.append(Node(name, feature, pos, float(effects[key])))
    return nodes


def _edges(
    nodes: list[Node],
    total: Mapping[tuple[str, str], list[EdgeEffects]],
    keep: Mapping[str, Tensor],
    n_examples: int,
    threshold: float,
) -> list[Edge]:
    """Mean over examples, kept where it exceeds the threshold."""
    first: dict[str, int] = {}
    for i, node in enumerate(nodes):
        first.setdefault(node.submodule, i)
    edges = []
    for (up_name, down_name), parts in total.items():
        n_up = len(keep[up_name])
        if not n_up or not len(keep[down_name]):
            continue
        weight = keep[up_name].new_zeros(n_up * len(keep[down_name]), dtype=parts[0].weight.dtype)
        for part in parts:
            up = torch.searchsorted(keep[up_name], part.upstream)
            down = torch.searchsorted(keep[down_name], part.downstream)
            weight[down * n_up + up] += part.weight
        weight /= n_examples
        for at in (weight.abs() > threshold).nonzero().flatten().tolist():
            upstream, downstream = first[up_name] + at % n_up, first[down_name] + at // n_up
            edges.append(Edge(upstream, downstream, float(weight[at])))
    return edges


def _into_metric(nodes: list[Node], model: LanguageModel, threshold: float) -> list[Edge]:
    """The last stream's nodes reach the metric with their own effects."""
    last = f"resid_{model.n_layers - 1}"
    return [
        Edge(i, None, node.effect)
        for i, node in enumerate(nodes)
        if node.submodule == last and abs(node.effect) > threshold
    ]
