"""Processes that are killed on the way, and what must come out the same nevertheless."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from assets.engine.records import FILE
from assets.settings import Experiment
from pipelines.experiment import ROOT


def killed_after(
    n_lines: int | None, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> int:
    """Run a command and kill it when it has written so many lines of work, or at its end if None.

    Returns:
        How many such lines it wrote; those that say ``up to date`` do not count.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    assert process.stdout is not None
    n_read = 0
    with process.stdout as lines:
        while n_read != n_lines and (line := lines.readline()):
            n_read += b"up to date" not in line
        process.kill()
    process.wait()
    return n_read


def files_of(experiment: Experiment) -> dict[str, bytes]:
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
