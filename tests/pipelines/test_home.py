"""Dagster's home: this checkout's SQLite, or a Postgres that a variable names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from assets.settings import ExperimentError
from pipelines import home
from pipelines.home import POSTGRES, dagster_home, lost_database
from pipelines.run import main, run_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment

ADDRESS = "postgresql://circuits:secret@127.0.0.1:{}/dagster"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(home.ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setattr(home, "ROOT", tmp_path)
    for name in (POSTGRES, "DAGSTER_HOME"):  # restored at the end, also where they are set
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_the_variable_the_checkout_is_the_home(tmp_path: Path) -> None:
    assert dagster_home() == tmp_path
    assert not (tmp_path / ".dagster").exists()


def test_what_is_no_address_of_a_database_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES, "mysql://host/name")
    with pytest.raises(ExperimentError, match="write postgresql://USER:PASSWORD@HOST:5432/NAME"):
        dagster_home()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_postgres", None)
    monkeypatch.setenv(POSTGRES, ADDRESS.format(5432))
    with pytest.raises(ExperimentError, match=r"dagster_postgres is not installed.*'postgres'"):
        dagster_home()


# -- against a server of this machine ------------------------------------------------------------


class Server:
    """A Postgres server with an empty database, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self._run("initdb", "-A", "trust", "-U", "circuits")
        self.start()
        place = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "circuits")
        subprocess.run([self._program("createdb"), *place, "dagster"], check=True)

    def _program(self, name: str) -> str:
        return str(Path(os.path.realpath(shutil.which("initdb") or "")).parent / name)

    def _run(self, name: str, *arguments: str) -> None:
        # The server refuses to be run by root.
        user = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
        command = [*user, self._program(name), "-D", str(self._folder), *arguments]
        quiet = subprocess.DEVNULL
        subprocess.run(command, cwd="/", check=True, stdout=quiet, stderr=quiet)

    def start(self) -> None:
        listens = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        self._run("pg_ctl", "-o", listens, "-l", f"{self._folder}.log", "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-m", "immediate", "-w", "stop")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("dagster_postgres", reason="needs the extra postgres")
    if shutil.which("initdb") is None:
        pytest.skip("needs a Postgres server's programs: initdb is not on the path")
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres")
        made = Server(Path(name) / "data")
        yield made
        made.stop()


@pytest.mark.storage
def test_runs_and_what_they_made_are_found_in_postgres(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES, ADDRESS.format(server.port))
    folder = dagster_home()
    written = (folder / "dagster.yaml").read_text(encoding="utf-8")
    assert "secret" not in written
    usual = yaml.safe_load((tmp_path / "dagster.yaml").read_text(encoding="utf-8"))
    kept = {name: value for name, value in yaml.safe_load(written).items() if name != "storage"}
    assert kept == {name: value for name, value in usual.items() if name != "storage"}

    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    experiment = tiny_experiment(tmp_path)
    stages = stages_of(experiment)[:2]
    with dg.DagsterInstance.get() as instance:
        run_experiment(experiment, instance, stages)
    with dg.DagsterInstance.get() as instance:  # as another machine would
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.SUCCESS
        for stage in stages:
            key = dg.AssetKey(["tiny", stage.name])
            event = instance.get_latest_materialization_event(key)
            assert event is not None
            assert event.run_id == run.run_id
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.storage
def test_a_database_that_is_not_there_or_goes_away_is_told(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(POSTGRES, ADDRESS.format(server.port))
    monkeypatch.setattr("dagster_postgres.utils.time.sleep", lambda _seconds: None)
    experiment = tiny_experiment(tmp_path)
    contexts = stages_of(experiment)[0]

    @wraps(contexts.make)
    def stops(*given: Any) -> Any:
        server.stop()
        return contexts.make(*given)

    going_away = [replace(contexts, make=stops), *stages_of(experiment)[1:2]]
    monkeypatch.setattr("pipelines.run.stages_of", lambda _experiment: going_away)
    monkeypatch.setattr("pipelines.definitions.stages_of", lambda _experiment: going_away)
    try:
        assert main([str(experiment.path)]) == 1
        told = capsys.readouterr().err
        assert f"the database of {POSTGRES} does not answer" in told
        assert "Tables that were written are kept" in told
        assert "secret" not in told
        assert main([str(experiment.path)]) == 1
        assert f"the database of {POSTGRES} does not answer" in capsys.readouterr().err
    finally:
        server.start()


def test_errors_that_lead_back_to_each_other_come_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(POSTGRES, "postgresql://nobody@nowhere/none")
    first, second = ValueError("one"), ValueError("two")
    first.__context__, second.__context__ = second, first
    assert lost_database(first) is None
