"""Stages as Dagster assets.

A partitioned asset reports each partition when it is done, with a data version of its own, and says
nothing of partitions that it left as they were. Dagster itself would report all of a run's
partitions at the end of the step, with one version for all.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.definition.asset_spec import AssetExecutionType
from dagster._core.definitions.source_asset import (
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as REPORTED_ALREADY,
)
from dagster._core.execution.plan.execute_step import _get_output_asset_events
from pydantic import Field

from assets.engine.asked import check_asked
from assets.engine.events import is_told, not_told
from assets.engine.processes import tag_with_process
from assets.engine.stage import Metadata, PartitionedStage, Stage, TableStage, Work
from assets.engine.store import ArtifactStore
from assets.plots import cell
from assets.settings import Experiment
from assets.tables.places import Key
from assets.tables.schemas import TABLES

PLANNED = "circuits/planned"
"""Tag of runs that were asked to do what is stale: what is current needs no report there."""


class Launch(dg.Config):
    """What a launch may ask of a stage."""

    force: bool = Field(default=False, description="Make it again even if it is up to date.")


def column_schema(table: str) -> dg.TableSchema:
    """A table's columns for the UI."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=str(column.type),
                description=(column.metadata or {})[b"description"].decode(),
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in TABLES[table].schema
        ]
    )


def table_metadata(store: ArtifactStore, key: Key) -> dict[str, Any]:
    """Rows, place and fingerprints of a table."""
    footer = store.footer(key)
    assert footer is not None, "shown after it was written"
    return {
        "dagster/row_count": footer.n_rows,
        "path": dg.MetadataValue.path(store.place(key)),
        "fingerprint": footer.fingerprint,
        "made from": dg.MetadataValue.json(dict(footer.notes["inputs"])),
    }


def _metadata(store: ArtifactStore, key: Key, show: Callable[[], Metadata]) -> Metadata:
    """What the UI shows of a table: numbers rounded, and NaN in words, for the UI reads no NaN."""
    shown = {
        name: cell(value) if isinstance(value, float) else value for name, value in show().items()
    }
    return {**shown, **table_metadata(store, key)}


def table_asset(stage: TableStage[Any], experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of a stage that writes one table."""

    def materialize(context: dg.AssetExecutionContext, config: Launch) -> dg.MaterializeResult[Any]:
        began = time.perf_counter()
        tag_with_process(context.instance, context.run)
        made = stage.run(experiment, context.log.info, force=config.force)
        store = ArtifactStore(experiment.artifacts)
        version = store.version(stage.key)
        if _only_new(context) and not made and is_told(context, _tags(context, version)):
            return dg.MaterializeResult(metadata={REPORTED_ALREADY: True})
        return dg.MaterializeResult(
            metadata={
                **_metadata(store, stage.key, partial(stage.shown, experiment)),
                "seconds": time.perf_counter() - began,
            },
            data_version=dg.DataVersion(version),
        )

    return _asset(materialize, **_declared(stage, experiment, stage.key.table))


def partitioned_asset(stage: PartitionedStage[Any], experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of a partitioned stage; one run may bring many partitions up to date."""

    def materialize(context: dg.AssetExecutionContext, config: Launch) -> Iterator[Any]:
        tag_with_process(context.instance, context.run)
        check_asked(stage, experiment, context.run.tags)
        keys, made = list(context.partition_keys), set[str]()
        work = Work.on(experiment)
        for key in stage.bring_up_to_date(experiment, keys, context.log.info, force=config.force):
            made.add(key)
            yield from _reported(context, stage, work, key)
        left = {key: work.store.version(stage.key(key)) for key in keys if key not in made}
        for key in not_told(context, left) if _only_new(context) else left:
            yield from _reported(context, stage, work, key)
        yield dg.MaterializeResult(metadata={REPORTED_ALREADY: True})

    return _asset(
        materialize,
        **_declared(stage, experiment, stage.key("").table),
        partitions_def=dg.StaticPartitionsDefinition(list(stage.partitions(experiment))),
        # One run for a range: it does only what is stale there, and goes on where it was cut short.
        backfill_policy=dg.BackfillPolicy.single_run(),
    )


def _declared(stage: Stage, experiment: Experiment, table: str) -> dict[str, Any]:
    """What a stage declares, and the columns of its table."""
    declared = stage.declaration(experiment)
    columns = {"dagster/column_schema": column_schema(table)}
    return {**declared, "metadata": {**declared["metadata"], **columns}}


def _only_new(context: dg.AssetExecutionContext) -> bool:
    """Whether the run was asked to do what is stale: what Dagster knows is not told again."""
    return PLANNED in context.run.tags


def _reported(
    context: dg.AssetExecutionContext, stage: PartitionedStage[Any], work: Work, key: str
) -> Iterator[Any]:
    """The event that says that a partition is made, as Dagster would write it."""
    place = stage.key(key)
    shown = _metadata(work.store, place, partial(stage.show, work, key))
    yield from _events(context, key, work.store.version(place), shown)


def _events(
    context: dg.AssetExecutionContext, key: str | None, version: str, shown: Metadata
) -> Iterator[Any]:
    step: Any = context.get_step_execution_context()
    output = dg.Output(None, metadata=shown, data_version=dg.DataVersion(version))
    partitions = [] if key is None else [key]
    definition: Any = None
    yield from _get_output_asset_events(
        context.asset_key,
        partitions,
        output,
        definition,
        {},
        step,
        AssetExecutionType.MATERIALIZATION,
    )


def _tags(context: dg.AssetExecutionContext, version: str) -> Mapping[str, str]:
    """What a report would say of where a table of this data version comes from."""
    (event,) = _events(context, None, version, {})
    return event.tags


def _asset(compute: Callable[..., Any], **declaration: Any) -> dg.AssetsDefinition:
    made: Any = dg.asset(**declaration)(compute)
    return made


def stage_asset(stage: Stage, experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of any stage."""
    if isinstance(stage, TableStage):
        return table_asset(stage, experiment)
    return partitioned_asset(stage, experiment)
