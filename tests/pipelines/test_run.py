"""The command: what it prints when it cannot work, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import run
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment, write_experiment


@pytest.fixture(autouse=True)
def _own_instance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def test_a_bad_file_is_told_in_a_few_lines_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(tmp_path, model={"layers": 2})
    assert run.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "did you mean n_layers?" in error
    assert "Traceback" not in error


def test_missing_places_stop_it_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(write_experiment(tmp_path))]) == 1
    assert "model.source" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_an_error_inside_a_stage_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(tmp_path, corpus={"text_column": "body"})
    assert run.main([str(experiment.path)]) == 1
    told = capsys.readouterr()
    assert "InputError" in told.err
    assert "no column 'body'" in told.err
    assert "Traceback" not in told.err + told.out


def test_a_folder_of_an_older_layout_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny_experiment(tmp_path)
    experiment.artifacts.mkdir()
    footer = {"sfc.fingerprint": '"abc"', "sfc.content": '"def"'}
    table = pa.table({"document": [1]}).replace_schema_metadata(footer)
    pq.write_table(table, experiment.artifacts / "contexts.parquet")
    monkeypatch.setattr(run, "report", lambda *_: "")
    monkeypatch.setattr(run, "stages_of", lambda experiment: stages_of(experiment)[:1])
    for told in (True, False):
        assert run.main([str(experiment.path)]) == 0
        printed = capsys.readouterr().out
        assert ("written by an earlier version in another layout" in printed) is told
        assert "Traceback" not in printed


def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    def unreachable(*_arguments: object, **_options: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    experiment = tiny_experiment(tmp_path, model={"source": "somebody/some-model"})
    assert run.main([str(experiment.path)]) == 1
    told = capsys.readouterr()
    assert "could not be fetched from the Hugging Face hub" in told.err
    assert "give the folder" in told.err
    assert "Traceback" not in told.err + told.out


def test_another_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment(tmp_path)

    def fail(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "run_experiment", fail)
    with pytest.raises(ZeroDivisionError):
        run.main([str(experiment.path)])


def test_stages_share_runs_as_far_as_their_partitions_allow(tmp_path: Path) -> None:
    from pipelines.plan import RANGE_END, RANGE_START, runs_of

    experiment = read_experiment(write_experiment(tmp_path))
    runs = list(runs_of(experiment, stages_of(experiment)))
    ran = [stage.name for run in runs for stage in run.stages]
    assert sorted(ran) == sorted(stage.name for stage in stages_of(experiment))
    for run_of in runs:
        for stage in run_of.stages:
            assert all(
                ran.index(name) < ran.index(stage.name) for name in stage.upstream(experiment)
            )
    ranges = [(run.tags[RANGE_START], run.tags[RANGE_END]) for run in runs]
    places, of_clusters, of_tasks = ("embed", "resid_1"), ("k00000", "k00002"), ("simple", "simple")
    assert ranges == [places, of_clusters, of_tasks, places]  # the last for cards


def test_a_plan_says_what_is_stale_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(tmp_path)
    assert run.main([str(experiment.path), "--plan"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["contexts", *["it", "is", "not", "there", "or", "not", "whole"]] in told
    assert ["circuits", *["cluster_behaviours", "is", "made", "again"]] in told
    assert not experiment.artifacts.exists() or not list(experiment.artifacts.rglob("*.parquet"))


def test_an_unknown_stage_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_experiment(tmp_path)
    assert run.main([str(experiment.path), "--force", "sae"]) == 1
    assert "no stage is called sae: there are task_behaviours," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plan", "--force", "circuits"], "--plan does nothing"),
        (["--adopt", "saes", "--force", "saes"], "kept by --adopt or made again by --force?"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(options)
    assert says in capsys.readouterr().err
