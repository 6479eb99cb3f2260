"""The stages of a classifier and of SHIFT, where the experiment has one."""

from __future__ import annotations

from assets.engine.stage import Stage
from assets.settings import Experiment
from assets.shift.texts import LABELLED_TEXTS_STAGE


def classifier_stages(experiment: Experiment) -> list[Stage]:
    """From labelled texts to what ablating the judged features does."""
    if experiment.settings.classifier is None:
        return []
    return [LABELLED_TEXTS_STAGE]
