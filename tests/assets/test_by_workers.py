"""However many processes make circuits, they are the same."""

from pathlib import Path

import torch

from tests.killed import files_of
from tests.tiny_experiment import QUICK, brought_up_to_date, tiny_experiment


def test_two_workers_write_the_bytes_that_one_writes(tmp_path: Path) -> None:
    n_threads, files = torch.get_num_threads(), []
    torch.set_num_threads(1)  # two workers would have half of them each
    try:
        for workers in (1, 2):
            folder = tmp_path / str(workers)
            folder.mkdir()
            experiment = tiny_experiment(folder, model={"workers": workers}, **QUICK)
            brought_up_to_date(experiment)
            files.append(files_of(experiment))
    finally:
        torch.set_num_threads(n_threads)
    one, two = files
    assert {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)} == set()
    assert any(name.startswith("evaluations/clusters/") for name in one)
