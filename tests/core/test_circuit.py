"""From effects to circuits: aggregation, thresholds, batches."""

from typing import Any

import pytest
import torch

from core.circuit import attribute, examples_per_batch, find_circuit
from core.effects import node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.inputs import Inputs
from core.types import ERROR, Circuit
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries, random_tokens

THRESHOLDS: dict[str, Any] = {"node_threshold": 0.1, "edge_threshold": 0.02}


def circuit_of(inputs: Inputs, family: str = "gpt_neox", **options: Any) -> Circuit:
    model = make_model(family)
    return find_circuit(model, random_dictionaries(model), inputs, **(THRESHOLDS | options))


def as_numbers(circuit: Circuit) -> dict[tuple[Any, ...], float]:
    """Every node's effect and every edge's weight, by name."""
    names = [(node.submodule, node.feature, node.pos) for node in circuit.nodes]
    numbers: dict[tuple[Any, ...], float] = {
        name: n.effect for name, n in zip(names, circuit.nodes, strict=True)
    }
    for upstream, downstream, weight in circuit.edges:
        ends = (names[upstream], None if downstream is None else names[downstream])
        numbers[ends] = weight
    assert len(numbers) == len(circuit.nodes) + len(circuit.edges)
    return numbers


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("make", [make_pairs, make_single])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_circuit_does_not_depend_on_the_batches_it_was_found_in(
    batch_size: int, make: Any, by_position: bool
) -> None:
    inputs = make(5)
    whole = circuit_of(inputs, by_position=by_position)
    parts = circuit_of(inputs, by_position=by_position, batch_size=batch_size)
    assert len(whole.nodes) > 10
    assert len(whole.edges) > 10
    assert as_numbers(parts) == pytest.approx(as_numbers(whole), abs=1e-12)
    assert parts.metric_clean == pytest.approx(whole.metric_clean, abs=1e-12)
    assert parts.metric_patch == pytest.approx(whole.metric_patch, abs=1e-12)
    assert parts.gaps == pytest.approx(whole.gaps, abs=1e-12)
    assert parts.n_examples == whole.n_examples == 5


def test_batches_of_unequal_lengths_give_the_circuit_of_the_whole() -> None:
    tokens, mask = random_tokens(4, 6, 1), torch.ones(4, 6, dtype=torch.bool)
    mask[0, 2:] = mask[1, 5:] = False
    inputs = Inputs.single(tokens, random_tokens(1, 4, 3)[0], mask)
    whole, parts = circuit_of(inputs), circuit_of(inputs, batch_size=1)
    assert as_numbers(parts) == pytest.approx(as_numbers(whole), abs=1e-12)


def test_a_circuit_does_not_depend_on_the_memory_it_was_given() -> None:
    inputs = make_pairs(4)
    model = make_model("gpt_neox")
    small = 24 * 1024
    assert examples_per_batch(model, random_dictionaries(model), 5, small) == 1
    assert as_numbers(circuit_of(inputs, budget_bytes=small)) == pytest.approx(
        as_numbers(circuit_of(inputs)), abs=1e-12
    )


def test_the_same_call_gives_the_same_circuit_to_the_last_bit() -> None:
    assert circuit_of(make_pairs()) == circuit_of(make_pairs())


def test_effects_summed_over_positions_are_the_sum_of_those_by_position() -> None:
    model = make_model("llama")
    dictionaries, inputs = random_dictionaries(model), make_single()
    summed = attribute(model, dictionaries, inputs).effects
    apart = attribute(model, dictionaries, inputs, by_position=True).effects
    for name, effects in apart.nodes.items():
        assert effects.shape == (5, 25)
        torch.testing.assert_close(effects.sum(0), summed.nodes[name], rtol=0, atol=1e-12)


def test_aggregated_effects_are_means_over_examples_with_the_error_last() -> None:
    model = make_model("gpt2")
    dictionaries, inputs = random_dictionaries(model), make_pairs()
    effects = node_effects(model, dictionaries, inputs)
    found = attribute(model, dictionaries, inputs).effects
    for name, at in effects.submodules.items():
        features = at.features.to_dense().sum(1).mean(0)
        expected = torch.cat([features, at.error.sum(1).mean(0, keepdim=True)])
        torch.testing.assert_close(found.nodes[name], expected, rtol=0, atol=1e-12)
    assert found.gaps["mlp_0"] == pytest.approx(float(effects["mlp_0"].gap.abs().mean()), abs=1e-12)


@pytest.mark.parametrize("make", [make_pairs, make_single])
@pytest.mark.parametrize("estimator", [IntegratedGradients(), Attribution(), Exact()])
def test_a_patch_that_changes_nothing_has_no_effects(make: Any, estimator: Estimator) -> None:
    inputs = make()
    same = Inputs(inputs.clean, inputs.mask, inputs.metric, patch=inputs.clean)
    circuit = circuit_of(
        same, estimator=estimator, edges=estimator.has_gradients, node_threshold=0, edge_threshold=0
    )
    assert circuit.nodes == ()
    assert circuit.edges == ()
    assert circuit.metric_patch == circuit.metric_clean


def test_thresholds_are_strict() -> None:
    model = make_model("gpt_neox")
    dictionaries, inputs = random_dictionaries(model), make_pairs()
    found = attribute(model, dictionaries, inputs).effects
    everything = torch.cat([effects.flatten() for effects in found.nodes.values()]).abs()
    at_a_node = float(everything.sort().values[-10])
    assert found.n_kept(at_a_node) == 9
    assert len(circuit_of(inputs, node_threshold=at_a_node, edges=False).nodes) == 9


def test_edges_join_kept_nodes_and_exceed_their_own_threshold() -> None:
    loose, strict = circuit_of(make_pairs(), edge_threshold=0.0), circuit_of(make_pairs())
    kept = {pair: weight for pair, weight in as_numbers(loose).items() if len(pair) == 3}
    strong = {p: w for p, w in as_numbers(loose).items() if len(p) == 2 and abs(w) > 0.02}
    assert as_numbers(strict) == pytest.approx(kept | strong, abs=1e-12)
    assert len(strict.edges) < len(loose.edges)


def test_a_higher_threshold_is_computed_afresh_and_named_in_the_circuit() -> None:
    """The authors' code takes thresholds from file names, and so another circuit than was asked."""
    low, high = circuit_of(make_pairs()), circuit_of(make_pairs(), node_threshold=0.5)
    kept = {(n.submodule, n.feature): n.effect for n in low.nodes if abs(n.effect) > 0.5}
    assert {(n.submodule, n.feature): n.effect for n in high.nodes} == pytest.approx(kept)
    assert len(high.nodes) < len(low.nodes)
    assert (low.settings["node_threshold"], high.settings["node_threshold"]) == (0.1, 0.5)


def test_nodes_are_in_causal_order_and_every_edge_goes_forward() -> None:
    circuit = circuit_of(make_pairs(), by_position=True)
    order = [make_model("gpt_neox").submodules.index(node.submodule) for node in circuit.nodes]
    assert order == sorted(order)
    for edge in circuit.edges:
        if edge.downstream is not None:
            upstream, downstream = circuit.nodes[edge.upstream], circuit.nodes[edge.downstream]
            assert edge.upstream < edge.downstream
            assert upstream.pos is not None
            assert downstream.pos is not None
            assert upstream.pos <= downstream.pos


def test_the_last_streams_nodes_reach_the_metric_with_their_own_effects() -> None:
    circuit = circuit_of(make_pairs())
    into_metric = {e.upstream: e.weight for e in circuit.edges if e.downstream is None}
    last = {i: n.effect for i, n in enumerate(circuit.nodes) if n.submodule == "resid_1"}
    assert into_metric == last
    assert last


def test_a_circuit_knows_what_it_was_made_with() -> None:
    circuit = circuit_of(
        make_single(),
        estimator=IntegratedGradients(steps=4, rule="gauss"),
        settings={"model": "tiny"},
        tokens=("a", "b"),
    )
    assert circuit.settings == {
        "model": "tiny",
        "metric": "-log P(answer), nats",
        "ablation": "zero",
        "estimator": "ig(gauss, 4)",
        "node_threshold": 0.1,
        "edge_threshold": 0.02,
        "by_position": False,
    }
    assert circuit.tokens == ("a", "b")
    assert circuit.metric_patch is None


def test_progress_is_told_about_nodes_and_edges() -> None:
    told: list[str] = []
    circuit = circuit_of(make_pairs(), progress=told.append)
    assert any(str(len(circuit.nodes)) in message for message in told)
    assert any(str(len(circuit.edges)) in message for message in told)


def test_submodules_without_a_dictionary_have_no_nodes() -> None:
    model, names = make_model("gpt_neox"), ["attn_0", "resid_1"]
    circuit = find_circuit(
        model, random_dictionaries(model, names=names), make_pairs(), **THRESHOLDS
    )
    assert {node.submodule for node in circuit.nodes} == set(names)
    assert all(edge.downstream is None for edge in circuit.edges)


def test_an_error_node_is_named_so_and_a_feature_by_its_number() -> None:
    circuit = circuit_of(make_pairs(), by_position=True)
    error = next(node for node in circuit.nodes if node.feature == ERROR)
    feature = next(node for node in circuit.nodes if node.feature != ERROR)
    assert error.name == f"{error.pos}, {error.submodule}/error"
    assert feature.name == f"{feature.pos}, {feature.submodule}/{feature.feature}"
    summed = circuit_of(make_pairs()).nodes[0]
    assert summed.name == f"{summed.submodule}/{summed.feature}"
