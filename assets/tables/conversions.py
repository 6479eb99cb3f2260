"""The only conversions between tables and core's nouns, in both directions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.discovery import Sample
    from core.types import Circuit, Edge, Node

_VALUES_AT_ONCE = 1 << 26

Frame = Any
"""A pandas DataFrame; pandas carries no types that a checker could follow."""


def frame(table: pa.Table) -> Frame:
    """A table for summaries."""
    return table.to_pandas()


def samples_table(samples: Sequence[Sample], labels: Sequence[Sequence[str] | None]) -> pa.Table:
    """The filtered tokens; `labels` are those of each context, by the sample's window."""
    rows = []
    for i, sample in enumerate(samples):
        known = labels[sample.window]
        rows.append(
            {
                **sample._asdict(),
                "sample": i,
                "context": list(sample.context),
                "label": None if known is None else known[sample.pos],
            }
        )
    return TABLES["filtered_tokens"].build(rows)


def read_samples(table: pa.Table) -> list[Sample]:
    """The samples of a table of filtered tokens, in order."""
    from core.discovery import Sample

    return [
        Sample(
            document=row["document"],
            window=row["window"],
            pos=row["pos"],
            context=tuple(row["context"]),
            answer=row["answer"],
            loss=row["loss"],
        )
        for row in table.to_pylist()
    ]


def vectors_tables(vectors: Any) -> Iterator[pa.Table]:
    """The cluster vectors, a dense array ``(n, width)`` or a CSR array of that shape, in pieces.

    One table of all would overflow the 32-bit offsets of its lists: 100,000 projected gradients
    hold three thousand million numbers.
    """
    n, width = vectors.shape
    is_sparse = hasattr(vectors, "indptr")
    each = vectors.nnz // max(1, n) if is_sparse else width
    n_at_once = max(1, _VALUES_AT_ONCE // max(1, each))
    for start in range(0, n, n_at_once):
        rows = vectors[start : start + n_at_once]
        sample = pa.array(range(start, start + rows.shape[0]), pa.int32())
        if is_sparse:
            offsets = pa.array(rows.indptr, pa.int32())
            index = pa.ListArray.from_arrays(offsets, pa.array(rows.indices, pa.int32()))
            value = pa.ListArray.from_arrays(offsets, pa.array(rows.data, pa.float32()))
        else:
            offsets = pa.array(range(0, rows.size + 1, width), pa.int32())
            index = pa.nulls(len(rows), pa.list_(pa.int32()))
            value = pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1), pa.float32()))
        columns = [sample, index, value]
        yield pa.Table.from_arrays(columns, schema=TABLES["cluster_vectors"].schema)


def read_vectors(pieces: Iterable[pa.Table], n: int, width: int) -> Any:
    """The vectors of such tables, ``(n, width)``: dense if they were, else a CSR array."""
    from scipy import sparse

    dense, parts, start = None, [], 0
    for piece in pieces:
        value = piece["value"].combine_chunks()
        numbers, offsets = value.flatten().to_numpy(), value.offsets.to_numpy()
        if piece["index"].null_count == piece.num_rows:
            dense = np.empty((n, width), np.float32) if dense is None else dense
            dense[start : start + piece.num_rows] = numbers.reshape(-1, width)
        else:
            index = piece["index"].combine_chunks().flatten().to_numpy()
            shape = (piece.num_rows, width)
            parts.append(sparse.csr_array((numbers, index, offsets - offsets[0]), shape))
        start += piece.num_rows
    return sparse.vstack(parts, format="csr") if dense is None else dense


def circuit_tables(
    name: str, circuit: Circuit | None, *, included_above: tuple[float, float] | None = None
) -> dict[str, pa.Table]:
    """The tables circuit, nodes and edges of a circuit; all empty where there is none.

    Args:
        included_above: thresholds of nodes and edges that inclusion is meant of, if not those the
            circuit was cut at.
    """
    from core.stability import inclusion

    if circuit is None:
        return {table: TABLES[table].build([]) for table in ("circuit", "nodes", "edges")}
    head = {
        "name": name,
        "metric": circuit.settings.get("metric"),
        "n_nodes": len(circuit.nodes),
        "n_edges": len(circuit.edges),
        "n_examples": circuit.n_examples,
        "metric_clean": circuit.metric_clean,
        "metric_patch": circuit.metric_patch,
        "gaps": json.dumps(dict(circuit.gaps), sort_keys=True),
        "settings": json.dumps(dict(circuit.settings), sort_keys=True, default=str),
        "tokens": None if circuit.tokens is None else list(circuit.tokens),
        "gap": max(circuit.gaps.values(), default=math.nan),
        "unmet": circuit.unmet,
        "stability": circuit.stability,
    }
    of_nodes, of_edges = included_above or tuple(
        float(str(circuit.settings.get(key, "nan"))) for key in ("node_threshold", "edge_threshold")
    )
    nodes = [
        {
            "node": i,
            **node._asdict(),
            "inclusion": inclusion(node.effect, node.stderr, of_nodes),
        }
        for i, node in enumerate(circuit.nodes)
    ]
    edges = [
        {**edge._asdict(), "inclusion": inclusion(edge.weight, edge.stderr, of_edges)}
        for edge in circuit.edges
    ]
    return {
        "circuit": TABLES["circuit"].build([head]),
        "nodes": TABLES["nodes"].build(nodes),
        "edges": TABLES["edges"].build(edges),
    }


def read_nodes(table: pa.Table) -> list[Node]:
    """The nodes of a nodes table, in order."""
    from core.types import Node

    return [
        Node(row["submodule"], row["feature"], row["pos"], row["effect"], row["stderr"])
        for row in table.to_pylist()
    ]


def read_edges(table: pa.Table) -> list[Edge]:
    """The edges of an edges table, in order."""
    from core.types import Edge

    return [
        Edge(row["upstream"], row["downstream"], row["weight"], row["stderr"])
        for row in table.to_pylist()
    ]


def read_circuit(tables: Mapping[str, pa.Table]) -> Circuit | None:
    """The circuit of the tables circuit, nodes and edges; None where they are empty."""
    from core.types import Circuit

    heads = tables["circuit"].to_pylist()
    if not heads:
        return None
    head = heads[0]
    return Circuit(
        nodes=tuple(read_nodes(tables["nodes"])),
        edges=tuple(read_edges(tables["edges"])),
        settings=json.loads(head["settings"]),
        n_examples=head["n_examples"],
        metric_clean=head["metric_clean"],
        metric_patch=head["metric_patch"],
        gaps=json.loads(head["gaps"]),
        tokens=None if head["tokens"] is None else tuple(head["tokens"]),
        stability=head["stability"],
        unmet=head["unmet"],
    )


def label_texts(labels: pa.Table) -> dict[str, str]:
    """The label that is shown of each feature, by its name, ``attn_3/1234``."""
    columns = labels.select(["submodule", "basis", "feature", "text", "shown"]).to_pylist()
    return {
        f"{row['submodule']}/{row['feature']}": row["text"]
        for row in columns
        if row["shown"] and row["basis"] == "features"
    }
