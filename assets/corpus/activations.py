"""The activation cache as it lies on the disk, and reading it.

    FOLDER/manifest.json            counts, sizes and hashes; written last
    FOLDER/SUBMODULE/00000.parquet  one row per token: document, pos, token, activation

Row r of shard s is the same token in every submodule's folder, so all dictionaries train from one
read. The values are plain float16 that any Parquet reader reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import FormatError, InputError, NotFinite

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

MANIFEST = "manifest.json"
# Rows of one row group: the unit of reading. 8,192 x 512 float16 are 8 MiB.
ROW_GROUP = 8192
# Files read or written at a time; each thread decodes or encodes one.
N_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Shard:
    """One shard of every submodule.

    Attributes:
        n_rows: tokens in it.
        n_documents: documents they are from.
        n_bytes, sha256: of each submodule's file.
    """

    n_rows: int
    n_documents: int
    n_bytes: Mapping[str, int]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class CacheManifest:
    """What a finished cache holds.

    Attributes:
        key: digest of the model, the settings and the contexts.
        widths: d by submodule.
        shards: in order.
        row_group: rows of each row group but a shard's last.
    """

    key: str
    widths: Mapping[str, int]
    shards: tuple[Shard, ...]
    row_group: int = ROW_GROUP

    @property
    def n_rows(self) -> int:
        """Tokens cached."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_documents(self) -> int:
        """Documents they are from."""
        return sum(shard.n_documents for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(sum(shard.n_bytes.values()) for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Digest of the content: equal for equal bytes, wherever and whenever written."""
        hashes = [sorted(shard.sha256.items()) for shard in self.shards]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CacheManifest:
        """The manifest that `to_json` wrote."""
        fields = json.loads(text)
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        return cls(**fields)


def shard_file(folder: Path, submodule: str, index: int) -> Path:
    """Where a shard lies."""
    return folder / submodule / f"{index:05}.parquet"


def shard_schema(d: int) -> pa.Schema:
    """Columns of a shard of width `d`."""
    import pyarrow as pa

    columns = [pa.field(name, pa.int32(), nullable=False) for name in ("document", "pos", "token")]
    element = pa.field("element", pa.float16(), nullable=False)
    return pa.schema([*columns, pa.field("activation", pa.list_(element, d), nullable=False)])


def file_hash(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_cache(folder: Path, submodules: Sequence[str] | None = None) -> ActivationCache:
    """A finished cache, to read all its submodules or some.

    Raises:
        FormatError: no cache, an unfinished one, or a shard that is missing or truncated.
        InputError: the cache does not have one of `submodules`.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FormatError(
            f"'{folder}' holds no finished activation cache ({MANIFEST} is missing): write it, or "
            "let the interrupted pass go on."
        )
    try:
        manifest = CacheManifest.from_json(file.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"'{file}' is not a manifest of an activation cache: {error}.") from error
    for damage in damaged(folder, manifest):
        raise FormatError(f"{damage}. Delete that file and write the cache again: the rest stays.")
    names = list(manifest.widths) if submodules is None else list(submodules)
    missing = [name for name in names if name not in manifest.widths]
    if missing:
        raise InputError(
            f"the cache in '{folder}' has no {', '.join(missing)}, only "
            f"{', '.join(manifest.widths)}."
        )
    return ActivationCache(folder, manifest, {name: manifest.widths[name] for name in names})


def damaged(folder: Path, manifest: CacheManifest) -> Iterator[str]:
    """What is wrong with the sizes of a cache's files, one sentence each."""
    for index, shard in enumerate(manifest.shards):
        for name, n_bytes in shard.n_bytes.items():
            file = shard_file(folder, name, index)
            if not file.is_file():
                yield f"'{file}' is missing"
            elif file.stat().st_size != n_bytes:
                yield f"'{file}' has {file.stat().st_size} bytes instead of {n_bytes}"


class ActivationCache:
    """A finished cache as `core.training.RowSource`: its units are row groups.

    Attributes:
        folder, manifest: where and what it is.
        widths: d of each submodule read.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, widths: Mapping[str, int]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.widths = widths
        size = manifest.row_group
        self._units = [
            (index, group, min(size, shard.n_rows - group * size))
            for index, shard in enumerate(manifest.shards)
            for group in range(-(-shard.n_rows // size))
        ]

    @property
    def n_rows(self) -> int:
        """Tokens cached."""
        return self.manifest.n_rows

    @property
    def fingerprint(self) -> str:
        """Digest of the cache, whichever of its submodules are read."""
        return self.manifest.fingerprint

    @property
    def unit_rows(self) -> list[int]:
        """Rows of each row group."""
        return [n_rows for _, _, n_rows in self._units]

    def verify(self) -> None:
        """Read every byte and compare it with the manifest; raises `FormatError`."""
        for index, shard in enumerate(self.manifest.shards):
            for name in self.widths:
                file = shard_file(self.folder, name, index)
                if file_hash(file) != shard.sha256[name]:
                    raise FormatError(
                        f"'{file}' is not the file that was written: its content changed. Delete "
                        "it and write the cache again: the other shards stay."
                    )

    def load(self, unit: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """One row group: float16 ``(rows, d)`` by submodule, and each row's document ``(rows,)``.

        Raises:
            FormatError: a shard is truncated or not one of ours.
            NotFinite: it holds NaN or infinity.
        """
        import torch

        index, group, _ = self._units[unit]
        with ThreadPoolExecutor(N_THREADS) as pool:
            read = partial(self._read, index, group)
            values = dict(zip(self.widths, pool.map(read, self.widths), strict=True))
        file = shard_file(self.folder, next(iter(self.widths)), index)
        document = _read_group(file, group, "document").to_numpy()
        return values, torch.from_numpy(document.astype("int64"))

    def _read(self, index: int, group: int, name: str) -> Tensor:
        import torch

        from core.training.model_rows import all_finite

        d = self.widths[name]
        file = shard_file(self.folder, name, index)
        lists = _read_group(file, group, "activation")
        if lists.type != shard_schema(d).field("activation").type:
            raise FormatError(
                f"'{file}' holds {lists.type} where the cache has {d} float16 values per row: it "
                "is no shard of this cache."
            )
        flat = lists.flatten().to_numpy()
        out = torch.empty(len(flat) // d, d, dtype=torch.float16)
        out.numpy().reshape(-1)[:] = flat
        if not all_finite(out):
            bad = int((~torch.isfinite(out)).any(1).nonzero()[0]) + group * self.manifest.row_group
            raise NotFinite(
                f"'{file}' holds NaN or infinity in row {bad}: delete the file and write the "
                "cache again; the other shards stay."
            )
        return out


def _read_group(file: Path, group: int, column: str) -> Any:
    """One column of one row group, as a single Arrow array."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, memory_map=True, page_checksum_verification=True) as parquet:
            if column not in parquet.schema_arrow.names:
                raise FormatError(f"'{file}' has no column '{column}': it is no shard of ours.")
            table = parquet.read_row_group(group, columns=[column], use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError(
            f"'{file}' cannot be read ({error}): it is damaged, cut or no Parquet file. Delete it "
            "and write the cache again; the other shards stay."
        ) from error
    return table[column].combine_chunks()
