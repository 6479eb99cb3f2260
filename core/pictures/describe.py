"""A circuit in text: a table for a terminal, and a few sentences.

A path is a chain of edges from a node that nothing in the circuit feeds, through at least one more
node, to the metric. It is called as strong as its weakest edge.
Shares are of the sum of |effect| over the circuit's nodes; the same information may be counted at
several submodules on its way, so they compare submodules and do not divide up the metric.
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.pictures.selection import (
    Selection,
    causal_rank,
    check_circuit,
    plain_name,
    select,
    strongest_first,
)
from core.pictures.text import printable, token_text
from core.pictures.wording import (
    counted,
    edges_at_errors,
    listed,
    metric_text,
    metric_values,
    plain,
    signed,
)
from core.stability import Standing, count_standings, standing_of
from core.types import Circuit, Edge, Node

_WIDTH = 100
_BAR = 16
_N_PATHS = 3
_MARKS: dict[Standing | None, str] = {None: "", "core": "", "contingent": "~", "noise": "?"}
"""What stands behind the effect of a node that other examples might not have."""


@dataclass(frozen=True)
class Path:
    """A chain of edges into the metric.

    Attributes:
        nodes: indices into the circuit's nodes, upstream first; the metric follows the last.
        edges: the edges between them, the last into the metric.
    """

    nodes: tuple[int, ...]
    edges: tuple[Edge, ...]

    @property
    def weakest(self) -> Edge:
        """The edge of least |weight|, which sets the path's strength."""
        return min(self.edges, key=lambda edge: abs(edge.weight))


def strongest_paths(circuit: Circuit, n_paths: int = _N_PATHS) -> list[Path]:
    """The strongest path from each node without an incoming edge; the `n_paths` strongest of them.

    A path's strength is the least |weight| of its edges. Each path is the strongest from its first
    node (widest path, one pass against the causal order); where two are equally strong it takes the
    edge of larger |weight| first, then the node that comes first in the circuit. A lone edge into
    the metric is no path.

    Raises:
        InputError, MissingSubmodule, NotFinite: the circuit is not sound.
    """
    check_circuit(circuit)
    leaving: dict[int, list[Edge]] = {}
    for edge in strongest_first(list(circuit.edges)):
        leaving.setdefault(edge.upstream, []).append(edge)
    best: dict[int | None, tuple[float, Edge | None]] = {None: (math.inf, None)}
    order = sorted(leaving, key=lambda i: causal_rank(circuit.nodes[i]), reverse=True)
    for node in order:
        ways = [
            (min(abs(edge.weight), best[edge.downstream][0]), edge)
            for edge in leaving[node]
            if edge.downstream in best
        ]
        if ways:
            best[node] = max(ways, key=lambda way: way[0])
    fed = {edge.downstream for edge in circuit.edges}
    paths = [_follow(node, best) for node in sorted(leaving) if node in best and node not in fed]
    paths = [path for path in paths if len(path.nodes) > 1]
    return sorted(paths, key=lambda path: -abs(path.weakest.weight))[:n_paths]


def _follow(start: int, best: Mapping[int | None, tuple[float, Edge | None]]) -> Path:
    """The path that takes each node's best edge."""
    edges: list[Edge] = []
    edge = best[start][1]
    while edge is not None:
        edges.append(edge)
        edge = best[edge.downstream][1]
    return Path(tuple(edge.upstream for edge in edges), tuple(edges))


def describe_circuit(
    circuit: Circuit,
    *,
    labels: Mapping[str, str] | None = None,
    max_nodes: int = 40,
    max_edges: int = 20,
) -> str:
    """A circuit as a table for a terminal, at most 100 columns wide.

    The metric and settings; nodes by submodule in causal order, the strongest first in each; the
    strongest edges; the strongest paths to the metric (see `strongest_paths`).

    Args:
        labels: what a person calls a feature, by its name without position, ``attn_3/1234``.
        max_nodes, max_edges: how many are listed; the rest is counted.

    Raises:
        InputError: a limit is out of range, or nodes, edges and positions do not fit together.
        MissingSubmodule: a node is at a submodule that cannot be.
        NotFinite: an effect or a weight is NaN or infinite.
    """
    labels = labels or {}
    selection = select(circuit, max_nodes, max_edges)
    lines = list(_header(circuit))
    lines += ["", *_node_lines(circuit, selection, labels)]
    if circuit.edges:
        lines += ["", *_edge_lines(circuit, max_edges)]
    paths = strongest_paths(circuit)
    if paths:
        lines += ["", "Strongest paths to the metric, by their weakest edge"]
        for path in paths:
            lines += _path_lines(circuit, path)
    return "\n".join(_cut(line, _WIDTH).rstrip() for line in lines) + "\n"


def describe_in_words(circuit: Circuit, labels: Mapping[str, str] | None = None) -> str:
    """A circuit in two to four sentences: its size, where its effect is, its strongest path.

    Raises:
        InputError, MissingSubmodule, NotFinite: as `describe_circuit`.
    """
    check_circuit(circuit)
    total = sum(abs(node.effect) for node in circuit.nodes)
    examples = counted(circuit.n_examples, "example")
    if not circuit.nodes:
        return f"No node passed the threshold, over {examples}."
    n_errors = sum(node.is_error for node in circuit.nodes)
    sentences = [
        f"The circuit has {counted(len(circuit.nodes), 'node')} ({counted(n_errors, 'error')}) and "
        f"{counted(len(circuit.edges), 'edge')}, found over {examples}."
    ]
    if total:
        names, share = _main_submodules(circuit)
        errors = sum(abs(node.effect) for node in circuit.nodes if node.is_error) / total
        carry = "carries" if len(names) == 1 else "carry"
        sentences.append(
            f"{listed(names)} {carry} {share:.0%} of the summed |effect|, errors {errors:.0%}."
        )
    paths = strongest_paths(circuit, 1)
    if paths:
        chain = [_in_words(circuit.nodes[i], circuit, labels or {}) for i in paths[0].nodes]
        weakest = signed(paths[0].weakest.weight)
        sentences.append(
            f"The strongest path is {' -> '.join([*chain, 'the metric'])}; its weakest edge weighs "
            f"{weakest}."
        )
    return " ".join(sentences)


def _main_submodules(circuit: Circuit) -> tuple[list[str], float]:
    """The fewest submodules, three at most, with half of the summed |effect|, and their share."""
    total = sum(abs(node.effect) for node in circuit.nodes)
    share: dict[str, float] = {}
    for node in sorted(circuit.nodes, key=causal_rank):
        share[node.submodule] = share.get(node.submodule, 0.0) + abs(node.effect) / total
    names: list[str] = []
    for name in sorted(share, key=lambda name: -share[name])[:3]:
        names.append(name)
        if sum(share[name] for name in names) >= 0.5:
            break
    return names, sum(share[name] for name in names)


def _in_words(node: Node, circuit: Circuit, labels: Mapping[str, str]) -> str:
    """A node's name with its token and label."""
    label = printable(labels.get(plain_name(node), "")).strip()
    return _name(node, circuit) + (f' ("{label}")' if label else "")


def _name(node: Node, circuit: Circuit) -> str:
    """``attn_3/1234``, or ``attn_3/1234 at 2 'the'`` where positions are kept."""
    if node.pos is None:
        return plain_name(node)
    token = f" '{token_text(circuit.tokens[node.pos])}'" if circuit.tokens else ""
    return f"{plain_name(node)} at {node.pos}{token}"


def _header(circuit: Circuit) -> Iterator[str]:
    """Metric, estimator, thresholds, counts, completeness gap."""
    known = circuit.settings
    where = "by position" if circuit.by_position else "summed over positions"
    n_errors = sum(node.is_error for node in circuit.nodes)
    yield f"metric    {metric_text(circuit)}: {metric_values(circuit)}"
    estimator = f"{plain(known['estimator'])}, " if "estimator" in known else ""
    yield f"effects   {estimator}{where}, mean over {counted(circuit.n_examples, 'example')}"
    yield (
        f"nodes     {counted(len(circuit.nodes), 'node')}, {n_errors} of them errors"
        + _bound(known, "node_threshold", "effect")
    )
    stands = count_standings(standing_of(circuit))
    if stands["core"] is not None:
        marks = {name: f" ({mark})" if (mark := _MARKS[name]) else "" for name in stands}
        told = ", ".join(f"{n} {name}{marks[name]}" for name, n in stands.items())
        yield f"examples  other draws would have: {told}"
    yield f"edges     {counted(len(circuit.edges), 'edge')}" + _bound(
        known, "edge_threshold", "weight"
    )
    measured = {k: v for k, v in circuit.gaps.items() if math.isfinite(v)}
    if measured:
        worst = max(measured, key=lambda name: measured[name])
        yield (
            f"gap       {measured[worst]:.3g} at most, at {worst} "
            "(mean |sum of a submodule's effects - change of the metric|)"
        )
    for key in ("faithfulness", "completeness"):
        if key in known:
            ends = [known.get(f"{key}_{end}") for end in ("low", "high")]
            between = "" if None in ends else f" (95%: {' to '.join(map(plain, ends))})"
            yield f"{key}  {plain(known[key])}{between}"


def _bound(settings: Mapping[str, object], key: str, what: str) -> str:
    """The threshold as an inequality, if it is known."""
    return f", each |{what}| > {plain(settings[key])}" if key in settings else ""


def _node_lines(circuit: Circuit, selection: Selection, labels: Mapping[str, str]) -> Iterator[str]:
    """Nodes by submodule, with a bar of their effect's sign."""
    if not circuit.nodes:
        yield "No node passed the threshold."
        return
    change = "setting it to zero" if circuit.metric_patch is None else "patching it"
    yield f"Nodes by submodule, with the effect of each (+ where {change} raises the metric)"
    strongest = max(abs(node.effect) for node in circuit.nodes)
    shown = [circuit.nodes[i] for i in selection.nodes]
    stands = dict(zip(circuit.nodes, standing_of(circuit), strict=True))
    name_width = min(40, max(_columns(_name(node, circuit)) for node in shown))
    by_submodule: dict[str, list[Node]] = {}
    for node in sorted(circuit.nodes, key=causal_rank):
        by_submodule.setdefault(node.submodule, []).append(node)
    for submodule, members in by_submodule.items():
        total = sum(node.effect for node in members)
        yield f"{submodule}: {counted(len(members), 'node')}, total {signed(total)}"
        listed_nodes = [node for node in shown if node.submodule == submodule]
        for node in sorted(listed_nodes, key=lambda node: -abs(node.effect)):
            share = abs(node.effect) / strongest if strongest else 0.0
            bar = ("+" if node.effect > 0 else "-") * math.ceil(_BAR * share)
            label = printable(labels.get(plain_name(node), ""))
            name = _pad(_name(node, circuit), name_width)
            mark = _MARKS[stands[node]]
            yield f"  {name}  {signed(node.effect):>9}{mark:<1} {bar:<{_BAR}}  {label}"
        if len(listed_nodes) < len(members):
            yield f"  ({counted(len(members) - len(listed_nodes), 'weaker node')} not listed)"


def _edge_lines(circuit: Circuit, max_edges: int) -> Iterator[str]:
    """The strongest edges of the whole circuit."""
    strongest = strongest_first(list(circuit.edges))[:max_edges]
    left_out = len(circuit.edges) - len(strongest)
    yield "Strongest edges" + (f" ({len(strongest)} of {len(circuit.edges)})" if left_out else "")
    names = [_name(circuit.nodes[edge.upstream], circuit) for edge in strongest]
    ends = [_end(edge, circuit) for edge in strongest]
    first = min(40, max(map(_columns, names), default=0))
    second = min(40, max(map(_columns, ends), default=0))
    for edge, name, end in zip(strongest, names, ends, strict=True):
        yield f"  {_pad(name, first)} -> {_pad(end, second)}  {signed(edge.weight):>9}"
    if note := edges_at_errors(circuit):
        yield from textwrap.wrap(note, _WIDTH)


def _end(edge: Edge, circuit: Circuit) -> str:
    """Name of what an edge runs into."""
    return "metric" if edge.downstream is None else _name(circuit.nodes[edge.downstream], circuit)


def _path_lines(circuit: Circuit, path: Path) -> Iterator[str]:
    """A path, broken between its nodes where it is longer than a line."""
    line = f"  {signed(path.weakest.weight):>9}  "
    indent = " " * len(line)
    steps = [_name(circuit.nodes[i], circuit) for i in path.nodes] + ["metric"]
    for i, step in enumerate(steps):
        piece = step if i == 0 else f" -> {step}"
        if i and _columns(line + piece) > _WIDTH:
            yield line
            line, piece = indent, piece.lstrip()
        line += piece
    yield line


def _columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(_column(character) for character in text)


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """`text`, or its beginning and three dots, in at most `width` columns."""
    if _columns(text) <= width:
        return text
    fitting, room = [], width - 3
    for character in text:
        room -= _column(character)
        if room < 0:
            break
        fitting.append(character)
    return "".join(fitting).rstrip() + "..."


def _pad(text: str, width: int) -> str:
    """`text` in exactly `width` columns."""
    cut = _cut(text, width)
    return cut + " " * (width - _columns(cut))
