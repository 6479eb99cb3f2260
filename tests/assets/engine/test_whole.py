"""What a stage wrote beside its table: without any part of it, the stage makes it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.engine.records import FILE
from assets.settings import Experiment
from tests.tiny_experiment import brought_up_to_date

OWNERS = {
    "activation_cache/attn_0/00000.parquet": "activation_cache",
    "activation_cache/manifest.json": "activation_cache",
    "saes/attn_0.safetensors": "saes",
    "feature_densities.parquet": "dictionary_set",
    "clusterings/chosen/pages/index.html": "clusters",
    "clusterings/chosen/pages/k00000.html": "clusters",
    "behaviours/clusters_examples.parquet": "cluster_behaviours",
    "behaviours/tasks_examples.parquet": "task_behaviours",
    "behaviours/dropped_pairs.parquet": "task_behaviours",
    "circuits/clusters/k00000/nodes.parquet": "circuits",
    "circuits/clusters/k00001/effects.parquet": "circuits",
    "circuits/tasks/simple/edges.parquet": "task_circuits",
}


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder but locks and records, which say who ran when."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name != ".locks" and file.name != FILE
    }


def _listed(folder: Path) -> set[str]:
    """Every file that the footer of some table lists."""
    footers = (pq.read_metadata(file).metadata or {} for file in folder.rglob("*.parquet"))
    return {name for footer in footers for name in json.loads(footer.get(b"sfc.files", b"{}"))}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_a_finished_experiment_is_finished_in_another_folder_too(copied: Experiment) -> None:
    before = contents(copied.artifacts)
    assert brought_up_to_date(copied, "labels") == {}
    assert contents(copied.artifacts) == before


@pytest.mark.parametrize("damage", [Path.unlink, _truncate], ids=["deleted", "truncated"])
@pytest.mark.parametrize(("file", "owner"), OWNERS.items(), ids=OWNERS)
def test_a_part_that_is_not_whole_is_made_again_by_its_stage_alone(
    copied: Experiment, file: str, owner: str, damage: Callable[[Path], None]
) -> None:
    before = contents(copied.artifacts)
    damage(copied.artifacts / file)
    assert brought_up_to_date(copied, "labels") == {owner: 1}
    assert contents(copied.artifacts) == before


def test_everything_beside_the_tables_may_go_and_comes_back_the_same(copied: Experiment) -> None:
    before, listed = contents(copied.artifacts), _listed(copied.artifacts)
    assert set(OWNERS) < listed
    for file in listed:
        (copied.artifacts / file).unlink()
    made = brought_up_to_date(copied, "labels")
    judged = {
        f"{source}_{what}"
        for source in ("circuit", "task")
        for what in ("baselines", "approximations", "edge_evaluations")
    }
    assert made.keys() == {*OWNERS.values(), "cards", *judged}
    assert (made["saes"], made["circuits"]) == (4, 3)
    assert contents(copied.artifacts) == before


def test_every_file_is_a_table_or_listed_by_one(finished: Experiment) -> None:
    folder = finished.artifacts
    tables = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.parquet")
        if b"sfc.fingerprint" in (pq.read_metadata(file).metadata or {})
    }
    assert contents(folder).keys() == tables | _listed(folder)


@pytest.mark.parametrize("table", ["contexts", "behaviours/clusters", "saes/embed"])
def test_a_table_that_is_gone_is_made_again_and_nothing_else(
    copied: Experiment, table: str
) -> None:
    before = contents(copied.artifacts)
    _truncate(copied.artifacts / f"{table}.parquet")
    owner = {"behaviours/clusters": "cluster_behaviours", "saes/embed": "saes"}.get(table, table)
    assert brought_up_to_date(copied, "labels") == {owner: 1}
    assert contents(copied.artifacts) == before
