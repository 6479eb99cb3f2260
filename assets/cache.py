"""The activation cache: every submodule's outputs over a corpus, written in one pass of the model.

    FOLDER/manifest.json            counts, sizes and hashes; written last
    FOLDER/SUBMODULE/00000.parquet  one row per token: document, pos, token, activation

Row r of shard s is the same token in every submodule's folder, so all dictionaries train from one
read. A shard takes its name only when it is whole on the disk and carries a key made of the model,
the settings and its own contexts: a killed pass goes on where it stopped, and a shard of another
model is never mistaken for one of this. The values are plain float16 that any Parquet reader reads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.corpus import Context
from core.atomic import replacing, sweep
from core.errors import FormatError, InputError, NotFinite, OutOfBudget

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

    from core.models import LanguageModel

MANIFEST = "manifest.json"
_KEY = b"sfc.key"
_VERSION = 1
# Rows of one row group: the unit of reading. 8,192 x 512 float16 are 8 MiB.
_ROW_GROUP = 8192
_ROW_BYTES = 12
_THREADS = 2


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
    row_group: int = _ROW_GROUP

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
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CacheManifest:
        """The manifest that `to_json` wrote."""
        fields = json.loads(text)
        fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
        return cls(**fields)


def shard_file(folder: Path, submodule: str, index: int) -> Path:
    """Where a shard lies."""
    return folder / submodule / f"{index:05}.parquet"


def estimate_cache(contexts: Sequence[Context], widths: Mapping[str, int]) -> int:
    """Bytes that a cache of these contexts takes, to within a few per cent."""
    n_rows = sum(len(context.tokens) for context in contexts)
    return n_rows * sum(2 * d + _ROW_BYTES for d in widths.values())


# -- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    folder: Path
    widths: Mapping[str, int]
    groups: Sequence[Sequence[Context]]
    keys: Sequence[str]

    @property
    def key(self) -> str:
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()


def write_cache(
    folder: Path,
    model: LanguageModel,
    contexts: Sequence[Context],
    submodules: Sequence[str],
    *,
    model_fingerprint: str,
    contexts_per_shard: int = 256,
    batch_contexts: int = 32,
    budget_bytes: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> CacheManifest:
    """Run the model over the contexts once and write every submodule's outputs.

    Shards that are there and whole are kept; a finished cache is left as it is.

    Args:
        folder: of this cache alone.
        model: the model.
        contexts: what to run it on.
        submodules: whose outputs to keep.
        model_fingerprint: identifies the model's weights.
        contexts_per_shard: contexts in one shard.
        batch_contexts: contexts in one run of the model.
        budget_bytes: refuse to write more than this.
        progress: told about each shard.

    Raises:
        InputError: no contexts, or token ids the model does not have.
        OutOfBudget: the estimate is beyond `budget_bytes` or the free disk, before anything is
            written; or the disk filled up on the way, after which finished shards stay valid.
        NotFinite: an activation is NaN, infinite or beyond float16.
    """
    if not contexts:
        raise InputError("no contexts: there is nothing to cache.")
    plan = _plan(folder, model, contexts, submodules, model_fingerprint, contexts_per_shard)
    finished = _finished(plan)
    if finished is not None:
        return finished
    _check_budget(plan, estimate_cache(contexts, plan.widths), budget_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    shards = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for index, group in enumerate(plan.groups):
            shard = _kept_shard(plan, index)
            if shard is None:
                tables = _tables(plan, model, group, batch_contexts, plan.keys[index])
                shard = _write_shard(plan, index, tables, pool)
            shards.append(shard)
            if progress is not None:
                progress(f"cache: shard {index + 1} of {len(plan.groups)}, {shard.n_rows} tokens")
    manifest = CacheManifest(plan.key, plan.widths, tuple(shards))
    with replacing(folder / MANIFEST) as file:
        file.write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _plan(
    folder: Path,
    model: LanguageModel,
    contexts: Sequence[Context],
    submodules: Sequence[str],
    model_fingerprint: str,
    contexts_per_shard: int,
) -> _Plan:
    from core.training import fingerprint_contexts

    widths = {name: model.width(name) for name in submodules}
    n = contexts_per_shard
    groups = [contexts[i : i + n] for i in range(0, len(contexts), n)]
    common = json.dumps([_VERSION, model_fingerprint, widths, _ROW_GROUP])
    keys = []
    for group in groups:
        tokens = fingerprint_contexts([context.tokens for context in group])
        documents = [context.document for context in group]
        keys.append(hashlib.sha256(f"{common} {documents} {tokens}".encode()).hexdigest())
    return _Plan(folder, widths, groups, keys)


def _finished(plan: _Plan) -> CacheManifest | None:
    """The manifest of a cache that is already whole and the one asked for."""
    file = plan.folder / MANIFEST
    if not file.is_file():
        return None
    manifest = CacheManifest.from_json(file.read_text(encoding="utf-8"))
    whole = not list(_damaged(plan.folder, manifest))
    return manifest if whole and manifest.key == plan.key else None


def _check_budget(plan: _Plan, needed: int, budget_bytes: int | None) -> None:
    def gib(n: float) -> str:
        return f"{n / 2**30:.3g} GiB"

    way_out = "keep fewer documents or submodules, or train straight from the model (streaming)."
    if budget_bytes is not None and needed > budget_bytes:
        raise OutOfBudget(
            f"the activation cache would take {gib(needed)}, more than its budget of "
            f"{gib(budget_bytes)}: {way_out}"
        )
    place = plan.folder
    while not place.exists():
        place = place.parent
    there = sum(file.stat().st_size for file in plan.folder.rglob("*.parquet"))
    free = shutil.disk_usage(place).free
    if needed - there > free:
        raise OutOfBudget(
            f"the activation cache would take {gib(needed)}, but the disk of '{place}' has "
            f"{gib(free)} free: {way_out}"
        )


def _tables(
    plan: _Plan, model: LanguageModel, group: Sequence[Context], batch_contexts: int, key: str
) -> dict[str, pa.Table]:
    """The shard of every submodule, by name."""
    import numpy as np

    from core.training import context_rows

    runs = []
    for start in range(0, len(group), batch_contexts):
        batch = [context.tokens for context in group[start : start + batch_contexts]]
        runs.append(context_rows(model, batch, list(plan.widths)))
    lengths = [len(context.tokens) for context in group]
    columns = {
        "document": np.repeat([context.document for context in group], lengths),
        "pos": np.concatenate([np.arange(n) for n in lengths]),
        "token": np.concatenate([context.tokens for context in group]),
    }
    return {
        name: _table(columns, np.concatenate([run[name].numpy() for run in runs]), key, name)
        for name in plan.widths
    }


def _schema(d: int) -> pa.Schema:
    import pyarrow as pa

    columns = [pa.field(name, pa.int32(), nullable=False) for name in ("document", "pos", "token")]
    element = pa.field("element", pa.float16(), nullable=False)
    return pa.schema([*columns, pa.field("activation", pa.list_(element, d), nullable=False)])


def _table(
    columns: Mapping[str, np.ndarray], activation: np.ndarray, key: str, name: str
) -> pa.Table:
    import pyarrow as pa

    schema = _schema(activation.shape[1])
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(activation.reshape(-1)), type=schema.field("activation").type
    )
    arrays = [pa.array(column, type=pa.int32()) for column in columns.values()]
    footer = {_KEY: key.encode(), b"sfc.submodule": name.encode()}
    return pa.Table.from_arrays([*arrays, lists], schema=schema.with_metadata(footer))


def _write_shard(
    plan: _Plan, index: int, tables: Mapping[str, pa.Table], pool: ThreadPoolExecutor
) -> Shard:
    try:
        list(pool.map(partial(_write_file, plan.folder, index), tables, tables.values()))
    except OSError as error:
        raise OutOfBudget(
            f"writing shard {index} to '{plan.folder}' failed: {error}. The {index} shards before "
            "it are whole: make room and run again, and the pass goes on from there."
        ) from error
    return _describe(plan, index)


def _write_file(folder: Path, index: int, name: str, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with replacing(shard_file(folder, name, index)) as file:
        # Activations neither compress nor repeat: leave that work out.
        pq.write_table(
            table,
            file,
            row_group_size=_ROW_GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )


def _kept_shard(plan: _Plan, index: int) -> Shard | None:
    """The shard as it is on the disk, if an earlier pass wrote all of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in plan.widths:
        file = shard_file(plan.folder, name, index)
        try:
            metadata = pq.read_schema(file).metadata or {}
        except (OSError, pa.ArrowInvalid):
            return None
        if metadata.get(_KEY) != plan.keys[index].encode():
            return None
    return _describe(plan, index)


def _describe(plan: _Plan, index: int) -> Shard:
    group = plan.groups[index]
    files = {name: shard_file(plan.folder, name, index) for name in plan.widths}
    return Shard(
        n_rows=sum(len(context.tokens) for context in group),
        n_documents=len(group),
        n_bytes={name: file.stat().st_size for name, file in files.items()},
        sha256={name: _hash(file) for name, file in files.items()},
    )


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- reading -------------------------------------------------------------------------------------


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
    for damage in _damaged(folder, manifest):
        raise FormatError(f"{damage}. Delete that file and write the cache again: the rest stays.")
    names = list(manifest.widths) if submodules is None else list(submodules)
    missing = [name for name in names if name not in manifest.widths]
    if missing:
        raise InputError(
            f"the cache in '{folder}' has no {', '.join(missing)}, only "
            f"{', '.join(manifest.widths)}."
        )
    return ActivationCache(folder, manifest, {name: manifest.widths[name] for name in names})


def _damaged(folder: Path, manifest: CacheManifest) -> Iterator[str]:
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
        """Digest of what is read: the content and the choice of submodules."""
        own = f"{self.manifest.fingerprint} {sorted(self.widths)}"
        return hashlib.sha256(own.encode()).hexdigest()

    @property
    def unit_rows(self) -> list[int]:
        """Rows of each row group."""
        return [n_rows for _, _, n_rows in self._units]

    def verify(self) -> None:
        """Read every byte and compare it with the manifest; raises `FormatError`."""
        for index, shard in enumerate(self.manifest.shards):
            for name in self.widths:
                file = shard_file(self.folder, name, index)
                if _hash(file) != shard.sha256[name]:
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
        with ThreadPoolExecutor(_THREADS) as pool:
            read = partial(self._read, index, group)
            values = dict(zip(self.widths, pool.map(read, self.widths), strict=True))
        file = shard_file(self.folder, next(iter(self.widths)), index)
        document = _read_group(file, group, "document").to_numpy()
        return values, torch.from_numpy(document.astype("int64"))

    def _read(self, index: int, group: int, name: str) -> Tensor:
        import numpy as np
        import torch

        d = self.widths[name]
        file = shard_file(self.folder, name, index)
        lists = _read_group(file, group, "activation")
        if lists.type != _schema(d).field("activation").type:
            raise FormatError(
                f"'{file}' holds {lists.type} where the cache has {d} float16 values per row: it "
                "is no shard of this cache."
            )
        flat = lists.flatten().to_numpy()
        # All bits of the exponent set: infinity or NaN.
        if bool(((flat.view(np.uint16) & 0x7C00) == 0x7C00).any()):
            row = int(np.flatnonzero(~np.isfinite(flat))[0]) // d + group * self.manifest.row_group
            raise NotFinite(
                f"'{file}' holds NaN or infinity in row {row}: delete the file and write the "
                "cache again; the other shards stay."
            )
        out = torch.empty(len(flat) // d, d, dtype=torch.float16)
        out.numpy().reshape(-1)[:] = flat
        return out


def _read_group(file: Path, group: int, column: str) -> Any:
    """One column of one row group, as a single Arrow array."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            if column not in parquet.schema_arrow.names:
                raise FormatError(f"'{file}' has no column '{column}': it is no shard of ours.")
            table = parquet.read_row_group(group, columns=[column], use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError(
            f"'{file}' cannot be read ({error}): it is truncated or no Parquet file. Delete it and "
            "write the cache again; the other shards stay."
        ) from error
    return table[column].combine_chunks()
