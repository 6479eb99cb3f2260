"""Stage 7: which circuits hold a feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assets.circuits.stages import load_circuit
from assets.engine.stage import Made, Metadata, TableStage, Work
from assets.engine.store import together
from assets.evaluations.summary import Names, names_of
from assets.plots import records
from assets.settings import Experiment
from assets.tables.places import FEATURE_CIRCUITS, BehaviourSource, circuit
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.types import Circuit

_N_EDGES = 5
_SHOWN = 20


@dataclass(frozen=True)
class Index:
    """Which circuits are looked through, and how many edges of a node are listed."""

    names: Names
    n_edges: int


def _reads(experiment: Experiment) -> Index:
    return Index(names_of(experiment), _N_EDGES)


def make_feature_circuits(work: Work, index: Index) -> Made:
    """One row for each feature and circuit that holds it."""
    rows = [
        row
        for source, names in index.names.items()
        for name in names
        if (found := load_circuit(work.store, source, name)) is not None
        for row in _rows(found, source, name, index.n_edges)
    ]
    return Made(TABLES["feature_circuits"].build(rows))


def _rows(
    found: Circuit, source: BehaviourSource, name: str, n_edges: int
) -> Iterator[dict[str, Any]]:
    into: dict[int, list[tuple[str, float]]] = {}
    out_of: dict[int, list[tuple[str, float]]] = {}
    for edge in sorted(found.edges, key=lambda edge: -abs(edge.weight)):
        downstream = "metric"
        if edge.downstream is not None:
            downstream = found.nodes[edge.downstream].name
            into.setdefault(edge.downstream, []).append(
                (found.nodes[edge.upstream].name, edge.weight)
            )
        out_of.setdefault(edge.upstream, []).append((downstream, edge.weight))
    order = sorted(range(len(found.nodes)), key=lambda i: -abs(found.nodes[i].effect))
    for rank, i in enumerate(order):
        node = found.nodes[i]
        if node.is_error:
            continue
        upstream, downstream = into.get(i, [])[:n_edges], out_of.get(i, [])[:n_edges]
        yield {
            **node._asdict(),
            "source": source,
            "name": name,
            "rank": rank,
            "upstream": [end for end, _ in upstream],
            "upstream_weights": [weight for _, weight in upstream],
            "downstream": [end for end, _ in downstream],
            "downstream_weights": [weight for _, weight in downstream],
        }


def _inputs(work: Work, index: Index) -> Mapping[str, str]:
    content = work.store.content
    return {
        circuit(source, "").stage: together(
            content(circuit(source, name, part)) for name in names for part in ("nodes", "edges")
        )
        for source, names in index.names.items()
    }


def _deps(index: Index) -> Sequence[str]:
    return [circuit(source, "").stage for source in index.names]


def show_feature_circuits(work: Work, _index: Index) -> Metadata:
    """How many features there are, and those that are in most circuits."""
    rows = work.store.read(FEATURE_CIRCUITS, ["submodule", "feature", "name"]).to_pylist()
    held = {(row["submodule"], row["feature"], row["name"]) for row in rows}
    counts = Counter(f"{submodule}/{feature}" for submodule, feature, _ in held)
    shared = [{"feature": name, "circuits": n} for name, n in counts.most_common(_SHOWN)]
    return {
        "features": len(counts),
        "in more than one circuit": sum(n > 1 for n in counts.values()),
        "in most circuits": records(shared),
    }


FEATURE_CIRCUITS_STAGE = TableStage(
    name="feature_circuits",
    group="features",
    description="Every feature of a circuit, and every circuit that holds it.",
    kinds=frozenset({"parquet"}),
    key=FEATURE_CIRCUITS,
    deps=_deps,
    reads=_reads,
    inputs=_inputs,
    make=make_feature_circuits,
    show=show_feature_circuits,
)
