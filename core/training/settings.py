"""What a training of dictionaries can be told, and its defaults."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from core.errors import InputError
from core.training.kinds import kind_named


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training; all submodules share them.

    The defaults are the paper's for Pythia-70M (App. B); a model of width 64 and a few hundred
    thousand tokens want about n_features 1,024, n_steps 1,000, batch_size 1,024, learning_rate
    2e-3 and shorter intervals.

    Attributes:
        kind: which dictionary: one of `core.options.DICTIONARY_KINDS`, or what a
            `core.training.kinds.Kind` of your own is called.
        n_features: features of each dictionary.
        n_steps: optimiser steps.
        batch_size: tokens of one step.
        learning_rate: Adam's.
        sparsity: weight of the sparsity penalty: of ||f||_1 (relu, gated) or ||f||_0 (jumprelu).
        k: features per token (topk, batchtopk).
        warmup_steps: linear rise of the learning rate at the start and after each resampling.
        decay_steps: linear fall of the learning rate to zero at the end.
        sparsity_warmup_steps: linear rise of the penalty's weight at the start.
        resample_every: steps between resamplings of dead features, of kinds that resample
            (relu, gated); 0 for none.
        dead_after: steps without activation after which a feature is dead.
        buffer_bytes: memory for the shuffled buffer of all submodules of an experiment, also
            where only some are trained at a time; see `train_dictionaries`.
        checkpoint_every: steps between checkpoints.
        seed: of the initial weights, the data's order and the resampling.
    """

    kind: str = "relu"
    n_features: int = 32_768
    n_steps: int = 120_000
    batch_size: int = 16_384
    learning_rate: float = 1e-4
    sparsity: float = 0.1
    k: int = 32
    warmup_steps: int = 1_000
    decay_steps: int = 0
    sparsity_warmup_steps: int = 0
    resample_every: int = 25_000
    dead_after: int = 12_500
    buffer_bytes: int = 1_024_000_000
    checkpoint_every: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        kind = kind_named(self.kind)
        positive = ("n_features", "n_steps", "batch_size", "learning_rate", "k", "checkpoint_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)} but must be above zero.")
        kind.check(self)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        since = step
        if self.resample_every and step >= self.resample_every and self.resamples_before(step):
            since = step - self.last_resampling(step)
        rise = min(1.0, (since + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = self.n_steps - step
        fall = min(1.0, left / (self.decay_steps + 1)) if self.decay_steps else 1.0
        return self.learning_rate * rise * fall

    def sparsity_at(self, step: int) -> float:
        """Weight of the penalty at step number `step`."""
        if not self.sparsity_warmup_steps:
            return self.sparsity
        return self.sparsity * min(1.0, (step + 1) / self.sparsity_warmup_steps)

    def resamples_before(self, step: int) -> bool:
        """Whether any resampling was done before or at `step`."""
        return self.last_resampling(step) > 0

    def last_resampling(self, step: int) -> int:
        """The step before which dead features were last resampled, 0 if they were not yet.

        No resampling falls into the last warm-up and decay: its features could not settle. Kinds
        that mend dead features in another way, or not at all, never resample.
        """
        if not self.resample_every or not kind_named(self.kind).resamples:
            return 0
        last = min(step, self.n_steps - self.decay_steps - self.warmup_steps - 1)
        return max(0, last // self.resample_every * self.resample_every)

    def resamples_at(self, step: int) -> bool:
        """Whether dead features are resampled before step number `step`."""
        return step > 0 and self.last_resampling(step) == step

    def key(self, d: int, buffer_rows: int, data: str) -> str:
        """Digest of everything that the weights of a dictionary of width `d` depend on."""
        deciding = asdict(self)
        # How often the state is saved does not change it, and of the bytes only the rows count.
        del deciding["checkpoint_every"], deciding["buffer_bytes"]
        if not kind_named(self.kind).resamples:
            del deciding["resample_every"]
        text = json.dumps([deciding, d, buffer_rows, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
