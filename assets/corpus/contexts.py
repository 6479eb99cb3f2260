"""The contexts table as a sequence that stays on disk: for corpora of any size.

A `Contexts` looks like a list of contexts. It holds the few row groups it read last, so that
reading it in order reads the file once, and a slice of it reads nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.corpus.text import Context
from assets.engine.store import ArtifactStore
from assets.tables.places import CONTEXTS
from assets.tables.schemas import TABLES

_T = TypeVar("_T")
_GROUPS_HELD = 4
_TELL_EVERY = 10_000

CONTEXTS_PER_PIECE = 512
"""Rows of a row group of the contexts table. Dictionaries that train without a cache read 32
contexts here and 32 there, a row group each time: 0.6 ms for 512 contexts of 128 tokens, 7 ms for
8,192."""


def contexts_table(contexts: Iterable[Context]) -> pa.Table:
    """The contexts table, or a piece of it."""
    return TABLES["contexts"].build(
        {"document": c.document, "tokens": c.tokens, "labels": c.labels and list(c.labels)}
        for c in contexts
    )


def contexts_pieces(
    contexts: Iterable[Context], rows_per_piece: int = CONTEXTS_PER_PIECE
) -> Iterator[pa.Table]:
    """The contexts table in pieces of so many rows, the last one shorter."""
    contexts = iter(contexts)
    while piece := list(islice(contexts, rows_per_piece)):
        yield contexts_table(piece)


class View(Sequence[_T], Generic[_T]):
    """Values of some rows, each read when it is looked at; a slice is another view.

    Args:
        read: gives the value of a row.
        rows: which rows, in which order.
    """

    def __init__(self, read: Callable[[int], _T], rows: range) -> None:
        self._read = read
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> _T | Self:
        if isinstance(index, slice):
            return self._of(self._rows[index])
        return self._read(self._rows[index])

    def __iter__(self) -> Iterator[_T]:
        return map(self._read, self._rows)

    def _of(self, rows: range) -> Self:
        return type(self)(self._read, rows)


class Contexts(View[Context]):
    """The contexts of a table on disk, or of some of its rows.

    Args:
        source: the open table.
        rows: which rows; all where None.
    """

    def __init__(self, source: ContextRows, rows: range | None = None) -> None:
        self._source = source
        super().__init__(source.context, range(len(source)) if rows is None else rows)

    @property
    def tokens(self) -> View[list[int]]:
        """The token ids of each."""
        return View(self._source.tokens, self._rows)

    @property
    def labels(self) -> View[tuple[str, ...] | None]:
        """The labels of each, where the corpus has any."""
        return View(self._source.labels, self._rows)

    def _of(self, rows: range) -> Self:
        return type(self)(self._source, rows)


@dataclass(frozen=True)
class _Group:
    """One row group: context ``i`` has the tokens from ``starts[i]`` to ``starts[i + 1]``."""

    documents: np.ndarray
    starts: list[int]
    tokens: np.ndarray
    labels: Any


class ContextRows:
    """Single rows of a contexts table; the row groups read last are held.

    Args:
        file: the table, opened.
    """

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        found = file.metadata
        sizes = (found.row_group(i).num_rows for i in range(found.num_row_groups))
        self._ends = list(accumulate(sizes))
        self._group = lru_cache(maxsize=_GROUPS_HELD)(self._read)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def context(self, row: int) -> Context:
        """The context in this row."""
        group, i = self._place(row)
        return Context(int(group.documents[i]), _tokens(group, i), _labels(group, i))

    def tokens(self, row: int) -> list[int]:
        """Its token ids."""
        return _tokens(*self._place(row))

    def labels(self, row: int) -> tuple[str, ...] | None:
        """Its labels."""
        return _labels(*self._place(row))

    def _place(self, row: int) -> tuple[_Group, int]:
        index = bisect_right(self._ends, row)
        return self._group(index), row - (self._ends[index - 1] if index else 0)

    def _read(self, index: int) -> _Group:
        table = self._file.read_row_group(index)
        tokens = table["tokens"].combine_chunks()
        return _Group(
            documents=table["document"].to_numpy(),
            starts=tokens.offsets.to_numpy().tolist(),
            tokens=tokens.values.to_numpy(),
            labels=table["labels"].combine_chunks(),
        )


def _tokens(group: _Group, i: int) -> list[int]:
    return group.tokens[group.starts[i] : group.starts[i + 1]].tolist()


def _labels(group: _Group, i: int) -> tuple[str, ...] | None:
    labels = group.labels[i].as_py()
    return None if labels is None else tuple(labels)


def read_contexts(store: ArtifactStore) -> Contexts:
    """The contexts of the contexts table, in order; raises like `ArtifactStore.content`."""
    return Contexts(ContextRows(store.open(CONTEXTS)))


def read_lengths(store: ArtifactStore) -> np.ndarray:
    """Tokens of each context, ``(n,)`` int32; raises like `ArtifactStore.content`."""
    file, parts = store.open(CONTEXTS), [np.empty(0, np.int32)]
    for group in range(file.metadata.num_row_groups):
        tokens = file.read_row_group(group, columns=["tokens"])["tokens"]
        parts += [chunk.value_lengths().to_numpy() for chunk in tokens.chunks]
    return np.concatenate(parts)


def telling(
    contexts: Iterable[Context], say: Callable[[str], None], *, every: int = _TELL_EVERY
) -> Iterator[Context]:
    """The same contexts; `say` is told now and then how many have passed."""
    n_tokens = 0
    for n, context in enumerate(contexts, start=1):
        n_tokens += len(context.tokens)
        if n % every == 0:
            say(f"{n:,} contexts read, {n_tokens:,} tokens")
        yield context
