"""A finished set of dictionaries trained on together, through the model they read.

Each dictionary is trained alone (`core.training.loop`), on the stream as the model makes it. In a
circuit without error nodes it reads something else: what the dictionaries before it left, of which
the circuit keeps a part. So some contexts of each step run

    in series    every dictionary in place, without errors:     L = own losses + KL(model || run)
    in part      the same, features dropped at random:          L = own losses

A dictionary's own loss is that of its training (App. B), on what it reads in the run: norm of the
error + sparsity * norm_1 of its features, in units of its inputs. In part, each context keeps a
share of all features between `_LEAST_KEPT` and 1, drawn evenly, each dictionary its own, and no
gradient passes from one dictionary to the next. The embedding's is left as it is: evaluations
never ablate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.dictionaries import Dictionary, ReLU, check_widths
from core.dictionaries.transform import scaled
from core.errors import InputError, NotFinite
from core.inputs import pad
from core.models import LanguageModel, Recording
from core.models.hooks import Visit
from core.training.weights import normalise_rows

_LEAST_KEPT = 0.05
_WARMUP, _DECAY = 10, 0.3  # steps of rising, and the share of all steps of falling learning rate
_TRAINED = ("encoder", "encoder_bias", "decoder", "bias")


@dataclass(frozen=True)
class TuningSettings:
    """Settings of one tuning.

    Attributes:
        n_steps: optimiser steps.
        learning_rate: Adam's.
        dropped: share of the contexts of a step that run in part.
        sparsity: weight of norm_1 of the features, as in training.
        n_contexts, n_positions: contexts of one step, and tokens read of each.
        seed: of the draw of contexts and features.
    """

    n_steps: int = 120
    learning_rate: float = 1e-3
    dropped: float = 0.75
    sparsity: float = 0.1
    n_contexts: int = 16
    n_positions: int = 40
    seed: int = 0


def tune_in_series(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    contexts: Sequence[Sequence[int]],
    settings: TuningSettings = TuningSettings(),
    *,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Dictionary]:
    """Train a set of ReLU dictionaries on, so that circuits can do without their errors.

    Args:
        model: the model they belong to; it stays as it is.
        dictionaries: by submodule, as trained; all of the set.
        contexts: token ids, none empty; those the dictionaries were trained on.
        progress: told now and then how far it is.

    Returns:
        The set tuned; decoder rows of unit norm.

    Raises:
        InputError: a dictionary is not of kind relu with one bias, or there is no context.
        WidthMismatch, MissingSubmodule: a dictionary does not fit the model.
        NotFinite: a loss became NaN or infinite.
    """
    check_widths(dictionaries, model.width)
    _check(dictionaries, contexts)
    if not set(dictionaries) - {"embed"}:
        return dict(dictionaries)
    generator = torch.Generator().manual_seed(settings.seed)
    set_ = _Set(model, dictionaries, settings, generator)
    every = max(1, settings.n_steps // 6)
    for step in range(settings.n_steps):
        rows = torch.randint(len(contexts), (settings.n_contexts,), generator=generator)
        drawn = [list(contexts[i])[: settings.n_positions] for i in rows.tolist()]
        kl, own = set_.step(step, model.record(*pad(drawn)))
        if not math.isfinite(kl + own):
            raise NotFinite(
                f"the loss of tuning is {kl + own} at step {step}: lower its learning rate."
            )
        if progress is not None and ((step + 1) % every == 0 or step + 1 == settings.n_steps):
            progress(f"tuning: step {step + 1} of {settings.n_steps}; KL {kl:.4f}, own {own:.4g}")
    return set_.dictionaries()


def _check(dictionaries: Mapping[str, Dictionary], contexts: Sequence[Sequence[int]]) -> None:
    if not contexts:
        raise InputError("no contexts to tune on: give those the dictionaries were trained on.")
    for name, dictionary in dictionaries.items():
        same_bias = bool((dictionary.bias == dictionary.input_bias).all())
        if not isinstance(dictionary.activation, ReLU) or not same_bias:
            raise InputError(
                f"the dictionary of {name} is of kind {dictionary.activation.name}"
                f"{'' if same_bias else ' with two biases'}: only relu dictionaries, as they are "
                "trained here, can be tuned in series."
            )


class _Set:
    """The dictionaries in training, each in units in which its inputs have unit mean square."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[str, Dictionary],
        settings: TuningSettings,
        generator: torch.Generator,
    ) -> None:
        self.model, self.settings, self.generator = model, settings, generator
        self.start = dict(dictionaries)
        self.scale: dict[str, float] = {}
        self.weights: dict[str, dict[str, Tensor]] = {}

    def _begin(self, recording: Recording) -> None:
        """Scales of the inputs, weights and Adam's state, from the first contexts."""
        for name, dictionary in self.start.items():
            if name != "embed":
                x = recording.outputs[name][recording.mask].float()
                self.scale[name] = 1 / max(1e-12, float(x.square().sum(1).mean().sqrt()))
                unit = scaled(dictionary, self.scale[name])
                self.weights[name] = {
                    part: getattr(unit, part).float().clone().requires_grad_() for part in _TRAINED
                }
        every = [tensor for weights in self.weights.values() for tensor in weights.values()]
        self.adam = torch.optim.Adam(every)

    def step(self, step: int, recording: Recording) -> tuple[float, float]:
        """One step on some contexts; their KL, and the mean loss of a dictionary's own."""
        if not self.weights:
            self._begin(recording)
        settings, n = self.settings, recording.n_examples
        n_whole = n - round(n * settings.dropped)
        order = torch.arange(n, device=self.model.device)
        losses: list[Tensor] = []
        kl = torch.zeros((), device=self.model.device)
        if n_whole:
            whole = recording.select(order[:n_whole])
            stream = self._run(whole, self._in_series(whole, losses, n_whole / n))
            kl = self._divergence(whole, stream)
        if n_whole < n:
            rest = recording.select(order[n_whole:])
            self._run(rest, self._in_part(rest, losses, 1 - n_whole / n))
        own = torch.stack(losses).sum()
        left = (settings.n_steps - step) / (_DECAY * settings.n_steps)
        rate = settings.learning_rate * min(1.0, (step + 1) / _WARMUP, left)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad()
        (own + kl).backward()
        self.adam.step()
        with torch.no_grad():
            for weights in self.weights.values():
                normalise_rows(weights["decoder"])
        return kl.item(), own.item() / len(self.weights)

    def _run(self, recording: Recording, visit: Visit) -> Tensor:
        stream = recording.stream_before(0)
        for layer in range(self.model.n_layers):
            stream = self.model.layer(layer, stream, recording.context[layer], visit)
        return stream

    def _read(
        self, name: str, x: Tensor, mask: Tensor, losses: list[Tensor], share: float
    ) -> tuple[Tensor, Tensor]:
        """Features of x and their decoding, in its units; adds the dictionary's own loss."""
        weights, x = self.weights[name], x.float() * self.scale[name]
        pre = F.linear(x - weights["bias"], weights["encoder"], weights["encoder_bias"])
        features = F.relu(pre)
        x_hat = features @ weights["decoder"] + weights["bias"]
        # The norm of a vector of zeros has no gradient.
        error = (x - x_hat).square().sum(-1).clamp(min=1e-12).sqrt()
        loss = error + self.settings.sparsity * features.sum(-1)
        losses.append(share * loss[mask].mean())
        return features, x_hat / self.scale[name]

    def _in_series(self, recording: Recording, losses: list[Tensor], share: float) -> Visit:
        def visit(name: str, x: Tensor) -> Tensor:
            if name not in self.weights:
                return x
            return self._read(name, x, recording.mask, losses, share)[1].to(x.dtype)

        return visit

    def _in_part(self, recording: Recording, losses: list[Tensor], share: float) -> Visit:
        kept = torch.rand(recording.n_examples, 1, 1, generator=self.generator)
        kept = _LEAST_KEPT + (1 - _LEAST_KEPT) * kept

        def visit(name: str, x: Tensor) -> Tensor:
            if name not in self.weights:
                return x
            features, _ = self._read(name, x, recording.mask, losses, share)
            shape = (recording.n_examples, 1, features.shape[-1])
            stays = (torch.rand(shape, generator=self.generator) < kept).to(x.device)
            weights = self.weights[name]
            with torch.no_grad():
                part = (features * stays) @ weights["decoder"] + weights["bias"]
            return (part / self.scale[name]).to(x.dtype)

        return visit

    def _divergence(self, recording: Recording, stream: Tensor) -> Tensor:
        """KL from the model's next tokens to the run's, in nats, mean over real tokens."""
        own = recording.outputs[f"resid_{self.model.n_layers - 1}"]
        wanted, found = (
            self.model.logits(s[recording.mask]).float().log_softmax(-1) for s in (own, stream)
        )
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean")

    def dictionaries(self) -> dict[str, Dictionary]:
        """The set as it is now, in the units of the activations."""
        out = dict(self.start)
        for name, weights in self.weights.items():
            values = {part: w.detach().to(out[name].decoder) for part, w in weights.items()}
            unit = replace(out[name], **values, input_bias=values["bias"])
            out[name] = scaled(unit, 1 / self.scale[name])
        return out
