"""Node effects: what patching one feature, or one error, would do to the metric (section 3.1).

    exact (2)            m with the node patched, minus m
    attribution (3)      change of the node . dm/dnode at clean
    integrated (4)       change of the node . mean of dm/dnode on the way from clean to patch

Decoding is affine, so moving a submodule's features and error together moves its output x on a
straight line from x_clean to x_patch. No dictionary is needed on the way: with g the mean gradient
of m with respect to x, a feature's mean gradient is its decoder row times g, and the error's is g.
Each submodule is encoded once, and only features that change are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary, check_widths
from core.errors import MissingSubmodule, NotFinite
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients, check_estimator
from core.inputs import Inputs, check_answers
from core.models import LanguageModel, Recording
from core.models.replay import Resumed
from core.options import Rule
from core.readout import Readout
from core.shapes import Bool, Float, Int
from core.sparse import add_at, products
from core.types import NodeEffects, SparseAct, SparseFeatures, SubmoduleEffects, causal_order


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


def sparse_difference(a: SparseFeatures, b: SparseFeatures) -> SparseFeatures:
    """a - b where it is not zero."""
    width = a.shape[2]
    keys = torch.cat([a.token * width + a.feature, b.token * width + b.feature])
    unique, inverse = keys.unique(return_inverse=True)
    value = add_at(a.value.new_zeros(len(unique)), inverse, torch.cat([a.value, -b.value]))
    differs = value != 0
    unique = unique[differs]
    return SparseFeatures(unique // width, unique % width, value[differs], a.shape)


def feature_dots(
    dictionary: Dictionary, at: SparseFeatures, gradient: Float[Tensor, "batch pos d"]
) -> Float[Tensor, " n"]:
    """<decoder row, gradient> for each (token, feature) of `at`: dm/df by the chain rule.

    Args:
        gradient: dm/dx.
    """
    flat = gradient.reshape(-1, gradient.shape[-1])
    return products(at.token, at.feature, flat, dictionary.decoder)


@dataclass(frozen=True)
class Endpoints:
    """Where a submodule's line starts and ends.

    Attributes:
        clean, patch: the submodule's output; equal at padding.
        act: features and error at clean.
        change: features and error, patch minus clean; zero at padding.
    """

    clean: Float[Tensor, "batch pos d"]
    patch: Float[Tensor, "batch pos d"]
    act: SparseAct
    change: SparseAct


def _only_real(act: SparseAct, mask: Tensor) -> SparseAct:
    """Drop what a dictionary makes of padding."""
    if bool(mask.all()):
        return act
    features = act.features.where(mask.flatten()[act.features.token])
    return SparseAct(features, act.error * mask[..., None])


def _change(dictionary: Dictionary, act: SparseAct, clean: Tensor, patch: Tensor) -> SparseAct:
    """Features and errors of patch minus those of clean; exactly zero where both are the same."""
    batch, n_pos, d = clean.shape
    moved = (patch != clean).any(-1).flatten().nonzero().flatten()
    # Only tokens that differ are encoded again.
    patched = dictionary.split(patch.reshape(-1, d)[moved][None])
    before = act.features.where(torch.isin(act.features.token, moved))
    after = SparseFeatures(
        moved[patched.features.token],
        patched.features.feature,
        patched.features.value,
        act.features.shape,
    )
    error = torch.zeros_like(act.error).flatten(0, 1)
    error[moved] = patched.error[0] - act.error.flatten(0, 1)[moved]
    return SparseAct(sparse_difference(after, before), error.view(batch, n_pos, d))


def endpoints(
    dictionary: Dictionary,
    clean: Float[Tensor, "batch pos d"],
    patch: Float[Tensor, "batch pos d"] | None,
    mask: Bool[Tensor, "batch pos"],
) -> Endpoints:
    """Both ends of the line at one submodule; patch None is zero ablation, x_patch = bias."""
    act = _only_real(dictionary.split(clean), mask)
    if patch is None:
        patch = dictionary.bias.to(clean.dtype).expand_as(clean)
        change = SparseAct(act.features.with_value(-act.features.value), -act.error)
        patch = torch.where(mask[..., None], patch, clean)
    else:
        patch = torch.where(mask[..., None], patch, clean)
        change = _change(dictionary, act, clean, patch)
    return Endpoints(clean, patch, act, change)


def _gather_effects(
    dictionary: Dictionary,
    ends: Endpoints,
    gradient: Float[Tensor, "batch pos d"],
    total: Float[Tensor, " batch"],
) -> SubmoduleEffects:
    """Effects of every node from the mean gradient at the submodule's output."""
    gap = _gap(ends, gradient, total)
    gradient = gradient.to(dictionary.decoder.dtype)
    change = ends.change
    dots = feature_dots(dictionary, change.features, gradient)
    features = change.features.with_value(dots * change.features.value)
    error = torch.linalg.vecdot(gradient, change.error)
    return SubmoduleEffects(features, error, gradient, change, ends.act, gap, total)


def _integrate(
    runs: Resumed, name: str, line: tuple[Tensor, Tensor], rule: Rule, steps: int, passes: Passes
) -> Tensor:
    """Mean of dm/dx on the line from clean to patch, ``(batch, pos, d)``."""
    points, weights = quadrature(rule, steps)
    # A model in bfloat16 is summed up in float32.
    wide = torch.promote_types(line[0].dtype, torch.float32)
    mean = torch.zeros_like(line[0], dtype=wide)
    for rows in passes.examples(len(mean), steps):
        of_rows = runs.select(rows)
        clean = line[0][rows]
        change = line[1][rows] - clean
        per_pass = passes.copies(len(rows))
        for start in range(0, steps, per_pass):
            part = torch.tensor(points[start : start + per_pass], dtype=clean.dtype)
            weight = torch.tensor(weights[start : start + per_pass], dtype=wide)
            part, weight = part.to(clean.device), weight.to(clean.device)
            copies = of_rows.select(torch.arange(len(rows), device=clean.device).repeat(len(part)))
            between = clean + part[:, None, None, None] * change
            x = between.flatten(0, 1).requires_grad_()
            (gradient,) = torch.autograd.grad(copies.metric_with(name, x).sum(), x)
            mean[rows] += torch.einsum("k,kbpd->bpd", weight, gradient.view_as(between).to(wide))
    return mean


@dataclass(frozen=True)
class _Points:
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

    def joined(self, other: _Points) -> _Points:
        """Both, in order."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        both = _Points(*(torch.cat(pair) for pair in pairs))
        # Places are at most 1, so that 2 lies between the examples.
        order = (2 * both.example + both.at).argsort()
        return _Points(*(value[order] for value in vars(both).values()))

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


def _points(
    runs: Resumed, name: str, ends: tuple[Tensor, Tensor], example: Tensor, at: Tensor, rows: int
) -> _Points:
    """The metric and its gradient at places of the examples' lines, `rows` in one pass."""
    clean, patch = ends
    wide = torch.promote_types(clean.dtype, torch.float32)
    metrics, gradients = [], []
    for part in torch.arange(len(at), device=at.device).split(rows):
        of = example[part]
        change = patch[of] - clean[of]
        x = (clean[of] + at[part, None, None].to(clean.dtype) * change).requires_grad_()
        metric = runs.select(of).metric_with(name, x)
        (gradient,) = torch.autograd.grad(metric.sum(), x)
        metrics.append(metric.detach().double())
        gradients.append(gradient.to(wide))
    gradient = torch.cat(gradients)
    slope = (gradient * (patch - clean).to(wide)[example]).sum((1, 2)).double()
    return _Points(example, at, torch.cat(metrics), gradient, slope)


def _adapt(
    runs: Resumed,
    name: str,
    line: tuple[Tensor, Tensor],
    estimator: IntegratedGradients,
    passes: Passes,
) -> Tensor:
    """Mean of dm/dx on the line, by trapezoids that are halved where the metric bends.

    The metric itself is known at every point, so that each interval says how far its trapezoid is
    from the change it should sum to. These differences sum to the completeness gap. Intervals
    with more than an equal share of what is tolerated are halved; no point is thrown away.
    """
    wide = torch.promote_types(line[0].dtype, torch.float32)
    mean = torch.zeros_like(line[0], dtype=wide)
    first = torch.linspace(0, 1, estimator.steps + 1, device=mean.device, dtype=torch.float64)
    # Gradients of all points are held, most often a few times fewer than there could be.
    for rows in passes.examples(len(mean), max(1, estimator.max_steps // 2)):
        of_rows, ends, n = runs.select(rows), (line[0][rows], line[1][rows]), len(rows)
        example = torch.arange(n, device=mean.device).repeat_interleave(len(first))
        points = _points(of_rows, name, ends, example, first.repeat(n), passes.rows)
        while len(halved := _to_halve(points, n, estimator)):
            middle = (points.at[halved] + points.at[halved + 1]) / 2
            example = points.example[halved]
            points = points.joined(_points(of_rows, name, ends, example, middle, passes.rows))
        mean[rows] = points.mean_gradient(n)
    return mean


def _to_halve(points: _Points, n_examples: int, estimator: IntegratedGradients) -> Tensor:
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


@torch.no_grad()
def _patched_metric(
    runs: Resumed, name: str, ends: Endpoints, passes: Passes
) -> Float[Tensor, " batch"]:
    """The metric with the whole submodule patched."""
    parts = [
        runs.select(rows).metric_with(name, ends.patch[rows])
        for rows in passes.examples(len(ends.patch), 1)
    ]
    return torch.cat(parts)


def integrated_gradients(
    runs: Resumed,
    name: str,
    dictionary: Dictionary,
    ends: Endpoints,
    *,
    metric_clean: Float[Tensor, " batch"],
    estimator: IntegratedGradients,
    passes: Passes,
) -> SubmoduleEffects:
    """Integrated-gradients estimate of every node's indirect effect at one submodule (eq. 4).

        IE(a) ~= (a_patch - a_clean) . mean_k dm/da at a_clean + t_k (a_patch - a_clean)

    The sum of a submodule's effects should be the change of the metric when the whole submodule
    is patched; how far it is from that is kept as the completeness gap.

    Args:
        runs: runs that can be resumed at the submodule.
        ends: the line's ends, ``(batch, pos, d)``.
        metric_clean: the metric at the clean end.
        estimator: steps, their rule, and what gap is tolerated.

    Returns:
        Effects in the metric's units; positive where patching raises the metric.
    """
    total = _patched_metric(runs, name, ends, passes) - metric_clean
    line = (ends.clean, ends.patch)
    if estimator.rule == "adaptive":
        gradient = _adapt(runs, name, line, estimator, passes)
    else:
        gradient = _integrate(runs, name, line, estimator.rule, estimator.steps, passes)
    return _gather_effects(dictionary, ends, gradient, total)


def _gap(
    ends: Endpoints, gradient: Float[Tensor, "batch pos d"], total: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Sum of all effects at a submodule, <mean gradient, x_patch - x_clean>, minus `total`."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(wide) * (ends.patch.to(wide) - ends.clean.to(wide))).sum((1, 2)) - total


def clean_gradients(runs: Resumed, names: Sequence[str], passes: Passes) -> dict[str, Tensor]:
    """dm/dx at clean for many submodules from one backward pass each batch, ``(batch, pos, d)``."""
    parts = []
    for rows in passes.examples(runs.recording.n_examples, 1):
        of_rows = runs.select(rows)
        embed = of_rows.recording.outputs["embed"].detach().requires_grad_()
        values = {"embed": embed}
        # Every position of every submodule has a gradient: no layer is run at the last token only.
        end = of_rows.value_at_end(*of_rows.stream_with("embed", embed), values.setdefault)
        metric = of_rows.read(end).sum()
        parts.append(torch.autograd.grad(metric, [values[name] for name in names]))
    return {
        name: torch.cat(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }


def attribution_effects(
    runs: Resumed,
    name: str,
    dictionary: Dictionary,
    ends: Endpoints,
    *,
    metric_clean: Float[Tensor, " batch"],
    gradients: Mapping[str, Tensor],
    passes: Passes,
) -> SubmoduleEffects:
    """Change of every node of a submodule times its gradient at clean (eq. 3).

    Args:
        gradients: from `clean_gradients`; the rest as for `integrated_gradients`.
    """
    total = _patched_metric(runs, name, ends, passes) - metric_clean
    return _gather_effects(dictionary, ends, gradients[name], total)


@torch.no_grad()
def exact_effects(
    runs: Resumed,
    name: str,
    dictionary: Dictionary,
    ends: Endpoints,
    *,
    metric_clean: Float[Tensor, " batch"],
    passes: Passes,
) -> SubmoduleEffects:
    """Exact indirect effect of every node of a submodule (eq. 2): one run for each.

    Returns:
        Effects as `integrated_gradients` gives them; ``gradient`` is zero, there is none.
    """
    n_pos = ends.clean.shape[1]

    def effects_of(
        token: Int[Tensor, " n"], moves: Callable[[slice], Tensor]
    ) -> Float[Tensor, " n"]:
        moved_by = torch.empty(len(token), dtype=metric_clean.dtype, device=token.device)
        for start in range(0, len(token), passes.rows):
            part = slice(start, start + passes.rows)
            example, pos = token[part] // n_pos, token[part] % n_pos
            x = ends.clean[example]
            x[torch.arange(len(example), device=x.device), pos] += moves(part).to(x.dtype)
            moved_by[part] = runs.select(example).metric_with(name, x) - metric_clean[example]
        return moved_by

    change = ends.change
    f = change.features
    of_features = effects_of(
        f.token, lambda part: f.value[part, None] * dictionary.decoder[f.feature[part]]
    )
    errors = change.error.flatten(0, 1)
    moved = errors.any(1).nonzero().flatten()
    of_errors = errors.new_zeros(len(errors))
    of_errors[moved] = effects_of(moved, lambda part: errors[moved[part]]).to(errors.dtype)
    dtype = dictionary.decoder.dtype
    not_measured = torch.full_like(metric_clean, float("nan"))
    return SubmoduleEffects(
        f.with_value(of_features.to(dtype)),
        of_errors.view(change.error.shape[:2]),
        torch.zeros_like(change.error),
        change,
        ends.act,
        not_measured,
        not_measured,
    )


def _check(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    readout: Readout,
    estimator: Estimator,
) -> list[str]:
    """Where there are nodes, in causal order; raises where nothing can be measured."""
    check_estimator(estimator)
    if not dictionaries:
        raise MissingSubmodule("no dictionaries were given, so there are no nodes.")
    check_widths(dictionaries, model.width)
    names = readout.reached_by(dictionaries, model)
    if not names:
        raise MissingSubmodule(
            f"the metric is read at {readout.site}, and no dictionary sits there or before it "
            f"(they are at {', '.join(causal_order(dictionaries))}): nothing reaches it."
        )
    return names


def _check_finite(recording: Recording, names: Iterable[str], side: str) -> None:
    for name in names:
        if not bool(torch.isfinite(recording.outputs[name][recording.mask]).all()):
            raise NotFinite(
                f"activations of the {side} inputs hold NaN or infinity at '{name}': no effect "
                "computed from them would mean anything. Run the model in a wider dtype."
            )


def _check_path(effects: SubmoduleEffects, name: str, estimator: Estimator) -> None:
    if estimator.has_gradients and not bool(torch.isfinite(effects.gap).all()):
        raise NotFinite(
            f"the metric or its gradient is NaN or infinite between clean and patch at '{name}': "
            "effects would mean nothing. Run the model in a wider dtype, or take another metric."
        )


def _recordings(
    model: LanguageModel, inputs: Inputs, names: Iterable[str]
) -> tuple[Resumed, Resumed | None]:
    """Both sides run once; patch is None for zero ablation."""
    clean = Resumed.record(model, inputs)
    _check_finite(clean.recording, names, "clean")
    if inputs.patch is None:
        return clean, None
    patch = Resumed.record(model, replace(inputs, clean=inputs.patch, patch=None))
    _check_finite(patch.recording, names, "patch")
    return clean, patch


EffectsOf = Callable[[str, Dictionary, Endpoints], SubmoduleEffects]
"""Effects of the nodes of one submodule: (name, dictionary, ends of its line)."""


def _effects_by(
    estimator: Estimator,
    runs: Resumed,
    names: Sequence[str],
    metric_clean: Float[Tensor, " batch"],
    passes: Passes,
) -> EffectsOf:
    """The function that an estimator is, for runs from one recording."""
    common = {"metric_clean": metric_clean, "passes": passes}
    match estimator:
        case IntegratedGradients():
            return partial(integrated_gradients, runs, estimator=estimator, **common)
        case Attribution():
            gradients = clean_gradients(runs, names, passes)
            return partial(attribution_effects, runs, gradients=gradients, **common)
        case Exact():
            return partial(exact_effects, runs, **common)


@dataclass(frozen=True, eq=False)
class Effects(NodeEffects):
    """`NodeEffects` with the clean run they start from, which edges need too."""

    clean_run: Recording


def node_effects(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    *,
    estimator: Estimator = IntegratedGradients(),
    budget_bytes: int = 2 << 30,
) -> Effects:
    """Effects of every node of every submodule that has a dictionary (eqs 2, 3, 4).

    Args:
        dictionaries: by submodule name; submodules without one have no nodes.
        inputs: pairs, or single inputs (zero ablation: features and errors to zero).
        estimator: `IntegratedGradients`, `Attribution` or `Exact`.
        budget_bytes: memory for activations in flight; batches are made to fit.

    Returns:
        Effects in the metric's units, positive where patching raises the metric; of submodules
        at the readout's site and before it.

    Raises:
        InputError: not an estimator.
        WidthMismatch, MissingSubmodule: a dictionary does not fit the model, none sits where the
            readout can see it, or the model has no such site.
        NotFinite: activations or the metric are NaN or infinite.
        OutOfBudget: not even one example fits the budget.
    """
    names = _check(model, dictionaries, inputs.readout, estimator)
    check_answers(inputs, model.n_vocab)
    inputs = inputs.to(model.device)
    passes = plan_passes(model, inputs.clean.shape[1], budget_bytes)
    clean, patch = _recordings(model, inputs, names)
    metric_clean = clean.as_recorded()
    if not bool(torch.isfinite(metric_clean).all()):
        raise NotFinite(
            "the metric is NaN or infinite on the clean inputs: check the answers and the dtype."
        )
    effects_of = _effects_by(estimator, clean, names, metric_clean, passes)
    submodules: dict[str, SubmoduleEffects] = {}
    for name in names:
        other = None if patch is None else patch.recording.outputs[name]
        ends = endpoints(dictionaries[name], clean.recording.outputs[name], other, inputs.mask)
        submodules[name] = effects_of(name, dictionaries[name], ends)
        _check_path(submodules[name], name, estimator)
    metric_patch = None if patch is None else patch.as_recorded()
    run = clean.recording
    return Effects(submodules, metric_clean, metric_patch, estimator, inputs.mask, run)
