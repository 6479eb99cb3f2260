"""SIGKILL at any moment of any stage: what goes on ends in the same bytes as without it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from assets.settings import Experiment
from tests.killed import files_of, killed_after
from tests.tiny_experiment import tiny_experiment

N_KILLS = 25


def _run(experiment: Experiment, n_lines: int | None = None) -> int:
    """Bring it up to date in another process, killed after so many lines; how many it wrote."""
    command = [sys.executable, "-m", "tests.assets.bring_up_to_date", str(experiment.path)]
    return killed_after(n_lines, command)


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
    assert files_of(cut) == files_of(whole)
