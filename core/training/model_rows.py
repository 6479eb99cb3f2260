"""Activations straight from the model: for corpora whose activations no disk can hold.

`ModelRows` offers the same interface as a cache and runs the model again in every pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.errors import InputError, NotFinite
from core.models import LanguageModel


def context_rows(
    model: LanguageModel, contexts: Sequence[Sequence[int]], submodules: Sequence[str]
) -> dict[str, Tensor]:
    """Outputs of submodules at every token of some contexts, in float16.

    Args:
        model: the model.
        contexts: token ids, each list non-empty; padded here, the padding's rows dropped.
        submodules: names.

    Returns:
        ``(rows, d)`` by submodule on the CPU; contexts in order, then positions.

    Raises:
        NotFinite: an activation is NaN, infinite or too large for float16.
    """
    n_pos = max(map(len, contexts))
    tokens = torch.zeros(len(contexts), n_pos, dtype=torch.long)
    mask = torch.zeros(len(contexts), n_pos, dtype=torch.bool)
    for i, context in enumerate(contexts):
        tokens[i, : len(context)] = torch.tensor(context)
        mask[i, : len(context)] = True
    recording = model.record(tokens, mask)
    rows = {name: recording.outputs[name][recording.mask].half().cpu() for name in submodules}
    for name, value in rows.items():
        if not bool(torch.isfinite(value).all()):
            raise NotFinite(
                f"the output of '{name}' is NaN, infinite or beyond float16 (65,504): run the "
                "model in float32, or leave this submodule out."
            )
    return rows


def fingerprint_contexts(contexts: Sequence[Sequence[int]]) -> str:
    """Hex digest of the token ids of `contexts`."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(len(context).to_bytes(4, "little"))
        digest.update(torch.tensor(context, dtype=torch.int32).numpy().tobytes())
    return digest.hexdigest()


class ModelRows:
    """A `RowSource` that runs the model whenever it is read.

    Args:
        model: the model.
        contexts: token ids of each document's context.
        submodules: which outputs to give.
        model_fingerprint: identifies the model's weights.
        contexts_per_unit: contexts that one run of the model takes.

    Raises:
        InputError: no contexts.
    """

    def __init__(
        self,
        model: LanguageModel,
        contexts: Sequence[Sequence[int]],
        submodules: Sequence[str],
        *,
        model_fingerprint: str = "",
        contexts_per_unit: int = 32,
    ) -> None:
        if not contexts:
            raise InputError("no contexts: there is nothing to train on.")
        self.model = model
        self.submodules = tuple(submodules)
        n = contexts_per_unit
        self.units = [contexts[i : i + n] for i in range(0, len(contexts), n)]
        self.contexts_per_unit = n
        self.widths: Mapping[str, int] = {name: model.width(name) for name in submodules}
        self.unit_rows = [sum(map(len, unit)) for unit in self.units]
        data = f"{model_fingerprint} {self.submodules} {n} {fingerprint_contexts(contexts)}"
        self.fingerprint = hashlib.sha256(data.encode()).hexdigest()

    def load(self, unit: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """Run the model on the contexts of `unit`; see `RowSource`."""
        contexts = self.units[unit]
        lengths = torch.tensor([len(context) for context in contexts])
        first = unit * self.contexts_per_unit
        document = torch.arange(first, first + len(contexts)).repeat_interleave(lengths)
        return context_rows(self.model, contexts, self.submodules), document
