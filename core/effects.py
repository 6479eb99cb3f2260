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

import torch
from torch import Tensor

from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary, check_widths
from core.endpoints import Endpoints, endpoints
from core.errors import MissingSubmodule, NotFinite
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients, check_estimator
from core.exact import exact_effects
from core.inputs import Inputs, check_answers
from core.lines import Line, has_clean_end, mean_gradients, patched_metrics
from core.models import LanguageModel, Recording
from core.models.replay import Resumed
from core.readout import Readout
from core.shapes import Float
from core.sparse import products
from core.types import (
    NodeEffects,
    SparseFeatures,
    Submodule,
    SubmoduleEffects,
    causal_order,
)


def feature_dots(
    dictionary: Dictionary, at: SparseFeatures, gradient: Float[Tensor, "batch pos d"]
) -> Float[Tensor, " n"]:
    """<decoder row, gradient> for each (token, feature) of `at`: dm/df by the chain rule.

    Args:
        gradient: dm/dx.
    """
    flat = gradient.reshape(-1, gradient.shape[-1])
    return products(at.token, at.feature, flat, dictionary.decoder)


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


EffectsOf = Callable[[Mapping[str, Endpoints]], Mapping[str, SubmoduleEffects]]
"""Effects of the nodes of some submodules of one layer, from the ends of their lines."""


def _needs_clean_end(estimator: Estimator) -> bool:
    if isinstance(estimator, IntegratedGradients):
        return has_clean_end(estimator)
    return isinstance(estimator, Attribution)


def _effects_by(
    estimator: Estimator,
    runs: Resumed,
    dictionaries: Mapping[str, Dictionary],
    known: Known,
    passes: Passes,
) -> EffectsOf:
    """The function that an estimator is, for runs from one recording."""
    common = {"known": known, "passes": passes}
    match estimator:
        case IntegratedGradients():
            return partial(integrated_gradients, runs, dictionaries, estimator=estimator, **common)
        case Attribution():
            return partial(attribution_effects, runs, dictionaries, **common)
        case Exact():
            return lambda ends: {
                name: exact_effects(
                    runs, name, dictionaries[name], of_one, known.metric_clean, passes
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
    metric_patch = None if patch is None else patch.as_recorded()
    gradients = clean_gradients(clean, names, passes) if _needs_clean_end(estimator) else {}
    known = Known(metric_clean, metric_patch, gradients)
    effects_of = _effects_by(estimator, clean, dictionaries, known, passes)
    submodules: dict[str, SubmoduleEffects] = {}
    for together in clean.together(names):
        ends = {}
        for name in together:
            other = None if patch is None else patch.recording.outputs[name]
            x = clean.recording.outputs[name]
            ends[name] = endpoints(dictionaries[name], x, other, inputs.mask)
        for name, effects in effects_of(ends).items():
            _check_path(effects, name, estimator)
            submodules[name] = effects
    run = clean.recording
    return Effects(submodules, metric_clean, metric_patch, estimator, inputs.mask, run)
