"""Activations straight from the model: for corpora whose activations no disk can hold.

`ModelRows` offers the same interface as a cache and runs the model again in every pass.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, NotFinite
from core.inputs import pad
from core.models import LanguageModel

_TELL_EVERY = 10_000


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
    recording = model.record(*pad(contexts))
    everything = bool(recording.mask.all())
    rows = {}
    for name in submodules:
        value = recording.outputs[name].half()
        rows[name] = (value.flatten(0, 1) if everything else value[recording.mask]).cpu()
        if not all_finite(rows[name]):
            raise NotFinite(
                f"the output of '{name}' is NaN, infinite or beyond float16 (65,504): run the "
                "model in float32, or leave this submodule out."
            )
    return rows


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one read: both ends of the range would show it."""
    return values.numel() == 0 or all(bool(torch.isfinite(end)) for end in values.aminmax())


def fingerprint_contexts(contexts: Iterable[Sequence[int]]) -> str:
    """Hex digest of the token ids of `contexts`."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(len(context).to_bytes(4, "little"))
        digest.update(np.array(context, dtype="<i4").tobytes())
    return digest.hexdigest()


class ModelRows:
    """A `RowSource` that runs the model whenever it is read.

    Args:
        model: the model.
        contexts: token ids of each document's context. They are read once here and then again
            whenever their rows are needed, and may lie on disk: only lengths are held.
        submodules: which outputs to give.
        model_fingerprint: identifies the model's weights.
        contexts_per_unit: contexts that one run of the model takes.
        progress: told now and then how many contexts were read.

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
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if not contexts:
            raise InputError("no contexts: there is nothing to train on.")
        self.model = model
        self.submodules = tuple(submodules)
        self.contexts = contexts
        self.contexts_per_unit = n = contexts_per_unit
        self.widths: Mapping[str, int] = {name: model.width(name) for name in submodules}
        self.unit_rows = [0] * math.ceil(len(contexts) / n)
        tokens = fingerprint_contexts(self._counted(progress))
        data = f"{model_fingerprint} {n} {tokens}"
        self.fingerprint = hashlib.sha256(data.encode()).hexdigest()

    def _counted(self, progress: Callable[[str], None] | None) -> Iterator[Sequence[int]]:
        """The contexts, whose tokens are added to their unit's rows as they pass."""
        for i, context in enumerate(self.contexts):
            self.unit_rows[i // self.contexts_per_unit] += len(context)
            if progress is not None and (i + 1) % _TELL_EVERY == 0:
                progress(f"{i + 1:,} of {len(self.contexts):,} contexts read")
            yield context

    def load(self, unit: int) -> tuple[Mapping[str, Tensor], Tensor]:
        """Run the model on the contexts of `unit`; see `RowSource`."""
        first = unit * self.contexts_per_unit
        contexts = list(self.contexts[first : first + self.contexts_per_unit])
        lengths = torch.tensor([len(context) for context in contexts])
        document = torch.arange(first, first + len(contexts)).repeat_interleave(lengths)
        return context_rows(self.model, contexts, self.submodules), document
