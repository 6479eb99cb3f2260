"""A finished set of dictionaries trained on together, in runs such as circuits have.

Each dictionary is trained alone (`core.training.loop`), on the stream as the model makes it. In a
circuit it reads something else: what the dictionaries before it left, of which the circuit keeps a
part. Here every dictionary is in place, and a context runs

    in series     with all features, without errors                KL(model || run) at every token
    in part       with those that matter most to one prediction    KL(model || run) at its token

the latter with errors in some contexts and without in others, as circuits are judged. What matters
is found as for circuits: by attribution (eq. 3) to the log odds of a token that the model is sure
of, summed over positions. How many features a context keeps is drawn between `_FEWEST` and
`_MOST`, its logarithm evenly; the rest is zero.

To both KLs is added each dictionary's own loss, that of its training (App. B), on every second
token that it reads in the run: norm of the error + sparsity * norm_1 of its features, in units of
its inputs. It passes no gradient on to the dictionaries before, unless `passes_on` says so: they
then learn to put out what is easy to reconstruct, which is best for circuits that have no error
node at all and bad for those that have.
The embedding's dictionary is left as it is: evaluations never ablate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.budget import Passes
from core.dictionaries import Dictionary, ReLU, TopK, check_widths
from core.dictionaries.transform import scaled
from core.effects import clean_gradients
from core.errors import InputError, NotFinite
from core.inputs import pad
from core.metrics import NegativeLogOdds
from core.models import LanguageModel, Recording
from core.models.replay import Resumed
from core.training.weights import normalise_rows

_FEWEST, _MOST = 20, 400
_SURE = 0.9  # probability of a prediction that is worth a circuit, as in the filter of tokens
_WARMUP, _DECAY = 10, 0.3  # steps of rising, and the share of all steps of falling learning rate
_TRAINED = ("encoder", "encoder_bias", "decoder", "bias")


@dataclass(frozen=True)
class TuningSettings:
    """Settings of one tuning.

    Attributes:
        n_steps: optimiser steps.
        learning_rate: Adam's.
        in_part: share of the contexts of a step that run in part.
        with_errors: share of those that keep all errors.
        passes_on: whether own losses move the dictionaries before, too.
        sparsity: weight of norm_1 of the features; 0 where k holds them.
        n_contexts, n_positions: contexts of one step, and tokens read of each.
        seed: of the draw of contexts, predictions and numbers of features.
    """

    n_steps: int = 100
    learning_rate: float = 1e-3
    in_part: float = 0.75
    with_errors: float = 0.25
    passes_on: bool = False
    sparsity: float = 0.08
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
    """Train a set of ReLU or TopK dictionaries on, so that circuits can do without their errors.

    Args:
        model: the model they belong to; it stays as it is.
        dictionaries: by submodule, as trained; all of the set.
        contexts: token ids, none empty; those the dictionaries were trained on.
        progress: told now and then how far it is.

    Returns:
        The set tuned; decoder rows of unit norm.

    Raises:
        InputError: a dictionary is not of kind relu or topk with one bias, or there is no context.
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
        if not isinstance(dictionary.activation, ReLU | TopK) or not same_bias:
            raise InputError(
                f"the dictionary of {name} is of kind {dictionary.activation.name}"
                f"{'' if same_bias else ' with two biases'}: only relu and topk dictionaries, as "
                "they are trained here, can be tuned in series."
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
        self.tuned: dict[str, Dictionary] = {}

    def _begin(self, recording: Recording) -> None:
        """Scales of the inputs, weights and Adam's state, from the first contexts."""
        every: list[Tensor] = []
        for name, dictionary in self.start.items():
            if name != "embed":
                x = recording.outputs[name][recording.mask].float()
                self.scale[name] = 1 / max(1e-12, float(x.square().sum(1).mean().sqrt()))
                unit = scaled(dictionary, self.scale[name])
                weights = {
                    part: getattr(unit, part).float().clone().requires_grad_() for part in _TRAINED
                }
                self.tuned[name] = replace(unit, **weights, input_bias=weights["bias"])
                every += weights.values()
        self.adam = torch.optim.Adam(every)

    def step(self, step: int, recording: Recording) -> tuple[float, float]:
        """One step on some contexts; sum of their KLs, and the mean loss of a dictionary's own."""
        if not self.tuned:
            self._begin(recording)
        settings = self.settings
        kept, weight = self._circuits(recording)
        stream, losses = self._run(recording, kept)
        kl = (self._divergence(recording, stream, weight > 0) * weight[weight > 0]).sum()
        own = torch.stack(losses).sum()
        left = (settings.n_steps - step) / (_DECAY * settings.n_steps)
        rate = settings.learning_rate * min(1.0, (step + 1) / _WARMUP, left)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.zero_grad()
        (own + kl).backward()
        self.adam.step()
        with torch.no_grad():
            for dictionary in self.tuned.values():
                normalise_rows(dictionary.decoder)
        return kl.item(), own.item() / len(self.tuned)

    def _circuits(self, recording: Recording) -> tuple[dict[str, Tensor], Tensor]:
        """The features that stay in the run of each context, and where it is held to the model's.

        Returns:
            By submodule ``(batch, 1, feature)`` bool; and the weight of the KL at each token,
            ``(batch, pos)``, which sums to 1 over contexts in part and over those in series.
        """
        n, device = recording.n_examples, self.model.device
        n_part = round(n * self.settings.in_part)
        whole = recording.mask[n_part:]
        weight = torch.zeros(recording.mask.shape, device=device)
        weight[n_part:] = whole / whole.sum().clamp(min=1)
        if not n_part:
            all_stay = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
            return dict.fromkeys(self.tuned, all_stay), weight
        rows = torch.arange(n_part, device=device)
        runs = self._predictions(recording.select(rows))
        weight[rows, runs.last] = 1 / n_part
        effects = self._effects(runs)
        every = torch.cat(list(effects.values()), 1)
        share = torch.rand(n_part, 1, generator=self.generator).to(device)
        n_kept = (_FEWEST * (_MOST / _FEWEST) ** share).long().clamp(max=every.shape[1])
        least = every.topk(int(n_kept.max()), 1).values.gather(1, n_kept - 1)
        kept = {}
        for name, effect in effects.items():
            stays = torch.ones(n, 1, effect.shape[1], dtype=torch.bool, device=device)
            stays[rows, 0] = effect >= least
            kept[name] = stays
        return kept, weight

    def _predictions(self, recording: Recording) -> Resumed:
        """Runs of the contexts, read at one token each of those that the model is sure of."""
        logits = self.model.logits(recording.outputs[f"resid_{self.model.n_layers - 1}"])
        chance, answer = logits.float().softmax(-1).max(-1)
        # Where it is sure of none, any token.
        likely = recording.mask * ((chance > _SURE) + 1e-6)
        last = likely.cpu().multinomial(1, generator=self.generator).to(answer.device)
        metric = NegativeLogOdds(answer.gather(1, last)[:, 0])
        return Resumed(self.model, recording, metric, last[:, 0])

    def _effects(self, runs: Resumed) -> dict[str, Tensor]:
        """Size of every feature's effect on its context's prediction, ``(batch, feature)``."""
        passes = Passes(runs.recording.n_examples, self.model.device)
        gradients = clean_gradients(runs, list(self.tuned), passes)
        effects = {}
        with torch.no_grad():
            for name, dictionary in self.tuned.items():
                scale, x = self.scale[name], runs.recording.outputs[name].float()
                slope = gradients[name].float() @ dictionary.decoder.t() / scale
                effects[name] = (dictionary.encode(x * scale) * slope).sum(1).abs()
        return effects

    def _run(self, recording: Recording, kept: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The final stream with all dictionaries in place, and the loss of each one's own."""
        losses: list[Tensor] = []
        n_part = round(recording.n_examples * self.settings.in_part)
        n = round(n_part * self.settings.with_errors)

        def visit(name: str, x: Tensor) -> Tensor:
            dictionary = self.tuned.get(name)
            if dictionary is None:
                return x
            scaled_x = x.float() * self.scale[name]
            seen = scaled_x if self.settings.passes_on else scaled_x.detach()
            losses.append(self._own(dictionary, seen[recording.mask][::2]))
            features = dictionary.encode(scaled_x)
            out = dictionary.decode(features * kept[name])
            errors = scaled_x[:n] - dictionary.decode(features[:n])
            out = torch.cat([out[:n] + errors, out[n:]])
            return (out / self.scale[name]).to(x.dtype)

        stream = recording.stream_before(0)
        for layer in range(self.model.n_layers):
            stream = self.model.layer(layer, stream, recording.context[layer], visit)
        return stream, losses

    def _own(self, dictionary: Dictionary, x: Tensor) -> Tensor:
        """Mean over tokens ``(tokens, d)`` of a dictionary's own loss."""
        features = dictionary.encode(x)
        # The norm of a vector of zeros has no gradient.
        squared = (x - dictionary.decode(features)).square().sum(1).clamp(min=1e-12)
        return (squared.sqrt() + self.settings.sparsity * features.sum(1)).mean()

    def _divergence(self, recording: Recording, stream: Tensor, where: Tensor) -> Tensor:
        """KL from the model's next tokens to the run's at some tokens, ``(tokens,)``, in nats."""
        own = recording.outputs[f"resid_{self.model.n_layers - 1}"]
        wanted, found = (self.model.logits(s[where]).float().log_softmax(-1) for s in (own, stream))
        return F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)

    def dictionaries(self) -> dict[str, Dictionary]:
        """The set as it is now, in the units of the activations."""
        out = dict(self.start)
        for name, unit in self.tuned.items():
            values = {part: getattr(unit, part).detach() for part in _TRAINED}
            done = replace(unit, **values, input_bias=values["bias"])
            out[name] = scaled(done, 1 / self.scale[name]).to(dtype=out[name].decoder.dtype)
        return out
