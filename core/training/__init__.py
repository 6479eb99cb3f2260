"""Training dictionaries (App. B): all submodules from one read of the activations."""

from core.training.buffer import RowSource, ShuffledBuffer, rows_within
from core.training.learner import Learner, Report, Trained
from core.training.loop import train_dictionaries
from core.training.model_rows import ModelRows, context_rows, fingerprint_contexts
from core.training.settings import TrainingSettings
from core.training.tuning import TuningSettings, tune_in_series

__all__ = [
    "Learner",
    "ModelRows",
    "Report",
    "RowSource",
    "ShuffledBuffer",
    "Trained",
    "TrainingSettings",
    "TuningSettings",
    "context_rows",
    "fingerprint_contexts",
    "rows_within",
    "train_dictionaries",
    "tune_in_series",
]
