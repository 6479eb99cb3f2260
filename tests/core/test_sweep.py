"""Circuits of every size and what their curves come to, by hand and by another route."""

from __future__ import annotations

import math

import pytest
import torch

from core.errors import InputError
from core.evaluate import Evaluator, area
from core.sweep import (
    MIB_FRACTIONS,
    active_nodes,
    cmd,
    faithfulness_of,
    nodes_for,
    ranked,
    shuffled,
    size_at,
    sizes_up_to,
    sweep,
)
from core.types import ERROR, Node
from tests.core.test_evaluate import all_nodes, some_nodes
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries
from tests.toy import DOG, NODES_PARALLEL, plus, toy_dictionaries, toy_inputs, toy_model


def test_the_complement_of_a_complement_is_the_circuit() -> None:
    model = make_model("gpt_neox")
    evaluator = Evaluator(model, random_dictionaries(model), make_pairs())
    nodes = some_nodes(model)
    rest = [node for node in all_nodes(model) if node not in nodes]
    one, other = evaluator.evaluate(nodes), evaluator.evaluate(rest)
    assert one.faithfulness == pytest.approx(other.completeness, abs=1e-10)
    assert one.completeness == pytest.approx(other.faithfulness, abs=1e-10)


def test_cpr_and_cmd_are_areas_between_straight_lines() -> None:
    # Of four nodes: none has 0, one 1/2, two 5/4, all 1.
    fractions, faithfulness = [0.0, 0.25, 0.5, 1.0], [0.0, 0.5, 1.25, 1.0]
    cpr = 0.25 * 0.25 + 0.25 * 0.875 + 0.5 * 1.125
    assert area(fractions, faithfulness) == pytest.approx(cpr)
    distance = 0.25 * 0.75 + 0.25 * 0.375 + 0.5 * 0.125
    assert cmd(fractions, faithfulness) == pytest.approx(distance)
    assert cmd([0.0, 1.0], [1.0, 1.0]) == 0


def test_nodes_for_a_share_lie_between_the_sizes_around_it() -> None:
    sizes, faithfulness = [16, 0, 1, 4], [0.9, 0.0, 0.1, 0.5]
    assert nodes_for(sizes, faithfulness, 0.5) == pytest.approx(4)
    assert nodes_for(sizes, faithfulness, 0.7) == pytest.approx(8)
    assert nodes_for(sizes, faithfulness, 0.05) == 1
    assert nodes_for(sizes, faithfulness, 0.95) is None
    assert nodes_for([1, 2, 4], [0.6, 0.2, 0.8], 0.5) == 1
    with pytest.raises(InputError, match="3 sizes and 2 values"):
        nodes_for([1, 2, 3], [0.1, 0.2], 0.5)


def test_faithfulness_of_a_size_lies_between_the_sizes_around_it() -> None:
    sizes, faithfulness = [0, 1, 100, 10], [0.0, 0.1, 0.9, 0.5]
    assert faithfulness_of(10, sizes, faithfulness) == pytest.approx(0.5)
    assert faithfulness_of(32, sizes, faithfulness) == pytest.approx(0.5 + 0.4 * math.log10(3.2))
    assert faithfulness_of(101, sizes, faithfulness) is None
    assert faithfulness_of(5, [10, 20], [0.1, 0.2]) is None
    assert faithfulness_of(5, [], []) is None
    with pytest.raises(InputError, match="3 sizes and 2"):
        faithfulness_of(2, [1, 2, 3], [0.1, 0.2])


def test_sizes_rise_by_equal_ratios_to_all_nodes() -> None:
    assert sizes_up_to(256, 5) == [1, 4, 16, 64, 256]
    assert sizes_up_to(2, 5) == [1, 2]
    assert sizes_up_to(0, 5) == []
    assert [size_at(fraction, 1_000) for fraction in MIB_FRACTIONS[:4]] == [1, 2, 5, 10]
    with pytest.raises(InputError, match="make no curve"):
        sizes_up_to(10, 1)


def test_active_nodes_of_the_toy_are_those_that_are_not_zero() -> None:
    model, inputs = toy_model(parallel=True), toy_inputs()
    active = active_nodes(model, toy_dictionaries(model), inputs)
    # All but the features of TENSE, which no effect reaches, have an effect; the mean stream of
    # layer norms puts nothing anywhere else.
    names = {(node.submodule, node.feature) for node in active}
    assert names >= NODES_PARALLEL.keys()
    assert ("resid_0", ERROR) in names
    assert not any(feature == ERROR for name, feature in names if name != "resid_0")
    first = active_nodes(
        model, toy_dictionaries(model), inputs.select(torch.tensor([0])), by_position=True
    )
    assert inputs.clean[0, 0] == DOG
    assert Node("embed", plus(0), 0, 0.0) in first
    assert Node("embed", plus(0), 1, 0.0) not in first


@pytest.mark.parametrize("by_position", [False, True])
def test_all_active_nodes_are_the_whole_model_in_any_order(by_position: bool) -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    dictionaries = random_dictionaries(model)
    evaluator = Evaluator(model, dictionaries, inputs)
    active = active_nodes(model, dictionaries, inputs, by_position=by_position, batch_size=2)
    ranking = ranked(evaluator, active[::3], active)
    for order in (ranking, shuffled(ranking, 1)):
        (whole,) = sweep(evaluator, order, [], fractions=[1.0])
        assert whole.evaluation.faithfulness == pytest.approx(1, abs=1e-10)
        assert math.isnan(whole.evaluation.completeness)
    assert shuffled(ranking, 1) == shuffled(ranking, 1) != shuffled(ranking, 2)


def test_cuts_are_by_rank_and_errors_left_out_where_a_policy_drops_them() -> None:
    model, inputs = make_model("gpt_neox"), make_single()
    dictionaries = random_dictionaries(model)
    evaluator = Evaluator(model, dictionaries, inputs, start_layer=1)
    nodes = [node._replace(effect=float((7 * i) % 31)) for i, node in enumerate(some_nodes(model))]
    ranking = ranked(evaluator, nodes, active_nodes(model, dictionaries, inputs), "drop")
    effects = [abs(node.effect) for node in ranking]
    assert effects == sorted(effects, reverse=True)
    assert not any(node.is_error or node.submodule.endswith("0") for node in ranking)
    cuts = sweep(evaluator, ranking, [0, 5], "drop", fractions=[0.5])
    assert [cut.evaluation.n_nodes for cut in cuts] == [0, 5, size_at(0.5, len(ranking))]
    assert cuts[0].evaluation.faithfulness == 0
    assert cuts[1].evaluation == evaluator.evaluate(ranking[:5])
