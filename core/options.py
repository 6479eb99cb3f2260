"""Every choice that has a name, once: as a type, and as a tuple of what it may be.

Torch-free, so that a settings file can be read without it. What a choice does is said where it is
used; `core.estimators` has the estimators that carry numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from core.errors import InputError

EstimatorName = Literal["ig", "attribution", "exact"]
Rule = Literal["midpoint", "left", "gauss"]
Ablation = Literal["mean", "zero", "resample"]
ErrorNodes = Literal["circuit", "drop", "drop_but_resid", "remove", "keep"]
DictionaryKind = Literal["relu", "topk", "batchtopk", "jumprelu", "gated"]
Representation = Literal[
    "activations", "features", "linear_effects", "feature_effects", "gradients"
]
Reduction = Literal["last", "sum"]
Algorithm = Literal["spectral", "kmeans"]
Format = Literal[
    "sfc",
    "dictionary_learning",
    "saelens",
    "sparsify",
    "gemma_scope",
    "llama_scope",
    "qwen_scope",
    "batch_topk",
]
Dtype = Literal["float32", "float64", "bfloat16"]

ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)
RULES: tuple[Rule, ...] = get_args(Rule)
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
ERROR_NODES: tuple[ErrorNodes, ...] = get_args(ErrorNodes)
DICTIONARY_KINDS: tuple[DictionaryKind, ...] = get_args(DictionaryKind)
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

WITH_DICTIONARIES: frozenset[Representation] = frozenset({"features", "feature_effects"})
"""The representations that read dictionaries."""


def check_option(what: str, value: object, options: Sequence[str]) -> None:
    """Raise `InputError` if `value` is none of the options that `what` has."""
    if value not in options:
        raise InputError(f"{what} {value!r} is not one of {', '.join(options)}.")
