"""Tables on disk: whole or absent, and knowing what they were made from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.engine.recipe import Recipe, digest, hash_place
from assets.engine.store import ArtifactStore, Undeclared, content_hash
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


@pytest.fixture
def written(store: ArtifactStore, table: pa.Table) -> bytes:
    """The bytes of a table of this layout."""
    store.write(CONTEXTS, table, RECIPE)
    return store.path(CONTEXTS).read_bytes()


def _footer_texts(path: Path) -> dict[bytes, Any]:
    texts = pq.read_metadata(path).metadata or {}
    return {name: text for name, text in texts.items() if name.startswith(b"sfc.")}


def _rewrite(store: ArtifactStore, **changed: Any) -> None:
    """Write the table again with other texts in its footer; None takes one away."""
    path = store.path(CONTEXTS)
    old = pq.read_table(path)
    texts = _footer_texts(path) | {f"sfc.{name}".encode(): v for name, v in changed.items()}
    left = {name: text for name, text in texts.items() if text is not None}
    pq.write_table(old.replace_schema_metadata(left), path)


@pytest.mark.usefixtures("written")
def test_a_footer_written_by_hand_counts_only_as_it_was(store: ArtifactStore) -> None:
    assert store.footer(CONTEXTS) is not None
    _rewrite(store)
    assert store.is_current(CONTEXTS, RECIPE)


@pytest.mark.parametrize(
    "changed",
    [
        {"layout": "1"},
        {"layout": None},
        {"layout": '"2'},
        {"inputs": "{garbage"},
        {"inputs": b"\xff\xfe"},
        {"files": '{"a": 1}'},
        {"content": '"another"'},
        {"fingerprint": None},
        {"seal": None},
        {"seal": "0123456789abcdef"},
    ],
)
@pytest.mark.usefixtures("written")
def test_a_footer_of_another_layout_or_changed_counts_as_not_there(
    store: ArtifactStore, changed: dict[str, Any]
) -> None:
    _rewrite(store, **changed)
    assert store.footer(CONTEXTS) is None
    assert not store.is_current(CONTEXTS, RECIPE)
    with pytest.raises(ExperimentError, match="materialize contexts first"):
        store.content(CONTEXTS)


@pytest.mark.usefixtures("written")
def test_a_table_of_other_columns_under_its_footer_counts_as_not_there(
    store: ArtifactStore,
) -> None:
    old = pq.read_table(store.path(CONTEXTS))
    other = old.rename_columns(["number", "tokens", "labels"])
    texts = _footer_texts(store.path(CONTEXTS))
    pq.write_table(other.replace_schema_metadata(texts), store.path(CONTEXTS))
    assert store.footer(CONTEXTS) is None


@pytest.mark.parametrize("n", [0, 1, 8, 100, 1000])
def test_a_cut_file_counts_as_not_there(store: ArtifactStore, written: bytes, n: int) -> None:
    store.path(CONTEXTS).write_bytes(written[:n])
    assert store.footer(CONTEXTS) is None


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_no_changed_byte_gives_other_rows_or_a_traceback(
    store: ArtifactStore, written: bytes, mask: int
) -> None:
    n_missing = n_refused = 0
    for place in range(len(written)):
        damaged = bytearray(written)
        damaged[place] ^= mask
        store.path(CONTEXTS).write_bytes(damaged)
        if store.footer(CONTEXTS) is None:
            n_missing += 1
            continue
        try:
            rows = store.read(CONTEXTS).to_pylist()
        except ExperimentError:
            n_refused += 1
        else:
            assert rows == ROWS
    assert n_missing > 1000  # of 1,600 bytes of footer
    assert n_refused > 200  # of 350 bytes of data


def test_damaged_values_are_refused_with_the_way_out(store: ArtifactStore, written: bytes) -> None:
    damaged = bytearray(written)
    damaged[40] ^= 1
    store.path(CONTEXTS).write_bytes(damaged)
    with pytest.raises(ExperimentError, match=r"is damaged .*delete it and materialize contexts"):
        store.read(CONTEXTS)


def _write_as_before(path: Path) -> None:
    """A table as it was written before layouts were numbered."""
    path.parent.mkdir(parents=True, exist_ok=True)
    footer = {"sfc.fingerprint": '"abc"', "sfc.content": '"def"', "sfc.inputs": "{}"}
    table = TABLES["contexts"].build(ROWS)
    pq.write_table(table.replace_schema_metadata(footer), path)


def test_a_folder_of_an_older_layout_is_known_until_something_is_made_again(
    store: ArtifactStore, table: pa.Table
) -> None:
    assert not store.older_layout()
    _write_as_before(store.path(CONTEXTS))
    _write_as_before(store.root / "circuits" / "k00000" / "nodes.parquet")
    (store.root / "broken.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"token": [1]}), store.root / "shard.parquet")
    assert store.older_layout()
    assert store.footer(CONTEXTS) is None
    store.write(CONTEXTS, table, RECIPE)
    assert not store.older_layout()


def test_a_folder_without_any_table_is_of_no_older_layout(store: ArtifactStore) -> None:
    store.root.mkdir()
    pq.write_table(pa.table({"token": [1]}), store.root / "shard.parquet")
    assert not store.older_layout()


@pytest.mark.usefixtures("written")
def test_a_store_refuses_tables_that_are_not_declared(
    store: ArtifactStore, table: pa.Table
) -> None:
    own = store.only({"saes", "activation_cache"})
    uses: list[Callable[[], object]] = [
        lambda: own.read(CONTEXTS),
        lambda: own.content(CONTEXTS),
        lambda: own.notes(CONTEXTS),
        lambda: own.footer(CONTEXTS),
        lambda: own.open(CONTEXTS),
        lambda: own.n_rows(CONTEXTS),
        lambda: own.path(CONTEXTS, ""),
        lambda: own.write(CONTEXTS, table, RECIPE),
        lambda: own.write_text(CONTEXTS, ".txt", "a"),
    ]
    for use in uses:
        with pytest.raises(Undeclared, match=r"made by contexts, which is not among .*'saes'"):
            use()
    assert store.only({"contexts"}).read(CONTEXTS).to_pylist() == ROWS


def test_a_table_is_current_only_with_the_files_written_with_it(
    store: ArtifactStore, table: pa.Table
) -> None:
    picture = store.write_text(CONTEXTS, ".svg", "<svg/>")
    store.write(CONTEXTS, table, RECIPE, files=[picture])
    assert store.is_current(CONTEXTS, RECIPE)
    picture.write_text("<sv")
    assert not store.is_current(CONTEXTS, RECIPE)
    picture.unlink()
    assert not store.is_current(CONTEXTS, RECIPE)
    store.write_text(CONTEXTS, ".svg", "<svg/>")
    assert store.is_current(CONTEXTS, RECIPE)


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
