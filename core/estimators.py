"""How effects are estimated, as values: pass one to `node_effects`, `attribute` or `find_circuit`.

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
        steps: points on the line, one forward and one backward pass for each.
        rule: where they lie: ``midpoint``; ``left`` (0, 1/N, ..: the authors'); ``gauss``
            (Gauss-Legendre). ``steps=1, rule="left"`` is attribution patching.
        tolerance: double the steps of the examples whose absolute completeness gap exceeds this,
            in the metric's units; None for never.
        max_steps: where doubling stops, with a tolerance.

    Raises:
        InputError: an unknown rule, no step, a tolerance that is not above zero, or one with
            fewer steps at most than to start with.
    """

    steps: int = 10
    rule: Rule = "midpoint"
    tolerance: float | None = None
    max_steps: int = 160

    has_gradients: ClassVar[bool] = True
    """Whether the effects come with the gradients that edges are made from."""

    def __post_init__(self) -> None:
        check_option("rule", self.rule, RULES)
        if self.steps < 1:
            raise InputError(f"integrated gradients needs at least one step, not {self.steps}.")
        if self.tolerance is None:
            return
        if not self.tolerance > 0:
            raise InputError(
                f"tolerance {self.tolerance} is not above zero: it bounds the completeness gap, in "
                "the metric's units. Leave it out (None) to keep the number of steps."
            )
        if self.max_steps < self.steps:
            raise InputError(
                f"{self.steps} steps double until the tolerance is met or max_steps is reached, "
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
