"""Every experiment as one Dagster code location: `defs` for the files in ``experiments/``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from assets.checks import checks_of
from assets.engine.asset import stage_asset
from assets.engine.outside import outside_asset, outside_of
from assets.settings import Experiment, ExperimentError
from pipelines.experiment import read_all, shipped_experiments
from pipelines.jobs import jobs_of, refresh_schedule
from pipelines.reruns import rerun_sensor
from pipelines.stages import stages_of

# Backfill policies are beta in this version of Dagster; each would warn in every process's log.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def build_definitions(
    paths: Sequence[Path], *, loggers: Mapping[str, dg.LoggerDefinition] | None = None
) -> dg.Definitions:
    """The asset graphs of these experiments, side by side, each keyed by its file's name.

    Nothing is read but the files themselves: no network, no model, no environment variable.

    A file that says something impossible is warned about and left out.

    Raises:
        ExperimentError: no file can be read, though there are some.
    """
    experiments, errors = read_all(paths)
    if errors and not experiments:
        raise ExperimentError("\n".join(map(str, errors)))
    for error in errors:
        logging.getLogger("dagster").warning("%s", error)
    parts = [_definitions_of(experiment) for experiment in experiments]
    shared = dg.Definitions(
        # One process for a run: its stages share the loaded model, and the settings as they were
        # when the process began.
        executor=dg.in_process_executor,
        loggers=loggers,
    )
    return dg.Definitions.merge(*parts, shared)


def _definitions_of(experiment: Experiment) -> dg.Definitions:
    stages = stages_of(experiment)
    names = [stage.name for stage in stages]
    return dg.Definitions(
        assets=[
            *(outside_asset(node, experiment) for node in outside_of(experiment, stages)),
            *(stage_asset(stage, experiment) for stage in stages),
        ],
        asset_checks=checks_of(experiment, names),
        jobs=jobs_of(experiment, names),
        sensors=[rerun_sensor(experiment)],
        schedules=[refresh_schedule(experiment)],
    )


defs = build_definitions(shipped_experiments())
