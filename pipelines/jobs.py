"""Jobs to launch from the UI."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from assets.settings import Experiment

_TRAIN = ("contexts", "activation_cache", "saes")
_DISCOVER = ("circuits", "circuit_evaluations")
_TASKS = ("task_circuits", "task_evaluations")


def _job(experiment: Experiment, name: str, assets: Sequence[str], description: str):
    keys = [dg.AssetKey([experiment.name, asset]) for asset in assets]
    return dg.define_asset_job(
        f"{experiment.group}_{name}",
        selection=dg.AssetSelection.assets(*keys),
        description=description,
    )


def jobs_of(experiment: Experiment, assets: Sequence[str]) -> list:
    """Training all dictionaries, finding all circuits, reading the corpus again."""
    trained = [name for name in _TRAIN if name in assets]
    jobs = [
        _job(experiment, "train_dictionaries", trained, "Read the corpus, train or import."),
        _job(experiment, "discover_circuits", _DISCOVER, "Circuits of clusters, and evaluations."),
        _job(experiment, "refresh_corpus", ["contexts"], "Read the corpus again."),
    ]
    if "task_circuits" in assets:
        described = "Circuits of tasks, and evaluations."
        jobs.append(_job(experiment, "find_task_circuits", _TASKS, described))
    return jobs
