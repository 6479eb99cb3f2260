"""Jobs to launch from the UI, and a schedule that is off until somebody turns it on."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.engine.processes import tag_with_process
from assets.engine.stage import MODEL_POOL
from assets.settings import Experiment
from pipelines.experiment import ROOT

_TRAIN = ("contexts", "activation_cache", "saes")
_DISCOVER = ("circuits", "circuit_evaluations")
_TASKS = ("task_circuits", "task_evaluations", "task_baselines")


def _job(experiment: Experiment, name: str, assets: Sequence[str], description: str) -> Any:
    keys = [dg.AssetKey([experiment.name, asset]) for asset in assets]
    return dg.define_asset_job(
        f"{experiment.group}_{name}",
        selection=dg.AssetSelection.assets(*keys),
        description=description,
    )


def jobs_of(experiment: Experiment, assets: Sequence[str]) -> list[Any]:
    """Everything that is stale; and training, circuits of clusters, circuits of tasks alone."""
    trained = [name for name in _TRAIN if name in assets]
    jobs = [
        everything_job(experiment),
        _job(experiment, "train_dictionaries", trained, "Read the corpus, train or import."),
        _job(experiment, "discover_circuits", _DISCOVER, "Circuits of clusters, and evaluations."),
    ]
    if "task_circuits" in assets:
        described = "Circuits of tasks, evaluations, and what they are held against."
        of_tasks = [name for name in _TASKS if name in assets]
        jobs.append(_job(experiment, "find_task_circuits", of_tasks, described))
    return jobs


def everything_job(experiment: Experiment) -> dg.JobDefinition:
    """`make run` as a job: a job of assets could not hold partitions of several kinds."""
    name = f"{experiment.group}_everything"
    about = experiment.settings.description
    told = "Brings every stage up to date, in order; what was never made and training included."

    @dg.op(name=f"bring_{experiment.group}_up_to_date", description=told, pool=MODEL_POOL)
    def bring_up_to_date(context: dg.OpExecutionContext) -> None:
        tag_with_process(context.instance, context.run)
        run_command(experiment.path, context.log.info)

    @dg.job(name=name, description=f"{told} {about}".strip())
    def everything() -> None:
        bring_up_to_date()

    return everything


def run_command(path: Path, say: Any) -> None:
    """`python -m pipelines.run` on an experiment, ended with us.

    Raises:
        dagster.Failure: it failed; with what it said last.
    """
    command = [sys.executable, "-m", "pipelines.run", str(path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    try:
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            said.append(line.rstrip())
            say(line.rstrip())
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()
    if process.returncode:
        raise dg.Failure("\n".join(line for line in said[-5:] if line))


def refresh_schedule(experiment: Experiment) -> dg.ScheduleDefinition:
    """Everything, at the experiment's times."""
    return dg.ScheduleDefinition(
        name=f"{experiment.group}_refresh",
        job_name=f"{experiment.group}_everything",
        cron_schedule=experiment.settings.reruns.schedule,
        description="Brings every stage up to date, training included.",
    )
