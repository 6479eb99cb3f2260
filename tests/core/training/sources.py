"""Small sources of activations whose every row says where it is from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Rows:
    """Units of consecutive rows; a document every `per_document` rows."""

    def __init__(
        self, values: dict[str, Tensor], unit_rows: Sequence[int], per_document: int = 4
    ) -> None:
        self.values = values
        self.unit_rows = list(unit_rows)
        self.per_document = per_document
        self.widths = {name: value.shape[1] for name, value in values.items()}
        self.fingerprint = "rows"
        self.n_loaded = 0

    def load(self, unit: int) -> tuple[dict[str, Tensor], Tensor]:
        self.n_loaded += 1
        first = sum(self.unit_rows[:unit])
        rows = slice(first, first + self.unit_rows[unit])
        document = torch.arange(first, rows.stop) // self.per_document
        return {name: value[rows] for name, value in self.values.items()}, document


def numbered(unit_rows: Sequence[int], per_document: int = 4) -> Rows:
    """Rows whose value is their number, the second submodule's with 0.5 added."""
    number = torch.arange(sum(unit_rows), dtype=torch.float32)[:, None]
    return Rows({"embed": number, "resid_0": number + 0.5}, unit_rows, per_document)


def sparse_mixtures(n: int = 4096, d: int = 8, n_directions: int = 12, seed: int = 0) -> Rows:
    """Sums of a few of some directions, at two very different scales."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_directions, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    amount = torch.rand(n, n_directions, generator=generator)
    amount *= torch.rand(n, n_directions, generator=generator) < 0.15
    x = amount @ directions
    return Rows({"embed": x, "resid_0": 50 * x + 3}, [512] * (n // 512), per_document=1)


def only(source: Rows, names: Sequence[str]) -> Rows:
    """Some submodules of a source."""
    values = {name: source.values[name] for name in names}
    return Rows(values, source.unit_rows, source.per_document)
