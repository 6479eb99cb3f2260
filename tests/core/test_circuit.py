"""From effects to circuits: aggregation, thresholds, batches."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from core.circuit import attribute, examples_per_batch, find_circuit
from core.effects import node_effects
from core.errors import InputError
from core.estimators import Attribution, Enough, Estimator, Exact, IntegratedGradients
from core.inputs import Inputs
from core.types import ERROR, Circuit
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries, random_tokens

THRESHOLDS: dict[str, Any] = {"node_threshold": 0.1, "edge_threshold": 0.02}


def circuit_of(inputs: Inputs, family: str = "gpt_neox", **options: Any) -> Circuit:
    model = make_model(family)
    return find_circuit(model, random_dictionaries(model), inputs, **(THRESHOLDS | options))


def as_numbers(circuit: Circuit, column: str = "") -> dict[tuple[Any, ...], float]:
    """Every node's effect and every edge's weight, or another column of both, by name."""
    names = [(node.submodule, node.feature, node.pos) for node in circuit.nodes]
    numbers: dict[tuple[Any, ...], float] = {
        name: getattr(n, column or "effect") for name, n in zip(names, circuit.nodes, strict=True)
    }
    for edge in circuit.edges:
        ends = (names[edge.upstream], None if edge.downstream is None else names[edge.downstream])
        numbers[ends] = getattr(edge, column or "weight")
    assert len(numbers) == len(circuit.nodes) + len(circuit.edges)
    return numbers


@cache
def found_whole(make: Callable[[int], Inputs], by_position: bool) -> Circuit:
    return circuit_of(make(5), by_position=by_position)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("make", [make_pairs, make_single])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_circuit_does_not_depend_on_the_batches_it_was_found_in(
    batch_size: int, make: Any, by_position: bool
) -> None:
    whole = found_whole(make, by_position)
    parts = circuit_of(make(5), by_position=by_position, batch_size=batch_size)
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
        "readout": "logits, last token",
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


# -- over examples ---------------------------------------------------------------------------------


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    n = len(values)
    mean = sum(values) / n
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


EVERY: dict[str, Any] = {"node_threshold": 0.0, "edge_threshold": 0.0}


@cache
def of_one_example_each(family: str, by_position: bool) -> list[dict[Any, float]]:
    inputs = [make_pairs(4).select(torch.tensor([i])) for i in range(4)]
    return [as_numbers(circuit_of(one, family, **EVERY, by_position=by_position)) for one in inputs]


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_standard_errors_are_those_of_runs_of_one_example_each(
    batch_size: int | None, family: str, by_position: bool
) -> None:
    whole = circuit_of(
        make_pairs(4), family, **EVERY, by_position=by_position, batch_size=batch_size
    )
    ones = of_one_example_each(family, by_position)
    effects, stderr = as_numbers(whole), as_numbers(whole, "stderr")
    assert len(stderr) > 100
    expected = [spread([one.get(name, 0.0) for one in ones]) for name in effects]
    ours = [(effect, stderr[name]) for name, effect in effects.items()]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


def test_one_example_has_no_standard_error() -> None:
    circuit = circuit_of(make_pairs(1))
    assert len(circuit.nodes) > 5
    assert {n.stderr for n in circuit.nodes} == {e.stderr for e in circuit.edges} == {None}
    assert circuit.stability is None


def test_stability_is_the_jaccard_index_of_circuits_from_either_half() -> None:
    inputs = make_pairs(5)
    halves = [
        {n.name for n in circuit_of(inputs.select(torch.tensor(rows))).nodes}
        for rows in ([0, 2, 4], [1, 3])
    ]
    expected = len(halves[0] & halves[1]) / len(halves[0] | halves[1])
    assert 0 < expected < 1
    for batch_size in (None, 1, 2):
        assert circuit_of(inputs, batch_size=batch_size).stability == expected


def stabilities(inputs: Inputs, round_: int) -> Mapping[int, float | None]:
    """Agreement after so many examples."""
    sizes = range(round_, inputs.n_examples + 1, round_)
    first = {n: inputs.select(torch.arange(n)) for n in sizes}
    return {n: circuit_of(part).stability for n, part in first.items()}


def test_examples_are_added_until_the_circuit_is_stable() -> None:
    inputs = make_pairs(8)
    of_size = stabilities(inputs, 2)
    for wanted in (0.0, *(a for a in of_size.values() if a is not None)):
        used = next(n for n, a in of_size.items() if a is not None and a >= wanted)
        enough = Enough(wanted, THRESHOLDS["node_threshold"], 2)
        found = circuit_of(inputs, enough=enough)
        assert found.n_examples == used
        plain = circuit_of(inputs.select(torch.arange(used)))
        assert as_numbers(found) == pytest.approx(as_numbers(plain), abs=1e-12)
    assert len(set(of_size.values())) > 2
    never = Enough(1.0, THRESHOLDS["node_threshold"], 3)
    assert circuit_of(inputs, enough=never, batch_size=2).n_examples == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stability": 1.5}, r"stability 1\.5 is outside \[0, 1\]"),
        ({"stability": float("nan")}, "stability nan is outside"),
        ({"node_threshold": -1.0}, "node threshold -1.0 is below zero"),
        ({"round": 0}, "rounds of 0 examples"),
    ],
)
def test_what_can_never_be_enough_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Enough(**({"stability": 0.5, "node_threshold": 0.1} | options))
