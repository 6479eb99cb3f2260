"""Schemas, their page, and conversions to core's nouns and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from assets.engine.asset import column_schema
from assets.tables.conversions import (
    circuit_tables,
    read_circuit,
    read_samples,
    read_vectors,
    samples_table,
    vectors_tables,
)
from assets.tables.schemas import TABLES, describe_tables
from core.discovery import Sample
from core.types import ERROR, Circuit, Edge, Node

ROOT = Path(__file__).resolve().parents[3]

CIRCUIT = Circuit(
    nodes=(Node("embed", 3, 0, 0.5), Node("mlp_1", ERROR, 2, -0.25)),
    edges=(Edge(0, 1, 0.125), Edge(1, None, -0.25)),
    settings={"model": "tiny", "node_threshold": 0.1},
    n_examples=7,
    metric_clean=-1.5,
    metric_patch=2.5,
    gaps={"embed": 0.01},
    tokens=("the", "cat", "is"),
)


def test_the_page_is_what_the_schemas_say() -> None:
    assert (ROOT / "docs/tables.md").read_text(encoding="utf-8") == describe_tables()


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described_on_the_page_and_in_the_ui(name: str) -> None:
    assert f"## {name}\n" in describe_tables()
    assert all(len(column.description or "") > 4 for column in column_schema(name).columns)


def test_a_circuit_comes_back_from_its_tables() -> None:
    assert read_circuit(circuit_tables("simple", CIRCUIT)) == CIRCUIT


def test_a_circuit_summed_over_positions_comes_back_too() -> None:
    circuit = Circuit((Node("embed", 1, None, 1.0),), (), {}, 1, 0.0, None)
    assert read_circuit(circuit_tables("k00000", circuit)) == circuit


def test_no_circuit_is_three_empty_tables() -> None:
    tables = circuit_tables("k00000", None)
    assert [table.num_rows for table in tables.values()] == [0, 0, 0]
    assert read_circuit(tables) is None


def test_a_sample_is_labelled_by_its_answer() -> None:
    samples = [Sample(0, 0, 1, (7,), 8, 0.1), Sample(3, 1, 2, (4, 5), 6, 0.2)]
    table = samples_table(samples, [("a", "b"), None])
    assert table["label"].to_pylist() == ["b", None]
    assert read_samples(table) == samples


@pytest.mark.parametrize("at_once", [1, 4, 1 << 26])
def test_dense_vectors_come_back(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("assets.tables.conversions._VALUES_AT_ONCE", at_once)
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    pieces = list(vectors_tables(vectors))
    assert len(pieces) == (1 if at_once > 4 else 5)
    assert [i for piece in pieces for i in piece["sample"].to_pylist()] == list(range(5))
    np.testing.assert_array_equal(read_vectors(pieces, 5, 3), vectors)


@pytest.mark.parametrize("at_once", [1, 1 << 26])
def test_sparse_vectors_come_back_sparse_with_an_empty_row(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("assets.tables.conversions._VALUES_AT_ONCE", at_once)
    vectors = csr_array(np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3]], dtype=np.float32))
    found = read_vectors(list(vectors_tables(vectors)), 3, 3)
    assert isinstance(found, csr_array)
    np.testing.assert_array_equal(found.toarray(), vectors.toarray())
