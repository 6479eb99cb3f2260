"""What a circuit is found on: clean inputs, perhaps a patch input for each, and a metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import AnswerError, InputError, ShapeMismatch
from core.metrics import LogitDifference, Metric, NegativeLogProb
from core.types import token_mask


def _to_the_right(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each example's real tokens to the left and its padding to the right."""
    order = (~mask).int().argsort(dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


@dataclass(frozen=True)
class Inputs:
    """Examples and the metric that is read at each one's last token.

    Attributes:
        clean: ``(batch, pos)`` token ids.
        mask: ``(batch, pos)`` bool, True at real tokens; padding is moved to the right.
        metric: one value per example.
        patch: ``(batch, pos)`` token ids compared with `clean` position by position, or None:
            then patching means setting all features and errors to zero.

    Raises:
        InputError: an empty batch, an example without tokens, or a metric of another batch size.
        ShapeMismatch: clean and patch differ in shape.
    """

    clean: Tensor
    mask: Tensor
    metric: Metric
    patch: Tensor | None = None

    def __post_init__(self) -> None:
        mask = token_mask(self.clean, self.mask)
        if len(self.metric.answers) != len(self.clean):
            raise InputError(
                f"{len(self.clean)} examples but answers for {len(self.metric.answers)}: the "
                "metric reads one value per example."
            )
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
    def single(cls, tokens: Tensor, answer: Tensor, mask: Tensor | None = None) -> Inputs:
        """Single inputs: patch is zero ablation, the metric -log P(answer)."""
        return cls(tokens, token_mask(tokens, mask), NegativeLogProb(answer))

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
        return Inputs(self.clean.to(device), self.mask.to(device), self.metric.to(device), patch)

    def select(self, rows: Tensor) -> Inputs:
        """The examples `rows`, without the padding they do not need."""
        mask = self.mask[rows]
        n_pos = int(mask.sum(1).max())
        patch = None if self.patch is None else self.patch[rows, :n_pos]
        return Inputs(self.clean[rows, :n_pos], mask[:, :n_pos], self.metric.select(rows), patch)

    def batches(self, n_examples: int) -> Iterator[Inputs]:
        """The same examples in order, at most `n_examples` at a time."""
        for rows in torch.arange(self.n_examples, device=self.clean.device).split(n_examples):
            yield self.select(rows)


def check_answers(inputs: Inputs, n_vocab: int) -> None:
    """Raise `AnswerError` if an answer is no token of a vocabulary of `n_vocab`."""
    answers = inputs.metric.answers
    if answers.numel() and not 0 <= int(answers.min()) <= int(answers.max()) < n_vocab:
        raise AnswerError(
            f"answers run from {int(answers.min())} to {int(answers.max())} but the model's "
            f"vocabulary has {n_vocab} tokens: was the text tokenized with another tokenizer?"
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_token(tokenizer: Any, text: str) -> int:
    """The one token that `text` is; raises `AnswerError` when it is not exactly one."""
    ids = _ids(tokenizer, text)
    if len(ids) != 1:
        raise AnswerError(
            f"answer {text!r} is {len(ids)} tokens, and a metric reads one. Mind the leading "
            "space, and keep answers that the tokenizer holds whole."
        )
    return ids[0]


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
    tokenizer: Any, texts: Sequence[str], answers: Sequence[str], *, bos: int | None = None
) -> Inputs:
    """Single inputs from texts and the token that should follow each.

    Raises:
        AnswerError: an answer is not one token.
        InputError: no text, an empty text, or not one answer for each.
    """
    if len(texts) != len(answers):
        raise InputError(f"{len(texts)} texts but {len(answers)} answers.")
    start = [] if bos is None else [bos]
    answer = torch.tensor([answer_token(tokenizer, a) for a in answers], dtype=torch.long)
    tokens, mask = pad([start + _ids(tokenizer, text) for text in texts])
    return Inputs.single(tokens, answer, mask)


def tokenize_pairs(
    tokenizer: Any, rows: Sequence[dict[str, str]], *, bos: int | None = None
) -> tuple[Inputs, list[int]]:
    """Contrastive pairs from the agreement files' rows, and which rows could be used.

    A row has ``clean_prefix``, ``patch_prefix``, ``clean_answer``, ``patch_answer``. It is kept if
    both answers are one token, both prefixes have the same number of tokens, and prefix + answer
    tokenises as the concatenation (section 6 of the method's data).

    Raises:
        InputError: no row can be used.
    """
    start = [] if bos is None else [bos]
    usable: list[int] = []
    clean, patch, answers = [], [], []
    for i, row in enumerate(rows):
        texts = [row["clean_prefix"], row["patch_prefix"]]
        ends = [_ids(tokenizer, row["clean_answer"]), _ids(tokenizer, row["patch_answer"])]
        ids = [_ids(tokenizer, text) for text in texts]
        whole = _ids(tokenizer, row["clean_prefix"] + row["clean_answer"])
        if [len(end) for end in ends] != [1, 1] or len(ids[0]) != len(ids[1]) or not ids[0]:
            continue
        if whole != ids[0] + ends[0]:
            continue
        usable.append(i)
        clean.append(start + ids[0])
        patch.append(start + ids[1])
        answers.append([ends[0][0], ends[1][0]])
    if not usable:
        raise InputError(
            f"none of {len(rows)} pairs can be used with this tokenizer: both answers must be one "
            "token and both prefixes equally long."
        )
    tokens, mask = pad(clean)
    answer = torch.tensor(answers, dtype=torch.long)
    return Inputs.pairs(tokens, pad(patch)[0], answer[:, 0], answer[:, 1], mask), usable
