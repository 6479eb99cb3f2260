"""Places of True entries and products over pairs, against torch's own."""

import math

import pytest
import torch

from core.sparse import (
    above,
    add_at,
    count_true,
    order_of,
    products,
    true_places,
)


@pytest.mark.parametrize("shape", [(4, 16), (3, 5), (1, 8), (7,), (0, 8), (2, 0)])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_places_are_those_of_torch(shape: tuple[int, ...], density: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    places = true_places(mask)
    assert places.dtype == torch.long
    assert torch.equal(places, mask.flatten().nonzero().flatten())
    assert count_true(mask) == len(places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_above_a_bound_is_what_torch_says(dtype: torch.dtype) -> None:
    values = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    for bound in (values[2, 7], 0.0, math.inf, values.new_tensor(math.nan)):
        assert torch.equal(above(values, bound), values > bound)


@pytest.mark.parametrize("n", [40, 1 << 16])
def test_numbers_are_ordered_as_torch_orders_them(n: int) -> None:
    numbers = torch.randint(n, (500,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(order_of(numbers, n), numbers.argsort(stable=True))


def test_a_part_of_a_larger_mask_is_read_alone() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1, 3] = mask[3, 7] = True
    assert true_places(mask[2:]).tolist() == [15]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", ["by token", "any", "none"])
def test_products_are_those_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, order: str
) -> None:
    monkeypatch.setattr("core.sparse._AT_ONCE", 3)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(5, 4, generator=generator).to(dtype)
    rows = torch.randn(7, 4, generator=generator).to(dtype)
    token, feature = (torch.rand(5, 7, generator=generator) < 0.4).nonzero(as_tuple=True)
    if order == "any":
        token, feature = token.flip(0), feature.flip(0)
    elif order == "none":
        token, feature = token[:0], feature[:0]
    dense = (left.double() @ rows.double().T)[token, feature]
    found = products(token, feature, left, rows)
    assert found.dtype == dtype
    wide = dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), dense, rtol=0.02 if wide else 1e-5, atol=0.05 if wide else 1e-6
    )


def test_adding_at_indices_that_repeat_is_a_loop_over_them() -> None:
    index, value = (
        torch.tensor([2, 0, 2, 2]),
        torch.tensor([1.0, 0.5, 1e-3, -1.0], dtype=torch.double),
    )
    expected = [0.0, 0.0, 0.0]
    for i, v in zip(index.tolist(), value.tolist(), strict=True):
        expected[i] += v
    total = torch.zeros(3, dtype=torch.double)
    assert add_at(total, index, value) is total
    assert total.tolist() == expected  # to the last bit: 1 + 1e-3 - 1 is not 1e-3
