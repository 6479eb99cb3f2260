"""Which stages an experiment has."""

from __future__ import annotations

from assets.circuits.stages import circuit_stages, task_stages
from assets.corpus.stages import corpus_stages
from assets.dictionaries.stages import dictionary_stages
from assets.discovery.clusterings import discovery_stages
from assets.discovery.comparisons import comparison_stages
from assets.engine.stage import Stage
from assets.evaluations.edges import edge_stages
from assets.evaluations.stages import evaluation_stages
from assets.features.labels import feature_stages
from assets.report.stages import report_stage
from assets.settings import Experiment
from assets.shift.stages import classifier_stages, shift_stages

# What reads pairs and labelled texts comes first: a mistake in them is told in seconds, not after
# dictionaries have been trained.
_STEPS = (
    task_stages,
    classifier_stages,
    corpus_stages,
    dictionary_stages,
    discovery_stages,
    comparison_stages,
    circuit_stages,
    evaluation_stages,
    edge_stages,
    feature_stages,
    shift_stages,
)


def stages_of(experiment: Experiment) -> list[Stage]:
    """All stages of an experiment, in an order in which they can run."""
    stages = [stage for step in _STEPS for stage in step(experiment)]
    return [*stages, report_stage(stages)]
