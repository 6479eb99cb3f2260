"""One dictionary in training: its state, a step with hand-written gradients, resampling.

A step is the shared part of every kind (see `core.training.kinds`). With g = dL/dx_hat and
d_pre = dL/dpre, both summed over the active pairs alone:

    dL/ddecoder = f^T g                dL/dencoder      = d_pre^T (x - bias)
    dL/dbias    = sum g - (sum d_pre) encoder      dL/dencoder_bias = sum d_pre

The activations of different submodules differ in scale by orders of magnitude, which neither one
learning rate of the biases nor one penalty suits. So a dictionary trains on s x, with s such that
its inputs have unit mean squared norm, and is scaled back exactly at the end: with

    f_s = act(encoder (s x - b_s) + c_s)    and    x_hat_s = f_s decoder + b_s,

f = f_s / s, encoder_bias = c_s / s and bias = b_s / s give x_hat = x_hat_s / s, with the encoder
and the decoder's unit rows as they are (`core.dictionaries.transform.scaled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.dictionaries.transform import scaled
from core.training.buffer import generator_of
from core.training.kinds import Kind, Pass, kind_named
from core.training.settings import TrainingSettings
from core.training.weights import Weights, normalise_rows, remove_parallel

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
# A resampled encoder row is this much shorter than the living ones (Bricken et al. 2023).
_RESAMPLED_NORM = 0.2
_CURVE_POINTS = 50


@dataclass(frozen=True)
class Report:
    """One step of one dictionary.

    Attributes:
        loss: with penalty and auxiliary terms.
        l0: active features per token.
        n_dead: features that have not been active for `dead_after` steps.
    """

    loss: float
    l0: float
    n_dead: int


@dataclass(frozen=True)
class Trained:
    """A dictionary at the end of its training.

    Attributes:
        dictionary: in the units of the activations.
        l0: features per token that are active in it as it stands, on rows of the data's order
            after those it was trained on.
        wanted_l0: what `l0` should be, k, where the kind has one.
        curve: how training went: number of steps done, loss, L0 and share of dead features, at
            up to 50 steps spread evenly over all.
    """

    dictionary: Dictionary
    l0: float
    wanted_l0: int | None
    curve: tuple[tuple[int, float, float, float], ...] = ()


class Learner:
    """A dictionary, Adam's moments and what else its training remembers.

    Attributes:
        name: its submodule.
        state: everything that changes, by name: what a checkpoint holds.
    """

    def __init__(
        self, name: str, d: int, settings: TrainingSettings, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self.d = d
        self.settings = settings
        self.device = torch.device(device)
        self.kind: Kind = kind_named(settings.kind)(settings)
        size = Weights.size(d, settings.n_features, self.kind.extra)
        self.state: dict[str, Tensor] = {
            "weights": torch.zeros(size, device=device),
            "mean": torch.zeros(size, device=device),
            "square": torch.zeros(size, device=device),
            "fired_at": torch.zeros(settings.n_features, dtype=torch.long, device=device),
            "scale": torch.zeros((), device=device),
            "l0": torch.zeros((), dtype=torch.float64, device=device),
            "curve": torch.zeros(_CURVE_POINTS, 4, dtype=torch.float64),
            **{name: torch.zeros((), device=device) for name in self.kind.measured},
        }

    def _named(self, flat: Tensor) -> Weights:
        return Weights.of(flat, self.d, self.settings.n_features, self.kind.extra)

    @cached_property
    def weights(self) -> Weights:
        """The parameters; views of ``state["weights"]``."""
        return self._named(self.state["weights"])

    @cached_property
    def moments(self) -> tuple[Weights, Weights]:
        """Adam's running means of the gradient and of its square."""
        return self._named(self.state["mean"]), self._named(self.state["square"])

    @cached_property
    def gradient(self) -> Weights:
        """The gradient of the last step."""
        return self._named(torch.zeros_like(self.state["weights"]))

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state saved earlier."""
        for name, value in self.state.items():
            value.copy_(state[name])

    def start(self, x: Tensor) -> None:
        """Initial weights and the scale of the inputs, from a first batch ``(batch, d)``."""
        generator = generator_of(self.settings.seed, *self.name.encode())
        x = x.to(self.device, torch.float32)
        self.state["scale"].copy_(x.square().sum(1).mean().clamp(min=1e-24).rsqrt())
        weights = self.weights
        weights.decoder.copy_(torch.randn(weights.decoder.shape, generator=generator))
        normalise_rows(weights.decoder)
        weights.encoder.copy_(weights.decoder)
        weights.bias.copy_(x.mean(0) * self.state["scale"])
        self.kind.start(weights)

    # -- a step --------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, step: int, x: Tensor) -> Report:
        """Step number `step` on a batch of activations ``(batch, d)`` in their own units."""
        if self.settings.resamples_at(step):
            self.resample(step, x)
        p = self._forward(step, x)
        loss = self._backward(p)
        remove_parallel(self.gradient.decoder, self.weights.decoder)
        self._adam(step)
        normalise_rows(self.weights.decoder)
        # A step that spoils the weights is reported at once: they are never saved as good.
        loss = loss + 0 * self.weights.flat.sum()
        report = Report(float(loss), int((p.value > 0).sum()) / p.n, int(p.dead.sum()))
        self._note(step, report)
        return report

    def _note(self, step: int, report: Report) -> None:
        """Keep the last step of each fiftieth of the training."""
        n_features, n_steps = self.settings.n_features, self.settings.n_steps
        point = (step + 1, report.loss, report.l0, report.n_dead / n_features)
        self.state["curve"][step * _CURVE_POINTS // n_steps] = torch.tensor(
            point, dtype=torch.float64
        )

    def _encoder(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled input, what the encoder sees of it, and the pre-activations."""
        x = x.to(self.device, torch.float32) * self.state["scale"]
        seen = x - self.weights.bias if self.kind.centred else x
        return x, seen, torch.addmm(self.weights.encoder_bias, seen, self.weights.encoder.t())

    def _forward(self, step: int, x: Tensor) -> Pass:
        weights, kind = self.weights, self.kind
        x, seen, pre = self._encoder(x)
        entries = kind.entries(weights, pre)
        at = entries.take(pre)
        value = kind.value(weights, entries, at)
        error = entries.decode(value, weights.decoder).add_(weights.bias).sub_(x)
        fired_at = self.state["fired_at"]
        fired_at[entries.per_feature((value > 0).to(value.dtype)) > 0] = step
        dead = step - fired_at > self.settings.dead_after
        sparsity = self.settings.sparsity_at(step)
        return Pass(x, seen, pre, entries, at, value, error, dead, sparsity)

    def _backward(self, p: Pass) -> Tensor:
        weights, gradient, kind = self.weights, self.gradient, self.kind
        loss, g = kind.reconstruction(p)
        d_value = p.entries.products(g, weights.decoder)
        penalty, d_pre = kind.encoder_gradient(p, weights, gradient, d_value)
        gradient.decoder.copy_(p.entries.outer(p.value, g))
        gradient.encoder.copy_(p.entries.outer(d_pre, p.seen))
        gradient.bias.copy_(g.sum(0))
        of_bias = p.entries.per_feature(d_pre)
        if kind.centred:
            gradient.bias.sub_(of_bias @ weights.encoder)
        if kind.has_encoder_bias:
            gradient.encoder_bias.copy_(of_bias)
        return loss + penalty + kind.auxiliary(p, weights, gradient)

    def _adam(self, step: int) -> None:
        """One step of Adam (Kingma & Ba 2015) on all parameters at once."""
        mean, square, g = self.state["mean"], self.state["square"], self.gradient.flat
        first, second = _BETAS
        mean.lerp_(g, 1 - first)
        square.mul_(second).addcmul_(g, g, value=1 - second)
        root = square.sqrt().mul_((1 - second ** (step + 1)) ** -0.5).add_(_EPSILON)
        rate = self.settings.learning_rate_at(step) / (1 - first ** (step + 1))
        self.weights.flat.addcdiv_(mean, root, value=-rate)

    # -- dead features -------------------------------------------------------------------------

    @torch.no_grad()
    def resample(self, step: int, x: Tensor) -> Tensor:
        """Point dead features at what the dictionary explains worst (Bricken et al. 2023).

        Rows of the batch are drawn with probability proportional to their squared loss. The row as
        the encoder sees it, normalised, becomes the feature's decoder row and, much shorter, its
        encoder row; biases and Adam's moments of the feature become zero.

        Args:
            step: number of the step about to be made.
            x: ``(batch, d)``, in its own units.

        Returns:
            The features resampled, ``(n,)``; at most as many as there are rows.
        """
        p = self._forward(step - 1, x)
        loss = p.error.norm(dim=1)
        dead = p.dead.nonzero().flatten()[: int((loss > 0).sum())]
        if not len(dead):
            return dead
        generator = generator_of(self.settings.seed, step, *self.name.encode())
        chances = loss.square().cpu()
        rows = chances.multinomial(len(dead), generator=generator).to(self.device)
        direction = p.seen[rows].clone()
        normalise_rows(direction)
        living = self.weights.encoder[~p.dead]
        norm = living.norm(dim=1).mean() if len(living) else torch.ones((), device=self.device)
        self.weights.decoder[dead] = direction
        self.weights.encoder[dead] = direction * (_RESAMPLED_NORM * norm)
        self.weights.encoder_bias[dead] = 0.0
        for moment in self.moments:
            for of_feature in (moment.encoder, moment.decoder, moment.encoder_bias):
                of_feature[dead] = 0.0
            for extra in moment.extra.values():
                extra[dead] = 0.0
        for extra in self.weights.extra.values():
            extra[dead] = 0.0
        self.state["fired_at"][dead] = step
        return dead

    # -- the result ----------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(self, x: Tensor, share: float) -> None:
        """Add to what the kind measures after training a batch ``(batch, d)`` of weight `share`."""
        for name, value in self.kind.measure(self._encoder(x)[2]).items():
            self.state[name] += share * value

    @torch.no_grad()
    def count_active(self, x: Tensor, share: float) -> None:
        """Add to the measured L0 that of a batch ``(batch, d)`` of weight `share`."""
        features = self.dictionary().encode(x.to(self.device))
        self.state["l0"] += share * (features != 0).sum() / len(x)

    def trained(self) -> Trained:
        """The dictionary and its measured L0."""
        curve = tuple((int(n), *rest) for n, *rest in self.state["curve"].tolist() if n)
        return Trained(self.dictionary(), float(self.state["l0"]), self.kind.wanted_l0, curve)

    @torch.no_grad()
    def dictionary(self) -> Dictionary:
        """The dictionary as it is now, in the units of the activations."""
        weights = self.weights
        as_trained = Dictionary(
            encoder=weights.encoder.clone(),
            encoder_bias=weights.encoder_bias,
            decoder=weights.decoder.clone(),
            bias=weights.bias,
            input_bias=weights.bias if self.kind.centred else torch.zeros_like(weights.bias),
            activation=self.kind.activation(weights, self.state),
        )
        return scaled(as_trained, 1 / float(self.state["scale"]))
