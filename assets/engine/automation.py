"""When Dagster reruns a stage by itself. Two conditions; `docs/dagster.md` says why not eager().

Asset versions carry the settings (see `assets.engine.stage`), so a changed setting is a changed
code version of exactly the stages it concerns, and is rerun like changed data.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

AC = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]


def rerun_on_new_data() -> Condition:
    """Rerun when an input's data version or the own code version changed, once all inputs rest.

    An input written by a run that goes on to this asset anyway does not count.
    """
    new_input = AC.any_deps_match(AC.data_version_changed() & ~AC.executed_with_root_target())
    wanted: Any = AC.newly_missing() | new_input | AC.code_version_changed()
    return (
        wanted.since_last_handled()
        & ~AC.any_deps_missing()
        & ~AC.any_deps_in_progress()
        & ~AC.in_progress()
    ).with_label("rerun on new data")


def together_with_parent() -> Condition:
    """Rerun in the very run that reruns an input, partition by partition.

    Following the input's partitions as they are written would cut the work into a run for each
    handful that happens to be ready.
    """
    wanted = AC.any_deps_match(AC.will_be_requested()) | AC.code_version_changed()
    return wanted.with_label("together with its input")


def rerun_when_all_are_done() -> Condition:
    """As `rerun_on_new_data`, but only once no batch of an input's backfill is left."""
    return (rerun_on_new_data() & ~AC.any_deps_match(AC.backfill_in_progress())).with_label(
        "rerun when all are done"
    )


def automation_sensors(
    upstream: dg.AssetSelection, circuits: dg.AssetSelection
) -> list[dg.AutomationConditionSensorDefinition]:
    """Two sensors, so that circuits can be paused without the rest; both start by themselves.

    Evaluations and circuits must be in one of them: `together_with_parent` only sees requests of
    its own sensor.
    """
    return [
        dg.AutomationConditionSensorDefinition(
            name,
            target=target,
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=30,
            description=description,
        )
        for name, target, description in (
            ("rerun_upstream", upstream, "From the corpus to the clusters, and the summaries."),
            ("rerun_circuits", circuits, "Circuits of clusters and their evaluations."),
        )
    ]
