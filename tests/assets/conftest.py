"""The tiny experiment, finished once, and copies of it to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from assets.settings import Experiment
from pipelines.experiment import read_experiment
from tests.tiny_experiment import brought_up_to_date, tiny_experiment


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Everything made; not to be changed."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("finished"))
    brought_up_to_date(experiment)
    return experiment


@pytest.fixture
def copied(finished: Experiment, tmp_path: Path) -> Experiment:
    """The same in another folder."""
    shutil.copytree(finished.path.parent, tmp_path / "copied")
    return read_experiment(tmp_path / "copied" / finished.path.name)
