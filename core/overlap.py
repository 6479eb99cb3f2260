"""What circuits have in common: of every two, the nodes or edges that both hold.

A circuit is given as the size of each of its parts, a node's |effect| or an edge's |weight|, by a
key that means the same in each. With A and B the sets of keys, a and b the sizes as shares of
their circuit's sum:

    jaccard    |A and B| / |A or B|
    weighted   sum of min(a, b) / sum of max(a, b)
    contained  |A and B| / |A|
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from core.errors import InputError


class Overlap(NamedTuple):
    """What two circuits share.

    Attributes:
        a, b: which two, by their place; a < b.
        n_shared: keys that both hold.
        jaccard, weighted: 1 where they are the same, 0 where they share nothing.
        a_in_b, b_in_a: share of the one's keys that the other holds too.
    """

    a: int
    b: int
    n_shared: int
    jaccard: float
    weighted: float
    a_in_b: float
    b_in_a: float


def overlaps(
    circuits: Sequence[Mapping[Any, float]], n_nearest: int | None = None
) -> Iterator[Overlap]:
    """What every two circuits share; circuits without parts are left out.

    Work and memory grow with the number of pairs that share a key, in numpy.

    Args:
        circuits: of each, sizes above zero by key.
        n_nearest: only pairs of which one is among the other's nearest so many, by `weighted`, then
            by place; all where None.

    Raises:
        InputError: a size that is not above zero and finite.
    """
    shares: Any = _shares(circuits)  # scipy types its indices as perhaps None
    n_keys = np.diff(shares.indptr)
    by_key = shares.tocsc()
    filled = np.flatnonzero(n_keys)
    pairs: set[tuple[int, int]] = set()
    for i in filled.tolist():
        n_shared, smaller = _with(shares, by_key, i)
        weighted = smaller / (2 - smaller)  # both sum to one, so min and max sum to two
        others = filled[filled != i]
        if n_nearest is not None and n_nearest < len(others):
            others = others[np.argsort(-weighted[others], kind="stable")[:n_nearest]]
        for j in others.tolist():
            a, b = min(i, j), max(i, j)
            if (a, b) in pairs:
                continue
            pairs.add((a, b))
            n = int(n_shared[j])
            yield Overlap(
                a=a,
                b=b,
                n_shared=n,
                jaccard=n / float(n_keys[a] + n_keys[b] - n),
                weighted=float(weighted[j]),
                a_in_b=n / float(n_keys[a]),
                b_in_a=n / float(n_keys[b]),
            )


def _with(shares: Any, by_key: Any, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys that circuit `i` shares with each, and the sum of the smaller shares, ``(n,)`` both.

    Args:
        shares, by_key: the same ``(circuit, key)``, by rows (CSR) and by columns (CSC).
    """
    own = slice(shares.indptr[i], shares.indptr[i + 1])
    held = by_key[:, shares.indices[own]]
    of_own = np.repeat(shares.data[own], np.diff(held.indptr))
    n = shares.shape[0]
    smaller = np.bincount(held.indices, np.minimum(held.data, of_own), n)
    return np.bincount(held.indices, minlength=n), smaller


def _shares(circuits: Sequence[Mapping[Any, float]]) -> sparse.csr_array:
    """A row for each circuit, a column for each key, sizes as shares of the row's sum."""
    column: dict[Any, int] = {}
    rows, columns, sizes = [], [], []
    for row, circuit in enumerate(circuits):
        for key, size in circuit.items():
            rows.append(row)
            columns.append(column.setdefault(key, len(column)))
            sizes.append(size)
    values = np.asarray(sizes, dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError(
            "sizes of nodes and edges must be above zero and finite: take absolute effects, and "
            "leave out what has none."
        )
    total = np.bincount(np.asarray(rows, dtype=int), values, len(circuits))
    values = values / total[rows] if len(values) else values
    shape = (len(circuits), max(1, len(column)))
    return sparse.csr_array((values, (rows, columns)), shape=shape)
