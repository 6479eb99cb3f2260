"""How well clusters recover what is known to have generated each sample.

The answer token alone says most about its behaviour, so clusters that merely sort by answer score
well against the behaviours. Agreement within answers asks what they know beyond it:

    within = sum_a n_a AMI(cluster, behaviour | answer a) / sum_a n_a

over the answers that at least two behaviours give at least `_SHARED` times each, n_a being the
samples of those behaviours. One cluster for each answer has 0, the behaviours themselves have 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.errors import InputError

_SHARED = 5
"""A behaviour with fewer samples of an answer does not count as sharing it: where one or two of
hundreds differ, chance decides the whole score."""


class BehaviourShare(NamedTuple):
    """A cluster that holds samples of a behaviour.

    ``n`` of them; ``of_behaviour`` and ``of_cluster`` are n as shares of either.
    """

    cluster: int
    n: int
    of_behaviour: float
    of_cluster: float


@dataclass(frozen=True)
class Recovery:
    """Clusters against the behaviours that generated their samples.

    Attributes:
        ami: adjusted mutual information with the behaviours: 1 the same partition, 0 what chance
            would give.
        ami_with_answer: the same with pairs of behaviour and answer.
        ami_within_answers: agreement within answers that behaviours share, see above; NaN where
            there is none such.
        purity: share of samples that are of their cluster's commonest behaviour.
        behaviours: the clusters that hold each behaviour, those with most of it first.
    """

    ami: float
    ami_with_answer: float
    ami_within_answers: float
    purity: float
    behaviours: dict[str, list[BehaviourShare]]


def compare_with_truth(
    labels: np.ndarray, truth: Sequence[str], answers: Sequence[int]
) -> Recovery:
    """Compare clusters with the behaviour that generated each sample.

    Args:
        labels: ``(sample,)`` cluster numbers.
        truth: ``(sample,)`` names of behaviours.
        answers: ``(sample,)`` token ids.

    Raises:
        InputError: the three differ in length, or are empty.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if not len(labels) == len(truth) == len(answers) or len(truth) == 0:
        raise InputError(
            f"{len(labels)} samples have a cluster, {len(truth)} a known behaviour and "
            f"{len(answers)} an answer: each sample needs all three."
        )
    pairs = Counter(zip(truth, labels.tolist(), strict=True))
    sizes, totals = Counter(labels.tolist()), Counter(truth)
    largest = Counter[int]()
    behaviours: dict[str, list[BehaviourShare]] = {name: [] for name in sorted(totals)}
    for (name, number), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        share = BehaviourShare(number, n, n / totals[name], n / sizes[number])
        behaviours[name].append(share)
        largest[number] = max(largest[number], n)
    both = [f"{answer} {name}" for answer, name in zip(answers, truth, strict=True)]
    return Recovery(
        ami=float(adjusted_mutual_info_score(list(truth), labels)),
        ami_with_answer=float(adjusted_mutual_info_score(both, labels)),
        ami_within_answers=_within_answers(labels, np.asarray(truth), np.asarray(answers)),
        purity=sum(largest.values()) / len(truth),
        behaviours=behaviours,
    )


def _within_answers(labels: np.ndarray, truth: np.ndarray, answers: np.ndarray) -> float:
    """Mean agreement among the samples of one answer, by samples; see the top of this file."""
    from sklearn.metrics import adjusted_mutual_info_score

    total, n = 0.0, 0
    for answer in np.unique(answers):
        samples = np.flatnonzero(answers == answer)
        names, counts = np.unique(truth[samples], return_counts=True)
        sharing = names[counts >= _SHARED]
        if len(sharing) > 1:
            samples = samples[np.isin(truth[samples], sharing)]
            score = adjusted_mutual_info_score(truth[samples], labels[samples])
            total, n = total + len(samples) * float(score), n + len(samples)
    return total / n if n else float("nan")
