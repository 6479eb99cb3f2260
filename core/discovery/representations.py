"""What a sample is represented by before clustering: the five inputs of App. H.2.

    activations       x                          of each submodule's output
    features          f                          of each dictionary
    linear_effects    -x . dm/dx                 of each of its neurons, elementwise
    feature_effects   -f_i <W_d[i], dm/dx>       of each feature, and -<eps, dm/dx> of the error
    gradients         R^T dm/dparameters         see `core.discovery.projection`

with m = -log P(answer). Linear effects estimate what setting the neuron or feature to zero does
to m (attribution patching, eq. 3, to the zero patch): positive where the answer needs it. All but
the gradients are taken at the last n positions, concatenated, or summed over the context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from core.budget import Passes
from core.dictionaries.dictionary import Dictionary, check_widths
from core.discovery.batches import Batch, batches, check_contexts
from core.discovery.filter import Sample
from core.discovery.projection import Projection, gradient_modules, projected_gradients
from core.effects import clean_gradients, feature_dots
from core.errors import InputError, MissingSubmodule, NotFinite, OutOfBudget
from core.models.language_model import LanguageModel
from core.splice import Resumed
from core.types import causal_order

if TYPE_CHECKING:
    from scipy.sparse import csr_array

KINDS = ("activations", "features", "linear_effects", "feature_effects", "gradients")
REDUCTIONS = ("last", "sum")
_SPARSE = ("features", "feature_effects")
_EFFECTS = ("linear_effects", "feature_effects")


def represent(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    samples: Sequence[Sample],
    *,
    kind: str,
    reduction: str = "sum",
    n_last: int = 1,
    submodules: Sequence[str] | None = None,
    errors: bool = False,
    n_projected: int = 30_000,
    seed: int = 0,
    batch_tokens: int = 4096,
    budget_bytes: int = 4 << 30,
    progress: Callable[[str], None] | None = None,
) -> np.ndarray | csr_array:
    """One vector per sample, for clustering (App. H.2).

    Args:
        dictionaries: by submodule; read by ``features`` and ``feature_effects`` only.
        kind: one of `KINDS`.
        reduction: ``last``, the last `n_last` positions one after the other (zeros where the
            context is shorter), or ``sum`` over the context. Gradients have no positions.
        submodules: which to use; None for every dictionary's, or without dictionaries every
            submodule of the model.
        errors: with ``feature_effects``, one more column per position for the error's effect.
        n_projected, seed: dimensions of projected gradients, and the seed of their projection.
        batch_tokens: tokens of one batch.
        budget_bytes: for the result.
        progress: told now and then how many samples are done.

    Returns:
        ``(sample, width)`` float32; a sparse matrix for ``features`` and ``feature_effects``.
        Columns go by submodule in causal order, then position, then neuron or feature, error last.

    Raises:
        InputError: an unknown kind or reduction, no samples, a context that is too long.
        MissingSubmodule: the model has no such submodule, or no dictionary sits there.
        WidthMismatch: a dictionary does not fit its submodule.
        OutOfBudget: the result does not fit.
        NotFinite: NaN or infinity came out.
    """
    check_contexts(samples, model.max_positions)
    names = _check(model, dictionaries, kind, reduction, n_last, submodules, errors)
    collect: _Collector
    if kind == "gradients":
        gradient_modules(model)
        projection = Projection(n_projected, seed)
        width, collect = n_projected, _Gradients(projection)
    else:
        slots = n_last if reduction == "last" else 0
        collect = _Submodules(kind, names, dictionaries, slots, errors)
        width = collect.width(model)
    rows = _SparseRows(len(samples), width, budget_bytes) if kind in _SPARSE else None
    store = rows or _DenseRows(len(samples), width, budget_bytes)
    done, told = 0, 0
    for batch in batches(
        samples, batch_tokens=batch_tokens, max_positions=model.max_positions
    ):
        store.add(batch.rows, collect(batch, batch.record(model)))
        done += len(batch.rows)
        if progress is not None and (done >= told + 500 or done == len(samples)):
            told = done
            progress(f"{kind}: {done} of {len(samples)} samples")
    return store.result()
