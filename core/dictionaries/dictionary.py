"""Dictionaries: x ~= decode(encode(x)), with features that are mostly zero (App. B.1).

    pre = encoder (x - input_bias) + encoder_bias
    f   = activation(pre)
    x_hat = f decoder + bias

All kinds share these tensors and differ in the activation: see `core.dictionaries.activations`.
Effects and edges need encode, decode and the activation's slope at the clean point, nothing else.
Decoding is affine for every kind: that makes the shortcuts of `core.effects` exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.dictionaries.activations import Activation, Index, Linear
from core.errors import InputError, NotFinite, WidthMismatch
from core.options import check_list
from core.sparse import true_places
from core.types import SparseAct, SparseFeatures

_TOKENS, _FEATURES = 512, 4096
"""Tokens and features encoded at a time: a block stays in the processor's cache."""

DENSE = 1 << 24
"""Features of tokens that are held at a time, zeros and all."""

WEIGHTS = ("encoder", "encoder_bias", "decoder", "bias", "input_bias")


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
            given = tuple(getattr(self, name).shape)
            if given != shape:
                raise WidthMismatch(
                    f"the encoder is {n_features} features x {d}, so {name} must be {shape}, "
                    f"not {given}. Is a matrix transposed?"
                )

    @property
    def d(self) -> int:
        """Width of what is encoded."""
        return self.encoder.shape[1]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    @property
    def n_dense(self) -> int:
        """Tokens of which all features, zeros and all, are held at a time."""
        return max(1, DENSE // self.n_features)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that every kind has, by name."""
        return {name: getattr(self, name) for name in WEIGHTS}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, the activation's as ``activation.NAME``."""
        of_activation = self.activation.tensors().items()
        return self.weights() | {f"activation.{name}": value for name, value in of_activation}

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Dictionary:
        """The same dictionary elsewhere or in another number type."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: tensor.to(device=device, dtype=dtype) for k, tensor in tensors.items()}

        activation = self.activation.with_tensors(moved(self.activation.tensors()))
        return Dictionary(**moved(self.weights()), activation=activation)

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

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)), ``(..., d)``, without ever holding more than `DENSE` features."""
        blocks = x.reshape(-1, self.d).split(self.n_dense)
        parts = [self.decode(self.encode(block)) for block in blocks]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(x.shape)

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
            block = flat[first : first + _TOKENS]
            for start in range(0, self.n_features, width):
                dense = self.encode(block, slice(start, start + width))
                place = true_places(dense.bool())
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
        InputError: no mapping of dictionaries.
        MissingSubmodule: the model has no such submodule.
        WidthMismatch: the dictionary's width is another.
    """
    if not isinstance(dictionaries, Mapping):
        raise InputError(
            f"dictionaries must be a mapping from submodule names, not "
            f"{type(dictionaries).__name__}: say {{'mlp_0': dictionary}}."
        )
    check_list("dictionaries", list(dictionaries.values()), Dictionary)
    for name, dictionary in dictionaries.items():
        if dictionary.d != width(name):
            raise WidthMismatch(
                f"the dictionary at '{name}' reads vectors of width {dictionary.d}, but that "
                f"submodule of the model has width {width(name)}: it belongs to another model or "
                "another place."
            )
