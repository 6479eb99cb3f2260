"""The command that serves the explorer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from assets.engine.stage import Work
from assets.settings import Experiment, ExperimentError
from explorer.__main__ import main
from explorer.app import Explorer
from pipelines.experiment import read_experiment
from tests.explorer.conftest import ADDRESS
from tests.tiny_experiment import write_experiment


def test_a_port_in_use_is_said(made: Experiment, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--experiments", str(made.path)]) == 1
    assert f"port {port} is taken" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--experiments", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_one_bad_file_does_not_hide_the_others(made: Experiment):
    client = TestClient(Explorer([made], ["bad.yaml: no model"]).app(), ADDRESS)
    page = client.get("/").text
    assert "bad.yaml: no model" in page
    assert "/made_up/clusters" in page


def test_dagster_links_to_pages_that_are_there(made: Experiment):
    address = Work.on(made).explorer
    assert address == f"{ADDRESS}/made_up"
    client = TestClient(Explorer([made]).app(), ADDRESS)
    assert client.get(f"{address}/tasks/simple").status_code == 200


def test_the_address_in_an_experiment_must_be_one(tmp_path: Path):
    with pytest.raises(ExperimentError, match="begins with http"):
        read_experiment(write_experiment(tmp_path, explorer="javascript:alert(1)"))
