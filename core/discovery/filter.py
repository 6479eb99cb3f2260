"""Which tokens of a corpus are worth explaining: those the model predicts without copying (5, H.1).

A token is kept, with the context before it, where the model's cross-entropy on it is below a
threshold and the pair (token before it, token) has not occurred earlier in the context: a pair
seen before can be predicted by induction alone, and would fill every cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import InputError, NotFinite
from core.models.language_model import LanguageModel

_PROGRESS_EVERY = 1000
_THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DROPPED = (
    "short context",
    "ignored answer",
    "repeated bigram",
    "high loss",
    "near another",
    "document cap",
    "enough samples",
)
"""Why a token was not kept, in the order in which the reasons are tried."""


class Sample(NamedTuple):
    """One (context, answer) that the model predicts; its number is its place in the list.

    ``window`` counts the contexts read, from 0: a long document fills several. ``pos`` is the
    answer's position in its window, ``context`` the token ids before it, ``loss`` in nats.
    """

    document: int
    window: int
    pos: int
    context: tuple[int, ...]
    answer: int
    loss: float


@dataclass(frozen=True)
class FilterResult:
    """What was kept, and why the rest was not.

    Attributes:
        samples: in the order of the corpus.
        n_tokens: tokens looked at; samples and dropped tokens add up to it.
        n_windows: contexts read.
        dropped: tokens by the first reason of `DROPPED` that applied.
    """

    samples: list[Sample]
    n_tokens: int
    n_windows: int
    dropped: dict[str, int]


def _check_at_least_one(counts: Mapping[str, int | None]) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}, but must be at least 1.")


@dataclass(frozen=True)
class _Rules:
    """The arguments of `filter_tokens` that decide about a token, a window or a document."""

    max_loss: float
    min_context: int
    stride: int
    max_per_document: int | None
    ignore: frozenset[int]
    seed: int

    def check(self) -> None:
        names = ("min_context", "stride", "max_per_document")
        _check_at_least_one({name: getattr(self, name) for name in names})
        if not self.max_loss > 0:
            raise InputError(
                f"max_loss is {self.max_loss} nats, but no token has a loss below zero: the paper "
                "uses 0.1 and 0.3."
            )


@dataclass
class _Tally:
    """What has been counted so far."""

    n_tokens: int = 0
    n_windows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    n_candidates: int = 0  # tokens whose loss was measured
    n_below: Counter[float] = field(default_factory=Counter)  # by threshold
    least_loss: float = float("inf")

    def measure(self, losses: Tensor) -> None:
        """Count losses of candidates against round thresholds, to advise with."""
        if losses.numel() == 0:
            return
        self.n_candidates += losses.numel()
        self.least_loss = min(self.least_loss, float(losses.min()))
        for threshold in _THRESHOLDS:
            self.n_below[threshold] += int((losses < threshold).sum())

    def nothing_kept(self, rules: _Rules) -> InputError:
        """The error that says what would have kept something."""
        if self.n_tokens == 0:
            return InputError("the corpus gave no tokens to filter: is the text empty?")
        if self.n_candidates == 0:
            reasons = ", ".join(f"{self.dropped[r]} {r}" for r in DROPPED if self.dropped[r])
            return InputError(
                f"none of {self.n_tokens} tokens came as far as the loss threshold ({reasons}): "
                f"lower min_context ({rules.min_context}) or give longer contexts."
            )
        advice = ", ".join(f"{t:g} keeps {n}" for t, n in sorted(self.n_below.items()) if n)
        return InputError(
            f"no sample passes: of {self.n_tokens} tokens, {self.n_candidates} follow a context "
            f"of at least {rules.min_context} without copying from it, and the least loss among "
            f"them is {self.least_loss:.3g} nats, above max_loss={rules.max_loss:g}. Before "
            f"stride and cap, a max_loss of {advice or 'more than 3 nats would be needed'}."
        )


def repeated_bigrams(tokens: Tensor) -> Tensor:
    """Where the pair (previous token, token) has occurred earlier in the same row.

    Args:
        tokens: ``(batch, pos)`` token ids.

    Returns:
        ``(batch, pos)`` bool; False at position 0, which has no pair.
    """
    repeated = torch.zeros_like(tokens, dtype=torch.bool)
    if tokens.shape[1] < 3:
        return repeated
    pairs = tokens[:, :-1] * (int(tokens.max()) + 1) + tokens[:, 1:]
    # A stable sort puts a pair's first occurrence before the others.
    pairs, order = pairs.sort(dim=1, stable=True)
    later = torch.zeros_like(pairs, dtype=torch.bool)
    later[:, 1:] = pairs[:, 1:] == pairs[:, :-1]
    repeated[:, 1:] = torch.zeros_like(later).scatter(1, order, later)
    return repeated


def filter_tokens(
    model: LanguageModel,
    contexts: Iterable[tuple[int, Sequence[int]]],
    *,
    max_loss: float = 0.3,
    min_context: int = 4,
    stride: int = 1,
    max_per_document: int | None = None,
    n_samples: int | None = None,
    ignore: Collection[int] = (),
    seed: int = 0,
    batch_size: int = 32,
    budget_bytes: int = 256 << 20,
    progress: Callable[[str], None] | None = None,
) -> FilterResult:
    """Keep the (context, answer) pairs whose answer the model predicts without copying (5, H.1).

    One pass over the corpus, which is read little further than needed. Which samples are kept
    depends on neither `batch_size` nor `budget_bytes`, but for rounding in the losses.

    Args:
        contexts: (document, token ids); contexts of one document follow one another.
        max_loss: nats; the answer's cross-entropy must be below it.
        min_context: tokens that must precede an answer.
        stride: kept samples of one window are at least this many positions apart, so that
            neighbours do not dominate; the first one counts.
        max_per_document: at most this many of a document, drawn at random from its kept tokens.
        n_samples: stop when this many are kept; None reads the whole corpus.
        ignore: answers never kept, such as the end of a text.
        seed: of the draw within documents, which depends on it and the document alone.
        batch_size: contexts per forward pass.
        budget_bytes: for logits; the unembedding runs in chunks that fit.
        progress: told now and then how far the reading is.

    Raises:
        InputError: a setting is impossible, a context is longer than the model's positions, or
            no token passes (the message says which thresholds would keep how many).
        NotFinite: the model gave no number.
    """
    rules = _Rules(max_loss, min_context, stride, max_per_document, frozenset(ignore), seed)
    rules.check()
    _check_at_least_one({"n_samples": n_samples, "batch_size": batch_size})
    tally = _Tally()
    samples: list[Sample] = []
    last_progress = 0
    passing = _passing(model, contexts, rules, tally, batch_size, budget_bytes)
    for _document, group in groupby(passing, key=lambda sample: sample.document):
        samples += _draw(list(group), rules, tally)
        if progress is not None and tally.n_windows >= last_progress + _PROGRESS_EVERY:
            last_progress = tally.n_windows
            progress(f"{tally.n_windows} contexts read, {len(samples)} samples kept")
        if n_samples is not None and len(samples) >= n_samples:
            break
    if not samples:
        raise tally.nothing_kept(rules)
    del samples[n_samples or len(samples) :]
    dropped = {reason: tally.dropped[reason] for reason in DROPPED}
    # Whatever was measured but not returned came after the last sample needed.
    dropped["enough samples"] = tally.n_tokens - len(samples) - sum(dropped.values())
    return FilterResult(samples, tally.n_tokens, tally.n_windows, dropped)


def _draw(samples: list[Sample], rules: _Rules, tally: _Tally) -> list[Sample]:
    """At most max_per_document of one document's samples, in their order."""
    cap = rules.max_per_document
    if cap is None or len(samples) <= cap:
        return samples
    rng = np.random.default_rng([rules.seed, abs(samples[0].document)])
    tally.dropped["document cap"] += len(samples) - cap
    return [samples[i] for i in sorted(rng.random(len(samples)).argsort()[:cap].tolist())]


def _passing(
    model: LanguageModel,
    contexts: Iterable[tuple[int, Sequence[int]]],
    rules: _Rules,
    tally: _Tally,
    batch_size: int,
    budget_bytes: int,
) -> Iterator[Sample]:
    """Samples that pass on their own, before the document's cap."""
    for batch in _batches(contexts, batch_size, model.max_positions):
        tokens, n_tokens = _pad([ids for _, ids in batch])
        candidate = _candidates(tokens, n_tokens, rules, tally)
        losses = _losses(model, tokens, candidate, budget_bytes)
        tally.measure(losses[candidate])
        predicted = candidate & (losses < rules.max_loss)
        tally.dropped["high loss"] += int(candidate.sum() - predicted.sum())
        for row, (document, ids) in enumerate(batch):
            places = predicted[row].nonzero().flatten().tolist()
            for pos in _apart(places, rules.stride, tally):
                context, loss = tuple(ids[:pos]), float(losses[row, pos])
                yield Sample(document, tally.n_windows + row, pos, context, ids[pos], loss)
        tally.n_windows += len(batch)


def _batches(
    contexts: Iterable[tuple[int, Sequence[int]]], batch_size: int, max_positions: int
) -> Iterator[list[tuple[int, list[int]]]]:
    batch: list[tuple[int, list[int]]] = []
    for document, tokens in contexts:
        if len(tokens) > max_positions:
            raise InputError(
                f"a context of document {document} has {len(tokens)} tokens, but the model has "
                f"{max_positions} positions: cut the corpus into shorter contexts."
            )
        batch.append((document, list(tokens)))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _pad(contexts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens padded on the right with id 0, ``(batch, pos)``, and lengths, ``(batch,)``."""
    lengths = torch.tensor([len(ids) for ids in contexts])
    tokens = torch.zeros(len(contexts), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(contexts):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return tokens, lengths


def _candidates(tokens: Tensor, n_tokens: Tensor, rules: _Rules, tally: _Tally) -> Tensor:
    """Tokens whose loss is worth measuring, ``(batch, pos)``; the others are counted."""
    place = torch.arange(tokens.shape[1])
    real = place < n_tokens[:, None]
    tally.n_tokens += int(real.sum())
    reasons = {
        "short context": (place < rules.min_context).expand_as(tokens),
        "ignored answer": torch.isin(tokens, torch.tensor(sorted(rules.ignore), dtype=torch.long)),
        "repeated bigram": repeated_bigrams(tokens),
    }
    for reason, applies in reasons.items():
        tally.dropped[reason] += int((real & applies).sum())
        real = real & ~applies
    return real


@torch.no_grad()
def _losses(model: LanguageModel, tokens: Tensor, wanted: Tensor, budget_bytes: int) -> Tensor:
    """Cross-entropy of the wanted tokens given those before, ``(batch, pos)``; else infinity."""
    losses = torch.full(tokens.shape, float("inf"))
    row, pos = wanted.nonzero(as_tuple=True)
    if len(row) == 0:
        return losses
    # Padding is on the right, where a causal model's real tokens cannot see it: no mask is needed.
    stream = model.record(tokens).outputs[f"resid_{model.n_layers - 1}"]
    before = stream[row.to(model.device), (pos - 1).to(model.device)]
    answers = tokens[row, pos].to(model.device)
    n_vocab = model.unembedding.weight.shape[0]
    # Logits, their log-softmax and one temporary, in single precision.
    chunk = max(1, budget_bytes // (3 * 4 * n_vocab))
    parts = []
    for i in range(0, len(row), chunk):
        logits = model.logits(before[i : i + chunk]).float()
        parts.append(F.cross_entropy(logits, answers[i : i + chunk], reduction="none"))
    measured = torch.cat(parts).cpu()
    if not bool(torch.isfinite(measured).all()):
        raise NotFinite(
            "the model's loss is NaN or infinite on some tokens, so nothing can be said about what "
            "it predicts. Run it in a wider dtype."
        )
    losses[row, pos] = measured
    return losses


def _apart(places: list[int], stride: int, tally: _Tally) -> Iterator[int]:
    """Those places that are at least `stride` after the last one yielded."""
    last = -stride
    for place in places:
        if place - last < stride:
            tally.dropped["near another"] += 1
        else:
            last = place
            yield place
