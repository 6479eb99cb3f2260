"""Mean gradients on the lines from clean to patch, which integrated gradients are made of (eq. 4).

The submodules of one layer all end up in the stream that the next layer reads, so that runs from
any of them share passes. What is the same for all submodules is measured once: the clean end of
every line is one run of the model, with one backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.budget import Passes
from core.estimators import IntegratedGradients
from core.models.replay import Resumed
from core.options import Rule
from core.shapes import Float
from core.sparse import add_at


def quadrature(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1) and weights that sum to 1, for the mean of a gradient on a line.

    Args:
        rule, steps: see `IntegratedGradients`; not for ``adaptive``, whose points depend on m.
    """
    if rule == "gauss":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    shift = 0.0 if rule == "left" else 0.5
    return [(k + shift) / steps for k in range(steps)], [1 / steps] * steps


@dataclass(frozen=True)
class Line:
    """What one submodule puts out, from clean to patch, and what is known of the metric there.

    Attributes:
        clean, patch: the line's ends.
        metric_clean: the metric at the clean end.
        metric_patch: the metric at the other; None where it has to be run.
        gradient_clean: dm/dx at the clean end; needed by rules with a point there.
    """

    clean: Float[Tensor, "batch pos d"]
    patch: Float[Tensor, "batch pos d"]
    metric_clean: Float[Tensor, " batch"]
    metric_patch: Float[Tensor, " batch"] | None = None
    gradient_clean: Float[Tensor, "batch pos d"] | None = None

    @property
    def wide(self) -> torch.dtype:
        """What gradients are summed up in: float32 at least, also for a model in bfloat16."""
        return torch.promote_types(self.clean.dtype, torch.float32)

    def at(self, example: Tensor, place: Tensor) -> Tensor:
        """The points of these examples at places from 0 to 1; exactly the ends at 0 and 1."""
        weight = place.to(self.clean.dtype)[:, None, None]
        return torch.lerp(self.clean[example], self.patch[example], weight)


def has_clean_end(estimator: IntegratedGradients) -> bool:
    """Whether one of its points is the clean end."""
    return estimator.rule in ("left", "adaptive")


# A place on some lines: (name of the line, example, place on it), each ``(n,)`` but the name.
_Places = Sequence[tuple[str, Tensor, Tensor]]


def _metrics(
    runs: Resumed, lines: Mapping[str, Line], places: _Places, *, gradients: bool
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """The metric, and dm/dx if asked for, at places on lines: one pass for all of them."""
    with torch.set_grad_enabled(gradients):
        values = [
            (name, example, lines[name].at(example, place).requires_grad_(gradients))
            for name, example, place in places
        ]
        metric = runs.metrics_with(values)
        leaves = [x for _, _, x in values]
        found = torch.autograd.grad(metric.sum(), leaves) if gradients else ()
    return list(metric.detach().split([len(x) for x in leaves])), found


def _in_passes(places: _Places, rows: int) -> list[_Places]:
    """The same places in their order, at most `rows` in one pass."""
    passes: list[list[tuple[str, Tensor, Tensor]]] = [[]]
    room = rows
    for name, example, place in places:
        start = 0
        while start < len(example):
            if not room:
                passes.append([])
                room = rows
            part = slice(start, start + room)
            passes[-1].append((name, example[part], place[part]))
            start, room = start + len(example[part]), room - len(example[part])
    return [places for places in passes if places]


def patched_metrics(
    runs: Resumed, lines: Mapping[str, Line], passes: Passes
) -> dict[str, Float[Tensor, " batch"]]:
    """The metric with each whole submodule patched; those that are known are not run."""
    parts: dict[str, list[Tensor]] = {name: [] for name in lines}
    unknown = []
    for name, line in lines.items():
        if line.metric_patch is None:
            every = torch.arange(len(line.clean), device=line.clean.device)
            unknown.append((name, every, torch.ones_like(line.metric_clean)))
        else:
            parts[name].append(line.metric_patch)
    for places in _in_passes(unknown, passes.rows):
        metrics, _ = _metrics(runs, lines, places, gradients=False)
        for (name, _, _), metric in zip(places, metrics, strict=True):
            parts[name].append(metric)
    return {name: torch.cat(part) for name, part in parts.items()}


def mean_gradients(
    runs: Resumed, lines: Mapping[str, Line], estimator: IntegratedGradients, passes: Passes
) -> dict[str, tuple[Float[Tensor, "batch pos d"], Float[Tensor, " batch"]]]:
    """Mean of dm/dx on each line, and the metric at its patch end.

    Args:
        lines: by submodule; of one group of `Resumed.together`.
    """
    if estimator.rule == "adaptive":
        return _adapt(runs, lines, estimator, passes)
    mean = _integrate(runs, lines, estimator, passes)
    metrics = patched_metrics(runs, lines, passes)
    return {name: (mean[name], metrics[name]) for name in lines}


def _integrate(
    runs: Resumed, lines: Mapping[str, Line], estimator: IntegratedGradients, passes: Passes
) -> dict[str, Tensor]:
    """Mean of dm/dx on each line by a rule whose points are known before."""
    points, weights = quadrature(estimator.rule, estimator.steps)
    mean, places = {}, []
    for name, line in lines.items():
        mean[name] = torch.zeros_like(line.clean, dtype=line.wide)
        where = torch.tensor(points, dtype=torch.float64, device=line.clean.device)
        if line.gradient_clean is not None and points[0] == 0:
            mean[name] += weights[0] * line.gradient_clean.to(line.wide)
            where = where[1:]
        example = torch.arange(len(line.clean), device=where.device)
        places.append((name, example.repeat_interleave(len(where)), where.repeat(len(example))))
    for part in _in_passes(places, passes.rows):
        _, gradients = _metrics(runs, lines, part, gradients=True)
        for (name, example, where), gradient in zip(part, gradients, strict=True):
            weight = torch.tensor(weights, dtype=mean[name].dtype, device=where.device)
            weight = weight[torch.searchsorted(where.new_tensor(points), where)]
            weighted = weight[:, None, None] * gradient.to(weight.dtype)
            add_at(mean[name], example, weighted)
    return mean


@dataclass(frozen=True)
class Points:
    """Points on the lines of some examples, in the order of example and place.

    Attributes:
        example: ``(n,)``, of the chunk.
        at: ``(n,)``, from 0 (clean) to 1 (patch), in float64 as metric and slope are.
        metric: ``(n,)``.
        gradient: ``(n, pos, d)``, dm/dx.
        slope: ``(n,)``, <dm/dx, patch - clean>: the derivative of the metric along the line.
    """

    example: Tensor
    at: Tensor
    metric: Tensor
    gradient: Tensor
    slope: Tensor

    @classmethod
    def on(
        cls, line: Line, example: Tensor, at: Tensor, metric: Tensor, gradient: Tensor
    ) -> Points:
        """Points of a line at which the metric and its gradient were measured."""
        gradient = gradient.to(line.wide)
        change = (line.patch - line.clean).to(line.wide)[example]
        slope = (gradient * change).sum((1, 2)).double()
        return cls(example, at, metric.double(), gradient, slope)

    def joined(self, other: Points) -> Points:
        """Both, in order."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        both = Points(*(torch.cat(pair) for pair in pairs))
        # Places are at most 1, so that 2 lies between the examples.
        order = (2 * both.example + both.at).argsort()
        return Points(*(value[order] for value in vars(both).values()))

    def intervals(self) -> tuple[Tensor, Tensor]:
        """Where each interval begins (an index of points), and its width."""
        begin = (self.example[1:] == self.example[:-1]).nonzero().flatten()
        return begin, self.at[begin + 1] - self.at[begin]

    def mean_gradient(self, n_examples: int) -> Tensor:
        """The gradient's mean over the line by trapezoids, ``(example, pos, d)``."""
        begin, width = self.intervals()
        weight = torch.zeros_like(self.at)
        weight.index_add_(0, begin, width / 2).index_add_(0, begin + 1, width / 2)
        mean = self.gradient.new_zeros(n_examples, *self.gradient.shape[1:])
        weighted = weight.to(mean.dtype)[:, None, None] * self.gradient
        return mean.index_add_(0, self.example, weighted)

    def metric_patch(self) -> Tensor:
        """The metric at the patch end of every example, ``(example,)``."""
        return self.metric[self.at == 1]


def _adapt(
    runs: Resumed, lines: Mapping[str, Line], estimator: IntegratedGradients, passes: Passes
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean of dm/dx on each line, by trapezoids that are halved where the metric bends.

    The metric itself is known at every point, so that each interval says how far its trapezoid is
    from the change it should sum to. These differences sum to the completeness gap. Intervals
    with more than an equal share of what is tolerated are halved; no point is thrown away.
    """
    n_examples = len(next(iter(lines.values())).clean)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in lines}
    # Gradients of all points are held, most often a few times fewer than there could be.
    for rows in passes.examples(n_examples, len(lines) * max(1, estimator.max_steps // 2)):
        of_rows = {name: _select(line, rows) for name, line in lines.items()}
        points = _first_points(runs.select(rows), of_rows, estimator.steps, passes)
        while places := _halves(points, len(rows), estimator):
            more = _points(runs.select(rows), of_rows, places, passes)
            points |= {name: points[name].joined(new) for name, new in more.items()}
        for name, of_line in points.items():
            parts[name].append((of_line.mean_gradient(len(rows)), of_line.metric_patch()))
    return {
        name: (torch.cat([g for g, _ in part]), torch.cat([m for _, m in part]))
        for name, part in parts.items()
    }


def _select(line: Line, rows: Tensor) -> Line:
    """The line of the examples `rows`."""
    chosen: dict[str, Any] = {k: v if v is None else v[rows] for k, v in vars(line).items()}
    return Line(**chosen)


def _first_points(
    runs: Resumed, lines: Mapping[str, Line], steps: int, passes: Passes
) -> dict[str, Points]:
    """Points at equal distances on each line; its clean end is known."""
    places, clean = [], {}
    for name, line in lines.items():
        assert line.gradient_clean is not None, "this rule has a point at the clean end"
        example = torch.arange(len(line.clean), device=line.clean.device)
        at = torch.linspace(0, 1, steps + 1, device=example.device, dtype=torch.float64)
        zero = torch.zeros_like(example, dtype=at.dtype)
        clean[name] = Points.on(line, example, zero, line.metric_clean, line.gradient_clean)
        places.append((name, example.repeat_interleave(steps), at[1:].repeat(len(example))))
    more = _points(runs, lines, places, passes)
    return {name: clean[name].joined(more[name]) for name in lines}


def _points(
    runs: Resumed, lines: Mapping[str, Line], places: _Places, passes: Passes
) -> dict[str, Points]:
    """The metric and its gradient at places on lines, each line named once."""
    measured: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _, _ in places}
    for part in _in_passes(places, passes.rows):
        for (name, _, _), *found in zip(
            part, *_metrics(runs, lines, part, gradients=True), strict=True
        ):
            measured[name].append((found[0], found[1]))
    return {
        name: Points.on(
            lines[name],
            example,
            at,
            torch.cat([metric for metric, _ in measured[name]]),
            torch.cat([gradient for _, gradient in measured[name]]),
        )
        for name, example, at in places
    }


def _halves(
    points: Mapping[str, Points], n_examples: int, estimator: IntegratedGradients
) -> _Places:
    """The middle of every interval that is to be halved."""
    places = []
    for name, of_line in points.items():
        begin = _to_halve(of_line, n_examples, estimator)
        if len(begin):
            middle = (of_line.at[begin] + of_line.at[begin + 1]) / 2
            places.append((name, of_line.example[begin], middle))
    return places


def _to_halve(points: Points, n_examples: int, estimator: IntegratedGradients) -> Tensor:
    """The intervals to halve, by where they begin."""
    begin, width = points.intervals()
    example = points.example[begin]
    rise = points.metric[begin + 1] - points.metric[begin]
    off = (width * (points.slope[begin] + points.slope[begin + 1]) / 2 - rise).abs()
    gap, whole = rise.new_zeros(2, n_examples)
    gap.index_add_(0, example, off)
    whole.index_add_(0, example, rise)
    n_intervals = torch.bincount(example, minlength=n_examples)
    bound = tolerated(estimator, whole)
    open_ = (gap > bound) & (n_intervals < estimator.max_steps)
    return begin[open_[example] & (off > (bound / n_intervals)[example])]


def tolerated(estimator: IntegratedGradients, total: Tensor) -> Tensor:
    """The largest gap that an estimator with a tolerance allows.

    Args:
        total: what the effects should sum to, ``(batch,)``.
    """
    assert estimator.tolerance is not None, "asked of estimators with a tolerance"
    return estimator.tolerance * total.abs().clamp(min=1)
