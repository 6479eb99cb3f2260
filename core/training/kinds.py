"""The kinds of dictionary as training sees them: which features fire, the loss, its gradient.

All kinds share one pass (`core.training.learner`):

    pre   = encoder (x - bias) + encoder_bias
    f     = the kind's features, on its active pairs
    x_hat = f decoder + bias

and its hand-written gradient. A kind adds which pairs are active, the value of a feature, the loss
and what flows back into `pre`, and what is measured at the end. Inputs have unit mean squared norm.

| kind | loss | source |
|---|---|---|
| relu | mean norm of the error + sparsity * mean norm_1 of f | Marks et al. 2024, App. B |
| topk | squared error + 1/32 AuxK | Gao et al. 2024, section 2 and App. A.2 |
| batchtopk | the same, the k largest per token on average | Bussmann et al. 2024 |
| jumprelu | squared error + sparsity * mean norm_0 of f | Rajamanoharan et al. 2024b, eqs 9-12 |
| gated | both squared errors + sparsity * norm_1 of the gate | Rajamanoharan et al. 2024a, eq. 8 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.dictionaries import Activation, Gated, JumpReLU, ReLU, TopK
from core.errors import InputError
from core.sparse import above, true_places
from core.training.entries import Entries, entries_of
from core.training.weights import Weights

if TYPE_CHECKING:
    from core.training.settings import TrainingSettings

# Width of the window in which a threshold feels its gradient, and where thresholds start
# (Rajamanoharan et al. 2024b, App. D: both 0.001 for inputs of unit mean squared norm).
BANDWIDTH = 1e-3
START_THRESHOLD = 1e-3
AUX_WEIGHT = 1 / 32


@dataclass
class Pass:
    """What one batch gives on the way through a dictionary.

    Attributes:
        x: ``(batch, d)``, the scaled input.
        seen: ``(batch, d)``, what the encoder sees of it.
        pre: ``(batch, feature)``.
        entries: the active pairs.
        at: `pre` at the pairs.
        value: features at the pairs.
        error: x_hat - x, ``(batch, d)``: minus `SparseAct.error`, with the sign of the gradient.
        dead: ``(feature,)`` bool.
        sparsity: weight of the penalty at this step.
    """

    x: Tensor
    seen: Tensor
    pre: Tensor
    entries: Entries
    at: Tensor
    value: Tensor
    error: Tensor
    dead: Tensor
    sparsity: float

    @property
    def n(self) -> int:
        """Tokens in the batch."""
        return self.x.shape[0]


_KINDS: dict[str, type[Kind]] = {}


class Kind:
    """What a kind adds to the shared pass; a subclass is registered under its `name`.

    What stands here is the paper's own, so a new kind says in what it differs.

    Attributes:
        extra: names of the parameters it adds, each ``(feature,)``.
        centred: whether the encoder sees x - bias or x.
        has_encoder_bias: whether the encoder has a bias of its own.
        resamples: whether dead features are resampled.
        measured: names of the numbers it measures from data after the last step.
    """

    extra: tuple[str, ...] = ()
    centred = True
    has_encoder_bias = True
    resamples = True
    measured: tuple[str, ...] = ()

    def __init_subclass__(cls, *, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            _KINDS[name] = cls

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings

    @classmethod
    def check(cls, settings: TrainingSettings) -> None:
        """Raise `InputError` if the kind cannot be trained with these settings."""

    def start(self, weights: Weights) -> None:
        """Set the parameters it adds, in place."""

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        """The active pairs."""
        return entries_of(above(pre, 0.0))

    def value(self, weights: Weights, entries: Entries, at: Tensor) -> Tensor:
        """Features at the pairs."""
        return at

    def reconstruction(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Loss of the reconstruction, and its gradient with respect to x_hat, ``(batch, d)``."""
        norm = p.error.norm(dim=1, keepdim=True)
        return norm.mean(), p.error / norm.clamp_(min=1e-8).mul_(p.n)

    def encoder_gradient(
        self, p: Pass, weights: Weights, gradient: Weights, d_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of the penalty, and the gradient of everything with respect to `pre` at the pairs.

        Args:
            p: the pass.
            weights: the parameters.
            gradient: filled here for the parameters the kind adds.
            d_value: gradient of the reconstruction with respect to the features at the pairs.
        """
        cost = p.sparsity / p.n
        ones = p.entries.of_feature(torch.ones_like(weights.encoder_bias))
        return p.value.sum() * cost, d_value.add_(ones, alpha=cost)

    def auxiliary(self, p: Pass, weights: Weights, gradient: Weights) -> Tensor:
        """A further loss, its gradient added to `gradient` in place."""
        return p.error.new_zeros(())

    @property
    def wanted_l0(self) -> int | None:
        """How many features per token shall be active, where the kind says."""
        return None

    def measure(self, pre: Tensor) -> Mapping[str, Tensor]:
        """What one batch says of each of `measured`, ``()``; the mean over batches counts.

        Args:
            pre: ``(batch, feature)``, with the weights as the last step left them.
        """
        return {}

    def activation(self, weights: Weights, state: Mapping[str, Tensor]) -> Activation:
        """The activation of the dictionary as trained; `state` has what was measured."""
        return ReLU()


class ReLUKind(Kind, name="relu"):
    """The paper's own (App. B)."""


class Squared(Kind):
    """Kinds whose loss is the squared error."""

    resamples = False

    def reconstruction(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Mean squared error per token, and its gradient."""
        return p.error.square().sum() / p.n, p.error * (2 / p.n)


class TopKKind(Squared, name="topk"):
    """The k largest of each token; dead features learn to rebuild the error (AuxK)."""

    @classmethod
    def check(cls, settings: TrainingSettings) -> None:
        """There are k features to be active."""
        if settings.k > settings.n_features:
            raise InputError(
                f"k is {settings.k} but there are only {settings.n_features} features."
            )

    @property
    def wanted_l0(self) -> int | None:
        """The k of the settings."""
        return self.settings.k

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        """The k largest of each token, where positive."""
        largest = pre.topk(self.settings.k, dim=1, sorted=False).indices
        mask = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, largest, True)
        return entries_of(mask & (pre > 0))

    def encoder_gradient(
        self, p: Pass, weights: Weights, gradient: Weights, d_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """No penalty: k is the sparsity."""
        return p.error.new_zeros(()), d_value

    def auxiliary(self, p: Pass, weights: Weights, gradient: Weights) -> Tensor:
        """AuxK: the d/2 largest dead features rebuild the error, which is held fixed."""
        dead = p.dead.nonzero().flatten()
        if not len(dead):
            return p.error.new_zeros(())
        k = min(len(dead), max(1, p.x.shape[1] // 2))
        encoder, decoder = weights.encoder[dead], weights.decoder[dead]
        f = F.relu(p.pre.index_select(1, dead))
        if k < len(dead):
            value, largest = f.topk(k, dim=1, sorted=False)
            f = torch.zeros_like(f).scatter_(1, largest, value)
        error = f @ decoder + p.error
        g = error * (2 * AUX_WEIGHT / p.n)
        d_pre = (g @ decoder.t()) * (f > 0)
        gradient.decoder[dead] += f.t() @ g
        gradient.encoder[dead] += d_pre.t() @ p.seen
        gradient.encoder_bias[dead] += d_pre.sum(0)
        gradient.bias.sub_(d_pre.sum(0) @ encoder)
        return AUX_WEIGHT * error.square().sum() / p.n

    def activation(self, weights: Weights, state: Mapping[str, Tensor]) -> Activation:
        """The activation of the dictionary as trained."""
        return TopK(self.settings.k)


_EVERY = 61
"""One in so many numbers is looked at first; no power of two, which would be the same features."""


def largest_left_out(numbers: Tensor, n_kept: int) -> Tensor:
    """The largest of ``(n,)`` numbers besides the `n_kept` largest, ``()``; 0 where all are kept.

    A few of the numbers tell a bound that about twice as many exceed as are kept. Those are
    searched alone, unless the bound was too high.
    """
    if n_kept >= len(numbers):
        return numbers.new_zeros(())
    some = numbers[::_EVERY]
    n_above = 2 * n_kept // _EVERY + 1
    if n_above < len(some):
        bound = some.kthvalue(len(some) - n_above).values
        larger = numbers.index_select(0, true_places(above(numbers, bound)))
        numbers = larger if len(larger) > n_kept else numbers
    return numbers.kthvalue(len(numbers) - n_kept).values


class BatchTopKKind(TopKKind, name="batchtopk"):
    """The k * batch largest of the whole batch; a JumpReLU with one threshold afterwards.

    The threshold is the mean over batches of what is just left out (Bussmann et al. 2024
    take what is just kept), under the weights as they are after the last step: a mean kept while
    training would be of weights that no longer are, and no longer leave k features per token.
    """

    measured = ("threshold",)

    def _floor(self, pre: Tensor) -> Tensor:
        """The largest of ``(batch, feature)`` that is left out, not below zero, ``()``."""
        return largest_left_out(pre.view(-1), self.settings.k * pre.shape[0]).clamp(min=0)

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        """The k * batch largest, where positive."""
        return entries_of(above(pre, self._floor(pre)))

    def measure(self, pre: Tensor) -> Mapping[str, Tensor]:
        """The threshold that leaves k features per token of this batch."""
        return {"threshold": self._floor(pre)}

    def activation(self, weights: Weights, state: Mapping[str, Tensor]) -> Activation:
        """The activation of the dictionary as trained."""
        return JumpReLU(state["threshold"].expand(len(weights.encoder_bias)).clone())


class JumpReLUKind(Squared, name="jumprelu"):
    """A trained threshold for each feature, which feels the loss through a window around it."""

    extra = ("log_threshold",)
    centred = False

    def start(self, weights: Weights) -> None:
        """All thresholds at the paper's start."""
        weights.extra["log_threshold"].fill_(START_THRESHOLD).log_()

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        """Features above their threshold, and those near enough below it to move it."""
        return entries_of(pre > weights.extra["log_threshold"].exp() - BANDWIDTH / 2)

    def value(self, weights: Weights, entries: Entries, at: Tensor) -> Tensor:
        """pre above the threshold, 0 below."""
        return F.relu(at * (at > entries.of_feature(weights.extra["log_threshold"].exp())))

    def encoder_gradient(
        self, p: Pass, weights: Weights, gradient: Weights, d_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Count of active features; eqs 11 and 12 for the thresholds."""
        threshold = weights.extra["log_threshold"].exp()
        of_pair = p.entries.of_feature(threshold)
        # It is zero only at what dense entries leave out.
        near = (of_pair > 0) & ((p.at - of_pair).abs() < BANDWIDTH / 2)
        d_threshold = near * (d_value * of_pair + p.sparsity / p.n) / -BANDWIDTH
        gradient.extra["log_threshold"].copy_(p.entries.per_feature(d_threshold) * threshold)
        active = p.value > 0
        return active.sum() * (p.sparsity / p.n), d_value * active

    def activation(self, weights: Weights, state: Mapping[str, Tensor]) -> Activation:
        """The activation of the dictionary as trained."""
        return JumpReLU(weights.extra["log_threshold"].exp())


class GatedKind(Squared, name="gated"):
    """A gate that decides and is penalised, a magnitude that is not."""

    extra = ("gate_bias", "log_scale", "magnitude_bias")
    has_encoder_bias = False
    resamples = True

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        """Features whose gate is open."""
        return entries_of(pre + weights.extra["gate_bias"] > 0)

    def _magnitude(self, weights: Weights, entries: Entries, at: Tensor) -> Tensor:
        scale = entries.of_feature(weights.extra["log_scale"].exp())
        return scale * at + entries.of_feature(weights.extra["magnitude_bias"])

    def value(self, weights: Weights, entries: Entries, at: Tensor) -> Tensor:
        """The magnitude where the gate is open."""
        return F.relu(self._magnitude(weights, entries, at))

    def encoder_gradient(
        self, p: Pass, weights: Weights, gradient: Weights, d_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Penalty and reconstruction of the gate, through a decoder held fixed (eq. 8)."""
        cost = p.sparsity / p.n
        gate = p.at + p.entries.of_feature(weights.extra["gate_bias"])
        error = p.entries.decode(gate, weights.decoder) + weights.bias - p.x
        d_gate = p.entries.products(error * (2 / p.n), weights.decoder)
        d_gate.add_(p.entries.of_feature(torch.ones_like(weights.encoder_bias)), alpha=cost)
        d_magnitude = d_value * (p.value > 0)
        scale = p.entries.of_feature(weights.extra["log_scale"].exp())
        d_scaled = d_magnitude * scale
        gradient.extra["gate_bias"].copy_(p.entries.per_feature(d_gate))
        gradient.extra["log_scale"].copy_(p.entries.per_feature(d_scaled * p.at))
        gradient.extra["magnitude_bias"].copy_(p.entries.per_feature(d_magnitude))
        loss = error.square().sum() / p.n + gate.sum() * cost
        return loss, d_scaled + d_gate

    def activation(self, weights: Weights, state: Mapping[str, Tensor]) -> Activation:
        """The activation of the dictionary as trained."""
        return Gated(
            gate_bias=weights.extra["gate_bias"].clone(),
            scale=weights.extra["log_scale"].exp(),
            magnitude_bias=weights.extra["magnitude_bias"].clone(),
        )


def kind_named(name: str) -> type[Kind]:
    """The kind registered as `name`; raises `InputError` if there is none."""
    if name not in _KINDS:
        raise InputError(f"kind '{name}' is not one of {', '.join(_KINDS)}.")
    return _KINDS[name]
