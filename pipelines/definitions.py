"""Every experiment as one Dagster code location: `defs` for the files in ``experiments/``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from assets.checks import checks_of
from assets.circuits.stages import circuit_stages
from assets.corpus.stages import corpus_stages
from assets.dictionaries.stages import dictionary_stages
from assets.discovery.clusterings import discovery_stages
from assets.discovery.comparisons import comparison_stages
from assets.engine.automation import automation_sensors
from assets.engine.stage import Stage, stage_asset
from assets.evaluations.stages import evaluation_stages
from assets.features.labels import feature_stages
from assets.settings import Experiment, ExperimentError
from pipelines.experiment import read_all, shipped_experiments
from pipelines.jobs import jobs_of, schedules_of

# Backfill policies are beta in this version of Dagster; each would warn in every process's log.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

_STEPS = (
    corpus_stages,
    dictionary_stages,
    discovery_stages,
    comparison_stages,
    circuit_stages,
    evaluation_stages,
    feature_stages,
)
TOGETHER = ("circuits", "circuit_evaluations", "task_circuits", "task_evaluations")
"""Stages whose partitions one run brings up to date together."""


def stages_of(experiment: Experiment) -> list[Stage]:
    """All stages of an experiment, in an order in which they can run."""
    return [stage for step in _STEPS for stage in step(experiment)]


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
    together = dg.AssetSelection.assets(
        *(
            dg.AssetKey([experiment.name, stage.name])
            for experiment in experiments
            for stage in stages_of(experiment)
            if stage.name in TOGETHER
        )
    )
    automation = dg.Definitions(
        sensors=automation_sensors(dg.AssetSelection.all() - together, together)
        if experiments
        else [],
        # One process for a run: its stages share the loaded model, and the settings as they were
        # when the process began.
        executor=dg.in_process_executor,
        loggers=loggers,
    )
    return dg.Definitions.merge(*parts, automation)


def _definitions_of(experiment: Experiment) -> dg.Definitions:
    stages = stages_of(experiment)
    names = [stage.name for stage in stages]
    return dg.Definitions(
        assets=[stage_asset(stage, experiment) for stage in stages],
        asset_checks=checks_of(experiment, names),
        jobs=jobs_of(experiment, names),
        schedules=schedules_of(experiment),
    )


defs = build_definitions(shipped_experiments())
