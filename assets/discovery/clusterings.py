"""Stage 4: samples that the model predicts alike, in groups; the chosen clustering gets circuits.

The functions that represent, group and summarise samples are the same for the chosen clustering
and for those compared with it (`assets.discovery.comparisons`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.discovery.tokens import FILTERED_TOKENS_STAGE, example
from assets.engine.loading import Need
from assets.engine.stage import Made, Metadata, Stage, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore
from assets.plots import picture, records
from assets.settings import Experiment, GroupingSettings
from assets.tables.conversions import read_samples, read_vectors, vectors_tables
from assets.tables.places import (
    CHOSEN,
    DICTIONARY_SET,
    FILTERED_TOKENS,
    assignments,
    cluster_pages,
    clusters,
    vectors,
)
from assets.tables.schemas import TABLES
from core.options import WITH_DICTIONARIES, Algorithm, Reduction, Representation

if TYPE_CHECKING:
    from core.discovery import Clustering, Recovery

RECOVERY = ("ami", "ami_with_answer", "ami_within_answers", "purity")
"""Columns that say how well clusters agree with known behaviours: `core.discovery.Recovery`."""
_SUMMARY = ("cluster", "size", "n_documents", "n_answers", "answer_entropy", "coherence")


# -- vectors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Representing:
    """How a sample becomes a vector; what its representation makes no use of is None."""

    representation: Representation
    submodules: tuple[str, ...] | None
    equal_submodules: bool | None
    reduction: Reduction | None
    n_last: int | None
    n_projected: int | None
    seed: int | None

    @property
    def with_dictionaries(self) -> bool:
        """Whether it reads dictionaries."""
        return self.representation in WITH_DICTIONARIES


def representing(experiment: Experiment, how: GroupingSettings) -> Representing:
    """What of the settings of a clustering shapes its vectors."""
    if how.representation == "gradients":
        return Representing("gradients", None, None, None, None, how.n_projected, how.seed)
    every = experiment.mlps if how.representation == "mlp_neurons" else experiment.submodules
    return Representing(
        representation=how.representation,
        submodules=tuple(how.submodules or every),
        equal_submodules=how.equal_submodules,
        reduction=how.reduction,
        n_last=how.n_last if how.reduction == "last" else None,
        n_projected=None,
        seed=None,
    )


def vector_deps(how: Representing) -> Sequence[str]:
    """Dictionaries only where they are read."""
    return ("filtered_tokens", *(["dictionary_set"] if how.with_dictionaries else []))


def vector_needs(how: Representing) -> Sequence[Need]:
    """Likewise."""
    return ("model", "dictionaries") if how.with_dictionaries else ("model",)


def vector_inputs(work: Work, how: Representing) -> Mapping[str, str]:
    """The samples, and the dictionaries where they are read."""
    keys = [FILTERED_TOKENS, *([DICTIONARY_SET] if how.with_dictionaries else [])]
    return {key.path: work.store.content(key) for key in keys}


def represent_samples(work: Work, how: Representing) -> Made:
    """Represent each sample as App. H describes."""
    from core.discovery import represent

    needed: dict[str, Any] = {
        "equal_submodules": how.equal_submodules,
        "reduction": how.reduction,
        "n_last": how.n_last,
        "n_projected": how.n_projected,
        "seed": how.seed,
    }
    vectors: Any = represent(
        work.load.model(),
        work.load.dictionaries() if how.with_dictionaries else {},
        read_samples(work.store.read(FILTERED_TOKENS)),
        representation=how.representation,
        submodules=how.submodules,
        budget_bytes=work.budget_bytes,
        progress=work.say,
        **{name: value for name, value in needed.items() if value is not None},
    )
    notes = {"width": int(vectors.shape[1]), "representation": how.representation}
    return Made(vectors_tables(vectors), {**notes, "reduction": how.reduction})


def show_vectors(work: Work, clustering: str) -> Metadata:
    """Width, and how much of it is not zero."""
    key = vectors(clustering)
    width, n_rows = work.store.notes(key)["width"], work.store.n_rows(key)
    filled = sum(int(np.count_nonzero(values)) for values, _ in vector_values(work.store))
    return {"dimensions": width, "share not zero": filled / max(1, n_rows * width)}


def vector_values(
    store: ArtifactStore, clustering: str = CHOSEN
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers in the vectors, some rows at a time, and where each row begins and ends."""
    for piece in _pieces(store, clustering, ["value"]):
        value = piece["value"].combine_chunks()
        yield value.values.to_numpy(), value.offsets.to_numpy()


def _pieces(
    store: ArtifactStore, clustering: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    file = store.open(vectors(clustering))
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


def load_vectors(store: ArtifactStore, clustering: str, samples: np.ndarray | None = None) -> Any:
    """The vectors of some samples or all, dense or sparse as they were made."""
    key = vectors(clustering)
    width = store.notes(key)["width"]
    if samples is None:
        return read_vectors(_pieces(store, clustering), store.n_rows(key), width)
    chosen = read_vectors(_rows(store, clustering, np.sort(samples)), len(samples), width)
    return chosen[np.argsort(np.argsort(samples))]


def _rows(store: ArtifactStore, clustering: str, rows: np.ndarray) -> Iterator[pa.Table]:
    """Those rows of the vectors, ``rows`` ascending, a piece of the table at a time."""
    start = 0
    for piece in _pieces(store, clustering):
        inside = rows[(rows >= start) & (rows < start + piece.num_rows)] - start
        start += piece.num_rows
        if len(inside):
            yield piece.take(inside)


# -- assignments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How vectors are grouped; see `assets.settings.GroupingSettings`."""

    algorithm: Algorithm
    k: tuple[int, ...]
    seed: int


def grouping(how: GroupingSettings) -> Grouping:
    """What of the settings of a clustering shapes its groups."""
    return Grouping(how.algorithm, how.k, how.seed)


def group_samples(work: Work, how: Grouping, clustering: str) -> Clustering:
    """Group samples whose vectors point the same way."""
    from core.discovery import cluster

    documents = work.store.read(FILTERED_TOKENS, ["document"])["document"].to_pylist()
    return cluster(
        load_vectors(work.store, clustering),
        algorithm=how.algorithm,
        k=how.k[0] if len(how.k) == 1 else how.k,
        groups=documents,
        seed=how.seed,
        budget_bytes=work.budget_bytes,
        progress=work.say,
    )


def assignments_made(clustering: Clustering) -> Made:
    """The table of assignments, and what is noted beside it."""
    rows = [
        {"sample": i, "cluster": int(label), "similarity": float(similarity)}
        for i, (label, similarity) in enumerate(
            zip(clustering.labels, clustering.similarity, strict=True)
        )
    ]
    notes = {
        "k": clustering.k,
        "algorithm": clustering.algorithm,
        "curve": [[point.k, point.n_shared] for point in clustering.curve],
    }
    return Made(TABLES["cluster_assignments"].build(rows), notes)


def load_clustering(store: ArtifactStore, clustering: str = CHOSEN) -> Clustering:
    """The clustering that an assignments table and its footer hold."""
    from core.discovery import Clustering, CurvePoint

    key = assignments(clustering)
    table, notes = store.read(key), store.notes(key)
    return Clustering(
        labels=table["cluster"].to_numpy().astype("int64"),
        similarity=table["similarity"].to_numpy(),
        k=notes["k"],
        curve=[CurvePoint(*point) for point in notes["curve"]],
        algorithm=notes["algorithm"],
    )


def members(labels: Sequence[int] | np.ndarray) -> dict[int, list[int]]:
    """Samples of each cluster, in order: who is in which cluster."""
    of_cluster: dict[int, list[int]] = {}
    for sample, label in enumerate(np.asarray(labels).tolist()):
        of_cluster.setdefault(label, []).append(sample)
    return of_cluster


# -- clusters -------------------------------------------------------------------------------------


def summarize_clusters(work: Work, clustering: Clustering, name: str) -> Made:
    """Summarise each cluster and write a page for it."""
    from assets.corpus.vocabulary import token_text
    from assets.discovery.pages import write_cluster_pages
    from core.discovery import compare_with_truth, summarize

    filtered = work.store.read(FILTERED_TOKENS)
    samples, truth = read_samples(filtered), filtered["label"].to_pylist()
    known = None if None in truth else truth
    tokenizer = work.load.tokenizer()
    summaries = summarize(clustering, samples)
    of_cluster = members(clustering.labels)
    rows = []
    for summary in summaries:
        typical = samples[summary.typical[0]]
        behaviour, share = None, None
        if known is not None:
            labels = Counter(known[i] for i in of_cluster[summary.cluster])
            behaviour, n = labels.most_common(1)[0]
            share = n / labels.total()
        rows.append(
            {
                **{column: getattr(summary, column) for column in _SUMMARY},
                "typical": list(summary.typical),
                "example": example(tokenizer, typical.context, typical.answer),
                "behaviour": behaviour,
                "share": share,
            }
        )
    beside = "" if name == CHOSEN else f", {name}"
    index = write_cluster_pages(
        work.store.path(cluster_pages(name), ""),
        samples,
        clustering,
        summaries,
        token_text(tokenizer),
        title=f"Clusters of {work.about['experiment']}{beside}",
        plots=_plots(work.store, clustering, name),
        truth=known,
    )
    scores = {}
    if known is not None:
        answers = [sample.answer for sample in samples]
        scores = recovery(compare_with_truth(clustering.labels, known, answers))
    pages = sorted(index.parent.glob("*.html"))
    return Made(TABLES["clusters"].build(rows), scores, files=pages)


def _plots(store: ArtifactStore, clustering: Clustering, name: str) -> dict[str, bytes]:
    """Pictures for the overview, by caption."""
    from assets.discovery.pages import plot_curve, plot_similarity, plot_sizes, spread

    shown = load_vectors(store, name, spread(clustering.labels))
    plots = {
        "Samples in each cluster": plot_sizes(clustering),
        "How alike samples are, ordered by cluster": plot_similarity(shown),
    }
    if len(clustering.curve) > 1:
        plots["Clusters that hold more than one document"] = plot_curve(clustering)
    return plots


def recovery(found: Recovery | None) -> dict[str, float | None]:
    """The scores in `RECOVERY`; None where the truth is not known or a score is not defined."""
    if found is None:
        return dict.fromkeys(RECOVERY)
    scores: dict[str, float] = {name: getattr(found, name) for name in RECOVERY}
    return {name: None if math.isnan(score) else score for name, score in scores.items()}


def show_clusters(work: Work, clustering: str) -> Metadata:
    """The largest clusters in a table, and where their pages are."""
    table, notes = work.store.read(clusters(clustering)), work.store.notes(clusters(clustering))
    shown = ["cluster", "size", "n_answers", "example", "behaviour", "share"]
    rows = table.select(shown).slice(0, 25).to_pylist()
    scores = {f"truth: {n}": notes[n] for n in RECOVERY if notes.get(n) is not None}
    return {
        "largest": records(rows),
        "pages": dg.MetadataValue.path(work.store.place(cluster_pages(clustering), "/index.html")),
        "shared by documents": sum(n > 1 for n in table["n_documents"].to_pylist()),
        **scores,
    }


# -- the chosen clustering ------------------------------------------------------------------------


def make_cluster_vectors(work: Work, how: Representing) -> Made:
    """The samples as the chosen clustering sees them."""
    return represent_samples(work, how)


def make_cluster_assignments(work: Work, how: Grouping) -> Made:
    """The chosen clustering."""
    return assignments_made(group_samples(work, how, CHOSEN))


def show_cluster_assignments(work: Work, _how: Grouping) -> Metadata:
    """How many clusters there are and how large."""
    from assets.discovery.pages import plot_curve, plot_sizes

    clustering = load_clustering(work.store)
    shown = {"clusters": clustering.k, "sizes": picture(plot_sizes(clustering))}
    if len(clustering.curve) > 1:
        shown["choice of k"] = picture(plot_curve(clustering))
    return shown


def make_clusters(work: Work, _settings: None) -> Made:
    """What is in each cluster of the chosen clustering."""
    return summarize_clusters(work, load_clustering(work.store), CHOSEN)


CLUSTER_VECTORS_STAGE = TableStage(
    name="cluster_vectors",
    group="clusters",
    description="Each sample as a vector: activations, effects or gradients (App. H).",
    kinds=frozenset({"pytorch", "parquet"}),
    key=vectors(),
    deps=vector_deps,
    needs=vector_needs,
    reads=lambda experiment: representing(experiment, experiment.settings.clustering),
    inputs=vector_inputs,
    make=make_cluster_vectors,
    show=lambda work, _how: show_vectors(work, CHOSEN),
)

CLUSTER_ASSIGNMENTS_STAGE = TableStage(
    name="cluster_assignments",
    group="clusters",
    description="Which cluster each sample belongs to; clusters are numbered by size.",
    kinds=frozenset({"scikitlearn", "parquet"}),
    key=assignments(),
    deps=always("filtered_tokens", "cluster_vectors"),
    reads=lambda experiment: grouping(experiment.settings.clustering),
    inputs=contents(FILTERED_TOKENS, vectors()),
    make=make_cluster_assignments,
    show=show_cluster_assignments,
)

CLUSTERS_STAGE = TableStage(
    name="clusters",
    group="clusters",
    description="What is in each cluster, with a page for each to read.",
    kinds=frozenset({"parquet", "html"}),
    key=clusters(),
    deps=always("filtered_tokens", "cluster_vectors", "cluster_assignments"),
    needs=always("tokenizer"),
    reads=lambda _experiment: None,
    inputs=contents(FILTERED_TOKENS, vectors(), assignments()),
    make=make_clusters,
    show=lambda work, _settings: show_clusters(work, CHOSEN),
)


def discovery_stages(_experiment: Experiment) -> list[Stage]:
    """The stages from contexts to clusters."""
    return [
        FILTERED_TOKENS_STAGE,
        CLUSTER_VECTORS_STAGE,
        CLUSTER_ASSIGNMENTS_STAGE,
        CLUSTERS_STAGE,
    ]
