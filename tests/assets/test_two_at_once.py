"""Two servers on one folder: each table is made by one of them, and recorded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from assets.engine.records import FILE, Lineage
from pipelines.verify import parts_of, verify
from tests.tiny_experiment import tiny_experiment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_at_once_make_and_record_every_table_once(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    command = [sys.executable, "-m", "tests.assets.bring_up_to_date", str(experiment.path)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ}, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert any("waiting for another run to end" in text for text in said)
    lines = (experiment.artifacts / FILE).read_text().splitlines()
    made = Counter(json.loads(line).get("path") for line in lines)
    assert {p: n for p, n in made.items() if p} == dict.fromkeys(parts_of(experiment), 1)
    assert Lineage(experiment.artifacts).check() == []
    assert verify(experiment).faults == []
