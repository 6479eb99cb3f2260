"""Stage 3 and 4: tokens worth explaining, and groups of them that the model predicts alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.corpus.contexts import read_contexts
from assets.engine.automation import rerun_on_new_data
from assets.engine.loading import (
    load_dictionaries_of,
    load_model_of,
    load_tokenizer_of,
    tokenizer_identity,
)
from assets.engine.stage import MODEL_POOL, Made, Metadata, Stage, TableStage, Work, on, the_model
from assets.plots import picture
from assets.settings import Experiment
from assets.tables.conversions import (
    read_samples,
    read_vectors,
    samples_table,
    vectors_tables,
)
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.discovery import Clustering

_WITH_DICTIONARIES = {"features", "feature_effects"}
_EXAMPLE_CHARACTERS = 60


# -- filtered tokens ------------------------------------------------------------------------------


def make_filtered_tokens(work: Work) -> Made:
    """Keep the tokens that the model predicts well without copying them (section 5)."""
    from core.discovery import filter_tokens

    settings = work.experiment.settings.filter
    contexts = read_contexts(work.store)
    found = filter_tokens(
        load_model_of(work.experiment),
        ((context.document, context.tokens) for context in contexts),
        max_loss=settings.max_loss,
        min_context=settings.min_context,
        stride=settings.stride,
        max_per_document=settings.max_per_document,
        n_samples=settings.n_samples,
        seed=settings.seed,
        budget_bytes=work.experiment.budget_bytes,
        progress=work.say,
    )
    notes = {"n_tokens": found.n_tokens, "n_windows": found.n_windows, "dropped": found.dropped}
    return Made(samples_table(found.samples, contexts.labels), notes)


def show_filtered_tokens(work: Work) -> Metadata:
    """What was kept, why the rest was not, and a few samples."""
    notes = work.store.notes("filtered_tokens")
    samples = read_samples(work.store.read("filtered_tokens"))
    tokenizer = load_tokenizer_of(work.experiment)
    some = samples[:: max(1, len(samples) // 8)][:8]
    counts = {"kept": len(samples), **notes["dropped"]}
    return {
        "tokens looked at": notes["n_tokens"],
        "share kept": len(samples) / notes["n_tokens"],
        "counts": dg.MetadataValue.table(
            [dg.TableRecord({"tokens": why, "n": n}) for why, n in counts.items()]
        ),
        "examples": dg.MetadataValue.md(
            "\n".join(f"- `{example(tokenizer, s.context, s.answer)}`" for s in some)
        ),
    }


def example(tokenizer: Any, context: Sequence[int], answer_id: int) -> str:
    """The end of a context and its answer in brackets, on one line."""
    before = " ".join(tokenizer.decode(list(context)).split())[-_EXAMPLE_CHARACTERS:]
    answer = tokenizer.decode([answer_id])
    return f"…{before} [{answer.strip() or repr(answer)}]".replace("`", "'")


# -- vectors --------------------------------------------------------------------------------------


def uses_dictionaries(experiment: Experiment) -> bool:
    """Whether the clustering's vectors are made with dictionaries."""
    return experiment.settings.clustering.representation in _WITH_DICTIONARIES


def _places(experiment: Experiment) -> list[str]:
    """The submodules whose activations or effects represent a sample."""
    return list(experiment.settings.clustering.submodules or experiment.submodules)


def make_cluster_vectors(work: Work) -> Made:
    """Represent each sample as App. H describes."""
    from core.discovery import represent

    settings = work.experiment.settings.clustering
    dictionaries = {}
    if uses_dictionaries(work.experiment):
        dictionaries = load_dictionaries_of(work.experiment, work.store)
    vectors: Any = represent(
        load_model_of(work.experiment),
        dictionaries,
        read_samples(work.store.read("filtered_tokens")),
        kind=settings.representation,
        reduction=settings.reduction,
        n_last=settings.n_last,
        n_projected=settings.n_projected,
        seed=settings.seed,
        submodules=None if settings.representation == "gradients" else _places(work.experiment),
        budget_bytes=work.experiment.budget_bytes,
        progress=work.say,
    )
    return Made(vectors_tables(vectors), {"width": int(vectors.shape[1])})


def show_cluster_vectors(work: Work) -> Metadata:
    """Width, and how much of it is not zero."""
    width = work.store.notes("cluster_vectors")["width"]
    n_rows = work.store.n_rows("cluster_vectors")
    filled = sum(int(np.count_nonzero(values)) for values, _ in vector_values(work))
    return {"dimensions": width, "share not zero": filled / max(1, n_rows * width)}


def vector_values(work: Work) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers in the vectors, some rows at a time, and where each row begins and ends."""
    for piece in _pieces(work, ["value"]):
        value = piece["value"].combine_chunks()
        yield value.values.to_numpy(), value.offsets.to_numpy()


def _pieces(work: Work, columns: list[str] | None = None) -> Iterator[pa.Table]:
    file = work.store.open("cluster_vectors")
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns)


def load_vectors(work: Work, samples: np.ndarray | None = None) -> Any:
    """The vectors of some samples or all, dense or sparse as they were made."""
    width = work.store.notes("cluster_vectors")["width"]
    if samples is None:
        return read_vectors(_pieces(work), work.store.n_rows("cluster_vectors"), width)
    found = read_vectors(_some(work, np.sort(samples)), len(samples), width)
    return found[np.argsort(np.argsort(samples))]


def _some(work: Work, rows: np.ndarray) -> Iterator[pa.Table]:
    """Those rows of the vectors, ``rows`` ascending, a piece of the table at a time."""
    start = 0
    for piece in _pieces(work):
        here = rows[(rows >= start) & (rows < start + piece.num_rows)] - start
        start += piece.num_rows
        if len(here):
            yield piece.take(here)


# -- clusters -------------------------------------------------------------------------------------


def make_cluster_assignments(work: Work) -> Made:
    """Group samples whose vectors point the same way."""
    from core.discovery import cluster

    settings = work.experiment.settings.clustering
    documents = work.store.read("filtered_tokens", ["document"])["document"].to_pylist()
    found = cluster(
        load_vectors(work),
        method=settings.algorithm,
        k=settings.k[0] if len(settings.k) == 1 else settings.k,
        groups=documents,
        seed=settings.seed,
        budget_bytes=work.experiment.budget_bytes,
        progress=work.say,
    )
    rows = [
        {"sample": i, "cluster": int(label), "similarity": float(similarity)}
        for i, (label, similarity) in enumerate(zip(found.labels, found.similarity, strict=True))
    ]
    notes = {
        "k": found.k,
        "method": found.method,
        "curve": [[point.k, point.n_shared] for point in found.curve],
    }
    return Made(TABLES["cluster_assignments"].build(rows), notes)


def show_cluster_assignments(work: Work) -> Metadata:
    """How many clusters there are and how large."""
    from assets.discovery.pages import plot_curve, plot_sizes

    clustering = load_clustering(work)
    shown = {"clusters": clustering.k, "sizes": picture(plot_sizes(clustering))}
    if len(clustering.curve) > 1:
        shown["choice of k"] = picture(plot_curve(clustering))
    return shown


def load_clustering(work: Work) -> Clustering:
    """The clustering that the assignments table and its footer hold."""
    from core.discovery import Clustering, CurvePoint

    table = work.store.read("cluster_assignments")
    notes = work.store.notes("cluster_assignments")
    return Clustering(
        labels=table["cluster"].to_numpy().astype("int64"),
        similarity=table["similarity"].to_numpy(),
        k=notes["k"],
        curve=[CurvePoint(*point) for point in notes["curve"]],
        method=notes["method"],
    )


def make_clusters(work: Work) -> Made:
    """Summarise each cluster and write a page for it."""
    from assets.discovery.pages import token_text, write_cluster_pages
    from core.discovery import summarize

    filtered = work.store.read("filtered_tokens")
    samples, truth = read_samples(filtered), filtered["label"].to_pylist()
    clustering, tokenizer = load_clustering(work), load_tokenizer_of(work.experiment)
    summaries = summarize(clustering, samples)
    rows = []
    for summary in summaries:
        typical = samples[summary.typical[0]]
        behaviour, share = _behaviour([truth[i] for i in members(clustering, summary.cluster)])
        rows.append(
            {
                **{name: getattr(summary, name) for name in _SUMMARY},
                "typical": list(summary.typical),
                "example": example(tokenizer, typical.context, typical.answer),
                "behaviour": behaviour,
                "share": share,
            }
        )
    known = None if None in truth else truth
    how = work.experiment.settings.clustering
    write_cluster_pages(
        work.store.path("clusters", ""),
        samples,
        clustering,
        summaries,
        token_text(tokenizer),
        title=f"Clusters of {work.experiment.name}: {how.representation}, {how.algorithm}",
        plots=_plots(work, clustering),
        truth=known,
    )
    return Made(TABLES["clusters"].build(rows), _agreement_with(clustering, known))


def _plots(work: Work, clustering: Clustering) -> dict[str, bytes]:
    """Pictures for the overview, by caption."""
    from assets.discovery.pages import plot_curve, plot_similarity, plot_sizes, spread

    vectors = load_vectors(work, spread(clustering.labels))
    plots = {
        "Samples in each cluster": plot_sizes(clustering),
        "How alike samples are, ordered by cluster": plot_similarity(vectors),
    }
    if len(clustering.curve) > 1:
        plots["Clusters that hold more than one document"] = plot_curve(clustering)
    return plots


_SUMMARY = ("cluster", "size", "n_documents", "n_answers", "answer_entropy", "coherence")


def members(clustering: Clustering, cluster: int) -> list[int]:
    """Samples of one cluster, in order."""
    return (clustering.labels == cluster).nonzero()[0].tolist()


def _behaviour(labels: Sequence[str | None]) -> tuple[str | None, float | None]:
    """The most frequent label and its share; None where a label is not known."""
    known = [label for label in labels if label is not None]
    if not known or len(known) < len(labels):
        return None, None
    label, n = Counter(known).most_common(1)[0]
    return label, n / len(labels)


def _agreement_with(clustering: Clustering, truth: Sequence[str] | None) -> dict[str, float]:
    if truth is None:
        return {}
    from core.discovery import compare_with_truth

    found = compare_with_truth(clustering.labels, truth)
    return {"ami": found.ami, "purity": found.purity}


def show_clusters(work: Work) -> Metadata:
    """The largest clusters in a table, and where their pages are."""
    table, notes = work.store.read("clusters"), work.store.notes("clusters")
    shown = ("cluster", "size", "n_answers", "example", "behaviour", "share")
    rows = [{k: _plain(row[k]) for k in shown} for row in table.slice(0, 25).to_pylist()]
    scores = {f"truth: {name}": notes[name] for name in ("ami", "purity") if name in notes}
    return {
        "largest": dg.MetadataValue.table([dg.TableRecord(row) for row in rows]),
        "pages": dg.MetadataValue.path(work.store.path("clusters/index", ".html")),
        "shared by documents": sum(n > 1 for n in table["n_documents"].to_pylist()),
        **scores,
    }


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _clustering_settings(*names: str) -> Any:
    def settings(experiment: Experiment) -> Mapping[str, object]:
        return experiment.settings.clustering.model_dump(mode="json", include=set(names))

    return settings


FILTERED_TOKENS = TableStage(
    name="filtered_tokens",
    group="tokens",
    description=(
        "Tokens worth explaining: those the model predicts with little loss and does not copy "
        "from the context."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("contexts"),
    settings=lambda experiment: experiment.settings.filter.model_dump(mode="json"),
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    make=make_filtered_tokens,
    show=show_filtered_tokens,
)

CLUSTER_VECTORS = TableStage(
    name="cluster_vectors",
    group="clusters",
    description="Each sample as a vector: activations, effects or gradients (App. H).",
    kinds=frozenset({"pytorch", "parquet"}),
    deps=lambda experiment: (
        ("filtered_tokens", "dictionary_set")
        if uses_dictionaries(experiment)
        else ("filtered_tokens",)
    ),
    settings=_clustering_settings(
        "representation", "submodules", "reduction", "n_last", "n_projected", "seed"
    ),
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    make=make_cluster_vectors,
    show=show_cluster_vectors,
)

CLUSTER_ASSIGNMENTS = TableStage(
    name="cluster_assignments",
    group="clusters",
    description="Which cluster each sample belongs to; clusters are numbered by size.",
    kinds=frozenset({"scikitlearn", "parquet"}),
    deps=on("filtered_tokens", "cluster_vectors"),
    settings=_clustering_settings("algorithm", "k", "seed"),
    automation=rerun_on_new_data,
    make=make_cluster_assignments,
    show=show_cluster_assignments,
)

CLUSTERS = TableStage(
    name="clusters",
    group="clusters",
    description="What is in each cluster, with a page for each to read.",
    kinds=frozenset({"parquet", "html"}),
    deps=on("filtered_tokens", "cluster_vectors", "cluster_assignments"),
    settings=lambda _experiment: {},
    outside=lambda experiment: {"tokenizer": tokenizer_identity(experiment)},
    automation=rerun_on_new_data,
    make=make_clusters,
    show=show_clusters,
)


def discovery_stages(_experiment: Experiment) -> list[Stage]:
    """The stages from contexts to clusters."""
    return [FILTERED_TOKENS, CLUSTER_VECTORS, CLUSTER_ASSIGNMENTS, CLUSTERS]
