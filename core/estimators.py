"""How effects are estimated, as values: pass one to `node_effects`, `attribute` or `find_circuit`.

`Enough` says from how many examples.

Torch-free, so that a settings file can name them without it; `core.effects` says what they compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.errors import InputError
from core.options import RULES, Rule, check_option


@dataclass(frozen=True)
class IntegratedGradients:
    """Change of a node times the mean gradient between clean and patch (eq. 4).

    Attributes:
        steps: points on the line, one forward and one backward pass for each; for ``adaptive``
            the intervals to begin with.
        rule: where they lie: ``midpoint``; ``left`` (0, 1/N, ..: the authors'); ``gauss``
            (Gauss-Legendre); ``adaptive`` (trapezoids, halved where the metric bends).
            ``steps=1, rule="left"`` is attribution patching.
        tolerance: for ``adaptive``, and only there: halve intervals until the completeness gap is
            at most this share of the change that the effects should sum to (of 1, in the metric's
            units, where the change is smaller), for each example.
        max_steps: intervals of one example from which on none is halved.

    Raises:
        InputError: an unknown rule, no step, a tolerance that is not above zero, one where none
            belongs or none where one does, or fewer steps at most than to start with.
    """

    steps: int = 10
    rule: Rule = "midpoint"
    tolerance: float | None = None
    max_steps: int = 64

    has_gradients: ClassVar[bool] = True
    """Whether the effects come with the gradients that edges are made from."""

    def __post_init__(self) -> None:
        check_option("rule", self.rule, RULES)
        if self.steps < 1:
            raise InputError(f"integrated gradients needs at least one step, not {self.steps}.")
        if (self.rule == "adaptive") != (self.tolerance is not None):
            raise InputError(
                f"rule {self.rule} with tolerance {self.tolerance}: intervals are halved until a "
                "tolerance is met by the rule adaptive, which needs one; the others take none."
            )
        if self.tolerance is None:
            return
        if not self.tolerance > 0:
            raise InputError(
                f"tolerance {self.tolerance} is not above zero: it bounds the completeness gap, as "
                "a share of the change that effects should sum to."
            )
        if self.max_steps < self.steps:
            raise InputError(
                f"{self.steps} steps are halved until the tolerance is met or there are max_steps, "
                f"but max_steps is {self.max_steps}: raise it, or take fewer steps."
            )

    @property
    def label(self) -> str:
        """What it is called in tables and pictures: ``ig(midpoint, 10)``."""
        if self.tolerance is None:
            return f"ig({self.rule}, {self.steps})"
        return f"ig({self.rule}, {self.steps} to {self.max_steps}, tolerance {self.tolerance:g})"


@dataclass(frozen=True)
class Attribution:
    """Change of a node times the gradient at clean (attribution patching, eq. 3)."""

    label: ClassVar[str] = "attribution"
    has_gradients: ClassVar[bool] = True


@dataclass(frozen=True)
class Exact:
    """The metric with the node patched, less the metric (eq. 2): one run per node, no gradients."""

    label: ClassVar[str] = "exact"
    has_gradients: ClassVar[bool] = False


Estimator = IntegratedGradients | Attribution | Exact


@dataclass(frozen=True)
class Enough:
    """When enough examples have been measured: they come in rounds until a circuit is stable.

    Attributes:
        stability: the Jaccard index that circuits from both halves of the examples must reach,
            see `core.circuit.Aggregated.stability`.
        node_threshold: of the circuits compared.
        round: examples that are added at a time.

    Raises:
        InputError: an stability outside [0, 1], a threshold below zero, or a round of none.
    """

    stability: float
    node_threshold: float
    round: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.stability <= 1:
            raise InputError(
                f"stability {self.stability} is outside [0, 1]: it is the share of nodes that "
                "circuits from both halves of the examples have in common."
            )
        check_threshold("node", self.node_threshold)
        if self.round < 1:
            raise InputError(f"rounds of {self.round} examples: at least one must be added.")


def check_threshold(name: str, value: float) -> None:
    """Raise `InputError` if a threshold of nodes or edges is below zero."""
    if not value >= 0:
        raise InputError(
            f"{name} threshold {value} is below zero: it bounds an absolute effect, in the "
            "metric's units; use 0 to keep every node with any effect."
        )


def check_estimator(estimator: object) -> None:
    """Raise `InputError` if `estimator` is no estimator, as a name or a class is not."""
    if not isinstance(estimator, Estimator):
        raise InputError(
            f"estimator is {estimator!r}, but the values that say how to estimate carry their own "
            "settings: pass core.IntegratedGradients(steps=10), core.Attribution() or core.Exact()."
        )


def check_gradients(estimator: Estimator) -> None:
    """Raise `InputError` if no edges can be made from effects by `estimator`."""
    if not estimator.has_gradients:
        raise InputError(
            f"edges need gradients, and the estimator {type(estimator).__name__} has none: use "
            "IntegratedGradients or Attribution, or leave edges out."
        )
