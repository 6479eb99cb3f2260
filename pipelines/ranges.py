"""Circuits in several runs at once: `python -m pipelines.ranges experiments/NAME.yaml --runs 4`.

Cuts the clusters into ranges and asks the Dagster server (`make ui`, or one elsewhere) for a run of
each, which makes circuits and evaluations of its clusters. Where runs go is the run launcher's
affair, and how many at once the pool's; docs/scale.md has both. Waits until all have ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

from assets.engine.asked import asked_tags
from assets.engine.stage import PartitionedStage
from assets.settings import Experiment, ExperimentError
from pipelines.experiment import EXPERIMENTS, read_experiment
from pipelines.plan import RANGE_END, RANGE_START
from pipelines.stages import stages_of

_STAGES = ("circuits", "circuit_evaluations")
_RAY = "dagster-ray/config"
_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def ranges(keys: Sequence[str], n: int) -> Iterator[tuple[str, str]]:
    """First and last of `n` stretches of the keys, as equal as can be; fewer where keys are."""
    n = min(n, len(keys))
    for i in range(n):
        yield keys[i * len(keys) // n], keys[(i + 1) * len(keys) // n - 1]


def partitioned(experiment: Experiment, names: Sequence[str]) -> list[PartitionedStage[Any]]:
    """The stages of these names.

    Raises:
        ExperimentError: one is not there, has no partitions, cannot be made by several runs at
            once, or has other partitions than the first.
    """
    known = {stage.name: stage for stage in stages_of(experiment)}
    found: list[PartitionedStage[Any]] = []
    for name in names:
        stage = known.get(name)
        if not isinstance(stage, PartitionedStage) or not stage.apart:
            able = [n for n, s in known.items() if isinstance(s, PartitionedStage) and s.apart]
            raise ExperimentError(
                f"{name} cannot be made by several runs at once: of {experiment.name} these can: "
                f"{', '.join(able)}."
            )
        found.append(stage)
    first, *others = [list(stage.partitions(experiment)) for stage in found]
    if any(other != first for other in others):
        raise ExperimentError(
            f"{', '.join(names)} have different partitions, and a run has one range: ask for one "
            "after the other."
        )
    return found


def tags_of(
    experiment: Experiment, stages: Sequence[PartitionedStage[Any]], n: int, gpus: float
) -> list[dict[str, str]]:
    """The tags of each run: its range, what is asked for, and what of a machine it takes."""
    asked = asked_tags(stages, experiment)
    ray = {_RAY: json.dumps({"num_gpus": gpus})} if gpus else {}
    every = ranges(list(stages[0].partitions(experiment)), n)
    return [{RANGE_START: first, RANGE_END: last, **asked, **ray} for first, last in every]


def submit(
    client: Any, experiment: Experiment, names: Sequence[str], tags: Sequence[dict[str, str]]
) -> dict[str, str]:
    """Ask for a run of each; its range by the run's id.

    Raises:
        ExperimentError: the server refuses.
    """
    keys = [dg.AssetKey([experiment.name, name]) for name in names]
    asked = {}
    for one in tags:
        try:
            run_id = client.submit_job_execution("__ASSET_JOB", tags=one, asset_selection=keys)
        except DagsterGraphQLClientError as error:
            raise ExperimentError(
                f"the Dagster server refuses a run of {one[RANGE_START]} to {one[RANGE_END]}: "
                f"{' '.join(map(str, error.args))}. Does it serve {experiment.name} as the file is "
                "now? Reload its definitions in the UI (Deployment), and ask again."
            ) from error
        asked[run_id] = f"{one[RANGE_START]} to {one[RANGE_END]}"
        print(f"{asked[run_id]}: run {run_id[:8]}", flush=True)
    return asked


def wait(client: Any, asked: dict[str, str], every: float) -> list[str]:
    """Wait until all have ended, in whatever way; those that did not succeed."""
    waiting, failed = dict(asked), []
    while waiting:
        time.sleep(every)
        for run_id in list(waiting):
            status = client.get_run_status(run_id)
            if status in _ENDED:
                told = waiting.pop(run_id)
                print(f"{told}: {status.value.lower()}", flush=True)
                failed += [told] if status is not dg.DagsterRunStatus.SUCCESS else []
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ranges", description=__doc__)
    default = EXPERIMENTS / "testbed.yaml"
    parser.add_argument("experiment", nargs="?", type=Path, default=default, help="a YAML file")
    parser.add_argument("--runs", type=int, default=2, help="ranges, each a run of its own")
    parser.add_argument("--stages", nargs="+", default=list(_STAGES), help="what each run makes")
    parser.add_argument("--gpus", type=float, default=0, help="of each run, where Ray runs it")
    parser.add_argument("--host", default="127.0.0.1", help="of the Dagster server")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: ask for one at least")
    try:
        experiment = read_experiment(options.experiment.resolve())
        stages = partitioned(experiment, options.stages)
        client = _client(options.host, options.port)
        tags = tags_of(experiment, stages, options.runs, options.gpus)
        failed = wait(client, submit(client, experiment, options.stages, tags), options.every)
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    if failed:
        left = f"{len(failed)} of {len(tags)} runs failed: {', '.join(failed)}. "
        print(left + "The UI says why; asking again makes what is left.", file=sys.stderr)
    return 1 if failed else 0


def _client(host: str, port: int) -> Any:
    try:
        requests.get(f"http://{host}:{port}/server_info", timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise ExperimentError(
            f"no Dagster server answers at {host}:{port}: start one with make ui, or say --host "
            "and --port."
        ) from error
    return DagsterGraphQLClient(host, port_number=port)


if __name__ == "__main__":
    sys.exit(main())
