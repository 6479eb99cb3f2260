"""The command that says what a table was made from."""

from __future__ import annotations

import json

import pytest

from assets.engine.records import FILE
from assets.settings import Experiment
from pipelines import lineage as command
from tests.tiny_experiment import write_experiment


def _said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert command.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("k00001", "circuits/clusters/k00001/circuit"),
        ("simple", "circuits/tasks/simple/circuit"),
        ("contexts", "contexts"),
        ("saes/attn_0", "saes/attn_0"),
        ("circuits/tasks/simple/nodes.parquet", "circuits/tasks/simple/nodes"),
        ("evaluations/clusters/k00002", "evaluations/clusters/k00002"),
    ],
)
def test_a_circuit_or_any_table_is_found_by_its_name(
    finished: Experiment, capsys: pytest.CaptureFixture[str], name: str, table: str
) -> None:
    first, *rest = _said(capsys, finished.path, name).splitlines()
    assert first.split()[0] == table
    assert any("./corpus.jsonl" in line or "./train.json" in line for line in rest)
    assert rest[-1].strip()


def test_all_of_it_is_there_for_programs(
    finished: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(_said(capsys, finished.path, "k00000", "--json"))
    assert told["table"] == "circuits/clusters/k00000/circuit"
    assert told["now"] == "as it is now"
    making = told["makings"][told["making"]]
    assert making["settings"]["node_threshold"] == 0.01
    assert making["made"]["seconds"] > 0
    references = [ref for one in making["inputs"] for ref in one["tables"]]
    assert {ref["table"] for ref in references} == {"behaviours/clusters", "dictionary_set"}
    assert all(ref["making"] in told["makings"] for ref in references)
    assert told["files"][making["made"]["file"]] == finished.path.read_text()


def test_the_experiment_s_file_can_be_had_back_after_it_changed(
    copied: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copied.path.read_text()
    write_experiment(copied.path.parent, circuits={"node_threshold": 0.5})
    assert _said(capsys, copied.path, "k00000", "--file").strip() == before.strip()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("k00009", "Did you mean k0000"),
        ("saes/attn0", "Did you mean saes/attn_0?"),
        ("?", " tables, among them "),
    ],
)
def test_an_unknown_name_is_answered(
    finished: Experiment, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    assert command.main([str(finished.path), name]) == 1
    told = capsys.readouterr().err
    assert f"there is no circuit or table '{name}'" in told
    assert hint in told


def test_a_file_that_was_not_kept_is_told(
    copied: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied.artifacts / FILE).unlink()
    assert command.main([str(copied.path), "contexts", "--file"]) == 1
    assert "the file that contexts was made by was not kept" in capsys.readouterr().err
