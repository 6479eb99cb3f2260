"""What the UI shows of circuits: of the first all of it, of thousands of others figures."""

from __future__ import annotations

import pytest

from assets.circuits import each
from assets.circuits.stages import CIRCUITS_STAGE, TASK_CIRCUITS_STAGE, load_circuit
from assets.engine.stage import Work
from assets.evaluations.stages import CIRCUIT_EVALUATIONS_STAGE
from assets.settings import Experiment

WHOLE = {"drawing", "strongest nodes", "reads", "lineage", "settings"}


def test_all_but_the_first_circuits_are_shown_in_figures(
    finished: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(each, "SHOWN_WHOLE", 1)
    work = Work.on(finished)
    first, second, task = (
        CIRCUITS_STAGE.show(work, "k00000"),
        CIRCUITS_STAGE.show(work, "k00001"),
        TASK_CIRCUITS_STAGE.show(work, "simple"),
    )
    assert first.keys() >= WHOLE
    assert task.keys() >= WHOLE
    assert not second.keys() & WHOLE
    found = load_circuit(work.store, "clusters", "k00001")
    assert found is not None
    assert (second["nodes"], second["edges"]) == (len(found.nodes), len(found.edges))
    assert "curve" in CIRCUIT_EVALUATIONS_STAGE.show(work, "k00000")
    assert "curve" not in CIRCUIT_EVALUATIONS_STAGE.show(work, "k00001")
