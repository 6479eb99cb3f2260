"""Documents as tensors of token ids."""

from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.tokenizer import END_OF_TEXT, vocabulary
from testbed.writer import Document

N_POSITIONS = 128
IGNORED = -100


def token_ids(documents: Iterable[Document]) -> Tensor:
    """Documents one to a row, ``(document, pos)``: the first 128 tokens of each.

    A document that ends sooner is followed by the end-of-text token, and then by -100.
    """
    ids = {token: index for index, token in enumerate(vocabulary())}
    end = ids[END_OF_TEXT]
    rows = []
    for document in documents:
        row = [ids[token] for token in document.tokens[:N_POSITIONS]]
        row += [end] if len(row) < N_POSITIONS else []
        rows.append(row + [IGNORED] * (N_POSITIONS - len(row)))
    return torch.tensor(rows)


def token_logprobs(documents: Iterable[Document]) -> Tensor:
    """The grammar's log-probability of each entry of `token_ids`, nats; 0 where that is -100."""
    rows = []
    for document in documents:
        row = [*document.logprobs, document.log_end][:N_POSITIONS]
        rows.append(row + [0.0] * (N_POSITIONS - len(row)))
    return torch.tensor(rows)
