"""Dictionaries: x ~= decode(encode(x)), with features that are mostly zero (App. B.1).

    pre = encoder (x - input_bias) + encoder_bias
    f   = activation(pre)
    x_hat = f decoder + bias

All kinds share these tensors and differ in the activation. Effects and edges need encode, decode
and the activation's slope at the clean point, nothing else. Decoding is affine for every kind: that
makes the shortcuts of `core.effects` exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import NotFinite, WidthMismatch
from core.sparse import true_places
from core.types import SparseAct, SparseFeatures

_TOKENS, _FEATURES = 512, 4096
"""Tokens and features encoded at a time: a block stays in the processor's cache."""

Index = Tensor | slice


class Activation(Protocol):
    """How pre-activations become features.

    `slope` is the derivative of a feature with respect to its own pre-activation where the feature
    has the value `value`; `index` says which feature each value is of (None: the last axis is all).
    `elementwise` says whether a feature depends on its own pre-activation alone.
    """

    elementwise: bool

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``."""
        ...

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """Derivatives, of the shape of `value`."""
        ...


def _at(tensor: Tensor, index: Index | None) -> Tensor:
    return tensor if index is None else tensor[index]


@dataclass(frozen=True)
class ReLU:
    """f = max(pre, 0) (App. B.1)."""

    elementwise = True

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``."""
        return F.relu(pre)

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """1 where the feature is active."""
        return (value > 0).to(value.dtype)


@dataclass(frozen=True)
class Linear:
    """f = pre: with identity weights, the neurons themselves."""

    elementwise = True

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``."""
        return pre

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """1 everywhere, at zero too."""
        return torch.ones_like(value)


@dataclass(frozen=True)
class JumpReLU:
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024b); BatchTopK at inference.

    Attributes:
        threshold: ``(feature,)``, not negative.
    """

    threshold: Tensor
    elementwise = True

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``."""
        return F.relu(pre * (pre > _at(self.threshold, index)))

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """1 where the feature is active; the jump itself has no derivative."""
        return (value > 0).to(value.dtype)


@dataclass(frozen=True)
class TopK:
    """ReLU, then only the k largest of each token (Gao et al. 2024).

    Attributes:
        k: features kept per token.
    """

    k: int
    elementwise = False

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``: all of them, or which are largest?"""
        assert index is None, "the k largest are chosen among all features"
        value, kept = F.relu(pre).topk(min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(pre).scatter(-1, kept, value)

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """1 where the feature is active; which are kept is held fixed."""
        return (value > 0).to(value.dtype)


@dataclass(frozen=True)
class Gated:
    """f = [pre + gate_bias > 0] relu(scale * pre + magnitude_bias) (Rajamanoharan et al. 2024a).

    Attributes:
        gate_bias, scale, magnitude_bias: ``(feature,)``; scale is exp(r_mag).
    """

    gate_bias: Tensor
    scale: Tensor
    magnitude_bias: Tensor
    elementwise = True

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations ``(..., feature)``."""
        magnitude = pre * _at(self.scale, index) + _at(self.magnitude_bias, index)
        return F.relu(magnitude) * (pre + _at(self.gate_bias, index) > 0)

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """Scale where the feature is active; the gate is held fixed."""
        return (value > 0) * _at(self.scale, index)


@dataclass(frozen=True)
class Dictionary:
    """The weights of one sparse autoencoder, in one layout for every kind and every format.

    Attributes:
        encoder: ``(feature, d)``, one row per feature.
        encoder_bias: ``(feature,)``.
        decoder: ``(feature, d)``, one row per feature; unit norm in the paper's.
        bias: ``(d,)``, added when decoding: what is left with all features and errors zero.
        input_bias: ``(d,)``, subtracted before encoding: `bias` in the paper's, zero in others.
        activation: the kind.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    bias: Tensor
    input_bias: Tensor
    activation: Activation

    def __post_init__(self) -> None:
        n_features, d = self.encoder.shape
        wanted = {
            "encoder_bias": (n_features,),
            "decoder": (n_features, d),
            "bias": (d,),
            "input_bias": (d,),
        }
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise WidthMismatch(
                    f"the encoder is {n_features} features x {d}, so {name} must be {shape}, "
                    f"not {found}. Is a matrix transposed?"
                )

    @property
    def d(self) -> int:
        """Width of what is encoded."""
        return self.encoder.shape[1]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, the activation's as ``activation.NAME``."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "activation"}
        inner = vars(self.activation)
        return own | {f"activation.{k}": v for k, v in inner.items() if isinstance(v, Tensor)}

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Dictionary:
        """The same dictionary elsewhere or in another number type."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype)

        own = {k: move(v) for k, v in self.tensors().items() if "." not in k}
        inner = {k: move(v) for k, v in vars(self.activation).items() if isinstance(v, Tensor)}
        activation: Any = self.activation
        return Dictionary(**own, activation=replace(activation, **inner) if inner else activation)

    def encode(self, x: Tensor, index: Index | None = None) -> Tensor:
        """Features of x, ``(..., d)`` to ``(..., feature)``, or only the features `index`.

        With `index` the cost is that of those features alone, for elementwise activations.
        """
        x = x.to(self.encoder.dtype) - self.input_bias
        if index is None:
            return self.activation(F.linear(x, self.encoder, self.encoder_bias))
        if not self.activation.elementwise:
            full = self.activation(F.linear(x, self.encoder, self.encoder_bias))
            return full[..., index]
        pre = F.linear(x, self.encoder[index], self.encoder_bias[index])
        return self.activation(pre, index)

    def decode(self, features: Tensor) -> Tensor:
        """Reconstruction from features, ``(..., feature)`` to ``(..., d)``."""
        return features @ self.decoder + self.bias

    def encode_sparse(self, x: Tensor) -> SparseFeatures:
        """Active features of x, ``(batch, pos, d)``, without ever holding all features at once.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """
        batch, pos, d = x.shape
        flat = x.reshape(batch * pos, d)
        if not bool(torch.isfinite(flat).all()):
            raise NotFinite(
                "activations hold NaN or infinity, so no effect computed from them would mean "
                "anything. Run the model in a wider dtype, or check the padding mask."
            )
        # A kind that chooses among all features of a token needs them all in one block.
        width = _FEATURES if self.activation.elementwise else self.n_features
        parts = []
        for first in range(0, max(1, batch * pos), _TOKENS):
            some = flat[first : first + _TOKENS]
            for start in range(0, self.n_features, width):
                dense = self.encode(some, slice(start, start + width))
                place = true_places(dense != 0)
                token = torch.div(place, dense.shape[1], rounding_mode="floor")
                feature = place - token * dense.shape[1]
                value = dense.reshape(-1).index_select(0, place)
                parts.append((token + first, feature + start, value))
        token, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
        order = token.argsort(stable=True)
        shape = (batch, pos, self.n_features)
        return SparseFeatures(token[order], feature[order], value[order], shape)

    def decode_sparse(self, features: SparseFeatures, *, bias: bool = True) -> Tensor:
        """Reconstruction from sparse features, ``(batch, pos, d)``, with or without `bias`."""
        batch, pos, _ = features.shape
        n_tokens = batch * pos
        counts = torch.bincount(features.token, minlength=n_tokens)
        offsets = counts.cumsum(0) - counts
        # A sum of decoder rows per token: deterministic, and no row is copied.
        flat = F.embedding_bag(
            features.feature,
            self.decoder,
            offsets,
            mode="sum",
            per_sample_weights=features.value.to(self.decoder.dtype),
        )
        out = flat.reshape(batch, pos, self.d)
        return out + self.bias if bias else out

    def split(self, x: Tensor) -> SparseAct:
        """Features and error of x, ``(batch, pos, d)``: x = decode(features) + error."""
        features = self.encode_sparse(x)
        return SparseAct(features, x.to(self.decoder.dtype) - self.decode_sparse(features))

    def slope(self, value: Tensor, index: Tensor) -> Tensor:
        """Derivative of features `index` with respect to their pre-activations, at `value`."""
        return self.activation.slope(value, index)


def identity_dictionary(
    d: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Dictionary:
    """The dictionary whose features are the neurons: f = x, error 0."""
    eye = torch.eye(d, device=device, dtype=dtype)
    zero = torch.zeros(d, device=device, dtype=dtype)
    return Dictionary(eye, zero, eye, zero, zero, Linear())


def check_widths(dictionaries: Mapping[str, Dictionary], width: Callable[[str], int]) -> None:
    """Raise at once if a dictionary cannot sit where it was put.

    Args:
        dictionaries: by submodule name.
        width: a submodule's width, `LanguageModel.width`.

    Raises:
        MissingSubmodule: the model has no such submodule.
        WidthMismatch: the dictionary's width is another.
    """
    for name, dictionary in dictionaries.items():
        if dictionary.d != width(name):
            raise WidthMismatch(
                f"the dictionary at '{name}' reads vectors of width {dictionary.d}, but that "
                f"submodule of the model has width {width(name)}: it belongs to another model or "
                "another place."
            )
