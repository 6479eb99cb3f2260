"""The stages of a classifier and of SHIFT, where the experiment has one."""

from __future__ import annotations

from assets.engine.stage import Stage
from assets.settings import Experiment
from assets.shift.judgements import JUDGEMENTS_STAGE
from assets.shift.probe import CLASSIFIER_BEHAVIOURS_STAGE, PROBE_STAGE
from assets.shift.shift import SHIFT_STAGE
from assets.shift.texts import LABELLED_TEXTS_STAGE


def classifier_stages(experiment: Experiment) -> list[Stage]:
    """From labelled texts to the behaviour that the classifier's circuit explains."""
    if experiment.settings.classifier is None:
        return []
    return [LABELLED_TEXTS_STAGE, PROBE_STAGE, CLASSIFIER_BEHAVIOURS_STAGE]


def shift_stages(experiment: Experiment) -> list[Stage]:
    """From the circuit and cards of its features to what ablating the judged ones does."""
    if experiment.settings.classifier is None:
        return []
    return [JUDGEMENTS_STAGE, SHIFT_STAGE]
