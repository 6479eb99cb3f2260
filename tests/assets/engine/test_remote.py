"""An artifacts folder at an address: the same bytes as in a folder, whole or not there."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from assets.engine import lock, remote
from assets.engine.loading import check_written
from assets.engine.lock import alone, is_taken
from assets.engine.recipe import Recipe
from assets.engine.records import lineage_of
from assets.engine.remote import copy_of, remote_of
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from assets.tables.places import CONTEXTS, VOCABULARY, sae
from assets.tables.schemas import TABLES
from pipelines.experiment import read_experiment
from pipelines.show import main as show
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment, write_experiment

ROWS = [{"document": 0, "tokens": [1, 2, 3], "labels": None}]
RECIPE = Recipe("contexts", {"corpus": "abc"}, {"n_positions": 3}, "1")


class Bucket:
    """Objects in memory, and the copies that machines have of them."""

    address = "memory://bucket/prefix"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.objects = MemoryFileSystem()
        self._folder, self._monkeypatch = folder, monkeypatch

    def copy(self, machine: str) -> ArtifactStore:
        """The store as a machine has it."""
        self._monkeypatch.setattr(remote, "COPIES", self._folder / machine)
        return ArtifactStore(copy_of(self.address))

    def put(self, name: str, content: bytes) -> None:
        self.objects.pipe_file(f"/bucket/prefix/{name}", content)

    def files(self) -> dict[str, bytes]:
        found = self.objects.find("/bucket/prefix")
        return {name.removeprefix("/bucket/prefix/"): self.objects.cat_file(name) for name in found}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "_REST", 0.0)  # what is there is looked up each time
    monkeypatch.setattr(remote, "_SHARE", 0)
    monkeypatch.setattr(lock, "_LOOK_ELSEWHERE_EVERY", 0.02)
    return Bucket(tmp_path / "copies", monkeypatch)


@pytest.fixture
def table() -> pa.Table:
    return TABLES["contexts"].build(ROWS)


def page(store: ArtifactStore, name: str, text: str) -> Path:
    return store.write_text(CONTEXTS, f"/{name}.html", text)


# -- tables and files ------------------------------------------------------------------------------


def test_stages_leave_the_same_bytes_at_an_address_as_in_a_folder(
    bucket: Bucket, tmp_path: Path
) -> None:
    def run(experiment: Experiment) -> None:
        stages = {stage.name: stage for stage in stages_of(experiment)}
        stages["contexts"].run(experiment)
        stages["activation_cache"].run(experiment)
        stages["saes"].run(experiment, experiment.submodules)
        stages["dictionary_set"].run(experiment)

    here = tiny_experiment(tmp_path)
    run(here)
    bucket.copy("one")
    path = write_experiment(tmp_path, "elsewhere", artifacts=bucket.address)
    run(read_experiment(path))
    of_folder = {
        file.relative_to(here.artifacts).as_posix(): file.read_bytes()
        for file in here.artifacts.rglob("*")
        if file.is_file() and ".locks" not in file.parts and file.name != "lineage.jsonl"
    }
    of_address = {n: b for n, b in bucket.files().items() if not n.startswith(".lineage")}
    assert of_address == of_folder
    # A machine that has nothing of it goes on from there: nothing is to be done.
    bucket.copy("two")
    said: list[str] = []
    other = read_experiment(path)
    made = {stage.name: stage for stage in stages_of(other)}
    for name in ("contexts", "activation_cache", "dictionary_set"):
        made[name].run(other, said.append)
    assert said == [
        f"{n} is up to date" for n in ("contexts", "activation_cache", "dictionary_set")
    ]


def test_a_table_written_by_one_machine_is_read_by_another(bucket: Bucket, table: pa.Table) -> None:
    one = bucket.copy("one")
    one.write(CONTEXTS, table, RECIPE, files=[page(one, "a", "first")])
    two = bucket.copy("two")
    assert two.root != one.root
    assert two.is_current(CONTEXTS, RECIPE)
    assert two.read(CONTEXTS).to_pylist() == ROWS
    assert two.here(CONTEXTS, "/a.html").read_text(encoding="utf-8") == "first"
    again = Recipe("contexts", {"corpus": "other"}, {}, "1")
    two.write(CONTEXTS, table.slice(0, 0), again, files=[page(two, "b", "second")])
    assert one.read(CONTEXTS).num_rows == 0
    assert one.here(CONTEXTS, "/b.html").read_text(encoding="utf-8") == "second"
    # What went with the table before and does not now is gone.
    assert [name for name in bucket.files() if name.endswith(".html")] == ["contexts/b.html"]


def test_the_footer_of_a_large_table_is_read_without_its_values(
    bucket: Bucket, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.copy("one").write(CONTEXTS, table, RECIPE)
    monkeypatch.setattr(remote, "_SMALL", 10)
    two = bucket.copy("two")
    two.ahead([CONTEXTS])
    assert two.is_current(CONTEXTS, RECIPE)
    assert not two.path(CONTEXTS).exists()
    assert two.read(CONTEXTS).to_pylist() == ROWS


def test_a_table_counts_once_all_that_was_written_with_it_is_there(
    bucket: Bucket, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put = bucket.copy("one"), MemoryFileSystem.put_file

    def fails(self: MemoryFileSystem, file: str, place: str, **how: object) -> None:
        if place.endswith(".html"):
            raise TimeoutError("timed out")
        put(self, file, place, **how)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fails)
    with pytest.raises(ExperimentError, match=r"cannot be reached \(TimeoutError.*half-written"):
        store.write(CONTEXTS, table, RECIPE, files=[page(store, "a", "text")])
    assert store.footer(CONTEXTS) is None
    assert not store.path(CONTEXTS).exists()
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    store.write(CONTEXTS, table, RECIPE, files=[page(store, "a", "text")])
    bucket.put("contexts/a.html", b"tex")
    assert not store.is_current(CONTEXTS, RECIPE)


def test_what_is_about_to_be_put_is_not_fetched_over(bucket: Bucket, table: pa.Table) -> None:
    store = bucket.copy("one")
    store.write(CONTEXTS, table, RECIPE, files=[page(store, "a", "before")])
    written = page(store, "a", "a longer one")
    os.utime(written, (time.time() + 2,) * 2)
    assert store.here(CONTEXTS, "/a.html").read_text(encoding="utf-8") == "a longer one"


def test_records_of_every_machine_are_known_to_all(bucket: Bucket, table: pa.Table) -> None:
    one, two = bucket.copy("one"), bucket.copy("two")
    one.write(CONTEXTS, table, RECIPE, made=lambda: {"made": {"where": "one"}})
    recipe = Recipe("vocabulary", {"contexts": one.content(CONTEXTS)}, {}, "1")
    empty = TABLES["vocabulary"].build([])
    two.write(VOCABULARY, empty, recipe, made=lambda: {"made": {"where": "two"}})
    record = one.lineage.get(one.lineage.name("vocabulary", recipe.fingerprint))
    assert record is not None
    assert record["made"] == {"where": "two"}
    (origin,) = record["from"]["contexts"]
    before = two.lineage.get(origin[2])
    assert before is not None
    assert before["made"] == {"where": "one"}
    assert lineage_of(one.root).check() == lineage_of(two.root).check() == []


def test_a_folder_that_was_moved_there_keeps_its_records(
    bucket: Bucket, table: pa.Table, tmp_path: Path
) -> None:
    folder = ArtifactStore(tmp_path / "folder")
    folder.write(CONTEXTS, table, RECIPE, made=lambda: {"made": {"where": "in a folder"}})
    lines = (folder.root / "lineage.jsonl").read_bytes()
    bucket.put("contexts.parquet", folder.path(CONTEXTS).read_bytes())
    bucket.put("lineage.jsonl", lines + b'{"id": "cut sh')
    moved = bucket.copy("one")
    for _ in range(2):
        lineage_of.cache_clear()  # as another process
        record = moved.lineage.get(moved.lineage.name("contexts", RECIPE.fingerprint))
        assert record is not None
        assert record["made"] == {"where": "in a folder"}
        assert (moved.root / "lineage.jsonl").read_bytes() == lines


# -- locks -----------------------------------------------------------------------------------------


def test_a_second_machine_waits_and_says_for_whom(bucket: Bucket) -> None:
    one, two, said, ended = bucket.copy("one"), bucket.copy("two"), list[str](), threading.Event()

    def second() -> None:
        with alone(two.root, "circuits", said.append):
            ended.set()

    thread = threading.Thread(target=second)
    with alone(one.root, "circuits", said.append):
        assert is_taken(two.root, "circuits")
        thread.start()
        assert not ended.wait(0.3)
    thread.join()
    assert ended.is_set()
    assert len(said) == 1
    assert "circuits: waiting for another run to end: process" in said[0]
    assert not is_taken(one.root, "circuits")


@pytest.fixture
def killed(bucket: Bucket) -> ArtifactStore:
    """A machine whose process was killed while it held a lock."""
    store = bucket.copy("one")
    with alone(store.root, "circuits", lambda _told: None):
        left = bucket.files()[".locks/circuits"]
    bucket.put(".locks/circuits", left)
    return store


def test_a_lock_of_a_killed_process_ends_for_others_when_it_is_not_renewed(
    killed: ArtifactStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, said = bucket.copy("two"), list[str]()
    monkeypatch.setattr(lock, "LEASE", 0.5)
    began = json.loads(bucket.files()[".locks/circuits"])["renewed"]
    with alone(two.root, "circuits", said.append):
        assert time.time() - began >= 0.5
        time.sleep(0.6)
        assert is_taken(killed.root, "circuits")  # for it is renewed


def test_a_lock_of_a_killed_process_is_taken_over_on_its_own_machine_at_once(
    killed: ArtifactStore,
) -> None:
    said: list[str] = []
    with alone(killed.root, "circuits", said.append):
        assert said == []


@pytest.mark.parametrize("left", [b"process 12 on one, since Fri", b"", b"[]", b"{}"])
def test_what_is_no_lock_at_all_keeps_nobody_out(bucket: Bucket, left: bytes) -> None:
    """As the file of a lock that was copied there with its folder."""
    bucket.put(".locks/circuits", left)
    store = bucket.copy("one")
    assert not is_taken(store.root, "circuits")
    with alone(store.root, "circuits", lambda _told: None):
        assert is_taken(store.root, "circuits")


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("s3:///prefix", r"artifacts: an address is SCHEME://BUCKET"),
        ("s3://bucket/../other", r"artifacts: an address is"),
        ("s4://bucket/prefix", r"artifacts: nothing is known to reach s4:// with"),
        ("file:///tmp/there", r"artifacts: a folder on this machine is written as a path"),
    ],
)
def test_an_address_that_cannot_be_meant_is_told(tmp_path: Path, written: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        read_experiment(write_experiment(tmp_path, artifacts=written))


def test_an_address_whose_package_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExperimentError, match=r"needs the package gcsfs.*the extra 'gcs'"):
        read_experiment(write_experiment(tmp_path, artifacts="gs://bucket/prefix"))


class NoCredentialsError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoCredentialsError("none found"), "there are no credentials for it"),
        (PermissionError("Forbidden"), "refuses these credentials.*rights to list, read, write"),
        (FileNotFoundError("no bucket"), "is not there.*Make the bucket first"),
        (ConnectionError("refused"), r"cannot be reached \(ConnectionError: refused\)"),
    ],
)
def test_what_keeps_an_address_from_being_written_to_is_told_before_any_work(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fails(*_given: object, **_how: object) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fails)
    with pytest.raises(ExperimentError, match=f"(?s)artifacts at {bucket.address}.*{told}"):
        bucket.copy("one").check_writable()


def test_a_listing_of_circuits_at_an_address_that_is_gone_says_so(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def gone(*_given: object, **_how: object) -> None:
        raise FileNotFoundError("no such bucket")

    monkeypatch.setattr(MemoryFileSystem, "find", gone)
    file = write_experiment(tmp_path, artifacts=bucket.address)
    assert show([str(file)]) == 1
    assert "it is not there (no such bucket). Make the bucket first" in capsys.readouterr().err


def test_weights_that_were_left_in_a_copy_are_told_apart_from_damage_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket.copy("one")
    key = sae("embed")
    store.write(key, TABLES[key.table].build([]), RECIPE, notes={"weights": "put"})
    monkeypatch.setattr("core.dictionaries.files.fingerprint", lambda _weights: "not put")
    weights: Any = None
    copy = store.path(key, ".safetensors")
    with pytest.raises(ExperimentError, match=f"remove its copy {copy}; if that does not help"):
        check_written(store, "embed", weights)


def test_a_folder_stands_for_itself(tmp_path: Path) -> None:
    assert remote_of(tmp_path) is None


def test_a_large_table_that_is_damaged_counts_as_none(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SMALL", 10)
    bucket.put("contexts.parquet", b"no table at all, for sure")
    assert bucket.copy("one").footer(CONTEXTS) is None


def test_a_record_that_is_damaged_is_told_and_read_once(bucket: Bucket, table: pa.Table) -> None:
    bucket.copy("one").write(CONTEXTS, table, RECIPE, made=lambda: {"made": {}})
    (name,) = [name for name in bucket.files() if name.startswith(".lineage/")]
    bucket.put(name, bucket.files()[name].replace(b"contexts", b"Contexts"))
    two = bucket.copy("two").lineage
    for _ in range(2):
        assert two.name("contexts", RECIPE.fingerprint) is None
        assert two.check() == [1]
