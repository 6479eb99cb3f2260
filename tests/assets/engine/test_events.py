"""Dagster's log, kept open: the same events in the same files, and one for all that is planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

from assets.engine.events import _KEPT, ONE_PLANNED_EVENT, KeptEventLog

PARTITIONS = dg.StaticPartitionsDefinition([f"k{i}" for i in range(6)])
RANGE = {
    "dagster/asset_partition_range_start": "k0",
    "dagster/asset_partition_range_end": "k5",
}


@dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run())
def squares() -> None:
    """An asset of six partitions, made in one run."""


def _instance(folder: Path, **storage: Any) -> dg.DagsterInstance:
    settings = {"telemetry": {"enabled": False}, "storage": storage}
    return dg.DagsterInstance.local_temp(str(folder), overrides=settings)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with the storage that dagster.yaml names."""
    place = {"module": "assets.engine.events", "class": "KeptStorage"}
    custom = {**place, "config": {"base_dir": str(tmp_path / "storage")}}
    with _instance(tmp_path, custom=custom) as instance:
        assert isinstance(instance.event_log_storage, KeptEventLog)
        yield instance


def _run(instance: dg.DagsterInstance) -> str:
    job = dg.Definitions(assets=[squares]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, tags=RANGE).run_id


def _kinds(log: Any, run: str) -> Counter[str]:
    entries = log.get_logs_for_run(run)
    return Counter(e.dagster_event.event_type_value for e in entries if e.dagster_event)


def test_dagsters_own_storage_reads_what_was_kept(kept: dg.DagsterInstance, tmp_path: Path) -> None:
    runs = [_run(kept) for _ in range(_KEPT + 2)]  # more files than stay open
    plain = DagsterSqliteStorage.from_local(str(tmp_path / "storage")).event_log_storage
    for run in runs:
        assert _kinds(plain, run) == _kinds(kept.event_log_storage, run)
        assert _kinds(plain, run)["ASSET_MATERIALIZATION"] == 6
    key = squares.key
    assert len(plain.get_latest_storage_id_by_partition(key, _MADE)) == 6
    assert plain.get_asset_records([key])[0].asset_entry.last_run_id == runs[-1]


_MADE = dg.DagsterEventType.ASSET_MATERIALIZATION


def test_all_that_a_run_is_to_make_is_one_event(
    kept: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = "ASSET_MATERIALIZATION_PLANNED"
    monkeypatch.delenv(ONE_PLANNED_EVENT[0], raising=False)
    assert _kinds(kept.event_log_storage, _run(kept))[planned] == 6
    monkeypatch.setenv(*ONE_PLANNED_EVENT)
    assert _kinds(kept.event_log_storage, _run(kept))[planned] == 1
