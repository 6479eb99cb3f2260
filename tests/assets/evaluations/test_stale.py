"""A change reaches the circuits it concerns and no others, and nothing mixes old with new."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from assets.checks import Outcome, summary_is_current
from assets.circuits.behaviours import CLUSTER_BEHAVIOURS_STAGE, read_behaviours
from assets.circuits.stages import CIRCUITS_STAGE, TASK_CIRCUITS_STAGE
from assets.dictionaries.stages import DICTIONARY_SET_STAGE
from assets.discovery.clusterings import CLUSTER_ASSIGNMENTS_STAGE, CLUSTERS_STAGE
from assets.engine.store import ArtifactStore
from assets.evaluations.stages import CIRCUIT_EVALUATIONS_STAGE, TASK_EVALUATIONS_STAGE
from assets.evaluations.summary import EVALUATION_SUMMARY_STAGE
from assets.settings import Experiment, ExperimentError
from assets.tables.places import (
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    assignments,
    behaviours,
    circuit,
    evaluation,
    examples,
)
from assets.tables.schemas import TABLES
from pipelines.experiment import read_experiment
from tests.tiny_experiment import brought_up_to_date, write_experiment, write_pairs

MOVED = ("k00000", "k00001")


def another(experiment: Experiment, folder: Path) -> Experiment:
    """The same in another folder, to change."""
    shutil.copytree(experiment.path.parent, folder / "another")
    return read_experiment(folder / "another" / experiment.path.name)


@pytest.fixture(scope="module")
def every_sample(finished: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Finished, and every sample is an example of its cluster's circuit."""
    folder = another(finished, tmp_path_factory.mktemp("every")).path.parent
    every = {"n_examples": 100, "n_evaluated": 100}
    changed = read_experiment(write_experiment(folder, circuits=every))
    brought_up_to_date(changed)
    return changed


@pytest.fixture
def experiment(every_sample: Experiment, tmp_path: Path) -> Experiment:
    return another(every_sample, tmp_path)


def move_one_sample(experiment: Experiment) -> None:
    """Put one sample of the largest cluster into the second, in the table of assignments."""
    store = ArtifactStore(experiment.artifacts)
    rows, notes = store.read(assignments()).to_pylist(), store.notes(assignments())
    next(row for row in rows if row["cluster"] == 0)["cluster"] = 1
    own = {name: notes[name] for name in ("k", "algorithm", "curve")}
    recipe = CLUSTER_ASSIGNMENTS_STAGE.recipe(experiment)
    store.write(assignments(), TABLES["cluster_assignments"].build(rows), recipe, notes=own)


def names_in_summary(experiment: Experiment) -> set[str]:
    table = ArtifactStore(experiment.artifacts).read(EVALUATION_SUMMARY, ["name"])
    return set(table["name"].to_pylist())


def current(experiment: Experiment) -> Outcome:
    return summary_is_current(experiment, ArtifactStore(experiment.artifacts))


def stale_circuits(experiment: Experiment) -> set[str]:
    """Circuits that were not made by the recipe they have now."""
    store = ArtifactStore(experiment.artifacts)
    recipes = CIRCUITS_STAGE.recipes(experiment, experiment.clusters)
    return {
        name
        for name, recipe in recipes.items()
        if not store.is_current(circuit("clusters", name), recipe)
    }


def test_one_moved_sample_concerns_the_circuits_of_two_clusters(experiment: Experiment) -> None:
    assert stale_circuits(experiment) == set()
    move_one_sample(experiment)
    CLUSTERS_STAGE.run(experiment)
    CLUSTER_BEHAVIOURS_STAGE.run(experiment)
    assert stale_circuits(experiment) == set(MOVED)
    made = brought_up_to_date(experiment)
    assert made == {
        "circuits": 2,
        "circuit_evaluations": 2,
        "circuit_approximations": 2,
        "circuit_baselines": 2,
        "evaluation_summary": 1,
    }
    assert current(experiment).passed


def test_circuits_of_an_earlier_clustering_are_not_judged_on_examples_of_this_one(
    experiment: Experiment,
) -> None:
    move_one_sample(experiment)
    CLUSTERS_STAGE.run(experiment)
    CLUSTER_BEHAVIOURS_STAGE.run(experiment)
    with pytest.raises(ExperimentError) as caught:
        CIRCUIT_EVALUATIONS_STAGE.run(experiment, experiment.clusters)
    assert str(caught.value).startswith("circuits: k00000, k00001 of 3 were found from earlier")
    assert str(caught.value).endswith("Materialize circuits first.")
    assert CIRCUIT_EVALUATIONS_STAGE.run(experiment, ["k00002"]) == 0
    CIRCUITS_STAGE.run(experiment, ["k00000"])
    with pytest.raises(ExperimentError, match=r"^circuits: k00001 of 3"):
        CIRCUIT_EVALUATIONS_STAGE.run(experiment, experiment.clusters)


def test_circuits_of_an_earlier_clustering_are_left_out_of_the_summary(
    experiment: Experiment,
) -> None:
    assert names_in_summary(experiment) == {*experiment.clusters, "simple"}
    move_one_sample(experiment)
    CLUSTERS_STAGE.run(experiment)
    CLUSTER_BEHAVIOURS_STAGE.run(experiment)
    said: list[str] = []
    assert EVALUATION_SUMMARY_STAGE.run(experiment, said.append)
    assert names_in_summary(experiment) == {"k00002", "simple"}
    assert ArtifactStore(experiment.artifacts).notes(EVALUATION_SUMMARY)["n_stale"] == 2
    assert said[-1] == "2 circuits are of earlier examples or dictionaries and left out"
    assert not current(experiment).passed
    # A new circuit with an old evaluation will not do either.
    CIRCUITS_STAGE.run(experiment, experiment.clusters)
    EVALUATION_SUMMARY_STAGE.run(experiment)
    assert names_in_summary(experiment) == {"k00002", "simple"}
    CIRCUIT_EVALUATIONS_STAGE.run(experiment, experiment.clusters)
    EVALUATION_SUMMARY_STAGE.run(experiment)
    assert names_in_summary(experiment) == {*experiment.clusters, "simple"}
    assert current(experiment).passed


def test_behaviours_are_not_made_from_summaries_of_an_earlier_clustering(
    experiment: Experiment,
) -> None:
    move_one_sample(experiment)
    with pytest.raises(ExperimentError, match=r"Materialize clusters first"):
        CLUSTER_BEHAVIOURS_STAGE.run(experiment)


@pytest.fixture(scope="module")
def two_tasks_once(finished: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Finished with a second task."""
    folder = another(finished, tmp_path_factory.mktemp("two")).path.parent
    write_pairs(folder / "birds.json", ("bird", "birds"))
    pairs = {
        "simple": {"train": "./train.json", "test": "./test.json"},
        "other": {"train": "./birds.json", "test": "./test.json"},
    }
    changed = read_experiment(write_experiment(folder, tasks={"pairs": pairs}))
    made = brought_up_to_date(changed)
    assert made == {
        "task_behaviours": 1,
        "task_circuits": 1,
        "task_evaluations": 1,
        "task_approximations": 1,
        "task_baselines": 1,
        "evaluation_summary": 1,
    }
    return changed


@pytest.fixture
def two_tasks(two_tasks_once: Experiment, tmp_path: Path) -> Experiment:
    return another(two_tasks_once, tmp_path)


def test_one_changed_file_of_pairs_concerns_its_task_alone(two_tasks: Experiment) -> None:
    write_pairs(two_tasks.path.parent / "birds.json", ("dogs", "birds"))
    store = ArtifactStore(two_tasks.artifacts)
    made = brought_up_to_date(two_tasks)
    assert made == {
        "task_behaviours": 1,
        "task_circuits": 1,
        "task_evaluations": 1,
        "task_approximations": 1,
        "task_baselines": 1,
        "evaluation_summary": 1,
    }
    behaviour = read_behaviours(store, "tasks", ["other"])["other"]
    inputs = store.notes(circuit("tasks", "other"))["inputs"]
    assert inputs["behaviour"] == behaviour.digest
    assert behaviour.about.startswith("the dogs")


def test_the_same_pairs_in_a_file_written_anew_concern_no_circuit(two_tasks: Experiment) -> None:
    file = two_tasks.path.parent / "birds.json"
    file.write_text(file.read_text() + "\n\n")
    assert brought_up_to_date(two_tasks) == {"task_behaviours": 1}


def test_a_task_without_its_circuit_cannot_be_judged(two_tasks: Experiment) -> None:
    store = ArtifactStore(two_tasks.artifacts)
    store.path(circuit("tasks", "other")).unlink()
    with pytest.raises(ExperimentError, match="materialize task_circuits first"):
        TASK_EVALUATIONS_STAGE.run(two_tasks, ["other"])
    assert TASK_EVALUATIONS_STAGE.run(two_tasks, ["simple"]) == 0
    assert TASK_CIRCUITS_STAGE.run(two_tasks, ["simple", "other"]) == 1
    assert TASK_EVALUATIONS_STAGE.run(two_tasks, ["other"]) == 0


def test_circuits_of_earlier_dictionaries_are_left_out_of_the_summary(
    experiment: Experiment,
) -> None:
    store = ArtifactStore(experiment.artifacts)
    table, notes = store.read(DICTIONARY_SET), store.notes(DICTIONARY_SET)
    rows = table.to_pylist()
    rows[0]["weights"] = "another"
    recipe = DICTIONARY_SET_STAGE.recipe(experiment)
    kept = {"n_trained_on": notes["n_trained_on"]}
    store.write(DICTIONARY_SET, TABLES["dictionary_set"].build(rows), recipe, notes=kept)
    EVALUATION_SUMMARY_STAGE.run(experiment)
    assert names_in_summary(experiment) == set()
    assert not current(experiment).passed


def test_circuits_are_judged_from_other_layers_beside_the_first(copied: Experiment) -> None:
    file = write_experiment(copied.path.parent, evaluations={"other_start_layers": [1]})
    changed = read_experiment(file)
    made = brought_up_to_date(changed)
    assert made == {
        "circuit_evaluations": len(changed.clusters),
        "circuit_baselines": len(changed.clusters),
        "task_baselines": 1,
        "evaluation_summary": 1,
    }
    store = ArtifactStore(changed.artifacts)
    rows = store.read(evaluation("clusters", "k00000")).to_pylist()
    found = {(row["start_layer"], row["threshold"] is None): row for row in rows}
    # Curves are drawn from the first layer on alone.
    assert set(found) == {(0, True), (0, False), (1, True)}
    assert found[1, True]["n_nodes"] < found[0, True]["n_nodes"]
    summary = store.read(EVALUATION_SUMMARY).to_pylist()
    of_one = {row["start_layer"]: row for row in summary if row["name"] == "k00000"}
    assert of_one[1]["n_judged"] == found[1, True]["n_nodes"] < of_one[0]["n_judged"]
    assert of_one[0]["n_nodes"] == of_one[1]["n_nodes"]
    assert math.isnan(of_one[1]["area"])
    assert not math.isnan(of_one[0]["area"])


def test_a_circuit_of_one_distinct_sample_is_found_and_not_judged(experiment: Experiment) -> None:
    store = ArtifactStore(experiment.artifacts)
    table = store.read(examples("clusters")).to_pylist()
    own = [row for row in table if row["name"] == "k00000"][:1]
    kept = [{**row, "found": True, "evaluated": False} for row in own]
    rows = [*kept, *(row for row in table if row["name"] != "k00000")]
    heads = store.read(behaviours("clusters")).to_pylist()
    heads = [{**head, "digest": "one"} if head["name"] == "k00000" else head for head in heads]
    recipe = CLUSTER_BEHAVIOURS_STAGE.recipe(experiment)
    store.write(examples("clusters"), TABLES["examples"].build(rows), recipe)
    store.write(behaviours("clusters"), TABLES["behaviours"].build(heads), recipe)
    said: list[str] = []
    assert CIRCUITS_STAGE.run(experiment, ["k00000"], said.append) == 1
    assert CIRCUIT_EVALUATIONS_STAGE.run(experiment, ["k00000"], said.append) == 1
    assert any("nodes from 1 examples" in line for line in said)
    assert any("k00000, not judged: its cluster holds one distinct" in line for line in said)
    assert store.n_rows(evaluation("clusters", "k00000")) == 0
    (head,) = store.read(circuit("clusters", "k00000")).to_pylist()
    assert head["stability"] is None
    EVALUATION_SUMMARY_STAGE.run(experiment)
    assert names_in_summary(experiment) == {*experiment.clusters[1:], "simple"}


def test_several_workers_write_the_same_tables(finished: Experiment, copied: Experiment) -> None:
    several = read_experiment(write_experiment(copied.path.parent, model={"workers": 2}))
    one, two = ArtifactStore(finished.artifacts), ArtifactStore(several.artifacts)
    for stage in (CIRCUITS_STAGE, CIRCUIT_EVALUATIONS_STAGE):
        assert stage.run(several, several.clusters, force=True) == len(several.clusters) > 1
    for name in several.clusters:
        for table in ("effects", "nodes", "edges"):
            key = circuit("clusters", name, table)
            assert two.content(key) == one.content(key)
        judged = evaluation("clusters", name)
        assert two.content(judged) == one.content(judged)
