"""Whether nodes stand as they are said to: are core nodes found again from other examples?

    python -m benchmarks.stability experiments/testbed.yaml --clusters 8
    ... --note     # also append a dated row to benchmarks/README.md

Of each cluster two disjoint draws of as many examples are taken. Nodes of the first draw's circuit
are core, contingent or noise (`core.stability`); the row says what share of each is above the
threshold, with the same sign, in the second draw, and what their margins promise if means are
normal.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from assets.circuits.stages import estimator_of
from benchmarks.clusters import Bench, Way, spread
from benchmarks.record import append_row, machine
from core.circuit import Aggregated
from core.stability import STANDINGS, Standing, standing
from pipelines.experiment import read_experiment


class Again(NamedTuple):
    """A node of the first draw: how it stands, how likely it is kept, and whether it is."""

    stands: Standing
    expected: float
    kept: bool


def compared(first: Aggregated, second: Aggregated, threshold: float) -> list[Again]:
    """The nodes above the threshold in the first draw, in the second."""
    found = []
    for name, keys in first.keep(threshold).items():
        effects, errors = first.nodes[name].flatten(), first.stderr[name].flatten()
        others = second.nodes[name].flatten()
        for key in keys.tolist():
            effect, stderr, other = float(effects[key]), float(errors[key]), float(others[key])
            stands = standing(effect, stderr, threshold)
            assert stands is not None, "draws are of several examples"
            margin = (abs(effect) - threshold) / stderr if stderr else math.inf
            expected = (1 + math.erf(margin / math.sqrt(2))) / 2
            found.append(Again(stands, expected, abs(other) > threshold and other * effect > 0))
    return found


def row(
    found: Sequence[Again], n_clusters: int, n_examples: int, threshold: float
) -> dict[str, str]:
    """Shares of nodes kept, as a line of a table."""
    line = {
        "clusters": str(n_clusters),
        "examples": str(n_examples),
        "threshold": f"{threshold:g}",
        "nodes": str(len(found)),
    }
    for name in STANDINGS:
        of = [one for one in found if one.stands == name]
        kept = sum(one.kept for one in of) / max(1, len(of))
        expected = sum(one.expected for one in of) / max(1, len(of))
        line[f"{name}: share of nodes"] = f"{len(of) / max(1, len(found)):.0%}"
        line[f"{name}: kept (promised)"] = f"{kept:.0%} ({expected:.0%})"
    return line


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stability", description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--note", action="store_true")
    options = parser.parse_args()
    bench = Bench(experiment := read_experiment(options.experiment))
    circuits = experiment.settings.circuits
    way = Way(circuits.metric, estimator_of(circuits), options.examples, "zero")  # type: ignore
    every = {c: bench.draws(c, options.examples, 0) for c in sorted(bench.members)}
    draws = {c: drawn for c, drawn in every.items() if drawn is not None}
    chosen, found = spread(list(draws), options.clusters), list[Again]()
    for cluster in chosen:
        first, second = (
            bench.effects(cluster, numbers, way)
            for numbers in (draws[cluster].first, draws[cluster].second)
        )
        found += compared(first, second, circuits.node_threshold)
        print(f"cluster {cluster}: {len(found)} nodes so far", flush=True)
    line = row(found, len(chosen), options.examples, circuits.node_threshold)
    print("; ".join(f"{name}: {value}" for name, value in line.items()), flush=True)
    if options.note:
        append_row(f"Core, contingent and noise: {experiment.name}", {**machine(), **line})


if __name__ == "__main__":
    main()
