"""What does a classifier go by, over several draws of an experiment's labelled texts?

    python -m benchmarks.classifiers experiments/testbed.yaml
    python -m benchmarks.classifiers experiments/testbed.yaml --seeds 5 --note

For each draw one probe learns from the ambiguous texts and one from the balanced ones (the oracle);
both are scored on the balanced texts to judge on. Only the model is run: no dictionary is needed.
`--note` also appends a dated row to benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from assets.circuits.behaviours import classifier_settings
from assets.engine.stage import Work
from assets.settings import Experiment
from assets.shift.probe import Score, pooled_of, read_sets, reading_of, score, training_of
from assets.shift.texts import AMBIGUOUS, LABELLED_TEXTS_STAGE, TEST, TRAIN
from benchmarks.record import append_row, machine
from pipelines.experiment import read_experiment

LEARNT_FROM = {"original": AMBIGUOUS, "oracle": TRAIN}


def measure(experiment: Experiment, seed: int, artifacts: Path) -> dict[str, Score]:
    """How both probes do on one draw of the texts."""
    classifier = classifier_settings(experiment)
    data = classifier.data.model_copy(update={"seed": seed})
    changed = classifier.model_copy(update={"data": data})
    settings = experiment.settings.model_copy(update={"classifier": changed})
    drawn = replace(experiment, settings=settings, artifacts=artifacts)
    LABELLED_TEXTS_STAGE.run(drawn)
    work = Work.on(drawn)
    sets, readout, training = read_sets(work.store), reading_of(drawn).readout, training_of(drawn)
    pooled = {name: pooled_of(work, of.tokens, readout) for name, of in sets.items()}
    return {
        method: score(
            training.train(pooled[name], sets[name].label, seed), pooled[TEST], sets[TEST]
        )
        for method, name in LEARNT_FROM.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="YAML file with a section classifier")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the texts")
    parser.add_argument("--note", action="store_true", help="append a row to the README")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = read_experiment(arguments.experiment)
    with tempfile.TemporaryDirectory() as folder:
        draws = [measure(experiment, seed, Path(folder)) for seed in range(arguments.seeds)]
    row = {**machine(), "experiment": experiment.name, "draws": str(len(draws))}
    for method in LEARNT_FROM:
        own = [draw[method] for draw in draws]
        worst = [one.worst_group for one in own]
        row |= {
            f"{method}: label": f"{mean(one.label for one in own):.1%}",
            f"{method}: attribute": f"{mean(one.attribute for one in own):.1%}",
            f"{method}: worst group": f"{mean(worst):.1%} ({min(worst):.1%} to {max(worst):.1%})",
        }
    print("\n".join(f"{key}: {value}" for key, value in row.items()))
    if arguments.note:
        append_row("Classifiers", row)


if __name__ == "__main__":
    main()
