"""Tables on disk: written whole or not at all, each saying what it was made from.

A table is one Parquet file. Its footer holds, under ``sfc.*`` keys, the stage that made it, a
fingerprint of what it was made from (contents of its inputs, settings, version of the code), a hash
of its own values and a seal over all of these. A stage whose table carries the wanted fingerprint
has nothing to do. Pages carry checksums, so that damaged values are refused and not passed on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.engine.lock import is_running
from assets.engine.recipe import LAYOUT, Recipe, digest, hash_file
from assets.engine.records import Lineage, Origin, lineage_of
from assets.engine.remembered import remembered_of
from assets.engine.remote import Remote, remote_of
from assets.settings import ExperimentError
from assets.tables.places import Key
from assets.tables.schemas import TABLES

PREFIX = "sfc."
NOTED = frozenset({"cluster_vectors", "cluster_assignments"})
"""Tables whose notes other stages read: width, representation, algorithm, the curve of k. There
they are part of the content."""
_OF_RECIPE = ("layout", "stage", "inputs", "settings", "code", "files", "hashes", "columns")


@dataclass(frozen=True)
class Footer:
    """What a table says about itself.

    Attributes:
        fingerprint: of the recipe it was made by.
        content: hash of its values, and of its notes where others read them (`NOTED`).
        n_rows: rows.
        notes: everything else under ``sfc.``, decoded.
    """

    fingerprint: str
    content: str
    n_rows: int
    notes: Mapping[str, Any] = field(default_factory=dict)


class Content(str):
    """A hash of contents that knows whose it is; to a recipe it is the hash and no more.

    Attributes:
        origins: the tables that it stands for, or for a part of.
    """

    origins: tuple[Origin, ...]

    def __new__(cls, value: str, *origins: Origin) -> Content:
        """The hash `value` of these tables."""
        content = super().__new__(cls, value)
        content.origins = origins
        return content


def together(contents: Iterable[Content]) -> Content:
    """One hash that stands for several tables."""
    every = list(contents)
    return Content(digest(every), *(origin for one in every for origin in one.origins))


class Why(NamedTuple):
    """Why a table has to be made.

    Attributes:
        says: in a few words.
        never_made: there is none yet, or no whole one.
    """

    says: str
    never_made: bool = False


def _difference(footer: Footer, recipe: Recipe) -> str:
    """What a table's recipe was and is not any more."""
    notes = footer.notes
    inputs = {name for name, _ in notes["inputs"].items() ^ dict(recipe.inputs).items()}
    if inputs:
        return f"{', '.join(sorted(inputs))} changed"
    settings = json.loads(json.dumps(recipe.settings, default=str))
    if notes["settings"] != settings:
        return f"settings changed: {', '.join(_changed(notes['settings'], settings))}"
    return "its code changed"


def _changed(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of the settings that differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [name or "all"]
    below = [(key, before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys())]
    return [path for key, a, b in below for path in _changed(a, b, f"{name}.{key}".strip("."))]


class ContentHash:
    """Hash of column names and values, fed piece by piece: the same however the rows are cut up.

    It is the same before and after a Parquet round trip. Buffers would not do: a round trip
    renames list items and moves slices.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.n_rows = 0
        self._columns = {column.name: _ValuesHash(column.type) for column in schema}

    def update(self, rows: pa.Table) -> None:
        """Go on with these rows."""
        self.n_rows += rows.num_rows
        for name, hashed in self._columns.items():
            for chunk in rows.column(name).chunks:
                hashed.update(chunk)

    def columns(self) -> dict[str, str]:
        """Hash of each column of the rows so far, as 16 hexadecimal digits."""
        return {name: hashed.digest().hex()[:16] for name, hashed in self._columns.items()}

    def hexdigest(self) -> str:
        """Of the rows so far, as 16 hexadecimal digits."""
        return digest([self.n_rows, list(self.columns().items())])


class _ValuesHash:
    """The values of one column; of a column of lists, their lengths and then their items."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._n = 0
        self._nulls, self._values, self._texts = (hashlib.sha256() for _ in range(3))
        listed = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
        self._items = _ValuesHash(kind.value_type) if listed else None

    def update(self, values: pa.Array) -> None:
        if values.null_count:
            nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
            self._nulls.update((nulls + self._n).astype("<i8").tobytes())
            values = values.drop_null()
            self._n += len(nulls)
        self._n += len(values)
        if self._items is not None:
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            self._values.update(lengths.astype("<i8").tobytes())
            self._items.update(values.flatten())
        elif pa.types.is_string(self._kind):
            lengths, content = _bytes_of(values)
            self._values.update(lengths.astype("<i8").tobytes())
            self._texts.update(content)
        else:
            plain = values.to_numpy(zero_copy_only=False)
            self._values.update(np.ascontiguousarray(plain).tobytes())

    def digest(self) -> bytes:
        items = b"" if self._items is None else self._items.digest()
        parts = [str(self._n).encode(), self._nulls.digest(), self._values.digest()]
        return hashlib.sha256(b" ".join([*parts, self._texts.digest(), items])).digest()


def _bytes_of(texts: pa.Array) -> tuple[np.ndarray, bytes]:
    """Length of each text in bytes, and all of them one after the other."""
    _, places, content = texts.buffers()
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    ends = np.frombuffer(places, width)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return np.empty(0, width), b""
    used = b"" if content is None else content.slice(int(ends[0]), int(ends[-1] - ends[0]))
    return np.diff(ends), bytes(used)


def content_hash(table: pa.Table) -> str:
    """The `ContentHash` of a whole table."""
    hashed = ContentHash(table.schema)
    hashed.update(table)
    return hashed.hexdigest()


def _damaged(key: Key, place: str, why: str) -> ExperimentError:
    return ExperimentError(
        f"{place} is damaged ({why}): delete it and materialize {key.stage} again."
    )


class _Opened(pq.ParquetFile):
    """A table read in pieces, which says so where one is damaged."""

    def __init__(self, path: Path, key: Key, place: str) -> None:
        super().__init__(path, page_checksum_verification=True)
        self._place = (key, place)

    def read_row_group(self, *args: Any, **kwargs: Any) -> pa.Table:
        try:
            return super().read_row_group(*args, **kwargs)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(*self._place, str(error)) from None


NO_TABLE = "is no table of this pipeline"


class Flaw(Exception):
    """Why a file is no whole table of this layout."""


def _texts_of(read: Callable[[], pq.FileMetaData]) -> dict[str, str]:
    """What a table says about itself as it is written, its rows and columns; raises `Flaw`."""
    try:
        metadata = read()
        schema = metadata.schema.to_arrow_schema()
        raw = cast("dict[bytes, bytes]", metadata.metadata or {})
        texts = {
            name.decode().removeprefix(PREFIX): value.decode()
            for name, value in raw.items()
            if name.startswith(PREFIX.encode())
        }
    except FileNotFoundError:
        raise Flaw("is missing") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise Flaw("is cut short or damaged") from None
    if "fingerprint" not in texts:
        raise Flaw(NO_TABLE)
    if texts.get("layout") != str(LAYOUT):
        raise Flaw(f"is of another layout than {LAYOUT}")
    if texts.pop("seal", None) != digest(texts):
        raise Flaw("its footer is not the one that was written")
    if texts["n_rows"] != str(metadata.num_rows):
        raise Flaw("has another number of rows than was written")
    return {**texts, _COLUMNS: _described(schema)}


_COLUMNS = "its columns"


@cache
def _described(schema: pa.Schema) -> str:
    """Names, types and nulls of a table's columns; a round trip renames the items of lists."""
    columns = [f"{c.name}: {_kind(c.type)}{'' if c.nullable else ' not null'}" for c in schema]
    return ", ".join(columns)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} of {_kind(kind.value_type)}"
    return str(kind)


def _footer_of(texts: Mapping[str, str]) -> Footer:
    notes = {name: _plain(text) for name, text in texts.items() if name != _COLUMNS}
    n_rows = notes.pop("n_rows")
    return Footer(notes.pop("fingerprint"), notes.pop("content"), n_rows, notes)


@lru_cache(maxsize=4096)
def _plain(text: str) -> Any:
    """A value of a footer; those of many tables are the same, and none is changed."""
    return json.loads(text)


class Undeclared(Exception):
    """A stage reads what it does not declare: a fault of the stage, not of the experiment."""


class ArtifactStore:
    """The folder of one experiment's tables and other files; `assets.tables.places` has its keys.

    Args:
        root: the folder, or the copy of one that lies elsewhere.
        declared: names of the stages whose tables may be read or written; all where None.

    Attributes:
        remote: what the folder is the copy of; None for one that stands for itself.
    """

    def __init__(self, root: Path, declared: frozenset[str] | None = None) -> None:
        self.root = root
        self.remote = remote_of(root)
        self.declared = declared

    def only(self, stages: Iterable[str]) -> ArtifactStore:
        """The same folder, but nothing of other stages."""
        return ArtifactStore(self.root, frozenset(stages))

    def _hold_declared(self, key: Key) -> None:
        if self.declared is not None and key.stage not in self.declared:
            raise Undeclared(
                f"{key.path} is made by {key.stage}, which is not among {sorted(self.declared)}: "
                "a stage reads the tables of its deps only, or a change would not reach it."
            )

    def path(self, key: Key, suffix: str = ".parquet") -> Path:
        """Where the table (or another file) with this key lies.

        Raises:
            Undeclared: this store is of a stage that does not declare the one which writes it.
        """
        self._hold_declared(key)
        return self.root / f"{key.path}{suffix}"

    def here(self, key: Key, suffix: str = ".parquet") -> Path:
        """The same, to be read: fetched first if it lies elsewhere. Without a suffix, a folder."""
        path = self.path(key, suffix)
        if self.remote is not None:
            if suffix:
                self.remote.fetch([f"{key.path}{suffix}"])
            else:
                self.remote.fetch_below(key.path)
        return path

    @property
    def at(self) -> str:
        """Where everything lies, for people: a folder, or an address."""
        return str(self.root) if self.remote is None else self.remote.address

    def place(self, key: Key, suffix: str = ".parquet") -> str:
        """Where the table (or another file) with this key lies, for people."""
        return f"{self.at}/{key.path}{suffix}"

    def stamp(self, key: Key) -> object:
        """What changes whenever the file of this table does; None where there is none."""
        if self.remote is not None:
            return self.remote.objects().get(f"{key.path}.parquet")
        try:
            status = os.stat(f"{self.root}/{key.path}.parquet")
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def ahead(self, keys: Iterable[Key]) -> None:
        """Fetch the tables with these keys together, so that not each is waited for."""
        if self.remote is not None:
            self.remote.fetch([f"{key.path}.parquet" for key in keys], small=True)

    def _metadata(self, name: str) -> pq.FileMetaData:
        """The footer of a Parquet file; raises where it is missing or damaged."""
        if self.remote is None:
            return pq.read_metadata(self.root / name)
        with self.remote.opened(name) as file:
            return pq.read_metadata(file)

    def _of_ours(self) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:
        """Names and footers of all Parquet files with a footer of ours, in order."""
        if self.remote is None:
            files = sorted(self.root.rglob("*.parquet"))
            names = [file.relative_to(self.root).as_posix() for file in files]
        else:
            names = sorted(name for name in self.remote.objects() if name.endswith(".parquet"))
        for name in names:
            try:
                metadata = self._metadata(name).metadata or {}
            except (pa.ArrowException, OSError):
                continue
            if f"{PREFIX}fingerprint".encode() in metadata:
                yield name, metadata

    def check_writable(self) -> None:
        """Raise before any work if nothing can be written here.

        Raises:
            ExperimentError: the folder cannot be made or written to, or the address is not there,
                out of reach, or refuses to be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".probe-"):
                pass
            if self.remote is not None:
                self.remote.check_writable()
        except OSError as error:
            raise ExperimentError(
                f"nothing can be written to the artifacts folder {self.root} ({error.strerror}): "
                "give another with artifacts: in the experiment's file, or change its rights."
            ) from None

    def older_layout(self) -> bool:
        """Whether there are tables, all of another layout: they count as not there."""
        older = False
        for _, metadata in self._of_ours():
            if metadata.get(f"{PREFIX}layout".encode()) == str(LAYOUT).encode():
                return False
            older = True
        return older

    def footer(self, key: Key) -> Footer | None:
        """What the table with this key says about itself; None if there is no such table.

        A file that is no table of this layout, truncated or damaged in its footer counts as none.
        """
        self._hold_declared(key)
        try:
            texts = self._texts(f"{key.path}.parquet")
        except Flaw:
            return None
        return (
            _footer_of(texts) if texts[_COLUMNS] == _described(TABLES[key.table].schema) else None
        )

    def _texts(self, name: str) -> Mapping[str, str]:
        """`_texts_of` a file, read or, where it lies here, remembered."""
        read = partial(_texts_of, partial(self._metadata, name))
        return read() if self.remote else remembered_of(self.root).of(name, "footer", read)

    def paths(self) -> list[str]:
        """Paths of all Parquet files with a footer of ours, whole or not, in order."""
        return [name.removesuffix(".parquet") for name, _ in self._of_ours()]

    def table_at(self, path: str) -> tuple[Key, Footer]:
        """The table at a path, whichever it is: its columns and its footer say so.

        Raises:
            Flaw: there is none, or it is not as it was written.
        """
        texts = _texts_of(partial(self._metadata, f"{path}.parquet"))
        footer = _footer_of(texts)
        for table in TABLES.values():
            if _described(table.schema) == texts[_COLUMNS]:
                return Key(path, table.name, footer.notes["stage"]), footer
        raise Flaw("its columns are those of no table")

    def check(self, key: Key) -> None:
        """Read a table's values, a piece at a time, and raise like `read` where one is damaged."""
        footer, file = self._needed(key), self.open(key)
        hashed = ContentHash(TABLES[key.table].schema)
        for group in range(file.num_row_groups):
            hashed.update(file.read_row_group(group))
        if hashed.columns() != footer.notes["columns"]:
            raise _damaged(key, self.place(key), "its values are not those that were written")

    def is_current(self, key: Key, recipe: Recipe) -> bool:
        """Whether the table was made by this recipe, and all that was written with it is there."""
        return self.why_stale(key, recipe) is None

    def why_stale(self, key: Key, recipe: Recipe) -> Why | None:
        """Why the table has to be made by this recipe; None if it is current."""
        footer = self.footer(key)
        if footer is None:
            return Why("it is not there or not whole", never_made=True)
        if footer.fingerprint != recipe.fingerprint:
            return Why(_difference(footer, recipe))
        for file, n_bytes in footer.notes.get("files", {}).items():
            if not self._has(file, n_bytes):
                return Why(f"{file}, written with it, is gone or cut short")
        return None

    def version(self, key: Key) -> str:
        """Hash of the table's values and of what was written with it; raises like `content`."""
        footer = self._needed(key)
        beside = [found for file in footer.notes["files"] if (found := self._content_at(file))]
        weights = footer.notes.get("weights")
        return digest([footer.content, weights, beside]) if beside or weights else footer.content

    def _content_at(self, file: str) -> str:
        """Content hash of a table; empty for other files."""
        if not file.endswith(".parquet"):
            return ""
        try:
            return _footer_of(self._texts(file)).content
        except Flaw:  # a shard of the cache, which is no table
            return ""

    def _has(self, file: str, n_bytes: int) -> bool:
        if self.remote is not None:
            version = self.remote.objects().get(file)
            return version is not None and version.n_bytes == n_bytes
        path = self.root / file
        return path.is_file() and path.stat().st_size == n_bytes

    def content(self, key: Key) -> Content:
        """Hash of the values of the table with this key.

        Raises:
            ExperimentError: there is no such table yet.
        """
        origin = self.origin(key)
        return Content(origin.content, origin)

    def origin(self, key: Key) -> Origin:
        """The table with this key as it is now; raises like `content`."""
        footer = self._needed(key)
        return Origin(key.path, footer.content, footer.fingerprint)

    @property
    def lineage(self) -> Lineage:
        """What every table of the folder was made from, also those that were made again since."""
        return lineage_of(self.root)

    def notes(self, key: Key) -> Mapping[str, Any]:
        """What was noted in the footer of the table with this key; raises like `content`."""
        return self._needed(key).notes

    def _needed(self, key: Key) -> Footer:
        footer = self.footer(key)
        if footer is None:
            raise ExperimentError(
                f"{self.place(key)} is not there or not complete: materialize {key.stage} first."
            )
        return footer

    def read(self, key: Key, columns: list[str] | None = None) -> pa.Table:
        """The table with this key; raises like `content`, and where its values are damaged."""
        footer, path = self._needed(key), self.here(key)
        try:
            table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(key, self.place(key), str(error)) from None
        hashed = ContentHash(table.schema)
        hashed.update(table)
        written = footer.notes["columns"]
        if any(written[name] != value for name, value in hashed.columns().items()):
            raise _damaged(key, self.place(key), "its values are not those that were written")
        return table

    def rows(self, key: Key, columns: list[str]) -> list[dict[str, Any]]:
        """A few plain columns of a small table, remembered; none where there is no such table."""

        def read() -> list[dict[str, Any]]:
            there = self.footer(key) is not None
            return self.read(key, columns).to_pylist() if there else []

        if self.remote is not None:
            return read()
        self._hold_declared(key)
        what = f"rows {' '.join(columns)}"
        return remembered_of(self.root).of(f"{key.path}.parquet", what, read)

    def open(self, key: Key) -> pq.ParquetFile:
        """The table with this key, to be read in pieces; raises like `content`.

        What was opened stays as it was even if the table is written again.
        """
        self._needed(key)
        return _Opened(self.here(key), key, self.place(key))

    def n_rows(self, key: Key) -> int:
        """Rows of the table with this key; raises like `content`."""
        return self._needed(key).n_rows

    def write(
        self,
        key: Key,
        table: pa.Table | Iterable[pa.Table],
        recipe: Recipe,
        *,
        notes: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        files: Iterable[Path] = (),
        made: Callable[[], Mapping[str, Any]] | None = None,
    ) -> str:
        """Write a table whole, with its footer; the hash of its values.

        The footer holds nothing but what the recipe decides: a table made again has the same bytes.

        Args:
            key: where it goes.
            table: must have the columns of the key's table. Pieces of a table that is too large
                for memory are written as they come, each as row groups of its own.
            recipe: what it was made from.
            notes: further plain values for the footer, or what gives them after the last piece.
            files: what was written with it; without one of them it is not current.
            made: what `lineage` keeps beside the recipe: ``made``, when, where and with what, and
                ``tables``, contents of those written with it. Asked for when the table is whole.
        """
        from core.atomic import replacing

        schema = TABLES[key.table].schema
        hashed = ContentHash(schema)
        files = list(files)
        footer = {
            "layout": LAYOUT,
            "fingerprint": recipe.fingerprint,
            **recipe.plain(),
            "files": {str(f.relative_to(self.root)): f.stat().st_size for f in files},
            "hashes": {str(f.relative_to(self.root)): hash_file(f) for f in files},
        }
        with replacing(self.path(key)) as temporary:
            with pq.ParquetWriter(
                temporary, schema, compression="zstd", write_page_checksum=True
            ) as writer:
                pieces = [table] if isinstance(table, pa.Table) else table
                for piece in cast("Iterable[pa.Table]", pieces):
                    rows = piece.select(schema.names).cast(schema)
                    hashed.update(rows)
                    writer.write_table(rows)
                noted = (notes() if callable(notes) else notes) or {}
                content = hashed.hexdigest()
                if key.table in NOTED:
                    content = digest([content, dict(noted)])
                footer |= noted
                footer |= {"content": content, "columns": hashed.columns(), "n_rows": hashed.n_rows}
                texts = {name: json.dumps(value, default=str) for name, value in footer.items()}
                texts["seal"] = digest(texts)
                writer.add_key_value_metadata({f"{PREFIX}{name}": t for name, t in texts.items()})
            if made is not None:  # a record without its table does no harm
                self._record(key, content, recipe, made())
            if self.remote is not None:
                self._put(self.remote, key, temporary, files)
        return content

    def _put(self, remote: Remote, key: Key, table: Path, files: Iterable[Path]) -> None:
        """Put a table where it counts, after what was written with it; remove what was before."""
        before = self.footer(key)
        names = {file.relative_to(self.root).as_posix(): file for file in files}
        for name, file in names.items():
            remote.put(file, name)
        remote.put(table, f"{key.path}.parquet")
        for name in (before.notes["files"] if before else {}).keys() - names.keys():
            remote.remove(name)

    def _record(self, key: Key, content: str, recipe: Recipe, made: Mapping[str, Any]) -> None:
        tables = {**made.get("tables", {}), key.path: content}
        record = {"path": key.path, "fingerprint": recipe.fingerprint, **recipe.plain()}
        origins = {name: getattr(value, "origins", ()) for name, value in recipe.inputs.items()}
        self.lineage.add_table({**record, **made, "tables": tables}, origins)

    def adopt(self, key: Key, recipe: Recipe) -> bool:
        """Take a table made by other code as made by this recipe; whether there was such a one.

        Only the code may differ: inputs and settings must be those of the recipe, and all that
        was written with it must be there.
        """
        footer = self.footer(key)
        if footer is None or footer.fingerprint == recipe.fingerprint:
            return False
        known = (footer.notes["inputs"], footer.notes["settings"])
        beside = footer.notes["files"].items()
        if known != (dict(recipe.inputs), recipe.settings) or not all(
            self._has(file, n_bytes) for file, n_bytes in beside
        ):
            return False
        file = self.open(key)
        pieces = (file.read_row_group(i) for i in range(file.num_row_groups))
        if self.remote is not None:
            self.remote.fetch(list(footer.notes["files"]))
        files = [self.root / name for name in footer.notes["files"]]
        notes = {name: value for name, value in footer.notes.items() if name not in _OF_RECIPE}
        self.write(key, pieces, recipe, notes=notes, files=files)
        made = self.lineage.get(self.lineage.name(key.path, footer.fingerprint))
        if made is not None and self.lineage.name(key.path, recipe.fingerprint) is None:
            adopted = {"fingerprint": recipe.fingerprint, **recipe.plain(), "made_by": made["code"]}
            self.lineage.add({**made, **adopted})
        return True

    def write_text(self, key: Key, suffix: str, text: str) -> Path:
        """Write a text file whole; where it lies."""
        from core.atomic import replacing

        path = self.path(key, suffix)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for left in self.root.rglob(".*.tmp"):
            writer = left.name.split(".")[-2]
            if not (writer.isdigit() and is_running(int(writer))):
                left.unlink(missing_ok=True)
