"""Edges judged on the tiny experiment, and what is made of the measured ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from assets.checks import _edges_are_nodes, _weights_predict
from assets.circuits.stages import load_circuit
from assets.engine.recipe import Recipe
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.evaluations.edges import (
    agreement,
    agreement_text,
    edge_stages,
    measured_edges,
    show_edges_of,
)
from assets.settings import Experiment
from assets.tables.conversions import frame, read_edges
from assets.tables.places import BehaviourSource, circuit, edge_evaluation
from assets.tables.schemas import TABLES
from pipelines.experiment import read_experiment
from pipelines.show import judged_circuit
from tests.tiny_experiment import write_experiment

RECIPE = Recipe("test", {}, {}, "1")
EVERY: list[tuple[BehaviourSource, str]] = [("clusters", "k00000"), ("tasks", "simple")]


@pytest.mark.parametrize(("source", "name"), EVERY)
def test_every_possible_edge_is_the_nodes_and_shares_are_of_those_between_them(
    finished: Experiment, source: BehaviourSource, name: str
) -> None:
    table = frame(ArtifactStore(finished.artifacts).read(edge_evaluation(source, name)))
    shares = finished.settings.evaluations.edge_shares
    own = table[table["share"].isna()].set_index("kept")
    assert set(own.index) == {"nodes", "circuit"}
    by_share = table.dropna(subset="share").pivot(index="share", columns="kept")
    assert list(by_share.index) == [*shares, 1.0]
    whole = by_share.loc[1.0]
    assert whole["m_edges", "strongest"] == pytest.approx(own.loc["nodes", "m_edges"], abs=1e-5)
    assert whole["n_edges", "strongest"] == own.loc["nodes", "n_possible"] > 20
    part = by_share.loc[list(shares)]
    assert (part["n_edges", "random"] == part["n_edges", "strongest"]).all()
    # What is left out of one is all of the other, but for the edges into the metric, in both.
    both = part["n_edges", "strongest"] + part["n_edges", "weakest"]
    assert both.nunique() == 1
    assert both.iloc[0] > own.loc["nodes", "n_possible"]


@pytest.mark.parametrize(("source", "name"), EVERY)
def test_a_circuit_is_its_edges_above_the_threshold_among_all_that_are_kept(
    finished: Experiment, source: BehaviourSource, name: str
) -> None:
    store = ArtifactStore(finished.artifacts)
    found = load_circuit(store, source, name)
    assert found is not None
    every = read_edges(store.read(circuit(source, name, "edge_effects")))
    threshold = float(str(found.settings["edge_threshold"]))
    assert threshold == finished.settings.circuits.edge_threshold
    assert [edge for edge in every if abs(edge.weight) > threshold] == list(found.edges)
    assert len(every) > len(found.edges) > 0


def test_weights_measured_on_the_circuits_own_examples_are_the_circuits(
    finished: Experiment,
) -> None:
    store = ArtifactStore(finished.artifacts)
    found = load_circuit(store, "tasks", "simple")
    assert found is not None
    measured = measured_edges(store, "tasks", ["simple"])
    assert set(measured["n_examples"]) == {found.n_examples}
    weights = {edge[:2]: edge.weight for edge in found.edges}
    ends = measured[["upstream", "downstream"]].to_numpy().tolist()
    ours = [weights[tuple(pair)] for pair in ends]
    np.testing.assert_allclose(measured["weight"], ours, rtol=1e-4)
    at_most = finished.settings.evaluations.n_edges_measured
    assert measured.groupby(["kind", "from_error", "into_error"]).size().max() <= at_most
    assert set(measured["at_error"]) == {True, False}


def test_the_interface_shows_curve_and_agreement_or_why_there_is_none(
    finished: Experiment, copied: Experiment
) -> None:
    shown = show_edges_of("tasks", Work.on(finished), "simple")
    assert 0 < len(shown["curve"].value) < 50_000
    assert len(shown["weight and direct path"].value) < 50_000
    assert "possible" in shown["edges"]
    nothing = TABLES["edge_evaluations"].build([])
    store = ArtifactStore(copied.artifacts)
    store.write(edge_evaluation("tasks", "simple"), nothing, RECIPE)
    store.write(circuit("tasks", "simple"), TABLES["circuit"].build([]), RECIPE)
    assert show_edges_of("tasks", Work.on(copied), "simple") == {"not judged": "empty"}


def test_a_shown_circuit_says_what_edges_at_errors_are_worth(finished: Experiment) -> None:
    said = str(judged_circuit(finished, "simple").settings["edge_agreement"])
    measured = measured_edges(ArtifactStore(finished.artifacts), "tasks", ["simple"])
    assert said == agreement_text(measured)
    assert f"{agreement(measured[measured['at_error']])['spearman']:.2f}, of those between" in said


def test_only_examined_clusters_are_judged(finished: Experiment) -> None:
    def names(n_examined: int | None) -> list[str]:
        path = write_experiment(
            finished.path.parent, "other", evaluations={"n_examined": n_examined}
        )
        experiment = read_experiment(path)
        path.unlink()
        assert experiment.examined == experiment.clusters[:n_examined]
        return [stage.name for stage in edge_stages(experiment)]

    assert names(0) == ["task_edge_evaluations"]
    assert names(2) == names(None) == ["circuit_edge_evaluations", "task_edge_evaluations"]


MEASURED = pd.DataFrame(
    {"weight": [1.0, 2.0, 3.0, -1.0], "path": [2.0, 4.0, 9.0, 1.0], "effect": 0.0}
)


def test_agreement_is_what_was_worked_out_by_hand() -> None:
    found = agreement(MEASURED)
    # sum(w p) = 2 + 8 + 27 - 1 = 36, sum(p^2) = 102; three of four signs agree, and all ranks.
    assert found["n"] == 4
    assert found["slope"] == pytest.approx(36 / 102)
    assert found["sign"] == 0.75
    assert found["spearman"] == pytest.approx(1)
    # Deviations of w are -1/4, 3/4, 7/4, -9/4, of p -2, 0, 5, -3: 16 / sqrt(35/4 . 38).
    assert found["pearson"] == pytest.approx(16 / math.sqrt(8.75 * 38))
    assert math.isnan(agreement(MEASURED[:2])["spearman"])


def _kept(**changed: Any) -> dict[str, Any]:
    names = TABLES["edge_evaluations"].schema.names
    text = {"name": "simple", "kept": "nodes", "share": None, "ablation": "mean"}
    return {**dict.fromkeys(names, 1), **text, "held_out": True, "faithfulness": 0.5, **changed}


@pytest.mark.parametrize(
    ("whole", "passed"), [(0.5, True), (0.52, False), (math.nan, True)], ids=str
)
def test_the_check_fails_where_all_edges_are_not_the_nodes(
    copied: Experiment, whole: float, passed: bool
) -> None:
    store = ArtifactStore(copied.artifacts)
    nodes = math.nan if math.isnan(whole) else 0.5
    rows = [
        _kept(faithfulness=nodes),
        _kept(kept="strongest", share=1.0, faithfulness=whole),
    ]
    store.write(edge_evaluation("tasks", "simple"), TABLES["edge_evaluations"].build(rows), RECIPE)
    assert _edges_are_nodes("tasks", copied, store).passed is passed


@pytest.mark.parametrize(("paths", "passed"), [((1, 2, 3), True), ((3, 2, 1), False)], ids=str)
def test_the_check_warns_where_weights_rank_edges_otherwise_than_their_paths(
    copied: Experiment, paths: tuple[int, ...], passed: bool
) -> None:
    store = ArtifactStore(copied.artifacts)
    common = {"name": "simple", "upstream": 0, "downstream": 1, "kind": "a", "n_examples": 4}
    rows = [
        {
            **common,
            "from_error": False,
            "into_error": False,
            "weight": float(i),
            "path": float(path),
            "effect": 0.0,
        }
        for i, path in enumerate(paths)
    ]
    key = edge_evaluation("tasks", "simple", "interventions")
    store.write(key, TABLES["edge_interventions"].build(rows), RECIPE)
    found = _weights_predict("tasks", copied, store)
    assert found.passed is passed
    assert "(3 edges); at error nodes nan" in found.says
