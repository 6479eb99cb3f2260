"""Stage 6: what circuits are held against at every size, and whether they need their nodes.

The paper's Figure 3: faithfulness and completeness of circuits of features, with and without
error nodes, of neurons, and of nodes and directions drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from assets.circuits.behaviours import Behaviour
from assets.circuits.each import stage_of_each
from assets.circuits.pairs import task_settings
from assets.circuits.stages import estimator_of, load_circuit, task_estimator
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Stage, Work
from assets.evaluations.fresh import judged_from
from assets.evaluations.summary import compared_of
from assets.plots import panels, picture, records
from assets.settings import Experiment, ExperimentError
from assets.tables.conversions import Frame, frame, read_nodes
from assets.tables.places import BehaviourSource, baselines, circuit, evaluation
from assets.tables.schemas import TABLES
from core.errors import InputError, MissingSubmodule
from core.estimators import Estimator
from core.options import Ablation, ErrorNodes, Variant

if TYPE_CHECKING:
    from core.baselines import Basis
    from core.evaluate import Evaluator
    from core.inputs import Inputs
    from core.types import Circuit, Node

Rows = list[dict[str, Any]]
"""Rows of a table."""

_OF_FEATURES: Mapping[Variant, ErrorNodes] = {
    "features": "circuit",
    "no_errors": "drop",
    "residual_errors": "drop_but_resid",
    "random_nodes": "circuit",
}
"""The variants made of the experiment's dictionaries, and which error nodes circuits may keep."""

_SHARES = {"nodes_half": 0.5, "nodes_eight_tenths": 0.8, "nodes_nine_tenths": 0.9}


@dataclass(frozen=True)
class Comparing:
    """What circuits are compared with; see `assets.settings.EvaluationSettings`."""

    variants: tuple[Variant, ...]
    estimator: Estimator
    ablation: Ablation
    start_layers: tuple[int, ...]
    n_sizes: int
    n_random: int
    n_minimal: int


def _compare_one(
    source: BehaviourSource, of_name: Mapping[str, Behaviour], work: Work, job: Job[Comparing]
) -> tuple[Made, str]:
    """The tables of one circuit, and what they come to in words."""
    _check_variants(work, job.settings)
    behaviour, found = of_name[job.key], load_circuit(work.store, source, job.key)
    points, losses = Rows(), Rows()
    if found is not None and behaviour.chosen("evaluated"):
        comparison = _Comparison(source, work, behaviour, found, job.settings)
        try:
            points, losses = list(comparison.points()), comparison.losses()
        except InputError as error:
            raise InputError(f"{job.key} cannot be compared: {error}") from error
    table = TABLES["baselines"].build(points)
    scores = scores_of(job.key, frame(table))
    tables = {
        baselines(source, job.key, name): TABLES[name].build(rows)
        for name, rows in {"baseline_scores": scores, "node_losses": losses}.items()
    }
    return Made(table, beside=tables), _said(scores)


def _check_variants(work: Work, how: Comparing) -> None:
    """Raise before any work if the model lacks what a variant is made of."""
    if "mlp_neurons" in how.variants:
        try:
            work.load.model().check_hidden()
        except MissingSubmodule as error:
            raise ExperimentError(
                f"evaluations.variants has mlp_neurons, which this model cannot give: {error} "
                "Or leave that variant out."
            ) from error


def _said(scores: Rows) -> str:
    halves = {row["variant"]: row["nodes_half"] for row in reversed(scores)}
    said = [f"{name} {halves[name]:.0f}" for name in halves if halves[name] is not None]
    return f"half with {', '.join(reversed(said))}" if said else "no variant reaches half"


@dataclass(frozen=True)
class _Comparison:
    """One behaviour's circuit, and what it is compared with."""

    source: BehaviourSource
    work: Work
    behaviour: Behaviour
    circuit: Circuit
    how: Comparing

    @cached_property
    def measured(self) -> Inputs:
        """As many examples as the circuit was found from, for effects of other nodes."""
        import torch

        return self.behaviour.inputs("found").select(torch.arange(self.circuit.n_examples))

    @cached_property
    def judged(self) -> Inputs:
        """The examples that every circuit is judged on."""
        return self.behaviour.inputs("evaluated")

    @cached_property
    def own(self) -> Mapping[int, Evaluator]:
        """Evaluators of the experiment's own dictionaries, by start layer."""
        basis = self._bases()["features"]()
        return {layer: self._evaluator(basis, layer) for layer in self.how.start_layers}

    def losses(self) -> Rows:
        """What the circuit loses without each of its strongest nodes, from the first layer on."""
        from core.minimality import losses_without

        start_layer = self.how.start_layers[0]
        evaluator = self.own[start_layer]
        nodes = evaluator.counted(self.circuit)
        strongest = sorted(nodes, key=lambda node: -abs(node.effect))[: self.how.n_minimal]
        without = losses_without(evaluator, nodes, strongest)
        common = {"name": self.behaviour.name, "start_layer": start_layer}
        return [
            {**common, **_place(node), "effect": node.effect, "loss": loss}
            for node, loss in zip(strongest, without, strict=True)
        ]

    def points(self) -> Iterator[dict[str, Any]]:
        """The points of all curves."""
        from core.sweep import active_nodes

        for name, make in self._bases().items():
            variants: list[Variant] = [v for v in self.how.variants if basis_of(v) == name]
            if not variants:
                continue
            basis = make()
            nodes = self._nodes(name, basis)
            active = active_nodes(
                basis.model,
                basis.dictionaries,
                self.judged,
                by_position=self.behaviour.by_position,
            )
            for layer in self.how.start_layers:
                own = name == "features"
                evaluator = self.own[layer] if own else self._evaluator(basis, layer)
                for variant in variants:
                    for draw, ranking in self._rankings(variant, evaluator, nodes, active):
                        yield from self._curve(evaluator, layer, ranking, variant, draw)

    def _bases(self) -> dict[Variant, Callable[[], Basis]]:
        """What variants are made of."""
        from core.baselines import Basis, mlp_neurons, neurons, random_directions

        model, dictionaries = self.work.load.model(), self.work.load.dictionaries()
        return {
            "features": lambda: Basis(model, dictionaries),
            "neurons": lambda: neurons(model, dictionaries),
            "mlp_neurons": lambda: mlp_neurons(model),
            "random_decoder": lambda: random_directions(model, dictionaries, self.measured),
        }

    def _nodes(self, name: Variant, basis: Basis) -> list[Node]:
        """The nodes of a basis with their effects; those of features are known."""
        if name == "features":
            place = circuit(self.source, self.behaviour.name, "effects")
            return read_nodes(self.work.store.read(place))
        return basis.measure(
            self.measured,
            estimator=self.how.estimator,
            by_position=self.behaviour.by_position,
            budget_bytes=self.work.budget_bytes,
        )

    def _evaluator(self, basis: Basis, start_layer: int) -> Evaluator:
        from core.evaluate import Evaluator

        return Evaluator(
            basis.model,
            basis.dictionaries,
            self.judged,
            ablation=self.how.ablation,
            start_layer=start_layer,
            budget_bytes=self.work.budget_bytes,
        )

    def _rankings(
        self,
        variant: Variant,
        evaluator: Evaluator,
        nodes: Sequence[Node],
        active: Sequence[Node],
    ) -> Iterator[tuple[int | None, Sequence[Node]]]:
        """In which order nodes are kept, with the number of the draw where it is drawn."""
        from core.sweep import ranked, shuffled

        if variant == "random_nodes":
            could_be = evaluator.counted(active)
            yield from ((draw, shuffled(could_be, draw)) for draw in range(self.how.n_random))
        else:
            yield None, ranked(evaluator, nodes, active, policy_of(variant))

    def _curve(
        self,
        evaluator: Evaluator,
        start_layer: int,
        ranking: Sequence[Node],
        variant: Variant,
        draw: int | None,
    ) -> Iterator[dict[str, Any]]:
        """The points of one curve; those that the circuit's evaluation has are not run again."""
        from core.sweep import sizes_up_to, sweep

        policy = policy_of(variant)
        common = {
            "name": self.behaviour.name,
            "variant": variant,
            "draw": draw,
            "start_layer": start_layer,
            "n_possible": len(ranking),
            "ablation": self.how.ablation,
        }
        known = [] if variant == "random_nodes" else self._judged_before(variant, start_layer)
        yield from ({**common, **row} for row in known)
        of_circuit = [row["of_circuit"] for row in known]
        # Random nodes keep nothing until most are kept: few points tell.
        complete = draw is not None or not all(of_circuit)
        sizes = [] if complete else sizes_up_to(len(ranking), self.how.n_sizes)
        for point in sweep(evaluator, ranking, [0, *sizes], policy):
            yield {
                **common,
                "fraction": point.fraction,
                "of_circuit": False,
                **asdict(point.evaluation),
            }
        if not any(of_circuit):
            size = len(self.own[start_layer].counted(self.circuit, policy))
            found = evaluator.evaluate(ranking[:size], policy, complement=draw is None)
            yield {**common, "fraction": None, "of_circuit": True, **asdict(found)}

    def _judged_before(self, variant: Variant, start_layer: int) -> Rows:
        """Points of a curve of the circuit's evaluation, where that has one."""
        if basis_of(variant) != "features":
            return []
        columns = [field.name for field in TABLES["baselines"].schema]
        place = evaluation(self.source, self.behaviour.name)
        return [
            {
                **{name: row[name] for name in columns if name in row},
                "fraction": None,
                "of_circuit": row["threshold"] is None,
            }
            for row in self.work.store.read(place).to_pylist()
            if (row["start_layer"], row["error_nodes"]) == (start_layer, policy_of(variant))
        ]


def basis_of(variant: Variant) -> Variant:
    """The variant with all nodes of the same kind."""
    return "features" if variant in _OF_FEATURES else variant


def policy_of(variant: Variant) -> ErrorNodes:
    """Which error nodes the circuits of a variant may keep."""
    return _OF_FEATURES.get(variant, "circuit")


def _place(node: Node) -> dict[str, Any]:
    return {"submodule": node.submodule, "feature": node.feature, "pos": node.pos}


def scores_of(name: str, points: Frame) -> Rows:
    """What each curve comes to; of random nodes, that of the mean over draws.

    Args:
        points: of the table ``baselines``.
    """
    from core.sweep import nodes_for

    rows = Rows()
    for (variant, start_layer), curve in points.groupby(["variant", "start_layer"], sort=False):
        by_size = curve.groupby("n_nodes")["faithfulness"].mean()
        sizes, faithfulness = by_size.index.tolist(), by_size.tolist()
        n_possible = int(curve["n_possible"].iloc[0])
        at_fraction = curve.groupby("fraction")["faithfulness"].mean()
        rows.append(
            {
                "name": name,
                "variant": variant,
                "start_layer": start_layer,
                "n_possible": n_possible,
                **{
                    column: nodes_for(sizes, faithfulness, share)
                    for column, share in _SHARES.items()
                },
                **_areas(n_possible, sizes, faithfulness, at_fraction),
            }
        )
    return rows


def _areas(
    n_possible: int, sizes: Sequence[int], faithfulness: Sequence[float], at_fraction: Any
) -> dict[str, float]:
    from core.evaluate import area
    from core.sweep import cmd

    if not n_possible or not all(map(math.isfinite, faithfulness)):
        return dict.fromkeys(("area", "cpr", "cmd"), math.nan)
    fractions, values = at_fraction.index.tolist(), at_fraction.tolist()
    kept = [size / n_possible for size in sizes]
    return {
        "area": area([0.0, *kept], [0.0, *faithfulness]),
        "cpr": area(fractions, values),
        "cmd": cmd(fractions, values),
    }


def show_baselines_of(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """The figure and its scores from each start layer on, and the nodes most needed."""
    points = frame(work.store.read(baselines(source, name)))
    if points.empty:
        return {"not compared": "there is no circuit, or no example to judge it on"}
    shown: dict[str, Any] = {}
    scores = work.store.read(baselines(source, name, "baseline_scores")).to_pylist()
    for start_layer, curves in points.groupby("start_layer", sort=False):
        title = f"from layer {start_layer}"
        shown[f"curves ({title})"] = picture(figure_3(curves))
        hidden = ("name", "start_layer")
        shown[f"scores ({title})"] = records(
            {key: value for key, value in row.items() if key not in hidden}
            for row in scores
            if row["start_layer"] == start_layer
        )
    losses = work.store.read(baselines(source, name, "node_losses")).to_pylist()
    needed = sorted(losses, key=lambda row: -row["loss"])
    columns = ("pos", "submodule", "feature", "effect", "loss")
    shown["nodes most needed"] = records({c: row[c] for c in columns} for row in needed[:12])
    if losses:
        shown["nodes not needed"] = sum(row["loss"] <= 0 for row in losses) / len(losses)
    return shown


def figure_3(points: Frame) -> bytes:
    """Faithfulness and completeness against nodes, a curve for each variant."""

    def lines(column: str) -> dict[str, tuple[list[float], list[float]]]:
        by_variant = points.dropna(subset=column).groupby("variant", sort=False)
        means = {str(v): rows.groupby("n_nodes")[column].mean() for v, rows in by_variant}
        return {v: (mean.index.tolist(), mean.tolist()) for v, mean in means.items()}

    titles = ("faithfulness", "completeness")
    return panels({title: lines(title) for title in titles}, "nodes")


def _made_from(
    work: Work, source: BehaviourSource, names: Iterable[str]
) -> Mapping[str, Mapping[str, str]]:
    every = judged_from(work, source, names)
    for name, of_circuit in every.items():
        of_circuit["evaluation"] = work.store.content(evaluation(source, name))
    return every


def _baseline_stage(
    source: BehaviourSource,
    description: str,
    *,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], Comparing],
) -> PartitionedStage[Comparing]:
    """The stage that compares the circuits of the behaviours of one source."""
    return stage_of_each(
        source,
        baselines,
        _compare_one,
        "baselines",
        description=description,
        beside=["baseline_scores", "node_losses"],
        partitions=partitions,
        deps=[circuit(source, "").stage, evaluation(source, "").stage],
        reads=reads,
        inputs=_made_from,
        show=show_baselines_of,
    )


def _reads(
    experiment: Experiment, estimator: Estimator, ablation: Ablation, first: int
) -> Comparing:
    how = experiment.settings.evaluations
    layers = dict.fromkeys((first, *how.other_start_layers))
    return Comparing(
        variants=how.variants,
        estimator=estimator,
        ablation=ablation,
        start_layers=tuple(layers),
        n_sizes=how.n_thresholds,
        n_random=how.n_random,
        n_minimal=how.n_minimal,
    )


def _reads_cluster(experiment: Experiment, _name: str) -> Comparing:
    how = experiment.settings.evaluations
    estimator = estimator_of(experiment.settings.circuits)
    return _reads(experiment, estimator, how.ablation, how.start_layer)


def _reads_task(experiment: Experiment, _name: str) -> Comparing:
    return _reads(
        experiment, task_estimator(experiment), "mean", task_settings(experiment).start_layer
    )


CIRCUIT_BASELINES_STAGE = _baseline_stage(
    "clusters",
    "Circuits of clusters against circuits of as many neurons and random nodes, at every size, and "
    "what each loses without its nodes.",
    partitions=lambda experiment: experiment.examined,
    reads=_reads_cluster,
)

TASK_BASELINES_STAGE = _baseline_stage(
    "tasks",
    "Circuits of tasks against circuits of as many neurons and random nodes, at every size, and "
    "what each loses without its nodes.",
    partitions=lambda experiment: list(task_settings(experiment).pairs),
    reads=_reads_task,
)


def baseline_stages(experiment: Experiment) -> list[Stage]:
    """The stages that compare circuits, where there is anything to compare."""
    stages: dict[BehaviourSource, Stage] = {
        "clusters": CIRCUIT_BASELINES_STAGE,
        "tasks": TASK_BASELINES_STAGE,
    }
    return [stages[source] for source in compared_of(experiment)]
