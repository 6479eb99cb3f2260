"""Partitions of an experiment, from its file alone, and how runs over many of them are cut."""

from __future__ import annotations

import dagster as dg

from assets.settings import Experiment

CIRCUITS_PER_RUN = 256
"""Clusters in one run: small enough to retry, large enough that starting a run is nothing."""


def submodule_partitions(experiment: Experiment) -> dg.StaticPartitionsDefinition:
    """One partition for each submodule with a dictionary, in causal order."""
    return dg.StaticPartitionsDefinition(experiment.submodules)


def cluster_partitions(experiment: Experiment) -> dg.StaticPartitionsDefinition:
    """One partition for each cluster that gets a circuit.

    Static, not dynamic: ids are 0..k-1 anyway, and Dagster 1.13 cannot backfill two assets with
    dynamic partitions requested in one tick.
    """
    return dg.StaticPartitionsDefinition(experiment.clusters)


def comparison_partitions(experiment: Experiment) -> dg.StaticPartitionsDefinition:
    """One partition for each clustering that is compared with the chosen one."""
    return dg.StaticPartitionsDefinition(list(experiment.settings.comparisons))


def one_by_one() -> dg.BackfillPolicy:
    """A run for each partition, so that one that fails keeps none of the others back."""
    return dg.BackfillPolicy.multi_run(1)


def train_together() -> dg.BackfillPolicy:
    """All dictionaries in one run: one read of the activations trains them all."""
    return dg.BackfillPolicy.single_run()


def circuits_together() -> dg.BackfillPolicy:
    """Many circuits in one run."""
    return dg.BackfillPolicy.multi_run(CIRCUITS_PER_RUN)
