"""Experiments at the edges of what may be said: each gives a report, and nothing to do again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import EVALUATION_SUMMARY
from core.errors import InputError, ModelError
from pipelines.report import report
from pipelines.show import circuits_of
from tests.tiny_experiment import begun, brought_up_to_date, tiny_experiment, write_corpus

ODD: dict[str, dict[str, Any]] = {
    "no labels": {"corpus": {"labels_column": None}, "tasks": None},
    "one place": {"submodules": ["attn_1"], "evaluations": {"error_nodes": ["keep", "remove"]}},
    "as many clusters as samples": {"clustering": {"k": 24, "max_clusters": 1}},
    "no node is strong enough": {"circuits": {"node_threshold": 1e9}, "tasks": None},
    "one token before an answer": {
        "circuits": {"max_length": 1, "n_examples": 2},
        "evaluations": {"ablation": "resample"},
        "clustering": {"k": 1},
    },
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_experiment_is_finished_and_reported(
    finished: Experiment, tmp_path: Path, odd: str
) -> None:
    experiment = begun(finished, tmp_path, **ODD[odd])
    brought_up_to_date(experiment)
    store = ArtifactStore(experiment.artifacts)
    text = report(experiment, store)
    assert "(nan)" not in text
    assert store.n_rows(EVALUATION_SUMMARY) > 0
    assert brought_up_to_date(experiment) == {}


@pytest.mark.parametrize("n_documents", [1, 3])
def test_a_corpus_of_a_few_documents_is_enough(tmp_path: Path, n_documents: int) -> None:
    experiment = tiny_experiment(tmp_path, dictionaries={"batch": 4}, clustering={"k": 1})
    write_corpus(tmp_path / "corpus.jsonl", n_documents)
    brought_up_to_date(experiment)
    store = ArtifactStore(experiment.artifacts)
    rows = store.read(EVALUATION_SUMMARY).to_pylist()
    assert [row["held_out"] for row in rows] == [n_documents > 1, True]
    assert report(experiment, store)


def test_fewer_clusters_leave_the_others_circuits_aside(
    finished: Experiment, tmp_path: Path
) -> None:
    experiment = begun(finished, tmp_path)
    assert brought_up_to_date(experiment) == {}
    assert len(circuits_of(experiment)) == 4
    fewer = tiny_experiment(tmp_path, clustering={"max_clusters": 1})
    assert set(brought_up_to_date(fewer)) == {"cluster_behaviours", "evaluation_summary"}
    assert list(circuits_of(fewer)) == ["k00000", "simple"]


def test_contexts_longer_than_the_model_can_read_name_the_setting(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, corpus={"n_positions": 64, "labels_column": None})
    line = json.dumps({"text": "the cat " * 40})
    (tmp_path / "corpus.jsonl").write_text(f"{line}\n" * 3)
    with pytest.raises(InputError, match=r"32 positions: shorten .*corpus\.n_positions"):
        brought_up_to_date(experiment)


def test_a_model_folder_without_a_tokenizer_says_how_to_write_one(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    for file in (tmp_path / "model").glob("token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer.*there, tokenizer\.save_pretrained\("):
        brought_up_to_date(experiment)


def test_a_cluster_that_cannot_be_judged_is_named(finished: Experiment, tmp_path: Path) -> None:
    changed = {"circuits": {"max_length": 4}, "evaluations": {"ablation": "resample"}}
    experiment = begun(finished, tmp_path, clustering={"k": 20}, tasks=None, **changed)
    with pytest.raises(InputError, match=r"^k0000\d cannot be judged: resample"):
        brought_up_to_date(experiment)
