"""Nodes as columns: the same nodes, whichever way they are cut."""

from __future__ import annotations

from typing import Any

import pytest

from core.ablate import check_nodes
from core.errors import InputError, MissingSubmodule
from core.evaluate import Evaluator
from core.node_table import NodeTable
from core.types import ERROR, Node
from tests.core.tiny import make_model, make_pairs, random_dictionaries

NODES = [
    Node("mlp_1", 3, 2, 0.5),
    Node("attn_0", ERROR, None, -0.4),
    Node("mlp_1", ERROR, 0, 0.3),
    Node("attn_0", 7, 1, 0.2, 0.1),
]
WIDTHS = {"attn_0": 8, "mlp_1": 8}


def test_a_table_is_the_list_it_was_made_from() -> None:
    table = NodeTable.of(NODES)
    assert table == NODES
    assert NodeTable.of(table) is table
    assert list(table[1:3]) == NODES[1:3]
    assert table[-1] is NODES[-1]
    assert NodeTable.of([]) == []


def test_columns_choose_nodes() -> None:
    table = NodeTable.of(NODES)
    assert table.where(table.is_error) == NODES[1:3]
    assert table.where(~table.is_placed) == NODES[1:2]
    assert table.at("mlp_1") == NODES[::2]
    assert table[1:].at("mlp_1") == NODES[2:3]
    assert not table.at("resid_0")


@pytest.mark.parametrize(
    ("node", "error", "said"),
    [
        (Node("resid_5", 0, None, 1.0), MissingSubmodule, "no dictionary sits at 'resid_5'"),
        (Node("mlp_1", 8, None, 1.0), InputError, "features 0 to 7"),
        (Node("mlp_1", -2, None, 1.0), InputError, "features 0 to 7"),
        (Node("mlp_1", 0, 3, 1.0), InputError, "the inputs have 3 positions"),
        (Node("mlp_1", 0, -1, 1.0), InputError, "at position -1: positions begin at 0"),
    ],
)
def test_the_first_node_that_does_not_fit_is_named(
    node: Node, error: type[Exception], said: str
) -> None:
    check_nodes(NODES, WIDTHS, 3)
    with pytest.raises(error, match=said):
        check_nodes([*NODES, node, Node("nowhere_1", 0, None, 1.0)], WIDTHS, 3)


@pytest.mark.parametrize("changed", [{"feature": "3"}, {"feature": None}, {"pos": 1.9}])
def test_what_is_no_number_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        NodeTable.of([*NODES, NODES[0]._replace(**changed)])


def test_a_set_of_nodes_runs_once_in_whichever_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt_neox")
    evaluator = Evaluator(model, random_dictionaries(model), make_pairs(2, 3))
    first = evaluator.evaluate(NODES)
    monkeypatch.setattr(evaluator, "_edits", lambda *_, **__: pytest.fail("it ran again"))
    assert evaluator.evaluate(NODES[::-1]) == first
