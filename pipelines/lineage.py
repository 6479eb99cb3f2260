"""What a table was made from: `python -m pipelines.lineage EXPERIMENT.yaml TABLE`.

TABLE is a circuit (``k00003``, ``simple``) or any table of the artifacts folder (``contexts``,
``saes/mlp_0``, ``evaluations/tasks/simple``). The tree goes back to the model, the text, the
dictionaries and the experiment's file, with settings, code, versions and times. It is of the making
that the table is of: what was made again since is shown as it was, and marked with ``<<``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from assets.engine.lineage import describe_lineage, lineage, plain_lineage
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError, nearest
from assets.tables.places import circuit
from pipelines.experiment import read_experiment
from pipelines.show import circuits_of


def table_of(experiment: Experiment, name: str) -> str:
    """The path of the table that a name means: a circuit's, or a table's own.

    Raises:
        ExperimentError: there is none.
    """
    store, circuits = ArtifactStore(experiment.artifacts), circuits_of(experiment)
    if name in circuits:
        return circuit(circuits[name], name).path
    path, tables = name.removesuffix(".parquet").strip("/"), store.paths()
    if path in tables:
        return path
    hint = nearest(name, [*circuits, *tables]) or (
        f" There are {len(tables)} tables, among them {', '.join(tables[:4])}."
        if tables
        else " Run the experiment first."
    )
    raise ExperimentError(f"there is no circuit or table '{name}' in {store.at}.{hint}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.lineage", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a YAML file")
    parser.add_argument("table", help="a circuit, or a table's path in the artifacts folder")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument("--file", action="store_true", help="the experiment's file as it was then")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    try:
        experiment = read_experiment(options.experiment)
        store = ArtifactStore(experiment.artifacts)
        root = lineage(store, table_of(experiment, options.table))
        if options.file:
            text = store.lineage.text(root.made.get("file", "")) or ""
            if not text:
                raise ExperimentError(f"the file that {root.table} was made by was not kept.")
        elif options.json:
            text = json.dumps(plain_lineage(store, root), indent=1)
        else:
            text = describe_lineage(root)
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:  # `| head` has read enough; nothing may be left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
