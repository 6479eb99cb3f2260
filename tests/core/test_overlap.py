"""What circuits share, by hand and for many at once."""

from __future__ import annotations

import time

import numpy as np
import pytest

from core.errors import InputError
from core.overlap import Overlap, overlaps

ONE = {"x": 3.0, "y": 1.0}
OTHER = {"x": 1.0, "z": 1.0}


def test_two_circuits_by_hand() -> None:
    # Shares: x .75 y .25 against x .5 z .5; smaller .5, larger .75 + .25 + .5.
    assert list(overlaps([ONE, OTHER])) == [Overlap(0, 1, 1, 1 / 3, 0.5 / 1.5, 0.5, 0.5)]


def test_a_circuit_is_like_itself_at_any_scale() -> None:
    doubled = {key: 2 * size for key, size in ONE.items()}
    (pair,) = overlaps([ONE, doubled])
    assert pair[2:] == (2, 1.0, pytest.approx(1.0), 1.0, 1.0)


def test_a_part_is_contained_and_the_whole_is_not() -> None:
    (pair,) = overlaps([{"x": 1.0}, {"x": 1.0, "y": 1.0, "z": 2.0}])
    assert (pair.a_in_b, pair.b_in_a) == (1.0, 1 / 3)


def test_empty_circuits_have_no_pairs() -> None:
    assert [(p.a, p.b) for p in overlaps([ONE, {}, OTHER])] == [(0, 2)]
    assert list(overlaps([])) == list(overlaps([{}, {}])) == []


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_that_are_none_are_refused(size: float) -> None:
    with pytest.raises(InputError, match="above zero"):
        list(overlaps([{"x": size}]))


def _drawn(n: int, n_keys: int, each: int) -> list[dict[int, float]]:
    rng = np.random.default_rng(0)
    return [
        {int(k): float(rng.random() + 0.1) for k in rng.choice(n_keys, each, replace=False)}
        for _ in range(n)
    ]


def test_all_pairs_equal_sets_taken_one_by_one() -> None:
    circuits = _drawn(8, 30, 10)
    found = {(p.a, p.b): p for p in overlaps(circuits)}
    assert len(found) == 8 * 7 / 2
    for (i, j), pair in found.items():
        a, b = ({k: v / sum(c.values()) for k, v in c.items()} for c in (circuits[i], circuits[j]))
        keys = a.keys() | b.keys()
        low = sum(min(a.get(k, 0), b.get(k, 0)) for k in keys)
        high = sum(max(a.get(k, 0), b.get(k, 0)) for k in keys)
        assert pair.n_shared == len(a.keys() & b.keys())
        assert pair.jaccard == pair.n_shared / len(keys)
        assert pair.weighted == pytest.approx(low / high)


def test_the_nearest_of_each_are_kept_and_no_pair_twice() -> None:
    circuits = _drawn(12, 30, 10)
    every = {(p.a, p.b): p.weighted for p in overlaps(circuits)}
    kept = {(p.a, p.b) for p in overlaps(circuits, n_nearest=2)}
    wanted = set()
    for i in range(12):
        near = sorted((j for j in range(12) if j != i), key=lambda j: -every[min(i, j), max(i, j)])
        wanted |= {(min(i, j), max(i, j)) for j in near[:2]}
    assert kept == wanted


def test_hundreds_of_circuits_take_a_second() -> None:
    circuits = _drawn(500, 3000, 100)
    began = time.process_time()
    n = sum(1 for _ in overlaps(circuits, n_nearest=10))
    assert 2500 <= n <= 5000
    assert time.process_time() - began < 5
