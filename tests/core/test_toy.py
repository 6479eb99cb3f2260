"""The toy of tests/toy.py: every number here is worked out on paper."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.circuit import find_circuit
from core.effects import Effects, node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.evaluate import evaluate_circuit
from core.types import ERROR, Circuit, Node
from tests.toy import (
    EDGES_PARALLEL,
    EDGES_SEQUENTIAL,
    M_CLEAN,
    M_PATCH,
    MOVED,
    NODES_PARALLEL,
    NODES_SEQUENTIAL,
    NUMBER,
    minus,
    plus,
    toy_dictionaries,
    toy_inputs,
    toy_model,
)

EXPECTED = {True: (NODES_PARALLEL, EDGES_PARALLEL), False: (NODES_SEQUENTIAL, EDGES_SEQUENTIAL)}


def toy_effects(estimator: Estimator = IntegratedGradients()) -> Effects:
    model = toy_model(parallel=True)
    return node_effects(model, toy_dictionaries(model), toy_inputs(), estimator=estimator)


def toy_circuit(*, parallel: bool = True, **options: Any) -> Circuit:
    model = toy_model(parallel=parallel)
    thresholds: dict[str, Any] = {"node_threshold": 0.1, "edge_threshold": 0.1}
    return find_circuit(model, toy_dictionaries(model), toy_inputs(), **(thresholds | options))


def weights(circuit: Circuit) -> dict[object, float]:
    ends = [None if node is None else (node.submodule, node.feature) for node in circuit.nodes]
    return {
        (ends[upstream], None if downstream is None else ends[downstream]): weight
        for upstream, downstream, weight, _ in circuit.edges
    }


@pytest.mark.parametrize("parallel", [True, False])
def test_the_planted_circuit_is_recovered_exactly(parallel: bool) -> None:
    circuit = toy_circuit(parallel=parallel)
    nodes, edges = EXPECTED[parallel]
    found = {(node.submodule, node.feature): node.effect for node in circuit.nodes}
    assert found == pytest.approx(nodes, abs=1e-12)
    assert weights(circuit) == pytest.approx(edges, abs=1e-12)
    assert circuit.metric_clean == pytest.approx(sum(M_CLEAN) / 2)
    assert circuit.metric_patch == pytest.approx(sum(M_PATCH) / 2)
    assert circuit.gaps == pytest.approx(dict.fromkeys(circuit.gaps, 0.0), abs=1e-12)


def test_by_position_the_noun_is_at_the_first_and_all_else_at_the_last() -> None:
    circuit = toy_circuit(by_position=True)
    assert {node.pos for node in circuit.nodes if node.submodule == "embed"} == {0}
    assert {node.pos for node in circuit.nodes if node.submodule != "embed"} == {1}
    assert weights(circuit) == pytest.approx(EDGES_PARALLEL, abs=1e-12)


def at_number(effects: Effects, feature: int) -> list[float]:
    """Effects in both examples of a feature of the noun's embedding."""
    return effects["embed"].features.to_dense()[:, 0, feature].tolist()


@pytest.mark.parametrize("feature", [plus(NUMBER), minus(NUMBER)])
@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Either feature alone brings MOVED to 0, and m with it.
        (Exact(), (7, 3)),
        # The slope at clean, which is 7 in example 1 and 3 in example 2.
        (Attribution(), (7, 3)),
        # Five steps before the kink, one on it where the slope is 1, four behind it.
        (IntegratedGradients(rule="left"), ((5 * 7 + 1 + 4 * 3) / 10, (5 * 3 + 1 + 4 * 7) / 10)),
        (IntegratedGradients(rule="left", steps=1), (7, 3)),
        # Three points of five lie before the kink in neither: the third is on it.
        (
            IntegratedGradients(steps=5),
            ((2 * 7 + 1 + 2 * 3) / 5, (2 * 3 + 1 + 2 * 7) / 5),
        ),
        (IntegratedGradients(rule="midpoint"), (5, 5)),
        (IntegratedGradients(rule="gauss"), (5, 5)),
    ],
)
def test_estimators_differ_as_the_kink_of_the_mlp_says(
    estimator: Estimator, expected: tuple[float, float], feature: int
) -> None:
    assert at_number(toy_effects(estimator), feature) == pytest.approx(expected, abs=1e-12)


def test_the_completeness_gap_is_what_the_left_rule_misses() -> None:
    # Two features, each off by what the test above finds: 2 (4.8 - 5) and 2 (4.4 - 5).
    gap = toy_effects(IntegratedGradients(rule="left"))["embed"].gap
    assert gap.tolist() == pytest.approx([-0.4, -1.2])


def test_the_tense_that_changes_but_is_never_read_has_no_effect() -> None:
    effects = toy_effects()
    tense = effects["embed"].features.to_dense()[:, 1]
    assert effects["embed"].change.features.to_dense()[:, 1].any()
    torch.testing.assert_close(tense, torch.zeros_like(tense), rtol=0, atol=1e-12)


def evaluate(nodes: list[Node], **options: Any) -> tuple[float, float, float, float]:
    model = toy_model(parallel=True)
    found = evaluate_circuit(
        model, toy_dictionaries(model), nodes, toy_inputs(), ablation="zero", **options
    )
    return found.m_full, found.m_empty, found.faithfulness, found.completeness


def test_the_planted_circuit_is_faithful_and_complete() -> None:
    # With everything zero MOVED and VERDICT are 0, and so is m; as it is, m is -5 on average.
    assert evaluate(list(toy_circuit().nodes)) == pytest.approx((-5, 0, 1, 0), abs=1e-12)


def test_without_the_error_a_quarter_of_the_number_is_lost() -> None:
    # MOVED is 3/4 of what it was, and m with it.
    nodes = [node for node in toy_circuit().nodes if node.feature != ERROR]
    assert evaluate(nodes)[2] == pytest.approx(0.75, abs=1e-12)


def test_without_the_mlp_only_the_direct_path_is_left() -> None:
    # m = -MOVED and MOVED: -1 on average, of -5.
    nodes = [node for node in toy_circuit().nodes if node.submodule != "mlp_1"]
    assert evaluate(nodes)[2] == pytest.approx(0.2, abs=1e-12)


def test_without_what_attention_moves_nothing_is_left() -> None:
    moved = (plus(MOVED), minus(MOVED))
    nodes = [
        node
        for node in toy_circuit().nodes
        if not (node.submodule == "attn_0" and node.feature in moved)
    ]
    assert evaluate(nodes)[2] == pytest.approx(0, abs=1e-12)


def test_the_toy_computes_what_it_says() -> None:
    model, inputs = toy_model(parallel=True), toy_inputs()
    streams: Tensor = model.record(inputs.clean).outputs["resid_1"][:, -1]
    # NUMBER, TENSE, MOVED, VERDICT, nothing, nothing.
    assert streams.tolist() == [[0, 1, 1, 3, 0, 0], [0, -1, -1, -1, 0, 0]]
    assert toy_effects().metric_clean.tolist() == list(M_CLEAN)
