"""A circuit on the terminal: `python -m pipelines.show EXPERIMENT.yaml [CIRCUIT ...]`.

CIRCUIT is a cluster (``k00003``) or a task (``simple``). Without one, the circuits
that exist are listed. Nothing is computed: what is shown lies in the experiment's tables. With
``--draw FILE.svg`` the first circuit is also drawn again, with as many nodes as ``--nodes`` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from assets.circuits.stages import load_circuit
from assets.engine.store import ArtifactStore
from assets.settings import ExperimentError
from assets.tables.places import BehaviourSource, circuit, evaluation
from pipelines.experiment import read_experiment

if TYPE_CHECKING:
    from core.types import Circuit

SOURCES: tuple[BehaviourSource, ...] = ("clusters", "tasks")


def source_of(store: ArtifactStore, name: str) -> BehaviourSource:
    """Where the circuit `name` comes from.

    Raises:
        ExperimentError: there is none; the message says which there are.
    """
    for source in SOURCES:
        if store.footer(circuit(source, name)) is not None:
            return source
    known = names_of(store)
    raise ExperimentError(
        f"there is no circuit '{name}' in {store.root}: "
        + (f"there are {', '.join(known[:8])} and so on." if known else "run the experiment first.")
    )


def names_of(store: ArtifactStore) -> list[str]:
    """Circuits that exist, clusters first."""
    return [
        path.parent.name
        for source in SOURCES
        for path in sorted((store.root / "circuits" / source).glob("*/circuit.parquet"))
    ]


def judged_circuit(store: ArtifactStore, name: str) -> Circuit:
    """A circuit, with its faithfulness in its settings where it was judged.

    Raises:
        ExperimentError: there is none, or its cluster has no samples.
    """
    source = source_of(store, name)
    found = load_circuit(store, source, name)
    if found is None:
        raise ExperimentError(f"{name} is empty: its cluster has no samples.")
    judged = evaluation(source, name)
    if store.footer(judged) is not None:
        rows = store.read(judged).to_pylist()
        scores = {key: rows[0][key] for key in ("faithfulness", "completeness")} if rows else {}
        found = dataclasses.replace(found, settings={**found.settings, **scores})
    return found


def show(store: ArtifactStore, name: str, *, max_nodes: int, max_edges: int) -> str:
    """One circuit as text, with its faithfulness where it was judged, and its picture's place."""
    from core.pictures.describe import describe_circuit

    text = describe_circuit(judged_circuit(store, name), max_nodes=max_nodes, max_edges=max_edges)
    return f"{text}\n\npicture: {store.path(circuit(source_of(store, name), name), '.svg')}"


def draw(store: ArtifactStore, name: str, path: Path, *, max_nodes: int, max_edges: int) -> None:
    """Draw one circuit to a file."""
    from core.pictures.draw import draw_circuit

    picture = draw_circuit(
        judged_circuit(store, name),
        title=name.replace("_", " "),
        max_nodes=max_nodes,
        max_edges=max_edges,
    )
    path.write_text(picture, encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.show", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a YAML file")
    parser.add_argument("circuit", nargs="*", help="a cluster or a task; none lists them")
    parser.add_argument("--nodes", type=int, default=40, help="most nodes to print")
    parser.add_argument("--edges", type=int, default=20, help="most edges to print")
    parser.add_argument("--draw", type=Path, metavar="FILE.svg", help="draw the first one here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    try:
        store = ArtifactStore(read_experiment(options.experiment).artifacts)
        shown = [
            show(store, name, max_nodes=options.nodes, max_edges=options.edges)
            for name in options.circuit
        ]
        if options.draw and options.circuit:
            size = {"max_nodes": options.nodes, "max_edges": options.edges}
            draw(store, options.circuit[0], options.draw, **size)
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    try:
        print("\n\n".join(shown or [" ".join(names_of(store)) or "no circuits yet"]), flush=True)
    except BrokenPipeError:  # `| head` has read enough; nothing may be left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
