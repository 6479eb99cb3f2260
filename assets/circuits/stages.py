"""Stage 5: a circuit for each cluster, written as soon as it is found."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from assets.discovery.stages import example
from assets.engine.automation import rerun_on_new_data
from assets.engine.loading import load_dictionaries_of, load_model_of, load_tokenizer_of
from assets.engine.partitions import circuits_together, cluster_partitions
from assets.engine.stage import MODEL_POOL, Metadata, PartitionedStage, Stage, Work, on, the_model
from assets.engine.store import ArtifactStore, Recipe
from assets.settings import Experiment
from assets.tables.conversions import circuit_tables, read_circuit, read_samples
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.discovery import Sample
    from core.inputs import Inputs
    from core.types import Circuit

CIRCUIT_TABLES = ("circuit", "nodes", "edges")
_SHOWN_NODES = 12


@dataclass(frozen=True)
class Examples:
    """Samples of one cluster: those a circuit is found from and those it is judged on.

    They are the same where the cluster is too small to keep any back.
    """

    found: Sequence[int]
    evaluated: Sequence[int]


def choose_examples(members: Sequence[int], *, n_found: int, n_evaluated: int) -> Examples:
    """Split a cluster's samples; which is in which part depends on their numbers alone."""
    # A checksum shuffles without a generator, and alike on every machine.
    shuffled = sorted(members, key=lambda sample: zlib.crc32(str(sample).encode()))
    n_back = min(n_evaluated, len(shuffled) // 3)
    evaluated, rest = shuffled[:n_back], shuffled[n_back:]
    found = rest[:n_found]
    return Examples(sorted(found), sorted(evaluated or found))


def examples_table(
    samples: Mapping[int, Sample], chosen: Examples, max_length: int | None
) -> pa.Table:
    """The examples table of a circuit; contexts are cut to their last `max_length` tokens.

    `samples` are those of the cluster, by number.
    """
    return TABLES["examples"].build(
        {
            "sample": i,
            "found": i in chosen.found,
            "evaluated": i in chosen.evaluated,
            "tokens": list(samples[i].context[-(max_length or 0) :]),
            "answer": samples[i].answer,
        }
        for i in sorted({*chosen.found, *chosen.evaluated})
    )


def single_inputs(rows: Sequence[Mapping[str, Any]]) -> Inputs:
    """Single inputs from rows of the examples table."""
    import torch

    from core.inputs import Inputs, pad

    tokens, mask = pad([row["tokens"] for row in rows])
    return Inputs.single(tokens, torch.tensor([row["answer"] for row in rows]), mask)


def make_circuits(work: Work, recipes: Mapping[str, Recipe]) -> None:
    """Find the circuit of each of these clusters."""
    samples = read_samples(work.store.read("filtered_tokens"))
    labels = work.store.read("cluster_assignments", ["cluster"])["cluster"].to_pylist()
    of_cluster: dict[int, list[int]] = {}
    for sample, label in enumerate(labels):
        of_cluster.setdefault(label, []).append(sample)
    for n, (cluster, recipe) in enumerate(recipes.items(), start=1):
        members = {i: samples[i] for i in of_cluster.get(int(cluster[1:]), [])}
        circuit = _make_one(work, cluster, members, recipe)
        size = "empty" if circuit is None else f"{len(circuit.nodes)} nodes"
        work.say(f"circuit {n} of {len(recipes)}: {cluster}, {len(members)} samples, {size}")


def _make_one(
    work: Work, cluster: str, members: Mapping[int, Sample], recipe: Recipe
) -> Circuit | None:
    settings = work.experiment.settings.circuits
    chosen = choose_examples(
        list(members), n_found=settings.n_examples, n_evaluated=settings.n_evaluated
    )
    table = examples_table(members, chosen, settings.max_length)
    circuit = None
    if members:
        rows = [row for row in table.to_pylist() if row["found"]]
        circuit = find_one(work, single_inputs(rows), cluster, recipe.inputs)
    work.store.write(f"circuits/{cluster}/examples", table, recipe)
    title = f"{work.experiment.name} {cluster}"
    write_circuit(work.store, f"circuits/{cluster}", cluster, circuit, recipe, title)
    return circuit


def find_one(work: Work, inputs: Inputs, name: str, made_from: Mapping[str, str]) -> Circuit:
    """The circuit of these inputs, with the experiment's settings."""
    from core.circuit import find_circuit

    settings = work.experiment.settings.circuits
    return find_circuit(
        load_model_of(work.experiment),
        load_dictionaries_of(work.experiment, work.store),
        inputs,
        estimator=settings.estimator,
        steps=settings.steps,
        rule=settings.rule,
        node_threshold=settings.node_threshold,
        edge_threshold=settings.edge_threshold,
        edges=settings.estimator != "exact",
        budget_bytes=work.experiment.budget_bytes,
        settings=lineage(work.experiment, name, made_from),
    )


def lineage(experiment: Experiment, name: str, made_from: Mapping[str, str]) -> dict[str, object]:
    """What a circuit says about where it comes from: names, and hashes of what it was made from."""
    return {
        "experiment": experiment.name,
        "name": name,
        "model": experiment.settings.model.source,
        "corpus": experiment.settings.corpus.source,
        "made_from": dict(made_from),
    }


def write_circuit(
    store: ArtifactStore,
    folder: str,
    name: str,
    circuit: Circuit | None,
    recipe: Recipe,
    title: str,
) -> None:
    """Picture, edges, nodes, and last the table that says the circuit is complete."""
    from core.pictures.draw import draw_circuit

    if circuit is None:
        store.path(f"{folder}/circuit", ".svg").unlink(missing_ok=True)
    else:
        store.write_text(f"{folder}/circuit", ".svg", draw_circuit(circuit, title=title))
    tables = circuit_tables(name, circuit)
    for table in reversed(CIRCUIT_TABLES):
        store.write(f"{folder}/{table}", tables[table], recipe)


def load_circuit(store: ArtifactStore, folder: str) -> Circuit | None:
    """The circuit in a folder of the store; None for an empty cluster."""
    return read_circuit({name: store.read(f"{folder}/{name}") for name in CIRCUIT_TABLES})


def show_circuit(work: Work, cluster: str) -> Metadata:
    """Size, lineage, the strongest nodes, an example and the picture's place."""
    folder = f"circuits/{cluster}"
    circuit = load_circuit(work.store, folder)
    if circuit is None:
        return {"empty": True, "nodes": 0, "edges": 0}
    return {
        "empty": False,
        "nodes": len(circuit.nodes),
        "edges": len(circuit.edges),
        "examples": circuit.n_examples,
        "metric": circuit.metric_clean,
        "strongest nodes": strongest_nodes(circuit),
        "reads": dg.MetadataValue.md(_first_examples(work, folder)),
        "picture": dg.MetadataValue.path(work.store.path(f"{folder}/circuit", ".svg")),
        "settings": dg.MetadataValue.json(dict(circuit.settings)),
    }


def strongest_nodes(circuit: Circuit) -> dg.TableMetadataValue:
    """The nodes with the largest effects, as a table in the UI."""
    nodes = sorted(circuit.nodes, key=lambda node: -abs(node.effect))[:_SHOWN_NODES]
    return dg.MetadataValue.table(
        [dg.TableRecord({"node": node.name, "effect": round(node.effect, 4)}) for node in nodes],
        schema=dg.TableSchema([dg.TableColumn("node"), dg.TableColumn("effect", "float")]),
    )


def _first_examples(work: Work, folder: str, n: int = 5) -> str:
    tokenizer = load_tokenizer_of(work.experiment)
    lines = []
    for row in work.store.read(f"{folder}/examples").slice(0, n).to_pylist():
        lines.append(f"- `{example(tokenizer, row['tokens'], row['answer'])}`")
    return "\n".join(lines)


def _inputs(work: Work, _cluster: str) -> Mapping[str, str]:
    deps = CIRCUITS.deps(work.experiment)
    return {name: work.store.content(name) for name in deps}


def _settings(experiment: Experiment) -> Mapping[str, object]:
    return experiment.settings.circuits.model_dump(mode="json")


CIRCUITS = PartitionedStage(
    name="circuits",
    group="circuits",
    description=(
        "The circuit of each cluster: the features and errors with the largest effect on the "
        "model's log-probability of the answers, and the edges between them."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("filtered_tokens", "cluster_assignments", "dictionary_set"),
    settings=_settings,
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    partitions=cluster_partitions,
    backfill=circuits_together,
    table="circuit",
    key=lambda cluster: f"circuits/{cluster}/circuit",
    inputs=_inputs,
    make=make_circuits,
    show=show_circuit,
)


def circuit_stages(_experiment: Experiment) -> list[Stage]:
    """The stage that finds circuits."""
    return [CIRCUITS]
