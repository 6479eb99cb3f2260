"""How much fits: micro-batches chosen from a memory budget, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import OutOfBudget
from core.models import LanguageModel


@dataclass(frozen=True)
class Passes:
    """How many example-copies one forward and backward pass takes.

    Attributes:
        rows: copies of examples in one pass, at least 1.
        device: where row indices are made.
    """

    rows: int
    device: torch.device

    def examples(self, n_examples: int, n_copies: int) -> Iterator[Tensor]:
        """Example indices in order, a chunk for each pass of up to `n_copies` copies of each."""
        # Many copies of few examples, or one copy of many: the chunk leaves room for both.
        size = max(1, self.rows // n_copies)
        yield from torch.arange(n_examples, device=self.device).split(size)

    def copies(self, n_examples: int) -> int:
        """How many copies of `n_examples` examples fit in one pass."""
        return max(1, self.rows // n_examples)


def bytes_per_token(model: LanguageModel, n_pos: int) -> int:
    """Activations that one token of one forward and backward pass keeps, in bytes.

    Counted from the shapes a decoder layer saves for backward: about twelve vectors of the
    stream's width, three of the MLP's, and the attention weights of its row.
    """
    config = model.config
    d_mlp = getattr(config, "intermediate_size", None) or 4 * model.d_model
    n_heads = config.num_attention_heads
    per_layer = 12 * model.d_model + 3 * d_mlp + 2 * n_heads * n_pos
    return model.dtype.itemsize * (model.n_layers * per_layer + 4 * model.d_model)


def plan_passes(model: LanguageModel, n_pos: int, budget_bytes: int) -> Passes:
    """Passes that keep activations in flight within a budget.

    Args:
        n_pos: positions of each example.
        budget_bytes: memory for one pass's activations.

    Raises:
        OutOfBudget: one example needs more.
    """
    one = bytes_per_token(model, n_pos) * n_pos + 3 * model.dtype.itemsize * model.n_vocab
    if one > budget_bytes:
        raise OutOfBudget(
            f"one example of {n_pos} tokens needs about {one / 2**20:,.0f} MiB for one forward "
            f"and backward pass, more than the budget of {budget_bytes / 2**20:,.0f} MiB: raise "
            "the budget or shorten the contexts."
        )
    return Passes(int(budget_bytes // one), model.device)
