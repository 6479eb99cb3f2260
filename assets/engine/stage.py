"""What every stage has in common: skip what is done, work, write, say what was written.

A stage is a value: which tables it reads, which settings shape its result, a function that makes
the result and one that shows it. `table_asset` and `partitioned_asset` turn it into a Dagster
asset of one experiment.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import dagster as dg
import pyarrow as pa

from assets.engine.loading import model_identity
from assets.engine.store import ArtifactStore, Recipe, digest
from assets.settings import Experiment
from assets.tables.schemas import TABLES

OWNERS = ["team:circuits"]
MODEL_POOL = "model"
"""Stages that hold a model in memory; dagster.yaml lets one run of them go at a time."""

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What a stage works with: the experiment, its tables, and someone to tell.

    Attributes:
        experiment: read once, when the process began; it does not change under a running job.
        store: the experiment's tables.
        say: told how far the work is.
    """

    experiment: Experiment
    store: ArtifactStore
    say: Callable[[str], None] = lambda _text: None

    @classmethod
    def on(cls, experiment: Experiment, say: Callable[[str], None] | None = None) -> Self:
        """Work on an experiment's own artifacts."""
        store = ArtifactStore(experiment.artifacts)
        return cls(experiment, store) if say is None else cls(experiment, store, say)


@dataclass(frozen=True)
class Made:
    """What a stage made.

    Attributes:
        table: its table, or the pieces of one too large for memory, made while it is written.
        notes: what the table's footer should note.
        beside: tables that go beside it, by name.
    """

    table: pa.Table | Iterator[pa.Table]
    notes: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What all stages say about themselves.

    Attributes:
        name: the asset's name and its table's.
        group: the step of the method it belongs to.
        description: what a person reads in the UI.
        kinds: icons in the UI.
        deps: assets it reads.
        settings: what in the experiment shapes the result, as plain values.
        outside: hashes of what shapes it and is no asset: the model, the corpus, pair files.
        code: raised by hand when the same inputs give another result.
        pool: `MODEL_POOL` if it holds a model in memory.
        automation: when Dagster reruns it by itself; by hand or schedule only where None.
    """

    name: str
    group: str
    description: str
    kinds: frozenset[str]
    deps: Callable[[Experiment], Sequence[str]]
    settings: Callable[[Experiment], Mapping[str, object]]
    outside: Callable[[Experiment], Mapping[str, str]] = lambda _experiment: {}
    code: str = "1"
    pool: str | None = None
    automation: Callable[[], dg.AutomationCondition[Any]] | None = None

    def recipe(self, work: Work, inputs: Mapping[str, str]) -> Recipe:
        """The recipe for `inputs`, to which what is no asset is added."""
        outside = self.outside(work.experiment)
        settings = self.settings(work.experiment)
        return Recipe(self.name, {**inputs, **outside}, settings, self.code)

    def declaration(self, experiment: Experiment) -> dict[str, Any]:
        """Arguments of `dg.asset` that do not depend on how it is partitioned."""
        return {
            "key": [experiment.name, self.name],
            "deps": [dg.AssetKey([experiment.name, name]) for name in self.deps(experiment)],
            "group_name": f"{experiment.group}_{self.group}",
            "description": self.description,
            "kinds": set(self.kinds),
            "owners": OWNERS,
            "tags": {"experiment": experiment.group, "stage": self.group},
            # Settings are part of the version: Dagster then marks exactly what a changed one
            # concerns as out of date.
            "code_version": f"{self.code}-{digest(self.settings(experiment))[:8]}",
            "automation_condition": self.automation() if self.automation else None,
            "pool": self.pool,
        }


@dataclass(frozen=True)
class TableStage(Stage):
    """A stage that writes one table.

    Attributes:
        make: does the work.
        show: metadata for the UI, from what lies in the store.
        inputs: contents of what it is made from; of the tables of all deps where None.
    """

    make: Callable[[Work], Made] = field(kw_only=True)
    show: Callable[[Work], Metadata] = lambda _work: {}
    inputs: Callable[[Work], Mapping[str, str]] | None = None

    def _inputs(self, work: Work) -> Mapping[str, str]:
        if self.inputs is not None:
            return self.inputs(work)
        return {name: work.store.content(name) for name in self.deps(work.experiment)}

    def run(self, work: Work) -> bool:
        """Bring the table up to date; whether there was anything to do."""
        work.store.check_writable()
        recipe = self.recipe(work, self._inputs(work))
        if work.store.is_current(self.name, recipe):
            work.say(f"{self.name} is up to date")
            return False
        made = self.make(work)
        for name, table in made.beside.items():
            work.store.write(name, table, recipe)
        work.store.write(self.name, made.table, recipe, notes=made.notes)
        return True


@dataclass(frozen=True)
class PartitionedStage(Stage):
    """A stage that writes a table (and perhaps more) for each partition.

    Attributes:
        partitions: its partitions.
        backfill: how a run over many is cut.
        table: name of the table whose footer says that a partition is done.
        key: where that table lies for a partition.
        inputs: contents of what a partition is made from.
        make: does the work for those partitions that need it, and writes it.
        show: metadata of one partition, from what lies in the store.
    """

    partitions: Callable[[Experiment], dg.PartitionsDefinition] = field(kw_only=True)
    backfill: Callable[[], dg.BackfillPolicy] = field(kw_only=True)
    table: str = field(kw_only=True)
    key: Callable[[str], str] = field(kw_only=True)
    inputs: Callable[[Work, str], Mapping[str, str]] = field(kw_only=True)
    make: Callable[[Work, Mapping[str, Recipe]], None] = field(kw_only=True)
    show: Callable[[Work, str], Metadata] = lambda _work, _key: {}

    def run(self, work: Work, keys: Sequence[str]) -> int:
        """Bring these partitions up to date; how many had anything to do."""
        work.store.check_writable()
        recipes = {key: self.recipe(work, self.inputs(work, key)) for key in keys}
        wanted = {
            key: recipe
            for key, recipe in recipes.items()
            if not work.store.is_current(self.key(key), recipe)
        }
        work.say(f"{self.name}: {len(wanted)} to do, {len(keys) - len(wanted)} up to date")
        if wanted:
            self.make(work, wanted)
        return len(wanted)


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


def table_metadata(work: Work, key: str, table: str) -> dict[str, Any]:
    """Rows, columns, place and fingerprints of a table."""
    footer = work.store.footer(key)
    assert footer is not None, "shown after it was written"
    return {
        "dagster/row_count": footer.n_rows,
        "dagster/column_schema": column_schema(table),
        "path": dg.MetadataValue.path(work.store.path(key)),
        "fingerprint": footer.fingerprint,
        "made from": dg.MetadataValue.json(dict(footer.notes["inputs"])),
    }


def table_asset(stage: TableStage, experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of a stage that writes one table."""

    def materialize(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        work = Work.on(experiment, say=context.log.info)
        began = time.perf_counter()
        stage.run(work)
        return dg.MaterializeResult(
            metadata={
                **table_metadata(work, stage.name, stage.name),
                **stage.show(work),
                "seconds": time.perf_counter() - began,
            },
            data_version=dg.DataVersion(work.store.content(stage.name)),
        )

    return _asset(materialize, **stage.declaration(experiment))


def partitioned_asset(stage: PartitionedStage, experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of a partitioned stage; one run may bring many partitions up to date."""

    def materialize(context: dg.AssetExecutionContext) -> None:
        work = Work.on(experiment, say=context.log.info)
        keys = list(context.partition_keys)
        stage.run(work, keys)
        for key in keys:
            shown = {
                **table_metadata(work, stage.key(key), stage.table),
                **stage.show(work, key),
            }
            context.add_asset_metadata(shown, partition_key=key)

    return _asset(
        materialize,
        **stage.declaration(experiment),
        partitions_def=stage.partitions(experiment),
        backfill_policy=stage.backfill(),
    )


def _asset(compute: Callable[..., Any], **declaration: Any) -> dg.AssetsDefinition:
    made: Any = dg.asset(**declaration)(compute)
    return made


def stage_asset(stage: Stage, experiment: Experiment) -> dg.AssetsDefinition:
    """The asset of any stage."""
    if isinstance(stage, TableStage):
        return table_asset(stage, experiment)
    assert isinstance(stage, PartitionedStage)
    return partitioned_asset(stage, experiment)


def the_model(experiment: Experiment) -> Mapping[str, str]:
    """The model, as something outside that shapes a result."""
    return {"model": model_identity(experiment)}


def on(*names: str) -> Callable[[Experiment], Sequence[str]]:
    """Deps that are the same for every experiment."""
    return partial(_same, names)


def _same(names: Sequence[str], _experiment: Experiment) -> Sequence[str]:
    return names
