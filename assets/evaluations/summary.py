"""Stage 6: all circuits in one table: what each is about, its size, how faithful it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.circuits.pairs import task_settings
from assets.engine.stage import Made, Metadata, TableStage, Work
from assets.engine.store import ArtifactStore, together
from assets.plots import histogram, picture, records
from assets.settings import Experiment
from assets.tables.conversions import frame, read_nodes
from assets.tables.places import (
    CLASSIFIER,
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    BehaviourSource,
    Key,
    baselines,
    behaviours,
    circuit,
    evaluation,
)
from assets.tables.schemas import TABLES

Names = Mapping[BehaviourSource, tuple[str, ...]]
"""The behaviours that have a circuit, by source."""
Point = Mapping[str, Any]
"""A circuit of some size as it was judged: ``n_nodes`` and ``faithfulness`` among others."""


@dataclass(frozen=True)
class Summed:
    """What is summed up.

    Attributes:
        names: the behaviours that have a circuit, by source.
        compared: those of them that are held against baselines.
    """

    names: Names
    compared: Names


def names_of(experiment: Experiment) -> Names:
    """The behaviours of an experiment that have a circuit."""
    names: dict[BehaviourSource, tuple[str, ...]] = {"clusters": tuple(experiment.clusters)}
    if experiment.settings.tasks is not None:
        names["tasks"] = tuple(task_settings(experiment).pairs)
    if experiment.settings.classifier is not None:
        names["classifiers"] = (CLASSIFIER,)
    return names


def compared_of(experiment: Experiment) -> Names:
    """Those whose circuits are held against baselines, by source."""
    if not experiment.settings.evaluations.variants:
        return {}
    tasks = names_of(experiment).get("tasks", ())
    names: Names = {"clusters": tuple(experiment.examined), "tasks": tasks}
    return {source: of_source for source, of_source in names.items() if of_source}


def make_evaluation_summary(work: Work, summed: Summed) -> Made:
    """One row for each circuit, start layer and policy for error nodes."""
    rows, n_stale, dictionaries = [], 0, work.store.content(DICTIONARY_SET)
    for source, of_source in summed.names.items():
        known = {row["name"]: row for row in work.store.read(behaviours(source)).to_pylist()}
        for name in of_source:
            made_from = {"behaviour": known[name]["digest"], DICTIONARY_SET.path: dictionaries}
            if not _is_of(work.store, source, name, made_from):
                n_stale += 1
                continue
            compared = name in summed.compared.get(source, ())
            halves = _halves(work.store, source, name, made_from) if compared else {}
            rows += _rows(work.store, source, known[name], halves)
    if n_stale:
        work.say(f"{n_stale} circuits are of earlier examples or dictionaries and left out")
    return Made(TABLES["evaluation_summary"].build(rows), {"n_stale": n_stale})


def _is_of(
    store: ArtifactStore, source: BehaviourSource, name: str, made_from: Mapping[str, str]
) -> bool:
    """Whether circuit and evaluation were made from the examples and dictionaries there are now."""
    keys = (circuit(source, name), evaluation(source, name))
    return all(store.notes(key)["inputs"].items() >= made_from.items() for key in keys)


Halves = Mapping[tuple[str, int], float | None]
"""Nodes for half of a behaviour, by variant and start layer."""


def _halves(
    store: ArtifactStore, source: BehaviourSource, name: str, made_from: Mapping[str, str]
) -> Halves:
    """Nodes for half of a behaviour; none where baselines are of earlier examples."""
    key = baselines(source, name)
    if store.footer(key) is None or not store.notes(key)["inputs"].items() >= made_from.items():
        return {}
    rows = store.read(baselines(source, name, "baseline_scores")).to_pylist()
    return {(row["variant"], row["start_layer"]): row["nodes_half"] for row in rows}


def _rows(
    store: ArtifactStore, source: BehaviourSource, behaviour: Mapping[str, Any], halves: Halves
) -> Iterator[dict[str, Any]]:
    name = behaviour["name"]
    heads = store.rows(circuit(source, name), [*_FOUND, "settings"])
    found = {column: heads[0][column] for column in _FOUND} if heads else {}
    stands = _stands(store, source, name, heads)
    for (start_layer, error_nodes), points in _by_policy(store, evaluation(source, name)):
        own = next(point for point in points if point["threshold"] is None)
        curve = [point for point in points if point["threshold"] is not None]
        yield {
            **{column: behaviour[column] for column in _BEHAVIOUR},
            **{column: own[column] for column in _JUDGED},
            **found,  # the circuit's own nodes, also those that this policy leaves out
            **stands,
            "source": source,
            "start_layer": start_layer,
            "error_nodes": error_nodes,
            "n_judged": own["n_nodes"],
            "area": area_of(curve),
            "at_100": at_100(curve),
            "nodes_half": nodes_for(curve, 0.5),
            "nodes_nine_tenths": nodes_for(curve, 0.9),
            **_against_neurons(halves, start_layer, error_nodes),
        }


def _by_policy(store: ArtifactStore, key: Key) -> Iterable[tuple[tuple[int, str], list[Point]]]:
    """The points of an evaluation by start layer and policy for error nodes, in their order."""
    found: dict[tuple[int, str], list[Point]] = {}
    for point in store.rows(key, ["start_layer", "error_nodes", "threshold", "n_nodes", *_JUDGED]):
        found.setdefault((point["start_layer"], point["error_nodes"]), []).append(point)
    return found.items()


def _against_neurons(halves: Halves, start_layer: int, error_nodes: str) -> dict[str, float | None]:
    variant = {"circuit": "features", "drop": "no_errors", "drop_but_resid": "residual_errors"}
    features = halves.get((variant.get(error_nodes, ""), start_layer))
    neurons = halves.get(("neurons", start_layer))
    return {
        "half_by_features": features,
        "half_by_neurons": neurons,
        "neurons_per_feature": neurons / features if features and neurons else None,
    }


def _stands(
    store: ArtifactStore, source: BehaviourSource, name: str, heads: Sequence[Mapping[str, Any]]
) -> dict[str, int | None]:
    """How many nodes of a circuit other examples would keep, as columns."""
    from core.stability import count_standings, standings

    nodes = read_nodes(store.read(circuit(source, name, "nodes")))
    settings = json.loads(heads[0]["settings"]) if heads else {}
    return {f"n_{k}": n for k, n in count_standings(standings(nodes, settings)).items()}


_FOUND = ("n_nodes", "n_edges", "gap", "unmet", "stability")
_BEHAVIOUR = ("name", "size", "about", "label", "metric")
_JUDGED = (
    *("n_examples", "held_out", "m_full", "m_empty"),
    *("faithfulness", "faithfulness_low", "faithfulness_high", "completeness"),
)


def area_of(curve: Sequence[Point]) -> float:
    """Area under faithfulness against the kept share of all nodes with an effect.

    NaN where faithfulness is not defined, or the curve has no node at all.
    """
    from core.evaluate import area

    most = max((point["n_nodes"] for point in curve), default=0)
    heights = [point["faithfulness"] for point in curve]
    if not most > 0 or any(map(math.isnan, heights)):
        return math.nan
    return area([0.0, *(point["n_nodes"] / most for point in curve)], [0.0, *heights])


def nodes_for(curve: Sequence[Point], share: float) -> int | None:
    """The fewest nodes of the curve whose faithfulness is at least `share`; None if none is."""
    enough = (point["n_nodes"] for point in curve if point["faithfulness"] >= share)
    return min(enough, default=None)


def at_100(curve: Sequence[Point]) -> float | None:
    """Faithfulness of the hundred strongest nodes, or of all where fewer have an effect."""
    from core.sweep import faithfulness_of

    sizes = [point["n_nodes"] for point in curve]
    n_nodes = min(100, max(sizes, default=100))
    return faithfulness_of(n_nodes, sizes, [point["faithfulness"] for point in curve])


def show_evaluation_summary(work: Work, _summed: Summed) -> Metadata:
    """How faithful the circuits are, as numbers, a picture and a table."""
    table = frame(work.store.read(EVALUATION_SUMMARY))
    shown: dict[str, Any] = {"left out as stale": work.store.notes(EVALUATION_SUMMARY)["n_stale"]}
    policies = table.groupby(["source", "start_layer", "error_nodes"], sort=False)
    for (source, start_layer, error_nodes), rows in policies:
        values = rows["faithfulness"].dropna()
        if len(values):
            what = f"{source}, from layer {start_layer}, error nodes: {error_nodes}"
            shown[f"median faithfulness ({what})"] = float(values.median())
            shown[f"faithfulness ({what})"] = picture(
                histogram(values.tolist(), f"faithfulness, {what}", low=-0.5, high=1.5)
            )
    columns = ["source", "name", "size", "n_nodes", "n_edges"]
    columns += ["faithfulness", "faithfulness_low", "faithfulness_high", "at_100", "area", "gap"]
    columns += ["stability", "n_core", "n_contingent", "n_noise", "neurons_per_feature", "about"]
    first = table.drop_duplicates(["source", "name"])[columns].head(25)
    shown["circuits"] = records(first.to_dict("records"))
    return shown


def finite(values: Sequence[float]) -> list[float]:
    """Those values that are numbers: faithfulness is not where ablation changes nothing."""
    return [value for value in values if math.isfinite(value)]


def _inputs(work: Work, summed: Summed) -> Mapping[str, str]:
    content = work.store.content
    inputs = {DICTIONARY_SET.path: content(DICTIONARY_SET)}
    for source, of_source in summed.compared.items():
        scores = (baselines(source, name, "baseline_scores") for name in of_source)
        inputs[baselines(source, "").stage] = together(map(content, scores))
    for source, of_source in summed.names.items():
        inputs[behaviours(source).path] = content(behaviours(source))
        inputs[circuit(source, "").stage] = together(
            content(key(source, name)) for name in of_source for key in (circuit, evaluation)
        )
    return inputs


def _deps(summed: Summed) -> Sequence[str]:
    return [
        DICTIONARY_SET.stage,
        *(baselines(source, "").stage for source in summed.compared),
        *(
            key.stage
            for source in summed.names
            for key in (behaviours(source), circuit(source, ""), evaluation(source, ""))
        ),
    ]


EVALUATION_SUMMARY_STAGE = TableStage(
    name="evaluation_summary",
    group="evaluations",
    description="All circuits in one table: what each is about, its size, how faithful it is.",
    kinds=frozenset({"pandas", "parquet"}),
    key=EVALUATION_SUMMARY,
    deps=_deps,
    reads=lambda experiment: Summed(names_of(experiment), compared_of(experiment)),
    inputs=_inputs,
    make=make_evaluation_summary,
    show=show_evaluation_summary,
)
