"""Similarities and clusters on vectors small enough to check by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score

from core.discovery import angular_similarity, cluster, summarize
from core.discovery import clustering as module
from core.discovery.filter import Sample
from core.errors import InputError, NotFinite, OutOfBudget
from core.options import ALGORITHMS


def bundles(sizes: list[int], *, width: int = 30, noise: float = 0.1) -> np.ndarray:
    """Vectors in as many directions as there are sizes, of any length."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((len(sizes), width))
    rows = np.repeat(directions, sizes, 0)
    rows = rows + noise * rng.standard_normal(rows.shape)
    return rows * rng.uniform(0.1, 10, (len(rows), 1))


def test_angular_similarity_of_vectors_made_by_hand() -> None:
    root = math.sqrt(3)
    vectors = np.array([[2, 0], [0, 5], [-3, 0], [1, 1], [1, root], [0, 0]])
    found = angular_similarity(vectors)
    expected_of_first = [1, 1 / 2, 0, 3 / 4, 2 / 3, 1 / 2]
    assert found[0] == pytest.approx(expected_of_first, abs=1e-6)
    assert found[3, 4] == pytest.approx(1 - 15 / 180, abs=1e-6)
    assert (found == found.T).all()
    assert (found.diagonal() == 1).all()


def test_angular_similarity_is_the_same_of_sparse_vectors() -> None:
    vectors = bundles([5, 5]) * (np.random.default_rng(1).random((10, 30)) < 0.3)
    assert angular_similarity(sparse.csr_array(vectors)) == pytest.approx(
        angular_similarity(vectors), abs=1e-6
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_bundles_of_directions_are_found_and_numbered_by_size(algorithm: str, container) -> None:
    sizes = [10, 25, 15, 20]
    truth = np.repeat([3, 0, 2, 1], sizes)
    found = cluster(container(bundles(sizes)), algorithm=algorithm, k=4)
    assert found.labels.tolist() == truth.tolist()
    assert (found.k, found.algorithm) == (4, algorithm)


def test_spectral_labels_are_scikit_learns() -> None:
    vectors = bundles([30, 30, 30, 30, 30], noise=0.9)
    theirs = SpectralClustering(5, affinity="precomputed", random_state=0).fit(
        angular_similarity(vectors)
    )
    ours = cluster(vectors, algorithm="spectral", k=5)
    assert adjusted_rand_score(theirs.labels_, ours.labels) == 1


def test_iterated_and_direct_eigenvectors_give_the_same_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = bundles([30, 40, 20, 30], noise=0.8)
    direct = cluster(vectors, algorithm="spectral", k=4)
    monkeypatch.setattr(module, "_DENSE_EIGEN", 10)
    assert cluster(vectors, algorithm="spectral", k=4).labels.tolist() == direct.labels.tolist()


def test_kmeans_in_the_samples_own_span_is_kmeans_on_the_vectors() -> None:
    vectors = bundles([10, 20, 15], width=400, noise=1.0)
    theirs = KMeans(3, n_init=10, random_state=0).fit(module.unit_rows(vectors))
    assert (
        adjusted_rand_score(theirs.labels_, cluster(vectors, algorithm="kmeans", k=3).labels) == 1
    )


def test_mini_batches_serve_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FULL_BATCH", 50)
    found = cluster(bundles([40, 30, 20]), algorithm="kmeans", k=3)
    assert np.bincount(found.labels).tolist() == [40, 30, 20]


def test_k_is_the_one_with_most_clusters_that_hold_several_groups() -> None:
    # Four bundles of six documents; a fifth and sixth cluster can only come from splitting one.
    vectors, documents = bundles([6] * 4, noise=0.01), np.arange(24)
    alone = np.concatenate([vectors, bundles([1, 1])[:, ::-1]])
    groups = [*documents.tolist(), 100, 101]
    found = cluster(alone, algorithm="spectral", k=[2, 4, 6], groups=groups)
    assert [point.k for point in found.curve] == [2, 4, 6]
    assert found.curve[-1].n_shared == 4
    assert found.k == min(p.k for p in found.curve if p.n_shared == 4)


def test_a_cluster_of_one_document_does_not_count_as_shared() -> None:
    found = cluster(
        bundles([5, 5, 5]), algorithm="spectral", k=[3], groups=[0] * 5 + [1] * 5 + [2, 3, 2, 3, 2]
    )
    assert found.curve[0].n_shared == 1


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_similarity_is_the_mean_cosine_with_the_other_members(container) -> None:
    vectors = np.array([[1.0, 0], [1, 1], [0, 2], [-1, 0]])
    similarity = module._similarity_to_others(
        module.unit_rows(container(vectors)), np.array([0, 0, 0, 1])
    )
    half = math.sqrt(0.5)
    assert similarity[:3] == pytest.approx([half / 2, half, half / 2])
    assert math.isnan(similarity[3])


def test_a_summary_counts_what_a_cluster_holds() -> None:
    vectors = bundles([4, 1], noise=0.05)
    samples = [
        Sample(document, i, 2, (1, 2), answer, 0.1)
        for i, (document, answer) in enumerate([(0, 7), (0, 7), (1, 8), (2, 9), (3, 9)])
    ]
    clustering = cluster(vectors, algorithm="spectral", k=2)
    first, second = summarize(clustering, samples, n_typical=2)
    assert (first.size, first.n_documents, first.n_answers) == (4, 3, 3)
    assert first.answer_entropy == pytest.approx(1.5 * math.log(2))
    unit = vectors[:4] / np.linalg.norm(vectors[:4], axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(4, 1)]
    assert first.coherence == pytest.approx(pairs.mean())
    order = np.argsort(-clustering.similarity[:4], kind="stable")
    assert first.typical == tuple(order[:2].tolist())
    assert (second.size, second.answer_entropy, second.typical) == (1, 0, (4,))
    assert math.isnan(second.coherence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 11}, "11 clusters were asked for, but there are only 10 samples"),
        ({"k": [2, 50]}, "50 clusters"),
        ({"k": 0}, "at least 1"),
        ({"k": []}, "at least 1"),
        ({"k": 2, "algorithm": "ward"}, "algorithm 'ward' is not one of spectral"),
        ({"k": 2, "groups": [1, 2]}, "2 groups were given for 10 samples"),
    ],
)
def test_impossible_clusterings_are_refused(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster(bundles([5, 5]), **arguments)


def test_a_similarity_matrix_that_does_not_fit_says_how_much_it_needs() -> None:
    needed = 8 * 1000**2 / 2**30
    with pytest.raises(OutOfBudget, match=rf"1000 samples need {needed:.2f} GiB.*at most 353"):
        cluster(np.ones((1000, 2)), algorithm="spectral", k=2, budget_bytes=1_000_000)


def test_vectors_with_nan_are_refused() -> None:
    with pytest.raises(NotFinite):
        cluster(np.array([[1.0, np.nan], [1, 2]]), k=1)


def test_a_summary_of_other_samples_is_refused() -> None:
    with pytest.raises(InputError, match="10 samples were clustered, but 0"):
        summarize(cluster(bundles([5, 5]), k=2), [])
