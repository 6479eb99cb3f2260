"""Other clusterings of the same samples, beside the one whose clusters get circuits.

Each is made by the same stages with other settings, and lies below ``comparisons/NAME/``. One
table scores them all against each other and, where labels are known, against the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from assets.discovery.stages import (
    CLUSTER_ASSIGNMENTS,
    CLUSTER_VECTORS,
    CLUSTERS,
    load_clustering,
    uses_dictionaries,
)
from assets.engine.automation import rerun_on_new_data, rerun_when_all_are_done
from assets.engine.partitions import comparison_partitions, one_by_one
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
from assets.engine.store import ArtifactStore, Recipe, digest
from assets.settings import CHOSEN, Experiment
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    import numpy as np

ANSWERS = "answer token"
"""One cluster for each answer: what a clustering that knows nothing of the model gives."""

_OWN = frozenset({"cluster_vectors", "cluster_assignments", "clusters"})


class _Beside(ArtifactStore):
    """The experiment's store, but with tables of its own for one clustering."""

    def __init__(self, store: ArtifactStore, name: str) -> None:
        super().__init__(store.root)
        self.name = name

    def path(self, key: str, suffix: str = ".parquet"):
        if key.split("/")[0] in _OWN:
            key = f"comparisons/{self.name}/{key}"
        return super().path(key, suffix)


def beside(work: Work, name: str) -> Work:
    """The same work, as if the comparison of this name were the experiment's clustering."""
    settings = work.experiment.settings
    chosen = settings.model_copy(update={"clustering": settings.comparisons[name]})
    experiment = replace(work.experiment, settings=chosen)
    return replace(work, experiment=experiment, store=_Beside(work.store, name))


# -- each of them ---------------------------------------------------------------------------------


def make_compared_clusterings(work: Work, recipes: Mapping[str, Recipe]) -> None:
    """Represent, group and summarise the samples once for each comparison."""
    for name, recipe in recipes.items():
        own = beside(work, name)
        for stage in (CLUSTER_VECTORS, CLUSTER_ASSIGNMENTS, CLUSTERS):
            stage.run(own)
        work.store.write(_score_key(name), TABLES["clustering_score"].build([_score(own)]), recipe)


def _score_key(name: str) -> str:
    return f"comparisons/{name}/clustering_score"


def _score(own: Work) -> dict[str, Any]:
    """What one clustering is, and how it looks by itself."""
    settings = own.experiment.settings.clustering
    clusters = own.store.read("clusters").to_pylist()
    return {
        "representation": settings.representation,
        "reduction": settings.reduction if settings.representation != "gradients" else None,
        "algorithm": settings.algorithm,
        "n_clusters": len(clusters),
        "n_shared": sum(row["n_documents"] > 1 for row in clusters),
        "answer_entropy": _weighted(clusters, "answer_entropy"),
        "coherence": _weighted([row for row in clusters if row["size"] > 1], "coherence"),
    }


def _weighted(clusters: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean over samples of what their clusters have; None where there is no cluster."""
    if not clusters:
        return None
    return fmean([row[column] for row in clusters], [row["size"] for row in clusters])


def show_compared_clustering(work: Work, name: str) -> Metadata:
    """What this clustering found, as the chosen one shows it."""
    return CLUSTERS.show(beside(work, name))


def _partition_inputs(work: Work, name: str) -> Mapping[str, str]:
    own = beside(work, name).experiment
    tables = ["filtered_tokens", *(["dictionary_set"] if uses_dictionaries(own) else [])]
    return {key: work.store.content(key) for key in tables}


# -- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labelled:
    """The samples as one clustering groups them."""

    name: str
    labels: np.ndarray
    score: Mapping[str, Any]


def make_clustering_comparison(work: Work) -> Made:
    """Score every clustering, and say which of its clusters hold each behaviour."""
    from sklearn.metrics import adjusted_mutual_info_score

    from core.discovery import compare_with_truth

    truth = work.store.read("filtered_tokens", ["label"])["label"].to_pylist()
    scores, behaviours = [], []
    found = list(_clusterings(work))
    for one in found:
        alike = float(adjusted_mutual_info_score(found[0].labels, one.labels))
        # Without labels there is nothing to recover.
        against = None if None in truth else compare_with_truth(one.labels, truth)
        known = {name: against and getattr(against, name) for name in ("ami", "purity")}
        scores.append({"name": one.name, **one.score, **known, "ami_with_chosen": alike})
        for behaviour, shares in ({} if against is None else against.behaviours).items():
            row = {"name": one.name, "behaviour": behaviour}
            behaviours += [{**row, **share._asdict()} for share in shares]
    return Made(
        TABLES["clustering_comparison"].build(scores),
        beside={"clustering_behaviours": TABLES["clustering_behaviours"].build(behaviours)},
    )


def _clusterings(work: Work) -> Iterator[_Labelled]:
    """The chosen one, the others, and the answers themselves."""
    yield _Labelled(CHOSEN, load_clustering(work).labels, _score(work))
    for name in work.experiment.settings.comparisons:
        score = work.store.read(_score_key(name)).to_pylist()[0]
        yield _Labelled(name, load_clustering(beside(work, name)).labels, score)
    yield _answers(work)


def _answers(work: Work) -> _Labelled:
    table = work.store.read("filtered_tokens", ["answer", "document"])
    answers = table["answer"].to_numpy()
    documents: dict[int, set[int]] = {}
    for answer, document in zip(answers.tolist(), table["document"].to_pylist(), strict=True):
        documents.setdefault(answer, set()).add(document)
    score = {
        "representation": None,
        "reduction": None,
        "algorithm": None,
        "n_clusters": len(documents),
        "n_shared": sum(len(some) > 1 for some in documents.values()),
        "answer_entropy": 0.0,
        "coherence": None,
    }
    return _Labelled(ANSWERS, answers, score)


def show_clustering_comparison(work: Work) -> Metadata:
    """The scores of all clusterings, side by side."""
    rows = work.store.read("clustering_comparison").to_pylist()
    return {
        "clusterings": dg.MetadataValue.table(
            [dg.TableRecord({name: _plain(row[name]) for name in _SHOWN}) for row in rows]
        )
    }


_SHOWN = ("name", "n_clusters", "n_shared", "ami_with_chosen", "ami", "purity")


def _plain(value: object) -> str | int | float:
    return "" if value is None else cast("str | int | float", value)


def _comparison_inputs(work: Work) -> Mapping[str, str]:
    content, names = work.store.content, work.experiment.settings.comparisons
    scored = [(name, content(_score_key(name))) for name in names]
    groups = [content(f"comparisons/{name}/cluster_assignments") for name in names]
    tables = ("filtered_tokens", "cluster_assignments", "clusters")
    return {**{key: content(key) for key in tables}, "comparisons": digest([scored, groups])}


def _settings(experiment: Experiment) -> Mapping[str, object]:
    return experiment.settings.model_dump(mode="json", include={"comparisons"})


COMPARED_CLUSTERINGS = PartitionedStage(
    name="compared_clusterings",
    group="clusters",
    description=(
        "The same samples clustered in other ways, each with vectors, assignments and pages of "
        "its own below comparisons/."
    ),
    kinds=frozenset({"pytorch", "scikitlearn", "parquet"}),
    deps=on("filtered_tokens", "dictionary_set"),
    settings=_settings,
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    partitions=comparison_partitions,
    backfill=one_by_one,
    table="clustering_score",
    key=_score_key,
    inputs=_partition_inputs,
    make=make_compared_clusterings,
    show=show_compared_clustering,
)

CLUSTERING_COMPARISON = TableStage(
    name="clustering_comparison",
    group="clusters",
    description=(
        "All clusterings in one table: their clusters, how alike they are, and how well they "
        "recover the behaviours where these are known."
    ),
    kinds=frozenset({"scikitlearn", "parquet"}),
    deps=on("filtered_tokens", "cluster_assignments", "clusters", "compared_clusterings"),
    settings=_settings,
    automation=rerun_when_all_are_done,
    inputs=_comparison_inputs,
    make=make_clustering_comparison,
    show=show_clustering_comparison,
)


def comparison_stages(experiment: Experiment) -> list[Stage]:
    """The stages that compare clusterings; none where the experiment names no comparison."""
    compared = bool(experiment.settings.comparisons)
    return [COMPARED_CLUSTERINGS, CLUSTERING_COMPARISON] if compared else []
