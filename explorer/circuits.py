"""What is shown of one circuit: its picture, figures and contexts, and each of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from assets.features.annotations import Annotation
from assets.settings import ExperimentError
from assets.tables.places import BehaviourSource
from core.pictures.selection import plain_name
from core.pictures.text import token_text
from explorer.annotations import AnnotationFile
from explorer.pictures import curves_of, interpolated, merged, slider
from explorer.ratings import is_stale
from explorer.reader import Basis, Reader, Row
from explorer.texts import Context

if TYPE_CHECKING:
    from core.types import Circuit, Node

SIZES = (30, 60, 120, 250)
"""How many nodes a picture may hold."""
_EDGES_PER_NODE = 2.5
_EDGES_SHOWN = 14
_CONTEXTS_SHOWN = 40
T = TypeVar("T")


class End(NamedTuple):
    """An edge as one of its ends sees it."""

    name: str
    label: str
    weight: float


class Label(NamedTuple):
    """What a feature is called, and who says so."""

    text: str
    by: str
    score: float | None = None


class Holder(NamedTuple):
    """A circuit that holds a feature, as in `explorer.reader.Holding`, and what it is about."""

    source: str
    name: str
    effect: float
    share: float
    about: str


@dataclass(frozen=True)
class Card:
    """A feature or a neuron: its card and whatever else is known of it.

    Attributes:
        basis, submodule, feature: which.
        row: its card with the texts on it; None where there is none yet.
        problem: which table is missing, where one is.
        label: what it is called.
        said: what people said of it, with whether that is stale.
        holders: the circuits that hold it, the strongest share first.
    """

    basis: Basis
    submodule: str
    feature: int
    row: Row | None
    problem: str
    label: Label | None
    said: Sequence[tuple[Annotation, bool]]
    holders: Sequence[Holder]

    @property
    def name(self) -> str:
        """``mlp_2/59``."""
        return f"{self.submodule}/{self.feature}"

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """The texts on the card, the strongest first and then by quarter, from high to low."""
        found: dict[int | None, list[Row]] = {}
        for row in (self.row or {}).get("contexts", ()):
            found.setdefault(row["quantile"], []).append(row)
        names = {
            None: "strongest",
            3: "highest quarter",
            2: "third quarter",
            1: "second quarter",
            0: "lowest quarter",
        }
        return [
            (name, sorted(found[quantile], key=lambda row: row["rank"]))
            for quantile, name in names.items()
            if quantile in found
        ]


class Labels:
    """What features are called: the last word of a person, else the label of the tables."""

    def __init__(self, reader: Reader, file: AnnotationFile) -> None:
        self.reader, self.file = reader, file

    @cached_property
    def _of_people(self) -> dict[tuple[str, str], Label]:
        return {
            (one.basis, one.name): Label(one.text, one.by)
            for one in self.file.annotations()
            if one.text.strip() and not is_stale(self.reader, one)
        }

    @cached_property
    def _of_tables(self) -> Mapping[tuple[str, str], Row]:
        try:
            return self.reader.labels()
        except ExperimentError:
            return {}

    def of(self, name: str, basis: str = "features") -> Label | None:
        """The label of a feature, or of a neuron."""
        if (basis, name) in self._of_people:
            return self._of_people[basis, name]
        row = self._of_tables.get((basis, name))
        return None if row is None else Label(row["text"], row["by"], row["score"])


def card(labels: Labels, basis: Basis, submodule: str, feature: int) -> Card:
    """All that is known of one feature or neuron."""
    reader, file = labels.reader, labels.file
    name, problem, row = f"{submodule}/{feature}", "", None
    try:
        row = reader.card(basis, submodule, feature)
    except ExperimentError as error:
        problem = str(error)
    said = [
        (one, is_stale(reader, one))
        for one in file.annotations()
        if (one.basis, one.submodule, one.feature) == (basis, submodule, feature)
    ]
    return Card(
        basis=basis,
        submodule=submodule,
        feature=feature,
        row=row,
        problem=problem,
        label=labels.of(name, basis),
        said=said,
        holders=holders(reader, name) if basis == "features" else [],
    )


def holders(reader: Reader, name: str) -> list[Holder]:
    """Every circuit that holds a feature, with what it is about."""
    about: dict[str, Mapping[str, Row]] = {}
    for source in reader.names:
        try:
            about[source] = reader.behaviours(source)
        except ExperimentError:
            about[source] = {}
    return [
        Holder(*one, about[one.source].get(one.name, {}).get("about", ""))
        for one in reader.holders(name)
    ]


@dataclass(frozen=True)
class Judged:
    """The circuit itself under one policy for error nodes."""

    error_nodes: str
    row: Row


class View:
    """One circuit as it is shown: alike features as one node, features by their labels.

    Args:
        n_nodes: most nodes in the picture.

    Raises:
        ExperimentError: its tables are missing, cut short or damaged.
    """

    def __init__(
        self,
        reader: Reader,
        file: AnnotationFile,
        source: BehaviourSource,
        name: str,
        n_nodes: int = SIZES[1],
    ) -> None:
        self.reader, self.file = reader, file
        self.source: BehaviourSource = source
        self.name = name
        self.place = f"{source}/{name}"
        self.n_nodes = n_nodes
        self.problems: list[str] = []
        self.labels = Labels(reader, file)
        whole = reader.circuit(source, name)
        self.groups = file.groups(self.place)
        self.standing: dict[str, tuple[str, ...]] = {}
        self.circuit: Circuit | None = whole
        if whole is not None and self.groups:
            self.circuit, self.standing = merged(whole, self.groups)

    def known(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` gives; where a table is missing, that is a problem that the page names."""
        try:
            return read()
        except ExperimentError as error:
            self.problems.append(str(error))
            return otherwise

    @cached_property
    def head(self) -> Row:
        """The behaviour; empty where its table is missing."""
        return self.known(lambda: self.reader.behaviours(self.source), {}).get(self.name, {})

    @cached_property
    def contexts(self) -> list[tuple[Row, Context]]:
        """Examples as text, those that the circuit was found from first."""
        rows = self.known(lambda: self.reader.examples(self.source), {}).get(self.name, [])
        rows = sorted(rows, key=lambda row: (not row["found"], row["number"]))[:_CONTEXTS_SHOWN]
        return [(row, self.reader.texts.context(row)) for row in rows]

    @cached_property
    def _judged(self) -> list[dict[str, Any]]:
        return self.known(lambda: self.reader.evaluation(self.source, self.name), [])

    @cached_property
    def judged(self) -> list[Judged]:
        """The circuit as it was found, under each policy for error nodes."""
        return [Judged(row["error_nodes"], row) for row in self._judged if row["threshold"] is None]

    @cached_property
    def curves(self) -> dict[str, list[tuple[float, int, float]]]:
        """Faithfulness at every threshold, by policy."""
        settings = {} if self.circuit is None else self.circuit.settings
        threshold = settings.get("node_threshold")
        return curves_of(self._judged, threshold if isinstance(threshold, float) else None)

    def text(self, feature: str) -> str:
        """The label of a feature, or of the group that it stands for; empty where it has none."""
        label, others = self.labels.of(feature), self.standing.get(feature, ())
        if not others:
            return label.text if label else ""
        counted = f"{len(others)} features"
        return f"{label.text} ({counted})" if label else counted

    def texts(self, nodes: Iterable[Node]) -> dict[str, str]:
        """Labels of those of these nodes that have one."""
        features = {plain_name(node) for node in nodes if not node.is_error}
        return {feature: text for feature in features if (text := self.text(feature))}

    def svg(self, *, alone: bool = False) -> str:
        """The picture."""
        from core.pictures.draw import draw_circuit

        if self.circuit is None:
            return ""
        return draw_circuit(
            self.circuit,
            labels=self.texts(self.circuit.nodes[i] for i in self.drawn),
            title=f"{self.reader.experiment.name} {self.name}",
            max_nodes=self.n_nodes,
            max_edges=int(_EDGES_PER_NODE * self.n_nodes),
            alone=alone,
        )

    @cached_property
    def drawn(self) -> list[int]:
        """Which nodes the picture holds, the strongest first."""
        if self.circuit is None:
            return []
        nodes = self.circuit.nodes
        return sorted(range(len(nodes)), key=lambda i: (-abs(nodes[i].effect), i))[: self.n_nodes]

    @cached_property
    def strongest(self) -> tuple[float, float]:
        """The largest |effect| of a node and |weight| of an edge; zeros where there is none."""
        if self.circuit is None:
            return 0.0, 0.0
        return (
            max((abs(node.effect) for node in self.circuit.nodes), default=0.0),
            max((abs(edge.weight) for edge in self.circuit.edges), default=0.0),
        )

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page's script works with: the steps of both sliders, and what holds there."""
        nodes = () if self.circuit is None else self.circuit.nodes
        edges = () if self.circuit is None else self.circuit.edges
        of_nodes = slider(node.effect for node in nodes)
        return {
            "nodes": of_nodes._asdict(),
            "edges": slider(edge.weight for edge in edges)._asdict(),
            "faithfulness": {
                policy: interpolated(curve, of_nodes.thresholds)
                for policy, curve in self.curves.items()
            },
            "n_nodes": len(nodes),
            "n_edges": len(edges),
        }

    @cached_property
    def _number(self) -> dict[str, int]:
        nodes = () if self.circuit is None else self.circuit.nodes
        return {node.name: i for i, node in enumerate(nodes)}

    @cached_property
    def _edges(self) -> tuple[dict[int, list[Any]], dict[int, list[Any]]]:
        into: dict[int, list[Any]] = {}
        out: dict[int, list[Any]] = {}
        for edge in () if self.circuit is None else self.circuit.edges:
            out.setdefault(edge.upstream, []).append(edge)
            if edge.downstream is not None:
                into.setdefault(edge.downstream, []).append(edge)
        return into, out

    def node(self, name: str) -> dict[str, Any]:
        """All that is shown of one node.

        Raises:
            LookupError: the circuit has no such node.
        """
        if self.circuit is None or name not in self._number:
            raise LookupError(f"{self.name} has no node {name!r}")
        i = self._number[name]
        node = self.circuit.nodes[i]
        plain = plain_name(node)
        into, out = self._edges
        found = None
        if not node.is_error:
            found = card(self.labels, "features", node.submodule, node.feature)
        return {
            "name": name,
            "plain": plain,
            "effect": node.effect,
            "rank": 1 + sum(abs(other.effect) > abs(node.effect) for other in self.circuit.nodes),
            "is_error": node.is_error,
            "token": self._token(node.pos),
            "pos": node.pos,
            "members": self.standing.get(plain, ()),
            "into": self._ends(into.get(i, ()), "upstream"),
            "n_into": len(into.get(i, ())),
            "out": self._ends(out.get(i, ()), "downstream"),
            "n_out": len(out.get(i, ())),
            "card": found,
        }

    def _token(self, pos: int | None) -> str:
        """The token at a position; empty where positions or their names are not kept."""
        tokens = () if self.circuit is None else self.circuit.tokens or ()
        return token_text(tokens[pos]) if pos is not None and pos < len(tokens) else ""

    def _ends(self, edges: Iterable[Any], side: str) -> list[End]:
        strongest = sorted(edges, key=lambda edge: -abs(edge.weight))[:_EDGES_SHOWN]
        found = []
        for edge in strongest:
            other = getattr(edge, side)
            if other is None or self.circuit is None:
                found.append(End("metric", "", edge.weight))
                continue
            node = self.circuit.nodes[other]
            label = "" if node.is_error else self.text(plain_name(node))
            found.append(End(node.name, label, edge.weight))
        return found
