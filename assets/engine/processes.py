"""Runs whose process is gone: Dagster goes on to count them as running, and waits for them.

A run is tagged with the process that executes it. Whoever looks next ends a run whose process is no
longer there; its place in the pool is then free.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from assets.engine.lock import is_running

PROCESS = "circuits/process"
"""Tag of a run: host, process id and when that process began."""


def this_process() -> str:
    """This process, told apart from a later one of the same number."""
    return f"{socket.gethostname()}:{os.getpid()}:{_began(os.getpid())}"


def tag_with_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Note on a run which process executes it."""
    if run.tags.get(PROCESS) != this_process():
        instance.add_run_tags(run.run_id, {PROCESS: this_process()})


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs of this machine whose process is gone; their ids."""
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES))):
        if is_dead(_process_of(instance, run)):
            if run.status is dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "Its process is gone.")
            else:
                instance.report_run_failed(run, "Its process is gone: killed, or out of memory.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    return ended


def _process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The process that a run noted itself: one that is tried again begins with old tags."""
    noted = run.tags.get(PROCESS, "")
    before = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return "" if before is not None and before.tags.get(PROCESS) == noted else noted


def is_dead(process: str) -> bool:
    """Whether a process, as `this_process` names it, ran on this machine and runs no more."""
    host, _, rest = process.partition(":")
    number, _, began = rest.partition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    return not is_running(int(number)) or _began(int(number)) != began


def _began(process: int) -> str:
    """When a process began, in ticks since the machine did; empty where no system tells."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2]
    except OSError:
        return ""
    state, *others = fields.split()
    return "ended" if state == "Z" else others[18]
