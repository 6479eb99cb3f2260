"""The command that serves the UI, as far as it goes before it starts a server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from assets.engine.lock import alone
from assets.settings import ExperimentError
from pipelines.ui import check_free, command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_second_server_of_one_folder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    with (
        alone(tmp_path, "ui", lambda _told: None),
        pytest.raises(ExperimentError, match=r"has a Dagster server already \(process \d+ on"),
    ):
        check_free(tmp_path, _free_port())
    check_free(tmp_path, _free_port())


def test_a_port_that_is_taken_is_told_with_another(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ExperimentError, match=rf"port {port}: give another.*PORT={port + 1}"):
            check_free(tmp_path, port)


def test_the_server_listens_to_this_machine_alone() -> None:
    told = command(3000)
    assert told[told.index("--host") + 1] == "127.0.0.1"
    assert told[told.index("--port") + 1] == "3000"
