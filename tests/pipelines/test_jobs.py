"""The job that brings everything up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.engine.processes import PROCESS, this_process
from pipelines import jobs
from pipelines.experiment import read_experiment
from tests.tiny_experiment import write_experiment


def test_its_run_says_which_process_executes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(jobs, "run_command", lambda path, _say: ran.append(path))
    path = write_experiment(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        done = jobs.everything_job(read_experiment(path)).execute_in_process(instance=instance)
        found = instance.get_run_by_id(done.run_id)
    assert found is not None
    assert found.tags[PROCESS] == this_process()
    assert ran == [path]


def test_a_command_that_fails_is_a_failure_with_what_it_said(tmp_path: Path) -> None:
    path, said = write_experiment(tmp_path, model={"layers": 2}), list[Any]()
    with pytest.raises(dg.Failure, match="did you mean n_layers"):
        jobs.run_command(path, said.append)
    assert any("n_layers" in line for line in said)
