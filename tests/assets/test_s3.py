"""Artifacts in a bucket of a local S3 server: the same tables, also after kills and outages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assets.engine import remote
from assets.engine.records import FILE
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from pipelines.experiment import read_experiment
from pipelines.verify import verify
from tests.killed import killed_after
from tests.tiny_experiment import brought_up_to_date, tiny_experiment, write_experiment

pytestmark = pytest.mark.storage
LAST = "evaluation_summary"

_ELSEWHERE = """
import runpy, sys
from pathlib import Path
from assets.engine import remote
from assets.engine.records import FILE
remote.COPIES = Path(sys.argv.pop())
runpy.run_module("tests.assets.bring_up_to_date", run_name="__main__")
"""


class Server:
    """An S3 server of this machine, with one bucket.

    Attributes:
        files: the buckets as they are.
    """

    def __init__(self) -> None:
        import s3fs
        from moto.server import ThreadedMotoServer

        self._server: Any = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        self.url = f"http://{self.host}:{self.port}"
        self.files = s3fs.S3FileSystem(
            key="key", secret="secret", endpoint_url=self.url, use_listings_cache=False
        )
        self.files.mkdir("bucket")

    def contents(self, prefix: str) -> dict[str, bytes]:
        """All objects but records and locks."""
        found = self.files.cat(self.files.find(f"bucket/{prefix}"))
        names = {path: path.removeprefix(f"bucket/{prefix}/") for path in found}
        return {names[path]: found[path] for path in found if not names[path].startswith(".")}

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(self.host, self.port, verbose=False)
        self._server.start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    for package in ("moto", "flask", "s3fs"):
        pytest.importorskip(package, reason="needs moto[server] and the extra s3")
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where clients find the server; copies lie in a folder of the test's own."""
    told = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url,
        "HOME": str(tmp_path),
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "COPIES", tmp_path / "copies")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # those with what another test told
    return told


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The experiment in a folder, made once."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("here"))
    brought_up_to_date(experiment, LAST)
    return experiment


def in_bucket(here: Experiment, prefix: str) -> Experiment:
    """The same experiment of the same name, which some pages tell."""
    folder = here.path.parent / prefix
    folder.mkdir()
    for name in ("model", "corpus.jsonl", "train.json", "test.json"):
        (folder / name).symlink_to(here.path.parent / name)
    return read_experiment(write_experiment(folder, artifacts=f"s3://bucket/{prefix}"))


def of_folder(experiment: Experiment) -> dict[str, bytes]:
    """All files but records and locks."""
    root = experiment.artifacts
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
    told = {name for name in files if name[0] != "." and name != FILE}
    return {name: files[name].read_bytes() for name in told}


def test_the_same_bytes_as_in_a_folder(
    server: Server, environment: dict[str, str], here: Experiment
) -> None:
    experiment = in_bucket(here, "whole")
    made = brought_up_to_date(experiment, LAST)
    assert made
    assert server.contents("whole") == of_folder(here)
    assert brought_up_to_date(experiment, LAST) == {}


def test_another_machine_has_nothing_to_do_and_finds_all_of_it_whole(
    server: Server, environment: dict[str, str], here: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = in_bucket(here, "seen")
    brought_up_to_date(experiment, "filtered_tokens")
    monkeypatch.setattr(remote, "COPIES", remote.COPIES.with_name("others"))
    other = read_experiment(experiment.path)
    assert other.artifacts != experiment.artifacts
    assert brought_up_to_date(other, "filtered_tokens") == {}
    damaged = [fault for fault in verify(other).faults if "missing" not in fault.what]
    assert damaged == []


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_in_the_same_bytes(
    server: Server, environment: dict[str, str], here: Experiment, tmp_path: Path
) -> None:
    experiment = in_bucket(here, "killed")

    def run(machine: str, n_lines: int | None) -> int:
        copies = str(tmp_path / machine)
        command = [sys.executable, "-c", _ELSEWHERE, str(experiment.path), copies]
        return killed_after(n_lines, command, environment)

    assert run("one", 12) == 12
    assert run("one", 9) == 9
    assert run("two", None) > 20  # another machine, once the lock of the dead one lapses
    stored, expected = server.contents("killed"), of_folder(here)
    assert {name: stored.get(name) for name in expected} == expected


def test_an_outage_stops_the_run_with_what_is_whole_kept(
    server: Server, environment: dict[str, str], here: Experiment
) -> None:
    experiment = in_bucket(here, "outage")
    brought_up_to_date(experiment, "activation_cache")
    before = server.contents("outage")
    server.stop()
    try:
        with pytest.raises(ExperimentError, match=r"(?s)s3://bucket/outage.*cannot be reached"):
            brought_up_to_date(experiment, "dictionary_set")
    finally:
        server.start()
    assert server.contents("outage") == before
    brought_up_to_date(experiment, "dictionary_set")
    stored, expected = server.contents("outage"), of_folder(here)
    assert "dictionary_set.parquet" in stored
    assert stored == {name: expected[name] for name in stored}


# -- what is wrong is told before any work ---------------------------------------------------------


def told_of(place: str, folder: Path) -> str:
    experiment = read_experiment(write_experiment(folder, artifacts=place))
    with pytest.raises(ExperimentError) as caught:
        ArtifactStore(experiment.artifacts).check_writable()
    return str(caught.value)


def test_a_bucket_that_is_not_there(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    told = told_of("s3://nowhere/prefix", tmp_path)
    assert "artifacts at s3://nowhere/prefix: it is not there" in told
    assert "Make the bucket first" in told


def test_missing_credentials_name_the_variables(
    server: Server, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    told = told_of("s3://bucket/nobody", tmp_path)
    assert "there are no credentials for it" in told
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE." in told


def test_rights_that_are_missing(
    server: Server, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From now on the server asks who has which rights, and nobody was given any.
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    told = told_of("s3://bucket/forbidden", tmp_path)
    assert "it refuses these credentials" in told
    assert "rights to list, read, write and delete" in told
