"""Runs with edges ablated: the whole and the empty set by another route, a toy worked by hand."""

from __future__ import annotations

import pytest

from core.edge_evaluate import EdgeEvaluator
from core.evaluate import Evaluator
from core.models import LanguageModel
from core.types import ERROR, Node
from tests.core.tiny import (
    N_FEATURES,
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    rounding,
)

N_POS = 4


def some_nodes(model: LanguageModel, *, errors: bool, by_position: bool) -> list[Node]:
    """A third of all nodes, in no pattern."""
    places = range(N_POS) if by_position else [None]
    every = [
        Node(name, feature, pos, 1.0)
        for name in model.submodules
        for feature in [*range(N_FEATURES), *([ERROR] if errors else [])]
        for pos in places
    ]
    return [node for i, node in enumerate(every) if (i * i) % 7 < 2 or node.is_error]


FAMILIES = [
    ("gpt_neox", False),
    ("gpt2", False),
    ("llama", False),
    ("gemma2", True),
    ("qwen3_moe", False),
]


@pytest.mark.parametrize("errors", [True, False], ids=["errors", "none"])
@pytest.mark.parametrize("by_position", [True, False], ids=["by_position", "summed"])
@pytest.mark.parametrize(("family", "attn_input"), FAMILIES)
def test_all_edges_kept_is_all_nodes_kept_and_none_is_none(
    family: str, attn_input: bool, by_position: bool, errors: bool
) -> None:
    model = make_model(family, attn_input)
    dictionaries = random_dictionaries(model)
    inputs = make_pairs(2, N_POS) if by_position else make_single(2, N_POS)
    nodes = some_nodes(model, errors=errors, by_position=by_position)
    evaluator = Evaluator(model, dictionaries, inputs)
    edges = EdgeEvaluator(evaluator, nodes)
    of_nodes = evaluator.evaluate(nodes)
    assert abs(of_nodes.m_circuit - of_nodes.m_empty) > 1e-4
    whole = edges.evaluate(edges.ranked([]))
    assert whole.n_edges == whole.n_possible > 100
    assert whole.m_edges == pytest.approx(of_nodes.m_circuit, abs=rounding(family))
    assert edges.evaluate([]).m_edges == pytest.approx(of_nodes.m_empty, abs=rounding(family))
