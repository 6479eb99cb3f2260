"""Clusters of samples: spectral on angular similarity, or k-means (App. H.2, H.3).

    similarity(x, y) = 1 - arccos(cos(x, y)) / pi     1 same direction, 1/2 unrelated, 0 opposite

Spectral clustering cuts the graph of all similarities: k-means on the leading eigenvectors of
D^-1/2 S D^-1/2, scaled by D^-1/2, as scikit-learn does. The eigenvectors are computed once for
all numbers of clusters tried, which scikit-learn's own class cannot; a test holds the two equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from core.discovery.filter import Sample
from core.errors import InputError, NotFinite, OutOfBudget
from core.options import ALGORITHMS, Algorithm, check_option

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    Vectors: TypeAlias = np.ndarray | csr_array

_N_INIT: Mapping[Algorithm, int] = {"spectral": 10, "kmeans": 3}
_DENSE_EIGEN = 2500
_FULL_BATCH = 10_000


class CurvePoint(NamedTuple):
    """A number of clusters that was tried, and how many of them hold more than one group."""

    k: int
    n_shared: int


@dataclass(frozen=True)
class Clustering:
    """Samples put into clusters, numbered from the largest (0) to the smallest.

    Attributes:
        labels: ``(sample,)``, cluster numbers.
        similarity: ``(sample,)``, mean cosine with the other members of its cluster; NaN where
            it is the only one.
        k: number of clusters asked for, the best of those tried; some may have come out empty.
        curve: every number tried.
        algorithm: ``spectral`` or ``kmeans``.
    """

    labels: np.ndarray
    similarity: np.ndarray
    k: int
    curve: list[CurvePoint]
    algorithm: Algorithm


class ClusterSummary(NamedTuple):
    """What a cluster holds.

    ``answer_entropy`` is that of the answers, in nats; ``coherence`` the mean cosine of pairs of
    members, NaN for a single one; ``typical`` the samples most like the others, the best first.
    """

    cluster: int
    size: int
    n_documents: int
    n_answers: int
    answer_entropy: float
    coherence: float
    typical: tuple[int, ...]


def n_rows(vectors: Vectors) -> int:
    """Number of samples, for dense and sparse vectors alike."""
    assert vectors.shape is not None
    return int(vectors.shape[0])


def unit_rows(vectors: Vectors) -> Vectors:
    """Vectors scaled to length 1; those of length 0 stay 0, at cosine 0 from everything.

    Raises:
        NotFinite: a vector has NaN or infinity.
    """
    from sklearn.preprocessing import normalize

    values: Any = vectors if isinstance(vectors, np.ndarray) else vectors.data
    if not np.isfinite(values).all():
        raise NotFinite("vectors to cluster hold NaN or infinity: no similarity is defined.")
    scaled: Any = normalize(vectors)
    return scaled


def angular_similarity(vectors: Vectors, *, budget_bytes: int = 4 << 30) -> np.ndarray:
    """1 - arccos(cosine) / pi between all pairs of samples (App. H.2).

    Args:
        vectors: ``(sample, width)``.
        budget_bytes: memory for the matrix and one of the same size while it is made.

    Returns:
        ``(sample, sample)`` float32, symmetric, in [0, 1], 1 on the diagonal. A zero vector is
        unrelated (1/2) to all others.

    Raises:
        OutOfBudget: the matrix does not fit.
        NotFinite: a vector has NaN or infinity.
    """
    n_samples = n_rows(vectors)
    needed = 2 * 4 * n_samples**2
    if needed > budget_bytes:
        fits = int((budget_bytes / 8) ** 0.5)
        raise OutOfBudget(
            f"similarities between {n_samples} samples need {needed / 2**30:.2f} GiB, more than "
            f"the budget of {budget_bytes / 2**30:.2f} GiB: take at most {fits} samples, cluster "
            "with kmeans, or raise the budget."
        )
    unit = unit_rows(vectors)
    product: Any = unit @ unit.T
    cosine = product if isinstance(product, np.ndarray) else product.toarray()
    cosine = np.clip(cosine.astype(np.float32, copy=False), -1, 1, out=cosine)
    np.arccos(cosine, out=cosine)
    cosine /= -np.pi
    cosine += 1
    # Rounding leaves a vector at an angle of about 1e-4 from itself.
    np.fill_diagonal(cosine, 1)
    return cosine


def cluster(
    vectors: Vectors,
    *,
    algorithm: Algorithm = "kmeans",
    k: int | Sequence[int],
    groups: Sequence[int] | None = None,
    seed: int = 0,
    budget_bytes: int = 4 << 30,
    progress: Callable[[str], None] | None = None,
) -> Clustering:
    """Put samples into k clusters.

    Args:
        vectors: ``(sample, width)``, dense or sparse; only directions count.
        algorithm: ``spectral`` (up to about 8,192 samples) or ``kmeans`` on vectors of length 1
            (mini-batches above 10,000 samples).
        k: number of clusters, or a list to choose from as App. H.3 does: the one with most
            clusters that hold more than one group; among equals the smallest.
        groups: ``(sample,)``, the context or document of each; None: each sample its own.
        seed: of k-means' starting points.
        budget_bytes: for the similarity matrix.
        progress: told of each k.

    Raises:
        InputError: an unknown algorithm, no sample, or k below 1 or above the number of samples.
        OutOfBudget: the similarity matrix does not fit.
        NotFinite: a vector has NaN or infinity.
    """
    n_samples = n_rows(vectors)
    tried = sorted({k} if isinstance(k, int) else set(k))
    _check(algorithm, tried, n_samples, groups)
    unit = unit_rows(vectors)
    if algorithm == "spectral":
        points = _spectral_embedding(unit, max(tried), seed, budget_bytes)
    else:
        points = _coordinates(unit)
    owners = np.arange(n_samples) if groups is None else np.asarray(groups)
    curve: list[CurvePoint] = []
    best: tuple[CurvePoint, np.ndarray] | None = None
    for n_clusters in tried:
        # The leading eigenvectors of fewer clusters are the first of those of more.
        columns = points[:, :n_clusters] if algorithm == "spectral" else points
        labels = _kmeans(columns, n_clusters, _N_INIT[algorithm], seed)
        point = CurvePoint(n_clusters, _n_shared(labels, owners))
        curve.append(point)
        if progress is not None:
            progress(f"{algorithm}: k={n_clusters}, {point.n_shared} clusters hold several")
        if best is None or point.n_shared > best[0].n_shared:
            best = point, labels
    assert best is not None
    labels = _by_size(best[1])
    return Clustering(labels, _similarity_to_others(unit, labels), best[0].k, curve, algorithm)


def _check(algorithm: str, tried: list[int], n_samples: int, groups: Sequence[int] | None) -> None:
    check_option("algorithm", algorithm, ALGORITHMS)
    if not tried or tried[0] < 1:
        raise InputError("k must be at least 1, or a list of such numbers: how many clusters?")
    if tried[-1] > n_samples:
        raise InputError(
            f"{tried[-1]} clusters were asked for, but there are only {n_samples} samples: lower "
            "k, or keep more samples by a looser filter or more text."
        )
    if groups is not None and len(groups) != n_samples:
        raise InputError(f"{len(groups)} groups were given for {n_samples} samples.")


def _spectral_embedding(unit: Vectors, n_vectors: int, seed: int, budget_bytes: int) -> np.ndarray:
    """Leading eigenvectors of the normalised similarity graph, ``(sample, n_vectors)``."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    leading: Any = eigsh
    graph = angular_similarity(unit, budget_bytes=budget_bytes)
    n_samples = len(graph)
    np.fill_diagonal(graph, 0)
    scale = 1 / np.sqrt(np.maximum(graph.sum(1, dtype=np.float64), 1e-12))
    graph *= scale[:, None].astype(np.float32)
    graph *= scale[None, :].astype(np.float32)
    if n_samples <= _DENSE_EIGEN or n_vectors > n_samples // 4:
        subset = (n_samples - n_vectors, n_samples - 1)
        values, vectors = eigh(graph, subset_by_index=subset, overwrite_a=True, check_finite=False)
    else:
        start = np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)
        values, vectors = leading(graph, n_vectors, which="LA", v0=start, tol=1e-4)
    vectors = vectors[:, np.argsort(-values)] * scale[:, None]
    # An eigenvector's sign is arbitrary: make its largest entry positive, on any machine.
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(n_vectors)])


def _coordinates(unit: Vectors) -> Any:
    """Points at the same distances from each other in as few dimensions as is cheap to find.

    k-means sees nothing but distances, so fewer dimensions than columns change no result: n
    samples span at most n, and the square root of their Gram matrix gives coordinates there.
    """
    from scipy import sparse
    from scipy.linalg import eigh

    points: Any = unit
    n_samples = n_rows(unit)
    if n_samples <= _DENSE_EIGEN and points.shape[1] > 2 * n_samples:
        gram = points @ points.T
        gram = gram.toarray() if sparse.issparse(gram) else gram
        values, vectors = eigh(gram.astype(np.float64), overwrite_a=True, check_finite=False)
        return vectors * np.sqrt(values.clip(min=0))
    if sparse.issparse(points) and points.nnz < 2**31:
        # scikit-learn takes 32-bit indices only.
        points = sparse.csr_array(
            (points.data, points.indices.astype(np.int32), points.indptr.astype(np.int32)),
            points.shape,
        )
    return points


def _kmeans(points: Any, n_clusters: int, n_init: int, seed: int) -> np.ndarray:
    """Cluster numbers from scikit-learn's k-means, ``(sample,)``."""
    from sklearn import cluster as sklearn_cluster

    options: Any = {"n_clusters": n_clusters, "n_init": n_init, "random_state": seed}
    if points.shape[0] > _FULL_BATCH:
        kmeans: Any = sklearn_cluster.MiniBatchKMeans(batch_size=4096, **options)
    else:
        kmeans = sklearn_cluster.KMeans(**options)
    return kmeans.fit(points).labels_.astype(np.int64)


def _n_shared(labels: np.ndarray, owners: np.ndarray) -> int:
    """How many clusters hold more than one group."""
    pairs = np.unique(np.stack([labels, owners], 1), axis=0)
    return int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


def _by_size(labels: np.ndarray) -> np.ndarray:
    """The same clusters numbered from the largest; among equals, the one with the first sample."""
    names, first, inverse, size = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(names), dtype=np.int64)
    number[np.lexsort((first, -size))] = np.arange(len(names))
    return number[inverse]


def _similarity_to_others(unit: Vectors, labels: np.ndarray) -> np.ndarray:
    """Mean cosine of each sample with the other members of its cluster, NaN where alone."""
    out = np.full(len(labels), np.nan)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > 1:
            rows: Any = unit[members]
            # u . (sum of all) - u . u is u's dot product with the others.
            to_all = rows @ np.asarray(rows.sum(0), dtype=np.float64).ravel()
            to_itself = np.asarray((rows * rows).sum(1)).ravel()
            out[members] = (to_all - to_itself) / (len(members) - 1)
    return out


def summarize(
    clustering: Clustering, samples: Sequence[Sample], *, n_typical: int = 10
) -> list[ClusterSummary]:
    """What each cluster holds, in the order of their numbers.

    Args:
        samples: those that were clustered, in the same order.
        n_typical: typical samples to name.

    Raises:
        InputError: there are more or fewer samples than labels.
    """
    labels = clustering.labels
    if len(samples) != len(labels):
        raise InputError(f"{len(labels)} samples were clustered, but {len(samples)} are given.")
    summaries = []
    for number in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == number)
        similarity = clustering.similarity[members]
        answers = Counter(samples[i].answer for i in members.tolist())
        share = np.array(list(answers.values())) / len(members)
        typical = members[np.argsort(-similarity, kind="stable")][:n_typical]
        summaries.append(
            ClusterSummary(
                cluster=number,
                size=len(members),
                n_documents=len({samples[i].document for i in members.tolist()}),
                n_answers=len(answers),
                answer_entropy=abs(float((share * np.log(share)).sum())),
                coherence=float(similarity.mean()),
                typical=tuple(typical.tolist()),
            )
        )
    return summaries
