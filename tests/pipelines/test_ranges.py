"""Circuits in several runs at once: how they are cut, asked for, refused and kept apart."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.engine.asked import asked_tags, check_asked
from assets.engine.lock import alone
from assets.settings import Experiment, ExperimentError
from pipelines.definitions import build_definitions
from pipelines.plan import RANGE_END, RANGE_START
from pipelines.ranges import main, partitioned, ranges, submit, tags_of, wait
from tests.tiny_experiment import tiny_experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return tiny_experiment(tmp_path_factory.mktemp("ranges"))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_ranges_cover_every_key_once(n: int) -> None:
    keys = list("abcdefg")
    cut = [keys[keys.index(a) : keys.index(b) + 1] for a, b in ranges(keys, n)]
    assert [key for part in cut for key in part] == keys
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_a_run_says_its_range_its_version_and_its_gpus(experiment: Experiment) -> None:
    stages = partitioned(experiment, ["circuits", "circuit_evaluations"])
    one, other = tags_of(experiment, stages, 2, 0.5)
    assert (one[RANGE_START], one[RANGE_END]) == ("k00000", "k00000")
    assert (other[RANGE_START], other[RANGE_END]) == ("k00001", "k00002")
    assert one["dagster-ray/config"] == '{"num_gpus": 0.5}'
    assert one.items() >= asked_tags(stages, experiment).items()
    assert "dagster-ray/config" not in tags_of(experiment, stages, 2, 0)[0]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["saes"], "saes cannot be made by several runs at once: of tiny these can: circuits"),
        (["circuitz"], "circuitz cannot be made by several runs"),
        (["circuits", "task_circuits"], "have different partitions"),
    ],
)
def test_what_cannot_be_cut_is_refused(experiment: Experiment, names: list[str], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        partitioned(experiment, names)


def test_without_a_server_the_command_says_how_to_start_one(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(experiment.path), "--port", "1"]) == 1
    assert "no Dagster server answers at 127.0.0.1:1: start one" in capsys.readouterr().err


class Server:
    """Runs end as they are told to."""

    def __init__(self, ends: list[dg.DagsterRunStatus]) -> None:
        self.ends, self.asked = ends, list[dict[str, Any]]()

    def submit_job_execution(self, job: str, **how: Any) -> str:
        self.asked.append({"job": job, **how})
        return str(len(self.asked) - 1)

    def get_run_status(self, run_id: str) -> dg.DagsterRunStatus:
        return self.ends[int(run_id)]


def test_a_run_that_dies_is_told_of_and_the_others_go_on(experiment: Experiment) -> None:
    status = dg.DagsterRunStatus
    server = Server([status.FAILURE, status.SUCCESS, status.CANCELED])
    tags = tags_of(experiment, partitioned(experiment, ["circuits"]), 3, 0)
    failed = wait(server, submit(server, experiment, ["circuits"], tags), every=0)
    assert failed == ["k00000 to k00000", "k00002 to k00002"]
    assert [one["asset_selection"] for one in server.asked] == [
        [dg.AssetKey(["tiny", "circuits"])]
    ] * 3


# -- workers --------------------------------------------------------------------------------------


def test_a_worker_with_other_code_or_settings_refuses(
    experiment: Experiment, tmp_path: Path
) -> None:
    (stage,) = partitioned(experiment, ["circuits"])
    tags = asked_tags([stage], experiment)
    check_asked(stage, experiment, tags)
    check_asked(stage, experiment, {})  # nobody said what was wanted
    changed = tiny_experiment(tmp_path, circuits={"node_threshold": 0.5})
    with pytest.raises(ExperimentError, match="circuits was asked for as version"):
        check_asked(stage, changed, tags)


def test_a_refused_run_makes_nothing(experiment: Experiment) -> None:
    (stage,) = partitioned(experiment, ["circuits"])
    (tag,) = asked_tags([stage], experiment)
    job = build_definitions([experiment.path]).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        run = job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey([experiment.name, "circuits"])],
            tags={RANGE_START: "k00000", RANGE_END: "k00000", tag: "other"},
            raise_on_error=False,
        )
    (failure,) = run.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error is not None
    assert "was asked for as version other" in str(error.cause or error)
    assert not (experiment.artifacts / "circuits").exists()


def test_runs_of_different_partitions_do_not_wait_for_each_other(experiment: Experiment) -> None:
    (stage,) = partitioned(experiment, ["circuits"])
    first, *others = list(stage.partitions(experiment))
    held, wanted = stage.locks(experiment, [first]), stage.locks(experiment, others)
    assert held == ["circuits-00"]
    assert not set(held) & set(wanted)
    assert stage.locks(experiment, [first, *others]) == [*held, *wanted]


def test_runs_of_the_same_partition_wait(tmp_path: Path, experiment: Experiment) -> None:
    (stage,) = partitioned(experiment, ["circuits"])
    (name,) = stage.locks(experiment, ["k00001"])
    said: list[str] = []

    def other() -> None:
        with alone(tmp_path, name, said.append):
            said.append("worked")

    with alone(tmp_path, name, said.append):
        thread = threading.Thread(target=other)
        thread.start()
        while not said:
            time.sleep(0.01)
        assert said[0].startswith(f"{name}: waiting for another run to end")
    thread.join()
    assert said[-1] == "worked"


def test_a_run_of_thousands_holds_no_more_than_its_blocks(experiment: Experiment) -> None:
    (stage,) = partitioned(experiment, ["circuits"])
    keys = [f"k{i:05}" for i in range(5_000)]
    many = replace(stage, partitions=lambda _experiment: keys)
    assert len(many.locks(experiment, keys)) == 64
    one, other = (set(many.locks(experiment, part)) for part in (keys[:2500], keys[2500:]))
    assert not one & other
