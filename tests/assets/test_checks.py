"""Each check passes on three good rows and fails on a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.checks import (
    _integrals_converged,
    circuit_features_fire,
    circuits_are_faithful,
    circuits_are_stable,
    contexts_have_text,
    every_sample_is_assigned,
    imports_are_as_said,
    l0_is_near_k,
    labels_predict,
    set_is_made_alike,
    set_is_usable,
    summary_is_current,
    vectors_are_finite,
)
from assets.engine.recipe import Recipe
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import (
    CONTEXTS,
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    FILTERED_TOKENS,
    IMPORT_CHECKS,
    RULE_LABELS,
    Key,
    assignments,
    cards,
    circuit,
    sae,
    vectors,
)
from assets.tables.schemas import TABLES
from pipelines.experiment import read_experiment
from tests.tiny_experiment import write_experiment

RECIPE = Recipe("test", {}, {}, "1")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return read_experiment(write_experiment(tmp_path, submodules=["embed", "attn_0", "resid_0"]))


@pytest.fixture
def store(experiment: Experiment) -> ArtifactStore:
    return ArtifactStore(experiment.artifacts)


def _write(store: ArtifactStore, key: Key, rows: list[dict[str, Any]], **notes: Any) -> None:
    store.write(key, TABLES[key.table].build(rows), RECIPE, notes=notes)


def _dictionary(submodule: str, **changed: Any) -> dict[str, Any]:
    names = TABLES["dictionary_set"].schema.names
    text = {"submodule": submodule, "activation": "ReLU", "weights": "abc"}
    return {**dict.fromkeys(names, 1), "n_features": 8, **text, **changed}


def test_three_working_dictionaries_are_usable(
    experiment: Experiment, store: ArtifactStore
) -> None:
    _write(store, DICTIONARY_SET, [_dictionary(s) for s in experiment.submodules])
    assert set_is_usable(experiment, store).passed


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
def test_one_broken_dictionary_makes_the_set_unusable(
    experiment: Experiment, store: ArtifactStore, changed: dict[str, Any]
) -> None:
    rows = [_dictionary(s) for s in experiment.submodules]
    _write(store, DICTIONARY_SET, [*rows[:-1], _dictionary("resid_0", **changed)])
    found = set_is_usable(experiment, store)
    assert not found.passed
    assert "resid_0" in found.says


def test_a_missing_dictionary_makes_the_set_unusable(
    experiment: Experiment, store: ArtifactStore
) -> None:
    _write(store, DICTIONARY_SET, [_dictionary("embed")])
    assert not set_is_usable(experiment, store).passed


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        ({}, True),
        ({"settings": {"seed": 1, "submodule": "embed"}}, False),
        # The k that the experiment says, which others need not have; and one that it does not say.
        ({"settings": {"seed": 0, "submodule": "embed", "k": 32}}, True),
        ({"settings": {"seed": 0, "submodule": "embed", "k": 31}}, False),
        ({"inputs": {"activation_cache": "another"}}, False),
        ({"inputs": {"activation_cache": "one", "path": "elsewhere", "contents": "c"}}, True),
        ({"code": "another"}, False),
    ],
)
def test_a_set_of_dictionaries_made_in_different_ways_is_told(
    experiment: Experiment, store: ArtifactStore, changed: dict[str, Any], passed: bool
) -> None:
    for submodule in experiment.submodules:
        alike: dict[str, Any] = {
            "inputs": {"activation_cache": "one"},
            "settings": {"seed": 0, "submodule": submodule},
            "code": "code",
        }
        recipe = Recipe("saes", **(alike | changed if submodule == "embed" else alike))
        store.write(sae(submodule), TABLES["saes"].build([]), recipe)
    found = set_is_made_alike(experiment, store)
    assert found.passed is passed
    assert ("embed" in found.says) is not passed


@pytest.mark.parametrize(
    ("limits", "changed"),
    [
        ({"min_variance_explained": -1.0}, {"variance_explained": -0.1}),
        ({"min_variance_explained": None}, {"variance_explained": float("nan")}),
        ({"min_alive": 0.25}, {"alive": 0.3}),
        ({"min_l0": 0.5}, {"l0": 0.6}),
    ],
)
def test_the_limits_of_a_usable_dictionary_are_settings(
    tmp_path: Path, limits: dict[str, Any], changed: dict[str, Any]
) -> None:
    experiment = _limited(tmp_path, submodules=["resid_0"], checks=limits)
    store = ArtifactStore(experiment.artifacts)
    _write(store, DICTIONARY_SET, [_dictionary("resid_0", **changed)])
    assert set_is_usable(experiment, store).passed


@pytest.mark.parametrize(
    ("limits", "changed"),
    [
        ({"min_variance_explained": 0.5}, {"variance_explained": 0.4}),
        ({"min_alive": 0.25}, {"alive": 0.2}),
        ({"min_l0": 0.5}, {"l0": 0.4}),
    ],
)
def test_a_dictionary_below_a_limit_is_told_with_the_key(
    tmp_path: Path, limits: dict[str, float], changed: dict[str, float]
) -> None:
    experiment = _limited(tmp_path, submodules=["resid_0"], checks=limits)
    store = ArtifactStore(experiment.artifacts)
    _write(store, DICTIONARY_SET, [_dictionary("resid_0", **changed)])
    found = set_is_usable(experiment, store)
    ((key, limit),) = limits.items()
    assert not found.passed
    assert f"checks.{key}: {limit:g}" in found.says


def _limited(folder: Path, **changed: Any) -> Experiment:
    return read_experiment(write_experiment(folder, **changed))


@pytest.mark.parametrize(("share", "passed"), [(0.0, False), (0.5, True)])
def test_short_contexts_may_be_allowed(tmp_path: Path, share: float, passed: bool) -> None:
    experiment = _limited(tmp_path, checks={"max_short_contexts": share})
    store = ArtifactStore(experiment.artifacts)
    rows = [{"document": i, "tokens": [1] * (i + 1), "labels": None} for i in range(2)]
    _write(store, CONTEXTS, rows)
    found = contexts_have_text(experiment, store)
    assert found.passed is passed
    assert "checks.max_short_contexts" in found.says


def test_the_largest_cluster_may_be_small(tmp_path: Path) -> None:
    experiment = _limited(tmp_path, checks={"min_largest_cluster": 1})
    store = ArtifactStore(experiment.artifacts)
    _assign(store, [0, 1, 2])
    assert every_sample_is_assigned(experiment, store).passed


@pytest.mark.parametrize(
    ("wanted", "l0", "passed"),
    [(32, 32.0, True), (32, 26.0, True), (32, 25.0, False), (32, 41.0, False), (None, 3.0, True)],
)
def test_l0_is_held_against_the_k_of_training(
    experiment: Experiment, store: ArtifactStore, wanted: int | None, l0: float, passed: bool
) -> None:
    row = {"feature": 0, "encoder_norm": 1.0, "decoder_norm": 1.0, "encoder_bias": 0.0}
    _write(store, sae("embed"), [row], l0=l0, wanted_l0=wanted)
    _write(store, DICTIONARY_SET, [_dictionary("embed", l0=l0)])
    found = l0_is_near_k(experiment, store)
    assert found.passed is passed
    assert passed or f"embed {l0:.1f} for {wanted}" in found.says


@pytest.mark.parametrize("verdict", ["ok", "warn", "unchecked"])
def test_claims_that_do_not_hold_are_told(
    experiment: Experiment, store: ArtifactStore, verdict: str
) -> None:
    row = {"submodule": "embed", "claim": "measured l0", "said": "8", "found": "31.0"}
    _write(store, IMPORT_CHECKS, [row | {"verdict": verdict, "message": "3.88 times that."}])
    found = imports_are_as_said(experiment, store)
    assert found.passed is (verdict != "warn")
    assert found.passed or "embed measured l0: 3.88 times that." in found.says


def _assign(store: ArtifactStore, clusters: list[int]) -> None:
    blank = {"document": 0, "window": 0, "pos": 1, "context": [1], "answer": 2, "loss": 0.1}
    samples = [{"sample": i, "label": None, **blank} for i in range(3)]
    _write(store, FILTERED_TOKENS, samples)
    rows = [{"sample": i, "cluster": c, "similarity": 0.5} for i, c in enumerate(clusters)]
    _write(store, assignments(), rows)


@pytest.mark.parametrize(
    ("clusters", "passed"), [([0, 0, 1], True), ([0, 1], False), ([0, 1, 2], False)]
)
def test_every_sample_must_be_assigned_and_some_share_a_cluster(
    experiment: Experiment, store: ArtifactStore, clusters: list[int], passed: bool
) -> None:
    _assign(store, clusters)
    assert every_sample_is_assigned(experiment, store).passed is passed


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, float("nan")]])
def test_a_vector_that_cannot_be_compared_is_told(
    experiment: Experiment, store: ArtifactStore, bad: list[float]
) -> None:
    rows = [{"sample": i, "index": None, "value": [1.0, 2.0]} for i in range(2)]
    _write(store, vectors(), rows)
    assert vectors_are_finite(experiment, store).passed
    _write(store, vectors(), [*rows, {"sample": 2, "index": None, "value": bad}])
    assert not vectors_are_finite(experiment, store).passed


def test_a_silent_feature_of_a_circuit_is_told(
    experiment: Experiment, store: ArtifactStore
) -> None:
    def card(feature: int, chosen: str, n_active: int) -> dict[str, Any]:
        names = TABLES["feature_cards"].schema.names
        lists = ("histogram_edges", "histogram_counts", "promoted", "promoted_values")
        row = dict.fromkeys(names, 1) | {name: [] for name in (*lists, "moved", "moved_values")}
        row |= {"suppressed": [], "suppressed_values": [], "weights": None, "basis": "features"}
        return row | {
            "submodule": "embed",
            "feature": feature,
            "chosen": chosen,
            "n_active": n_active,
        }

    _write(store, cards("embed"), [card(1, "circuits", 5), card(2, "random", 0)])
    assert circuit_features_fire(experiment, store).passed
    _write(store, cards("embed"), [card(1, "circuits", 5), card(2, "circuits", 0)])
    found = circuit_features_fire(experiment, store)
    assert not found.passed
    assert "never active: embed/2." in found.says


@pytest.mark.parametrize(("scores", "passed"), [([0.5, 0.1, None], True), ([-0.1, 0.0], False)])
def test_rules_that_predict_nothing_are_told(
    experiment: Experiment, store: ArtifactStore, scores: list[float | None], passed: bool
) -> None:
    blank = dict.fromkeys(TABLES["labels"].schema.names)
    text = {"submodule": "embed", "basis": "features", "text": "x", "by": "rule"}
    rows = [
        {**blank, **text, "feature": i, "shown": True, "stale": False, "score": score}
        for i, score in enumerate(scores)
    ]
    _write(store, RULE_LABELS, rows)
    assert labels_predict(experiment, store).passed is passed


def _summary(faithfulness: float, **changed: Any) -> dict[str, Any]:
    names = TABLES["evaluation_summary"].schema.names
    text = {"source": "clusters", "name": "k00000", "about": "x", "label": None, "held_out": True}
    row = {**dict.fromkeys(names, 1), **text, "error_nodes": "circuit", "metric": "m"}
    return {**row, "start_layer": 0, "faithfulness": faithfulness, **changed}


def test_the_median_circuit_decides_and_undefined_ones_do_not_count(
    experiment: Experiment, store: ArtifactStore
) -> None:
    rows = [_summary(value) for value in (0.1, 0.3, 0.9, float("nan"))]
    _write(store, EVALUATION_SUMMARY, rows)
    assert circuits_are_faithful(experiment, store).passed
    _write(store, EVALUATION_SUMMARY, [*rows, _summary(0.0), _summary(0.0)])
    assert not circuits_are_faithful(experiment, store).passed


def test_tasks_other_policies_and_other_layers_do_not_count_for_the_median(
    experiment: Experiment, store: ArtifactStore
) -> None:
    bad = [_summary(0.0, source="tasks"), _summary(0.0, error_nodes="drop")]
    bad.append(_summary(0.0, start_layer=1))
    _write(store, EVALUATION_SUMMARY, [_summary(0.9), *bad, *bad])
    assert circuits_are_faithful(experiment, store).passed


@pytest.mark.parametrize("n_stale", [0, 2])
def test_circuits_of_earlier_examples_are_told(
    experiment: Experiment, store: ArtifactStore, n_stale: int
) -> None:
    _write(store, EVALUATION_SUMMARY, [_summary(0.9)], n_stale=n_stale)
    found = summary_is_current(experiment, store)
    assert found.passed is (n_stale == 0)
    assert found.says.startswith(f"{n_stale} circuits")


def _found(store: ArtifactStore, name: str, **changed: Any) -> None:
    """The head of a circuit of a cluster."""
    names = TABLES["circuit"].schema.names
    text = {"name": name, "metric": "m", "gaps": "{}", "settings": "{}", "tokens": None}
    _write(store, circuit("clusters", name), [{**dict.fromkeys(names, 1), **text, **changed}])


def test_integrals_short_of_their_tolerance_are_told_with_the_gap_reached(
    experiment: Experiment, store: ArtifactStore
) -> None:
    _found(store, "k00000", gap=0.1, unmet=0.0)
    _found(store, "k00001", gap=0.2, unmet=0.01)
    found = _integrals_converged("clusters", experiment, store)
    assert found.passed
    assert "0.2 (k00001)" in found.says
    _found(store, "k00001", gap=7.5, unmet=0.5)
    found = _integrals_converged("clusters", experiment, store)
    assert not found.passed
    assert "7.5 (k00001)" in found.says
    assert "k00001. Raise circuits.tolerance" in found.says


def test_exact_effects_have_no_integral_to_converge(
    experiment: Experiment, store: ArtifactStore
) -> None:
    _found(store, "k00000", gap=float("nan"), unmet=None)
    assert _integrals_converged("clusters", experiment, store).passed


@pytest.mark.parametrize(
    ("stabilities", "passed"),
    [((0.9, 0.6, 0.1), True), ((0.9, 0.1, 0.1), False), ((0.9, None, None), False)],
)
def test_most_circuits_must_be_stable(
    experiment: Experiment,
    store: ArtifactStore,
    stabilities: tuple[float | None, ...],
    passed: bool,
) -> None:
    for i, value in enumerate(stabilities):
        _found(store, f"k{i:05d}", stability=value)
    found = circuits_are_stable(experiment, store)
    assert found.passed is passed
    assert f"{stabilities.count(None)} are of one example" in found.says
