"""A made-up experiment, and the explorer on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from assets.settings import Experiment
from explorer.app import Explorer
from pipelines.experiment import read_experiment
from tests.explorer.made_up import MadeUp

ADDRESS = "http://127.0.0.1:3001"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Every table; not to be changed."""
    return MadeUp(tmp_path_factory.mktemp("made_up")).all()


@pytest.fixture
def copied(made: Experiment, tmp_path: Path) -> Experiment:
    """The same in another folder."""
    shutil.copytree(made.path.parent, tmp_path / "copied")
    return read_experiment(tmp_path / "copied" / made.path.name)


@pytest.fixture
def client(copied: Experiment) -> TestClient:
    """The explorer on an experiment that may be changed; forms come from its own pages."""
    explorer = Explorer([copied], dagster="http://127.0.0.1:3000")
    return TestClient(
        explorer.app(), ADDRESS, headers={"origin": ADDRESS}, raise_server_exceptions=False
    )
