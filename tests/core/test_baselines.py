"""Neurons, hidden neurons and random directions, each against another way to the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core.baselines import mlp_neurons, neurons, random_directions
from core.circuit import find_circuit
from core.dictionaries import identity_dictionary
from core.dictionaries.random import random_dictionary
from core.edges import edge_effects
from core.effects import node_effects
from core.errors import MissingSubmodule
from core.estimators import IntegratedGradients
from core.evaluate import Evaluator, evaluate_circuit
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import Node
from tests.core.tiny import (
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    rounding,
)
from tests.core.tiny import (
    random_dictionary as drawn,
)

STEPS = IntegratedGradients(3)


def every_neuron(basis: Any) -> list[Node]:
    return [
        Node(name, i, None, 1.0)
        for name, dictionary in basis.dictionaries.items()
        for i in range(dictionary.n_features)
    ]


def with_hidden(model: LanguageModel, inputs: Inputs, value: dict[str, Tensor]) -> float:
    """The mean metric with every down projection of the model reading `value`."""
    handles = [
        model._down_proj(name).register_forward_pre_hook(
            lambda _module, args, value=at: (value.expand_as(args[0]).contiguous(),)
        )
        for name, at in value.items()
    ]
    try:
        logits = model.hf(inputs.clean, attention_mask=inputs.mask.long()).logits
    finally:
        for handle in handles:
            handle.remove()
    last = logits[torch.arange(inputs.n_examples), inputs.last]
    columns = inputs.metric.tokens
    return float(inputs.metric(last if columns is None else last.gather(1, columns)).mean())


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "gemma2", "falcon_rw"])
def test_hidden_neurons_are_the_model_when_kept_and_means_or_zeros_when_not(family: str) -> None:
    model = make_model(family)
    basis = mlp_neurons(model)
    names = list(basis.dictionaries)
    for inputs in (make_pairs(), make_single()):
        evaluator = Evaluator(basis.model, basis.dictionaries, inputs)
        whole = evaluator.evaluate(every_neuron(basis))
        assert (whole.faithfulness, whole.completeness) == pytest.approx((1, 0), abs=1e-9)
        assert whole.m_circuit == pytest.approx(whole.m_full, abs=rounding(family))
        if inputs.patch is None:
            off = {name: torch.zeros(1, dtype=torch.float64) for name in names}
        else:
            off = {n: h.mean(0) for n, h in model.neurons(inputs.patch, names).items()}
        hooked = with_hidden(model, inputs, off)
        assert whole.m_empty == pytest.approx(hooked, abs=rounding(family))


def test_neurons_are_identity_dictionaries_evaluated_like_any_other() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    names = ["attn_0", "mlp_1", "resid_1"]
    basis = neurons(model, names)
    identity = {name: identity_dictionary(model.d_model, dtype=torch.float64) for name in names}
    found = find_circuit(
        model, identity, inputs, node_threshold=0, edge_threshold=0, edges=False, estimator=STEPS
    )
    nodes = basis.measure(inputs, estimator=STEPS)
    assert nodes == list(found.nodes)
    half = nodes[::2]
    mine = Evaluator(model, basis.dictionaries, inputs).evaluate(half)
    assert mine == evaluate_circuit(model, identity, half, inputs)


def test_edges_from_hidden_neurons_add_up_to_those_from_what_the_mlp_adds() -> None:
    """Down projections are linear: whichever way a change is split, its sum is the same."""
    model, inputs = make_model("gpt2"), make_pairs()
    into = {}
    for basis in (neurons(model, ["mlp_1", "resid_1"]), mlp_neurons(model)):
        stream = {"resid_1": identity_dictionary(model.d_model, dtype=torch.float64)}
        dictionaries = {"mlp_1": basis.dictionaries["mlp_1"], **stream}
        effects = node_effects(basis.model, dictionaries, inputs, estimator=STEPS)
        edges = edge_effects(basis.model, dictionaries, effects)["mlp_1", "resid_1"]
        total = torch.zeros(model.d_model + 1, dtype=torch.float64)
        into[basis.model.mlp_input] = total.index_add(0, edges.downstream, edges.weight)
    torch.testing.assert_close(into[True], into[False])
    assert float(into[True].abs().max()) > 1e-3


def test_a_mixture_of_experts_has_no_hidden_neurons_that_are_known() -> None:
    with pytest.raises(MissingSubmodule, match="no hidden neurons that are known"):
        mlp_neurons(make_model("mixtral"))


def test_random_directions_are_unit_rows_as_sparse_as_the_dictionary() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    like = drawn(12, 5)
    found = random_dictionary(like, x, seed=2)
    norms = found.decoder.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    n_active = (like.encode(x) != 0).double().sum(1).mean()
    assert (found.encode(x) != 0).double().sum(1).mean() == pytest.approx(float(n_active), abs=0.5)
    # The scale is the best one, and the directions are the encoder's.
    scale = (found.encoder / found.decoder).mean()
    torch.testing.assert_close(found.encoder, scale * found.decoder)

    def missed(factor: float) -> float:
        part = found.encode(x) @ found.decoder * factor
        return float((x - found.bias - part).square().sum())

    assert missed(1) < min(missed(0.99), missed(1.01))
    assert torch.equal(random_dictionary(like, x, seed=2).decoder, found.decoder)
    assert not torch.equal(random_dictionary(like, x, seed=3).decoder, found.decoder)


def test_with_random_directions_all_or_nothing_is_as_with_the_dictionaries() -> None:
    model, inputs = make_model("gpt_neox"), make_single()
    dictionaries = random_dictionaries(model)
    basis = random_directions(model, dictionaries, inputs)
    found = Evaluator(model, basis.dictionaries, inputs).evaluate(every_neuron(basis), "keep")
    trained = Evaluator(model, dictionaries, inputs).evaluate([])
    assert found.faithfulness == pytest.approx(1, abs=1e-10)
    assert found.m_empty == pytest.approx(trained.m_empty, abs=1e-10)
