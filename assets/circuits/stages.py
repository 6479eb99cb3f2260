"""Stage 5: the circuit of each behaviour, whatever its source, written as soon as it is found.

Pictures are drawn when somebody asks for one (`explorer`, `pipelines.show --draw`); the UI has
small ones of the first circuits of each source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.circuits.behaviours import (
    CLUSTER_BEHAVIOURS_STAGE,
    Behaviour,
    classifier_settings,
    example_lines,
    read_behaviours,
)
from assets.circuits.each import is_shown_whole, stage_of_each
from assets.circuits.pairs import TASK_BEHAVIOURS_STAGE, task_settings
from assets.engine.lineage import lineage_markdown
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Stage, Work
from assets.engine.store import ArtifactStore
from assets.plots import records, vector_picture
from assets.settings import CircuitSettings, Experiment
from assets.tables.conversions import circuit_tables, label_texts, read_circuit
from assets.tables.places import (
    CLASSIFIER,
    DICTIONARY_SET,
    LABELS,
    BehaviourSource,
    behaviours,
    circuit,
)
from core.estimators import Attribution, Enough, Estimator, Exact, IntegratedGradients

if TYPE_CHECKING:
    from core.types import Circuit

FLOOR = 1e-4
"""Effects of nodes and edges above this are kept, so that a circuit can be cut at any threshold
above it."""

TOLERANCE = 0.1
"""Of adaptive integrals where the experiment names none."""

_SHOWN_NODES = 12
_DRAWN_NODES = 16


@dataclass(frozen=True)
class Finding:
    """How a circuit is found; see `assets.settings.CircuitSettings`.

    `lowest` is the least effect of the nodes and edges kept for circuits of other sizes.
    """

    estimator: Estimator
    node_threshold: float
    edge_threshold: float
    enough: Enough | None = None
    lowest: float = FLOOR


def estimator_of(settings: CircuitSettings) -> Estimator:
    """The estimator that an experiment names, as the core takes it."""
    if settings.estimator == "exact":
        return Exact()
    if settings.estimator == "attribution":
        return Attribution()
    if settings.rule == "adaptive":
        tolerance = settings.tolerance or TOLERANCE
        return IntegratedGradients(
            settings.steps, "adaptive", tolerance, max(64, 8 * settings.steps)
        )
    return IntegratedGradients(settings.steps, settings.rule)


def _make_one(
    source: BehaviourSource, of_name: Mapping[str, Behaviour], work: Work, job: Job[Finding]
) -> tuple[Made, str]:
    """The tables of one circuit, and its size in words."""
    from core.circuit import attribute

    how, behaviour = job.settings, of_name[job.key]
    if not behaviour.examples:
        return _tables(source, job.key, None, None, None), "empty"
    effects = attribute(
        work.load.model(),
        work.load.dictionaries(),
        behaviour.inputs("found"),
        estimator=how.estimator,
        by_position=behaviour.by_position,
        enough=how.enough,
        budget_bytes=work.budget_bytes,
    )
    joined = effects.circuit(
        node_threshold=how.node_threshold,
        edge_threshold=min(how.lowest, how.edge_threshold),
        edges=how.estimator.has_gradients,
        settings={**work.about, "name": job.key, "made_from": dict(job.recipe.inputs)},
        tokens=behaviour.tokens,
    )
    found = joined.with_edges_above(how.edge_threshold)
    every = effects.circuit(node_threshold=how.lowest, edge_threshold=0.0, edges=False)
    cut = (how.node_threshold, how.edge_threshold)
    return _tables(source, job.key, found, every, joined, cut), _size(found)


def _size(found: Circuit) -> str:
    """How large a circuit is and what it rests on, in words."""
    said = f"{len(found.nodes)} nodes from {found.n_examples} examples"
    if found.stability is not None:
        said += f", stability {found.stability:.2f}"
    if found.unmet:
        said += (
            f"; {found.unmet:.1%} of integrals are short of the tolerance, the largest gap left is "
            f"{max(found.gaps.values()):.2g} on average"
        )
    return said


def _tables(
    source: BehaviourSource,
    name: str,
    found: Circuit | None,
    every: Circuit | None,
    joined: Circuit | None,
    cut: tuple[float, float] | None = None,
) -> Made:
    tables = circuit_tables(name, found)
    of_edges = circuit_tables(name, joined, included_above=cut)["edges"]
    beside = {
        circuit(source, name, "effects"): circuit_tables(name, every, included_above=cut)["nodes"],
        circuit(source, name, "edge_effects"): of_edges,
        circuit(source, name, "edges"): tables["edges"],
        circuit(source, name, "nodes"): tables["nodes"],
    }
    return Made(tables["circuit"], beside=beside)


def load_circuit(store: ArtifactStore, source: BehaviourSource, name: str) -> Circuit | None:
    """A circuit; None for an empty cluster."""
    parts = ("circuit", "nodes", "edges")
    return read_circuit({part: store.read(circuit(source, name, part)) for part in parts})


def read_labels(store: ArtifactStore) -> dict[str, str]:
    """What features are called, by name (``attn_3/1234``); nothing while there are no labels."""
    return label_texts(store.read(LABELS)) if store.footer(LABELS) is not None else {}


def columns_of(source: BehaviourSource, experiment: str) -> dg.TableColumnLineage:
    """Which columns of the behaviours and the dictionary_set each column of a circuit is of."""
    of_behaviours = dg.AssetKey([experiment, behaviours(source).stage])
    of_set = dg.AssetKey([experiment, DICTIONARY_SET.stage])
    own = {"name": ["name"], "n_examples": ["n_found"], "tokens": ["tokens"]}
    computed = ("n_nodes", "n_edges", "metric_clean", "metric_patch", "gaps")
    dictionaries = dg.TableColumnDep(of_set, "weights")
    return dg.TableColumnLineage(
        {
            **{c: [dg.TableColumnDep(of_behaviours, n) for n in of] for c, of in own.items()},
            **{c: [dg.TableColumnDep(of_behaviours, "digest"), dictionaries] for c in computed},
        }
    )


def show_circuit_of(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """Figures and where to look; of the first circuits also nodes, examples and a picture."""
    key = circuit(source, name)
    head = next(iter(work.store.read(key, list(_HEAD)).to_pylist()), None)
    lines = {"dagster/column_lineage": columns_of(source, work.about["experiment"])}
    if head is None:
        return {"empty": True, "nodes": 0, "edges": 0, **lines}
    figures = {said: head[column] for column, said in _HEAD.items() if head[column] is not None}
    whole = _show_whole(source, work, name) if is_shown_whole(source, name) else {}
    address = dg.MetadataValue.url(f"{work.explorer}/{source}/{name}")
    return {"empty": False, **figures, "explorer": address, **lines, **whole}


_HEAD = {
    "n_nodes": "nodes",
    "n_edges": "edges",
    "n_examples": "examples",
    "stability": "stability",
    "gap": "largest completeness gap",
    "metric_clean": "metric",
}
"""Columns of a circuit that the UI shows, and what it calls them."""


def _show_whole(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """Picture, strongest nodes with their labels, examples, settings and lineage."""
    found = load_circuit(work.store, source, name)
    assert found is not None, "it has a head"
    behaviour = read_behaviours(work.store, source, [name])[name]
    labels = read_labels(work.store)
    made_from = work.makings.of(circuit(source, name).path)
    return {
        "drawing": _drawing(found, name, labels),
        **_standings(found),
        "strongest nodes": strongest_nodes(found, labels),
        "reads": dg.MetadataValue.md(example_lines(behaviour, work.load.tokenizer())),
        "lineage": dg.MetadataValue.md(lineage_markdown(made_from)),
        "settings": dg.MetadataValue.json(dict(found.settings)),
    }


def _standings(found: Circuit) -> dict[str, int]:
    """How many nodes other examples would keep, where that is known."""
    from core.stability import count_standings, standing_of

    counts = count_standings(standing_of(found))
    return {f"{name} nodes": n for name, n in counts.items() if n is not None}


def _drawing(found: Circuit, name: str, labels: Mapping[str, str]) -> dg.MetadataValue[Any]:
    """The strongest part of the circuit, small enough for the event log."""
    from core.pictures.draw import draw_circuit

    drawn = draw_circuit(
        found, labels=labels, title=name, max_nodes=_DRAWN_NODES, max_edges=2 * _DRAWN_NODES
    )
    return vector_picture(drawn)


def strongest_nodes(found: Circuit, labels: Mapping[str, str]) -> dg.MetadataValue[Any]:
    """The nodes with the largest effects, as a table in the UI, labelled where labels are known."""
    nodes = sorted(found.nodes, key=lambda node: -abs(node.effect))[:_SHOWN_NODES]
    rows: list[dict[str, Any]] = [
        {"node": node.name, "effect": node.effect, "standard error": node.stderr} for node in nodes
    ]
    if labels:
        known = [labels.get(node._replace(pos=None).name, "") for node in nodes]
        rows = [{**row, "label": label} for row, label in zip(rows, known, strict=True)]
    return records(rows)


def _circuit_stage(
    source: BehaviourSource,
    description: str,
    *,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], Finding],
) -> PartitionedStage[Finding]:
    """The stage that finds the circuits of the behaviours of one source."""
    return stage_of_each(
        source,
        circuit,
        _make_one,
        "circuit",
        group="circuits",
        description=description,
        beside=["nodes", "edges"],
        partitions=partitions,
        reads=reads,
        show=show_circuit_of,
    )


def _reads_cluster(experiment: Experiment, _name: str) -> Finding:
    settings = experiment.settings.circuits
    threshold, wanted = settings.node_threshold, settings.stability
    enough = None if wanted is None else Enough(wanted, threshold, settings.round)
    return Finding(estimator_of(settings), threshold, settings.edge_threshold, enough)


def task_estimator(experiment: Experiment) -> Estimator:
    """The estimator of pairs: the experiment's, with the points that tasks name."""
    estimator = estimator_of(experiment.settings.circuits)
    if isinstance(estimator, IntegratedGradients):
        return IntegratedGradients(task_settings(experiment).steps)
    return estimator


def _reads_task(experiment: Experiment, _name: str) -> Finding:
    tasks = task_settings(experiment)
    return Finding(task_estimator(experiment), tasks.node_threshold, tasks.edge_threshold)


CIRCUITS_STAGE = _circuit_stage(
    "clusters",
    "The circuit of each cluster: the features and errors with the largest effect on the model's "
    "odds of the answers, and the edges between them.",
    partitions=lambda experiment: experiment.clusters,
    reads=_reads_cluster,
)

TASK_CIRCUITS_STAGE = _circuit_stage(
    "tasks",
    "The circuit of each task, from contrastive pairs: the features and errors that carry the "
    "difference between the two sides to the answer, and the edges between them.",
    partitions=lambda experiment: list(task_settings(experiment).pairs),
    reads=_reads_task,
)


def _reads_classifier(experiment: Experiment, _name: str) -> Finding:
    settings = classifier_settings(experiment).circuit
    estimator = estimator_of(experiment.settings.circuits)
    if isinstance(estimator, IntegratedGradients):
        estimator = IntegratedGradients(settings.steps)
    return Finding(estimator, settings.node_threshold, settings.edge_threshold)


CLASSIFIER_CIRCUITS_STAGE = _circuit_stage(
    "classifiers",
    "The circuit of the classifier: the features and errors with the largest effect on the margin "
    "of its probe, and the edges between them, as far as the layer that the probe reads.",
    partitions=lambda _experiment: [CLASSIFIER],
    reads=_reads_classifier,
)


def task_stages(experiment: Experiment) -> list[Stage]:
    """The stage that reads files of pairs, where the experiment has any; it needs no dictionary."""
    return [] if experiment.settings.tasks is None else [TASK_BEHAVIOURS_STAGE]


def circuit_stages(experiment: Experiment) -> list[Stage]:
    """The stages to circuits, and before it the behaviours of clusters.

    Those of tasks are made by `task_stages`, a classifier's in `assets.shift`, before these.
    """
    stages: list[Stage] = [CLUSTER_BEHAVIOURS_STAGE, CIRCUITS_STAGE]
    if experiment.settings.tasks is not None:
        stages.append(TASK_CIRCUITS_STAGE)
    if experiment.settings.classifier is not None:
        stages.append(CLASSIFIER_CIRCUITS_STAGE)
    return stages
