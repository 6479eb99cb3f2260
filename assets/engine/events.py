"""Dagster's own records, for thousands of partitions: what keeping them costs, and what is in them.

Dagster opens its SQLite files anew for every event, and looks each time how their tables are laid
out: two thirds of the time. `KeptStorage`, which dagster.yaml names, keeps the last few open. The
files are the same, and Dagster's own storage reads and writes them too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    extract_data_version_from_entry,
    get_input_data_version_tag,
)
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from sqlalchemy import Connection, Engine, QueuePool, create_engine

ONE_PLANNED_EVENT = ("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
"""In the environment of whoever starts runs: one event says which partitions a run is to make,
instead of one for each, also of those that turn out to be up to date."""

_KEPT = 4
_WAITS = 60
"""Seconds for a file that another process writes, as in Dagster's own storage."""


class KeptEventLog(SqliteEventLogStorage):
    """Dagster's event log in SQLite, with the files used last kept open."""

    def __init__(self, base_dir: str, inst_data: Any = None) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._known: dict[str, bool] = {}
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> Engine:
        if shard not in self._engines:
            place = self.conn_string_for_shard(shard)
            engine = create_engine(
                place, poolclass=QueuePool, pool_size=1, connect_args={"timeout": _WAITS}
            )
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            self._engines[shard] = engine
        self._engines.move_to_end(shard)
        if len(self._engines) > _KEPT:
            self._engines.popitem(last=False)[1].dispose()
        return self._engines[shard]

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; one that is there stays."""
        if not self._known.get(table_name):
            self._known[table_name] = super().has_table(table_name)
        return self._known[table_name]

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        if not self._known.get(f"column {column_name}"):
            found = super()._has_asset_key_col_on_connection(conn, column_name)
            self._known[f"column {column_name}"] = found
        return self._known[f"column {column_name}"]

    def dispose(self) -> None:
        """Close them all."""
        super().dispose()
        while self._engines:
            self._engines.popitem()[1].dispose()


class KeptStorage(DagsterSqliteStorage):
    """Dagster's storage in SQLite, with a `KeptEventLog`."""

    def __init__(self, base_dir: str, inst_data: Any = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = KeptEventLog(self._event_log_storage._base_dir)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> KeptStorage:
        """What dagster.yaml says under ``storage: custom``."""
        return cls.from_local(inst_data=inst_data, **config_value)


# -- what Dagster was told ------------------------------------------------------------------------


def is_told(context: dg.AssetExecutionContext, tags: Mapping[str, str]) -> bool:
    """Whether a table's last report says the same of its data, its code and its inputs' data."""
    last = context.instance.get_latest_materialization_event(context.asset_key)
    if last is None or last.asset_materialization is None:
        return False
    before = last.asset_materialization.tags or {}
    of_inputs = (get_input_data_version_tag(key) for key in _inputs(context))
    return all(
        before.get(name) == tags.get(name)
        for name in (DATA_VERSION_TAG, CODE_VERSION_TAG, *of_inputs)
    )


def not_told(context: dg.AssetExecutionContext, versions: Mapping[str, str]) -> list[str]:
    """Partitions whose last report says otherwise of their data, or of whole inputs' data.

    Two questions to the event log answer it for all partitions: their last versions, and since when
    each input has had the version that it has.

    Args:
        versions: of each partition's data, as they are.
    """
    log, made = context.instance.event_log_storage, dg.DagsterEventType.ASSET_MATERIALIZATION
    told = log.get_latest_tags_by_partition(context.asset_key, made, [DATA_VERSION_TAG])
    number = log.get_latest_storage_id_by_partition(context.asset_key, made)
    since = max((_since(context, key) for key in _inputs(context, whole=True)), default=0)
    return [
        key
        for key, version in versions.items()
        if told.get(key, {}).get(DATA_VERSION_TAG) != version or number[key] < since
    ]


def _inputs(context: dg.AssetExecutionContext, *, whole: bool = False) -> Sequence[dg.AssetKey]:
    """What the asset depends on; only what has no partitions, where so asked."""
    layer = context.job_def.asset_layer
    keys = layer.get(context.asset_key).parent_keys
    return [key for key in keys if not whole or layer.get(key).partitions_def is None]


def _since(context: dg.AssetExecutionContext, key: dg.AssetKey) -> int:
    """Number of the event since which an asset has the version that it has; 0 if it has none.

    Where its last events all say the same, the first of these: partitions before it are told again.
    """
    made = context.instance.fetch_materializations(key, limit=_LOOKED_AT).records
    events = made or context.instance.fetch_observations(key, limit=_LOOKED_AT).records
    first, version = 0, None
    for record in events:
        its_own = extract_data_version_from_entry(record.event_log_entry)
        if version is not None and its_own != version:
            break
        first, version = record.storage_id, its_own
    return first


_LOOKED_AT = 10
