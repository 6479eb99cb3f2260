"""SIGKILL in the middle of caching and training: what goes on ends in the same bytes."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.corpus.cache_and_train import cache_and_train
from tests.assets.corpus.test_activations import content

ROOT = Path(__file__).parents[3]
# Lines of an uninterrupted run: 12 shards, 40 steps, 3 dictionaries.
N_LINES = 55


def run_until(folder: Path, n_lines: int | None) -> int:
    """Run in another process, killed after `n_lines` lines; how many lines it wrote."""
    command = [sys.executable, "-m", "tests.assets.corpus.cache_and_train", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    with process.stdout as lines:
        seen = 0
        while seen != n_lines and lines.readline():
            seen += 1
        process.kill()
    process.wait()
    return seen


def kept(folder: Path) -> dict[str, str]:
    """Every file but those that killed writers left half-written."""
    return {name: digest for name, digest in content(folder).items() if not name.endswith(".tmp")}


def test_a_killed_pass_and_a_killed_training_end_in_the_same_bytes(tmp_path, capsys):
    cache_and_train(tmp_path / "whole")
    assert len(capsys.readouterr().out.splitlines()) == N_LINES
    assert run_until(tmp_path / "cut", 5) == 5
    assert run_until(tmp_path / "cut", 30) == 30
    cache_and_train(tmp_path / "cut")
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    # The second run tells of 12 shards and at least 18 steps, at least 15 of them in a checkpoint.
    assert int(steps[0].removeprefix("step ")) >= 15
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_in_the_same_bytes(tmp_path):
    cache_and_train(tmp_path / "whole")
    moments = random.Random(20)
    for _ in range(10):
        run_until(tmp_path / "cut", moments.randrange(1, 14))
    cache_and_train(tmp_path / "cut")
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
