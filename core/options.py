"""Every choice that has a name, once: as a type, and as a tuple of what it may be.

Torch-free, so that a settings file can be read without it. What a choice does is said where it is
used; `core.estimators` has the estimators that carry numbers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from core.errors import InputError

EstimatorName = Literal["ig", "attribution", "exact"]
Rule = Literal["midpoint", "left", "gauss", "adaptive"]
SingleMetric = Literal["log_odds", "log_prob", "margin"]
Ablation = Literal["mean", "zero", "resample"]
ErrorNodes = Literal["circuit", "drop", "drop_but_resid", "remove", "keep"]
Variant = Literal[
    "features",
    "no_errors",
    "residual_errors",
    "neurons",
    "mlp_neurons",
    "random_nodes",
    "random_decoder",
]
DictionaryKind = Literal["relu", "topk", "batchtopk", "jumprelu", "gated"]
# What kinds make no use of, so that another value changes nothing; a kind that is not named here is
# taken to use everything. `core.training.kinds` says the same.
WITHOUT_K = frozenset({"relu", "jumprelu", "gated"})
CHOOSE_K = frozenset({"topk", "batchtopk"})  # and have no penalty
NEVER_RESAMPLE = frozenset({"topk", "batchtopk", "jumprelu"})
Representation = Literal[
    "activations",
    "mlp_neurons",
    "features",
    "active_features",
    "linear_effects",
    "feature_effects",
    "gradients",
]
Reduction = Literal["last", "sum"]
Pooling = Literal["last", "mean"]
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
TokenizerReading = Literal["file", "class"]

ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)
RULES: tuple[Rule, ...] = get_args(Rule)
SINGLE_METRICS: tuple[SingleMetric, ...] = get_args(SingleMetric)
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
ERROR_NODES: tuple[ErrorNodes, ...] = get_args(ErrorNodes)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
DICTIONARY_KINDS: tuple[DictionaryKind, ...] = get_args(DictionaryKind)
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
TOKENIZER_READINGS: tuple[TokenizerReading, ...] = get_args(TokenizerReading)

WITH_DICTIONARIES: frozenset[Representation] = frozenset(
    {"features", "active_features", "feature_effects"}
)
"""The representations that read dictionaries."""


def check_list(what: str, value: object, kind: type | tuple[type, ...] = object) -> None:
    """Raise `InputError` unless `value` is a list (or another sequence) of items of a `kind`.

    A text is a sequence of texts too, and is refused.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(
            f"{what} must be a list, not {type(value).__name__}: put a single one in brackets."
        )
    odd = next((item for item in value if not isinstance(item, kind)), None)
    if odd is not None:
        raise InputError(f"{what} must not hold {type(odd).__name__}: {odd!r:.80}.")


def check_option(what: str, value: object, options: Sequence[str]) -> None:
    """Raise `InputError` if `value` is none of the options that `what` has."""
    if value not in options:
        raise InputError(f"{what} {value!r} is not one of {', '.join(options)}.")
