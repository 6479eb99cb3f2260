"""The shuffled buffer: rows from anywhere in the data, in an order that is a pure function.

Activations lie in units (row groups of a cache, groups of contexts), and rows of one document lie
together. The buffer holds `capacity` rows; each block takes half of them at random as batches and
puts the next rows of the data in their slots (App. B: a buffer refilled when half is used). A
buffer that can hold everything is not refilled: each pass is a fresh permutation.

Which rows a batch holds depends only on the seed, the units' sizes, the capacity and the batch's
number. So two processes read in the same order, and a training resumes at any batch by replaying
integers. `rows_within` gives the capacity: from the widths of all submodules of an experiment, not
of those read together, so that a dictionary trained alone meets the rows it meets among others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.errors import InputError

_SWAPS = 16


class RowSource(Protocol):
    """Rows of activations of several submodules, read in units."""

    @property
    def widths(self) -> Mapping[str, int]:
        """d by submodule name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the data, so that a training never resumes on other data.

        The same whichever of the submodules are read.
        """
        ...

    @property
    def unit_rows(self) -> Sequence[int]:
        """Rows of each unit."""
        ...

    def load(self, unit: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """One unit: ``(rows, d)`` by submodule, aligned, and each row's document ``(rows,)``."""
        ...


def rows_within(n_bytes: int, widths: Mapping[str, int]) -> int:
    """How many rows of submodules of these widths fit, each in float16 and with its document."""
    return n_bytes // (2 * sum(widths.values()) + 8)


def generator_of(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of `numbers` and their order."""
    seed = 0
    for number in numbers:
        # A multiplicative hash keeps (1, 2) and (2, 1) apart.
        seed = ((seed ^ number) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) % 2**63
    return torch.Generator().manual_seed(seed)


def apart(order: Tensor, document: Tensor, generator: torch.Generator) -> Tensor:
    """`order` with rows swapped until no two neighbours are from one document, where possible.

    Args:
        order: ``(n,)`` long, indices into `document`.
        document: ``(rows,)``, the document of each row.
        generator: for the rows to swap with.
    """
    order = order.clone()
    for _ in range(_SWAPS):
        in_order = document[order]
        clashing = (in_order[1:] == in_order[:-1]).nonzero().flatten() + 1
        if not len(clashing):
            break
        partners = torch.randint(len(order), (len(clashing),), generator=generator)
        for place, partner in zip(clashing.tolist(), partners.tolist(), strict=True):
            order[[place, partner]] = order[[partner, place]]
    return order


class RowStream:
    """The rows of a source, pass after pass, the units of each pass in a new random order."""

    def __init__(self, unit_rows: Sequence[int], seed: int) -> None:
        self.unit_rows = torch.tensor(unit_rows, dtype=torch.long)
        self.n_rows = int(self.unit_rows.sum())
        self.seed = seed
        self._pass: tuple[int, Tensor, Tensor] | None = None

    def _order(self, number: int) -> tuple[Tensor, Tensor]:
        """Units of a pass in reading order, and where each ends."""
        if self._pass is None or self._pass[0] != number:
            generator = generator_of(self.seed, number, 1)
            units = torch.randperm(len(self.unit_rows), generator=generator)
            self._pass = (number, units, self.unit_rows[units].cumsum(0))
        return self._pass[1:]

    def locate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Unit and row inside it of each stream position, ``(n,)`` long, counted from 0."""
        unit, row = torch.empty_like(position), torch.empty_like(position)
        pass_number = position // self.n_rows
        for number in pass_number.unique().tolist():
            in_pass = pass_number == number
            units, ends = self._order(number)
            within = position[in_pass] - number * self.n_rows
            place = torch.searchsorted(ends, within, right=True)
            unit[in_pass] = units[place]
            row[in_pass] = within - (ends[place] - self.unit_rows[units[place]])
        return unit, row


class ShuffledBuffer:
    """Batches of a `RowSource` in a shuffled, reproducible order.

    Args:
        source: the data.
        batch_size: rows of a batch.
        buffer_rows: rows to hold, if the data has as many; see `rows_within`.
        seed: of the order.

    Raises:
        InputError: the data, or the buffer, is smaller than two batches.
    """

    def __init__(self, source: RowSource, *, batch_size: int, buffer_rows: int, seed: int) -> None:
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.stream = RowStream(source.unit_rows, seed)
        self.capacity = min(self.stream.n_rows, buffer_rows)
        self.holds_all = self.capacity == self.stream.n_rows
        if self.capacity < 2 * batch_size:
            holder = "the data has" if self.holds_all else "the buffer can hold"
            raise InputError(
                f"{holder} {self.capacity} rows, fewer than two batches of {batch_size}: make the "
                f"batch smaller, or {'add text' if self.holds_all else 'the buffer larger'}."
            )
        used = self.capacity if self.holds_all else self.capacity // 2
        self.batches_per_block = used // batch_size
        self._rows: dict[str, Tensor] = {}
        self._document = torch.empty(0)
        self._unit: tuple[int, Mapping[str, Tensor], Tensor] | None = None

    @property
    def _used(self) -> int:
        """Slots emptied by one block."""
        return self.batches_per_block * self.batch_size

    def _chosen(self, block: int) -> Tensor:
        """Slots whose rows make the batches of `block`, ``(used,)``."""
        generator = generator_of(self.seed, block, 2)
        return torch.randperm(self.capacity, generator=generator)[: self._used]

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Batches number `start`, `start` + 1, ... without end: ``(batch, d)`` by submodule."""
        block, skip = divmod(start, self.batches_per_block)
        self._fill(block)
        while True:
            chosen = self._chosen(block)
            order = apart(chosen, self._document, generator_of(self.seed, block, 3))
            for rows in order.split(self.batch_size)[skip:]:
                yield {name: value.index_select(0, rows) for name, value in self._rows.items()}
            skip = 0
            if not self.holds_all:
                self._put(chosen, self._next_rows(block))
            block += 1

    def _next_rows(self, block: int) -> Tensor:
        first = self.capacity + block * self._used
        return torch.arange(first, first + self._used)

    def _fill(self, block: int) -> None:
        """Put into the buffer what it holds when `block` begins."""
        position = torch.arange(self.capacity)
        if not self.holds_all:
            for earlier in range(block):
                position[self._chosen(earlier)] = self._next_rows(earlier)
        self._rows = {}
        self._put(torch.arange(self.capacity), position)

    def _put(self, slots: Tensor, position: Tensor) -> None:
        """Load the rows at stream positions `position` into `slots`."""
        # In the stream's order, so that the unit a refill ends in is the one the next begins with.
        position, order = position.sort()
        slots = slots[order]
        unit, row = self.stream.locate(position)
        numbers, counts = unit.unique_consecutive(return_counts=True)
        for number, in_unit in zip(
            numbers.tolist(), torch.arange(len(unit)).split(counts.tolist()), strict=True
        ):
            values, document = self._load(number)
            if not self._rows:
                self._rows = {
                    name: value.new_empty(self.capacity, value.shape[1])
                    for name, value in values.items()
                }
                self._document = document.new_empty(self.capacity)
            for name, value in values.items():
                self._rows[name][slots[in_unit]] = value[row[in_unit]]
            self._document[slots[in_unit]] = document[row[in_unit]]

    def _load(self, unit: int) -> tuple[Mapping[str, Tensor], Tensor]:
        # A refill often ends inside a unit that the next one goes on with.
        if self._unit is None or self._unit[0] != unit:
            self._unit = (unit, *self.source.load(unit))
        return self._unit[1:]
