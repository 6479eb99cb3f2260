"""Which numbers a batch keeps, by sorting all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.training.kinds import _EVERY, largest_left_out

N = 20_000


def _spread(generator: torch.Generator) -> dict[str, Tensor]:
    normal = torch.randn(N, generator=generator)
    hidden = -torch.rand(N, generator=generator)
    hidden[1::_EVERY] += 5.0  # none of these is looked at first
    shown = torch.rand(N, generator=generator)
    shown[::_EVERY] += 5.0  # all of these are, so that the bound is too high
    return {
        "normal": normal,
        "few distinct": normal.round(),
        "all the same": torch.ones(N),
        "large where nobody looks first": hidden,
        "large where one looks first": shown,
        "few": normal[:40],
    }


@pytest.mark.parametrize("name", _spread(torch.Generator()))
@pytest.mark.parametrize("n_kept", [1, 39, 300, 5_000, N - 1])
def test_what_is_left_out_is_that_of_all_numbers_sorted(name: str, n_kept: int) -> None:
    numbers = _spread(torch.Generator().manual_seed(0))[name]
    in_order = numbers.sort(descending=True).values
    expected = in_order[n_kept] if n_kept < len(numbers) else torch.zeros(())
    assert largest_left_out(numbers, n_kept) == expected
