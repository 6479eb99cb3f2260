"""How runs over many partitions are cut. Which partitions there are, the experiment's file says.

Partitions are static: ids of clusters are 0..k-1 anyway, and Dagster 1.13 cannot backfill two
assets with dynamic partitions that are requested in one tick.
"""

from __future__ import annotations

import dagster as dg

CIRCUITS_PER_RUN = 256
"""Circuits in one run: small enough to retry, large enough that starting a run is nothing."""


def one_by_one() -> dg.BackfillPolicy:
    """A run for each partition, so that one that fails keeps none of the others back."""
    return dg.BackfillPolicy.multi_run(1)


def train_together() -> dg.BackfillPolicy:
    """All dictionaries in one run: one read of the activations trains them all."""
    return dg.BackfillPolicy.single_run()


def circuits_together() -> dg.BackfillPolicy:
    """Many circuits in one run."""
    return dg.BackfillPolicy.multi_run(CIRCUITS_PER_RUN)
