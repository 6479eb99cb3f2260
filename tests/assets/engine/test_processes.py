"""Runs whose process is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.engine.processes import PROCESS, end_dead_runs, is_dead, this_process


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as made:
        yield made


def _run(instance: dg.DagsterInstance, process: str, status: dg.DagsterRunStatus) -> str:
    @dg.job
    def nothing() -> None:
        pass

    return instance.create_run_for_job(nothing, status=status, tags={PROCESS: process}).run_id


def _of_a_killed_process() -> str:
    code = "from assets.engine.processes import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_whose_process_is_gone_is_ended(instance: dg.DagsterInstance) -> None:
    gone = _of_a_killed_process()
    started = _run(instance, gone, dg.DagsterRunStatus.STARTED)
    cancelled = _run(instance, gone, dg.DagsterRunStatus.CANCELING)
    assert set(end_dead_runs(instance)) == {started, cancelled}
    assert _status(instance, started) is dg.DagsterRunStatus.FAILURE
    assert _status(instance, cancelled) is dg.DagsterRunStatus.CANCELED
    assert end_dead_runs(instance) == []


def test_a_run_that_is_tried_again_is_not_taken_for_the_one_that_died(
    instance: dg.DagsterInstance,
) -> None:
    @dg.job
    def nothing() -> None:
        pass

    gone = {PROCESS: _of_a_killed_process()}
    dead = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.FAILURE, tags=gone)
    again = instance.create_run_for_job(
        nothing,
        status=dg.DagsterRunStatus.STARTING,
        tags=gone,  # Dagster hands the tags of before on
        parent_run_id=dead.run_id,
        root_run_id=dead.run_id,
    )
    assert end_dead_runs(instance) == []
    instance.add_run_tags(again.run_id, {PROCESS: f"{_of_a_killed_process()}0"})
    assert end_dead_runs(instance) == [again.run_id]


def test_runs_of_living_processes_and_of_other_machines_are_left_alone(
    instance: dg.DagsterInstance,
) -> None:
    for process in (this_process(), "elsewhere:1:2", "", "nonsense"):
        run_id = _run(instance, process, dg.DagsterRunStatus.STARTED)
        assert end_dead_runs(instance) == []
        assert _status(instance, run_id) is dg.DagsterRunStatus.STARTED


def test_a_finished_run_is_left_alone(instance: dg.DagsterInstance) -> None:
    run_id = _run(instance, _of_a_killed_process(), dg.DagsterRunStatus.SUCCESS)
    assert end_dead_runs(instance) == []
    assert _status(instance, run_id) is dg.DagsterRunStatus.SUCCESS


def test_a_later_process_of_the_same_number_is_another() -> None:
    assert not is_dead(this_process())
    assert is_dead(f"{socket.gethostname()}:{os.getpid()}:1")
