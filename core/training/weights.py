"""The numbers of one dictionary in training: weights, gradients and Adam's moments.

All of a dictionary's parameters are views of one vector, so that the optimiser is one call and a
checkpoint a handful of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Parameters (or their gradients, or moments) of one dictionary, views of `flat`.

    Attributes:
        flat: ``(n,)``, everything.
        encoder, decoder: ``(feature, d)``; decoder rows have unit norm.
        encoder_bias: ``(feature,)``.
        bias: ``(d,)``, added when decoding and subtracted before encoding.
        extra: what a kind adds, each ``(feature,)``.
    """

    flat: Tensor
    encoder: Tensor
    decoder: Tensor
    encoder_bias: Tensor
    bias: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, flat: Tensor, d: int, n_features: int, extra: tuple[str, ...]) -> Weights:
        """The parameters that `flat`, ``(size(...),)``, stands for."""
        matrix = n_features * d
        sizes = [matrix, matrix, *(1 + len(extra)) * [n_features], d]
        encoder, decoder, encoder_bias, *vectors, bias = flat.split(sizes)
        return cls(
            flat=flat,
            encoder=encoder.view(n_features, d),
            decoder=decoder.view(n_features, d),
            encoder_bias=encoder_bias,
            bias=bias,
            extra=dict(zip(extra, vectors, strict=True)),
        )

    @staticmethod
    def size(d: int, n_features: int, extra: tuple[str, ...]) -> int:
        """Length of `flat`."""
        return 2 * n_features * d + (1 + len(extra)) * n_features + d


def normalise_rows(rows: Tensor) -> None:
    """Give every row unit norm, in place."""
    rows.div_(rows.norm(dim=1, keepdim=True).clamp_(min=1e-12))


def remove_parallel(gradient: Tensor, rows: Tensor) -> None:
    """Take out of each row of `gradient` its component along the unit row of `rows`, in place."""
    gradient.addcmul_(rows, (gradient * rows).sum(1, keepdim=True), value=-1.0)
