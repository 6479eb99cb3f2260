"""Stage 6: how much of one behaviour another behaviour's circuit explains.

Two circuits may share most of their nodes and yet explain nothing of each other's behaviour, or
share few and explain it. Nodes of tasks are by position; on a task whose inputs have another number
of tokens a position means nothing, so nodes are kept at every position there, and on tasks of as
many tokens both ways: at their own positions, and everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.circuits.behaviours import Behaviour, read_behaviours
from assets.circuits.pairs import task_settings
from assets.circuits.stages import load_circuit
from assets.engine.stage import Made, Metadata, TableStage, Work, always
from assets.evaluations.overlap import (
    captions,
    circuit_deps,
    circuit_inputs,
    current_names,
    say_stale,
)
from assets.evaluations.summary import Names
from assets.plots import heat_map, picture, records
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import CIRCUIT_TRANSFER, BehaviourSource
from assets.tables.schemas import TABLES
from core.options import Ablation, ErrorNodes

if TYPE_CHECKING:
    from core.types import Circuit, Node

MOST_CLUSTERS = 40
"""Clusters that are judged with each other's circuits at most: work grows with their square."""


@dataclass(frozen=True)
class Transferring:
    """Which circuits are judged on which behaviours, and how; see `EvaluationSettings`."""

    names: Names
    ablation: Ablation
    error_nodes: ErrorNodes
    start_layers: Mapping[BehaviourSource, int]


def _reads(experiment: Experiment) -> Transferring:
    how = experiment.settings.evaluations
    names: dict[BehaviourSource, tuple[str, ...]] = {}
    start_layers: dict[BehaviourSource, int] = {}
    names["clusters"] = tuple(experiment.examined[:MOST_CLUSTERS])
    start_layers["clusters"] = how.start_layer
    if experiment.settings.tasks is not None:
        tasks = task_settings(experiment)
        names["tasks"], start_layers["tasks"] = tuple(tasks.pairs), tasks.start_layer
    return Transferring(names, how.ablation, how.error_nodes[0], start_layers)


def make_circuit_transfer(work: Work, how: Transferring) -> Made:
    """Judge the circuits of each source on all of its behaviours."""
    current = current_names(work.store, how.names)
    n_stale = say_stale(work, how.names, current)
    rows: list[dict[str, Any]] = []
    for source, names in current.items():
        circuits = {name: load_circuit(work.store, source, name) for name in names}
        found = {name: one for name, one in circuits.items() if one is not None and one.nodes}
        of_name = read_behaviours(work.store, source, names)
        for n, behaviour in enumerate(map(of_name.__getitem__, names), start=1):
            if behaviour.chosen("evaluated"):
                rows += _judge(work, how, source, behaviour, found)
            work.say(f"{source}, behaviour {n} of {len(names)}: {len(found)} circuits judged on it")
    return Made(TABLES["circuit_transfer"].build(rows), {"n_stale": n_stale})


def _judge(
    work: Work,
    how: Transferring,
    source: BehaviourSource,
    behaviour: Behaviour,
    circuits: Mapping[str, Circuit],
) -> Iterator[dict[str, Any]]:
    """Every circuit on the examples of one behaviour, whose own runs are shared."""
    from core.evaluate import Evaluator

    inputs = behaviour.inputs("evaluated")
    evaluator = Evaluator(
        work.load.model(),
        work.load.dictionaries(),
        inputs,
        ablation=how.ablation if source == "clusters" else "mean",
        start_layer=how.start_layers[source],
        budget_bytes=work.budget_bytes,
    )
    for name, found in circuits.items():
        ways = {False: everywhere(found.nodes)}
        if found.by_position and found.tokens and len(found.tokens) == inputs.clean.shape[1]:
            ways[True] = list(found.nodes)
        for by_position, nodes in ways.items():
            yield {
                "source": source,
                "name": behaviour.name,
                "circuit": name,
                "by_position": by_position,
                "error_nodes": how.error_nodes,
                "start_layer": how.start_layers[source],
                "n_nodes": len(nodes),
                "faithfulness": evaluator.evaluate(
                    nodes, how.error_nodes, complement=False
                ).faithfulness,
            }


def everywhere(nodes: Sequence[Node]) -> list[Node]:
    """The nodes without their positions, each once; effects are summed over them."""
    effects: dict[tuple[str, int], float] = {}
    for node in nodes:
        place = node.submodule, node.feature
        effects[place] = effects.get(place, 0.0) + node.effect
    return [nodes[0]._replace(submodule=s, feature=f, pos=None, effect=effect, stderr=None)
            for (s, f), effect in effects.items()]  # fmt: skip


def transfer_square(table: Frame, names: Sequence[str]) -> np.ndarray:
    """Faithfulness as a square, ``(behaviour, circuit)``; NaN where it was not judged."""
    wide = table.pivot(index="name", columns="circuit", values="faithfulness")
    return wide.reindex(index=names, columns=names).to_numpy(dtype=float)


def show_circuit_transfer(work: Work, how: Transferring) -> Metadata:
    """Heat maps, and which circuits explain a behaviour that is not theirs."""
    table = frame(work.store.read(CIRCUIT_TRANSFER))
    shown: dict[str, Any] = {"left out as stale": work.store.notes(CIRCUIT_TRANSFER)["n_stale"]}
    for source, names in how.names.items():
        rows = table[(table["source"] == source) & ~table["by_position"]]
        if len(rows):
            called = captions(work.store, source, names)
            drawn = heat_map(
                called,
                called,
                transfer_square(rows, names),
                axes=("behaviour", "circuit"),
                label="faithfulness",
            )
            shown[f"faithfulness on each other, {source}"] = picture(drawn)
    others = table[table["name"] != table["circuit"]].dropna(subset="faithfulness")
    best = others.sort_values("faithfulness", ascending=False, kind="stable").head(25)
    columns = ["name", "circuit", "by_position", "n_nodes", "faithfulness"]
    return {**shown, "best on others": records(best[columns].to_dict("records"))}


CIRCUIT_TRANSFER_STAGE = TableStage(
    name="circuit_transfer",
    group="evaluations",
    description="How much of each behaviour the circuits of others explain: faithfulness on its "
    "examples, for all tasks and the first clusters.",
    kinds=frozenset({"pytorch", "parquet"}),
    key=CIRCUIT_TRANSFER,
    deps=lambda how: circuit_deps(how.names),
    needs=always("model", "dictionaries"),
    reads=_reads,
    inputs=lambda work, how: circuit_inputs(work, how.names, "circuit", "nodes"),
    make=make_circuit_transfer,
    show=show_circuit_transfer,
)
