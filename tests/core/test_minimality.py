"""What a circuit loses without a node, against evaluating the circuit without it."""

from __future__ import annotations

import pytest

from core.errors import InputError
from core.evaluate import Evaluator
from core.minimality import losses_without
from core.types import Node
from tests.core.test_evaluate import some_nodes
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries, rounding


def one_by_one(evaluator: Evaluator, circuit: list[Node], removed: list[Node]) -> list[float]:
    whole = evaluator.evaluate(circuit).faithfulness
    without = [evaluator.evaluate([n for n in circuit if n != node]) for node in removed]
    return [whole - found.faithfulness for found in without]


@pytest.mark.parametrize(
    ("family", "attn_input", "ablation"),
    [("gpt_neox", False, "zero"), ("gpt2", False, "mean"), ("gemma2", True, "resample")],
)
def test_losses_are_those_of_circuits_without_the_node(
    family: str, attn_input: bool, ablation: str
) -> None:
    model, inputs = make_model(family, attn_input), make_pairs(4)
    evaluator = Evaluator(model, random_dictionaries(model), inputs, ablation=ablation)
    circuit = evaluator.counted(some_nodes(model))
    removed = [*circuit[::11], *(node for node in circuit if node.is_error)]
    found = losses_without(evaluator, circuit, removed)
    wanted = one_by_one(evaluator, circuit, removed)
    assert found == pytest.approx(wanted, abs=100 * rounding(family))
    assert max(map(abs, found)) > 1e-3


def test_nodes_at_a_position_are_taken_out_there_alone() -> None:
    model, inputs = make_model("gpt2"), make_pairs(4)
    evaluator = Evaluator(model, random_dictionaries(model), inputs)
    circuit = [
        node._replace(pos=i % 5) for i, node in enumerate(evaluator.counted(some_nodes(model)))
    ]
    removed = circuit[::5]
    found = losses_without(evaluator, circuit, removed)
    assert found == pytest.approx(one_by_one(evaluator, circuit, removed), abs=1e-9)


def test_nodes_that_no_later_stream_carries_are_not_needed() -> None:
    """With every node of resid_0 ablated, what comes before it is not seen."""
    model = make_model("gpt_neox")
    evaluator = Evaluator(model, random_dictionaries(model), make_single(4))
    unseen, seen = [Node("mlp_0", i, None, 1.0) for i in range(24)], Node("resid_1", 3, None, 1.0)
    found = losses_without(evaluator, [*unseen, seen], [*unseen, seen])
    assert found[:-1] == [0.0] * 24
    assert found[-1:] == pytest.approx(one_by_one(evaluator, [*unseen, seen], [seen]), abs=1e-10)


def test_a_node_of_other_dictionaries_is_refused() -> None:
    model = make_model("gpt_neox")
    evaluator = Evaluator(model, random_dictionaries(model), make_single())
    with pytest.raises(InputError, match="found with other dictionaries"):
        losses_without(evaluator, [], [Node("mlp_0", 99, None, 1.0)])
