"""Circuits as pictures, alike features as one node, and figures as curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from core.pictures.selection import plain_name
from core.types import Circuit, Edge

if TYPE_CHECKING:
    from explorer.reader import Reader

ALIKE = 0.7
"""Cosine, of profiles or of decoder directions, from which two features are suggested as alike."""
_LEAST_SHARED = 3
_SUGGESTED_FROM = 60


# -- groups ---------------------------------------------------------------------------------------


class Suggestion(NamedTuple):
    """Features of one submodule that seem to do the same.

    Attributes:
        members: their names.
        profile: least cosine between their effects over all circuits; NaN where too few hold both.
        decoder: least cosine between their decoder directions; NaN where not in the store.
    """

    members: tuple[str, ...]
    profile: float
    decoder: float


def merged(
    circuit: Circuit, groups: Iterable[Sequence[str]]
) -> tuple[Circuit, dict[str, tuple[str, ...]]]:
    """A circuit with the members of each group as one node.

    Members of one submodule and position become the strongest of them, with the sum of their
    effects; edges between the same two nodes then add up. Effects are first-order, so the sum is
    the estimate for all members together; its standard error is not known.

    Returns:
        The circuit, and by the name of each node that stands for others, all their names.
    """
    group_of = {name: tuple(group) for group in groups for name in group}
    nodes, first, members = circuit.nodes, dict[object, int](), dict[object, list[int]]()
    for i, node in enumerate(nodes):
        plain = plain_name(node)
        place = (node.submodule, group_of.get(plain, plain), node.pos)
        members.setdefault(place, []).append(i)
    standing: dict[str, tuple[str, ...]] = {}
    number: dict[int, int] = {}
    kept = []
    for place, of_place in members.items():
        first[place] = len(kept)
        strongest = max(of_place, key=lambda i: abs(nodes[i].effect))
        effect = math.fsum(nodes[i].effect for i in of_place)
        stderr = nodes[strongest].stderr if len(of_place) == 1 else None
        kept.append(nodes[strongest]._replace(effect=effect, stderr=stderr))
        number |= dict.fromkeys(of_place, first[place])
        if len(of_place) > 1:
            plain = plain_name(nodes[strongest])
            standing[plain] = tuple(plain_name(nodes[i]) for i in of_place)
    weights: dict[tuple[int, int | None], float] = {}
    for edge in circuit.edges:
        ends = number[edge.upstream], None if edge.downstream is None else number[edge.downstream]
        weights[ends] = weights.get(ends, 0.0) + edge.weight
    edges = tuple(Edge(*ends, weight) for ends, weight in weights.items())
    return dataclasses.replace(circuit, nodes=tuple(kept), edges=edges), standing


def suggested(
    reader: Reader, circuit: Circuit, groups: Iterable[Sequence[str]]
) -> list[Suggestion]:
    """Pairs of the circuit's strongest features that seem alike, the most alike first.

    Alike are those of one submodule whose effects over all circuits that hold either, or whose
    decoder directions, have a cosine of `ALIKE` or more.
    """
    effects: dict[str, float] = {}
    for node in circuit.nodes:
        if not node.is_error:
            name = plain_name(node)
            effects[name] = effects.get(name, 0.0) + node.effect
    strongest = sorted(effects, key=lambda name: -abs(effects[name]))[:_SUGGESTED_FROM]
    grouped = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    of_submodule: dict[str, list[str]] = {}
    for name in strongest:
        of_submodule.setdefault(name.partition("/")[0], []).append(name)
    profiles = _profiles(reader, strongest)
    found = []
    for submodule, names in of_submodule.items():
        decoder = reader.decoder(submodule) if len(names) > 1 else None
        for a, b in combinations(names, 2):
            profile = _cosine(profiles[a], profiles[b])
            direction = math.nan
            if decoder is not None:
                rows = [int(name.partition("/")[2]) for name in (a, b)]
                direction = float(decoder[rows[0]] @ decoder[rows[1]])
            if max(_or_zero(profile), _or_zero(direction)) >= ALIKE and {a, b} not in grouped:
                found.append(Suggestion((a, b), profile, direction))
    return sorted(found, key=lambda s: -max(_or_zero(s.profile), _or_zero(s.decoder)))


def _profiles(reader: Reader, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Effects of these features in every circuit that holds them, as shares of the circuit."""
    held = {
        f"{source}/{circuit}": one
        for source in reader.names
        for circuit, one in reader.held(source).items()
        if one.total
    }
    return {
        name: {
            place: effect / one.total
            for place, one in held.items()
            if (effect := one.by_feature.get(name)) is not None
        }
        for name in names
    }


def _cosine(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Cosine of two profiles; NaN where fewer than three circuits hold both."""
    shared = a.keys() & b.keys()
    if len(shared) < _LEAST_SHARED:
        return math.nan
    length = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
    return sum(a[key] * b[key] for key in shared) / length if length else math.nan


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


# -- thresholds -----------------------------------------------------------------------------------


class Slider(NamedTuple):
    """The steps of a slider over thresholds, and how many values are larger at each."""

    thresholds: Sequence[float]
    counts: Sequence[int]


def slider(values: Iterable[float], n_steps: int = 120) -> Slider:
    """Steps from just below the least |value| to the largest, neighbours in equal ratios."""
    sizes = np.sort(np.abs(np.fromiter(values, float)))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return Slider([0.0], [0])
    # The last step must leave the largest: thresholds are compared by "larger than".
    steps = np.geomspace(sizes[0] * 0.999, sizes[-1] * 0.999, n_steps)
    counts = len(sizes) - np.searchsorted(sizes, steps, side="right")
    return Slider([float(f"{step:.4g}") for step in steps], counts.tolist())


def interpolated(
    curve: Sequence[tuple[float, int, float]], thresholds: Sequence[float]
) -> list[float | None]:
    """Faithfulness at each threshold, linear in its logarithm between those it was measured at;
    None outside of them."""
    if not curve:
        return [None for _ in thresholds]
    at = np.log([threshold for threshold, _, _ in curve])
    faithfulness = [value for _, _, value in curve]
    found = np.interp(np.log(np.maximum(thresholds, 1e-300)), at, faithfulness, np.nan, np.nan)
    return [None if math.isnan(value) else round(float(value), 4) for value in found]


# -- the faithfulness curve -----------------------------------------------------------------------


def curves_of(
    rows: Iterable[Mapping[str, Any]], own_threshold: float | None = None
) -> dict[str, list[tuple[float, int, float]]]:
    """Points (threshold, nodes, faithfulness) of each policy for error nodes, by threshold.

    Args:
        rows: how a circuit was judged.
        own_threshold: what the circuit itself was found with, where that is above zero: it is a
            point of the curve too.
    """
    lines: dict[str, list[tuple[float, int, float]]] = {}
    for row in rows:
        threshold = own_threshold if row["threshold"] is None else row["threshold"]
        if threshold and math.isfinite(row["faithfulness"]):
            point = threshold, row["n_nodes"], row["faithfulness"]
            lines.setdefault(row["error_nodes"], []).append(point)
    return {policy: sorted(points) for policy, points in lines.items()}


class Plot(NamedTuple):
    """A plot of faithfulness against nodes, ready to be written as SVG.

    Attributes:
        lines: SVG points of each policy.
        x_ticks, y_ticks: places and what stands at them.
        width, height, left, bottom: of the plot and its area.
        low, high, most: ends of the axes: faithfulness, and log10(1 + nodes).
    """

    lines: Mapping[str, str]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    width: float
    height: float
    left: float
    bottom: float
    low: float
    high: float
    most: float


def plot(lines: Mapping[str, Sequence[tuple[float, int, float]]]) -> Plot | None:
    """Faithfulness against the number of nodes, logarithmic; None where there is no curve.

    What lies far outside [0, 1] is drawn at the edge.
    """
    every = [point for points in lines.values() for point in points]
    if not every:
        return None
    width, height, left, bottom, top = 340.0, 200.0, 34.0, 170.0, 10.0
    low = max(-0.5, min(0.0, *(f for _, _, f in every), 0.0))
    high = min(1.5, max(1.0, *(f for _, _, f in every), 1.0))
    most = max(1.0, math.log10(1 + max(n for _, n, _ in every)))

    def x(n: float) -> float:
        return left + (width - left - 8) * math.log10(1 + n) / most

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

    return Plot(
        lines={
            policy: " ".join(f"{x(n):.1f},{y(f):.1f}" for _, n, f in points)
            for policy, points in lines.items()
        },
        x_ticks=[(x(n), f"{n:,}") for n in (0, 10, 100, 1000, 10000) if math.log10(1 + n) <= most],
        y_ticks=[(y(value), f"{value:g}") for value in (0.0, 0.5, 1.0)],
        width=width,
        height=height,
        left=left,
        bottom=bottom,
        low=low,
        high=high,
        most=most,
    )


# -- two circuits ---------------------------------------------------------------------------------


class Shared(NamedTuple):
    """What two circuits have in common.

    Attributes:
        features: names with their effect in either, the largest product of shares first.
        n_only: features that only the one, or only the other, holds.
        jaccard: shared features over all features of either.
        cosine: between their effects by feature; NaN where one has none.
    """

    features: Sequence[tuple[str, float, float]]
    n_only: tuple[int, int]
    jaccard: float
    cosine: float


def shared(a: Mapping[str, float], b: Mapping[str, float]) -> Shared:
    """What two circuits share, each given as effect by feature."""
    both = sorted(a.keys() & b.keys(), key=lambda name: -abs(a[name] * b[name]))
    every = a.keys() | b.keys()
    lengths = [float(np.linalg.norm(list(one.values()))) if one else 0.0 for one in (a, b)]
    product = sum(a[name] * b[name] for name in both)
    return Shared(
        features=[(name, a[name], b[name]) for name in both],
        n_only=(len(a) - len(both), len(b) - len(both)),
        jaccard=len(both) / len(every) if every else math.nan,
        cosine=product / (lengths[0] * lengths[1]) if all(lengths) else math.nan,
    )
