"""One edge by intervention: on a toy by hand, and where the patch is hardly another input."""

from __future__ import annotations

import pytest
import torch

from core.circuit import attribute
from core.edge_interventions import EdgeInterventions, edge_interventions
from core.errors import InputError, MissingSubmodule
from core.estimators import Attribution
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import ERROR, Edge, Node
from tests.core.tiny import D, make_hf, make_model, make_pairs, random_dictionaries, random_tokens
from tests.toy import (
    MOVED,
    NUMBER,
    VERDICT,
    minus,
    plus,
    toy_dictionaries,
    toy_inputs,
    toy_model,
)


def nearly_alike(family: str) -> tuple[LanguageModel, Inputs]:
    """A model to which tokens i and 20 + i are almost one, and pairs that differ by that."""
    hf = make_hf(family)
    words = hf.get_input_embeddings().weight
    with torch.no_grad():
        words[20:40] = words[:20] + 1e-6 * torch.randn(20, D, dtype=words.dtype)
    clean, answers = random_tokens(2, 4, 1) % 20, random_tokens(2, 2, 3)
    return LanguageModel(hf), Inputs.pairs(clean, clean + 20, answers[0], answers[1])


@pytest.mark.parametrize(("family", "by_position"), [("gpt_neox", True), ("gpt2", False)])
def test_the_intervention_is_the_weight_where_the_patch_hardly_differs(
    family: str, by_position: bool
) -> None:
    model, inputs = nearly_alike(family)
    dictionaries = random_dictionaries(model)
    found = attribute(
        model, dictionaries, inputs, by_position=by_position, estimator=Attribution()
    ).circuit(node_threshold=1e-8, edge_threshold=1e-9)
    of_kind = {}
    for edge in found.edges:
        if edge.downstream is not None:
            up, down = found.nodes[edge.upstream], found.nodes[edge.downstream]
            of_kind.setdefault((up.submodule, down.submodule, up.is_error, down.is_error), edge)
    assert len(of_kind) > 30
    chosen = list(of_kind.values())
    measured = edge_interventions(
        model, dictionaries, inputs, found.nodes, chosen, estimator=Attribution()
    )
    weights = torch.tensor([edge.weight for edge in chosen], dtype=torch.float64)
    torch.testing.assert_close(measured.weight, weights, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(measured.path, weights, rtol=1e-3, atol=1e-11)
    torch.testing.assert_close(measured.effect, weights, rtol=1e-3, atol=1e-11)


# Upstream, downstream: weight, path and effect. m is -2 VERDICT - MOVED in example 1, where the
# number's + feature goes from 1 to 0, and 2 VERDICT + MOVED in example 2, where it goes from 0 to
# 1. On the way from clean to patch dm/dMOVED is -5 and 5 on average, dm/dVERDICT -2 and 2.
BY_HAND = {
    # MOVED goes to 0, which only the feature shows that was active: 1 less, 5 . 1 / 2. Alone it
    # takes m from -7 to 0, and from -3 to 0.
    ("embed", plus(NUMBER), "attn_0", plus(MOVED)): (2.5, 2.5, 7 / 2),
    ("embed", plus(NUMBER), "attn_0", minus(MOVED)): (2.5, 2.5, 3 / 2),
    # The MLP sees MOVED 1/4, or -1/4: VERDICT goes from 3 to 3/4, or from -1 to -1/4.
    ("resid_0", plus(MOVED), "mlp_1", plus(VERDICT)): (2.25, 2.25, 2.25),
    ("resid_0", plus(MOVED), "mlp_1", minus(VERDICT)): (0.75, 0.75, 0.75),
    # The error goes from 1/4 to -1/4: the MLP sees 1/2, VERDICT 3 to 3/2, or -1 to -1/2.
    ("resid_0", ERROR, "mlp_1", plus(VERDICT)): (1.5, 1.5, 1.5),
    # Beside the MLP.
    ("resid_0", ERROR, "resid_1", plus(MOVED)): (0.25, 0.25, 0.25),
    # The error is 1/4 wherever MOVED is above that: no derivative. But at MOVED 0 it is 0: 5 . 1/4,
    # and the MLP and the metric see 3/4: m from -7 to -5.25, and from -3 to -2.25.
    ("attn_0", plus(MOVED), "resid_0", ERROR): (0, 1.25, (1.75 + 0.75) / 2),
}


def test_on_a_toy_it_is_what_was_worked_out_by_hand() -> None:
    model, inputs = toy_model(parallel=True), toy_inputs()
    nodes = sorted({Node(*end, None, 0.0) for ends in BY_HAND for end in (ends[:2], ends[2:])})
    number = {(node.submodule, node.feature): i for i, node in enumerate(nodes)}
    edges = [Edge(number[ends[:2]], number[ends[2:]], 0.0) for ends in BY_HAND]
    measured = edge_interventions(model, toy_dictionaries(model), inputs, nodes, edges)
    by_hand = torch.tensor(list(BY_HAND.values()), dtype=torch.float64)
    torch.testing.assert_close(torch.stack(list(vars(measured).values()), 1), by_hand)


def test_the_mean_does_not_depend_on_how_many_examples_fit() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs(5, 4)
    dictionaries = random_dictionaries(model)
    nodes = [Node("resid_0", 3, None, 0.0), Node("attn_1", ERROR, None, 0.0)]
    edges = [Edge(0, 1, 0.0)]
    whole = edge_interventions(model, dictionaries, inputs, nodes, edges)
    single = [
        edge_interventions(model, dictionaries, inputs.select(torch.tensor([i])), nodes, edges)
        for i in range(5)
    ]
    few = edge_interventions(model, dictionaries, inputs, nodes, edges, budget_bytes=80_000)
    for name, values in vars(whole).items():
        alone = torch.stack([getattr(one, name) for one in single])
        torch.testing.assert_close(values, alone.mean(0))
        torch.testing.assert_close(values, getattr(few, name))


def test_what_is_no_edge_is_refused() -> None:
    model = make_model("gpt_neox")
    dictionaries = random_dictionaries(model, names=["resid_0", "resid_1"])
    nodes = [
        Node("resid_0", 0, None, 1.0),
        Node("resid_1", 0, None, 1.0),
        Node("mlp_1", 0, None, 1.0),
    ]

    def measure(*edges: Edge) -> EdgeInterventions:
        return edge_interventions(model, dictionaries, make_pairs(2, 4), nodes, edges)

    assert len(measure(Edge(0, 1, 1.0)).effect) == 1
    with pytest.raises(InputError, match="the node's own effect"):
        measure(Edge(1, None, 1.0))
    with pytest.raises(InputError, match="nodes of its circuit"):
        measure(Edge(0, 3, 1.0))
    with pytest.raises(InputError, match="no direct path joins resid_1/0 and resid_0/0"):
        measure(Edge(1, 0, 1.0))
    with pytest.raises(MissingSubmodule, match="no dictionary at mlp_1"):
        measure(Edge(0, 2, 1.0))
