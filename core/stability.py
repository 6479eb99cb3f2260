"""How a node stands: would other examples of the same behaviour put it into the circuit again?

    inclusion   P(|e| > threshold) for e normal with the node's mean effect and standard error
    noise       |effect| < 2 standard errors: it cannot be told from none
    core        not noise, and inclusion of .9 or more
    contingent  the rest: there, but kept in some draws of examples and not in others

Inclusion alone would call nothing noise: a node is kept because its mean is above the threshold, so
its inclusion is above one half, and the larger the error, the further it is from either side of a
small threshold. A node that one example of many gives its whole effect has a mean of one standard
error, however large; one that four in sixteen give has two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from core.types import Circuit, Node

Standing = Literal["core", "contingent", "noise"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)

LEAST_ERRORS = 2.0
"""Standard errors that an effect must be away from zero to be no noise."""

CORE_INCLUSION = 0.9
"""Share of draws of as many other examples in which a core node is kept."""


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
    kept = inclusion(effect, stderr, threshold)
    if kept is None or stderr is None:
        return None
    if abs(effect) < LEAST_ERRORS * stderr:
        return "noise"
    return "core" if kept >= CORE_INCLUSION else "contingent"


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
