"""How good a dictionary is: the numbers of appendix B.3, and two that circuits depend on.

    variance explained = 1 - Var(x - x_hat) / Var(x)
    CE recovered       = (CE_hat - CE_zero) / (CE - CE_zero)
    error norm         = mean |x - x_hat| / |x|                      at confident tokens
    in series          = (CE_series - CE_empty) / (CE - CE_empty)    at confident tokens

CE is the model's mean cross-entropy on the next token, in nats; CE_hat with x_hat in the
submodule's place, CE_zero with zero there. Confident tokens are those from which the model
predicts the next with a cross-entropy below `CONFIDENT`: circuits explain nothing else, and
variance says little about them.

CE_series is with this and every earlier dictionary in place, each reading what those before it
left of the stream; CE_empty with every submodule at its decoder's bias. At the last submodule,
`in series` is the faithfulness of the circuit of all features and no error nodes. The embedding
is left as it is, as in all evaluations (`core.evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.dictionaries import Dictionary, check_widths
from core.dictionaries.dictionary import DENSE
from core.errors import InputError
from core.models import LanguageModel, Recording
from core.models.replay import stream_with
from core.types import causal_order, token_mask

CONFIDENT = 0.1
"""Nats; the paper's limit for tokens worth explaining (section 5)."""


@dataclass(frozen=True)
class DictionaryMetrics:
    """Metrics of one dictionary on a sample of tokens.

    Attributes:
        variance_explained: share of the variance, summed over the d axes; NaN where there is none.
        l1, l0: mean over tokens of the norm_1 of f and of the number of active features.
        alive: share of features active on at least one token.
        ce, ce_hat, ce_zero: cross-entropy of the model as it is, with the reconstruction in
            place, with zero in place; nats per token.
        error_norm: mean norm of the error over that of the activation, at confident tokens; NaN
            where there is none.
        in_series: share of the confident tokens' cross-entropy kept with this and every earlier
            dictionary in place; NaN for `embed`, and where there is no such token.
        density: share of tokens at which each feature is active, ``(feature,)``.
        n_tokens: tokens measured.
        n_confident: how many of them are confident.
    """

    variance_explained: float
    l1: float
    l0: float
    alive: float
    ce: float
    ce_hat: float
    ce_zero: float
    error_norm: float
    in_series: float
    density: Tensor
    n_tokens: int
    n_confident: int

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
        self.error_norm = 0.0
        self.at_confident = {"": 0.0, "series": math.nan, "empty": 0.0}
        self.n_confident = 0

    def add(self, x: Tensor, features: Tensor, error: Tensor, confident: Tensor) -> None:
        """Add tokens: x and error ``(tokens, d)``, features ``(tokens, feature)``.

        Args:
            confident: ``(tokens,)`` bool.
        """
        self.n_tokens += x.shape[0]
        self.l1 += float(features.abs().sum(dtype=torch.float64))
        self.n_active += (features != 0).sum(0).cpu()
        x, error = x.double(), error.double()
        self.x += x.sum(0).cpu()
        self.error += error.sum(0).cpu()
        self.x_squared += float(x.square().sum())
        self.error_squared += float(error.square().sum())
        norms = error[confident].norm(dim=1) / x[confident].norm(dim=1).clamp(min=1e-12)
        self.error_norm += float(norms.sum())

    def add_confident(self, losses: Mapping[str, Tensor]) -> None:
        """Add cross-entropies at confident tokens, ``(token,)``, by what `at_confident` holds."""
        for name, loss in losses.items():
            total = float(loss.sum(dtype=torch.float64))
            before = self.at_confident[name]
            self.at_confident[name] = total + (0.0 if math.isnan(before) else before)
        self.n_confident += len(losses[""])

    def _variance(self, squared: float, total: Tensor) -> float:
        return squared / self.n_tokens - float((total / self.n_tokens).square().sum())

    def metrics(self) -> DictionaryMetrics:
        """The metrics of all tokens added."""
        density = self.n_active.double() / self.n_tokens
        unexplained = self._variance(self.error_squared, self.error)
        ce = {name: total / self.n_predicted for name, total in self.ce.items()}
        sure = self.at_confident
        return DictionaryMetrics(
            variance_explained=1 - _ratio(unexplained, self._variance(self.x_squared, self.x)),
            l1=self.l1 / self.n_tokens,
            l0=float(density.sum()),
            alive=float((density > 0).double().mean()),
            ce=ce[""],
            ce_hat=ce["hat"],
            ce_zero=ce["zero"],
            error_norm=_ratio(self.error_norm, self.n_confident),
            in_series=_ratio(sure["series"] - sure["empty"], sure[""] - sure["empty"]),
            density=density.float(),
            n_tokens=self.n_tokens,
            n_confident=self.n_confident,
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


def _cross_entropy(logits: Tensor, recording: Recording) -> Tensor:
    """-log p of each real token that follows a real one, ``(token,)``."""
    real = _predicting(recording)[:, :-1]
    chosen = logits[:, :-1][real].float()
    return F.cross_entropy(chosen, recording.tokens[:, 1:][real], reduction="none")


def _predicting(recording: Recording) -> Tensor:
    """Real tokens that a real one follows, ``(batch, pos)`` bool."""
    mask = recording.mask.clone()
    mask[:, :-1] &= recording.mask[:, 1:]
    mask[:, -1] = False
    return mask


def in_series(
    model: LanguageModel, recording: Recording, dictionaries: Mapping[str, Dictionary]
) -> Iterator[tuple[str, Tensor]]:
    """Logits with the dictionaries of ever more submodules in place, without their errors.

    Each reconstructs what the run has become by those before it; the embedding's is left out.

    Yields:
        Of each submodule in causal order its name, and the logits ``(batch, pos, vocabulary)``
        with it and all before it in place.
    """
    for layer in range(model.n_layers):
        stream, context = recording.stream_before(layer), recording.context[layer]
        attn, mlp, resid = f"attn_{layer}", f"mlp_{layer}", f"resid_{layer}"
        parts = {attn: model.attn(layer, stream, context)}
        if model.parallel:
            parts[mlp] = model.mlp(layer, stream)
        for name in (attn, mlp, resid):
            if name not in parts:
                middle = model.after_attn(layer, stream, parts[attn])
                parts[name] = (
                    middle + model.write_mlp(layer, parts[mlp])
                    if name == resid
                    else model.mlp(layer, middle)
                )
            if name in dictionaries:
                x = parts[name]
                parts[name] = dictionaries[name].reconstruct(x).to(x.dtype)
            recording = replace(recording, outputs={**recording.outputs, **parts})
            if name in dictionaries:
                yield name, logits_with(model, recording, name, parts[name])


def _logits_of_nothing(
    model: LanguageModel, recording: Recording, dictionaries: Mapping[str, Dictionary]
) -> Tensor:
    """Logits with every submodule at its decoder's bias, ``(batch, pos, vocabulary)``."""

    def ablated(name: str, x: Tensor) -> Tensor:
        return dictionaries[name].bias.to(x.dtype).expand_as(x) if name in dictionaries else x

    stream = recording.stream_before(0)
    for layer in range(model.n_layers):
        stream = model.layer(layer, stream, recording.context[layer], ablated)
    return model.logits(stream)


@torch.no_grad()
def measure_dictionaries(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    batch_contexts: int = 16,
    budget_bytes: int = 2 << 30,
    progress: Callable[[str], None] | None = None,
) -> dict[str, DictionaryMetrics]:
    """The metrics of several dictionaries of one model; one run of it is shared by all.

    Args:
        model: the model.
        dictionaries: by submodule; each is put in place alone.
        tokens: ``(batch, pos)``; the paper takes 128 contexts of 128 tokens.
        mask: ``(batch, pos)``, True at real tokens; None for all.
        batch_contexts: most contexts in one run of the model.
        budget_bytes: memory for what one run holds; fewer contexts are run at once to keep to it.
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
    size = min(batch_contexts, _contexts_within(model, tokens.shape[1], budget_bytes))
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        recording = model.record(tokens[rows], mask[rows])
        losses = _cross_entropy(
            model.logits(recording.outputs[f"resid_{model.n_layers - 1}"]), recording
        )
        confident = losses < CONFIDENT
        for name in names:
            sums[name].ce[""] += float(losses.sum())
            sums[name].n_predicted += len(losses)
            _measure(model, recording, name, dictionaries[name], sums[name], confident)
        _measure_series(model, recording, dictionaries, sums, losses)
    metrics = {name: sums[name].metrics() for name in names}
    if progress is not None:
        for name, m in metrics.items():
            series = "" if math.isnan(m.in_series) else f", in series {m.in_series:.1%}"
            progress(
                f"{name}: variance explained {m.variance_explained:.1%}, L0 {m.l0:.1f}, "
                f"CE recovered {m.ce_recovered:.1%}{series}"
            )
    return metrics


def _contexts_within(model: LanguageModel, n_pos: int, budget_bytes: int) -> int:
    """Contexts of which one run fits a budget, at least 1.

    A token has its logits four times over while its cross-entropy is computed, and every
    submodule's output as recorded and in series; features are held `DENSE` at a time.
    """
    each = 4 * model.n_vocab + 2 * len(model.submodules) * model.d_model
    return max(1, (budget_bytes - 16 * DENSE) // (4 * n_pos * each))


def _measure(
    model: LanguageModel,
    recording: Recording,
    name: str,
    dictionary: Dictionary,
    sums: _Sums,
    confident: Tensor,
) -> None:
    x = recording.outputs[name]
    rows = x[recording.mask]
    at = torch.zeros_like(recording.mask)
    at[_predicting(recording)] = confident
    parts, size = [], dictionary.n_dense
    for block, sure in zip(rows.split(size), at[recording.mask].split(size), strict=True):
        features = dictionary.encode(block)
        parts.append(dictionary.decode(features).to(x.dtype))
        sums.add(block, features, block - parts[-1], sure)
    x_hat = torch.cat(parts)
    value = torch.zeros_like(x)
    for which, replacement in (("hat", x_hat), ("zero", torch.zeros_like(x_hat))):
        value[recording.mask] = replacement
        logits = logits_with(model, recording, name, value)
        sums.ce[which] += float(_cross_entropy(logits, recording).sum())


def _measure_series(
    model: LanguageModel,
    recording: Recording,
    dictionaries: Mapping[str, Dictionary],
    sums: Mapping[str, _Sums],
    losses: Tensor,
) -> None:
    placed = {name: d for name, d in dictionaries.items() if name != "embed"}
    sure = losses < CONFIDENT
    empty = _cross_entropy(_logits_of_nothing(model, recording, placed), recording)
    common = {"": losses[sure], "empty": empty[sure]}
    if "embed" in dictionaries:
        sums["embed"].add_confident(common)
    for name, logits in in_series(model, recording, placed):
        series = _cross_entropy(logits, recording)[sure]
        sums[name].add_confident({**common, "series": series})


def measure_dictionary(
    model: LanguageModel,
    name: str,
    dictionary: Dictionary,
    tokens: Tensor,
    mask: Tensor | None = None,
) -> DictionaryMetrics:
    """The metrics of one dictionary; see `measure_dictionaries`."""
    return measure_dictionaries(model, {name: dictionary}, tokens, mask)[name]
