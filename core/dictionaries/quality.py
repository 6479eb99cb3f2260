"""How good a dictionary is: the numbers of appendix B.3.

    variance explained = 1 - Var(x - x_hat) / Var(x)
    CE recovered       = (CE_hat - CE_zero) / (CE - CE_zero)

CE is the model's mean cross-entropy on the next token, in nats; CE_hat with x_hat in the
submodule's place, CE_zero with zero there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.dictionaries import Dictionary, check_widths
from core.errors import InputError
from core.models import LanguageModel, Recording
from core.models.replay import stream_with
from core.types import causal_order, token_mask


@dataclass(frozen=True)
class DictionaryMetrics:
    """Metrics of one dictionary on a sample of tokens.

    Attributes:
        variance_explained: share of the variance, summed over the d axes; NaN where there is none.
        l1, l0: mean over tokens of the norm_1 of f and of the number of active features.
        alive: share of features active on at least one token.
        ce, ce_hat, ce_zero: cross-entropy of the model as it is, with the reconstruction in
            place, with zero in place; nats per token.
        density: share of tokens at which each feature is active, ``(feature,)``.
        n_tokens: tokens measured.
    """

    variance_explained: float
    l1: float
    l0: float
    alive: float
    ce: float
    ce_hat: float
    ce_zero: float
    density: Tensor
    n_tokens: int

    @property
    def ce_difference(self) -> float:
        """What the reconstruction costs, nats per token."""
        return self.ce_hat - self.ce

    @property
    def ce_recovered(self) -> float:
        """Share of what the submodule contributes that its reconstruction keeps.

        NaN where it contributes nothing.
        """
        return _ratio(self.ce_hat - self.ce_zero, self.ce - self.ce_zero)


def _ratio(part: float, whole: float) -> float:
    """NaN, "not defined", where there is no whole: a constant output varies not at all."""
    return part / whole if whole else math.nan


class _Sums:
    """Sums over tokens, in float64, from which the metrics follow."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.n_tokens = 0
        self.l1 = 0.0
        self.n_active = torch.zeros(dictionary.n_features, dtype=torch.long)
        self.x = torch.zeros(dictionary.d, dtype=torch.float64)
        self.error = torch.zeros(dictionary.d, dtype=torch.float64)
        self.x_squared = 0.0
        self.error_squared = 0.0
        self.ce = {"": 0.0, "hat": 0.0, "zero": 0.0}
        self.n_predicted = 0

    def add(self, x: Tensor, features: Tensor, error: Tensor) -> None:
        """Add tokens: x and error ``(tokens, d)``, features ``(tokens, feature)``."""
        self.n_tokens += x.shape[0]
        self.l1 += float(features.abs().sum(dtype=torch.float64))
        self.n_active += (features != 0).sum(0).cpu()
        x, error = x.double(), error.double()
        self.x += x.sum(0).cpu()
        self.error += error.sum(0).cpu()
        self.x_squared += float(x.square().sum())
        self.error_squared += float(error.square().sum())

    def _variance(self, squared: float, total: Tensor) -> float:
        return squared / self.n_tokens - float((total / self.n_tokens).square().sum())

    def metrics(self) -> DictionaryMetrics:
        """The metrics of all tokens added."""
        density = self.n_active.double() / self.n_tokens
        unexplained = self._variance(self.error_squared, self.error)
        ce = {name: total / self.n_predicted for name, total in self.ce.items()}
        return DictionaryMetrics(
            variance_explained=1 - _ratio(unexplained, self._variance(self.x_squared, self.x)),
            l1=self.l1 / self.n_tokens,
            l0=float(density.sum()),
            alive=float((density > 0).double().mean()),
            ce=ce[""],
            ce_hat=ce["hat"],
            ce_zero=ce["zero"],
            density=density.float(),
            n_tokens=self.n_tokens,
        )


def logits_with(model: LanguageModel, recording: Recording, name: str, value: Tensor) -> Tensor:
    """Logits of a recorded run with another value at one submodule.

    Args:
        model: the model.
        recording: of the run.
        name: the submodule.
        value: what it gives instead, ``(batch, pos, d)``.

    Returns:
        ``(batch, pos, vocabulary)``.
    """
    stream, layer = stream_with(model, recording, name, value)
    return model.logits(model.run_layers(stream, recording.context, layer))


def _cross_entropy(logits: Tensor, tokens: Tensor, mask: Tensor) -> tuple[float, int]:
    """Sum over predicted tokens of -log p, and how many there are."""
    real = mask[:, :-1] & mask[:, 1:]
    chosen = logits[:, :-1][real].float()
    return float(F.cross_entropy(chosen, tokens[:, 1:][real], reduction="sum")), int(real.sum())


@torch.no_grad()
def measure_dictionaries(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    batch_contexts: int = 16,
    progress: Callable[[str], None] | None = None,
) -> dict[str, DictionaryMetrics]:
    """The metrics of several dictionaries of one model; one run of it is shared by all.

    Args:
        model: the model.
        dictionaries: by submodule; each is put in place alone.
        tokens: ``(batch, pos)``; the paper takes 128 contexts of 128 tokens.
        mask: ``(batch, pos)``, True at real tokens; None for all.
        batch_contexts: contexts in one run of the model.
        progress: told about each submodule's numbers.

    Returns:
        Metrics by submodule, in causal order.

    Raises:
        WidthMismatch: a dictionary does not fit its submodule.
        InputError: no token is followed by another.
    """
    check_widths(dictionaries, model.width)
    mask = token_mask(tokens, mask)
    if not bool((mask[:, :-1] & mask[:, 1:]).any()):
        raise InputError("no token is followed by another, so there is nothing to predict.")
    names = causal_order(dictionaries)
    sums = {name: _Sums(dictionaries[name]) for name in names}
    for start in range(0, len(tokens), batch_contexts):
        rows = slice(start, start + batch_contexts)
        recording = model.record(tokens[rows], mask[rows])
        logits = model.logits(recording.outputs[f"resid_{model.n_layers - 1}"])
        ce, n = _cross_entropy(logits, recording.tokens, recording.mask)
        for name in names:
            sums[name].ce[""] += ce
            sums[name].n_predicted += n
            _measure(model, recording, name, dictionaries[name], sums[name])
    metrics = {name: sums[name].metrics() for name in names}
    if progress is not None:
        for name, m in metrics.items():
            progress(
                f"{name}: variance explained {m.variance_explained:.1%}, L0 {m.l0:.1f}, "
                f"CE recovered {m.ce_recovered:.1%}"
            )
    return metrics


def _measure(
    model: LanguageModel, recording: Recording, name: str, dictionary: Dictionary, sums: _Sums
) -> None:
    x = recording.outputs[name]
    rows = x[recording.mask]
    features = dictionary.encode(rows)
    x_hat = dictionary.decode(features).to(x.dtype)
    sums.add(rows, features, rows - x_hat)
    value = torch.zeros_like(x)
    for which, replacement in (("hat", x_hat), ("zero", torch.zeros_like(x_hat))):
        value[recording.mask] = replacement
        logits = logits_with(model, recording, name, value)
        sums.ce[which] += _cross_entropy(logits, recording.tokens, recording.mask)[0]


def measure_dictionary(
    model: LanguageModel,
    name: str,
    dictionary: Dictionary,
    tokens: Tensor,
    mask: Tensor | None = None,
) -> DictionaryMetrics:
    """The metrics of one dictionary; see `measure_dictionaries`."""
    return measure_dictionaries(model, {name: dictionary}, tokens, mask)[name]
