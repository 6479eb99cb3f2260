"""Narrow number types: close to float64, and in float32 throughout where dictionaries are."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from core.circuit import attribute, find_circuit
from core.dictionaries import Dictionary
from core.edges import edge_effects
from core.effects import node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.evaluate import evaluate_circuit
from core.models import LanguageModel
from core.types import Node
from tests.core.tiny import make_hf, make_model, make_pairs, make_single, random_dictionaries

FAMILIES = ("gpt_neox", "gpt2", "llama", "gemma3_text")


def narrow(
    family: str, dtype: torch.dtype, attn_input: bool = False
) -> tuple[LanguageModel, dict[str, Dictionary]]:
    """The same model in another type, with float32 dictionaries."""
    model = LanguageModel(make_hf(family).to(dtype), attn_input=attn_input)
    wide = random_dictionaries(make_model(family, attn_input))
    return model, {name: d.to(dtype=torch.float32) for name, d in wide.items()}


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Relative to the size of all effects together."""
    difference = torch.stack([(ours[n].double() - theirs[n]).norm() for n in theirs]).norm()
    return float(difference / torch.stack([value.norm() for value in theirs.values()]).norm())


@pytest.mark.parametrize("attn_input", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)], ids=["f32", "bf16"]
)
def test_effects_in_narrow_types_are_close(
    family: str, dtype: torch.dtype, tolerance: float, attn_input: bool
) -> None:
    wide = make_model(family, attn_input)
    model, dictionaries = narrow(family, dtype, attn_input)
    theirs = attribute(wide, random_dictionaries(wide), make_pairs()).effects
    ours = attribute(model, dictionaries, make_pairs()).effects
    assert all(value.dtype == torch.float32 for value in ours.nodes.values())
    assert distance(ours.nodes, theirs.nodes) < tolerance
    assert ours.metric_clean == pytest.approx(theirs.metric_clean, abs=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.25)], ids=["f32", "bf16"]
)
def test_edges_in_narrow_types_are_close(dtype: torch.dtype, tolerance: float) -> None:
    def dense(model: LanguageModel, dictionaries: dict[str, Dictionary]) -> dict[str, Tensor]:
        effects = node_effects(
            model, dictionaries, make_pairs(), estimator=IntegratedGradients(steps=4)
        )
        found = {}
        for kind, edges in edge_effects(model, dictionaries, effects).items():
            assert edges.weight.dtype == dictionaries["mlp_0"].decoder.dtype
            block = torch.zeros(25, 25, dtype=torch.float64)
            block[edges.downstream, edges.upstream] = edges.weight.double()
            found["->".join(kind)] = block
        return found

    wide = make_model("gpt_neox_sequential")
    theirs = dense(wide, random_dictionaries(wide))
    assert distance(dense(*narrow("gpt_neox_sequential", dtype)), theirs) < tolerance


@pytest.mark.parametrize("ablation", ["mean", "zero", "resample"])
def test_a_bfloat16_model_is_evaluated_with_float32_dictionaries(ablation: str) -> None:
    wide = make_model("gpt_neox")
    nodes = [Node(name, i, None, 1.0) for name in wide.submodules for i in range(-1, 12)]
    theirs = evaluate_circuit(
        wide, random_dictionaries(wide), nodes, make_pairs(), ablation=ablation
    )
    model, dictionaries = narrow("gpt_neox", torch.bfloat16)
    ours = evaluate_circuit(model, dictionaries, nodes, make_pairs(), ablation=ablation)
    for name in ("m_full", "m_empty", "m_circuit", "m_complement"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=0.15)


@pytest.mark.parametrize("estimator", [IntegratedGradients(), Attribution(), Exact()])
def test_every_estimator_runs_in_bfloat16_and_says_how_complete_it_is(estimator: Estimator) -> None:
    model, dictionaries = narrow("gpt_neox", torch.bfloat16)
    circuit = find_circuit(
        model,
        dictionaries,
        make_single(),
        node_threshold=0.1,
        edge_threshold=0.1,
        estimator=estimator,
        edges=estimator.has_gradients,
    )
    assert circuit.nodes
    finite = [value == value for value in circuit.gaps.values()]
    assert all(finite) if estimator.has_gradients else not any(finite)


def test_the_gap_of_a_bfloat16_model_is_that_of_its_rule_not_of_rounding() -> None:
    """Differences of large numbers are taken in a type that holds them."""
    wide, inputs = make_model("gpt_neox"), make_pairs()
    theirs = node_effects(
        wide, random_dictionaries(wide), inputs, estimator=IntegratedGradients(rule="left")
    )
    model, dictionaries = narrow("gpt_neox", torch.bfloat16)
    ours = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(rule="left"))
    for name, at in ours.submodules.items():
        assert at.gradient.dtype == torch.float32
        total = at.features.total() + at.error.sum(1)
        expected = theirs[name].features.total() + theirs[name].error.sum(1)
        torch.testing.assert_close(total.double(), expected, rtol=0.1, atol=0.15)
