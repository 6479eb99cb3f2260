"""Runs that were asked of another process, perhaps elsewhere: does it have the same code?

Who asks notes on the run what each stage would make (`_Stage.version`: settings, and every line of
code that shapes the result). A worker with other code, or another experiment, refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assets.engine.stage import Stage
from assets.settings import Experiment, ExperimentError

_ASKED = "circuits.asked/"
_SHOWN = 12


def asked_tags(stages: Sequence[Stage], experiment: Experiment) -> dict[str, str]:
    """Tags of a run that is to make these stages as they are here."""
    return {_ASKED + stage.name: stage.version(experiment) for stage in stages}


def check_asked(stage: Stage, experiment: Experiment, tags: Mapping[str, str]) -> None:
    """Raise `ExperimentError` unless this process would make what the run's tags ask for."""
    asked = tags.get(_ASKED + stage.name)
    if asked is not None and asked != (here := stage.version(experiment)):
        raise ExperimentError(
            f"{stage.name} was asked for as version {asked[:_SHOWN]}, and this worker has version "
            f"{here[:_SHOWN]}: its code, or its file of the experiment {experiment.name}, is "
            "another, so that tables of two kinds would lie side by side. Give every worker the "
            "same commit and the same file, and ask again; what was made before is kept."
        )
