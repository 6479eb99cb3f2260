"""Clusterings beside the one that gets circuits, run for real on the tiny experiment."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from assets.discovery.clusterings import load_vectors
from assets.engine.store import ArtifactStore
from assets.settings import CHOSEN, Experiment
from assets.tables.places import (
    CLUSTERING_BEHAVIOURS,
    CLUSTERING_COMPARISON,
    FILTERED_TOKENS,
    Key,
    assignments,
    vectors,
)
from pipelines.experiment import read_experiment
from pipelines.run import run_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import N_LAYERS, WIDTH, tiny_experiment, write_experiment

COMPARISONS = {
    "dense": {
        "representation": "activations",
        "submodules": ["mlp_1"],  # no dictionary sits there, and none is needed
        "algorithm": "spectral",
        "k": 4,
    },
    "effects": {"representation": "feature_effects", "reduction": "sum", "k": 2},
    # Of every MLP, though dictionaries sit at none.
    "neurons": {"representation": "mlp_neurons", "equal_submodules": True, "k": 2},
}


def run(experiment: Experiment, instance: dg.DagsterInstance) -> None:
    """Everything up to the comparison."""
    every = stages_of(experiment)
    last = [stage.name for stage in every].index("clustering_comparison")
    run_experiment(experiment, instance, every[: last + 1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Experiment:
    folder = tmp_path_factory.mktemp("compared")
    experiment = tiny_experiment(folder, comparisons=COMPARISONS)
    run(experiment, instance)
    return experiment


def rows(experiment: Experiment, key: Key) -> list[dict[str, Any]]:
    return ArtifactStore(experiment.artifacts).read(key).to_pylist()


def test_all_clusterings_stand_in_one_table(finished: Experiment) -> None:
    table = {row["name"]: row for row in rows(finished, CLUSTERING_COMPARISON)}
    assert list(table) == [CHOSEN, *COMPARISONS, "answer token"]
    assert table[CHOSEN]["ami_with_chosen"] == pytest.approx(1.0)
    assert (table["dense"]["representation"], table["dense"]["n_clusters"]) == ("activations", 4)
    assert table["answer token"]["answer_entropy"] == 0.0
    assert all(0 < row["purity"] <= 1 for row in table.values())
    # Each word of this language is always labelled alike: no answer has two behaviours.
    assert all(row["ami_within_answers"] is None for row in table.values())
    assert table["neurons"]["representation"] == "mlp_neurons"


def test_scores_are_those_of_the_assignments_beside_them(finished: Experiment) -> None:
    from sklearn.metrics import adjusted_mutual_info_score

    truth = [row["label"] for row in rows(finished, FILTERED_TOKENS)]
    found = {row["name"]: row["ami"] for row in rows(finished, CLUSTERING_COMPARISON)}
    for name in (CHOSEN, "dense"):
        labels = [row["cluster"] for row in rows(finished, assignments(name))]
        assert found[name] == pytest.approx(adjusted_mutual_info_score(truth, labels))


def test_a_behaviour_is_followed_through_every_clustering(finished: Experiment) -> None:
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows(finished, CLUSTERING_BEHAVIOURS):
        shares[row["name"], row["behaviour"]] += row["of_behaviour"]
    assert {name for name, _ in shares} == {CHOSEN, *COMPARISONS, "answer token"}
    assert all(share == pytest.approx(1.0) for share in shares.values())


def test_each_has_tables_and_pages_of_its_own(finished: Experiment) -> None:
    folder = finished.artifacts / "clusterings"
    assert (folder / "effects" / "pages" / "index.html").is_file()
    dense = ArtifactStore(finished.artifacts).notes(vectors("dense"))
    assert dense["width"] == WIDTH  # of the one submodule it reads
    store = ArtifactStore(finished.artifacts)
    assert store.notes(vectors("neurons"))["width"] == N_LAYERS * 4 * WIDTH
    lengths = np.square(load_vectors(store, "neurons")).sum(1)
    assert lengths == pytest.approx(np.full(24, N_LAYERS), rel=1e-4)
    chosen = (folder / CHOSEN / "vectors.parquet").read_bytes()
    assert (folder / "effects" / "vectors.parquet").read_bytes() != chosen


def test_a_changed_comparison_is_redone_alone(
    finished: Experiment, instance: dg.DagsterInstance
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.artifacts.rglob("*.parquet")}
    changed = {**COMPARISONS, "effects": {**COMPARISONS["effects"], "k": 3}}
    path = write_experiment(finished.path.parent, comparisons=changed)
    experiment = read_experiment(path)
    run(experiment, instance)
    written = {
        str(p.relative_to(experiment.artifacts))
        for p in experiment.artifacts.rglob("*.parquet")
        if before.get(p) != p.stat().st_mtime_ns
    }
    assert written == {
        "clustering_comparison.parquet",
        "clustering_behaviours.parquet",
        *(f"clusterings/effects/{name}.parquet" for name in ("assignments", "clusters", "score")),
    }


def test_without_comparisons_there_is_nothing_to_compare(tmp_path: Path) -> None:
    names = {stage.name for stage in stages_of(read_experiment(write_experiment(tmp_path)))}
    assert not names & {"compared_vectors", "compared_clusterings", "clustering_comparison"}
