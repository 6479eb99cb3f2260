"""The table of SHIFT as Markdown: `python -m pipelines.shift EXPERIMENT.yaml`.

Nothing is computed: what is printed lies in the experiment's tables. The page with the cards of the
ablated features lies beside them, and is named at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from assets.shift.scoring import in_percent
from assets.tables.places import SHIFT
from pipelines.experiment import read_experiment


def table(experiment: Experiment) -> str:
    """Accuracies in percent, mean and standard deviation over seeds.

    Raises:
        ExperimentError: the experiment has no classifier, or `shift` was not made.
    """
    classifier = experiment.settings.classifier
    if classifier is None:
        raise ExperimentError(f"{experiment.path} has no section classifier: nothing is shifted.")
    store, data = ArtifactStore(experiment.artifacts), classifier.data
    rows = store.read(SHIFT).to_pylist()
    head = ("", "probe", data.label_column, data.attribute_column, "worst group", "ablated")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(in_percent(row)) + " |" for row in rows]
    first = rows[0]
    return "\n".join(
        [
            *lines,
            "",
            f"{first['n_circuit']} features in the circuit, {first['n_judged']} judged by "
            f"{first['judge']}; {first['n_seeds']} seeds. Page: {store.place(SHIFT, '.html')}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.shift", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a YAML file with a section classifier")
    options = parser.parse_args(arguments)
    try:
        print(table(read_experiment(options.experiment)))
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
