"""Other clusterings of the same samples, beside the one whose clusters get circuits.

Each is a partition, made by the functions that make the chosen one. One table scores them all
against each other and, where labels are known, against the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assets.discovery.clusterings import (
    RECOVERY,
    Grouping,
    Representing,
    assignments_made,
    group_samples,
    grouping,
    load_clustering,
    recovery,
    represent_samples,
    representing,
    show_clusters,
    show_vectors,
    summarize_clusters,
    vector_deps,
    vector_inputs,
    vector_needs,
)
from assets.engine.stage import (
    Job,
    Made,
    Metadata,
    PartitionedStage,
    Stage,
    TableStage,
    Work,
    always,
)
from assets.engine.store import ArtifactStore
from assets.plots import records
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import (
    CHOSEN,
    CLUSTERING_BEHAVIOURS,
    CLUSTERING_COMPARISON,
    FILTERED_TOKENS,
    assignments,
    clustering_score,
    clusters,
    vectors,
)
from assets.tables.schemas import TABLES

ANSWERS = "answer token"
"""One cluster for each answer: what a clustering that knows nothing of the model gives."""


def _names(experiment: Experiment) -> list[str]:
    return list(experiment.settings.comparisons)


# -- each of them ---------------------------------------------------------------------------------


def make_compared_vectors(
    work: Work, jobs: Sequence[Job[Representing]]
) -> Iterator[tuple[str, Made]]:
    """The samples as each comparison sees them."""
    for job in jobs:
        yield job.key, represent_samples(work, job.settings)


def make_compared_clusterings(
    work: Work, jobs: Sequence[Job[Grouping]]
) -> Iterator[tuple[str, Made]]:
    """Group and summarise the samples once for each comparison."""
    for job in jobs:
        clustering = group_samples(work, job.settings, job.key)
        summary = summarize_clusters(work, clustering, job.key)
        notes = work.store.notes(vectors(job.key))
        row = _score(frame(summary.table), notes, job.settings.algorithm)
        beside = {assignments(job.key): assignments_made(clustering), clusters(job.key): summary}
        yield job.key, Made(TABLES["clustering_score"].build([row]), beside=beside)


def _score(summary: Frame, notes: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """What one clustering is, and how it looks by itself."""
    shared = summary[summary["size"] > 1]
    return {
        "representation": notes["representation"],
        "reduction": notes["reduction"],
        "algorithm": algorithm,
        "n_clusters": len(summary),
        "n_shared": int((summary["n_documents"] > 1).sum()),
        "answer_entropy": _weighted(summary, "answer_entropy"),
        "coherence": _weighted(shared, "coherence"),
    }


def _weighted(summary: Frame, column: str) -> float | None:
    """The mean over samples of what their clusters have; None where there is no cluster."""
    return float(np.average(summary[column], weights=summary["size"])) if len(summary) else None


# -- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labelled:
    """The samples as one clustering groups them."""

    name: str
    labels: np.ndarray
    score: Mapping[str, Any]


def make_clustering_comparison(work: Work, names: Sequence[str]) -> Made:
    """Score every clustering, and say which of its clusters hold each behaviour."""
    from sklearn.metrics import adjusted_mutual_info_score

    from core.discovery import compare_with_truth

    samples = work.store.read(FILTERED_TOKENS, ["label", "answer"])
    truth, answers = samples["label"].to_pylist(), samples["answer"].to_pylist()
    scores, behaviours = [], []
    clusterings = list(_clusterings(work.store, names))
    for one in clusterings:
        alike = float(adjusted_mutual_info_score(clusterings[0].labels, one.labels))
        # Without labels there is nothing to recover.
        found = None if None in truth else compare_with_truth(one.labels, truth, answers)
        row = {"name": one.name, **one.score, **recovery(found), "ami_with_chosen": alike}
        scores.append(row)
        for behaviour, shares in ({} if found is None else found.behaviours).items():
            of_one = {"name": one.name, "behaviour": behaviour}
            behaviours += [{**of_one, **share._asdict()} for share in shares]
    return Made(
        TABLES["clustering_comparison"].build(scores),
        beside={CLUSTERING_BEHAVIOURS: TABLES["clustering_behaviours"].build(behaviours)},
    )


def _clusterings(store: ArtifactStore, names: Sequence[str]) -> Iterator[_Labelled]:
    """The chosen one, the others, and the answers themselves."""
    clustering, notes = load_clustering(store), store.notes(vectors())
    score = _score(frame(store.read(clusters())), notes, clustering.algorithm)
    yield _Labelled(CHOSEN, clustering.labels, score)
    for name in names:
        score = store.read(clustering_score(name)).to_pylist()[0]
        yield _Labelled(name, load_clustering(store, name).labels, score)
    yield _answers(store)


def _answers(store: ArtifactStore) -> _Labelled:
    table = frame(store.read(FILTERED_TOKENS, ["answer", "document"]))
    n_documents = table.groupby("answer")["document"].nunique()
    score = {
        "representation": None,
        "reduction": None,
        "algorithm": None,
        "n_clusters": len(n_documents),
        "n_shared": int((n_documents > 1).sum()),
        "answer_entropy": 0.0,
        "coherence": None,
    }
    return _Labelled(ANSWERS, table["answer"].to_numpy(), score)


def show_clustering_comparison(work: Work, _names: Sequence[str]) -> Metadata:
    """The scores of all clusterings, side by side."""
    return {"clusterings": records(work.store.read(CLUSTERING_COMPARISON, _SHOWN).to_pylist())}


_SHOWN = ["name", "n_clusters", "n_shared", "ami_with_chosen", *RECOVERY]


def _comparison_inputs(work: Work, names: Sequence[str]) -> Mapping[str, str]:
    keys = [FILTERED_TOKENS, vectors(), assignments(), clusters()]
    for name in names:
        keys += [clustering_score(name), assignments(name)]
    return {key.path: work.store.content(key) for key in keys}


COMPARED_VECTORS_STAGE = PartitionedStage(
    name="compared_vectors",
    group="clusters",
    description="Each sample as the clusterings that are compared with the chosen one see it.",
    kinds=frozenset({"pytorch", "parquet"}),
    key=vectors,
    partitions=_names,
    deps=vector_deps,
    needs=vector_needs,
    reads=lambda experiment, name: representing(experiment, experiment.settings.comparisons[name]),
    inputs=lambda work, settings: {k: vector_inputs(work, how) for k, how in settings.items()},
    make=make_compared_vectors,
    show=show_vectors,
)

COMPARED_CLUSTERINGS_STAGE = PartitionedStage(
    name="compared_clusterings",
    group="clusters",
    description="The same samples clustered in other ways, each with pages of its own.",
    kinds=frozenset({"scikitlearn", "parquet", "html"}),
    key=clustering_score,
    beside=["cluster_assignments", "clusters"],
    partitions=_names,
    deps=always("filtered_tokens", "compared_vectors"),
    needs=always("tokenizer"),
    reads=lambda experiment, name: grouping(experiment.settings.comparisons[name]),
    inputs=lambda work, settings: {
        name: {key.path: work.store.content(key) for key in (FILTERED_TOKENS, vectors(name))}
        for name in settings
    },
    make=make_compared_clusterings,
    show=show_clusters,
)

CLUSTERING_COMPARISON_STAGE = TableStage(
    name="clustering_comparison",
    group="clusters",
    description=(
        "All clusterings in one table: their clusters, how alike they are, and how well they "
        "recover the behaviours where these are known."
    ),
    kinds=frozenset({"scikitlearn", "parquet"}),
    key=CLUSTERING_COMPARISON,
    beside=[CLUSTERING_BEHAVIOURS],
    deps=always(
        "filtered_tokens",
        "cluster_vectors",
        "cluster_assignments",
        "clusters",
        "compared_clusterings",
    ),
    reads=_names,
    inputs=_comparison_inputs,
    make=make_clustering_comparison,
    show=show_clustering_comparison,
)


def comparison_stages(experiment: Experiment) -> list[Stage]:
    """The stages that compare clusterings; none where the experiment names no comparison."""
    if not experiment.settings.comparisons:
        return []
    return [COMPARED_VECTORS_STAGE, COMPARED_CLUSTERINGS_STAGE, CLUSTERING_COMPARISON_STAGE]
