"""What a circuit is found on: clean inputs, perhaps a patch input for each, and a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.errors import AnswerError, InputError, ShapeMismatch
from core.metrics import OF_SINGLE, LogitDifference, Metric, check_metric
from core.options import SINGLE_METRICS, SingleMetric, check_list, check_option
from core.readout import LAST_LOGITS, LOGITS, Readout
from core.types import token_mask


def _to_the_right(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each example's real tokens to the left and its padding to the right."""
    order = (~mask).int().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


@dataclass(frozen=True)
class Inputs:
    """Examples, the metric that is read off each, and where.

    Attributes:
        clean: ``(batch, pos)`` token ids.
        mask: ``(batch, pos)`` bool, True at real tokens; padding is moved to the right.
        metric: one value per example.
        patch: ``(batch, pos)`` token ids compared with `clean` position by position, or None:
            then patching means setting all features and errors to zero.
        readout: what the metric is given; the logits at the last token where not said.

    Raises:
        InputError: an empty batch, an example without tokens, a metric of another batch size, or
            one that reads columns of logits where a stream is read.
        ShapeMismatch: clean and patch differ in shape.
    """

    clean: Tensor
    mask: Tensor
    metric: Metric
    patch: Tensor | None = None
    readout: Readout = LAST_LOGITS

    def __post_init__(self) -> None:
        mask = token_mask(self.clean, self.mask)
        check_metric(self.metric, len(self.clean))
        if self.readout.site != LOGITS and self.metric.tokens is not None:
            raise InputError(
                f"the metric '{self.metric.name}' reads columns of the unembedding, but the "
                f"readout is at {self.readout.site}, which has none: read the logits, or take a "
                "metric of the stream such as core.probe.ProbeMargin."
            )
        if self.patch is not None:
            token_mask(self.patch, None)
        if self.patch is not None and self.patch.shape != self.clean.shape:
            raise ShapeMismatch(
                f"clean is {tuple(self.clean.shape)} tokens but patch is "
                f"{tuple(self.patch.shape)}. Nodes are compared position by position: keep pairs "
                "of equal length, or leave patch out to ablate to zero."
            )
        if not bool(mask.all()):
            clean, right = _to_the_right(self.clean, mask)
            if self.patch is not None:
                object.__setattr__(self, "patch", _to_the_right(self.patch, mask)[0])
            object.__setattr__(self, "clean", clean)
            mask = right
        object.__setattr__(self, "mask", mask)

    @classmethod
    def single(
        cls,
        tokens: Tensor,
        answer: Tensor,
        mask: Tensor | None = None,
        metric: SingleMetric = "log_odds",
    ) -> Inputs:
        """Single inputs: patch is zero ablation.

        Args:
            metric: of the answer: ``log_odds`` against all other tokens, ``log_prob`` as in the
                paper, or the ``margin`` to the runner-up; each negated, see `core.metrics`.
        """
        check_option("metric", metric, SINGLE_METRICS)
        return cls(tokens, token_mask(tokens, mask), OF_SINGLE[metric](answer))

    @classmethod
    def pairs(
        cls,
        clean: Tensor,
        patch: Tensor,
        clean_answer: Tensor,
        patch_answer: Tensor,
        mask: Tensor | None = None,
    ) -> Inputs:
        """Contrastive pairs: the metric is logit[patch answer] - logit[clean answer]."""
        metric = LogitDifference(clean_answer, patch_answer)
        return cls(clean, token_mask(clean, mask), metric, patch)

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self.clean.shape[0]

    @property
    def last(self) -> Tensor:
        """``(batch,)``: position of each example's last token."""
        return self.mask.sum(1) - 1

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on another device."""
        patch = None if self.patch is None else self.patch.to(device)
        clean, mask = self.clean.to(device), self.mask.to(device)
        return Inputs(clean, mask, self.metric.to(device), patch, self.readout)

    def select(self, rows: Tensor) -> Inputs:
        """The examples `rows`, without the padding they do not need."""
        mask = self.mask[rows]
        n_pos = int(mask.sum(1).max())
        patch = None if self.patch is None else self.patch[rows, :n_pos]
        clean, metric = self.clean[rows, :n_pos], self.metric.select(rows)
        return Inputs(clean, mask[:, :n_pos], metric, patch, self.readout)

    def batches(self, n_examples: int) -> Iterator[Inputs]:
        """The same examples in order, at most `n_examples` at a time."""
        for rows in torch.arange(self.n_examples, device=self.clean.device).split(n_examples):
            yield self.select(rows)


def check_answers(inputs: Inputs, n_vocab: int) -> None:
    """Raise `AnswerError` if the metric reads what is no token of a vocabulary of `n_vocab`."""
    columns = inputs.metric.tokens
    answers = inputs.metric.answers.flatten()
    if columns is not None:
        answers = torch.cat([answers, columns.flatten().to(answers.device)])
    if answers.numel() and not 0 <= int(answers.min()) <= int(answers.max()) < n_vocab:
        raise AnswerError(
            f"answers run from {int(answers.min())} to {int(answers.max())} but the model's "
            f"vocabulary has {n_vocab} tokens: was the text tokenized with another tokenizer?"
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"{text!r} is not text that can be written as UTF-8.") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _unknown(tokenizer: Any, text: str) -> set[int]:
    """Ids that stand for what a tokenizer does not know, but for those that the text spells out."""
    tokens = {getattr(tokenizer, "unk_token_id", None): getattr(tokenizer, "unk_token", None)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        if name := getattr(backend.model, "unk_token", None):
            tokens[backend.token_to_id(name)] = name
        if (number := getattr(backend.model, "unk_id", None)) is not None:
            tokens[number] = backend.id_to_token(number)
    return {i for i, name in tokens.items() if i is not None and name and name not in text}


class _Unusable(Exception):
    """Why a prefix and answer cannot be used."""


def _continuation(tokenizer: Any, prefix: str, answer: str) -> tuple[list[int], int]:
    """The tokens of a prefix, and the one that its answer adds to them.

    Both are tokenized together: a tokenizer may put a piece before every text, and the answer alone
    would then begin with it.
    """
    ids, whole = _ids(tokenizer, prefix), _ids(tokenizer, prefix + answer)
    if not ids:
        raise _Unusable("a prefix has no tokens")
    if whole[: len(ids)] != ids:
        raise _Unusable("an answer melts into its prefix")
    if len(whole) != len(ids) + 1:
        raise _Unusable("an answer is not one token")
    if whole[-1] in _unknown(tokenizer, answer):
        raise _Unusable("an answer is unknown to the tokenizer")
    return ids, whole[-1]


def answer_token(tokenizer: Any, prefix: str, answer: str) -> int:
    """The one token that `answer` is after `prefix`; raises `AnswerError` when there is none."""
    try:
        return _continuation(tokenizer, prefix, answer)[1]
    except _Unusable as error:
        ids = _ids(tokenizer, prefix), _ids(tokenizer, prefix + answer)
        raise AnswerError(
            f"answer {answer!r} after {prefix!r} cannot be read: {error} ({ids[0]} becomes "
            f"{ids[1]}). A metric reads one token: mind the leading space, and keep answers that "
            "the tokenizer holds whole."
        ) from None


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token lists of any lengths as ``(batch, pos)`` tokens and mask, padded on the right with 0.

    Raises:
        InputError: no rows, or an empty row.
    """
    if not rows or not all(len(row) for row in rows):
        raise InputError("there is no example, or one without tokens: nothing to run on.")
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    tokens[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return tokens, mask


def tokenize_single(
    tokenizer: Any,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    bos: int | None = None,
    metric: SingleMetric = "log_odds",
) -> Inputs:
    """Single inputs from texts and the token that should follow each.

    Args:
        metric: see `Inputs.single`.

    Raises:
        AnswerError: an answer is not one token after its text, or unknown to the tokenizer.
        InputError: no text, an empty text, not one answer for each, or an unknown metric.
    """
    check_list("texts", texts, str)
    check_list("answers", answers, str)
    if len(texts) != len(answers):
        raise InputError(f"{len(texts)} texts but {len(answers)} answers.")
    start = [] if bos is None else [bos]
    tokens, mask = pad([start * bool(ids := _ids(tokenizer, text)) + ids for text in texts])
    answer = [answer_token(tokenizer, *pair) for pair in zip(texts, answers, strict=True)]
    return Inputs.single(tokens, torch.tensor(answer, dtype=torch.long), mask, metric)


class DroppedPair(NamedTuple):
    """A pair that cannot be used: its place among the rows, from 0, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class TokenizedPairs:
    """Contrastive pairs as a model reads them.

    Attributes:
        inputs: those that can be used.
        kept: their places among the rows, from 0, in order.
        dropped: the others, in order.
    """

    inputs: Inputs
    kept: list[int]
    dropped: list[DroppedPair]


def by_reason(dropped: Iterable[DroppedPair]) -> str:
    """How many pairs were dropped for each reason, the most frequent first."""
    counts = Counter(pair.reason for pair in dropped).most_common()
    return "; ".join(f"{n} x {reason}" for reason, n in counts)


_KEYS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")


def _pair(tokenizer: Any, row: Mapping[str, str]) -> tuple[list[int], list[int], int, int]:
    """Both prefixes and both answers of a row; raises `_Unusable`."""
    clean, clean_answer = _continuation(tokenizer, row["clean_prefix"], row["clean_answer"])
    patch, patch_answer = _continuation(tokenizer, row["patch_prefix"], row["patch_answer"])
    if len(clean) != len(patch):
        raise _Unusable("the prefixes differ in length")
    apart = {token for pair in zip(clean, patch, strict=True) if len({*pair}) > 1 for token in pair}
    if not apart:
        raise _Unusable("both prefixes are the same")
    if apart & _unknown(tokenizer, row["clean_prefix"] + row["patch_prefix"]):
        raise _Unusable("the prefixes differ in a word that is unknown to the tokenizer")
    if clean_answer == patch_answer:
        raise _Unusable("both answers are the same")
    return clean, patch, clean_answer, patch_answer


def tokenize_pairs(
    tokenizer: Any, rows: Sequence[Mapping[str, str]], *, bos: int | None = None
) -> TokenizedPairs:
    """Contrastive pairs from the agreement files' rows, and which rows could be used.

    A row has ``clean_prefix``, ``patch_prefix``, ``clean_answer``, ``patch_answer``. It is kept if
    each answer adds one token to its prefix, both prefixes have the same number of tokens (section
    6 of the method's data), and the sides differ in prefix and in answer.

    Raises:
        InputError: no row can be used, or one is not of texts.
    """
    check_list("rows", rows, Mapping)
    start = [] if bos is None else [bos]
    kept: list[int] = []
    dropped: list[DroppedPair] = []
    clean, patch, answers = [], [], []
    for i, row in enumerate(rows):
        if not all(isinstance(row.get(key), str) for key in _KEYS):
            raise InputError(f"row {i} of the pairs must have texts for {', '.join(_KEYS)}.")
        try:
            ids, patch_ids, *answer = _pair(tokenizer, row)
        except _Unusable as error:
            dropped.append(DroppedPair(i, str(error)))
            continue
        kept.append(i)
        clean.append(start + ids)
        patch.append(start + patch_ids)
        answers.append(answer)
    if not kept:
        raise InputError(
            f"none of {len(rows)} pairs can be used with this tokenizer ({by_reason(dropped)}): "
            "each answer must add one token to its prefix, mind the leading space, and the "
            "prefixes must be equally long and differ."
        )
    tokens, mask = pad(clean)
    answer = torch.tensor(answers, dtype=torch.long)
    inputs = Inputs.pairs(tokens, pad(patch)[0], answer[:, 0], answer[:, 1], mask)
    return TokenizedPairs(inputs, kept, dropped)
