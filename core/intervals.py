"""How far a ratio of means would move with other examples: the bootstrap (Efron 1979).

Examples are drawn with replacement, as many as there are, and the ratio is taken again from each
draw. The interval holds the middle share of what comes out. It says how the examples at hand
scatter: of fewer than about ten they seldom show the whole spread, and it is then too narrow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import InputError

DRAWS = 1_000
"""Draws of an interval."""

LEVEL = 0.95
"""The share of them that it holds."""


def draw_shares(n_examples: int, *, n_draws: int = DRAWS, seed: int = 0) -> Tensor:
    """What share each example has in each draw, ``(draw, example)`` in float64; rows sum to 1.

    Args:
        seed: of the draws; the same examples and seed give the same draws.

    Raises:
        InputError: no example.
    """
    if n_examples < 1:
        raise InputError("there is no example to draw from.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_examples, (n_draws, n_examples), generator=generator)
    counts = torch.zeros(n_draws, n_examples, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts / n_examples


def interval(shares: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """The middle `LEVEL` of a statistic over draws of the examples (percentile bootstrap).

    Args:
        shares: from `draw_shares`.
        statistic: of each draw, ``(draw, example)`` to ``(draw,)``.

    Returns:
        Its lower and upper end; NaN where there is one example, which says nothing of others.
    """
    if shares.shape[1] < 2:
        return float("nan"), float("nan")
    of_draws = statistic(shares)
    of_draws = of_draws[of_draws.isfinite()]
    if not len(of_draws):
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = of_draws.quantile(torch.tensor([tail, 1 - tail], dtype=of_draws.dtype)).tolist()
    return low, high
