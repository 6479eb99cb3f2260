"""A stand-in for a language model: cheap outputs that depend on token and position."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from assets.corpus.text import Context

WIDTHS = {"embed": 6, "attn_0": 6, "resid_0": 4}


class ToyModel:
    submodules = tuple(WIDTHS)

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tables = {n: torch.randn(50, d, generator=generator) for n, d in WIDTHS.items()}
        self.n_runs = 0

    def width(self, name: str) -> int:
        return WIDTHS[name]

    def record(self, tokens: Tensor, mask: Tensor) -> SimpleNamespace:
        self.n_runs += 1
        position = torch.arange(tokens.shape[1])[:, None]
        outputs = {name: table[tokens] + 0.01 * position for name, table in self.tables.items()}
        return SimpleNamespace(outputs=outputs, mask=mask)


def contexts(n: int = 40, seed: int = 0) -> list[Context]:
    """Contexts of 2 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for document in range(n):
        length = int(torch.randint(2, 10, (1,), generator=generator))
        tokens = torch.randint(50, (length,), generator=generator).tolist()
        found.append(Context(document, tokens))
    return found
