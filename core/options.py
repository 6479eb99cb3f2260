"""Every choice that core and the experiment files offer, once; nothing here needs torch."""

from __future__ import annotations

from typing import Literal, get_args

EstimatorName = Literal["ig", "attribution", "exact"]
Rule = Literal["midpoint", "left", "gauss"]
ErrorNodes = Literal["circuit", "drop", "drop_but_resid", "remove", "keep"]
Ablation = Literal["mean", "zero", "resample"]
DictionaryKind = Literal["relu", "topk", "batchtopk", "jumprelu", "gated"]
Representation = Literal[
    "activations", "features", "linear_effects", "feature_effects", "gradients"
]
Reduction = Literal["last", "sum"]
Algorithm = Literal["spectral", "kmeans"]
Format = Literal["sfc", "dictionary_learning", "saelens", "sparsify", "gemma_scope"]
Dtype = Literal["float32", "float64", "bfloat16"]

ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)
RULES: tuple[Rule, ...] = get_args(Rule)
ERROR_NODES: tuple[ErrorNodes, ...] = get_args(ErrorNodes)
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
DICTIONARY_KINDS: tuple[DictionaryKind, ...] = get_args(DictionaryKind)
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
