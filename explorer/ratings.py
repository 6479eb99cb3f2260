"""Ratings summed up as in the paper's Table 7: `python -m explorer.ratings EXPERIMENT.yaml`.

One row for each kind of thing that was rated, features or neurons, and where it was taken from, at
random or from circuits: how interpretable and how complex people find it, from 0 to 100 (App. D).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assets.features.annotations import Annotation
from assets.settings import ExperimentError
from explorer.annotations import AnnotationFile
from explorer.reader import Reader


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error; NaN where there are too few values."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of these values."""
        if not values:
            return cls(math.nan, math.nan)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), error)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "\u2013"
        return f"{self.value:.1f}" + ("" if math.isnan(self.error) else f" ± {self.error:.1f}")


@dataclass(frozen=True)
class Ratings:
    """One row of the table.

    Attributes:
        kind: features or neurons.
        chosen: random, or the source of the circuits they were taken from.
        n: ratings; n_features: different features or neurons; n_people: who rated.
        interpretability, complexity: 0 to 100.
    """

    kind: str
    chosen: str
    n: int
    n_features: int
    n_people: int
    interpretability: Mean
    complexity: Mean


def is_stale(reader: Reader, one: Annotation) -> bool:
    """Whether an annotation was made for other dictionaries, or for no feature of these."""
    try:
        reader.check_feature(one.name, neuron=one.basis == "neurons")
    except LookupError:
        return True
    weights = reader.weights(one.submodule)
    return one.basis == "features" and None not in (one.weights, weights) and one.weights != weights


def table(reader: Reader, annotations: Iterable[Annotation]) -> tuple[list[Ratings], int]:
    """Rows of the table, and how many ratings were left out as stale."""
    rated = [one for one in annotations if (one.interpretability, one.complexity) != (None, None)]
    current = [one for one in rated if not is_stale(reader, one)]
    groups: dict[tuple[str, str], list[Annotation]] = {}
    for one in current:
        groups.setdefault((one.basis, _chosen(reader, one)), []).append(one)
    rows = [
        Ratings(
            kind=kind,
            chosen=chosen,
            n=len(members),
            n_features=len({one.name for one in members}),
            n_people=len({one.by for one in members}),
            interpretability=Mean.of(
                [m.interpretability for m in members if m.interpretability is not None]
            ),
            complexity=Mean.of([m.complexity for m in members if m.complexity is not None]),
        )
        for (kind, chosen), members in sorted(groups.items())
    ]
    return rows, len(rated) - len(current)


def _chosen(reader: Reader, one: Annotation) -> str:
    """Where a rated feature was taken from; if nobody noted it, whether a circuit holds it."""
    if one.chosen == "random":
        return "random"
    if one.circuit:
        return f"circuits of {one.circuit.partition('/')[0]}"
    return "circuits" if one.basis == "features" and reader.holders(one.name) else "random"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from pipelines.experiment import read_experiment

    parser = argparse.ArgumentParser(prog="python -m explorer.ratings", description=__doc__)
    parser.add_argument("experiment", type=Path, help="the experiment's YAML file")
    try:
        reader = Reader(read_experiment(parser.parse_args(arguments).experiment))
        file = AnnotationFile(reader.experiment.annotations)
        rows, n_stale = table(reader, file.annotations())
    except ExperimentError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    out = ["| kind | taken from | ratings | of | people | interpretability | complexity |"]
    out += ["|---|---|---|---|---|---|---|"]
    out += [
        f"| {r.kind} | {r.chosen} | {r.n} | {r.n_features} | {r.n_people} "
        f"| {r.interpretability} | {r.complexity} |"
        for r in rows
    ]
    if n_stale:
        out.append(f"\nLeft out, since made for other dictionaries: {n_stale}.")
    sys.stdout.write("\n".join(out) + "\n" if rows else f"{file.path} holds no ratings yet.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
