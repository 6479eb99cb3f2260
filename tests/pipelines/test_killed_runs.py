"""`python -m pipelines.run`, killed again and again on hundreds of circuits: nothing is lost.

Asked to end it ends within seconds, whatever its workers are at.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from assets.circuits.stages import CIRCUITS_STAGE
from assets.engine.store import ArtifactStore
from assets.evaluations.stages import CIRCUIT_EVALUATIONS_STAGE
from assets.settings import Experiment
from tests.killed import files_of
from tests.tiny_experiment import tiny_experiment, write_corpus

ROOT = Path(__file__).parents[2]
N_CLUSTERS, N_KILLS = 200, 10
_TICKS = os.sysconf("SC_CLK_TCK")


def _many(folder: Path) -> Experiment:
    """An experiment of so many clusters, of two or three samples each, and nothing else."""
    experiment = tiny_experiment(
        folder,
        filter={"n_samples": 500, "max_per_document": 5},
        clustering={"k": N_CLUSTERS, "max_clusters": N_CLUSTERS},
        evaluations={"n_examined": 0, "variants": [], "approximations": None},
        tasks=None,
        cards=None,
    )
    write_corpus(folder / "corpus.jsonl", n_documents=150)
    _write_home(folder / "dagster")
    return experiment


def _write_home(home: Path) -> None:
    home.mkdir()
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    settings["storage"]["custom"]["config"]["base_dir"] = str(home / "storage")
    kept = {name: settings[name] for name in ("storage", "telemetry")}
    (home / "dagster.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")


def _started(experiment: Experiment) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.run", str(experiment.path)]
    home = {"DAGSTER_HOME": str(experiment.path.parent / "dagster")}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, **home}
    )


def _n_done(experiment: Experiment) -> int:
    """Circuits and evaluations that are written."""
    circuits = (experiment.artifacts / "circuits/clusters").glob("*/circuit.parquet")
    return len([*circuits, *(experiment.artifacts / "evaluations/clusters").glob("*.parquet")])


def _told(experiment: Experiment, stage: str) -> dict[str, str]:
    """The data version of each partition as Dagster was told last."""
    with dg.DagsterInstance.from_config(str(experiment.path.parent / "dagster")) as instance:
        tags = instance.event_log_storage.get_latest_tags_by_partition(
            dg.AssetKey([experiment.name, stage]),
            dg.DagsterEventType.ASSET_MATERIALIZATION,
            [DATA_VERSION_TAG],
        )
    return {partition: one[DATA_VERSION_TAG] for partition, one in tags.items()}


@pytest.mark.slow
def test_runs_killed_ten_times_end_as_one_that_was_not(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = _many(tmp_path / "whole"), _many(tmp_path / "cut")
    assert _started(whole).wait() == 0
    moments = sorted(random.Random(3).sample(range(1, 2 * N_CLUSTERS), N_KILLS))
    for moment in moments:
        run = _started(cut)
        while run.poll() is None and _n_done(cut) < moment:
            time.sleep(0.01)
        assert run.poll() is None, "it ended before it was killed"
        run.kill()
        run.wait()
    assert N_CLUSTERS < _n_done(cut) < 2 * N_CLUSTERS
    assert _started(cut).wait() == 0
    assert files_of(cut) == files_of(whole)
    for stage in (CIRCUITS_STAGE, CIRCUIT_EVALUATIONS_STAGE):
        store = ArtifactStore(cut.artifacts)
        versions = {key: store.version(stage.key(key)) for key in cut.clusters}
        assert _told(cut, stage.name) == versions


@pytest.mark.slow
def test_one_signal_ends_a_run_whose_workers_are_busy(tmp_path: Path) -> None:
    """Each of two workers needs longer for a circuit than the run may take to end."""
    experiment = tiny_experiment(
        tmp_path, model={"workers": 2}, circuits={"steps": 10_000}, cards=None, tasks=None
    )
    _write_home(tmp_path / "dagster")
    run = _started(experiment)
    while run.poll() is None and len(_working(run.pid)) < 2:
        time.sleep(0.05)
    workers = _working(run.pid)
    run.terminate()
    assert run.wait(timeout=10) == 130
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert _n_done(experiment) == 0
    assert not list(experiment.artifacts.rglob(".*.tmp"))
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        assert all(one.is_finished for one in instance.get_runs())


def _working(process: int) -> list[str]:
    """Its children that have been at work for two seconds or more."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    times = {c: Path(f"/proc/{c}/stat").read_text().rpartition(")")[2].split() for c in children}
    return [child for child, fields in times.items() if int(fields[11]) >= 2 * _TICKS]
