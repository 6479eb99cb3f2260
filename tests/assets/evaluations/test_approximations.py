"""Estimates against interventions: nodes of every size, fits by hand, a finished experiment."""

from __future__ import annotations

import math

import pytest

from assets.checks import _estimates_follow
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.evaluations.approximations import (
    CIRCUIT_APPROXIMATIONS_STAGE,
    TASK_APPROXIMATIONS_STAGE,
    draw_nodes,
    fit,
    show_approximation_of,
)
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import approximation
from core.types import Node
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import write_experiment


def node(feature: int) -> Node:
    return Node("mlp_0", feature, None, 0.0)


def test_half_of_the_nodes_are_the_strongest_and_the_rest_of_every_size() -> None:
    sizes = {node(i): float(100 - i) for i in range(100)}
    drawn = draw_nodes(sizes, 8, seed=0)
    assert [one.node.feature for one in drawn[:4]] == [0, 1, 2, 3]
    assert [one.drawn for one in drawn] == ["strongest"] * 4 + ["random"] * 4
    # One of each quarter of the other 96.
    assert [(one.node.feature - 4) // 24 for one in drawn[4:]] == [0, 1, 2, 3]
    assert drawn == draw_nodes(dict(reversed(sizes.items())), 8, seed=0)
    assert drawn != draw_nodes(sizes, 8, seed=1)


@pytest.mark.parametrize("n_nodes", [0, 1, 3, 5])
def test_few_nodes_are_all_drawn_once(n_nodes: int) -> None:
    sizes = {node(i): 1.0 for i in range(n_nodes)}
    assert sorted(one.node for one in draw_nodes(sizes, 9, seed=0)) == sorted(sizes)


def test_a_fit_by_hand() -> None:
    found = fit([1, 2, 0], [2, 4, 0])
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "slope": 2, "sign": 1})
    # Ranks 1 2 3 against 2 1 3; slope (-1 + 3 * 5) / (1 + 9).
    found = fit([0, 1, 3], [0, -1, 5])
    assert found["spearman"] == pytest.approx(0.5)
    assert found["slope"] == pytest.approx(1.4)
    assert found["sign"] == 0.5
    still = fit([0, 0], [1, 2])
    assert all(math.isnan(value) for value in still.values())


def read(experiment: Experiment, source: str, name: str, table: str = "nodes") -> Frame:
    return frame(ArtifactStore(experiment.artifacts).read(approximation(source, name, table)))


def test_estimates_follow_interventions_at_the_last_stream(finished: Experiment) -> None:
    """Node by node, through the whole path: a wrong row beside another would break it."""
    nodes = read(finished, "tasks", "simple")
    assert set(nodes["submodule"]) == set(finished.submodules)
    assert nodes["pos"].notna().all()
    last = nodes[nodes["submodule"] == "resid_1"]
    assert len(last) == 16
    # Only the final norm bends the metric.
    assert last["exact"].corr(last["integrated"]) > 0.9
    fits = read(finished, "tasks", "simple", "fits").set_index(["submodule", "estimator"])
    own = fit(last["exact"].tolist(), last["integrated"].tolist())
    assert fits.loc[("resid_1", "integrated"), list(own)].to_dict() == pytest.approx(own)
    assert set(fits["answers"].str.split(":").str[0]) == {"single effect", "joint share"}


def test_circuits_chosen_by_either_estimate_have_the_sizes_asked_for(finished: Experiment) -> None:
    ranked = read(finished, "clusters", "k00000", "rankings")
    assert list(ranked["estimator"].unique()) == ["attribution", "integrated"]
    of_one = ranked[ranked["estimator"] == "integrated"]
    # There are fewer nodes than the largest sizes.
    assert of_one["n_nodes"].tolist()[0] == 25
    assert of_one["n_nodes"].is_monotonic_increasing
    assert of_one["faithfulness"].iloc[-1] == pytest.approx(1, abs=0.3)


def test_the_ui_shows_a_picture_and_what_each_estimate_answers(finished: Experiment) -> None:
    shown = show_approximation_of("tasks", Work.on(finished), "simple")
    assert shown["attribution is of a"].startswith("single effect")
    assert shown["integrated is of a"].startswith("joint share")
    assert len(shown["estimates against exact effects"].value) < 70_000


def test_the_check_fails_where_orders_differ(finished: Experiment, copied: Experiment) -> None:
    assert _estimates_follow("tasks", finished, ArtifactStore(finished.artifacts)).passed
    strict = {"approximations": {"n_examples": 2, "min_correlation": 1.0}}
    changed = read_experiment(write_experiment(copied.path.parent, evaluations=strict))
    store = ArtifactStore(changed.artifacts)
    found = _estimates_follow("clusters", changed, store)
    assert not found.passed
    assert "correlate with exact effects by 0." in found.says
    # A limit of a check makes nothing stale.
    assert not TASK_APPROXIMATIONS_STAGE.run(changed, ["simple"])


def test_an_experiment_may_leave_them_out_or_examine_fewer_clusters(copied: Experiment) -> None:
    folder = copied.path.parent
    without = read_experiment(write_experiment(folder, evaluations={"approximations": None}))
    assert not [stage for stage in stages_of(without) if "approximations" in stage.name]
    few = read_experiment(write_experiment(folder, evaluations={"n_examined": 1}))
    assert CIRCUIT_APPROXIMATIONS_STAGE.partitions(few) == ["k00000"]
    none = read_experiment(write_experiment(folder, evaluations={"n_examined": 0}))
    names = [stage.name for stage in stages_of(none)]
    assert "circuit_approximations" not in names
    assert "task_approximations" in names
