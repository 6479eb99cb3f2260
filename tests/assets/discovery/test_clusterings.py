"""Stages that read what a clustering notes of itself are made again with it."""

from __future__ import annotations

from pathlib import Path

from assets.engine.store import ArtifactStore
from assets.tables.places import CLUSTERING_COMPARISON
from tests.tiny_experiment import brought_up_to_date, tiny_experiment

COMPARED = {"other": {"k": 2}}


def test_the_same_groups_by_another_algorithm_reach_what_names_it(tmp_path: Path) -> None:
    for algorithm in ("kmeans", "spectral"):
        clustering = {"k": 1, "algorithm": algorithm}  # one group, whatever finds it
        experiment = tiny_experiment(tmp_path, comparisons=COMPARED, clustering=clustering)
        made = brought_up_to_date(experiment, "clustering_comparison")
        row = ArtifactStore(experiment.artifacts).read(CLUSTERING_COMPARISON).to_pylist()[0]
        assert row["algorithm"] == algorithm
    assert made == {"cluster_assignments": 1, "clusters": 1, "clustering_comparison": 1}
