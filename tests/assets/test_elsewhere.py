"""Every stage on a device that is not the CPU: nothing is mixed, and the tables say the same."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.settings import Experiment
from tests.elsewhere import Elsewhere
from tests.tiny_experiment import brought_up_to_date, tiny_experiment


def _tables(experiment: Experiment) -> dict[str, Path]:
    root = experiment.artifacts
    return {str(file.relative_to(root)): file for file in root.rglob("*.parquet")}


def _said(file: Path) -> dict[str, float]:
    """How many rows, and what the numbers of each column add up to: other kernels round otherwise,
    and rows that are sorted by such numbers then stand in another order."""
    table = pq.read_table(file).to_pandas()
    numbers = table.select_dtypes("number").abs().sum()
    return {"rows": len(table), **dict.fromkeys(table.columns, 0.0), **numbers.to_dict()}


@pytest.mark.slow
def test_every_stage_gives_the_tables_of_the_cpu(
    finished: Experiment, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    with elsewhere as device:
        experiment = tiny_experiment(tmp_path, model={"device": str(device)})
        made = brought_up_to_date(experiment, "labels")
    assert made["circuits"] == 3
    here, there = _tables(finished), _tables(experiment)
    assert here.keys() == there.keys()
    for name, file in here.items():
        assert _said(there[name]) == pytest.approx(_said(file), rel=1e-2, abs=1e-3), name
