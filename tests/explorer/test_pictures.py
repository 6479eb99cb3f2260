"""Figures beside a picture: what a slider says is what the tables hold."""

import math

import pytest

from explorer.pages import bars, figure, island, link, shade
from explorer.pictures import curves_of, interpolated, plot, shared, slider


def test_a_slider_counts_what_is_larger_at_each_step():
    values = [0.1, -0.2, 0.4, 0.0, -0.8]
    steps = slider(values, n_steps=7)
    for threshold, n in zip(steps.thresholds, steps.counts, strict=True):
        assert n == sum(abs(value) > threshold for value in values)
    assert steps.counts[0] == 4
    assert steps.counts[-1] == 1
    assert slider([]) == ([0.0], [0])
    assert slider([0.0]).counts == [0]


def test_faithfulness_is_interpolated_in_the_logarithm_of_the_threshold():
    curve = [(0.01, 100, 1.0), (1.0, 1, 0.0)]
    assert interpolated(curve, [0.01, 0.1, 1.0]) == [1.0, 0.5, 0.0]
    assert interpolated(curve, [0.001, 2.0]) == [None, None]
    assert interpolated([], [0.1]) == [None]


def test_the_circuit_itself_is_a_point_of_its_curve():
    rows = [
        {"error_nodes": "drop", "threshold": None, "n_nodes": 5, "faithfulness": 0.7},
        {"error_nodes": "drop", "threshold": 0.5, "n_nodes": 2, "faithfulness": math.nan},
        {"error_nodes": "drop", "threshold": 0.01, "n_nodes": 9, "faithfulness": 0.9},
    ]
    assert curves_of(rows, 0.1) == {"drop": [(0.01, 9, 0.9), (0.1, 5, 0.7)]}
    assert curves_of(rows) == {"drop": [(0.01, 9, 0.9)]}


def test_a_plot_holds_every_point_within_its_area():
    found = plot({"drop": [(0.01, 900, 40.0), (0.1, 5, 0.7), (1.0, 0, -9.0)]})
    assert found is not None
    for point in found.lines["drop"].split():
        x, y = map(float, point.split(","))
        assert found.left <= x <= found.width
        assert 0 <= y <= found.bottom
    assert plot({}) is None


def test_what_two_circuits_share():
    found = shared({"a": 3.0, "b": 4.0}, {"b": 2.0, "c": 1.0})
    assert found.features == [("b", 4.0, 2.0)]
    assert found.n_only == (1, 1)
    assert found.jaccard == pytest.approx(1 / 3)
    assert found.cosine == pytest.approx(8 / (5 * math.sqrt(5)))
    assert math.isnan(shared({}, {"a": 1.0}).cosine)
    assert math.isnan(shared({}, {}).jaccard)


def test_figures_are_written_alike():
    assert [figure(x) for x in (0.123, -0.001, -1.5, None, math.inf)] == [
        "0.12", "0.00", "\u22121.50", "\u2013", "\u2013",
    ]  # fmt: skip
    assert [shade(x, 2.0) for x in (0.0, -1.0, 0.01, 1.0, 2.0, 3.0)] == [0, 0, 1, 4, 8, 8]
    assert shade(1.0, 0.0) == 0
    assert bars([0, 0]) == []
    assert bars([4, 1], 10.0, 8.0) == [(0.0, 0.0, 4.0, 8.0), (5.0, 4.0, 4.0, 4.0)]


def test_addresses_and_data_are_escaped():
    assert link("/a b/c", {"q": "<&>"}, page="") == "/a%20b/c?q=%3C%26%3E"
    assert (
        str(island({"a": "</script>&'\u2028"}))
        == '{"a": "\\u003c/script\\u003e\\u0026\\u0027\\u2028"}'
    )
    with pytest.raises(ValueError, match="JSON"):
        island(math.nan)
