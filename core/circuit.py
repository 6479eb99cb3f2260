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
from core.errors import ShapeMismatch
from core.estimators import (
    Enough,
    Estimator,
    IntegratedGradients,
    check_estimator,
    check_gradients,
    check_threshold,
)
from core.inputs import Inputs
from core.lines import tolerated
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
        stderr: standard errors of those means over examples; NaN where there is one example.
        halves: the same means over every second example, and over the others.
        n_examples: number of examples.
        metric_clean, metric_patch: mean metric on either side; patch None for zero ablation.
        gaps: mean absolute completeness gap by submodule.
        unmet: share of submodules and examples whose gap is larger than the estimator tolerates;
            None where it tolerates any.
        estimator: what estimated the effects.
    """

    nodes: Mapping[str, Tensor]
    stderr: Mapping[str, Tensor]
    halves: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    n_examples: int
    metric_clean: float
    metric_patch: float | None
    gaps: Mapping[str, float]
    unmet: float | None
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

    def stability(self, threshold: float) -> float | None:
        """Jaccard index of the nodes above `threshold` in either half of the examples.

        What two draws half as large as this one have in common: a lower bound for draws of its
        own size. 1 where neither half has a node; None where there is one example.
        """
        if self.n_examples < 2:
            return None
        both = either = 0
        for name in self.nodes:
            one, other = (half[name].abs() > threshold for half in self.halves)
            both += int((one & other).sum())
            either += int((one | other).sum())
        return both / either if either else 1.0


@dataclass
class _Totals:
    """Sums of one submodule's effects over examples, ``([pos,] feature + 1)`` each.

    Attributes:
        effects, even: of all examples, and of every second.
        squares: of each example's effect squared, in float64.
    """

    effects: Tensor
    even: Tensor
    squares: Tensor

    def __iadd__(self, other: _Totals) -> _Totals:
        self.effects += other.effects
        self.even += other.even
        self.squares += other.squares
        return self


class _Sum:
    """Running sums of node effects over batches of examples."""

    def __init__(self, estimator: Estimator, by_position: bool) -> None:
        self.estimator, self.by_position = estimator, by_position
        self.nodes: dict[str, _Totals] = {}
        self.gaps: dict[str, float] = {}
        self.n_examples = self.n_unmet = 0
        self.metric_clean = 0.0
        self.metric_patch: float | None = None

    def add(self, effects: Effects) -> None:
        n_before, n = self.n_examples, len(effects.metric_clean)
        self.n_examples += n
        self.metric_clean += float(effects.metric_clean.double().sum())
        if effects.metric_patch is not None:
            patch = float(effects.metric_patch.double().sum())
            self.metric_patch = (self.metric_patch or 0.0) + patch
        even = torch.arange(n_before, n_before + n, device=effects.mask.device) % 2 == 0
        for name, at in effects.submodules.items():
            total = _totals(at, self.by_position, even)
            if name in self.nodes:
                self.nodes[name] += total
            else:
                self.nodes[name] = total
            gap = float(at.gap.double().abs().sum())
            self.gaps[name] = self.gaps.get(name, 0.0) + gap
            self.n_unmet += _n_unmet(at, self.estimator)

    def mean(self) -> Aggregated:
        n, n_even = self.n_examples, (self.n_examples + 1) // 2
        tolerates = _has_tolerance(self.estimator)
        even = {name: at.even / n_even for name, at in self.nodes.items()}
        odd = {name: (at.effects - at.even) / max(1, n - n_even) for name, at in self.nodes.items()}
        return Aggregated(
            nodes={name: at.effects / n for name, at in self.nodes.items()},
            stderr={
                name: standard_error(at.effects, at.squares, n) for name, at in self.nodes.items()
            },
            halves=(even, odd),
            n_examples=n,
            metric_clean=self.metric_clean / n,
            metric_patch=None if self.metric_patch is None else self.metric_patch / n,
            gaps={name: total / n for name, total in self.gaps.items()},
            unmet=self.n_unmet / (n * len(self.nodes)) if tolerates else None,
            estimator=self.estimator,
        )


def _has_tolerance(estimator: Estimator) -> bool:
    return isinstance(estimator, IntegratedGradients) and estimator.tolerance is not None


def _n_unmet(effects: SubmoduleEffects, estimator: Estimator) -> int:
    if not isinstance(estimator, IntegratedGradients) or estimator.tolerance is None:
        return 0
    return int((effects.gap.abs() > tolerated(estimator, effects.total)).sum())


def standard_error(total: Tensor, squares: Tensor, n: int) -> Tensor:
    """Standard error of means over `n` examples, from sums and sums of squares; NaN where n = 1."""
    if n < 2:
        return torch.full_like(squares, torch.nan)
    # What is left of rounding may be below zero.
    deviation = (squares - total.double().square() / n).clamp(min=0)
    return (deviation / (n * (n - 1))).sqrt()


def _totals(effects: SubmoduleEffects, by_position: bool, even: Tensor) -> _Totals:
    """Sums over examples (and positions), ``([pos,] feature + 1)``.

    Args:
        even: ``(batch,)`` bool, which examples are of the first half.
    """
    batch, n_pos, n_features = effects.features.shape
    width = n_features + 1
    features, error = effects.features, effects.error
    if not by_position:
        of_example = error.new_zeros(batch, width)
        add_at(of_example.view(-1), features.example * width + features.feature, features.value)
        of_example[:, -1] = error.sum(1)
        squares = of_example.double().square().sum(0)
        return _Totals(of_example.sum(0), of_example[even].sum(0), squares)
    # A node is at one place in an example: nothing is to be summed before it is squared.
    key = node_keys(features.feature, features.pos, n_features, by_position)
    first = even.to(error.dtype)

    def summed(value: Tensor, error: Tensor) -> Tensor:
        total = value.new_zeros(n_pos, width)
        add_at(total.view(-1), key, value)
        total[:, -1] += error.sum(0)
        return total

    return _Totals(
        summed(features.value, error),
        summed(features.value * first[features.example], error * first[:, None]),
        summed(features.value.double().square(), error.double().square()),
    )


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
    enough: Enough | None
    batch_size: int | None
    budget_bytes: int


def _check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    check_threshold("node", node_threshold)
    check_threshold("edge", edge_threshold)


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
        how: by_position, estimator, enough, batch_size, budget_bytes: see `attribute`.

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
    enough: Enough | None = None,
    batch_size: int | None = None,
    budget_bytes: int = 2 << 30,
) -> Attributed:
    """Effects of every node on the examples, for circuits at thresholds chosen afterwards.

    When the budget holds all examples they are kept for the edges; otherwise batches are computed
    again there, so that memory does not grow with the number of examples.

    Args:
        dictionaries: by submodule name.
        inputs: pairs, or single inputs (zero ablation).
        by_position: for templatic data: each position of a node is a node of its own.
        estimator: see `core.effects.node_effects`.
        enough: when to stop before the last example; None for never. Which examples are measured
            depends on their order alone.
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

    def compute(examples: Inputs, size: int) -> Iterator[Effects]:
        for batch in examples.batches(size):
            yield node_effects(
                model, dictionaries, batch, estimator=estimator, budget_bytes=budget_bytes
            )

    total, held = _Sum(estimator, by_position), []
    for part in inputs.batches(inputs.n_examples if enough is None else enough.round):
        for effects in compute(part, size):
            total.add(effects)
            held = [*held, effects] if total.n_examples <= size else []
        if enough is not None and _is_stable(total.mean(), enough):
            break
    used = inputs.select(torch.arange(total.n_examples, device=inputs.clean.device))
    batches = (lambda: iter(held)) if held else (lambda: compute(used, size))
    return Attributed(model, dictionaries, used, by_position, total.mean(), batches, budget_bytes)


def _is_stable(effects: Aggregated, enough: Enough) -> bool:
    found = effects.stability(enough.node_threshold)
    return found is not None and found >= enough.stability


@dataclass(frozen=True)
class Attributed:
    """Every node's effect on some inputs: circuits of any size follow without measuring again.

    Attributes:
        model, dictionaries, by_position, budget_bytes: as given to `attribute`.
        inputs: the examples that were measured.
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
            end = self.inputs.readout.end(self.model.n_layers).name
            strong += _into_metric(nodes, end, edge_threshold)
            _tell(progress, f"{len(strong)} edges")
        described = {
            "metric": self.inputs.metric.name,
            "readout": self.inputs.readout.name,
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
            stability=effects.stability(node_threshold),
            unmet=effects.unmet,
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
        stderr = aggregated.stderr[name].flatten()
        for key in keep[name].tolist():
            feature = key % width
            pos = key // width if by_position else None
            feature = ERROR if feature == width - 1 else feature
            nodes.append(Node(name, feature, pos, float(effects[key]), _known(stderr[key])))
    return nodes


def _known(stderr: Tensor) -> float | None:
    """A standard error as a number; None where it is NaN, as from one example."""
    return None if bool(stderr.isnan()) else float(stderr)


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
        squares = torch.zeros_like(weight, dtype=torch.float64)
        for part in parts:
            up = torch.searchsorted(keep[up_name], part.upstream)
            down = torch.searchsorted(keep[down_name], part.downstream)
            weight[down * n_up + up] += part.weight
            squares[down * n_up + up] += part.squares
        strong = ((weight / n_examples).abs() > threshold).nonzero().flatten()
        stderr = standard_error(weight[strong], squares[strong], n_examples)
        mean = weight[strong] / n_examples
        for i, at in enumerate(strong.tolist()):
            upstream, downstream = first[up_name] + at % n_up, first[down_name] + at // n_up
            edges.append(Edge(upstream, downstream, float(mean[i]), _known(stderr[i])))
    return edges


def _into_metric(nodes: list[Node], end: str, threshold: float) -> list[Edge]:
    """The nodes of what is read, the last stream for logits, reach the metric with their own
    effects."""
    return [
        Edge(i, None, node.effect, node.stderr)
        for i, node in enumerate(nodes)
        if node.submodule == end and abs(node.effect) > threshold
    ]
