"""The kinds of dictionary, as all of core but their training knows them: one class for each.

A kind is how pre-activations become features. A new one is one such class in any file:

    @dataclass(frozen=True)
    class Shifted(Activation, name="shifted"):
        shift: Tensor                                   # (feature,)

        def __call__(self, pre, index=None):
            return relu(pre - at(self.shift, index))

        def scaled(self, factor):
            return Shifted(self.shift * factor)

From then on its dictionaries are saved, loaded, rescaled, and have effects and edges. To be
trained it needs a `core.training.kinds.Kind`, to be written in another project's layout a line in
that format's table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import FormatError

Index = Tensor | slice

_KINDS: dict[str, type[Activation]] = {}


@dataclass(frozen=True)
class Activation(ABC):
    """How pre-activations become features; a subclass is registered under its `name`.

    Fields are tensors ``(feature,)`` or plain numbers. Every kind is homogeneous: multiplying the
    pre-activations, and those of its parameters that are compared with or added to them, by a
    positive number multiplies the features by it.

    Attributes:
        name: in files and tables.
        elementwise: whether a feature depends on its own pre-activation alone.
        acts_at_zero: whether a feature of value 0 has a slope too, so that it acts at every token.
    """

    name: ClassVar[str] = ""
    elementwise: ClassVar[bool] = True
    acts_at_zero: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = _KINDS.setdefault(name, cls)
        if known.__qualname__ != cls.__qualname__:
            raise TypeError(f"'{name}' is {known.__qualname__} already: choose another name.")
        cls.name = name
        _KINDS[name] = cls

    @abstractmethod
    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """Features of pre-activations.

        Args:
            pre: ``(..., feature)``.
            index: which features the last axis has; None: all of them.
        """

    @abstractmethod
    def scaled(self, factor: float | Tensor) -> Self:
        """The activation for pre-activations `factor` times as large, as its features become.

        Args:
            factor: positive; a number, or one for each feature, ``(feature,)``.
        """

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """Derivative of features with respect to their own pre-activations; 1 where active.

        Args:
            value: the features, ``(..., feature)``.
            index: which feature each value is of; None: the last axis has all of them.
        """
        return (value > 0).to(value.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that are tensors, by name."""
        return {key: value for key, value in self._parameters() if isinstance(value, Tensor)}

    def numbers(self) -> dict[str, Any]:
        """The parameters that are not."""
        return {key: value for key, value in self._parameters() if not isinstance(value, Tensor)}

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The same kind and numbers with other tensors."""
        return replace(self, **tensors)

    def _parameters(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def activation_named(name: str) -> type[Activation]:
    """The kind registered as `name`.

    Raises:
        FormatError: there is none.
    """
    if name not in _KINDS:
        raise FormatError(
            f"no kind of dictionary is called '{name}': there are {', '.join(_KINDS)}. One that is "
            "defined elsewhere is known once its module is imported."
        )
    return _KINDS[name]


def at(parameter: Tensor, index: Index | None) -> Tensor:
    """A parameter ``(feature,)`` of the features `index`, or of all."""
    return parameter if index is None else parameter[index]


@dataclass(frozen=True)
class ReLU(Activation, name="relu"):
    """f = max(pre, 0) (App. B.1)."""

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """See `Activation`."""
        return F.relu(pre)

    def scaled(self, factor: float | Tensor) -> Self:
        """See `Activation`."""
        return self


@dataclass(frozen=True)
class Linear(Activation, name="linear"):
    """f = pre: with identity weights, the neurons themselves."""

    acts_at_zero = True

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """See `Activation`."""
        return pre

    def scaled(self, factor: float | Tensor) -> Self:
        """See `Activation`."""
        return self

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(value)


@dataclass(frozen=True)
class JumpReLU(Activation, name="jumprelu"):
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024b); BatchTopK at inference.

    The jump itself has no derivative.

    Attributes:
        threshold: ``(feature,)``, not negative.
    """

    threshold: Tensor

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """See `Activation`."""
        return F.relu(pre * (pre > at(self.threshold, index)))

    def scaled(self, factor: float | Tensor) -> Self:
        """See `Activation`."""
        return replace(self, threshold=self.threshold * factor)


@dataclass(frozen=True)
class TopK(Activation, name="topk"):
    """ReLU, then only the k largest of each token (Gao et al. 2024).

    Which are kept is held fixed in derivatives.

    Attributes:
        k: features kept per token.
    """

    k: int
    elementwise = False

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """See `Activation`; of all features, or which are largest?"""
        assert index is None, "the k largest are chosen among all features"
        value, largest = F.relu(pre).topk(min(self.k, pre.shape[-1]), dim=-1)
        return torch.zeros_like(pre).scatter(-1, largest, value)

    def scaled(self, factor: float | Tensor) -> Self:
        """See `Activation`; factors that differ between features change which are kept."""
        return self


@dataclass(frozen=True)
class Gated(Activation, name="gated"):
    """f = [pre + gate_bias > 0] relu(scale * pre + magnitude_bias) (Rajamanoharan et al. 2024a).

    The gate is held fixed in derivatives.

    Attributes:
        gate_bias, scale, magnitude_bias: ``(feature,)``; scale is exp(r_mag).
    """

    gate_bias: Tensor
    scale: Tensor
    magnitude_bias: Tensor

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        """See `Activation`."""
        magnitude = pre * at(self.scale, index) + at(self.magnitude_bias, index)
        return F.relu(magnitude) * (pre + at(self.gate_bias, index) > 0)

    def scaled(self, factor: float | Tensor) -> Self:
        """See `Activation`."""
        gate_bias, magnitude_bias = self.gate_bias * factor, self.magnitude_bias * factor
        return replace(self, gate_bias=gate_bias, magnitude_bias=magnitude_bias)

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        """Scale where the feature is active."""
        return (value > 0) * at(self.scale, index)
