"""Metrics: one number per example, read off the logits at the example's last token, or off what
another readout gives (`core.readout`).

A metric says which columns of the unembedding it reads, so that nothing else is computed. Any
object with these six members is a metric; `docs/extend.md` shows one written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from core.errors import InputError
from core.options import SingleMetric


class Metric(Protocol):
    """m(logits) -> ``(batch,)``.

    ``tokens`` is ``(batch, k)``, the columns of the unembedding that are read, or None for all.
    """

    @property
    def name(self) -> str:
        """What it is called in tables and pictures, with its units."""
        ...

    @property
    def answers(self) -> Tensor:
        """Token ids it is about, ``(batch, n)``; n may be 0."""
        ...

    @property
    def tokens(self) -> Tensor | None:
        """Columns of the unembedding that are read, ``(batch, k)``; None for all."""
        ...

    def __call__(self, logits: Tensor, /) -> Tensor:
        """The metric of logits ``(batch, k)``, or ``(batch, vocabulary)`` where tokens is None; of
        a pooled stream ``(batch, d)`` where the inputs' readout is at one."""
        ...

    def select(self, rows: Tensor) -> Metric:
        """The metric of the examples `rows`, which may repeat."""
        ...

    def to(self, device: torch.device | str) -> Metric:
        """The same metric with its tensors on another device."""
        ...


_MEMBERS = ("name", "answers", "tokens", "select", "to", "__call__")


def check_metric(metric: Any, n_examples: int) -> None:
    """Raise `InputError` unless an object is a metric of so many examples."""
    lacking = [name for name in _MEMBERS if not hasattr(metric, name)]
    if lacking or isinstance(metric, type):
        raise InputError(
            f"{metric!r:.80} is no metric, it has no {', '.join(lacking) or 'values'}: a metric is "
            f"an object with {', '.join(_MEMBERS)}, see core.metrics.Metric."
        )
    answers, tokens = metric.answers, metric.tokens
    for name, ids in (("answers", answers), ("tokens", tokens)):
        if name == "tokens" and ids is None:
            continue
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype != torch.long:
            raise InputError(
                f"the metric's {name} must be (batch, n) token ids, {_what(ids)} was given."
            )
        if len(ids) != n_examples:
            raise InputError(
                f"{n_examples} examples but {name} for {len(ids)}: the metric reads one value per "
                "example."
            )


def read(metric: Metric, logits: Tensor) -> Tensor:
    """A metric's values ``(batch,)``; raises `InputError` where it gives anything else."""
    value = metric(logits)
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        raise InputError(
            f"the metric '{metric.name}' must give one value for each of {len(logits)} examples, "
            f"(batch,), {_what(value)} was given: do not average over examples."
        )
    if logits.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
        raise InputError(
            f"the metric '{metric.name}' has no gradient: compute it from the logits by torch "
            "functions that can be differentiated, without detach, item or argmax."
        )
    return value


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


@dataclass(frozen=True)
class OfAnswers:
    """A metric whose fields are token ids, one per example."""

    def __post_init__(self) -> None:
        answers = list(vars(self).values())
        for answer in answers:
            if not isinstance(answer, Tensor):
                raise InputError(
                    "answers must be a tensor of token ids, one per example, not "
                    f"{type(answer).__name__}."
                )
            if answer.ndim != 1 or answer.dtype != torch.long or len(answer) != len(answers[0]):
                raise InputError(
                    f"answers must be (batch,) token ids, one per example, not {answer.dtype} of "
                    f"shape {tuple(answer.shape)}."
                )

    @property
    def answers(self) -> Tensor:
        """The fields side by side, ``(batch, n)``."""
        return torch.stack(list(vars(self).values()), 1)

    def select(self, rows: Tensor) -> Self:
        """The same metric for the examples `rows`, which may repeat."""
        return type(self)(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> Self:
        """The same metric with its tensors on another device."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class LogitDifference(OfAnswers):
    """m = logit[patch answer] - logit[clean answer] (section 3.1): higher is nearer the patch.

    Attributes:
        clean_answer, patch_answer: ``(batch,)`` token ids.
    """

    clean_answer: Tensor
    patch_answer: Tensor
    name = "logit(patch answer) - logit(clean answer)"

    @property
    def tokens(self) -> Tensor:
        """``(batch, 2)``: clean answer, patch answer."""
        return self.answers

    def __call__(self, logits: Tensor) -> Tensor:
        """``(batch, 2)`` to ``(batch,)``, in logits."""
        return logits[:, 1] - logits[:, 0]


@dataclass(frozen=True)
class _OfOneAnswer(OfAnswers):
    """A metric of the answer's logit and all others.

    Attributes:
        answer: ``(batch,)`` token ids.
    """

    answer: Tensor

    @property
    def tokens(self) -> None:
        """All columns: the answer is held against every other token."""
        return None

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The answer's logit ``(batch,)``, and all logits with minus infinity in its place."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        at = self.answer[:, None]
        return wide.gather(1, at).squeeze(1), wide.scatter(1, at, -torch.inf)


@dataclass(frozen=True)
class NegativeLogOdds(_OfOneAnswer):
    """m = -log(P(answer) / (1 - P(answer))) = logsumexp(other logits) - logit(answer).

    Its gradient with respect to the logits does not vanish where the answer is certain, as that
    of -log P does. A difference of logits, it is exact where P itself would round to 1 or 0.

    Attributes:
        answer: ``(batch,)`` token ids.
    """

    name = "-log odds of the answer, nats"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(batch, vocabulary)`` to ``(batch,)``, in nats."""
        own, others = self.split(logits)
        return others.logsumexp(1) - own


@dataclass(frozen=True)
class NegativeLogProb(NegativeLogOdds):
    """m = -log P(answer) (section 5): higher is further from the answer.

    Computed as log(1 + exp(-log odds)), which keeps its digits where P rounds to 1.

    Attributes:
        answer: ``(batch,)`` token ids.
    """

    name = "-log P(answer), nats"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(batch, vocabulary)`` to ``(batch,)``, in nats."""
        against = super().__call__(logits)
        return torch.logaddexp(against, torch.zeros_like(against))


@dataclass(frozen=True)
class NegativeMargin(_OfOneAnswer):
    """m = the largest other logit - logit(answer): above zero where the answer is not predicted.

    The runner-up is that of the run at hand, so it may change on the way from clean to patch.

    Attributes:
        answer: ``(batch,)`` token ids.
    """

    name = "logit(runner-up) - logit(answer)"

    def __call__(self, logits: Tensor) -> Tensor:
        """``(batch, vocabulary)`` to ``(batch,)``, in logits."""
        own, others = self.split(logits)
        return others.max(1).values - own


@dataclass(frozen=True)
class NegativeLogit(OfAnswers):
    """m = -logit[answer]: cheap, but blind to what the other logits do.

    Attributes:
        answer: ``(batch,)`` token ids.
    """

    answer: Tensor
    name = "-logit(answer)"

    @property
    def tokens(self) -> Tensor:
        """``(batch, 1)``."""
        return self.answers

    def __call__(self, logits: Tensor) -> Tensor:
        """``(batch, 1)`` to ``(batch,)``, in logits."""
        return -logits[:, 0]


OF_SINGLE: Mapping[SingleMetric, Callable[[Tensor], Metric]] = {
    "log_odds": NegativeLogOdds,
    "log_prob": NegativeLogProb,
    "margin": NegativeMargin,
}
"""The metrics of single inputs by their names in `core.options`."""
