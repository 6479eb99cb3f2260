"""Circuits against baselines: what the tables say, what is not run again, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from assets.checks import checks_of
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.evaluations.baselines import (
    CIRCUIT_BASELINES_STAGE,
    TASK_BASELINES_STAGE,
    scores_of,
)
from assets.settings import Experiment, ExperimentError
from assets.tables.conversions import frame
from assets.tables.places import (
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    baselines,
    behaviours,
    circuit,
    evaluation,
    examples,
)
from assets.tables.schemas import TABLES
from core.errors import MissingSubmodule
from core.evaluate import Evaluator
from core.models import LanguageModel
from core.options import VARIANTS
from core.sweep import MIB_FRACTIONS
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import write_experiment

TASK = baselines("tasks", "simple")


def points_of(experiment: Experiment) -> pd.DataFrame:
    return frame(ArtifactStore(experiment.artifacts).read(TASK))


def outcome(experiment: Experiment, name: str) -> bool:
    """Whether the check of this name of the tasks' baselines passes."""
    import dagster as dg

    (found,) = [
        check
        for check in checks_of(experiment, ["task_baselines"])
        if next(iter(check.check_keys)).name == name
    ]
    result = found(dg.build_asset_check_context())
    assert isinstance(result, dg.AssetCheckResult)
    return bool(result.passed)


def test_every_variant_is_cut_at_every_fraction(finished: Experiment) -> None:
    points = points_of(finished)
    assert set(points["variant"]) == set(VARIANTS)
    for _, curve in points.groupby(["variant", "start_layer"]):
        assert curve["fraction"].dropna().tolist() == list(MIB_FRACTIONS)
        assert curve["of_circuit"].sum() == 1
        whole = curve[curve["fraction"] == 1]
        assert whole["n_nodes"].tolist() == whole["n_possible"].tolist()


def test_what_the_evaluation_has_is_taken_from_there(finished: Experiment) -> None:
    points = points_of(finished)
    store = ArtifactStore(finished.artifacts)
    judged = frame(store.read(evaluation("tasks", "simple")))
    features = points[(points["variant"] == "features") & points["fraction"].isna()]
    shared = ["n_nodes", "m_circuit", "m_complement", "faithfulness", "faithfulness_low"]
    taken = features.iloc[: len(judged)][shared].reset_index(drop=True)
    pd.testing.assert_frame_equal(taken, judged[shared])
    again = features.iloc[len(judged) :]
    assert again["n_nodes"].tolist() == [0]


def test_whole_and_random_are_checked(copied: Experiment) -> None:
    assert outcome(copied, "whole_and_empty")
    store = ArtifactStore(copied.artifacts)
    rows = store.read(TASK).to_pylist()
    changed = next(r for r in rows if r["fraction"] == 1 and r["variant"] == "neurons")
    changed["faithfulness"] = 0.99
    for row in rows:
        if row["of_circuit"]:
            row["faithfulness"] = 0.5 if row["variant"] == "features" else 0.45
    (recipe,) = TASK_BASELINES_STAGE.recipes(copied, ["simple"]).values()
    store.write(TASK, TABLES["baselines"].build(rows), recipe)
    assert not outcome(copied, "whole_and_empty")
    assert not outcome(copied, "random_below_circuit")
    loose = {"rounding": 0.1, "random_margin": 0.01}
    lenient = read_experiment(write_experiment(copied.path.parent, evaluations=loose))
    assert outcome(lenient, "whole_and_empty")
    assert outcome(lenient, "random_below_circuit")


def test_scores_of_a_curve_worked_out_by_hand() -> None:
    common = {"variant": "random_nodes", "start_layer": 0, "n_possible": 4}
    table = pd.DataFrame(
        [
            {**common, "draw": draw, "fraction": fraction, "n_nodes": n, "faithfulness": f}
            for draw, values in enumerate([(0.0, 0.0, 0.4, 1.0), (0.0, 0.4, 0.8, 1.0)])
            for (n, fraction), f in zip(
                [(0, None), (1, 0.25), (2, 0.5), (4, 1.0)], values, strict=True
            )
        ]
    )
    # The mean of both draws is 0, 0.2, 0.6, 1.
    (score,) = scores_of("one", table)
    assert score["nodes_half"] == pytest.approx(2**0.75)
    assert score["nodes_eight_tenths"] == pytest.approx(2**1.5)
    assert score["cpr"] == pytest.approx(0.25 * 0.4 + 0.5 * 0.8)
    assert score["cmd"] == pytest.approx(0.25 * 0.6 + 0.5 * 0.2)
    assert score["area"] == pytest.approx(score["cpr"] + 0.25 * 0.1)


def test_where_ablation_changes_nothing_no_score_is_defined() -> None:
    row = {"variant": "neurons", "start_layer": 0, "n_possible": 2, "draw": None}
    table = pd.DataFrame(
        [
            {**row, "fraction": f, "n_nodes": n, "faithfulness": math.nan}
            for n, f in ((1, 0.5), (2, 1))
        ]
    )
    (score,) = scores_of("one", table)
    assert score["nodes_half"] is None
    assert math.isnan(score["cpr"])


def test_losses_are_of_the_strongest_nodes(finished: Experiment) -> None:
    store = ArtifactStore(finished.artifacts)
    losses = store.read(baselines("tasks", "simple", "node_losses")).to_pylist()
    nodes = store.read(circuit("tasks", "simple", "nodes")).to_pylist()
    effects = sorted((abs(n["effect"]) for n in nodes if n["submodule"] != "embed"), reverse=True)
    assert [abs(row["effect"]) for row in losses] == effects[: len(losses)]
    assert len(losses) == min(4, len(effects))
    assert all(math.isfinite(row["loss"]) for row in losses)


def test_the_summary_says_how_many_neurons_a_feature_is_worth(finished: Experiment) -> None:
    store = ArtifactStore(finished.artifacts)
    summary = {r["name"]: r for r in store.read(EVALUATION_SUMMARY).to_pylist()}
    scores = store.read(baselines("tasks", "simple", "baseline_scores")).to_pylist()
    halves = {row["variant"]: row["nodes_half"] for row in scores if row["start_layer"] == 0}
    row = summary["simple"]
    assert row["half_by_features"] == halves["features"]
    assert row["half_by_neurons"] == halves["neurons"]
    assert (row["neurons_per_feature"] is None) == (None in (halves["features"], halves["neurons"]))
    (of_cluster,) = {name for name in summary if name == finished.clusters[0]}
    assert summary[of_cluster]["half_by_neurons"] is not None


def test_a_circuit_of_other_dictionaries_is_refused(copied: Experiment) -> None:
    """By the hash of the set it was found with, before anything runs."""
    store = ArtifactStore(copied.artifacts)
    rows, notes = store.read(DICTIONARY_SET).to_pylist(), store.notes(DICTIONARY_SET)
    rows[0]["weights"] = "other"
    (stage,) = [s for s in stages_of(copied) if s.name == "dictionary_set"]
    own = {key: notes[key] for key in notes.keys() & {"weights"}}
    store.write(
        DICTIONARY_SET, TABLES["dictionary_set"].build(rows), stage.recipe(copied), notes=own
    )
    with pytest.raises(ExperimentError, match="from earlier examples or dictionaries"):
        TASK_BASELINES_STAGE.run(copied, ["simple"])


def test_hidden_neurons_that_are_not_known_are_refused_before_any_run(
    copied: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def experts(_model: LanguageModel) -> None:
        raise MissingSubmodule("mlp_0 has experts.")

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(LanguageModel, "check_hidden", experts)
    monkeypatch.setattr(Evaluator, "__init__", never)
    with pytest.raises(ExperimentError, match=r"mlp_neurons.*has experts.*leave that variant out"):
        TASK_BASELINES_STAGE.run(read_experiment(_other_sizes(copied)), ["simple"])


def _other_sizes(experiment: Experiment) -> Path:
    return write_experiment(experiment.path.parent, evaluations={"n_minimal": 3})


def _with_examples(copied: Experiment, n_evaluated: int, nodes: bool = True) -> str:
    """Leave the first cluster so many examples to be judged on, and perhaps no node."""
    store, name = ArtifactStore(copied.artifacts), copied.clusters[0]
    key = examples("clusters")
    rows, left = store.read(key).to_pylist(), n_evaluated
    for row in rows:
        if row["name"] == name and row["evaluated"]:
            row["evaluated"], left = left > 0, left - 1
    (stage,) = [s for s in stages_of(copied) if s.name == "cluster_behaviours"]
    recipe = stage.recipe(copied)
    store.write(key, TABLES["examples"].build(rows), recipe)
    if not nodes:
        (of_circuit,) = CIRCUIT_BASELINES_STAGE.recipes(copied, [name]).values()
        store.write(circuit("clusters", name, "nodes"), TABLES["nodes"].build([]), of_circuit)
    assert store.footer(behaviours("clusters")) is not None
    return name


@pytest.mark.parametrize("n_evaluated", [0, 1, 2])
def test_of_few_examples_is_said_what_can_be(copied: Experiment, n_evaluated: int) -> None:
    """Of none nothing, of one no interval, of two the range of both."""
    name = _with_examples(copied, n_evaluated)
    experiment = read_experiment(_other_sizes(copied))
    CIRCUIT_BASELINES_STAGE.run(experiment, [name])
    store = ArtifactStore(experiment.artifacts)
    rows = store.read(baselines("clusters", name)).to_pylist()
    run = [row for row in rows if row["variant"] == "neurons"]
    assert bool(run) == (n_evaluated > 0)
    assert {row["n_examples"] for row in run} == ({n_evaluated} if n_evaluated else set())
    assert all(math.isfinite(row["faithfulness_low"]) == (n_evaluated == 2) for row in run)
    shown = CIRCUIT_BASELINES_STAGE.show(Work.on(experiment), name)
    assert ("not compared" in shown) == (n_evaluated == 0)


def test_a_circuit_without_nodes_is_compared_and_loses_nothing(copied: Experiment) -> None:
    """As where thresholds keep nothing: curves are there, the circuit's own point is empty."""
    name = _with_examples(copied, 2, nodes=False)
    experiment = read_experiment(_other_sizes(copied))
    CIRCUIT_BASELINES_STAGE.run(experiment, [name])
    store = ArtifactStore(experiment.artifacts)
    assert store.n_rows(baselines("clusters", name, "node_losses")) == 0
    own = [
        row
        for row in store.read(baselines("clusters", name)).to_pylist()
        if row["of_circuit"] and row["variant"] == "neurons"
    ]
    assert [(row["n_nodes"], row["faithfulness"]) for row in own] == [(0, 0.0)]


def test_without_variants_or_clusters_there_are_no_stages(copied: Experiment) -> None:
    def names(**changed: object) -> set[str]:
        path = write_experiment(copied.path.parent, evaluations=changed)
        return {
            stage.name for stage in stages_of(read_experiment(path)) if "baselines" in stage.name
        }

    assert names() == {"circuit_baselines", "task_baselines"}
    assert names(n_examined=0) == {"task_baselines"}
    assert names(variants=[]) == set()
    with pytest.raises(ExperimentError, match="name one twice"):
        names(variants=["neurons", "neurons"])
