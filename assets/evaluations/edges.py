"""Stage 6: what the edges of circuits carry, and how far single weights can be trusted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from assets.circuits.behaviours import Behaviour
from assets.circuits.each import stage_of_each
from assets.circuits.pairs import task_settings
from assets.circuits.stages import CIRCUITS_STAGE, TASK_CIRCUITS_STAGE, Finding, load_circuit
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Stage, Work
from assets.engine.store import ArtifactStore
from assets.evaluations.approximations import fit
from assets.evaluations.fresh import judged_from
from assets.evaluations.stages import why_not
from assets.plots import curves, picture, records, scatters
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame, read_edges
from assets.tables.places import (
    BehaviourSource,
    circuit,
    edge_evaluation,
)
from assets.tables.schemas import TABLES
from core.errors import InputError
from core.estimators import Estimator
from core.options import Ablation

if TYPE_CHECKING:
    from core.types import Circuit, Edge

_PARTS = ("circuit", "nodes", "edges", "edge_effects")
"""Tables of a circuit that its edges are judged by."""

_MEASURES: dict[Literal["path", "effect"], str] = {
    "path": "direct path",
    "effect": "effect on the metric",
}
ENDS = {False: "between features", True: "at error nodes"}
"""Edges by whether one of their nodes is an error."""

_UNKNOWN: dict[str, float] = dict.fromkeys(("pearson", "spearman", "slope", "sign"), math.nan)


@dataclass(frozen=True)
class JudgingEdges:
    """How edges are judged; see `assets.settings.EvaluationSettings`."""

    ablation: Ablation
    start_layer: int
    shares: tuple[float, ...]
    estimator: Estimator
    n_measured: int
    n_examples: int


def _one_circuit(
    source: BehaviourSource,
    of_name: Mapping[str, Behaviour],
    work: Work,
    job: Job[JudgingEdges],
) -> tuple[Made, str]:
    """The tables of one circuit, and what they say in words."""
    found, behaviour = load_circuit(work.store, source, job.key), of_name[job.key]
    kept: list[dict[str, Any]] = []
    measured: list[dict[str, Any]] = []
    if found is None or not behaviour.chosen("evaluated"):
        said = why_not(found)
    elif not found.edges:
        said = "it has no edges"
    else:
        try:
            kept = list(_keep(source, work, behaviour, found, job))
        except InputError as error:
            raise InputError(f"the edges of {job.key} cannot be judged: {error}") from error
        measured = _measure(work, behaviour, found, job)
        own = {row["kept"]: row["faithfulness"] for row in kept}
        said = f"faithfulness {own['circuit']:.2f}, with all edges {own['nodes']:.2f}"
    beside = TABLES["edge_interventions"].build(measured)
    return Made(
        TABLES["edge_evaluations"].build(kept),
        beside={edge_evaluation(source, job.key, "interventions"): beside},
    ), said


def _keep(
    source: BehaviourSource,
    work: Work,
    behaviour: Behaviour,
    found: Circuit,
    job: Job[JudgingEdges],
) -> Iterator[dict[str, Any]]:
    """The circuit's nodes with all edges, its own, and shares of those that could be."""
    from core.edge_evaluate import EdgeEvaluator
    from core.evaluate import Evaluator

    how = job.settings
    evaluator = Evaluator(
        work.load.model(),
        work.load.dictionaries(),
        behaviour.inputs("evaluated"),
        ablation=how.ablation,
        start_layer=how.start_layer,
        budget_bytes=work.budget_bytes,
    )
    judge = EdgeEvaluator(evaluator, found, budget_bytes=work.budget_bytes)
    ranked = judge.ranked(read_edges(work.store.read(circuit(source, job.key, "edge_effects"))))
    into_metric = [edge for edge in ranked if edge.downstream is None]
    between = [edge for edge in ranked if edge.downstream is not None]

    def row(kept: str, edges: Sequence[Edge], share: float | None = None) -> dict[str, Any]:
        weights = [abs(edge.weight) for edge in edges if edge.weight]
        edges = [*edges, *([] if kept == "circuit" else into_metric)]
        return {
            "name": job.key,
            "kept": kept,
            "share": share,
            "threshold": min(weights, default=None) if kept in ("strongest", "circuit") else None,
            "ablation": how.ablation,
            "start_layer": how.start_layer,
            "held_out": behaviour.held_out,
            **asdict(judge.evaluate(edges)),
        }

    whole = evaluator.evaluate(found)
    own = {"m_edges": whole.m_circuit, "faithfulness": whole.faithfulness}
    yield row("nodes", between) | own
    yield row("circuit", found.edges)
    yield row("strongest", between, 1.0)
    for share in how.shares:
        n = round(share * len(between))
        yield row("strongest", between[:n], share)
        yield row("random", random.Random(0).sample(between, n), share)
        yield row("weakest", between[n:], share)


def _measure(
    work: Work, behaviour: Behaviour, found: Circuit, job: Job[JudgingEdges]
) -> list[dict[str, Any]]:
    """Some edges of each kind by intervention, on some of the examples they were found from."""
    import torch

    from core.edge_interventions import edge_interventions

    of_kind: dict[tuple[str, bool, bool], list[Edge]] = {}
    for edge in found.edges:
        if edge.downstream is not None:
            up, down = found.nodes[edge.upstream], found.nodes[edge.downstream]
            kind = f"{up.submodule.split('_')[0]} -> {down.submodule.split('_')[0]}"
            of_kind.setdefault((kind, up.is_error, down.is_error), []).append(edge)
    drawn = [
        (kind, edge)
        for kind, edges in of_kind.items()
        for edge in random.Random(0).sample(edges, min(job.settings.n_measured, len(edges)))
    ]
    n_examples = min(job.settings.n_examples, found.n_examples)
    measured = edge_interventions(
        work.load.model(),
        work.load.dictionaries(),
        behaviour.inputs("found").select(torch.arange(n_examples)),
        found.nodes,
        [edge for _, edge in drawn],
        estimator=job.settings.estimator,
        budget_bytes=work.budget_bytes,
    )
    return [
        {
            "name": job.key,
            "upstream": edge.upstream,
            "downstream": edge.downstream,
            "kind": kind,
            "from_error": from_error,
            "into_error": into_error,
            "n_examples": n_examples,
            **{name: float(values[i]) for name, values in vars(measured).items()},
        }
        for i, ((kind, from_error, into_error), edge) in enumerate(drawn)
    ]


def agreement(measured: Frame, by: Literal["path", "effect"] = "path") -> dict[str, float]:
    """How the weights of edges follow an intervention: `n`, and what `fit` says.

    NaN where there are fewer than three edges.

    Args:
        measured: rows of `edge_interventions`.
        by: along the direct path alone, or on the metric; see `core.edge_interventions`.
    """
    known = len(measured) > 2
    found = fit(measured[by], measured["weight"]) if known else _UNKNOWN
    return {"n": len(measured), **found}


def agreement_text(measured: Frame) -> str | None:
    """How edges at error nodes compare with others, in words; None where neither was measured."""
    at_error = measured["at_error"]
    errors, features = (agreement(measured[rows])["spearman"] for rows in (at_error, ~at_error))
    if math.isnan(errors) or math.isnan(features):
        return None
    return (
        f"rank correlation with their direct paths {errors:.2f}, of those between features "
        f"{features:.2f} ({len(measured)} edges measured)"
    )


def measured_edges(store: ArtifactStore, source: BehaviourSource, names: Sequence[str]) -> Frame:
    """The measured edges of those circuits that were examined, with a column `at_error`."""
    import pandas as pd

    keys = [edge_evaluation(source, name, "interventions") for name in names]
    tables = [frame(store.read(key)) for key in keys if store.footer(key) is not None]
    empty = frame(TABLES["edge_interventions"].build([]))
    every = pd.concat([empty, *tables], ignore_index=True)
    every["at_error"] = every["from_error"] | every["into_error"]
    return every


def show_edges_of(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """The curve over shares of edges, and weights against interventions."""
    kept = frame(work.store.read(edge_evaluation(source, name)))
    if kept.empty:
        found = load_circuit(work.store, source, name)
        return {"not judged": "it has no edges" if found and not found.edges else why_not(found)}
    own = kept.set_index("kept")
    lines = {
        chosen: (rows["n_edges"].tolist(), rows["faithfulness"].tolist())
        for chosen, rows in kept.dropna(subset="share").sort_values("share").groupby("kept")
    }
    shown: dict[str, Any] = {
        "faithfulness of the nodes": float(own.loc["nodes", "faithfulness"]),
        "faithfulness with the circuit's edges": float(own.loc["circuit", "faithfulness"]),
        "edges": f"{own.loc['circuit', 'n_edges']} of {own.loc['circuit', 'n_possible']} possible",
        "curve": picture(curves(lines, "edges kept", "faithfulness")),
    }
    measured = measured_edges(work.store, source, [name])
    if measured.empty:
        return shown
    for by, words in _MEASURES.items():
        panels = {
            str(kind): {
                ends: (rows[rows["at_error"] == at][by], rows[rows["at_error"] == at]["weight"])
                for at, ends in ENDS.items()
            }
            for kind, rows in measured.groupby("kind")
        }
        shown[f"weight and {words}"] = picture(scatters(panels, words))
        shown[f"agreement of weight and {words}"] = records(
            {"edges": ends, **agreement(measured[measured["at_error"] == at], by)}
            for at, ends in ENDS.items()
        )
    return shown


def _edge_stage(
    source: BehaviourSource,
    description: str,
    *,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], JudgingEdges],
) -> PartitionedStage[JudgingEdges]:
    """The stage that judges the edges of the circuits of one source."""
    return stage_of_each(
        source,
        edge_evaluation,
        _one_circuit,
        "edges",
        description=description,
        beside=["edge_interventions"],
        partitions=partitions,
        deps=[circuit(source, "").stage],
        reads=reads,
        inputs=partial(judged_from, parts=_PARTS),
        show=show_edges_of,
    )


def _reads_cluster(experiment: Experiment, name: str) -> JudgingEdges:
    how = experiment.settings.evaluations
    return _judging(experiment, how.ablation, how.start_layer, CIRCUITS_STAGE, name)


def _reads_task(experiment: Experiment, name: str) -> JudgingEdges:
    start_layer = task_settings(experiment).start_layer
    return _judging(experiment, "mean", start_layer, TASK_CIRCUITS_STAGE, name)


def _judging(
    experiment: Experiment,
    ablation: Ablation,
    start_layer: int,
    circuits: PartitionedStage[Finding],
    name: str,
) -> JudgingEdges:
    how = experiment.settings.evaluations
    return JudgingEdges(
        ablation,
        start_layer,
        how.edge_shares,
        circuits.reads(experiment, name).estimator,
        how.n_edges_measured,
        how.n_edge_examples,
    )


_DESCRIPTION = (
    "What the edges of {} carry: how faithful its nodes are with some of the edges between them, "
    "and single edges by intervention against their weights."
)

CIRCUIT_EDGE_EVALUATIONS_STAGE = _edge_stage(
    "clusters",
    _DESCRIPTION.format("each examined cluster's circuit"),
    partitions=lambda experiment: experiment.examined,
    reads=_reads_cluster,
)

TASK_EDGE_EVALUATIONS_STAGE = _edge_stage(
    "tasks",
    _DESCRIPTION.format("each task's circuit"),
    partitions=lambda experiment: list(task_settings(experiment).pairs),
    reads=_reads_task,
)


def edge_stages(experiment: Experiment) -> list[Stage]:
    """The stages that judge edges; those of clusters where any is examined."""
    stages: list[Stage] = []
    if experiment.examined:
        stages.append(CIRCUIT_EDGE_EVALUATIONS_STAGE)
    if experiment.settings.tasks is not None:
        stages.append(TASK_EDGE_EVALUATIONS_STAGE)
    return stages
