"""Stage 6: what every two circuits share: nodes, features and edges.

Circuits of clusters sum over positions, those of tasks may keep them. To compare all of them, what
a task's circuit holds at several positions counts once, with the sum of its |effects|. Tasks whose
inputs have as many tokens are also compared position by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from assets.circuits.behaviours import behaviour_digests
from assets.engine.stage import Made, Metadata, TableStage, Work
from assets.engine.store import ArtifactStore, together
from assets.evaluations.summary import Names, names_of
from assets.plots import heat_map, picture, records
from assets.tables.conversions import Frame, frame
from assets.tables.places import (
    CIRCUIT_OVERLAP,
    DICTIONARY_SET,
    BehaviourSource,
    behaviours,
    circuit,
)
from assets.tables.schemas import TABLES

PARTS = ("nodes", "features", "edges")
"""What circuits may share; features are the nodes that are no errors."""

NEAREST = 50
"""Pairs are kept of which one is among the other's nearest so many, so that tables grow with the
number of circuits and not with its square."""

_SHOWN = 40

Sizes = dict[tuple[Any, ...], float]


@dataclass(frozen=True)
class Held:
    """What one circuit holds.

    Attributes:
        source, name: whose circuit.
        n_tokens: of its inputs, where positions are kept apart and all are of one length.
        nodes, edges: its tables.
    """

    source: BehaviourSource
    name: str
    n_tokens: int | None
    nodes: pa.Table
    edges: pa.Table

    def sizes(self, part: str, *, by_position: bool) -> Sizes:
        """|effect| or |weight| of each part; over positions summed unless they count."""
        columns = [self.nodes[c].to_pylist() for c in ("submodule", "feature", "pos")]
        keys = [key if by_position else key[:2] for key in zip(*columns, strict=True)]
        if part == "edges":
            return _summed(
                ((keys[up], "metric" if down is None else keys[down]), weight)
                for up, down, weight in _tuples(self.edges, "upstream", "downstream", "weight")
            )
        effects = zip(keys, self.nodes["effect"].to_pylist(), strict=True)
        return _summed(pair for pair in effects if part == "nodes" or pair[0][1] >= 0)


def _tuples(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[column].to_pylist() for column in columns), strict=True)


def _summed(pairs: Iterable[tuple[tuple[Any, ...], float]]) -> Sizes:
    sizes: Sizes = {}
    for key, value in pairs:
        sizes[key] = sizes.get(key, 0.0) + abs(value)
    return sizes


def current_names(store: ArtifactStore, names: Names) -> Names:
    """Of these, those whose circuit was found from the examples and dictionaries there are now."""
    dictionaries = store.content(DICTIONARY_SET)
    of_source: dict[BehaviourSource, tuple[str, ...]] = {}
    for source, every in names.items():
        digests = behaviour_digests(store, source)
        made_from = {name: store.notes(circuit(source, name))["inputs"] for name in every}
        of_source[source] = tuple(
            name
            for name, inputs in made_from.items()
            if inputs["behaviour"] == digests[name] and inputs[DICTIONARY_SET.path] == dictionaries
        )
    return of_source


def say_stale(work: Work, names: Names, current: Names) -> int:
    """How many circuits are of earlier examples or dictionaries, said where there are any."""
    n_stale = sum(len(names[source]) - len(current[source]) for source in names)
    if n_stale:
        work.say(f"{n_stale} circuits are of earlier examples or dictionaries and left out")
    return n_stale


def _read(store: ArtifactStore, names: Names) -> Iterator[Held]:
    for source, of_source in names.items():
        for name in of_source:
            for row in store.read(circuit(source, name), ["tokens"]).to_pylist():
                yield Held(
                    source,
                    name,
                    None if row["tokens"] is None else len(row["tokens"]),
                    store.read(circuit(source, name, "nodes"), _NODES),
                    store.read(circuit(source, name, "edges"), _EDGES),
                )


_NODES = ["submodule", "feature", "pos", "effect"]
_EDGES = ["upstream", "downstream", "weight"]


def make_circuit_overlap(work: Work, names: Names) -> Made:
    """Every two circuits, or each with its nearest where they are many."""
    current = current_names(work.store, names)
    n_stale = say_stale(work, names, current)
    held = list(_read(work.store, current))
    rows = list(_rows(held, by_position=False))
    for n_tokens in sorted({one.n_tokens for one in held if one.n_tokens is not None}):
        rows += _rows([one for one in held if one.n_tokens == n_tokens], by_position=True)
    return Made(TABLES["circuit_overlap"].build(rows), {"n_stale": n_stale})


def _rows(held: Sequence[Held], *, by_position: bool) -> Iterator[dict[str, Any]]:
    from core.overlap import overlaps

    for part in PARTS:
        sizes: list[Any] = [one.sizes(part, by_position=by_position) for one in held]
        for pair in overlaps(sizes, NEAREST):
            one, other = held[pair.a], held[pair.b]
            yield {
                "source": one.source,
                "name": one.name,
                "other_source": other.source,
                "other": other.name,
                "part": part,
                "by_position": by_position,
                "n": len(sizes[pair.a]),
                "n_other": len(sizes[pair.b]),
                "n_shared": pair.n_shared,
                "jaccard": pair.jaccard,
                "weighted": pair.weighted,
                "contained": pair.a_in_b,
                "other_contained": pair.b_in_a,
            }


def square(table: Frame, names: Sequence[str], column: str, mirrored: str) -> np.ndarray:
    """The values of pairs as a square, ``(name, other)``; NaN for pairs that were not kept.

    Args:
        table: rows of one part, of circuits of one source.
        column, mirrored: of the first in the other, and of the other in the first.
    """
    place = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for row in table[table["name"].isin(place) & table["other"].isin(place)].to_dict("records"):
        i, j = place[row["name"]], place[row["other"]]
        values[i, j], values[j, i] = row[column], row[mirrored]
    return values


def show_circuit_overlap(work: Work, names: Names) -> Metadata:
    """Heat maps of features shared, and the pairs that are most alike."""
    table = frame(work.store.read(CIRCUIT_OVERLAP))
    summed = table[~table["by_position"]]
    shown: dict[str, Any] = {"left out as stale": work.store.notes(CIRCUIT_OVERLAP)["n_stale"]}
    for source, every in names.items():
        of_source = (summed["source"] == source) & (summed["other_source"] == source)
        features = summed[of_source & (summed["part"] == "features")]
        few = every[:_SHOWN]
        called = captions(work.store, source, few)
        for column, mirrored, said in (
            ("weighted", "weighted", "weighted by |effect|"),
            ("contained", "other_contained", "share of the row's that the column holds"),
        ):
            values = square(features, few, column, mirrored)
            drawn = heat_map(called, called, values, axes=("circuit", "circuit"), label=said)
            shown[f"features shared, {source}: {said}"] = picture(drawn)
    alike = summed[summed["part"] == "features"].sort_values("weighted", ascending=False)
    columns = ["name", "other", "n", "n_other", "n_shared", "jaccard", "weighted"]
    return {**shown, "most alike": records(alike[columns].head(25).to_dict("records"))}


def captions(store: ArtifactStore, source: BehaviourSource, names: Sequence[str]) -> Sequence[str]:
    """The names with what is known to be behind each, where that says more."""
    rows = store.read(behaviours(source), ["name", "label"]).to_pylist()
    label = {row["name"]: row["label"] for row in rows}
    known = {name: text for name in names if (text := label.get(name)) and text != name}
    return [f"{name} {known[name]}" if name in known else name for name in names]


def circuit_inputs(work: Work, names: Names, *tables: str) -> Mapping[str, str]:
    """Contents of what is made from circuits of these behaviours: these of their tables."""
    content = work.store.content
    inputs = {DICTIONARY_SET.path: content(DICTIONARY_SET)}
    for source, of_source in names.items():
        inputs[behaviours(source).path] = content(behaviours(source))
        inputs[circuit(source, "").stage] = together(
            content(circuit(source, name, table)) for name in of_source for table in tables
        )
    return inputs


def circuit_deps(names: Names) -> Sequence[str]:
    """The stages of dictionaries, behaviours and circuits."""
    of_sources = (key.stage for s in names for key in (behaviours(s), circuit(s, "")))
    return [DICTIONARY_SET.stage, *of_sources]


CIRCUIT_OVERLAP_STAGE = TableStage(
    name="circuit_overlap",
    group="evaluations",
    description="Nodes, features and edges that every two circuits share: counted, and weighted "
    "by their effects.",
    kinds=frozenset({"pandas", "parquet"}),
    key=CIRCUIT_OVERLAP,
    deps=circuit_deps,
    reads=names_of,
    inputs=lambda work, names: circuit_inputs(work, names, "circuit", "nodes", "edges"),
    make=make_circuit_overlap,
    show=show_circuit_overlap,
)
