"""Writing the activation cache: every submodule's outputs over a corpus, in one pass of the model.

`assets.corpus.activations` describes the files. A shard takes its name only when it is whole on the
disk, and carries a key made of the model, the settings and its own contexts: a killed pass goes on
where it stopped, and a shard of another model is never mistaken for one of this.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from assets.corpus.activations import (
    MANIFEST,
    N_THREADS,
    ROW_GROUP,
    ActivationCache,
    CacheManifest,
    Shard,
    damaged,
    file_hash,
    open_cache,
    shard_file,
    shard_schema,
)
from assets.corpus.contexts import telling
from assets.corpus.text import Context
from core.atomic import replacing, sweep
from core.errors import InputError, OutOfBudget

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from core.models import LanguageModel

__all__ = ["ActivationCache", "CacheManifest", "estimate_cache", "open_cache", "write_cache"]

_KEY = b"sfc.key"
_VERSION = 1
_ROW_BYTES = 12


def estimate_cache(contexts: Sequence[Context], widths: Mapping[str, int]) -> int:
    """Bytes that a cache of these contexts takes, to within a few per cent."""
    return _bytes_of(sum(len(context.tokens) for context in contexts), widths)


def _bytes_of(n_rows: int, widths: Mapping[str, int]) -> int:
    return n_rows * sum(2 * d + _ROW_BYTES for d in widths.values())


@dataclass(frozen=True)
class _Plan:
    """What is to be written; `keys` and `n_rows` (tokens) are of each shard."""

    folder: Path
    widths: Mapping[str, int]
    contexts: Sequence[Context]
    contexts_per_shard: int
    keys: Sequence[str]
    n_rows: Sequence[int]

    @property
    def key(self) -> str:
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()

    def group(self, index: int) -> Sequence[Context]:
        """The contexts of a shard."""
        first = index * self.contexts_per_shard
        return self.contexts[first : first + self.contexts_per_shard]


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
        contexts: what to run it on; those of one shard at a time are held.
        submodules: whose outputs to keep.
        model_fingerprint: identifies the model's weights.
        contexts_per_shard: contexts in one shard.
        batch_contexts: contexts in one run of the model.
        budget_bytes: refuse to write more than this.
        progress: told about each shard, and now and then how many contexts were looked at.

    Raises:
        InputError: no contexts, or token ids the model does not have.
        OutOfBudget: the estimate is beyond `budget_bytes` or the free disk, before anything is
            written; or the disk filled up on the way, after which finished shards stay valid.
        NotFinite: an activation is NaN, infinite or beyond float16.
    """
    if not contexts:
        raise InputError("no contexts: there is nothing to cache.")
    widths = {name: model.width(name) for name in submodules}
    plan = _plan(folder, widths, contexts, model_fingerprint, contexts_per_shard, progress)
    finished = _finished(plan)
    if finished is not None:
        return finished
    _check_budget(plan, _bytes_of(sum(plan.n_rows), widths), budget_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    shards = []
    for shard in _shards(plan, model, batch_contexts):
        shards.append(shard)
        if progress is not None:
            n = len(shards)
            progress(f"cache: shard {n} of {len(plan.keys)}, {shard.n_rows} tokens")
    manifest = CacheManifest(plan.key, widths, tuple(shards))
    with replacing(folder / MANIFEST) as file:
        file.write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _plan(
    folder: Path,
    widths: Mapping[str, int],
    contexts: Sequence[Context],
    model_fingerprint: str,
    contexts_per_shard: int,
    progress: Callable[[str], None] | None,
) -> _Plan:
    """One pass over the contexts, which tells the key of each shard and its tokens."""
    from core.training import fingerprint_contexts

    common = json.dumps([_VERSION, model_fingerprint, widths, ROW_GROUP])
    keys, n_rows = [], []
    left = iter(contexts if progress is None else telling(contexts, progress))
    while group := list(islice(left, contexts_per_shard)):
        tokens = fingerprint_contexts([context.tokens for context in group])
        documents = [context.document for context in group]
        keys.append(hashlib.sha256(f"{common} {documents} {tokens}".encode()).hexdigest())
        n_rows.append(sum(len(context.tokens) for context in group))
    return _Plan(folder, widths, contexts, contexts_per_shard, keys, n_rows)


def _finished(plan: _Plan) -> CacheManifest | None:
    """The manifest of a cache that is already whole and the one asked for."""
    file = plan.folder / MANIFEST
    if not file.is_file():
        return None
    text = file.read_bytes().decode(errors="replace")
    try:
        manifest = CacheManifest.from_json(text)
    except (ValueError, TypeError, KeyError):
        return None
    whole = text == manifest.to_json() and not list(damaged(plan.folder, manifest))
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


def _shards(plan: _Plan, model: LanguageModel, batch_contexts: int) -> Iterator[Shard]:
    """Every shard in order; one is written while the model runs for the next."""
    waiting: deque[Callable[[], Shard]] = deque()
    with ThreadPoolExecutor(N_THREADS) as pool:
        for index in range(len(plan.keys)):
            kept = _kept_shard(plan, index)
            tables = {} if kept is not None else _tables(plan, model, index, batch_contexts)
            while waiting:
                yield waiting.popleft()()
            if kept is None:
                waiting.append(_start_writing(plan, index, tables, pool))
            else:
                yield kept
        while waiting:
            yield waiting.popleft()()


def _tables(
    plan: _Plan, model: LanguageModel, index: int, batch_contexts: int
) -> dict[str, pa.Table]:
    """A shard's table of every submodule, by name."""
    import numpy as np

    from core.training import context_rows

    group = list(plan.group(index))
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
    footer = {_KEY: plan.keys[index].encode()}
    return {
        name: _table(columns, [run[name].numpy() for run in runs]).replace_schema_metadata(
            footer | {b"sfc.submodule": name.encode()}
        )
        for name in plan.widths
    }


def _table(columns: Mapping[str, np.ndarray], activations: Sequence[np.ndarray]) -> pa.Table:
    import pyarrow as pa

    schema = shard_schema(activations[0].shape[1])
    kind = schema.field("activation").type
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), type=kind)
        for part in activations
    ]
    arrays = [pa.array(column, type=pa.int32()) for column in columns.values()]
    return pa.Table.from_arrays([*arrays, pa.chunked_array(lists, kind)], schema=schema)


def _start_writing(
    plan: _Plan, index: int, tables: Mapping[str, pa.Table], pool: ThreadPoolExecutor
) -> Callable[[], Shard]:
    """Let the pool write a shard; a function that waits for the end of it."""
    files = {
        name: pool.submit(_write_file, shard_file(plan.folder, name, index), table)
        for name, table in tables.items()
    }

    def finish() -> Shard:
        try:
            return _shard(plan, index, {name: file.result() for name, file in files.items()})
        except OSError as error:
            raise OutOfBudget(
                f"writing shard {index} to '{plan.folder}' failed: {error}. The {index} shards "
                "before it are whole: make room and run again, and the pass goes on from there."
            ) from error

    return finish


def _write_file(file: Path, table: pa.Table) -> tuple[int, str]:
    """Write a shard of one submodule; its size and hash."""
    import pyarrow.parquet as pq

    with replacing(file) as temporary:
        # Activations neither compress nor repeat: leave that work out.
        pq.write_table(
            table,
            temporary,
            row_group_size=ROW_GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        return temporary.stat().st_size, file_hash(temporary)


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
    files = {name: shard_file(plan.folder, name, index) for name in plan.widths}
    return _shard(
        plan, index, {name: (file.stat().st_size, file_hash(file)) for name, file in files.items()}
    )


def _shard(plan: _Plan, index: int, files: Mapping[str, tuple[int, str]]) -> Shard:
    return Shard(
        n_rows=plan.n_rows[index],
        n_documents=len(plan.group(index)),
        n_bytes={name: n_bytes for name, (n_bytes, _) in files.items()},
        sha256={name: sha256 for name, (_, sha256) in files.items()},
    )
