"""What the kill test runs in a process of its own: every stage of an experiment, a line each time
a stage says something. Run as ``python -m tests.assets.bring_up_to_date FILE.yaml``."""

import sys
from pathlib import Path

import torch

from assets.engine.stage import PartitionedStage
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of


def say(line: str) -> None:
    """At once, for whoever counts."""
    sys.stdout.write(" ".join(line.split()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    experiment = read_experiment(Path(sys.argv[1]))
    for stage in stages_of(experiment):
        if isinstance(stage, PartitionedStage):
            stage.run(experiment, list(stage.partitions(experiment)), say)
        else:
            stage.run(experiment, say)
