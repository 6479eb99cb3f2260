"""Recovery of known behaviours, on partitions worked out by hand."""

import math

import numpy as np
import pytest

from core.discovery import compare_with_truth
from core.errors import InputError


def test_the_same_partition_is_recovered_fully_whatever_the_numbers() -> None:
    found = compare_with_truth(np.array([2, 2, 0, 0, 1]), ["a", "a", "b", "b", "c"], [7] * 5)
    assert (found.ami, found.purity) == (pytest.approx(1), 1)


def test_one_cluster_of_everything_tells_nothing() -> None:
    truth = ["a", "a", "a", "a", "b", "c"]
    found = compare_with_truth(np.zeros(6, dtype=int), truth, [7] * 6)
    assert found.ami == pytest.approx(0, abs=1e-12)
    assert found.purity == pytest.approx(4 / 6)


def test_each_behaviour_names_the_clusters_that_hold_it() -> None:
    truth = ["a", "a", "b", "b", "b", "b"]
    found = compare_with_truth(np.array([0, 0, 0, 1, 1, 1]), truth, [7] * 6)
    assert found.purity == pytest.approx(5 / 6)
    assert found.behaviours["a"] == [(0, 2, 1.0, pytest.approx(2 / 3))]
    assert found.behaviours["b"] == [
        (1, 3, 0.75, 1.0),
        (0, 1, 0.25, pytest.approx(1 / 3)),
    ]


@pytest.mark.parametrize(("truth", "answers"), [([], []), (["a"], [7, 7]), (["a", "a"], [7])])
def test_samples_without_a_known_behaviour_or_answer_are_refused(
    truth: list[str], answers: list[int]
) -> None:
    with pytest.raises(InputError, match="each sample needs all three"):
        compare_with_truth(np.zeros(2, dtype=int) if truth else np.zeros(0), truth, answers)


# Answer 1 is given by a and b, answer 2 by a and c, answer 3 by c alone.
TRUTH = np.array(["a", "b"] * 6 + ["a", "c"] * 5 + ["c"] * 8)
ANSWERS = [1] * 12 + [2] * 10 + [3] * 8


def within(labels: np.ndarray, truth: np.ndarray = TRUTH) -> float:
    return compare_with_truth(labels, truth.tolist(), ANSWERS).ami_within_answers


def test_sorting_by_answer_agrees_with_everything_but_within_answers() -> None:
    found = compare_with_truth(np.array(ANSWERS), TRUTH.tolist(), ANSWERS)
    assert found.ami > 0.3
    assert found.ami_with_answer > 0.5
    assert found.ami_within_answers == pytest.approx(0, abs=1e-9)


def test_the_behaviours_themselves_agree_fully_within_answers() -> None:
    assert within(np.unique(TRUTH, return_inverse=True)[1]) == pytest.approx(1)


def test_answers_count_by_their_samples() -> None:
    # Answer 1 is told apart, answer 2 is not; answer 3 has nothing to tell apart.
    labels = np.where(np.array(ANSWERS) == 1, TRUTH == "b", 5)
    assert within(labels) == pytest.approx(12 / 22)


def test_a_behaviour_with_few_samples_of_an_answer_does_not_share_it() -> None:
    labels = np.unique(TRUTH, return_inverse=True)[1]
    truth = TRUTH.copy()
    truth[:4] = "d"  # four samples of answer 1, which a and b still share
    assert within(labels, truth) == pytest.approx(1)
    truth[:8] = "a"  # now only two of b are left there: answer 2 is the only one shared
    truth[12] = "c"
    labels[12] = 99
    assert math.isnan(within(labels, truth))
