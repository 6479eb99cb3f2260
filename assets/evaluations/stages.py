"""Stage 6: how much of its behaviour each circuit explains, and a summary over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.circuits.stages import load_circuit, single_inputs
from assets.engine.automation import rerun_when_all_are_done, together_with_parent
from assets.engine.loading import load_dictionaries_of, load_model_of
from assets.engine.partitions import circuits_together, cluster_partitions
from assets.engine.stage import (
    MODEL_POOL,
    Made,
    Metadata,
    PartitionedStage,
    Stage,
    TableStage,
    Work,
    on,
    the_model,
)
from assets.engine.store import Recipe, digest
from assets.plots import histogram, picture
from assets.settings import Experiment
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.types import Circuit

_EVALUATION = ("m_full", "m_empty", "m_circuit", "m_complement", "faithfulness", "completeness")


# -- of each circuit ------------------------------------------------------------------------------


def make_circuit_evaluations(work: Work, recipes: Mapping[str, Recipe]) -> None:
    """Judge the circuits of these clusters on examples kept back."""
    for n, (cluster, recipe) in enumerate(recipes.items(), start=1):
        circuit = load_circuit(work.store, f"circuits/{cluster}")
        rows = [] if circuit is None else list(_judge(work, cluster, circuit))
        table = TABLES["circuit_evaluations"].build(rows)
        work.store.write(
            f"circuit_evaluations/{cluster}", table, recipe, like="circuit_evaluations"
        )
        said = f"faithfulness {rows[0]['faithfulness']:.2f}" if rows else "empty"
        work.say(f"evaluation {n} of {len(recipes)}: {cluster}, {said}")


def _judge(work: Work, cluster: str, circuit: Circuit) -> Iterator[dict[str, Any]]:
    from core.evaluate import Evaluator

    settings = work.experiment.settings.evaluations
    examples = work.store.read(f"circuits/{cluster}/examples").to_pylist()
    judged = [row for row in examples if row["evaluated"]]
    inputs = single_inputs(judged)
    for errors in settings.errors:
        evaluator = Evaluator(
            load_model_of(work.experiment),
            load_dictionaries_of(work.experiment, work.store),
            inputs,
            ablation=settings.ablation,
            errors=errors,
            start_layer=settings.start_layer,
            budget_bytes=work.experiment.budget_bytes,
        )
        found = asdict(evaluator.evaluate(circuit))
        yield {
            **{name: found[name] for name in _EVALUATION},
            "name": cluster,
            "errors": errors,
            "ablation": settings.ablation,
            "n_examples": found["n_examples"],
            "held_out": not any(row["found"] for row in judged),
            "n_nodes": found["n_nodes"],
        }


def show_circuit_evaluation(work: Work, cluster: str) -> Metadata:
    """Faithfulness and completeness under each policy for errors."""
    shown: dict[str, Any] = {}
    for row in work.store.read(f"circuit_evaluations/{cluster}").to_pylist():
        for name in ("faithfulness", "completeness"):
            if math.isfinite(row[name]):
                shown[f"{name} ({row['errors']})"] = row[name]
    return shown


def _inputs(work: Work, cluster: str) -> Mapping[str, str]:
    # Edges do not enter: the same nodes and examples give the same numbers.
    circuit = {
        name: work.store.content(f"circuits/{cluster}/{name}") for name in ("nodes", "examples")
    }
    return {"dictionary_set": work.store.content("dictionary_set"), **circuit}


def _settings(experiment: Experiment) -> Mapping[str, object]:
    return experiment.settings.evaluations.model_dump(mode="json", exclude={"min_faithfulness"})


# -- of all of them -------------------------------------------------------------------------------


def make_evaluation_summary(work: Work) -> Made:
    """One row for each circuit and policy, with what its cluster is about."""
    clusters = {row["cluster"]: row for row in work.store.read("clusters").to_pylist()}
    rows = []
    for key in work.experiment.clusters:
        cluster = clusters.get(int(key[1:]))
        heads = work.store.read(f"circuits/{key}/circuit").to_pylist()
        if cluster is None or not heads:
            continue
        about = {name: cluster[name] for name in ("cluster", "size", "example", "behaviour")}
        for row in work.store.read(f"circuit_evaluations/{key}").to_pylist():
            # Nodes of the circuit itself, also those that this policy leaves out.
            rows.append({**row, **about, **{n: heads[0][n] for n in ("n_nodes", "n_edges")}})
    return Made(TABLES["evaluation_summary"].build(rows))


def show_evaluation_summary(work: Work) -> Metadata:
    """How faithful the circuits are, as numbers, a picture and a table."""
    rows = work.store.read("evaluation_summary").to_pylist()
    shown: dict[str, Any] = {}
    for errors in work.experiment.settings.evaluations.errors:
        values = finite([row["faithfulness"] for row in rows if row["errors"] == errors])
        if values:
            shown[f"median faithfulness ({errors})"] = median(values)
            shown[f"faithfulness ({errors})"] = picture(
                histogram(values, f"faithfulness, errors: {errors}", low=-0.5, high=1.5)
            )
    columns = ("cluster", "size", "n_nodes", "n_edges", "faithfulness", "example")
    first = work.experiment.settings.evaluations.errors[0]
    largest = [row for row in rows if row["errors"] == first][:25]
    shown["largest clusters"] = dg.MetadataValue.table(
        [dg.TableRecord({name: row[name] for name in columns}) for row in largest]
    )
    return shown


def finite(values: Sequence[float]) -> list[float]:
    """Those values that are numbers: faithfulness is not where ablation changes nothing."""
    return [value for value in values if math.isfinite(value)]


def _summary_inputs(work: Work) -> Mapping[str, str]:
    keys, content = work.experiment.clusters, work.store.content
    return {
        "clusters": content("clusters"),
        "circuits": digest([content(f"circuits/{key}/circuit") for key in keys]),
        "circuit_evaluations": digest([content(f"circuit_evaluations/{key}") for key in keys]),
    }


CIRCUIT_EVALUATIONS = PartitionedStage(
    name="circuit_evaluations",
    group="evaluations",
    description=(
        "Faithfulness and completeness of each circuit: what of the model's behaviour is left "
        "when everything outside the circuit, or the circuit itself, is ablated."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("circuits", "dictionary_set"),
    settings=_settings,
    outside=the_model,
    pool=MODEL_POOL,
    automation=together_with_parent,
    partitions=cluster_partitions,
    backfill=circuits_together,
    table="circuit_evaluations",
    key=lambda cluster: f"circuit_evaluations/{cluster}",
    inputs=_inputs,
    make=make_circuit_evaluations,
    show=show_circuit_evaluation,
)

EVALUATION_SUMMARY = TableStage(
    name="evaluation_summary",
    group="evaluations",
    description="All circuits in one table: what each is about, its size, how faithful it is.",
    kinds=frozenset({"parquet"}),
    deps=on("clusters", "circuits", "circuit_evaluations"),
    settings=lambda experiment: {"clusters": experiment.clusters},
    automation=rerun_when_all_are_done,
    inputs=_summary_inputs,
    make=make_evaluation_summary,
    show=show_evaluation_summary,
)


def evaluation_stages(_experiment: Experiment) -> list[Stage]:
    """The stages that judge the circuits of clusters."""
    return [CIRCUIT_EVALUATIONS, EVALUATION_SUMMARY]
