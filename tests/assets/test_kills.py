"""SIGKILL at any moment of any stage: what goes on ends in the same bytes as without it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from assets.engine.records import FILE
from assets.settings import Experiment
from tests.tiny_experiment import tiny_experiment

ROOT = Path(__file__).parents[2]
N_KILLS = 25


def _run(experiment: Experiment, n_lines: int | None = None) -> int:
    """Bring it up to date in another process; how many lines it wrote of work that it did.

    It is killed after so many of them, or at the end.
    """
    command = [sys.executable, "-m", "tests.assets.bring_up_to_date", str(experiment.path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    n_read = 0
    with process.stdout as lines:
        while n_read != n_lines and (line := lines.readline()):
            n_read += b"up to date" not in line
        process.kill()
    process.wait()
    return n_read


def _files(experiment: Experiment) -> dict[str, bytes]:
    """What is the same each time: no locks, nothing that says when, nothing half-written."""
    root = experiment.artifacts
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
        and file.suffix != ".tmp"
        and file.name != FILE
        and file.stem != "report"
        and ".locks" not in file.parts
    }


@pytest.mark.slow
def test_kills_at_random_moments_of_all_stages_end_in_the_same_bytes(tmp_path: Path) -> None:
    # A buffer smaller than the corpus, and checkpoints on the way.
    changed = {"buffer_mb": 0.02, "checkpoint_every": 5}
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = tiny_experiment(tmp_path / "whole", dictionaries=changed)
    cut = tiny_experiment(tmp_path / "cut", dictionaries=changed)
    assert _run(whole) > N_KILLS
    moments = random.Random(11)
    reached = [_run(cut, moments.randrange(1, 4)) for _ in range(N_KILLS)]
    assert sum(reached) > N_KILLS
    _run(cut)
    assert _files(cut) == _files(whole)
