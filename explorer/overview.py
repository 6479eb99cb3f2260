"""All circuits of an experiment as rows: sorted, searched, a page at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from assets.settings import ExperimentError
from assets.tables.places import BehaviourSource
from explorer.reader import Reader

PER_PAGE = 100
T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        key: of a row, and in the address.
        name: its heading.
        about: what it is, in a sentence.
        kind: count, share or figure.
        down: the largest stand first, as long as nothing else is asked for.
    """

    key: str
    name: str
    about: str
    kind: str = "figure"
    down: bool = True


COLUMNS = (
    Column("size", "size", "samples of the cluster, or pairs used", "count"),
    Column("n_nodes", "nodes", "nodes of the circuit", "count"),
    Column("n_edges", "edges", "edges of the circuit", "count"),
    Column("error_share", "errors", "share of error nodes in the sum of |effect|", "share"),
    Column(
        "largest_share", "top feature", "share of the strongest feature in the same sum", "share"
    ),
    Column("faithfulness", "faithfulness", "of the circuit, under the chosen policy for errors"),
    Column("completeness", "completeness", "the same of its complement; small is good"),
    Column("at_100", "of 100", "faithfulness of the 100 strongest nodes"),
    Column("area", "area", "under faithfulness against the kept share of nodes"),
    Column("coherence", "coherence", "mean cosine between members of the cluster"),
    Column("stability", "stability", "how much of it is found again from other examples"),
)
_JUDGED = ("n_edges", "faithfulness", "completeness", "at_100", "area", "stability")
BY_KEY = {column.key: column for column in COLUMNS}


@dataclass(frozen=True)
class Asked:
    """What of the table is asked for.

    Attributes:
        sort: key of a column, or ``name``.
        down: the largest first.
        text: what the contexts must hold; empty for all.
        policy: for error nodes.
        page: from 1.
    """

    sort: str = "size"
    down: bool = True
    text: str = ""
    policy: str = ""
    page: int = 1


@dataclass(frozen=True)
class Overview:
    """The answer.

    Attributes:
        rows: of this page.
        n: rows that match; n_all: of the source.
        pages: how many pages there are.
        columns: those that any row has a figure for.
        policies: policies for error nodes that circuits were judged under.
        problems: tables that are missing, in the words of whoever misses them.
        order: names of all rows that match, in this order.
    """

    rows: Sequence[Mapping[str, Any]]
    n: int
    n_all: int
    pages: int
    columns: Sequence[Column]
    policies: Sequence[str]
    problems: Sequence[str]
    order: Sequence[str]


def overview(reader: Reader, source: BehaviourSource, asked: Asked) -> Overview:
    """The circuits of a source as asked for."""
    problems: list[str] = []

    def known(read: Callable[[], Mapping[Any, Any]]) -> Mapping[Any, Any]:
        try:
            return read()
        except ExperimentError as error:
            problems.append(str(error))
            return {}

    heads = known(lambda: reader.behaviours(source))
    judged = known(reader.summary)
    coherence = known(reader.coherence) if source == "clusters" else {}
    texts = known(lambda: reader.searchable(source)) if asked.text and heads else {}
    policies = list(dict.fromkeys(key[2] for key in judged if key[0] == source))
    policy = asked.policy if asked.policy in policies else next(iter(policies), "")
    held = reader.held(source)
    rows = []
    for name in reader.names[source]:
        if asked.text and asked.text.lower() not in texts.get(name, name):
            continue
        head, own = heads.get(name, {}), judged.get((source, name, policy), {})
        nodes = held.get(name)
        rows.append(
            {
                "name": name,
                "about": own.get("about") or head.get("about") or "",
                "label": head.get("label") or "",
                "made": nodes is not None,
                **{key: own.get(key) for key in _JUDGED},
                "size": head.get("size"),
                "n_nodes": None if nodes is None else len(nodes.nodes),
                "error_share": None if nodes is None else nodes.error_share,
                "largest_share": None if nodes is None else nodes.largest_share,
                "coherence": coherence.get(name),
            }
        )
    rows = _sorted(rows, asked)
    pages = max(1, -(-len(rows) // PER_PAGE))
    page = min(max(1, asked.page), pages)
    return Overview(
        rows=rows[(page - 1) * PER_PAGE : page * PER_PAGE],
        n=len(rows),
        n_all=len(reader.names[source]),
        pages=pages,
        columns=[c for c in COLUMNS if any(_is_number(row[c.key]) for row in rows)],
        policies=policies,
        problems=problems,
        order=[row["name"] for row in rows],
    )


def _sorted(rows: list[dict[str, Any]], asked: Asked) -> list[dict[str, Any]]:
    """Sorted by a column; what has no figure stands last either way."""
    if asked.sort not in BY_KEY:
        return sorted(rows, key=lambda row: row["name"], reverse=asked.down)
    with_figure = [row for row in rows if _is_number(row[asked.sort])]
    without = [row for row in rows if not _is_number(row[asked.sort])]
    return sorted(with_figure, key=lambda row: row[asked.sort], reverse=asked.down) + without


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
