"""Reruns without being asked: one sensor for each experiment.

The sensor looks whether anything changed (files outside, the experiment's file, tables), waits
until it rests, and asks for one run of what is stale; when that run has ended, for the next. So one
change is one pass through the stages, in order.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.engine.lock import is_taken
from assets.engine.outside import Outside, files_of, hub_commits, outside_of, stat_of
from assets.engine.processes import end_dead_runs
from assets.engine.recipe import digest
from assets.engine.remote import remote_of
from assets.engine.stage import PartitionedStage, Stage
from assets.settings import Experiment, ExperimentError
from pipelines.experiment import check_places, read_experiment
from pipelines.jobs import jobs_of
from pipelines.plan import RANGE_END, RANGE_START, Run, make_plan, runs_of, told
from pipelines.stages import stages_of

EVERY_SECONDS = 30
PASS = "pass"
"""The lock that `make run` holds from its first stage to its last."""

_HUB_EVERY_SECONDS = 3600
_WAITING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def rerun_sensor(experiment: Experiment) -> dg.SensorDefinition:
    """Runs what a change made stale, stage by stage of one pass."""
    on, off = dg.DefaultSensorStatus.RUNNING, dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=f"{experiment.group}_reruns",
        asset_selection=_assets(experiment, stages_of(experiment)),
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=on if experiment.settings.reruns.automatic else off,
        description=(
            "Looks for changed files, settings and dictionaries, and runs what they make stale. "
            "What was never made, and training, waits until it is asked for."
        ),
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _Look(experiment, context).result()

    return look


class _Look:
    """One look at an experiment.

    Its memory is the cursor: ``seen``, a digest of all files by size and time; ``rests``, whether
    they were the same in the look before; ``asked``, the plan that was asked for last; ``versions``
    of the nodes of files outside, as reported; ``commits`` and when the hub was asked.
    """

    def __init__(self, loaded: Experiment, context: dg.SensorEvaluationContext) -> None:
        self.loaded, self.context = loaded, context
        self.memory = _remembered(context.cursor)
        self.observations: list[dg.AssetObservation] = []
        self.unread: list[str] = []

    def result(self) -> dg.SensorResult:
        end_dead_runs(self.context.instance)
        try:
            experiment = read_experiment(self.loaded.path)
            check_places(experiment)
        except ExperimentError as error:
            return self._skip(str(error))
        outside = outside_of(experiment, stages_of(experiment))
        seen = _seen(experiment, outside)
        if seen != self.memory.get("seen"):
            self.memory |= {"seen": seen, "done": False}
            return self._skip("Files changed since the last look: waits until they rest.")
        if running := _at_work(self.context.instance, experiment):
            return self._skip(f"At work: {running}.")
        self._observe(experiment, outside)
        if self.memory.get("done") and not self.observations:
            return self._skip(self.memory.get("told", "Nothing is stale."))
        plan = make_plan(experiment, by_itself=True)
        held = [*self.unread, *(f"{name}: {why}" for name, why in plan.held.items())]
        if not plan.todo:
            self.memory.pop("asked", None)  # all of it was done
            return self._done("\n".join(["Nothing to run.", *held]))
        if plan.wanted == self.memory.get("asked"):
            names = ", ".join(todo.stage.name for todo in plan.todo)
            again = f"Asked for before, and not done: {names}. Launch them by hand to try again."
            return self._done("\n".join([again, *held]))
        run = next(runs_of(experiment, [todo.stage for todo in plan.todo]))
        if not _has_all(self.loaded, run):
            return self._skip("Stages or partitions changed: reload the definitions in the UI.")
        self.memory["asked"] = plan.wanted
        self.context.log.info("\n".join(f"{t.stage.name}: {t.why}" for t in plan.todo))
        return self._say(run_requests=[_request(experiment, run, plan.todo[0].why)])

    def _observe(self, experiment: Experiment, outside: Sequence[Outside]) -> None:
        versions = self.memory.setdefault("versions", {})
        commits = self._commits(experiment)
        for node in outside:
            found = [file for place in node.places for file in files_of(place.place)]
            state = digest([found, [commits.get(place.place) for place in node.places]])
            if versions.get(node.name) == state:
                continue
            try:
                self.observations.append(observation(experiment, node, commits))
            except Exception as error:  # what lies there is whoever's: the look goes on without it
                self.unread.append(f"{node.name}: {told(error)}")
            else:
                versions[node.name] = state

    def _commits(self, experiment: Experiment) -> dict[str, str]:
        if not experiment.settings.reruns.hub:
            return {}
        if time.time() - self.memory.get("hub_asked", 0) > _HUB_EVERY_SECONDS:
            self.memory["hub_asked"] = time.time()
            try:
                self.memory["commits"] = hub_commits(experiment)
            except Exception as error:  # any client's error: the look goes on without the hub
                self.context.log.warning(f"The hub did not answer: {error}")
        return self.memory.get("commits", {})

    def _done(self, told: str) -> dg.SensorResult:
        self.memory |= {"done": True, "told": told}
        return self._skip(told)

    def _skip(self, told: str) -> dg.SensorResult:
        return self._say(skip_reason=told)

    def _say(self, **said: Any) -> dg.SensorResult:
        return dg.SensorResult(
            cursor=json.dumps(self.memory), asset_events=self.observations, **said
        )


def _remembered(cursor: str | None) -> dict[str, Any]:
    """What the last look left; nothing where something else stands there."""
    try:
        memory = json.loads(cursor or "{}")
    except ValueError:
        return {}
    whole = isinstance(memory, dict) and isinstance(memory.get("versions", {}), dict)
    return memory if whole else {}


def _request(experiment: Experiment, run: Run, why: str) -> dg.RunRequest:
    """The request of one run of a plan."""
    return dg.RunRequest(
        asset_selection=[dg.AssetKey([experiment.name, stage.name]) for stage in run.stages],
        tags={**run.tags, "circuits/why": why[:200]},
    )


def observation(
    experiment: Experiment, node: Outside, commits: dict[str, str]
) -> dg.AssetObservation:
    """What lies at a node now, as Dagster keeps it."""
    files = [file for place in node.places for file in files_of(place.place)]
    return dg.AssetObservation(
        asset_key=dg.AssetKey([experiment.name, node.name]),
        tags={DATA_VERSION_TAG: node.version(experiment, commits)},
        metadata={
            "place": dg.MetadataValue.path(node.written),
            "files": len(files),
            "bytes": sum(size for _, size, _ in files),
            **{f"commit of {place}": commit for place, commit in commits.items()},
        },
    )


def report_files(
    experiment: Experiment, instance: dg.DagsterInstance, stages: Sequence[Stage]
) -> None:
    """Tell Dagster what lies outside, where it was told otherwise before."""
    for node in outside_of(experiment, stages):
        seen = observation(experiment, node, {})
        before = instance.fetch_observations(seen.asset_key, limit=1).records
        told = before[0].asset_observation.tags if before and before[0].asset_observation else {}
        if told.get(DATA_VERSION_TAG) != seen.tags[DATA_VERSION_TAG]:
            instance.report_runless_asset_event(seen)


def _assets(experiment: Experiment, stages: Sequence[Stage]) -> dg.AssetSelection:
    return dg.AssetSelection.assets(
        *(dg.AssetKey([experiment.name, stage.name]) for stage in stages)
    )


def _has_all(loaded: Experiment, run: Run) -> bool:
    """Whether the definitions, loaded earlier, know a run's stages and partitions."""
    known = {stage.name: stage for stage in stages_of(loaded)}
    if any(stage.name not in known for stage in run.stages):
        return False
    for stage in run.stages:
        if isinstance(stage, PartitionedStage):
            keys = stage.partitions(loaded)
            return {run.tags[RANGE_START], run.tags[RANGE_END]} <= set(keys)
    return True


def _at_work(instance: dg.DagsterInstance, experiment: Experiment) -> str:
    """Who works on this experiment now, in words; empty where nobody does."""
    if is_taken(experiment.artifacts, PASS):
        return "make run"
    jobs = {job.name for job in jobs_of(experiment, [s.name for s in stages_of(experiment)])}
    for run in instance.get_runs(dg.RunsFilter(statuses=_WAITING)):
        selected = {key.path[0] for key in run.asset_selection or ()}
        if experiment.name in selected or run.job_name in jobs:
            return f"run {run.run_id[:8]}"
    return ""


def _seen(experiment: Experiment, outside: Sequence[Outside]) -> str:
    """Digest of every file that a plan depends on, by size and time of change."""
    read = [file for node in outside for place in node.places for file in files_of(place.place)]
    remote = remote_of(experiment.artifacts)
    if remote is not None:
        there = [item for item in sorted(remote.objects().items()) if not item[0].startswith(".")]
        return digest([experiment.digest, read, there])
    return digest([experiment.digest, read, list(_tables(str(experiment.artifacts)))])


def _tables(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of all tables and what was written with them."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith((".", "training-")):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _tables(entry.path)
        else:
            yield stat_of(Path(entry.path))
