"""Intervals over draws of the examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.evaluate import Evaluator
from core.intervals import draw_shares, interval
from core.types import Node
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries


def test_an_interval_is_what_numpy_finds_from_the_same_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    kept, whole = torch.rand(2, 12, generator=generator, dtype=torch.float64) + 0.5
    low, high = interval(draw_shares(12, seed=3), lambda s: (s @ kept) / (s @ whole))
    drawn = torch.randint(12, (1_000, 12), generator=torch.Generator().manual_seed(3)).numpy()
    ratios = kept.numpy()[drawn].mean(1) / whole.numpy()[drawn].mean(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-12)
    assert low < float(kept.mean() / whole.mean()) < high


def test_intervals_narrow_with_the_root_of_the_number_of_examples() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    widths = []
    for n in (100, 400):
        low, high = interval(draw_shares(n), lambda shares, n=n: shares @ values[:n])
        widths.append(high - low)
    # 2 x 1.96 standard errors.
    assert widths[1] == pytest.approx(3.92 * float(values.std()) / 20, rel=0.1)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)


def test_examples_that_agree_leave_no_doubt_and_a_single_one_says_nothing() -> None:
    same = interval(draw_shares(5), lambda shares: shares.sum(1))
    assert same == pytest.approx((1, 1))
    assert all(math.isnan(end) for end in interval(draw_shares(1), lambda shares: shares.sum(1)))
    with pytest.raises(InputError, match="no example to draw from"):
        draw_shares(0)


def test_faithfulness_lies_in_its_interval_which_does_not_depend_on_batches() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs(6)
    nodes = [Node("resid_1", i, None, 1.0) for i in range(12)]
    found = [
        Evaluator(model, random_dictionaries(model), inputs, budget_bytes=budget).evaluate(nodes)
        for budget in (2 << 30, 1 << 16)
    ]
    assert found[0].faithfulness_low < found[0].faithfulness < found[0].faithfulness_high
    assert found[1].faithfulness_low == pytest.approx(found[0].faithfulness_low, abs=1e-10)


def test_one_example_has_no_interval() -> None:
    model = make_model("gpt_neox")
    found = Evaluator(model, random_dictionaries(model), make_single(1)).evaluate([])
    assert found.faithfulness == 0
    assert math.isnan(found.faithfulness_low)
    assert math.isnan(found.faithfulness_high)
