"""The active (token, feature) pairs of a batch, and the four products training needs of them.

A trained dictionary has about 3% of its features active, so all but the encoder's own product can
run over the active pairs alone. `SparseEntries` does; `DenseEntries` does the same by matrix
products while many features are still active. Numbers attached to pairs ("weights" below) are
``(n,)`` for the first and ``(batch, feature)``, zero elsewhere, for the second.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.sparse import count_true, csr_products, ends_of, order_of, true_places

# Measured: above this density the dense products are faster, on one core of AVX-512.
DENSE_ABOVE = 0.15


class Entries(Protocol):
    """Active pairs of a batch."""

    def take(self, dense: Tensor) -> Tensor:
        """The numbers that a ``(batch, feature)`` tensor has at the pairs."""
        ...

    def of_feature(self, vector: Tensor) -> Tensor:
        """For each pair the number that a ``(feature,)`` vector has for its feature."""
        ...

    def decode(self, weight: Tensor, rows: Tensor) -> Tensor:
        """Sum over features of weight * rows[feature]: ``(batch, d)`` for rows ``(feature, d)``."""
        ...

    def products(self, left: Tensor, rows: Tensor) -> Tensor:
        """<left[token], rows[feature]> of each pair, for ``(batch, d)`` and ``(feature, d)``."""
        ...

    def outer(self, weight: Tensor, left: Tensor) -> Tensor:
        """Sum over tokens of weight * left[token]: ``(feature, d)`` for left ``(batch, d)``."""
        ...

    def per_feature(self, weight: Tensor) -> Tensor:
        """Sum over tokens of the weights, ``(feature,)``."""
        ...

    def count(self) -> Tensor:
        """Number of pairs of each feature, ``(feature,)`` long."""
        ...


def entries_of(mask: Tensor) -> Entries:
    """The True pairs of `mask`, ``(batch, feature)``, in the faster representation."""
    many = count_true(mask) > DENSE_ABOVE * mask.numel()
    return DenseEntries(mask) if many else SparseEntries(mask)


class SparseEntries:
    """Pairs listed by token, then feature.

    `index_select` throughout: on a CPU it takes a quarter of the time of indexing.

    Attributes:
        place: ``(n,)`` long, index into the flattened batch.
        token, feature: ``(n,)`` long.
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = (mask.shape[0], mask.shape[1])
        self.place = true_places(mask)
        self.token = torch.div(self.place, self.shape[1], rounding_mode="floor")
        self.feature = self.place - self.token * self.shape[1]
        self._ends = ends_of(self.token, self.shape[0])
        self._sorted: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, dense: Tensor) -> Tensor:
        """See `Entries`."""
        return dense.view(-1).index_select(0, self.place)

    def of_feature(self, vector: Tensor) -> Tensor:
        """See `Entries`."""
        return vector.index_select(0, self.feature)

    def decode(self, weight: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        starts = self._ends[:-1]
        return F.embedding_bag(self.feature, rows, starts, mode="sum", per_sample_weights=weight)

    def products(self, left: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        return csr_products(self._ends, self.feature, left, rows)

    def _by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order by feature, its tokens, and where each feature starts."""
        if self._sorted is None:
            order = order_of(self.feature, self.shape[1])
            counts = self.count()
            token = self.token.index_select(0, order)
            self._sorted = (order, token, counts.cumsum(0) - counts)
        return self._sorted

    def outer(self, weight: Tensor, left: Tensor) -> Tensor:
        """See `Entries`."""
        order, token, starts = self._by_feature()
        return F.embedding_bag(
            token, left, starts, mode="sum", per_sample_weights=weight.index_select(0, order)
        )

    def per_feature(self, weight: Tensor) -> Tensor:
        """See `Entries`."""
        return weight.new_zeros(self.shape[1]).index_add_(0, self.feature, weight)

    def count(self) -> Tensor:
        """See `Entries`."""
        return torch.bincount(self.feature, minlength=self.shape[1])


class DenseEntries:
    """Pairs as a mask ``(batch, feature)``."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def take(self, dense: Tensor) -> Tensor:
        """See `Entries`."""
        return dense * self.mask

    def of_feature(self, vector: Tensor) -> Tensor:
        """See `Entries`."""
        return vector * self.mask

    def decode(self, weight: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        return weight @ rows

    def products(self, left: Tensor, rows: Tensor) -> Tensor:
        """See `Entries`."""
        return (left @ rows.t()).mul_(self.mask)

    def outer(self, weight: Tensor, left: Tensor) -> Tensor:
        """See `Entries`."""
        return weight.t() @ left

    def per_feature(self, weight: Tensor) -> Tensor:
        """See `Entries`."""
        return weight.sum(0)

    def count(self) -> Tensor:
        """See `Entries`."""
        return self.mask.sum(0)
