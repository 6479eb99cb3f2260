"""How good circuits of clusters are, and what it takes: metric, points, examples, ablation.

    python -m benchmarks.clusters experiments/testbed.yaml --clusters 8
    ... --metrics log_odds log_prob        # what effects are of
    ... --points adaptive midpoint:4       # how integrals are taken
    ... --examples 8 16 24                 # how many examples a circuit is found from
    ... --ablations zero mean resample     # what stands for what is left out
    ... --note                             # also append dated rows to benchmarks/README.md

Reads the tables of an experiment that has been run up to its clusters. Of each cluster two disjoint
draws of examples are taken, a circuit is found from either, and that of the first is judged on
examples of neither. Sizes count nodes that can be ablated: of layers from the start layer on.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from assets.circuits.stages import TOLERANCE
from assets.discovery.clusterings import members
from assets.engine.stage import Work
from assets.settings import Experiment
from assets.tables.conversions import read_samples
from assets.tables.places import FILTERED_TOKENS, assignments
from benchmarks.record import append_row, machine
from core.circuit import Aggregated, attribute
from core.dictionaries import Dictionary
from core.discovery import Sample
from core.estimators import IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import Inputs, pad
from core.models import LanguageModel
from core.options import ABLATIONS, SINGLE_METRICS, Ablation, ErrorNodes, SingleMetric
from core.types import ERROR, Node, Submodule
from pipelines.experiment import read_experiment

SIZES = (50, 100, 200)
POLICIES: tuple[ErrorNodes, ...] = ("circuit", "drop")


@dataclass(frozen=True)
class Way:
    """One way to find circuits, and the ablation they are judged by."""

    metric: SingleMetric
    estimator: IntegratedGradients
    n_examples: int
    ablation: Ablation


@dataclass(frozen=True)
class Draws:
    """Samples of one cluster: two disjoint draws, and those that circuits are judged on."""

    first: Sequence[int]
    second: Sequence[int]
    judged: Sequence[int]


class Bench:
    """The samples of an experiment with its model and dictionaries."""

    def __init__(self, experiment: Experiment) -> None:
        work = Work.on(experiment)
        self.model: LanguageModel = work.load.model()
        self.dictionaries: Mapping[str, Dictionary] = work.load.dictionaries()
        self.samples: list[Sample] = read_samples(work.store.read(FILTERED_TOKENS))
        self.members = members(work.store.read(assignments(), ["cluster"])["cluster"].to_numpy())
        self.max_length = experiment.settings.circuits.max_length or 0

    def context(self, number: int) -> tuple[int, ...]:
        """The tokens before a sample's answer that are used."""
        return self.samples[number].context[-self.max_length :]

    def draws(self, cluster: int, n: int, n_judged: int) -> Draws | None:
        """Draws of `n` and examples to judge on; None where the cluster has too few."""
        distinct: dict[object, int] = {}
        for number in self.members.get(cluster, []):
            distinct.setdefault((self.context(number), self.samples[number].answer), number)
        shuffled = sorted(distinct.values(), key=lambda number: zlib.crc32(str(number).encode()))
        if len(shuffled) < 2 * n + n_judged:
            return None
        return Draws(
            shuffled[n_judged : n_judged + n],
            shuffled[n_judged + n : n_judged + 2 * n],
            shuffled[:n_judged],
        )

    def inputs(self, numbers: Sequence[int], metric: SingleMetric) -> Inputs:
        """These samples."""
        clean, mask = pad([self.context(number) for number in numbers])
        answers = torch.tensor([self.samples[number].answer for number in numbers])
        return Inputs.single(clean, answers, mask, metric)

    def elsewhere(self, cluster: int, inputs: Inputs) -> Inputs:
        """As many contexts of other clusters, each as long as the one it stands in for."""
        others = [
            context
            for number in range(len(self.samples))
            if number not in self.members[cluster]
            and len(context := self.context(number)) >= inputs.clean.shape[1]
        ]
        step = len(others) // inputs.n_examples
        if not step:
            raise SystemExit(f"too few contexts of {inputs.clean.shape[1]} tokens elsewhere.")
        clean, _ = pad(
            [others[i * step][-inputs.clean.shape[1] :] for i in range(len(inputs.clean))]
        )
        return replace(inputs, clean=clean)

    def effects(self, cluster: int, numbers: Sequence[int], way: Way) -> Aggregated:
        """Effects on a draw; what is resampled is patched with contexts of other clusters."""
        inputs = self.inputs(numbers, way.metric)
        if way.ablation == "resample":
            inputs = replace(inputs, patch=self.elsewhere(cluster, inputs).clean)
        found = attribute(self.model, self.dictionaries, inputs, estimator=way.estimator)
        return found.effects

    def evaluator(self, cluster: int, inputs: Inputs, ablation: Ablation, start: int) -> Evaluator:
        """Judges on these inputs; values of mean and resample are of other clusters."""
        source = None if ablation == "zero" else self.elsewhere(cluster, inputs)
        if source is not None and ablation == "mean":
            # Over all tokens: one token fewer, and they are not of one length any more.
            mask = source.mask.clone()
            mask[0, -1] = False
            source = replace(source, mask=mask)
        if ablation == "resample" and source is not None:
            source = replace(source, mask=torch.ones_like(source.mask))
        return Evaluator(
            self.model,
            self.dictionaries,
            inputs,
            ablation=ablation,
            start_layer=start,
            values_from=source,
        )


def ranked(effects: Aggregated, start_layer: int, n: int) -> list[Node]:
    """The `n` nodes with the largest effects, of layers from `start_layer` on."""
    nodes = []
    for name, values in effects.nodes.items():
        if name == "embed" or Submodule.parse(name).layer < start_layer:
            continue
        top = values.abs().topk(min(n, len(values))).indices.tolist()
        nodes += [
            Node(name, ERROR if i == len(values) - 1 else i, None, float(values[i]))
            for i in top
            if values[i] != 0
        ]
    return sorted(nodes, key=lambda node: -abs(node.effect))[:n]


def jaccard(one: Sequence[Node], other: Sequence[Node]) -> float:
    """Share of nodes that two circuits have in common."""
    first, second = ({(n.submodule, n.feature) for n in nodes} for nodes in (one, other))
    return len(first & second) / len(first | second)


def inside_layers(nodes: Sequence[Node]) -> float:
    """Share of nodes in attention and MLPs above layer 0."""
    of_layers = [Submodule.parse(node.submodule) for node in nodes]
    return mean(s.kind in ("attn", "mlp") and s.layer > 0 for s in of_layers)


Key = tuple[int, str, ErrorNodes, int]
"""Start layer, metric, policy for error nodes, number of nodes."""


@dataclass(frozen=True)
class Measured:
    """One way on one cluster."""

    faithfulness: Mapping[Key, float]
    common: Mapping[int, float]
    inside: Mapping[int, float]
    gap: float
    unmet: float | None
    stability: float
    seconds: float


def measure(bench: Bench, cluster: int, draws: Draws, way: Way, starts: Sequence[int]) -> Measured:
    """Find circuits from both draws, and judge that of the first."""
    began = time.process_time()
    first = bench.effects(cluster, draws.first[: way.n_examples], way)
    seconds = time.process_time() - began
    second = bench.effects(cluster, draws.second[: way.n_examples], way)
    faithfulness: dict[Key, float] = {}
    for start, metric in product(starts, ("log_odds", "log_prob")):
        inputs = bench.inputs(draws.judged, metric)
        evaluator = bench.evaluator(cluster, inputs, way.ablation, start)
        for size, policy in product(SIZES, POLICIES):
            found = evaluator.evaluate(ranked(first, start, size), policy)
            faithfulness[start, metric, policy, size] = found.faithfulness
    circuits = {start: (ranked(first, start, 100), ranked(second, start, 100)) for start in starts}
    return Measured(
        faithfulness,
        {start: jaccard(*both) for start, both in circuits.items()},
        {start: inside_layers(both[0]) for start, both in circuits.items()},
        max(first.gaps.values()),
        first.unmet,
        first.stability(abs(circuits[starts[0]][0][-1].effect)) or 0.0,
        seconds,
    )


def row(way: Way, start: int, found: Sequence[Measured]) -> dict[str, str]:
    """Means over clusters, as a line of a table."""

    def shares(metric: str, policy: ErrorNodes) -> str:
        every = [
            mean(one.faithfulness[start, metric, policy, size] for one in found) for size in SIZES
        ]
        return " / ".join(f"{value:.2f}" for value in every)

    unmet = [one.unmet for one in found if one.unmet is not None]
    return {
        "metric": way.metric,
        "points": way.estimator.label,
        "examples": str(way.n_examples),
        "ablation": way.ablation,
        "from layer": str(start),
        "clusters": str(len(found)),
        "by log odds, 50 / 100 / 200": shares("log_odds", "circuit"),
        "by -log P": shares("log_prob", "circuit"),
        "no errors, log odds": shares("log_odds", "drop"),
        "attention, MLP above 0": f"{mean(one.inside[start] for one in found):.0%}",
        "Jaccard of draws": f"{mean(one.common[start] for one in found):.2f}",
        "of halves": f"{mean(one.stability for one in found):.2f}",
        "largest gap": f"{mean(one.gap for one in found):.2g}",
        "unmet": f"{mean(unmet):.1%}" if unmet else "-",
        "CPU s": f"{mean(one.seconds for one in found):.1f}",
    }


def estimator_of(written: str) -> IntegratedGradients:
    """``adaptive``, ``adaptive:0.02``, ``midpoint:4``, ``left:10``."""
    rule, _, number = written.partition(":")
    if rule == "adaptive":
        return IntegratedGradients(4, "adaptive", float(number or TOLERANCE))
    return IntegratedGradients(int(number or 10), "left" if rule == "left" else "midpoint")


def ways(options: argparse.Namespace) -> Iterator[Way]:
    """Every combination that was asked for."""
    for metric, points, n, ablation in product(
        options.metrics, options.points, options.examples, options.ablations
    ):
        yield Way(metric, estimator_of(points), n, ablation)


def spread(clusters: Sequence[int], n: int) -> list[int]:
    """`n` of them, evenly from the largest to the smallest."""
    n = min(n, len(clusters))
    return [clusters[i * len(clusters) // n] for i in range(n)]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clusters", description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--metrics", nargs="+", default=["log_odds"], choices=SINGLE_METRICS)
    parser.add_argument("--points", nargs="+", default=["adaptive"])
    parser.add_argument("--examples", nargs="+", type=int, default=[16])
    parser.add_argument("--ablations", nargs="+", default=["zero"], choices=ABLATIONS)
    parser.add_argument("--start-layers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--judged", type=int, default=8, help="examples that circuits are judged on"
    )
    parser.add_argument(
        "--least", type=int, default=16, help="take clusters with two draws of so many examples"
    )
    parser.add_argument("--note", action="store_true")
    return parser.parse_args()


def main() -> None:
    """The command."""
    options = parse()
    bench = Bench(experiment := read_experiment(options.experiment))
    most = max(*options.examples, options.least)
    every = {c: bench.draws(c, most, options.judged) for c in sorted(bench.members)}
    draws = {c: drawn for c, drawn in every.items() if drawn is not None}
    chosen = spread(list(draws), options.clusters)
    print(f"clusters {chosen}, of {len(draws)} with {2 * most + options.judged} distinct samples")
    for way in ways(options):
        found = [measure(bench, c, draws[c], way, options.start_layers) for c in chosen]
        for start in options.start_layers:
            line = row(way, start, found)
            print("; ".join(f"{name}: {value}" for name, value in line.items()), flush=True)
            if options.note:
                append_row(f"Circuits of clusters: {experiment.name}", {**machine(), **line})


if __name__ == "__main__":
    main()
