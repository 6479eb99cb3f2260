"""Chosen nodes patched by hand: against hooks on the whole model, and against effects of all."""

import pytest
import torch

from core.effects import node_effects
from core.errors import InputError, MissingSubmodule
from core.estimators import Exact
from core.exact import patched_effects
from core.types import ERROR, Node
from tests.core.reference import Reference
from tests.core.tiny import make_model, make_pairs, make_single, random_dictionaries


def test_a_node_without_a_position_is_patched_at_every_position_at_once() -> None:
    model, inputs = make_model("gpt_neox"), make_single()
    dictionaries = random_dictionaries(model)
    found = node_effects(model, dictionaries, inputs, estimator=Exact())["mlp_0"]
    feature = int(found.change.features.feature[0])
    nodes = [Node("mlp_0", feature, None, 0.0), Node("mlp_0", ERROR, None, 0.0)]
    effects = patched_effects(model, dictionaries, inputs, nodes)
    reference, dictionary = Reference(model), dictionaries["mlp_0"]
    clean = reference.run(inputs).metric
    dense = found.change.features.to_dense()[..., feature, None]
    moves = [dense * dictionary.decoder[feature], found.change.error]
    for effect, move in zip(effects, moves, strict=True):
        by_hand = reference.run(inputs, {"mlp_0": move.add}).metric - clean
        torch.testing.assert_close(effect, by_hand, rtol=0, atol=1e-10)
    # Moved together, positions do not add up.
    one_by_one = found.error.sum(1)
    assert float((effects[1] - one_by_one).abs().max()) > 1e-3


@pytest.mark.parametrize("budget", [1 << 18, 2 << 30])
def test_a_node_with_a_position_has_the_exact_effect_of_that_position(budget: int) -> None:
    model, inputs = make_model("llama"), make_pairs()
    dictionaries = random_dictionaries(model)
    every = node_effects(model, dictionaries, inputs, estimator=Exact())
    pos = inputs.clean.shape[1] - 1
    nodes, expected = [], []
    for name in ("attn_0", "resid_1"):
        features = every[name].features.to_dense()[:, pos]
        strongest = int(features.abs().amax(0).argmax())
        nodes += [Node(name, strongest, pos, 0.0), Node(name, ERROR, pos, 0.0)]
        expected += [features[:, strongest], every[name].error[:, pos]]
    effects = patched_effects(model, dictionaries, inputs, nodes, budget_bytes=budget)
    torch.testing.assert_close(effects, torch.stack(expected), rtol=0, atol=1e-10)
    assert float(effects.abs().min(1).values.max()) > 0


def test_nodes_of_other_dictionaries_or_longer_inputs_are_refused() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    dictionaries = random_dictionaries(model, names=["mlp_0"])
    with pytest.raises(MissingSubmodule, match="node resid_0/3, but no dictionary"):
        patched_effects(model, dictionaries, inputs, [Node("resid_0", 3, None, 0.0)])
    n_features, n_pos = dictionaries["mlp_0"].n_features, inputs.clean.shape[1]
    for node in (Node("mlp_0", n_features, None, 0.0), Node("mlp_0", ERROR, n_pos, 0.0)):
        with pytest.raises(InputError, match=r"other dictionaries|take inputs of the circuit"):
            patched_effects(model, dictionaries, inputs, [node])
