"""Few active (token, feature) pairs among many: which they are, and products over them alone.

On a CPU these take a fraction of the time of torch's comparisons, ``nonzero`` and sorting, and of
gathering rows.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 1 << 16  # pairs whose rows are gathered at a time

with warnings.catch_warnings():
    # The first CSR tensor of a process warns that they are in beta; the one product used here has
    # its own test.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], torch.zeros(0, dtype=torch.long), torch.zeros(0), (1, 1))


def count_true(mask: Tensor) -> int:
    """How many entries are True."""
    on_cpu = mask.device.type == "cpu"
    return int(np.count_nonzero(mask.numpy()) if on_cpu else mask.count_nonzero())


def above(values: Tensor, bound: Tensor | float) -> Tensor:
    """``values > bound``, for float32 or float64 and one bound, ``()`` or a number."""
    if values.device.type != "cpu":
        return values > bound
    return torch.from_numpy(values.numpy() > float(bound))


def true_places(mask: Tensor) -> Tensor:
    """Flat indices of the True entries, ascending: ``mask.flatten().nonzero().flatten()``.

    Args:
        mask: bool, of any shape, contiguous.

    Returns:
        ``(n,)`` long.
    """
    flat = mask.view(-1)
    if flat.device.type != "cpu" or flat.numel() % 8:
        return _nonzero(flat)
    # Eight flags are one 64-bit word, and most words are zero: look inside the others only.
    words = flat.view(torch.int64)
    busy = _nonzero(words != 0)
    inside = _nonzero(words.index_select(0, busy).view(torch.bool))
    return busy.index_select(0, inside >> 3).mul_(8).add_(inside & 7)


def _nonzero(flags: Tensor) -> Tensor:
    if flags.device.type != "cpu":
        return flags.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(flags.numpy()))


def order_of(numbers: Tensor, n: int) -> Tensor:
    """What sorts ``(n_numbers,)`` whole numbers from 0 to `n` - 1, equal ones as they stand.

    Where they fit into 16 bits, they are sorted as such: that takes a third of the time.
    """
    if n > 1 << 15:
        return numbers.to(torch.int32).argsort(stable=True)
    keys = numbers.to(torch.int16)
    if keys.device.type != "cpu":
        return keys.argsort(stable=True)
    return torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))


def add_at(total: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """total[index] += value in place, index by index in the order given, on every device.

    Args:
        total: ``(m, ...)``.
        index: ``(n,)``; an index may repeat.
        value: ``(n, ...)``.

    Returns:
        `total`.
    """
    if total.is_cuda:
        # Sorted by index first; index_add_ adds in whatever order threads finish.
        return total.index_put_((index,), value, accumulate=True)
    return total.index_add_(0, index, value)


def ends_of(token: Tensor, n_tokens: int) -> Tensor:
    """Where the pairs of each token begin, and where the last one's end: ``(n_tokens + 1,)``.

    Args:
        token: ``(n,)`` long, ascending.
    """
    counts = torch.bincount(token, minlength=n_tokens)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def csr_products(ends: Tensor, feature: Tensor, left: Tensor, rows: Tensor) -> Tensor:
    """<left[token], rows[feature]> of pairs listed by token.

    Args:
        ends: as `ends_of` gives them.
        feature: ``(n,)`` long.
        left: ``(token, d)``.
        rows: ``(feature, d)``.

    Returns:
        ``(n,)``.
    """
    shape = (len(left), len(rows))
    zeros = left.new_zeros(len(feature))
    pattern = torch.sparse_csr_tensor(ends, feature, zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left, rows.t(), beta=0.0).values()


def products(token: Tensor, feature: Tensor, left: Tensor, rows: Tensor) -> Tensor:
    """<left[token], rows[feature]> of each pair, in any order and on any device.

    Args:
        token, feature: ``(n,)`` long.
        left: ``(token, d)``.
        rows: ``(feature, d)``, of the same number type.

    Returns:
        ``(n,)``.
    """
    by_token = len(token) > 0 and bool((token[1:] >= token[:-1]).all())
    if by_token and left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64):
        return csr_products(ends_of(token, len(left)), feature, left, rows)
    out = left.new_empty(len(token))
    for start in range(0, len(token), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        out[part] = torch.linalg.vecdot(rows[feature[part]], left[token[part]])
    return out
