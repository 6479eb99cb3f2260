"""Every stage on a device that is not the CPU: nothing is mixed, and the tables are the same."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.settings import Experiment
from tests.elsewhere import DEVICE, pretended
from tests.tiny_experiment import brought_up_to_date, tiny_experiment


def _tables(experiment: Experiment) -> dict[str, Path]:
    root = experiment.artifacts
    files = (f for f in root.rglob("*.parquet") if "cache" not in f.parts)
    return {str(file.relative_to(root)): file for file in files}


@pytest.mark.slow
def test_every_stage_gives_the_tables_of_the_cpu(finished: Experiment, tmp_path: Path) -> None:
    with pretended():
        experiment = tiny_experiment(tmp_path, model={"device": str(DEVICE)})
        brought_up_to_date(experiment, "labels")
    here, there = _tables(finished), _tables(experiment)
    assert here.keys() == there.keys()
    for name, file in here.items():
        one, other = pq.read_table(file), pq.read_table(there[name])
        assert one.schema.names == other.schema.names
        for column in one.schema.names:
            same = one[column].to_pylist(), other[column].to_pylist()
            assert str(same[0]) == str(same[1]), f"{name}: {column}"
