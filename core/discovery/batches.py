"""Samples in padded batches of similar length, in an order that only their lengths decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.discovery.filter import Sample
from core.errors import InputError
from core.metrics import NegativeLogProb
from core.models.language_model import LanguageModel
from core.splice import Resumed

_MOST = 256  # samples of one batch: what each needs besides tokens must not add up


@dataclass(frozen=True)
class Batch:
    """Some samples, ready to run.

    Attributes:
        rows: ``(batch,)``, which samples these are.
        tokens: ``(batch, pos)``, contexts padded on the right.
        last: ``(batch,)``, position of each context's last token.
        answers: ``(batch,)`` token ids.
    """

    rows: Tensor
    tokens: Tensor
    last: Tensor
    answers: Tensor

    def record(self, model: LanguageModel) -> Resumed:
        """The model run on the contexts, with m = -log P(answer) at their last token."""
        # Padding is on the right, where a causal model's real tokens cannot see it: no mask.
        metric = NegativeLogProb(self.answers.to(model.device))
        return Resumed(model, model.record(self.tokens), metric, self.last.to(model.device))


def batches(samples: Sequence[Sample], *, batch_tokens: int, max_positions: int) -> Iterator[Batch]:
    """Every sample once, the shortest contexts first.

    Args:
        batch_tokens: at most so many in one batch, padding included; a longer context goes alone.
        max_positions: the longest context the model takes.

    Raises:
        InputError: no sample, a context without tokens, or one that is too long.
    """
    check_contexts(samples, max_positions)
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].context))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < min(len(order), start + _MOST):
            if (stop + 1 - start) * len(samples[order[stop]].context) > batch_tokens:
                break
            stop += 1
        yield _pad(samples, order[start:stop])
        start = stop


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


def _pad(samples: Sequence[Sample], rows: list[int]) -> Batch:
    lengths = torch.tensor([len(samples[i].context) for i in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for place, i in enumerate(rows):
        tokens[place, : len(samples[i].context)] = torch.tensor(samples[i].context)
    answers = torch.tensor([samples[i].answer for i in rows])
    return Batch(torch.tensor(rows), tokens, lengths - 1, answers)
