"""`pipelines.verify` is silent on a whole folder, and names each of many planted faults."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.engine.recipe import Recipe
from assets.engine.records import FILE
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import CONTEXTS, DICTIONARY_SET, FILTERED_TOKENS
from pipelines import verify as command
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from pipelines.verify import Fault, verify
from tests.tiny_experiment import write_experiment, write_pairs

Plant = Callable[[Experiment], None]


def _flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def _footer(file: Path) -> dict[bytes, bytes]:
    texts = pq.read_metadata(file).metadata or {}
    return {name: text for name, text in texts.items() if name.startswith(b"sfc.")}


def _rewritten(file: Path, column: str, *, footer: dict[bytes, bytes] | None = None) -> None:
    """Write a table again with its footer and one value changed."""
    table = pq.read_table(file)
    values = table[column].to_pylist()
    values[0] = values[0] + 1 if isinstance(values[0], int | float) else values[0] + "x"
    place, kept = table.schema.get_field_index(column), _footer(file) | (footer or {})
    field = table.schema.field(column)
    changed = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(changed.replace_schema_metadata(kept), file)


def _again(experiment: Experiment, *, n: int) -> None:
    """Make the filtered tokens again, from fewer of them."""
    store = ArtifactStore(experiment.artifacts)
    footer, table = store.footer(FILTERED_TOKENS), store.read(FILTERED_TOKENS)
    assert footer is not None
    recipe = Recipe("filtered_tokens", *(footer.notes[p] for p in ("inputs", "settings", "code")))
    store.write(FILTERED_TOKENS, table.slice(0, n), recipe)


def _file(path: str, change: Callable[[Path], object]) -> Plant:
    return lambda experiment: (change(experiment.artifacts / path), None)[1]


def _copy(source: str, target: str) -> Plant:
    def plant(experiment: Experiment) -> None:
        shutil.copyfile(experiment.artifacts / source, experiment.artifacts / target)

    return plant


def _older(file: Path) -> None:
    table = pq.read_table(file)
    metadata = _footer(file) | {b"sfc.layout": b"1"}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def _renamed_column(file: Path) -> None:
    table = pq.read_table(file)
    names = ["number", *table.column_names[1:]]
    metadata = _footer(file)
    pq.write_table(table.rename_columns(names).replace_schema_metadata(metadata), file)


def _fewer_rows(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(1).replace_schema_metadata(_footer(file)), file)


def _damage_record(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"stage"', b'"stagg"')
    file.write_bytes(b"".join(lines))


def _as_of_another(file: Path) -> None:
    """Records that say that another experiment made everything."""
    lineage = ArtifactStore(file.parent).lineage
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    for record in records:
        del record["id"]
        if "made" in record:
            record["made"]["experiment"] = "other"
        lineage.add(record)


CIRCUIT, FIRST, SECOND = "circuits/clusters", "k00000", "k00001"
SHARD = "activation_cache/attn_0/00000.parquet"

FAULTS: dict[str, tuple[Plant, str, str]] = {
    "a flipped bit": (
        _file("contexts.parquet", lambda f: _flip(f, 40)),
        "contexts.parquet",
        "is damaged",
    ),
    "a changed value": (
        _file("evaluations/tasks/simple.parquet", lambda f: _rewritten(f, "m_full")),
        "evaluations/tasks/simple.parquet",
        "its values are not those that were written",
    ),
    "a changed footer": (
        _file(
            "contexts.parquet",
            lambda f: _rewritten(f, "document", footer={b"sfc.content": b'"00"'}),
        ),
        "contexts.parquet",
        "its footer is not the one that was written. Delete it. Materialize contexts",
    ),
    "a table cut short": (
        _file(f"{CIRCUIT}/{FIRST}/edges.parquet", lambda f: os.truncate(f, 300)),
        f"{CIRCUIT}/{FIRST}/edges.parquet",
        "is cut short or damaged. Delete it. Materialize circuits, partition k00000",
    ),
    "other columns": (
        _file("contexts.parquet", _renamed_column),
        "contexts.parquet",
        "its columns are those of no table",
    ),
    "fewer rows": (
        _file("filtered_tokens.parquet", _fewer_rows),
        "filtered_tokens.parquet",
        "has another number of rows than was written",
    ),
    "another layout": (
        _file("dictionary_set.parquet", _older),
        "dictionary_set.parquet",
        "is of another layout than 2. Delete it. Materialize dictionary_set",
    ),
    "a missing table": (
        _file("filtered_tokens.parquet", Path.unlink),
        "filtered_tokens.parquet",
        "is missing. Materialize filtered_tokens",
    ),
    "a missing partition": (
        _file(f"{CIRCUIT}/{SECOND}", shutil.rmtree),
        "circuits",
        "1 of 3 partitions are missing: k00001. Materialize circuits for them",
    ),
    "a missing table beside": (
        _file(f"{CIRCUIT}/{SECOND}/nodes.parquet", Path.unlink),
        f"{CIRCUIT}/{SECOND}/nodes.parquet",
        "is missing (with circuits/clusters/k00001/circuit). Materialize circuits, partition k0000",
    ),
    "changed weights": (
        _file("saes/embed.safetensors", lambda f: _flip(f, -5)),
        "saes/embed.safetensors",
        "is not the file that was written (with saes/embed). Materialize saes, partition embed",
    ),
    "missing weights": (
        _file("saes/resid_1.safetensors", Path.unlink),
        "saes/resid_1.safetensors",
        "is missing",
    ),
    "a missing page": (
        _file("clusterings/chosen/pages/k00001.html", Path.unlink),
        "clusterings/chosen/pages/k00001.html",
        "is missing (with clusterings/chosen/clusters). Materialize clusters",
    ),
    "a longer page": (
        _file("clusterings/chosen/pages/index.html", lambda f: f.write_bytes(b"<html>")),
        "clusterings/chosen/pages/index.html",
        "has 6 bytes, not the",
    ),
    "a changed shard of the cache": (
        _file(SHARD, lambda f: _flip(f, 100)),
        SHARD,
        "is not the file that was written (with activation_cache)",
    ),
    "a foreign table": (
        _file("numbers.parquet", lambda f: pq.write_table(pq.read_table(f.parent / SHARD), f)),
        "numbers.parquet",
        "is no table of this pipeline. Remove it, or move it elsewhere",
    ),
    "a foreign file": (
        _file("circuits/notes.txt", lambda f: f.write_text("mine")),
        "circuits/notes.txt",
        "is no file of this pipeline",
    ),
    "a link to nothing": (
        _file("circuits/link", lambda f: f.symlink_to("/nowhere")),
        "circuits/link",
        "is no file of this pipeline",
    ),
    "a half-written file": (
        _file("saes/.embed.parquet.999999999.tmp", lambda f: f.write_bytes(b"PAR1")),
        "saes/.embed.parquet.999999999.tmp",
        "was left half-written by a process that is gone. `make run` removes it",
    ),
    "an input made again": (
        lambda experiment: _again(experiment, n=12),
        "clusterings/chosen/vectors.parquet",
        "was made from an earlier filtered_tokens. Materialize cluster_vectors",
    ),
    "an evaluation of another circuit": (
        _copy(f"evaluations/clusters/{FIRST}.parquet", f"evaluations/clusters/{SECOND}.parquet"),
        f"evaluations/clusters/{SECOND}.parquet",
        "is of k00000, not of k00001",
    ),
    "nodes of another circuit": (
        _copy(f"{CIRCUIT}/{FIRST}/nodes.parquet", f"{CIRCUIT}/{SECOND}/nodes.parquet"),
        f"evaluations/clusters/{SECOND}.parquet",
        "was made from an earlier circuits/clusters/k00001/nodes",
    ),
    "text added to the corpus": (
        lambda experiment: (
            (experiment.path.parent / "corpus.jsonl").open("a").write('{"text": "the cat"}\n'),
            None,
        )[1],
        "input source",
        "has changed since contexts read it. Materialize contexts and what follows",
    ),
    "another file of pairs": (
        lambda experiment: write_pairs(experiment.path.parent / "train.json", ("bird", "birds")),
        "input pairs.simple.train",
        "has changed since task_behaviours read it",
    ),
    "a changed model": (
        lambda experiment: _flip(experiment.path.parent / "model" / "model.safetensors", -3),
        "input model",
        "has changed since activation_cache, saes, dictionary_set",
    ),
    "a missing corpus": (
        lambda experiment: (experiment.path.parent / "corpus.jsonl").unlink(),
        "tiny.yaml",
        "corpus.jsonl does not exist",
    ),
    "a damaged record": (
        _file(FILE, _damage_record),
        f"{FILE}, line 3",
        "is not as it was written",
    ),
    "tables of another experiment": (
        _file(FILE, _as_of_another),
        "artifacts",
        "tables were made by the experiment other",
    ),
}


def _found(experiment: Experiment) -> list[Fault]:
    return list(verify(experiment).faults)


@pytest.fixture(autouse=True)
def _without_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished experiment has everything but its report."""
    monkeypatch.setattr(
        command, "stages_of", lambda e: [stage for stage in stages_of(e) if stage.name != "report"]
    )


def test_a_whole_folder_has_no_fault(finished: Experiment) -> None:
    verified = verify(finished)
    assert verified.faults == []
    assert verified.n_tables == len(ArtifactStore(finished.artifacts).paths())
    assert verified.n_unrecorded == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(copied: Experiment, fault: str) -> None:
    plant, where, what = FAULTS[fault]
    plant(copied)
    told = {found.where: str(found) for found in _found(copied)}
    assert any(path.endswith(where) and what in text for path, text in told.items()), told


def test_a_damaged_file_is_named_once_and_nothing_beside_it(copied: Experiment) -> None:
    _flip(copied.artifacts / "saes" / "embed.safetensors", -5)
    os.truncate(copied.artifacts / CIRCUIT / FIRST / "circuit.parquet", 200)
    assert [found.where for found in _found(copied)] == [
        f"{CIRCUIT}/{FIRST}/circuit.parquet",
        "saes/embed.safetensors",
    ]


def test_what_earlier_settings_left_is_told_from_what_they_changed(copied: Experiment) -> None:
    changed = {"k": 2, "max_clusters": 4}
    experiment = read_experiment(write_experiment(copied.path.parent, clustering=changed))
    told = {found.where: found.what for found in _found(experiment)}
    assert told["circuits/clusters/k00002/circuit.parquet"] == (
        "was made by circuits, and nothing reads it now"
    )
    assert "other settings: k [3], now [2]" in told["clusterings/chosen/assignments.parquet"]
    assert "circuits/clusters/k00001/circuit.parquet" not in told


def test_a_folder_without_records_is_verified_without_them(copied: Experiment) -> None:
    (copied.artifacts / FILE).unlink()
    verified = verify(copied)
    assert verified.faults == []
    assert verified.n_unrecorded == verified.n_tables
    store = ArtifactStore(copied.artifacts)
    footer = store.footer(CONTEXTS)
    assert footer is not None
    recipe = Recipe("contexts", *(footer.notes[part] for part in ("inputs", "settings", "code")))
    store.write(CONTEXTS, store.read(CONTEXTS).slice(1), recipe)
    told = {found.where: found.what for found in _found(copied)}
    assert told["filtered_tokens.parquet"] == "was made from an earlier contexts"


def test_the_command_says_what_is_wrong_and_fails(
    copied: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(copied.path)]) == 0
    n_tables = len(ArtifactStore(copied.artifacts).paths())
    assert f"{n_tables} tables, " in capsys.readouterr().out
    ArtifactStore(copied.artifacts).path(DICTIONARY_SET).unlink()
    assert command.main([str(copied.path)]) == 1
    told = capsys.readouterr().out
    assert "dictionary_set.parquet: is missing. Materialize dictionary_set.\n" in told
    assert "; 1 thing is wrong." in told


def test_the_command_answers_what_it_cannot_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(tmp_path / "none.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert command.main([str(write_experiment(tmp_path))]) == 1
    assert "there is no such folder. Run the experiment" in capsys.readouterr().out
