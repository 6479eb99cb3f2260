"""Samples in padded batches of similar length, in an order that only their lengths decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.discovery.filter import Sample
from core.errors import InputError
from core.inputs import pad
from core.metrics import NegativeLogProb
from core.models.language_model import LanguageModel
from core.models.replay import Resumed

_MOST = 256  # samples of one batch: what each needs besides tokens must not add up


@dataclass(frozen=True)
class Batch:
    """Some samples, ready to run.

    Attributes:
        rows: ``(sample,)``, which samples these are.
        tokens: ``(run, pos)``, contexts padded on the right.
        run: ``(sample,)``, the run that holds each sample's context: its own, unless runs are
            shared.
        last: ``(sample,)``, position of each context's last token.
        answers: ``(sample,)`` token ids.
    """

    rows: Tensor
    tokens: Tensor
    run: Tensor
    last: Tensor
    answers: Tensor

    def record(self, model: LanguageModel) -> Resumed:
        """The model run on the contexts, with m = -log P(answer) at their last token.

        Only where each sample has a run of its own.
        """
        assert len(self.tokens) == len(self.rows), "a shared run has several metrics"
        # Padding is on the right, where a causal model's real tokens cannot see it: no mask.
        metric = NegativeLogProb(self.answers.to(model.device))
        return Resumed(model, model.record(self.tokens), metric, self.last.to(model.device))


def batches(
    samples: Sequence[Sample], *, batch_tokens: int, max_positions: int, share: bool = False
) -> Iterator[Batch]:
    """Every sample once, the shortest contexts first.

    Args:
        batch_tokens: at most so many in one batch, padding included; a longer context goes alone.
        max_positions: the longest context the model takes.
        share: let samples of one window share a run of its longest context, of which the others
            are beginnings. A causal model's activations are the same there.

    Raises:
        InputError: no sample, a context without tokens, or one that is too long.
    """
    check_contexts(samples, max_positions)
    groups = list(_beginnings(samples)) if share else [[i] for i in range(len(samples))]
    groups.sort(key=lambda group: len(samples[group[-1]].context))
    batch: list[list[int]] = []
    for group in groups:
        n_tokens = (len(batch) + 1) * len(samples[group[-1]].context)
        n_samples = sum(map(len, batch)) + len(group)
        if batch and (n_tokens > batch_tokens or n_samples > _MOST):
            yield _batch_of(samples, batch)
            batch = []
        batch.append(group)
    yield _batch_of(samples, batch)


def _beginnings(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Samples whose contexts are beginnings of the last one's in each list."""

    def place(i: int) -> tuple[int, int, int]:
        return samples[i].document, samples[i].window, len(samples[i].context)

    group: list[int] = []
    for i in sorted(range(len(samples)), key=place):
        if group:
            one, other = samples[group[-1]], samples[i]
            fits = place(i)[:2] == place(group[-1])[:2] and len(group) < _MOST
            if not fits or other.context[: len(one.context)] != one.context:
                yield group
                group = []
        group.append(i)
    yield group


def check_contexts(samples: Sequence[Sample], max_positions: int) -> None:
    """Raise `InputError` if there is no sample, or a context is empty or too long."""
    if not samples:
        raise InputError("no samples: filter a corpus first, or loosen the filter.")
    lengths = [len(sample.context) for sample in samples]
    if min(lengths) == 0:
        raise InputError(
            f"sample {lengths.index(0)} has an empty context, from which nothing is predicted: "
            "filter with min_context of at least 1."
        )
    if max(lengths) > max_positions:
        raise InputError(
            f"sample {lengths.index(max(lengths))} has a context of {max(lengths)} tokens, but "
            f"the model has {max_positions} positions: cut the corpus into shorter contexts."
        )


def _batch_of(samples: Sequence[Sample], groups: list[list[int]]) -> Batch:
    tokens, _ = pad([samples[group[-1]].context for group in groups])
    rows = [i for group in groups for i in group]
    return Batch(
        rows=torch.tensor(rows),
        tokens=tokens,
        run=torch.tensor([run for run, group in enumerate(groups) for _ in group]),
        last=torch.tensor([len(samples[i].context) - 1 for i in rows]),
        answers=torch.tensor([samples[i].answer for i in rows]),
    )
