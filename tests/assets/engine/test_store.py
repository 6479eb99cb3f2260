"""Tables on disk: whole or absent, and knowing what they were made from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.engine.recipe import Recipe, digest, hash_place
from assets.engine.store import ArtifactStore, content_hash
from assets.settings import ExperimentError
from assets.tables.places import CONTEXTS
from assets.tables.schemas import TABLES

ROWS = [
    {"document": 0, "tokens": [1, 2, 3], "labels": ["a", "b", "a"]},
    {"document": 1, "tokens": [], "labels": None},
    {"document": 4, "tokens": [5], "labels": ["c"]},
]
RECIPE = Recipe("contexts", {"corpus": "abc"}, {"n_positions": 3}, "1")


@pytest.fixture
def table() -> pa.Table:
    return TABLES["contexts"].build(ROWS)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_a_table_comes_back_as_it_was_written(store: ArtifactStore, table: pa.Table) -> None:
    store.write(CONTEXTS, table, RECIPE)
    assert store.read(CONTEXTS).to_pylist() == ROWS


def test_the_content_hash_survives_a_round_trip_and_slicing(
    store: ArtifactStore, table: pa.Table
) -> None:
    content = store.write(CONTEXTS, table, RECIPE)
    assert content_hash(store.read(CONTEXTS)) == content
    longer = pa.concat_tables([TABLES["contexts"].build([ROWS[1]]), table])
    assert content_hash(longer.slice(1)) == content
    assert content_hash(longer) != content


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [(0, "tokens", [1, 2, 4]), (2, "labels", ["d"]), (1, "labels", []), (1, "document", 2)],
)
def test_every_value_counts_in_the_content_hash(row: int, column: str, value: Any) -> None:
    rows = [dict(r) for r in ROWS]
    rows[row][column] = value
    build = TABLES["contexts"].build
    assert content_hash(build(rows)) != content_hash(build(ROWS))


def test_moving_an_item_to_the_next_row_changes_the_content_hash() -> None:
    def hashed(first: list[int], second: list[int]) -> str:
        return content_hash(pa.table({"tokens": [first, second]}))

    assert hashed([1, 2], [3]) != hashed([1], [2, 3])


def test_the_same_table_gives_the_same_bytes(store: ArtifactStore, table: pa.Table) -> None:
    store.write(CONTEXTS, table, RECIPE)
    first = store.path(CONTEXTS).read_bytes()
    store.write(CONTEXTS, table, RECIPE)
    assert store.path(CONTEXTS).read_bytes() == first


def test_a_table_is_current_for_its_own_recipe_only(store: ArtifactStore, table: pa.Table) -> None:
    assert not store.is_current(CONTEXTS, RECIPE)
    store.write(CONTEXTS, table, RECIPE)
    assert store.is_current(CONTEXTS, RECIPE)
    others = [
        Recipe("contexts", {"corpus": "abd"}, {"n_positions": 3}, "1"),
        Recipe("contexts", {"corpus": "abc"}, {"n_positions": 4}, "1"),
        Recipe("contexts", {"corpus": "abc"}, {"n_positions": 3}, "2"),
    ]
    assert not any(store.is_current(CONTEXTS, other) for other in others)


def test_the_footer_says_what_it_was_made_from(store: ArtifactStore, table: pa.Table) -> None:
    store.write(CONTEXTS, table, RECIPE, notes={"why": [1, "two"]})
    notes = store.notes(CONTEXTS)
    assert notes["inputs"] == {"corpus": "abc"}
    assert notes["settings"] == {"n_positions": 3}
    assert notes["why"] == [1, "two"]


def test_a_table_of_the_wrong_columns_is_not_written(store: ArtifactStore) -> None:
    with pytest.raises(KeyError):
        store.write(CONTEXTS, pa.table({"document": [1]}), RECIPE)
    assert not store.path(CONTEXTS).exists()


def test_a_truncated_file_counts_as_not_there(store: ArtifactStore, table: pa.Table) -> None:
    store.write(CONTEXTS, table, RECIPE)
    path = store.path(CONTEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    assert store.footer(CONTEXTS) is None
    with pytest.raises(ExperimentError, match="materialize contexts first"):
        store.read(CONTEXTS)


def test_a_foreign_file_counts_as_not_there(store: ArtifactStore) -> None:
    store.root.mkdir()
    pq.write_table(pa.table({"document": [1]}), store.path(CONTEXTS))
    assert store.footer(CONTEXTS) is None


def test_a_failed_write_leaves_the_old_table(
    store: ArtifactStore, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(CONTEXTS, table, RECIPE)

    def fail(_writer: pq.ParquetWriter, _table: pa.Table) -> None:
        assert len(list(store.root.glob(".*.tmp"))) == 1
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write(CONTEXTS, table.slice(1), RECIPE)
    assert store.read(CONTEXTS).num_rows == 3
    assert not list(store.root.glob(".*"))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_pieces_give_the_table_and_the_hash_of_the_whole(
    store: ArtifactStore, table: pa.Table, n: int
) -> None:
    whole = store.write(CONTEXTS, table, RECIPE)
    pieces = (table.slice(i, n) for i in range(0, 3, n))
    assert store.write(CONTEXTS, pieces, RECIPE, notes={"why": 1}) == whole
    assert store.open(CONTEXTS).metadata.num_row_groups == -(-3 // n)
    assert store.read(CONTEXTS).to_pylist() == ROWS
    assert (store.n_rows(CONTEXTS), store.content(CONTEXTS)) == (3, whole)
    assert store.notes(CONTEXTS)["why"] == 1


def test_a_table_in_pieces_is_not_there_before_the_last_and_not_after_a_failure(
    store: ArtifactStore, table: pa.Table
) -> None:
    def pieces() -> Iterator[pa.Table]:
        yield table
        assert not store.path(CONTEXTS).exists()
        assert len(list(store.root.glob(".contexts.parquet.*.tmp"))) == 1
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        store.write(CONTEXTS, pieces(), RECIPE)
    assert not list(store.root.iterdir())


def test_no_rows_are_one_content_however_they_come(store: ArtifactStore) -> None:
    empty = TABLES["contexts"].build([])
    assert store.write(CONTEXTS, iter([]), RECIPE) == content_hash(empty)
    assert content_hash(store.read(CONTEXTS)) == content_hash(empty)


def test_where_a_null_stands_counts_in_the_content_hash() -> None:
    def hashed(*values: int | None) -> str:
        return content_hash(pa.table({"pos": pa.chunked_array([[1], list(values)], pa.int32())}))

    assert len({hashed(None, 2), hashed(2, None), hashed(2), hashed(2, 0), hashed(0, 2)}) == 5


def test_an_open_table_stays_as_it_was(store: ArtifactStore, table: pa.Table) -> None:
    store.write(CONTEXTS, table, RECIPE)
    opened = store.open(CONTEXTS)
    store.write(CONTEXTS, table.slice(1), RECIPE)
    assert opened.read_row_group(0).to_pylist() == ROWS


def test_sweeping_removes_what_dead_writers_left_and_nothing_else(store: ArtifactStore) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.root.mkdir()
    left = store.root / f".contexts.parquet.{dead.pid}.tmp"
    held = store.root / f".contexts.parquet.{os.getpid()}.tmp"
    for file in (left, held):
        file.write_text("half")
    store.sweep()
    assert not left.exists()
    assert held.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExperimentError, match="nothing can be written"):
        ArtifactStore(tmp_path / "file" / "artifacts").check_writable()


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})


def test_the_hash_of_a_place_follows_its_contents(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    before = hash_place(str(tmp_path))
    (tmp_path / "two").write_text("2")
    assert hash_place(str(tmp_path)) != before
    assert hash_place("some/hub-id") == "some/hub-id"
