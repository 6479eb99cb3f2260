"""What circuits share and what they explain of each other, in the tables of a finished run."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from assets.checks import circuits_differ, own_circuits_explain_most
from assets.circuits.stages import load_circuit
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.evaluations.overlap import CIRCUIT_OVERLAP_STAGE, Held
from assets.evaluations.summary import names_of
from assets.evaluations.transfer import CIRCUIT_TRANSFER_STAGE, everywhere
from assets.settings import Experiment
from assets.tables.places import CIRCUIT_OVERLAP, CIRCUIT_TRANSFER, behaviours, evaluation
from assets.tables.schemas import TABLES
from core.types import Node
from pipelines.experiment import read_experiment
from tests.tiny_experiment import write_experiment


def _rows(experiment: Experiment, key: Any) -> list[dict[str, Any]]:
    return ArtifactStore(experiment.artifacts).read(key).to_pylist()


def test_shared_features_are_those_of_both_circuits(finished: Experiment) -> None:
    store = ArtifactStore(finished.artifacts)

    def features(source: Any, name: str) -> set[tuple[str, int]]:
        found = load_circuit(store, source, name)
        assert found is not None
        return {(n.submodule, n.feature) for n in found.nodes if not n.is_error}

    rows = [r for r in _rows(finished, CIRCUIT_OVERLAP) if r["part"] == "features"]
    assert len(rows) == 6  # three clusters and a task
    for row in rows:
        a = features(row["source"], row["name"])
        b = features(row["other_source"], row["other"])
        assert (row["n"], row["n_other"], row["n_shared"]) == (len(a), len(b), len(a & b))
        assert row["contained"] == len(a & b) / len(a)
        assert 0 < row["weighted"] <= 1


def _held(positions: tuple[int, int]) -> Held:
    """A feature at two places, an error, and an edge from each place of the feature."""
    nodes = [
        {"node": i, "submodule": s, "feature": f, "pos": p, "effect": e, "stderr": None}
        for i, (s, f, p, e) in enumerate(
            [
                ("embed", 3, positions[0], 2.0),
                ("embed", 3, positions[1], -1.0),
                ("resid_0", -1, 2, 0.5),
            ]
        )
    ]
    edges = [
        {"upstream": up, "downstream": down, "weight": weight, "stderr": None, "inclusion": None}
        for up, down, weight in ((0, 2, 1.0), (1, 2, -0.5), (2, None, 0.5))
    ]
    table = TABLES["nodes"].build([{**node, "inclusion": None} for node in nodes])
    return Held("tasks", "one", 3, table, TABLES["edges"].build(edges))


def test_parts_are_summed_over_positions_or_kept_apart() -> None:
    held = _held((0, 1))
    assert held.sizes("features", by_position=False) == {("embed", 3): 3.0}
    assert held.sizes("nodes", by_position=True) == {
        ("embed", 3, 0): 2.0,
        ("embed", 3, 1): 1.0,
        ("resid_0", -1, 2): 0.5,
    }
    error = ("resid_0", -1)
    assert held.sizes("edges", by_position=False) == {
        (("embed", 3), error): 1.5,
        (error, "metric"): 0.5,
    }


def test_nodes_without_positions_are_there_once() -> None:
    nodes = [Node("embed", 3, 0, 2.0), Node("embed", 3, 1, -0.5, 0.1), Node("resid_0", -1, 2, 1.0)]
    assert everywhere(nodes) == [Node("embed", 3, None, 1.5), Node("resid_0", -1, None, 1.0)]


def test_a_circuit_explains_its_own_behaviour_as_its_evaluation_says(
    finished: Experiment,
) -> None:
    rows = _rows(finished, CIRCUIT_TRANSFER)
    # The one task's circuit is judged both ways.
    assert len(rows) == len(finished.examined) ** 2 + 2
    for row in (r for r in rows if r["name"] == r["circuit"]):
        if row["source"] == "tasks" and not row["by_position"]:
            continue
        judged = _rows(finished, evaluation(row["source"], row["name"]))[0]
        assert row["faithfulness"] == pytest.approx(judged["faithfulness"])
        assert (row["start_layer"], row["error_nodes"]) == (
            judged["start_layer"],
            judged["error_nodes"],
        )


def test_only_the_first_clusters_are_examined(copied: Experiment) -> None:
    def examining(n: int) -> Experiment:
        return read_experiment(write_experiment(copied.path.parent, evaluations={"n_examined": n}))

    one = examining(1)
    assert CIRCUIT_TRANSFER_STAGE.run(one)
    rows = [r for r in _rows(one, CIRCUIT_TRANSFER) if r["source"] == "clusters"]
    assert [(r["name"], r["circuit"]) for r in rows] == [("k00000", "k00000")]
    none = examining(0)
    assert CIRCUIT_TRANSFER_STAGE.run(none)
    assert {r["source"] for r in _rows(none, CIRCUIT_TRANSFER)} == {"tasks"}


def test_circuits_of_earlier_examples_are_left_out(copied: Experiment) -> None:
    store, work = ArtifactStore(copied.artifacts), Work.on(copied)
    key = behaviours("clusters")
    table = store.read(key)
    digests = ["another", *table["digest"].to_pylist()[1:]]
    place = table.schema.get_field_index("digest")
    changed = table.set_column(place, table.schema.field(place), pa.array(digests))
    store.write(key, changed, store_recipe(store, key))
    names = names_of(copied)
    made = CIRCUIT_OVERLAP_STAGE.make(work, names)
    assert made.notes == {"n_stale": 1}
    assert isinstance(made.table, pa.Table)
    assert names["clusters"][0] not in made.table["name"].to_pylist()


def store_recipe(store: ArtifactStore, key: Any) -> Any:
    from assets.engine.recipe import Recipe

    notes = store.notes(key)
    return Recipe(notes["stage"], notes["inputs"], notes["settings"], notes["code"])


def test_what_is_shown_has_a_heat_map_for_each_source(finished: Experiment) -> None:
    for stage in (CIRCUIT_OVERLAP_STAGE, CIRCUIT_TRANSFER_STAGE):
        shown = stage.shown(finished)
        for source in ("clusters", "tasks"):
            drawn = [v for k, v in shown.items() if source in k]
            assert drawn
            assert all("image/png" in value.md_str for value in drawn)


def test_a_circuit_that_explains_others_better_than_its_own_is_warned_about(
    copied: Experiment,
) -> None:
    store = ArtifactStore(copied.artifacts)
    rows = _rows(copied, CIRCUIT_TRANSFER)
    for row in rows:
        row["faithfulness"] = 0.9 if row["name"] == row["circuit"] else 0.1
    recipe = store_recipe(store, CIRCUIT_TRANSFER)
    store.write(CIRCUIT_TRANSFER, TABLES["circuit_transfer"].build(rows), recipe)
    assert own_circuits_explain_most(copied, store).passed
    for row in rows:
        row["faithfulness"] = 1 - row["faithfulness"]
    store.write(CIRCUIT_TRANSFER, TABLES["circuit_transfer"].build(rows), recipe)
    found = own_circuits_explain_most(copied, store)
    assert not found.passed
    assert "k00000" in found.says


def test_two_clusters_with_one_circuit_are_told(copied: Experiment) -> None:
    store = ArtifactStore(copied.artifacts)
    rows = _rows(copied, CIRCUIT_OVERLAP)
    recipe = store_recipe(store, CIRCUIT_OVERLAP)
    for weighted, passed in ((0.8, True), (0.81, False)):
        for row in rows:
            row["weighted"] = weighted
        store.write(CIRCUIT_OVERLAP, TABLES["circuit_overlap"].build(rows), recipe)
        found = circuits_differ(copied, store)
        assert found.passed == passed
        assert ("k00000 and k00001 0.81" in found.says) != passed
