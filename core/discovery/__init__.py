"""Behaviour discovery (section 5, App. H): tokens a model predicts, represented and clustered."""

from core.discovery.clustering import (
    Clustering,
    ClusterSummary,
    CurvePoint,
    angular_similarity,
    cluster,
    summarize,
)
from core.discovery.filter import DROPPED, FilterResult, Sample, filter_tokens
from core.discovery.projection import Projection, projected_gradients
from core.discovery.representations import represent
from core.discovery.truth import BehaviourShare, Recovery, compare_with_truth

__all__ = [
    "DROPPED",
    "BehaviourShare",
    "ClusterSummary",
    "Clustering",
    "CurvePoint",
    "FilterResult",
    "Projection",
    "Recovery",
    "Sample",
    "angular_similarity",
    "cluster",
    "compare_with_truth",
    "filter_tokens",
    "projected_gradients",
    "represent",
    "summarize",
]
