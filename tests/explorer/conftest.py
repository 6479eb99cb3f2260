"""A made-up experiment, and the explorer on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
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


CLASSIFIER_DATA = {
    "source": "./a.jsonl",
    "label_column": "job",
    "attribute_column": "<sex>",
    "labels": [0, 1],
}


@pytest.fixture
def judged(copied: Experiment) -> Experiment:
    """The made-up experiment with a classifier, whose circuit has 60 features."""
    made = MadeUp(copied.path.parent)
    nodes = [
        {"node": i, "submodule": "resid_0", "feature": i, "pos": None, "effect": 60.0 - i}
        for i in range(60)
    ]
    made.circuit("classifiers", "probe", nodes)
    return with_classifier(copied.path)


def with_classifier(path: Path) -> Experiment:
    """The experiment of a file that is given a classifier."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(
        yaml.safe_dump({**settings, "classifier": {"data": CLASSIFIER_DATA}}), encoding="utf-8"
    )
    return read_experiment(path)
