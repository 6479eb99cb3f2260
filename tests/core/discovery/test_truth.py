"""Recovery of known behaviours, on partitions worked out by hand."""

import numpy as np
import pytest

from core.discovery import compare_with_truth
from core.errors import InputError


def test_the_same_partition_is_recovered_fully_whatever_the_numbers() -> None:
    found = compare_with_truth(np.array([2, 2, 0, 0, 1]), ["a", "a", "b", "b", "c"])
    assert (found.ami, found.purity) == (pytest.approx(1), 1)


def test_one_cluster_of_everything_tells_nothing() -> None:
    found = compare_with_truth(np.zeros(6, dtype=int), ["a", "a", "a", "a", "b", "c"])
    assert found.ami == pytest.approx(0, abs=1e-12)
    assert found.purity == pytest.approx(4 / 6)


def test_each_behaviour_names_the_clusters_that_hold_it() -> None:
    found = compare_with_truth(np.array([0, 0, 0, 1, 1, 1]), ["a", "a", "b", "b", "b", "b"])
    assert found.purity == pytest.approx(5 / 6)
    assert found.behaviours["a"] == [(0, 2, 1.0, pytest.approx(2 / 3))]
    assert found.behaviours["b"] == [
        (1, 3, 0.75, 1.0),
        (0, 1, 0.25, pytest.approx(1 / 3)),
    ]


@pytest.mark.parametrize("truth", [[], ["a"]])
def test_samples_without_a_known_behaviour_are_refused(truth: list[str]) -> None:
    with pytest.raises(InputError, match="each sample needs both"):
        compare_with_truth(np.zeros(len(truth) * 2, dtype=int), truth)
