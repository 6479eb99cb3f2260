"""Probes over seeds, of the model as it is and edited, and how each does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from assets.shift.edits import Edit
from assets.shift.probe import Score, TextSet, Training, score
from assets.shift.texts import AMBIGUOUS, TEST, TRAIN

if TYPE_CHECKING:
    from torch import Tensor

    from core.probe import Probe


@dataclass(frozen=True)
class Outcome:
    """How one probe did."""

    method: str
    probe: Literal["trained", "centred", "retrained"]
    is_control: bool
    seed: int
    score: Score
    n_ablated: float


@dataclass(frozen=True)
class Probes:
    """Probes trained on ambiguous texts, one for each seed, and how they are scored.

    Attributes:
        training: how they are trained.
        sets: the labelled texts.
        pooled: what the probes read of each set, of the model as it is.
        of_seed: the probes.
    """

    training: Training
    sets: Mapping[str, TextSet]
    pooled: Mapping[str, Tensor]
    of_seed: Mapping[int, Probe]

    def train(self, pooled: Tensor, name: str, seed: int) -> Probe:
        """A probe of one set's texts, drawn with replacement."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(pooled), (len(pooled),), generator=generator)
        return self.training.train(pooled[rows], self.sets[name].label[rows], seed)

    def score(self, probe: Probe, pooled: Tensor) -> Score:
        """How a probe does on the texts to judge on."""
        return score(probe, pooled, self.sets[TEST])

    def unedited(self, concepts: Tensor | None) -> Iterator[Outcome]:
        """Probes of the model as it is: the original, the oracle, and the concept bottleneck."""
        for seed, probe in self.of_seed.items():
            own = self.score(probe, self.pooled[TEST])
            yield Outcome("original", "trained", False, seed, own, 0)
            oracle = self.train(self.pooled[TRAIN], TRAIN, seed)
            yield Outcome(
                "oracle", "trained", False, seed, self.score(oracle, self.pooled[TEST]), 0
            )
            if concepts is not None:
                learnt, judged = bottleneck(self.pooled, concepts)
                probe = self.train(learnt, AMBIGUOUS, seed)
                yield Outcome(
                    "concept_bottleneck", "trained", False, seed, self.score(probe, judged), 0
                )

    def edited(
        self, edit: Edit, learnt: Tensor, judged: Tensor, n_ablated: float
    ) -> Iterator[Outcome]:
        """The three probes of an edited model.

        Args:
            learnt, judged: what they read of the ambiguous texts, and of those to judge on.
        """
        for seed in edit.seeds:
            probe = self.of_seed[seed]
            probes: dict[Any, Probe] = {
                "trained": probe,
                "centred": probe.centred(learnt),
                "retrained": self.train(learnt, AMBIGUOUS, seed),
            }
            for name, one in probes.items():
                own = self.score(one, judged)
                yield Outcome(edit.method, name, edit.is_control, seed, own, n_ablated)


def bottleneck(pooled: Mapping[str, Tensor], concepts: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities with concepts of texts to learn from and to judge on.

    All are near one another, so they are put on one scale, that of the ambiguous texts.
    """
    from core.probe import similarities

    learnt, judged = (similarities(pooled[name], concepts) for name in (AMBIGUOUS, TEST))
    middle, scale = learnt.mean(0), learnt.std(0).clamp(min=1e-8)
    return (learnt - middle) / scale, (judged - middle) / scale


def summary(found: Sequence[Outcome], counted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Mean and spread over seeds of each method and probe, in the order they came in."""
    of: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in found:
        of.setdefault((outcome.method, outcome.probe), []).append(outcome)
    for (method, probe), own in of.items():
        figures = {
            "label_accuracy": [o.score.label for o in own],
            "attribute_accuracy": [o.score.attribute for o in own],
            "worst_group": [o.score.worst_group for o in own],
        }
        yield {
            "method": method,
            "probe": probe,
            "is_control": own[0].is_control,
            **{name: mean(values) for name, values in figures.items()},
            **{f"{name}_sd": stdev(values) for name, values in figures.items()},
            "n_seeds": len(own),
            "n_ablated": mean(o.n_ablated for o in own),
            **counted,
        }


def seed_row(outcome: Outcome) -> dict[str, Any]:
    """A row of the table `shift_seeds`."""
    return {
        "method": outcome.method,
        "probe": outcome.probe,
        "seed": outcome.seed,
        "label_accuracy": outcome.score.label,
        "attribute_accuracy": outcome.score.attribute,
        "worst_group": outcome.score.worst_group,
        "groups": list(outcome.score.groups),
        "n_ablated": outcome.n_ablated,
    }


def in_percent(row: Mapping[str, Any]) -> list[str]:
    """A row of the table `shift` as people read it: method, probe, accuracies, units ablated."""
    name = row["method"].replace("_", " ") + (" (control)" if row["is_control"] else "")
    figures = (
        f"{100 * row[figure]:.1f} ± {100 * row[f'{figure}_sd']:.1f}"
        for figure in ("label_accuracy", "attribute_accuracy", "worst_group")
    )
    return [name, row["probe"], *figures, f"{row['n_ablated']:.3g}"]
