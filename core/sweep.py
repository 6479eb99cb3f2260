"""Circuits of every size, and what of a curve says how small a faithful circuit can be.

The nodes that could be kept are ranked, by effect or at random, and the first so many are a
circuit. A curve is drawn over sizes in equal ratios; MIB (Mueller et al. 2025) cuts at fixed
fractions of all nodes and takes, by trapezoids over the fraction itself,

    CPR = integral of f      CMD = integral of |1 - f|

f being faithfulness. Which nodes could be kept is a choice: here all that are not zero at some
token of the examples judged, since a feature that is never active there says nothing, and those
with an effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.errors import InputError
from core.evaluate import Evaluation, Evaluator, area
from core.inputs import Inputs
from core.models import LanguageModel
from core.node_table import NodeTable
from core.options import ErrorNodes
from core.types import ERROR, Node, causal_order

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The fractions of nodes at which MIB cuts circuits."""


@torch.no_grad()
def active_nodes(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    *,
    by_position: bool = False,
    batch_size: int = 64,
) -> list[Node]:
    """Every feature and error that is not zero somewhere in the examples, on either side of pairs.

    Args:
        by_position: each position of a node is a node of its own.
        batch_size: examples that are run at once.

    Returns:
        Nodes without an effect (0), in causal order.
    """
    keys: dict[str, list[Tensor]] = {name: [] for name in causal_order(dictionaries)}
    for batch in inputs.to(model.device).batches(batch_size):
        for tokens in [batch.clean] if batch.patch is None else [batch.clean, batch.patch]:
            outputs = model.record(tokens, batch.mask).outputs
            for name, found in keys.items():
                found.append(_active(dictionaries[name], outputs[name], batch.mask))
    nodes = []
    for name, found in keys.items():
        width = dictionaries[name].n_features + 1
        every = torch.cat(found)
        for key in (every if by_position else every % width).unique().tolist():
            pos, feature = divmod(key, width)
            feature = ERROR if feature == width - 1 else feature
            nodes.append(Node(name, feature, pos if by_position else None, 0.0))
    return nodes


def _active(dictionary: Dictionary, x: Tensor, mask: Tensor) -> Tensor:
    """Keys of what is not zero, position * (feature + 1) + feature, the error last."""
    act, width = dictionary.split(x), dictionary.n_features + 1
    real = mask.flatten()[act.features.token]
    features = (act.features.pos * width + act.features.feature)[real]
    errors = (act.error.ne(0).any(-1) & mask).any(0).nonzero().flatten() * width + width - 1
    return torch.cat([features.unique(), errors])


def ranked(
    evaluator: Evaluator,
    nodes: Sequence[Node],
    active: Sequence[Node],
    error_nodes: ErrorNodes = "circuit",
) -> NodeTable:
    """All nodes that an evaluator can keep, the strongest first.

    Args:
        nodes: with their effects.
        active: nodes that could be kept too; those not among `nodes` come last, in this order.
        error_nodes: which of the errors can be kept, see `Evaluator.evaluate`.

    Raises:
        MissingSubmodule, InputError, ShapeMismatch: see `Evaluator.evaluate`.
    """
    strongest = sorted(nodes, key=lambda node: -abs(node.effect))
    every: dict[tuple[str, int, int | None], Node] = {}
    for node in (*strongest, *active):
        every.setdefault((node.submodule, node.feature, node.pos), node)
    return evaluator.counted(list(every.values()), error_nodes)


def shuffled(nodes: Sequence[Node], seed: int) -> list[Node]:
    """The nodes in an order drawn at random, for circuits that know nothing of effects."""
    generator = torch.Generator().manual_seed(seed)
    return [nodes[i] for i in torch.randperm(len(nodes), generator=generator).tolist()]


def sizes_up_to(most: int, n_sizes: int) -> list[int]:
    """At most `n_sizes` sizes from 1 to `most` in equal ratios, as whole numbers; none for 0.

    Raises:
        InputError: fewer than two sizes.
    """
    if n_sizes < 2:
        raise InputError(f"{n_sizes} sizes make no curve: take two or more.")
    if most < 1:
        return []
    return sorted({round(most ** (i / (n_sizes - 1))) for i in range(n_sizes)})


def size_at(fraction: float, n_possible: int) -> int:
    """How many of `n_possible` nodes a fraction of them is, to the nearest."""
    return round(fraction * n_possible)


class Point(NamedTuple):
    """A circuit of one size: how many nodes, the fraction that asked for so many, its evaluation.

    ``size`` is of the ranking's nodes; ``fraction`` is None for sizes that were named.
    """

    size: int
    fraction: float | None
    evaluation: Evaluation


def sweep(
    evaluator: Evaluator,
    ranking: Sequence[Node],
    sizes: Iterable[int],
    error_nodes: ErrorNodes = "circuit",
    *,
    fractions: Iterable[float] = MIB_FRACTIONS,
) -> list[Point]:
    """Evaluations of the first nodes of a ranking: so many of them, and such fractions of them.

    Args:
        ranking: from `ranked` or `shuffled`.
        sizes: numbers of nodes.
        error_nodes: see `Evaluator.evaluate`.
        fractions: of the ranking; exact cuts by rank, whose complements are not run.

    Raises:
        MissingSubmodule, InputError, ShapeMismatch: see `Evaluator.evaluate`.
    """
    ranking = NodeTable.of(ranking)
    cuts = [*((n, None) for n in sizes), *((size_at(f, len(ranking)), f) for f in fractions)]
    return [
        Point(n, f, evaluator.evaluate(ranking[:n], error_nodes, complement=f is None))
        for n, f in cuts
    ]


def cmd(fractions: Sequence[float], faithfulness: Sequence[float]) -> float:
    """Area between the curve and faithfulness 1 (CMD of MIB); 0 where all circuits have it.

    CPR is `core.evaluate.area` of the same points.

    Raises:
        InputError: see `core.evaluate.area`.
    """
    return area(fractions, [abs(1 - value) for value in faithfulness])


def nodes_for(sizes: Sequence[int], faithfulness: Sequence[float], share: float) -> float | None:
    """How many nodes first reach a share of the behaviour; None if none of the sizes does.

    Between the last size below and the first that reaches it, faithfulness is taken to rise in
    a straight line over the logarithm of the size; no node at all has faithfulness 0.

    Args:
        sizes: numbers of nodes, in any order; 0 says nothing.
        faithfulness: at each of them.
        share: such as 0.5.

    Raises:
        InputError: not one value for each size.
    """
    points = _points(sizes, faithfulness)
    before: tuple[int, float] | None = None
    for n, f in points:
        if f >= share:
            if before is None:
                return float(n)
            part = (share - before[1]) / (f - before[1])
            return math.exp(math.log(before[0]) + part * math.log(n / before[0]))
        before = n, f
    return None


def faithfulness_of(
    n_nodes: int, sizes: Sequence[int], faithfulness: Sequence[float]
) -> float | None:
    """Faithfulness of a circuit of so many nodes; None if no two sizes enclose that number.

    Between two sizes it is taken to change in a straight line over the logarithm of the size.

    Args:
        n_nodes: such as 100.
        sizes: numbers of nodes, in any order; 0 says nothing.
        faithfulness: at each of them.

    Raises:
        InputError: not one value for each size.
    """
    points = _points(sizes, faithfulness)
    if not points or not points[0][0] <= n_nodes <= points[-1][0]:
        return None
    known, values = zip(*points, strict=True)
    return float(np.interp(math.log(n_nodes), np.log(known), values))


def _points(sizes: Sequence[int], faithfulness: Sequence[float]) -> list[tuple[int, float]]:
    """Of every size but 0, sorted by it."""
    if len(sizes) != len(faithfulness):
        raise InputError(f"{len(sizes)} sizes and {len(faithfulness)} values of faithfulness.")
    return sorted((n, f) for n, f in zip(sizes, faithfulness, strict=True) if n > 0)
