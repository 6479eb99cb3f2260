"""How well clusters recover what is known to have generated each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.errors import InputError


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
        ami: adjusted mutual information: 1 the same partition, 0 what chance would give.
        purity: share of samples that are of their cluster's commonest behaviour.
        behaviours: the clusters that hold each behaviour, those with most of it first.
    """

    ami: float
    purity: float
    behaviours: dict[str, list[BehaviourShare]]


def compare_with_truth(labels: np.ndarray, truth: Sequence[str]) -> Recovery:
    """Compare clusters with the behaviour that generated each sample.

    Args:
        labels: ``(sample,)`` cluster numbers.
        truth: ``(sample,)`` names of behaviours.

    Raises:
        InputError: the two differ in length, or are empty.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if len(labels) != len(truth) or len(truth) == 0:
        raise InputError(
            f"{len(labels)} samples have a cluster and {len(truth)} a known behaviour: each "
            "sample needs both."
        )
    pairs = Counter(zip(truth, labels.tolist(), strict=True))
    sizes, totals = Counter(labels.tolist()), Counter(truth)
    largest = Counter[int]()
    behaviours: dict[str, list[BehaviourShare]] = {name: [] for name in sorted(totals)}
    for (name, number), n in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        share = BehaviourShare(number, n, n / totals[name], n / sizes[number])
        behaviours[name].append(share)
        largest[number] = max(largest[number], n)
    ami = float(adjusted_mutual_info_score(list(truth), labels))
    return Recovery(ami, sum(largest.values()) / len(truth), behaviours)
