"""Places of True entries, against torch's own."""

import pytest
import torch

from core.nonzero import count_true, true_places


@pytest.mark.parametrize("shape", [(4, 16), (3, 5), (1, 8), (7,), (0, 8), (2, 0)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_places_are_those_of_torch(shape: tuple[int, ...], density: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    places = true_places(mask)
    assert places.dtype == torch.long
    assert torch.equal(places, mask.flatten().nonzero().flatten())
    assert count_true(mask) == len(places)


def test_a_part_of_a_larger_mask_is_read_alone() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1, 3] = mask[3, 7] = True
    assert true_places(mask[2:]).tolist() == [15]
