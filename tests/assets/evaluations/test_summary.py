"""The thresholds of curves, and what a curve says in one number, worked out by hand."""

from __future__ import annotations

import math

import pytest

from assets.evaluations.stages import thresholds
from assets.evaluations.summary import area_of, at_100, nodes_for
from assets.settings import EvaluationSettings

CURVE = [
    {"n_nodes": n_nodes, "faithfulness": faithfulness}
    for n_nodes, faithfulness in ((10, 1.0), (5, 0.8), (1, 0.2))
]


def test_thresholds_rise_by_equal_ratios() -> None:
    papers = EvaluationSettings(n_thresholds=15, lowest_threshold=1e-4, highest_threshold=1)
    found = thresholds(papers)
    assert found[0] == pytest.approx(1e-4)
    assert found[-1] == pytest.approx(1.0)
    assert found[7] == pytest.approx(1e-2)
    assert len(found) == 15


def test_the_fewest_nodes_with_a_share_of_the_behaviour() -> None:
    assert (nodes_for(CURVE, 0.5), nodes_for(CURVE, 0.9), nodes_for(CURVE, 1.1)) == (5, 10, None)


def test_the_area_is_that_under_straight_lines_from_no_node_to_all() -> None:
    by_hand = 0.1 * (0 + 0.2) / 2 + 0.4 * (0.2 + 0.8) / 2 + 0.5 * (0.8 + 1.0) / 2
    assert area_of(CURVE) == pytest.approx(by_hand)


@pytest.mark.parametrize("changed", [{"n_nodes": 0}, {"faithfulness": math.nan}])
def test_a_curve_of_nothing_has_no_area(changed: dict[str, float]) -> None:
    assert math.isnan(area_of([{**point, **changed} for point in CURVE]))


def test_a_hundred_nodes_or_all_where_there_are_fewer() -> None:
    assert at_100(CURVE) == 1.0
    more = [{"n_nodes": 1000, "faithfulness": 0.0}, *CURVE]
    assert at_100(more) == pytest.approx(0.5)
    assert at_100([{"n_nodes": 200, "faithfulness": 0.9}]) is None
    assert at_100([]) is None
