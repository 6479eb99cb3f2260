"""Each check passes on three good rows and fails on a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.checks import (
    circuits_are_faithful,
    every_sample_is_assigned,
    set_is_usable,
    vectors_are_finite,
)
from assets.engine.stage import Work
from assets.engine.store import Recipe
from assets.settings import Experiment
from assets.tables.schemas import TABLES
from pipelines.experiment import read_experiment
from tests.tiny_experiment import write_experiment

RECIPE = Recipe("test", {}, {}, "1")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    path = write_experiment(tmp_path, submodules=["embed", "attn_0", "resid_0"])
    experiment: Experiment = read_experiment(path)
    return Work.on(experiment)


def _write(work: Work, name: str, rows: list[dict[str, Any]]) -> None:
    work.store.write(name, TABLES[name].build(rows), RECIPE)


def _dictionary(submodule: str, **changed: Any) -> dict[str, Any]:
    names = TABLES["dictionary_set"].schema.names
    text = {"submodule": submodule, "activation": "ReLU", "weights": "abc"}
    return {**dict.fromkeys(names, 1), "n_features": 8, **text, **changed}


def test_three_working_dictionaries_are_usable(work: Work) -> None:
    _write(work, "dictionary_set", [_dictionary(s) for s in work.experiment.submodules])
    assert set_is_usable(work).passed


@pytest.mark.parametrize(
    "changed",
    [
        {"variance_explained": float("nan")},
        {"variance_explained": -0.1},
        {"l0": 0.0},
        {"l0": 9.0},
        {"ce_hat": float("inf")},
    ],
)
def test_one_broken_dictionary_makes_the_set_unusable(work: Work, changed: dict[str, Any]) -> None:
    rows = [_dictionary(s) for s in work.experiment.submodules]
    _write(work, "dictionary_set", [*rows[:-1], _dictionary("resid_0", **changed)])
    found = set_is_usable(work)
    assert not found.passed
    assert "resid_0" in found.says


def test_a_missing_dictionary_makes_the_set_unusable(work: Work) -> None:
    _write(work, "dictionary_set", [_dictionary("embed")])
    assert not set_is_usable(work).passed


def _assign(work: Work, clusters: list[int]) -> None:
    blank = {"document": 0, "window": 0, "pos": 1, "context": [1], "answer": 2, "loss": 0.1}
    samples = [{"sample": i, "label": None, **blank} for i in range(3)]
    _write(work, "filtered_tokens", samples)
    rows = [{"sample": i, "cluster": c, "similarity": 0.5} for i, c in enumerate(clusters)]
    _write(work, "cluster_assignments", rows)


@pytest.mark.parametrize(
    ("clusters", "passed"), [([0, 0, 1], True), ([0, 1], False), ([0, 1, 2], False)]
)
def test_every_sample_must_be_assigned_and_some_share_a_cluster(
    work: Work, clusters: list[int], passed: bool
) -> None:
    _assign(work, clusters)
    assert every_sample_is_assigned(work).passed is passed


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, float("nan")]])
def test_a_vector_that_cannot_be_compared_is_told(work: Work, bad: list[float]) -> None:
    rows = [{"sample": i, "index": None, "value": [1.0, 2.0]} for i in range(2)]
    _write(work, "cluster_vectors", rows)
    assert vectors_are_finite(work).passed
    _write(work, "cluster_vectors", [*rows, {"sample": 2, "index": None, "value": bad}])
    assert not vectors_are_finite(work).passed


def _summary(faithfulness: float, cluster: int = 0) -> dict[str, Any]:
    names = TABLES["evaluation_summary"].schema.names
    text = {"example": "x", "behaviour": None, "errors": "circuit", "held_out": True}
    return {**dict.fromkeys(names, 1), **text, "cluster": cluster, "faithfulness": faithfulness}


def test_the_median_circuit_decides_and_undefined_ones_do_not_count(work: Work) -> None:
    rows = [_summary(value) for value in (0.1, 0.3, 0.9, float("nan"))]
    _write(work, "evaluation_summary", rows)
    assert circuits_are_faithful(work).passed
    _write(work, "evaluation_summary", [*rows, _summary(0.0), _summary(0.0)])
    assert not circuits_are_faithful(work).passed
