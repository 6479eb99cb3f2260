"""Values computed by an independent brute-force programme (tests/golden/README.md), to 1e-10."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core.circuit import attribute, find_circuit
from core.dictionaries import Dictionary, ReLU, identity_dictionary
from core.edges import edge_effects
from core.effects import Effects, node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import Inputs
from core.metrics import NegativeLogit
from core.models import LanguageModel, load_model
from core.options import ErrorNodes
from core.probe import Probe
from core.readout import Readout
from core.types import ERROR, Node, token_mask

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ("pair_by_position", "zero_summed", "pair_summed_no_embed", "pair_neurons", "probe_mean")
# The rule and the steps that theirs were computed with.
LEFT = IntegratedGradients(steps=10, rule="left")
# By their names.
ESTIMATORS = {"ig": LEFT, "attrib": Attribution(), "exact": Exact()}
# Their names for what happens to error nodes, ours for the same.
POLICIES: dict[str, ErrorNodes] = {
    "default": "circuit",
    "nb_remove": "drop",
    "nb_resid_only": "drop_but_resid",
    "remove": "remove",
    "keep": "keep",
}
EVALUATIONS = json.loads((GOLDEN / "faithfulness_by_position.json").read_text())["rows"]
SETTINGS = sorted({(r["handle_errors"], r["ablation"], r["start_layer"]) for r in EVALUATIONS})


@cache
def golden_model(name: str) -> LanguageModel:
    return load_model(str(GOLDEN / name), dtype="float64", device="cpu")


def golden_dictionary(weights: Mapping[str, Tensor], name: str) -> Dictionary:
    decoder = weights[f"{name}.decoder.weight"].T.contiguous()
    encoder, encoder_bias = weights[f"{name}.encoder.weight"], weights[f"{name}.encoder.bias"]
    bias = weights[f"{name}.bias"]
    return Dictionary(encoder, encoder_bias, decoder, bias, bias, ReLU())


@dataclass(frozen=True)
class Case:
    """One case: what was computed from what."""

    settings: dict[str, Any]
    values: dict[str, Tensor]
    model: LanguageModel
    dictionaries: dict[str, Dictionary]
    inputs: Inputs

    @property
    def by_position(self) -> bool:
        return self.settings["aggregation"] == "none"

    @property
    def of_pairs(self) -> bool:
        return self.settings["ablation"] == "patch"


@cache
def load_case(name: str) -> Case:
    settings = json.loads((GOLDEN / f"{name}.json").read_text())
    values = load_file(GOLDEN / f"{name}.safetensors")
    weights = load_file(GOLDEN / settings["model"] / "saes.safetensors")
    names = [key.removeprefix("nodes/") for key in values if key.startswith("nodes/")]
    if settings.get("dictionary") == "identity":
        dictionaries = dict.fromkeys(names, identity_dictionary(32, dtype=torch.float64))
    else:
        dictionaries = {name: golden_dictionary(weights, name) for name in names}
    if settings["metric"] == "probe margin":
        readout = Readout(settings["readout"]["site"], settings["readout"]["pool"])
        probe = Probe(values["weight"], float(values["bias"]))
        inputs = probe.inputs(values["tokens"], values["labels"], readout, values["mask"].bool())
        return Case(settings, values, golden_model(settings["model"]), dictionaries, inputs)
    clean, answer = values["clean"], values["clean_answer"]
    if settings["metric"] == "logit_diff":
        inputs = Inputs.pairs(clean, values["patch"], answer, values["patch_answer"])
    else:
        inputs = Inputs(clean, token_mask(clean, None), NegativeLogit(answer))
    return Case(settings, values, golden_model(settings["model"]), dictionaries, inputs)


@cache
def golden_effects(name: str, estimator: Estimator = LEFT) -> Effects:
    case = load_case(name)
    return node_effects(case.model, case.dictionaries, case.inputs, estimator=estimator)


def assert_same(ours: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(ours, golden, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "estimator"),
    # There are no golden exact effects of neurons.
    [(n, e) for n in CASES for e in ESTIMATORS if (n, e) != ("pair_neurons", "exact")],
)
def test_node_effects_are_the_golden_ones(name: str, estimator: str) -> None:
    case, effects = load_case(name), golden_effects(name, ESTIMATORS[estimator])
    for submodule in case.dictionaries:
        golden = f"effects/{estimator}/{submodule}"
        found = effects[submodule]
        assert_same(found.features.to_dense(), case.values[f"{golden}/features"])
        assert_same(found.error, case.values[f"{golden}/error"])


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_the_golden_ones(name: str) -> None:
    case, effects = load_case(name), golden_effects(name)
    assert_same(effects.metric_clean, case.values["metric_clean"])
    if case.of_pairs:
        assert effects.metric_patch is not None
        total = effects.metric_patch - effects.metric_clean
        assert_same(total, case.values["total_effect"])
    else:
        assert effects.metric_patch is None


@pytest.mark.parametrize("name", CASES)
def test_aggregated_nodes_are_the_golden_ones(name: str) -> None:
    case = load_case(name)
    found = attribute(
        case.model, case.dictionaries, case.inputs, estimator=LEFT, by_position=case.by_position
    ).effects
    assert set(found.nodes) == set(case.dictionaries)
    for submodule, nodes in found.nodes.items():
        assert_same(nodes, case.values[f"nodes/{submodule}"])


def golden_edges(case: Case, kind: tuple[str, str]) -> Tensor:
    """Downstream node by upstream node, positions folded into nodes where they are apart."""
    key = f"edges/{kind[0]}->{kind[1]}"
    if key in case.values:
        return case.values[key]
    dense = torch.zeros(case.values[f"{key}/shape"].tolist(), dtype=torch.float64)
    dense[tuple(case.values[f"{key}/index"].long())] = case.values[f"{key}/weight"]
    return dense.flatten(0, 1).flatten(1, 2) if case.by_position else dense


@pytest.mark.parametrize("name", CASES)
def test_edges_are_the_golden_ones(name: str) -> None:
    case = load_case(name)
    found = edge_effects(
        case.model, case.dictionaries, golden_effects(name), by_position=case.by_position
    )
    keys = [key.split("/") for key in case.values if key.startswith("edges/")]
    assert {"->".join(kind) for kind in found} == {key[1] for key in keys}
    n_edges = 0
    for kind, edges in found.items():
        golden = golden_edges(case, kind)
        ours = torch.zeros_like(golden)
        ours[edges.downstream, edges.upstream] = edges.weight / case.inputs.n_examples
        assert_same(ours, golden)
        n_edges += int((golden != 0).sum())
    assert n_edges == case.settings.get("edges", n_edges) > 0


@pytest.mark.parametrize("threshold", [0.02, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_a_circuit_is_what_the_golden_nodes_and_edges_leave_above_the_thresholds(
    name: str, threshold: float
) -> None:
    case = load_case(name)
    circuit = find_circuit(
        case.model,
        case.dictionaries,
        case.inputs,
        node_threshold=threshold,
        edge_threshold=threshold / 2,
        by_position=case.by_position,
        estimator=LEFT,
    )
    golden = {}
    for submodule in case.dictionaries:
        effects = case.values[f"nodes/{submodule}"]
        golden |= {(submodule, *at): float(effects[tuple(at)]) for at in effects.nonzero().tolist()}
    kept = {key: effect for key, effect in golden.items() if abs(effect) > threshold}
    ours = {_golden_key(case, node): node.effect for node in circuit.nodes}
    assert ours == pytest.approx(kept, abs=1e-10)
    weights = {}
    for upstream, downstream, weight, _ in circuit.edges:
        ends = circuit.nodes[upstream], None if downstream is None else circuit.nodes[downstream]
        weights[tuple(None if node is None else _golden_key(case, node) for node in ends)] = weight
    assert weights == pytest.approx(_golden_weights(case, kept, threshold / 2), abs=1e-10)


def _golden_key(case: Case, node: Node) -> tuple[Any, ...]:
    n_features = case.dictionaries[node.submodule].n_features
    feature = n_features if node.feature == ERROR else node.feature
    return (node.submodule, feature) if node.pos is None else (node.submodule, node.pos, feature)


def _golden_weights(case: Case, kept: Mapping[tuple[Any, ...], float], threshold: float):
    last = case.inputs.readout.end(case.model.n_layers).name
    weights: dict[tuple[Any, ...], float] = {
        (key, None): effect for key, effect in kept.items() if key[0] == last
    }
    for key in {key.split("/")[1] for key in case.values if key.startswith("edges/")}:
        upstream, downstream = key.split("->")
        for at, weight in _golden_entries(case, f"edges/{key}"):
            half = len(at) // 2
            ends = (upstream, *at[half:]), (downstream, *at[:half])
            if all(end in kept for end in ends) and abs(weight) > threshold:
                weights[ends] = weight
    return weights


def _golden_entries(case: Case, key: str) -> Iterator[tuple[list[int], float]]:
    """Where edges of one kind are not zero, and their weights."""
    if key in case.values:
        dense = case.values[key]
        index, weight = dense.nonzero(), dense[dense != 0]
    else:
        index, weight = case.values[f"{key}/index"].T, case.values[f"{key}/weight"]
    return zip(index.tolist(), weight.tolist(), strict=True)


@pytest.mark.parametrize(("policy", "ablation", "start_layer"), SETTINGS)
def test_evaluations_are_the_golden_ones(policy: str, ablation: str, start_layer: int) -> None:
    case = load_case("pair_by_position")
    tokens = load_file(GOLDEN / "faithfulness_by_position.safetensors")
    inputs = Inputs.pairs(**tokens)
    effects = {name: case.values[f"nodes/{name}"] for name in case.dictionaries}
    evaluator = Evaluator(
        case.model,
        case.dictionaries,
        inputs,
        ablation=ablation,
        start_layer=max(0, start_layer),
    )
    key = (policy, ablation, start_layer)
    rows = [r for r in EVALUATIONS if (r["handle_errors"], r["ablation"], r["start_layer"]) == key]
    assert len(rows) == 9
    for row in rows:
        evaluation = evaluator.evaluate(_nodes_above(effects, row["threshold"]), POLICIES[policy])
        assert evaluation.n_nodes == row["n_nodes"]
        # Their metric is the clean answer's logit minus the patch answer's: ours, turned round.
        for name in ("m_full", "m_empty", "m_circuit", "m_complement"):
            assert -getattr(evaluation, name) == pytest.approx(row[name], abs=1e-10)
        assert evaluation.faithfulness == pytest.approx(row["faithfulness"], abs=1e-10)
        assert evaluation.completeness == pytest.approx(row["completeness"], abs=1e-10)


def _nodes_above(effects: Mapping[str, Tensor], threshold: float) -> list[Node]:
    nodes = []
    for name, values in effects.items():
        for pos, feature in (values.abs() > threshold).nonzero().tolist():
            feature_or_error = ERROR if feature == values.shape[1] - 1 else feature
            nodes.append(Node(name, feature_or_error, pos, float(values[pos, feature])))
    return nodes


# -- negative controls ---------------------------------------------------------------------------


def test_the_first_steps_gradient_used_for_every_step_is_not_golden() -> None:
    """Integrated gradients that silently are attribution patching."""
    case, wrong = load_case("pair_by_position"), golden_effects("pair_by_position", Attribution())
    golden = case.values["effects/ig/mlp_1/features"]
    assert float((wrong["mlp_1"].features.to_dense() - golden).abs().max()) > 1e-3


def test_edges_read_with_upstream_and_downstream_swapped_are_not_golden() -> None:
    case = load_case("zero_summed")
    found = edge_effects(case.model, case.dictionaries, golden_effects("zero_summed"))
    for kind, edges in found.items():
        golden = golden_edges(case, kind)
        swapped = torch.zeros_like(golden)
        swapped[edges.upstream, edges.downstream] = edges.weight / case.inputs.n_examples
        assert float((swapped - golden).abs().max()) > 1e-2


def test_the_midpoint_rule_is_not_the_golden_left_one() -> None:
    case = load_case("pair_by_position")
    found = attribute(case.model, case.dictionaries, case.inputs, by_position=True).effects
    golden = case.values["nodes/resid_0"]
    assert float((found.nodes["resid_0"] - golden).abs().max()) > 1e-4
