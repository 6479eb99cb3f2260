"""Linear probes: what a stream says of a text, by logistic regression on its pooled vector.

A probe is a readout with weights: it classifies the mean over tokens of a layer's stream, say, and
its metric makes it a behaviour that a circuit explains (section 4). Training is that of App. E.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from core.errors import InputError, NotFinite
from core.inputs import Inputs, pad
from core.options import check_list
from core.readout import LOGITS, Readout
from core.shapes import Float, Int
from core.types import token_mask

if TYPE_CHECKING:
    from core.models import LanguageModel


@dataclass(frozen=True)
class ProbeMargin:
    """m = -(2 label - 1) (v . weight + bias), v what the readout gives: minus the margin of the
    correct class, in logits; zero where the probe cannot decide.

    Attributes:
        weight: ``(d,)``.
        bias: a number.
        label: ``(batch,)``, 0 or 1.
    """

    weight: Tensor
    bias: float
    label: Tensor
    name = "-margin of the correct class, logits of a probe"

    def __post_init__(self) -> None:
        _check_labels(self.label, len(self.label))

    @property
    def answers(self) -> Tensor:
        """None: it is about no token, ``(batch, 0)``."""
        return self.label.new_zeros(len(self.label), 0)

    @property
    def tokens(self) -> None:
        """It reads no column of the unembedding."""
        return None

    def __call__(self, pooled: Tensor) -> Tensor:
        """``(batch, d)`` to ``(batch,)``, in logits."""
        margin = pooled @ self.weight.to(pooled) + self.bias
        return -(2 * self.label.to(margin) - 1) * margin

    def select(self, rows: Tensor) -> Self:
        """The same metric for the examples `rows`, which may repeat."""
        return type(self)(self.weight, self.bias, self.label[rows])

    def to(self, device: torch.device | str) -> Self:
        """The same metric with its tensors on another device."""
        return type(self)(self.weight.to(device), self.bias, self.label.to(device))


@dataclass(frozen=True)
class Probe:
    """A linear classifier of two classes.

    Attributes:
        weight: ``(d,)``.
        bias: a number.
        loss: mean cross-entropy on what it was trained on, in nats, before and after its last
            epoch: how far training had settled.
    """

    weight: Float[Tensor, " d"]
    bias: float
    loss: tuple[float, float] = (float("nan"), float("nan"))

    def __call__(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Logits of class 1."""
        return pooled @ self.weight.to(pooled) + self.bias

    def predict(self, pooled: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """The class of each, 1 where its logit is above zero."""
        return (self(pooled) > 0).long()

    def centred(self, pooled: Float[Tensor, "n d"]) -> Probe:
        """The same probe with its bias moved so that the mean logit of these is zero.

        An ablation that takes a signal away moves all logits, and a probe that leant on it may
        then predict one class throughout. No label is needed to put that right.
        """
        return Probe(self.weight, self.bias - float(self(pooled).mean()), self.loss)

    def inputs(
        self, tokens: Tensor, label: Tensor, readout: Readout, mask: Tensor | None = None
    ) -> Inputs:
        """Texts with the probe's margin as their metric, for zero ablation.

        Args:
            tokens: ``(batch, pos)`` token ids.
            label: ``(batch,)``, the correct class of each, 0 or 1.
            readout: where the probe reads.
            mask: ``(batch, pos)``, True at real tokens.
        """
        metric = ProbeMargin(self.weight, self.bias, label)
        return Inputs(tokens, token_mask(tokens, mask), metric, readout=readout)


@torch.no_grad()
def pooled_vectors(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    readout: Readout,
    *,
    batch_tokens: int = 8192,
) -> Float[Tensor, "n d"]:
    """What a readout gives of each text, in batches of texts of like length.

    Inside of `core.ablate.ablated`, that of the ablated run.

    Args:
        texts: token ids of each.
        batch_tokens: tokens run at a time, padding included.

    Raises:
        InputError: no text, one without tokens, or one longer than the model's positions; or a
            readout of logits, which are no stream.
        MissingSubmodule: the model has no such site.
    """
    check_list("texts", texts)
    if readout.site == LOGITS:
        raise InputError("a probe reads a stream: name its submodule, such as resid_4.")
    width, end = model.width(readout.site), readout.end(model.n_layers)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.empty(len(texts), width, device=model.device)
    start = 0
    while start < len(order):
        # The longest of a batch comes last; a first guess by the next one's length is enough.
        rows = order[start : start + max(1, batch_tokens // max(1, len(texts[order[start]])))]
        while len(rows) > 1 and len(rows) * len(texts[rows[-1]]) > batch_tokens:
            rows = rows[:-1]
        recording = model.record(*pad([texts[i] for i in rows]), until=max(0, end.layer))
        pooled = readout.pool(recording.outputs[readout.site], recording.mask)
        vectors[rows] = pooled.to(vectors.dtype)
        start += len(rows)
    return vectors


def similarities(
    pooled: Float[Tensor, "n d"], concepts: Float[Tensor, "concept d"]
) -> Float[Tensor, "n concept"]:
    """Cosine of each text's vector with that of each concept, for concept bottleneck probing
    (App. E.2): a probe of these can tell no more of a text than how near it is to each."""
    return normalize(pooled, dim=1) @ normalize(concepts, dim=1).T


def _check_labels(label: Tensor, n: int) -> None:
    if not isinstance(label, Tensor) or label.shape != (n,) or label.is_floating_point():
        raise InputError(f"labels must be ({n},) whole numbers, 0 or 1: one for each text.")
    if not bool(((label == 0) | (label == 1)).all()):
        raise InputError("a probe tells two classes apart: labels must be 0 or 1.")


def train_probe(
    pooled: Float[Tensor, "n d"],
    label: Int[Tensor, " n"],
    *,
    epochs: int = 1,
    lr: float = 1e-2,
    weight_decay: float = 0.01,
    batch: int = 128,
    seed: int = 0,
) -> Probe:
    """Logistic regression by AdamW (App. E.1).

    Args:
        pooled: one vector for each text.
        label: 0 or 1.
        epochs: passes over all texts; the paper makes one.
        lr, weight_decay, batch: of AdamW; the defaults are the paper's.
        seed: of the initial weights and of the order of texts.

    Raises:
        InputError: labels that are not 0 or 1, or all the same; no epoch.
        NotFinite: vectors hold NaN or infinity.
    """
    n, d = pooled.shape
    _check_labels(label, n)
    if epochs < 1 or batch < 1:
        raise InputError(f"{epochs} epochs in batches of {batch}: a probe needs one of each.")
    if not 0 < int(label.sum()) < n:
        raise InputError(
            f"all {n} texts are of one class: a probe learns nothing from them. Give it both."
        )
    if not bool(torch.isfinite(pooled).all()):
        raise NotFinite("the pooled vectors hold NaN or infinity: run the model in a wider dtype.")
    generator = torch.Generator().manual_seed(seed)
    # Drawn as torch.nn.Linear draws, but on the CPU: the same on every device.
    drawn = [(2 * torch.rand(k, generator=generator) - 1) / d**0.5 for k in (d, 1)]
    weights = torch.cat(drawn).to(pooled)
    # The bias is the weight of a column of ones.
    columns, target = torch.cat([pooled, torch.ones_like(pooled[:, :1])], 1), label.to(pooled)
    optimiser = torch.optim.AdamW([weights], lr=lr, weight_decay=weight_decay, foreach=False)

    def loss() -> float:
        return float(binary_cross_entropy_with_logits(columns @ weights, target))

    before = loss()
    for epoch in range(epochs):
        if epoch == epochs - 1:
            before = loss()
        for rows in torch.randperm(n, generator=generator).to(label.device).split(batch):
            x = columns[rows]
            # The gradient of the mean cross-entropy, written down: autograd costs twice the rest.
            weights.grad = x.T @ (torch.sigmoid(x @ weights) - target[rows]) / len(rows)
            optimiser.step()
    return Probe(weights[:-1].clone(), float(weights[-1]), (before, loss()))
