"""The nouns: what is measured, where, and what a circuit is. Read this file first.

Axes are always in the order ``batch, pos, feature`` or ``batch, pos, d``; a *token* is one
(batch, pos) pair counted row by row, ``token = batch_index * n_pos + pos_index``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.errors import InputError, MissingSubmodule
from core.estimators import Estimator
from core.shapes import Bool, Float, Int
from core.sparse import add_at

ERROR = -1
"""The index that stands for a submodule's error node wherever a feature index is expected."""

_SUBMODULE = re.compile(r"(embed)|(attn|mlp|resid)_(\d+)")
_ORDER = {"attn": 0, "mlp": 1, "resid": 2}


class Submodule(NamedTuple):
    """One place that a dictionary explains: ``embed``, ``attn_l``, ``mlp_l``, ``resid_l``.

    ``attn_l`` and ``mlp_l`` are what layer l's attention and MLP add to the residual stream,
    ``resid_l`` is the stream after layer l, ``embed`` the token embedding (layer -1).
    """

    kind: str
    layer: int

    @classmethod
    def parse(cls, name: str) -> Submodule:
        """The submodule called `name`; raises `MissingSubmodule` if no submodule can be."""
        match = _SUBMODULE.fullmatch(name)
        if match is None:
            raise MissingSubmodule(
                f"'{name}' names no submodule. Names are embed, attn_L, mlp_L and resid_L, "
                "with L the layer counted from 0."
            )
        return cls("embed", -1) if match[1] else cls(match[2], int(match[3]))

    @property
    def name(self) -> str:
        """The name used as a key everywhere: in dictionaries, tables and pictures."""
        return self.kind if self.kind == "embed" else f"{self.kind}_{self.layer}"

    @property
    def order(self) -> int:
        """Rank in causal order: embed, attn_0, mlp_0, resid_0, attn_1, ..."""
        return 0 if self.kind == "embed" else 1 + 3 * self.layer + _ORDER[self.kind]


def causal_order(names: Iterable[str]) -> list[str]:
    """Submodule names sorted as the forward pass meets them."""
    return sorted(names, key=lambda name: Submodule.parse(name).order)


@dataclass(frozen=True)
class SparseFeatures:
    """One number for each (token, feature) that is not zero, sorted by token, then feature.

    Attributes:
        token: batch_index * n_pos + pos_index.
        feature: index into the dictionary.
        value: an activation, a change or an effect.
        shape: ``(batch, pos, feature)`` of the dense tensor this stands for.
    """

    token: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    shape: tuple[int, int, int]

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "batch pos feature"]) -> SparseFeatures:
        """The non-zero entries of `dense`, ``(batch, pos, feature)``."""
        batch, pos, n_features = dense.shape
        flat = dense.reshape(batch * pos, n_features)
        token, feature = flat.nonzero(as_tuple=True)
        return cls(token, feature, flat[token, feature], (batch, pos, n_features))

    def to_dense(self) -> Float[Tensor, "batch pos feature"]:
        """The tensor this stands for, ``(batch, pos, feature)``."""
        batch, pos, n_features = self.shape
        dense = self.value.new_zeros(batch * pos, n_features)
        dense[self.token, self.feature] = self.value
        return dense.reshape(self.shape)

    def with_value(self, value: Tensor) -> SparseFeatures:
        """The same places with another number at each."""
        return SparseFeatures(self.token, self.feature, value, self.shape)

    def where(self, chosen: Bool[Tensor, " n"]) -> SparseFeatures:
        """The entries that are `chosen`, ``(n,)`` bool."""
        places = self.token[chosen], self.feature[chosen]
        return SparseFeatures(*places, self.value[chosen], self.shape)

    @property
    def example(self) -> Int[Tensor, " n"]:
        """``(n,)``: which example each entry belongs to."""
        return self.token // self.shape[1]

    @property
    def pos(self) -> Int[Tensor, " n"]:
        """``(n,)``: which position each entry is at."""
        return self.token % self.shape[1]

    def total(self) -> Float[Tensor, " batch"]:
        """Sum over positions and features, ``(batch,)``."""
        return add_at(self.value.new_zeros(self.shape[0]), self.example, self.value)


@dataclass(frozen=True)
class SparseAct:
    """What a dictionary makes of a submodule's output: its features and the error it leaves.

    Attributes:
        features: activations, ``(batch, pos, feature)``.
        error: eps = x - decode(features).
    """

    features: SparseFeatures
    error: Float[Tensor, "batch pos d"]


@dataclass(frozen=True)
class SubmoduleEffects:
    """Indirect effects of one submodule's nodes, in the metric's units.

    Attributes:
        features: effect of each feature at each token, positive where patching raises the metric.
        error: effect of the error node at each token.
        gradient: the (mean) gradient of the metric with respect to the
            submodule's output; a feature's gradient is its decoder row times this.
        change: features and error, patch minus clean.
        clean: features and error of the clean input.
        gap: the completeness gap: the sum of all effects minus `total`; NaN where not measured.
        total: the change of the metric when the whole submodule is patched, likewise.
    """

    features: SparseFeatures
    error: Float[Tensor, "batch pos"]
    gradient: Float[Tensor, "batch pos d"]
    change: SparseAct
    clean: SparseAct
    gap: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class NodeEffects(Mapping[str, SubmoduleEffects]):
    """Effects of every node of every submodule on the metric, for one batch of examples.

    It is a mapping from submodule names to `SubmoduleEffects`.

    Attributes:
        submodules: effects by submodule name, in causal order.
        metric_clean: the metric on the clean input.
        metric_patch: on the patch input; None when ablating to zero.
        estimator: what estimated the effects.
        mask: True at real tokens.
    """

    submodules: Mapping[str, SubmoduleEffects]
    metric_clean: Float[Tensor, " batch"]
    metric_patch: Float[Tensor, " batch"] | None
    estimator: Estimator
    mask: Bool[Tensor, "batch pos"]

    def __getitem__(self, name: str) -> SubmoduleEffects:
        """Effects at the submodule `name`."""
        if name not in self.submodules:
            raise MissingSubmodule(
                f"no effects at '{name}': there are {', '.join(self.submodules)}."
            )
        return self.submodules[name]

    def __contains__(self, name: object) -> bool:
        return name in self.submodules

    def __iter__(self) -> Iterator[str]:
        return iter(self.submodules)

    def __len__(self) -> int:
        return len(self.submodules)

    def get(self, name: str, default: Any = None) -> Any:
        """Effects at `name`, or `default` where it has none."""
        return self.submodules.get(name, default)


class Node(NamedTuple):
    """One node of a circuit.

    ``feature`` is `ERROR` (-1) for the error node. ``pos`` is None when effects were summed over
    positions. ``effect`` is the aggregated indirect effect, in the metric's units, ``stderr`` its
    standard error over examples; None where not known, as from one example.
    """

    submodule: str
    feature: int
    pos: int | None
    effect: float
    stderr: float | None = None

    @property
    def is_error(self) -> bool:
        """Whether this is the submodule's error node."""
        return self.feature == ERROR

    @property
    def name(self) -> str:
        """``attn_3/1234``, or ``attn_3/error``; with the position first where there is one."""
        name = f"{self.submodule}/{'error' if self.is_error else self.feature}"
        return name if self.pos is None else f"{self.pos}, {name}"


class Edge(NamedTuple):
    """One edge of a circuit.

    ``upstream`` and ``downstream`` index the circuit's nodes; ``downstream`` is None for an edge
    into the metric. ``weight`` is the aggregated effect (eqs 5 and 6), in the metric's units,
    ``stderr`` its standard error over examples, None where not known.
    """

    upstream: int
    downstream: int | None
    weight: float
    stderr: float | None = None


@dataclass(frozen=True)
class Circuit:
    """A small causal graph that explains a behaviour, and everything needed to make it again.

    Attributes:
        nodes: kept nodes in causal order, by position where positions are kept.
        edges: kept edges.
        settings: model, dictionaries, metric, estimator, thresholds: plain values.
        n_examples: how many examples the effects are means over.
        metric_clean: mean metric on the clean inputs.
        metric_patch: mean metric on the patch inputs; None for zero ablation.
        gaps: mean absolute completeness gap by submodule.
        tokens: column labels for circuits by position, or None.
        stability: Jaccard index of the nodes found from either half of the examples; None where
            there is one example.
        unmet: share of submodules and examples where the integral's tolerance was not met; None
            where it had none.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    settings: Mapping[str, object]
    n_examples: int
    metric_clean: float
    metric_patch: float | None
    gaps: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[str, ...] | None = None
    stability: float | None = None
    unmet: float | None = None

    @property
    def by_position(self) -> bool:
        """Whether each position of a node is a node of its own."""
        return any(node.pos is not None for node in self.nodes)

    def with_edges_above(self, threshold: float) -> Circuit:
        """The same nodes with those of the edges whose absolute weight exceeds `threshold`."""
        edges = tuple(edge for edge in self.edges if abs(edge.weight) > threshold)
        return replace(self, edges=edges, settings={**self.settings, "edge_threshold": threshold})

    def kept(self, submodule: str) -> list[Node]:
        """The circuit's nodes at one submodule."""
        return [node for node in self.nodes if node.submodule == submodule]


def token_mask(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` as a bool tensor of the shape of `tokens`; all True where None.

    Raises:
        InputError: no tensors of token ids and truth values, an empty batch, or an example
            without tokens.
    """
    for name, value in (("tokens", tokens), ("mask", mask)):
        if not isinstance(value, Tensor | None):
            raise InputError(
                f"{name} must be a tensor, (batch, pos), not {type(value).__name__}: "
                "core.inputs.pad makes tokens and mask from lists of ids."
            )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError(f"tokens must be token ids, whole numbers, not {tokens.dtype}.")
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise InputError(
            f"tokens must be (batch, pos) with at least one of each, not {tuple(tokens.shape)}."
        )
    if mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("mask must be True (or 1) at real tokens and False (or 0) at padding.")
    mask = mask.bool()
    if mask.shape != tokens.shape:
        raise InputError(f"mask is {tuple(mask.shape)} but tokens are {tuple(tokens.shape)}.")
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"examples {empty[:5]} have no token: drop them before making a batch.")
    return mask
