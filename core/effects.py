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
from itertools import groupby

import torch
from torch import Tensor

from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary, check_widths
from core.errors import MissingSubmodule, NotFinite
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients, check_estimator
from core.inputs import Inputs, check_answers
from core.lines import Line, has_clean_end, mean_gradients, patched_metrics
from core.models import LanguageModel, Recording
from core.models.replay import Resumed, next_layer
from core.shapes import Bool, Float, Int
from core.sparse import add_at, products
from core.types import (
    NodeEffects,
    SparseAct,
    SparseFeatures,
    Submodule,
    SubmoduleEffects,
    causal_order,
)


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


def _at_tokens(act: SparseAct, token: Tensor, shape: tuple[int, int]) -> SparseAct:
    """What was split at some tokens, ``(1, n)``, as features and errors of a batch, zero elsewhere.

    Args:
        token: ``(n,)``, ascending: which token of the batch each is.
        shape: of the batch, (batch, pos).
    """
    (_, _, n_features), d = act.features.shape, act.error.shape[2]
    f = act.features
    features = SparseFeatures(token[f.token], f.feature, f.value, (*shape, n_features))
    error = act.error.new_zeros(shape[0] * shape[1], d)
    error[token] = act.error[0]
    return SparseAct(features, error.view(*shape, d))


def _part(act: SparseAct, first: int, last: int) -> SparseAct:
    """The tokens from `first` to before `last` of one long example."""
    f = act.features
    begin, end = torch.searchsorted(f.token, f.token.new_tensor([first, last])).tolist()
    features = SparseFeatures(
        f.token[begin:end] - first,
        f.feature[begin:end],
        f.value[begin:end],
        (1, last - first, f.shape[2]),
    )
    return SparseAct(features, act.error[:, first:last])


def endpoints(
    dictionary: Dictionary,
    clean: Float[Tensor, "batch pos d"],
    patch: Float[Tensor, "batch pos d"] | None,
    mask: Bool[Tensor, "batch pos"],
) -> Endpoints:
    """Both ends of the line at one submodule; patch None is zero ablation, x_patch = bias.

    Both are encoded in one go: real tokens of the clean side, and those of the patch side that
    differ. The change is exactly zero elsewhere.
    """
    batch, n_pos, d = clean.shape
    other = dictionary.bias.to(clean.dtype) if patch is None else patch
    patched = torch.where(mask[..., None], other, clean)
    real = mask.flatten().nonzero().flatten()
    moved = (patched != clean).any(-1).flatten().nonzero().flatten()
    if patch is None:
        moved = moved[:0]
    x = torch.cat([clean.reshape(-1, d)[real], patched.reshape(-1, d)[moved]])
    both, n = dictionary.split(x[None]), len(real)
    act = _at_tokens(_part(both, 0, n), real, (batch, n_pos))
    if patch is None:
        change = SparseAct(act.features.with_value(-act.features.value), -act.error)
        return Endpoints(clean, patched, act, change)
    after = _at_tokens(_part(both, n, len(x)), moved, (batch, n_pos))
    before = act.features.where(torch.isin(act.features.token, moved))
    error = after.error - act.error
    unmoved = torch.ones(batch * n_pos, dtype=torch.bool, device=mask.device)
    unmoved[moved] = False
    error = error.masked_fill(unmoved.view(batch, n_pos, 1), 0.0)
    change = SparseAct(sparse_difference(after.features, before), error)
    return Endpoints(clean, patched, act, change)


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


@dataclass(frozen=True)
class Known:
    """What is measured before any submodule is looked at.

    Attributes:
        metric_clean, metric_patch: the metric of both sides; patch None for zero ablation.
        gradients: dm/dx at clean by submodule, from `clean_gradients`; empty where not needed.
    """

    metric_clean: Float[Tensor, " batch"]
    metric_patch: Float[Tensor, " batch"] | None
    gradients: Mapping[str, Tensor]

    def line(self, name: str, ends: Endpoints) -> Line:
        """The line of a submodule. With the whole stream patched, the run is that of the patch."""
        is_stream = Submodule.parse(name).kind in ("embed", "resid")
        return Line(
            ends.clean,
            ends.patch,
            self.metric_clean,
            self.metric_patch if is_stream else None,
            self.gradients.get(name),
        )


def integrated_gradients(
    runs: Resumed,
    dictionaries: Mapping[str, Dictionary],
    ends: Mapping[str, Endpoints],
    *,
    known: Known,
    estimator: IntegratedGradients,
    passes: Passes,
) -> dict[str, SubmoduleEffects]:
    """Integrated-gradients estimate of every node's indirect effect (eq. 4).

        IE(a) ~= (a_patch - a_clean) . mean_k dm/da at a_clean + t_k (a_patch - a_clean)

    One submodule moves at a time; those of one layer share passes. The sum of a submodule's effects
    should be the change of the metric when the whole submodule is patched; how far it is from that
    is kept as the completeness gap.

    Args:
        runs: runs that can be resumed at the submodules.
        dictionaries: by submodule name.
        ends: the lines' ends, by submodule; all of one layer, or the embedding.
        known: the metric, and the gradients at clean where `has_clean_end`.
        estimator: steps, their rule, and what gap is tolerated.

    Returns:
        Effects in the metric's units; positive where patching raises the metric.
    """
    lines = {name: known.line(name, of_one) for name, of_one in ends.items()}
    means = mean_gradients(runs, lines, estimator, passes)
    return {
        name: _gather_effects(
            dictionaries[name], ends[name], gradient, metric_patch - known.metric_clean
        )
        for name, (gradient, metric_patch) in means.items()
    }


def _gap(
    ends: Endpoints, gradient: Float[Tensor, "batch pos d"], total: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Sum of all effects at a submodule, <mean gradient, x_patch - x_clean>, minus `total`."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(wide) * (ends.patch.to(wide) - ends.clean.to(wide))).sum((1, 2)) - total


@torch.no_grad()
def _clean_metric(runs: Resumed) -> Tensor:
    stream = runs.recording.outputs[f"resid_{runs.model.n_layers - 1}"]
    return runs.finish(stream, runs.model.n_layers)


def clean_gradients(runs: Resumed, names: Sequence[str], passes: Passes) -> dict[str, Tensor]:
    """dm/dx at clean for many submodules from one backward pass each batch, ``(batch, pos, d)``."""
    parts = []
    for rows in passes.examples(runs.recording.n_examples, 1):
        of_rows = runs.select(rows)
        embed = of_rows.recording.outputs["embed"].detach().requires_grad_()
        values = {"embed": embed}
        stream, layer = of_rows.stream_with("embed", embed)
        # Every position of every submodule has a gradient: no layer is run at the last token only.
        for i in range(layer, runs.model.n_layers):
            context = of_rows.recording.context[i]
            stream = runs.model.layer(i, stream, context, values.setdefault)
        metric = of_rows.finish(stream, runs.model.n_layers).sum()
        parts.append(torch.autograd.grad(metric, [values[name] for name in names]))
    return {
        name: torch.cat(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }


def attribution_effects(
    runs: Resumed,
    dictionaries: Mapping[str, Dictionary],
    ends: Mapping[str, Endpoints],
    *,
    known: Known,
    passes: Passes,
) -> dict[str, SubmoduleEffects]:
    """Change of every node times its gradient at clean (eq. 3).

    Args:
        as for `integrated_gradients`.
    """
    lines = {name: known.line(name, of_one) for name, of_one in ends.items()}
    metrics = patched_metrics(runs, lines, passes)
    return {
        name: _gather_effects(
            dictionaries[name],
            ends[name],
            known.gradients[name],
            metrics[name] - known.metric_clean,
        )
        for name in ends
    }


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
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], estimator: Estimator
) -> None:
    check_estimator(estimator)
    if not dictionaries:
        raise MissingSubmodule("no dictionaries were given, so there are no nodes.")
    check_widths(dictionaries, model.width)


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
) -> tuple[Recording, Recording | None]:
    """Both sides run once; patch is None for zero ablation."""
    clean = model.record(inputs.clean, inputs.mask)
    _check_finite(clean, names, "clean")
    if inputs.patch is None:
        return clean, None
    patch = model.record(inputs.patch, inputs.mask)
    _check_finite(patch, names, "patch")
    return clean, patch


EffectsOf = Callable[[Mapping[str, Endpoints]], Mapping[str, SubmoduleEffects]]
"""Effects of the nodes of some submodules of one layer, from the ends of their lines."""


def _effects_by(
    estimator: Estimator,
    runs: Resumed,
    dictionaries: Mapping[str, Dictionary],
    metrics: tuple[Tensor, Tensor | None],
    passes: Passes,
) -> EffectsOf:
    """The function that an estimator is, for runs from one recording.

    Args:
        metrics: of the clean and the patch side.
    """
    at_clean = {}
    if isinstance(estimator, Attribution) or (
        isinstance(estimator, IntegratedGradients) and has_clean_end(estimator)
    ):
        at_clean = clean_gradients(runs, list(dictionaries), passes)
    known = Known(*metrics, at_clean)
    match estimator:
        case IntegratedGradients():
            of_runs = partial(integrated_gradients, runs, dictionaries, estimator=estimator)
            return partial(of_runs, known=known, passes=passes)
        case Attribution():
            return partial(attribution_effects, runs, dictionaries, known=known, passes=passes)
        case Exact():
            return lambda ends: {
                name: exact_effects(
                    runs,
                    name,
                    dictionaries[name],
                    of_one,
                    metric_clean=known.metric_clean,
                    passes=passes,
                )
                for name, of_one in ends.items()
            }


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
        Effects in the metric's units, positive where patching raises the metric.

    Raises:
        InputError: not an estimator.
        WidthMismatch, MissingSubmodule: a dictionary does not fit the model.
        NotFinite: activations or the metric are NaN or infinite.
        OutOfBudget: not even one example fits the budget.
    """
    _check(model, dictionaries, estimator)
    check_answers(inputs, model.n_vocab)
    inputs = inputs.to(model.device)
    passes = plan_passes(model, inputs.clean.shape[1], budget_bytes)
    clean, patch = _recordings(model, inputs, dictionaries)
    runs = Resumed(model, clean, inputs.metric, inputs.last)
    metric_clean = _clean_metric(runs)
    if not bool(torch.isfinite(metric_clean).all()):
        raise NotFinite(
            "the metric is NaN or infinite on the clean inputs: check the answers and the dtype."
        )
    metric_patch = None if patch is None else _clean_metric(replace(runs, recording=patch))
    effects_of = _effects_by(estimator, runs, dictionaries, (metric_clean, metric_patch), passes)
    submodules: dict[str, SubmoduleEffects] = {}
    for _, names in groupby(causal_order(dictionaries), key=next_layer):
        ends = {}
        for name in names:
            other = None if patch is None else patch.outputs[name]
            ends[name] = endpoints(dictionaries[name], clean.outputs[name], other, inputs.mask)
        for name, effects in effects_of(ends).items():
            _check_path(effects, name, estimator)
            submodules[name] = effects
    return Effects(submodules, metric_clean, metric_patch, estimator, inputs.mask, clean)
