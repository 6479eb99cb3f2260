"""What the edges of an experiment's circuits carry, and how far their weights can be trusted.

    python -m benchmarks.edges experiments/testbed.yaml

Prints as Markdown what lies in the tables of `circuit_edge_evaluations` and
`task_edge_evaluations`; nothing is computed anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from assets.engine.store import ArtifactStore
from assets.evaluations.edges import agreement, measured_edges
from assets.evaluations.summary import names_of
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import BehaviourSource, edge_evaluation
from pipelines.experiment import read_experiment


def judged(experiment: Experiment) -> dict[BehaviourSource, list[str]]:
    """The circuits whose edges were judged, by source."""
    store = ArtifactStore(experiment.artifacts)
    return {
        source: [
            name
            for name in names
            if store.footer(key := edge_evaluation(source, name)) and store.n_rows(key)
        ]
        for source, names in names_of(experiment).items()
    }


def curves(tables: Mapping[str, Frame], kept: str) -> Frame:
    """Faithfulness at each share, a row for each circuit."""
    rows = {name: table[table["kept"] == kept].set_index("share") for name, table in tables.items()}
    return pd.DataFrame({name: row["faithfulness"] for name, row in rows.items()}).sort_index().T


def own(tables: Mapping[str, Frame]) -> Frame:
    """The circuits as they are."""
    rows = {}
    for name, table in tables.items():
        by = table.set_index("kept")
        rows[name] = {
            "nodes": by.loc["nodes", "n_nodes"],
            "all edges": by.loc["nodes", "faithfulness"],
            "its edges": by.loc["circuit", "faithfulness"],
            "of possible": by.loc["circuit", "n_edges"] / by.loc["circuit", "n_possible"],
        }
    return pd.DataFrame(rows).T


def agreements(measured: Frame) -> Frame:
    """How weights agree with direct paths and effects, by the edges' ends and kinds."""
    words = {False: "feature", True: "error"}
    ends = measured["from_error"].map(words) + " -> " + measured["into_error"].map(words)
    groups = [*measured.groupby(ends), *measured[~measured["at_error"]].groupby("kind")]
    rows: dict[str, dict[str, Any]] = {}
    for name, rows_of in groups:
        found = {by: agreement(rows_of, by) for by in ("path", "effect")}
        rows[str(name)] = {"edges": found["path"].pop("n")}
        found["effect"].pop("n")
        rows[str(name)] |= {f"{by} {k}": v for by, of in found.items() for k, v in of.items()}
    return pd.DataFrame(rows).T


def markdown(table: Frame, corner: str) -> str:
    """A table of numbers with two digits, whole ones as they are."""
    head = [corner, *map(str, table.columns)]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, values in table.iterrows():
        whole = [float(value).is_integer() and abs(value) > 1 for value in values]
        cells = [f"{v:,.0f}" if w else f"{v:.2f}" for v, w in zip(values, whole, strict=True)]
        lines.append(" | ".join([str(name), *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def report(experiment: Experiment) -> Iterator[str]:
    """Everything that was judged, source by source."""
    store = ArtifactStore(experiment.artifacts)
    for source, names in judged(experiment).items():
        if not names:
            continue
        tables = {name: frame(store.read(edge_evaluation(source, name))) for name in names}
        yield f"## {source}\n\n{markdown(own(tables), 'circuit')}"
        for kept in ("strongest", "random", "weakest"):
            yield markdown(curves(tables, kept), kept)
        yield markdown(agreements(measured_edges(store, source, names)), "weight and")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edges", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a YAML file, run up to its edges")
    for part in report(read_experiment(parser.parse_args(arguments).experiment)):
        print(part, end="\n\n")


if __name__ == "__main__":
    main()
