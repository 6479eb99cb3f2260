"""A circuit on the terminal: `python -m pipelines.show EXPERIMENT.yaml [CIRCUIT ...]`.

CIRCUIT is a cluster (``k00003``) or a task (``simple``). Without one, the circuits
that exist are listed. Nothing is computed: what is shown lies in the experiment's tables. With
``--draw FILE.svg`` the first circuit is also drawn, with as many nodes as ``--nodes`` says.
Both carry the features' labels.
``--cards N`` adds the cards of its N strongest features: how often each is active, its strongest
contexts with the tokens where it is, and the tokens that it promotes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from assets.circuits.stages import load_circuit, read_labels
from assets.engine.store import ArtifactStore
from assets.evaluations.edges import agreement_text, measured_edges
from assets.evaluations.summary import names_of
from assets.settings import Experiment, ExperimentError
from assets.tables.places import (
    VOCABULARY,
    BehaviourSource,
    card_contexts,
    cards,
    circuit,
    evaluation,
)
from pipelines.experiment import read_experiment

if TYPE_CHECKING:
    from core.types import Circuit


def circuits_of(experiment: Experiment) -> dict[str, BehaviourSource]:
    """The experiment's circuits that exist, clusters first, and where each comes from.

    What an earlier number of clusters or an earlier name of a task left behind is not among them.
    """
    store = ArtifactStore(experiment.artifacts)
    return {
        name: source
        for source, names in names_of(experiment).items()
        for name in names
        if store.footer(circuit(source, name)) is not None
    }


def source_of(experiment: Experiment, name: str) -> BehaviourSource:
    """Where the circuit `name` comes from.

    Raises:
        ExperimentError: there is none; the message says which there are.
    """
    known = circuits_of(experiment)
    if name not in known:
        at = ArtifactStore(experiment.artifacts).at
        few = ", ".join(list(known)[:8]) + (" and so on" if len(known) > 8 else "")
        raise ExperimentError(
            f"there is no circuit '{name}' in {at}: "
            + (f"there are {few}." if known else "run the experiment first.")
        )
    return known[name]


def judged_circuit(experiment: Experiment, name: str) -> Circuit:
    """A circuit, with its faithfulness in its settings where it was judged, and how far weights of
    edges at error nodes can be trusted where some were measured.

    Raises:
        ExperimentError: there is none, or its cluster has no samples.
    """
    source, store = source_of(experiment, name), ArtifactStore(experiment.artifacts)
    found = load_circuit(store, source, name)
    if found is None:
        raise ExperimentError(f"{name} is empty: its cluster has no samples.")
    judged = evaluation(source, name)
    if store.footer(judged) is not None:
        rows = store.read(judged).to_pylist()
        shown = ("faithfulness", "faithfulness_low", "faithfulness_high", "completeness")
        scores = {key: rows[0][key] for key in shown} if rows else {}
        found = dataclasses.replace(found, settings={**found.settings, **scores})
    if (said := agreement_text(measured_edges(store, source, [name]))) is not None:
        found = dataclasses.replace(found, settings={**found.settings, "edge_agreement": said})
    return found


def show(experiment: Experiment, name: str, *, max_nodes: int, max_edges: int) -> str:
    """One circuit as text, with its faithfulness where it was judged."""
    from core.pictures.describe import describe_circuit

    found = judged_circuit(experiment, name)
    place = ArtifactStore(experiment.artifacts)
    return describe_circuit(
        found, labels=read_labels(place), max_nodes=max_nodes, max_edges=max_edges
    )


def cards_text(experiment: Experiment, name: str, n_features: int) -> str:
    """The cards of a circuit's strongest features, by the summed |effect| over positions.

    Raises:
        ExperimentError: there is no such circuit, or no cards yet.
    """
    store, found = ArtifactStore(experiment.artifacts), judged_circuit(experiment, name)
    effects: dict[tuple[str, int], float] = {}
    for node in found.nodes:
        if not node.is_error:
            place = node.submodule, node.feature
            effects[place] = effects.get(place, 0.0) + abs(node.effect)
    strongest = sorted(effects, key=lambda place: -effects[place])[:n_features]
    texts = dict(zip(*(store.read(VOCABULARY)[c].to_pylist() for c in _TEXTS), strict=True))
    labels = read_labels(store)
    lines = [f"Cards of the {len(strongest)} strongest features of {name}"]
    for submodule, feature in strongest:
        plain = f"{submodule}/{feature}"
        lines += ["", f"{plain}  {labels.get(plain, 'no label')}"]
        lines += _card(store, submodule, feature, texts)
    return "\n".join(lines)


_TEXTS = ("token", "text")
_N_CONTEXTS, _N_BEFORE, _N_AFTER, _N_PROMOTED = 3, 10, 3, 6


def _card(
    store: ArtifactStore, submodule: str, feature: int, texts: Mapping[int, str]
) -> Iterator[str]:
    """How often a feature is active, what it promotes, and where it is strongest."""
    ours = (pc.field("feature") == feature) & (pc.field("basis") == "features")
    for row in store.read(cards(submodule)).filter(ours).to_pylist():
        promoted = [texts[token].strip() or "␣" for token in row["promoted"][:_N_PROMOTED]]
        yield f"  active on {row['density']:.2%} of tokens; promotes {' '.join(promoted)}"
    pieces = store.read(card_contexts(submodule)).filter(ours & pc.field("quantile").is_null())
    for row in pieces.sort_by("rank").to_pylist()[:_N_CONTEXTS]:
        peak = row["pos"] - row["start"]
        first, last = max(0, peak - _N_BEFORE), peak + 1 + _N_AFTER
        shown = zip(row["tokens"][first:last], row["activations"][first:last], strict=True)
        line = "".join(_marked(texts[token], value) for token, value in shown)
        yield "  | " + line.strip().replace("\n", "↵")


def _marked(text: str, activation: float) -> str:
    """A token, in brackets where the feature is active, the space before it outside of them."""
    if not activation > 0:
        return text
    inner = text.lstrip(" ")
    return f"{text[: len(text) - len(inner)]}[{inner}]"


def draw(experiment: Experiment, name: str, path: Path, *, max_nodes: int, max_edges: int) -> None:
    """Draw one circuit to a file."""
    from core.pictures.draw import draw_circuit

    picture = draw_circuit(
        judged_circuit(experiment, name),
        labels=read_labels(ArtifactStore(experiment.artifacts)),
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
    parser.add_argument("--cards", type=int, default=0, metavar="N", help="print N features' cards")
    parser.add_argument("--draw", type=Path, metavar="FILE.svg", help="draw the first one here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    try:
        experiment = read_experiment(options.experiment)
        shown = [
            show(experiment, name, max_nodes=options.nodes, max_edges=options.edges)
            for name in options.circuit
        ]
        if options.cards:
            shown += [cards_text(experiment, name, options.cards) for name in options.circuit]
        if options.draw and options.circuit:
            size = {"max_nodes": options.nodes, "max_edges": options.edges}
            draw(experiment, options.circuit[0], options.draw, **size)
        shown = shown or [" ".join(circuits_of(experiment)) or "no circuits yet"]
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    try:
        print("\n\n".join(shown), flush=True)
    except BrokenPipeError:  # `| head` has read enough; nothing may be left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
