"""How a node stands: would other examples of the same behaviour put it into the circuit again?

With margin = (|effect| - threshold) / standard error, of a node that is kept:

    core        margin of 1.28 or more: kept in nine of ten draws of as many examples, were its
                mean effect normal
    contingent  between: kept in some draws and not in others
    noise       margin below .5: its mean is about as likely below the threshold as above

Kept nodes were chosen for being above the threshold, so their means are too large on average, and
a margin says too much. Of the default's nodes from 16 examples, 16 others have 95% of core, 69% of
contingent and 49% of noise nodes (``python -m benchmarks.stability experiments/testbed.yaml``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from core.types import Circuit, Node

Standing = Literal["core", "contingent", "noise"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)

LEAST_MARGIN = 0.5
"""Below this margin a node is noise."""

CORE_MARGIN = 1.2816
"""From this margin on a node is core; nine tenths of a normal distribution are above -1.28."""


def inclusion(effect: float, stderr: float | None, threshold: float) -> float | None:
    """How likely a node or edge is kept, were the circuit found from as many other examples.

    P(|e| > threshold) for e normal with the mean and standard error that were measured; effects
    that few examples have are further from normal than this says. None without a standard error.
    """
    if stderr is None:
        return None
    if stderr == 0:
        return float(abs(effect) > threshold)
    above, below = ((threshold + sign * effect) / stderr for sign in (-1, 1))
    return (math.erfc(above / math.sqrt(2)) + math.erfc(below / math.sqrt(2))) / 2


def standing(effect: float, stderr: float | None, threshold: float) -> Standing | None:
    """How a node of a circuit stands; None without a standard error, as from one example.

    Args:
        effect, stderr: its mean effect and that mean's standard error, in the metric's units.
        threshold: that the circuit was found with, likewise.
    """
    if stderr is None:
        return None
    margin = (abs(effect) - threshold) / stderr if stderr else math.inf
    if margin < LEAST_MARGIN:
        return "noise"
    return "core" if margin >= CORE_MARGIN else "contingent"


def standings(nodes: Sequence[Node], settings: Mapping[str, object]) -> tuple[Standing | None, ...]:
    """How each node stands; None for all where `settings` name no ``node_threshold``.

    Args:
        settings: the circuit's, `Circuit.settings`.
    """
    threshold = settings.get("node_threshold")
    if not isinstance(threshold, int | float):
        return (None,) * len(nodes)
    return tuple(standing(node.effect, node.stderr, float(threshold)) for node in nodes)


def standing_of(circuit: Circuit) -> tuple[Standing | None, ...]:
    """How each node of a circuit stands."""
    return standings(circuit.nodes, circuit.settings)


def count_standings(known: Sequence[Standing | None]) -> dict[Standing, int | None]:
    """How many nodes are core, contingent and noise; None each where none is known."""
    counts = Counter(known)
    if counts[None] == len(known):
        return dict.fromkeys(STANDINGS)
    return {name: counts[name] for name in STANDINGS}
