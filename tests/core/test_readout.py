"""Metrics read at any site and pooled in either way, against hooks on the whole model."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from core.ablate import ablated, ablation_values
from core.circuit import attribute, find_circuit
from core.dictionaries import Dictionary, identity_dictionary
from core.edges import edge_effects, edge_kinds
from core.effects import node_effects
from core.errors import InputError, MissingSubmodule
from core.estimators import Attribution, Exact, IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import Inputs
from core.models import LanguageModel
from core.probe import Probe
from core.readout import Readout
from core.types import ERROR, Node
from tests.core.reference import Reference
from tests.core.test_edges import dense_edges, jacobian_edges
from tests.core.test_evaluate import all_nodes, by_hand, some_nodes
from tests.core.tiny import (
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    random_tokens,
    rounding,
)

# Every kind of site, both poolings; parallel, sequential, and with learned positions.
PLACES = [
    ("gpt_neox", "resid_0", "mean"),
    ("gpt_neox", "resid_1", "mean"),
    ("gpt_neox", "mlp_1", "mean"),
    ("gpt_neox", "logits", "mean"),
    ("gpt2", "embed", "mean"),
    ("gpt2", "resid_0", "last"),
    ("gpt2", "attn_1", "last"),
    ("gpt2", "mlp_1", "mean"),
    ("gpt2", "mlp_1", "last"),
    ("gemma2", "resid_1", "mean"),
    ("falcon_7b", "mlp_0", "last"),
]
PADDING = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()


def read_at(model: LanguageModel, site: str, pooling: str, n_pos: int = 5) -> Inputs:
    """Three padded texts whose metric is read there: a probe's margin, or log odds of an answer."""
    mask = PADDING[:, :n_pos]
    if site == "logits":
        single = make_single(n_pos=n_pos)
        return replace(single, mask=mask, readout=Readout(site, pooling))
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(model.width(site), generator=generator, dtype=torch.float64)
    tokens, label = random_tokens(3, n_pos, 1), torch.tensor([1, 0, 1])
    return Probe(weight, 0.3).inputs(tokens, label, Readout(site, pooling), mask)


def reached(model: LanguageModel, site: str) -> list[str]:
    """The submodules that a site can see, spelled out."""
    if site == "logits":
        return model.submodules
    names = model.submodules[: model.submodules.index(site) + 1]
    parallel_mlp = site.startswith("mlp") and model.parallel
    return [name for name in names if not (parallel_mlp and name == site.replace("mlp", "attn"))]


@pytest.mark.parametrize(("family", "site", "pooling"), PLACES)
def test_gradients_are_those_of_the_whole_models_own_run(
    family: str, site: str, pooling: str
) -> None:
    model = make_model(family)
    inputs, dictionaries = read_at(model, site, pooling), random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=Attribution())
    assert list(effects) == reached(model, site)
    run = Reference(model).run(inputs, {"embed": lambda x: x.requires_grad_()})
    torch.testing.assert_close(
        effects.metric_clean, run.metric.detach(), rtol=0, atol=rounding(family)
    )
    gradients = torch.autograd.grad(run.metric.sum(), [run.values[name] for name in effects])
    for at, gradient in zip(effects.values(), gradients, strict=True):
        real = inputs.mask[..., None] * gradient
        torch.testing.assert_close(
            at.gradient * inputs.mask[..., None], real, rtol=0, atol=rounding(family)
        )


@pytest.mark.parametrize(("family", "site", "pooling"), PLACES)
def test_exact_effects_are_what_intervening_on_the_whole_model_does(
    family: str, site: str, pooling: str
) -> None:
    model = make_model(family)
    inputs, dictionaries = read_at(model, site, pooling), random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=Exact())
    reference = Reference(model)
    for name, at in effects.items():
        change, feature = at.change.features, int(at.change.features.feature.mode().values)
        for pos in (0, 2):
            moved = change.to_dense()[:, pos, feature, None] * dictionaries[name].decoder[feature]
            x = partial(_moved, pos=pos, by=moved)
            with torch.no_grad():
                theirs = reference.run(inputs, {name: x}).metric - effects.metric_clean
            ours = at.features.to_dense()[:, pos, feature]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding(family))


def _moved(x: Tensor, *, pos: int, by: Tensor) -> Tensor:
    x = x.clone()
    x[:, pos] += by
    return x


@pytest.mark.parametrize(("family", "site", "pooling"), PLACES)
def test_edges_are_those_of_the_whole_models_jacobian(family: str, site: str, pooling: str) -> None:
    model = make_model(family)
    inputs = read_at(model, site, pooling, n_pos=3)
    names = [name for name in model.submodules if name != "mlp_0"]
    dictionaries = random_dictionaries(model, names=names)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    found = edge_effects(model, dictionaries, effects)
    seen = [name for name in reached(model, site) if name in dictionaries]
    assert list(found) == list(edge_kinds(model, dict.fromkeys(seen)))
    # One kind into each submodule keeps the Jacobians few.
    for kind in {downstream: (up, downstream) for up, downstream in found}.values():
        brute = jacobian_edges(model, inputs, dictionaries, effects, kind).sum((0, 1, 3))
        ours = dense_edges(found[kind], *brute.shape)
        torch.testing.assert_close(ours, brute, rtol=0, atol=rounding(family))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize(("site", "pooling"), [("resid_0", "mean"), ("attn_1", "last")])
def test_every_node_of_the_site_reaches_the_metric_with_its_own_effect(
    site: str, pooling: str, by_position: bool
) -> None:
    model = make_model("gpt2")
    inputs = replace(read_at(model, site, pooling), mask=torch.ones(3, 5, dtype=torch.bool))
    circuit = find_circuit(
        model,
        random_dictionaries(model),
        inputs,
        node_threshold=0.0,
        edge_threshold=0.0,
        by_position=by_position,
    )
    into = {circuit.nodes[e.upstream]: e.weight for e in circuit.edges if e.downstream is None}
    own = {node: node.effect for node in circuit.kept(site)}
    assert into == own
    if by_position:
        positions = {node.pos for node in own}
        assert positions == ({0, 1, 2, 3, 4} if pooling == "mean" else {4})
    assert circuit.settings["readout"] == inputs.readout.name


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize(("family", "site", "pooling"), [p for p in PLACES if p[1] != "embed"])
def test_circuits_are_judged_as_hooks_on_the_whole_model_judge_them(
    family: str, site: str, pooling: str, ablation: str
) -> None:
    model = make_model(family)
    inputs = replace(read_at(model, site, pooling), mask=torch.ones(3, 5, dtype=torch.bool))
    every = random_dictionaries(model)
    seen = {name: every[name] for name in reached(model, site)}
    nodes = some_nodes(model)
    rest = [node for node in all_nodes(model) if node not in nodes]
    found = Evaluator(model, every, inputs, ablation=ablation).evaluate(
        [node for node in nodes if node.submodule in seen]
    )
    for ours, kept in (
        (found.m_circuit, nodes),
        (found.m_complement, rest),
        (found.m_empty, []),
        (found.m_full, all_nodes(model)),
    ):
        hooked = by_hand(model, seen, inputs, kept, ablation)
        assert ours == pytest.approx(hooked, abs=rounding(family))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_neither_padding_nor_its_side_changes_anything(pooling: str) -> None:
    model = make_model("gpt2")
    dictionaries = random_dictionaries(model)
    inputs = read_at(model, "resid_1", pooling)
    left = torch.zeros_like(inputs.clean)
    for row, mask in enumerate(PADDING):
        left[row, 5 - int(mask.sum()) :] = inputs.clean[row, mask]
    turned = replace(inputs, clean=left, mask=PADDING.flip(1))
    both = [attribute(model, dictionaries, i).effects.nodes for i in (inputs, turned)]
    alone = [
        attribute(model, dictionaries, inputs.select(torch.tensor([i]))).effects.nodes
        for i in range(3)
    ]
    for name in dictionaries:
        torch.testing.assert_close(both[0][name], both[1][name], rtol=0, atol=1e-12)
        mean = sum(one[name] for one in alone) / 3
        torch.testing.assert_close(both[0][name], mean, rtol=0, atol=1e-12)


def test_layers_behind_the_site_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2")
    inputs, dictionaries = read_at(model, "resid_0", "mean"), random_dictionaries(model)
    expected = node_effects(model, dictionaries, inputs).metric_clean

    def late(*_: object, **__: object) -> None:
        raise AssertionError("a layer behind the site was run")

    monkeypatch.setattr(model.layers[1], "forward", late)
    monkeypatch.setattr(model.final_norm, "forward", late)
    effects = node_effects(model, dictionaries, inputs)
    edge_effects(model, dictionaries, effects)
    evaluator = Evaluator(model, dictionaries, inputs)
    assert evaluator.m_full == pytest.approx(float(expected.mean()), abs=1e-12)


def test_neurons_are_nodes_of_a_readout_too() -> None:
    model = make_model("gpt_neox")
    inputs = read_at(model, "resid_0", "mean")
    neurons = {n: identity_dictionary(model.width(n), dtype=torch.float64) for n in ("resid_0",)}
    effects = node_effects(model, neurons, inputs, estimator=Exact())["resid_0"]
    outputs = model.record(inputs.clean, inputs.mask, until=0).outputs
    assert list(outputs) == ["embed", "attn_0", "mlp_0", "resid_0"]
    sign, weight = 2 * torch.tensor([1, 0, 1]) - 1, inputs.metric.weight
    share = inputs.mask.double() / inputs.mask.sum(1, keepdim=True)
    # Zeroing a neuron takes its part out of the mean.
    by_hand = (sign[:, None] * share)[..., None] * outputs["resid_0"] * weight
    torch.testing.assert_close(effects.features.to_dense(), by_hand, rtol=0, atol=1e-12)


def test_what_cannot_be_read_is_refused() -> None:
    model = make_model("gpt_neox")
    with pytest.raises(InputError, match="reads columns of the unembedding"):
        replace(make_pairs(), readout=Readout("resid_0"))
    with pytest.raises(InputError, match="pooling 'max' is not one of last, mean"):
        Readout("resid_0", "max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MissingSubmodule, match="names no submodule"):
        Readout("layer 3")
    inputs = read_at(model, "resid_0", "mean")
    late = replace(inputs, readout=Readout("resid_7", "mean"))
    with pytest.raises(MissingSubmodule, match="layers 0 to 1"):
        node_effects(model, random_dictionaries(model), late)
    with pytest.raises(MissingSubmodule, match="no dictionary sits there or before it"):
        node_effects(model, random_dictionaries(model, names=["resid_1"]), inputs)
    with pytest.raises(InputError, match="start layer 1"):
        Evaluator(model, random_dictionaries(model), inputs, start_layer=1)


# -- ablated runs ---------------------------------------------------------------------------------


def hooked(dictionaries: Mapping[str, Dictionary], nodes: list[Node]) -> dict[str, object]:
    """Changes of a `Reference` that set some nodes to zero."""

    def change(name: str) -> object:
        own = [node.feature for node in nodes if node.submodule == name]
        dictionary = dictionaries[name]

        def zeroed(x: Tensor) -> Tensor:
            features = dictionary.encode(x)
            error = x - dictionary.decode(features)
            features[..., [f for f in own if f != ERROR]] = 0
            return dictionary.decode(features) + (0 if ERROR in own else error)

        return zeroed

    return {name: change(name) for name in {node.submodule for node in nodes}}


@pytest.mark.parametrize("attn_input", [False, True])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "gemma2", "falcon_7b"])
def test_streams_of_an_ablated_run_are_those_of_hooks_by_hand(
    family: str, attn_input: bool
) -> None:
    model = make_model(family, attn_input)
    dictionaries, inputs = random_dictionaries(model), make_single()
    nodes = some_nodes(model)
    before = model.record(inputs.clean).outputs["resid_1"]
    with ablated(model, dictionaries, nodes):
        outputs = model.record(inputs.clean).outputs
    with torch.no_grad():
        run = Reference(model).run(inputs, hooked(dictionaries, nodes))  # pyright: ignore
    for name in model.submodules:
        torch.testing.assert_close(outputs[name], run.values[name], rtol=0, atol=rounding(family))
    assert float((outputs["resid_1"] - before).abs().max()) > 0.1
    torch.testing.assert_close(model.record(inputs.clean).outputs["resid_1"], before)


def test_text_is_generated_with_nodes_ablated_as_if_each_token_were_read_afresh() -> None:
    model = make_model("gpt2")
    dictionaries = random_dictionaries(model)
    nodes = [Node(name, feature, None, 0.0) for name in dictionaries for feature in range(0, 24, 3)]
    prompt = random_tokens(1, 4, 1)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.hf.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    with ablated(model, dictionaries, nodes) as hf:
        written = hf.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        again = prompt
        for _ in range(6):
            again = torch.cat([again, hf(again, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert written.tolist() == again.tolist() != plain.tolist()


def test_an_ablated_run_and_the_evaluation_of_the_rest_give_one_number() -> None:
    model = make_model("gpt_neox_sequential")
    dictionaries = random_dictionaries(model)
    inputs = read_at(model, "resid_1", "mean")
    nodes = [node for node in some_nodes(model) if node.submodule != "embed"]
    values = ablation_values(model, dictionaries, inputs, "mean", by_position=False)
    judged = Evaluator(model, dictionaries, inputs, ablation="mean").evaluate(nodes)
    with ablated(model, dictionaries, nodes, values=values):
        outputs = model.record(inputs.clean, inputs.mask, until=1).outputs
    pooled = inputs.readout.pool(outputs["resid_1"], inputs.mask)
    assert float(inputs.metric(pooled).mean()) == pytest.approx(judged.m_complement, abs=1e-10)


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (Node("mlp_1", 3, 2, 0.0), InputError, "at position 2"),
        (Node("mlp_1", 99, None, 0.0), InputError, "features 0 to 23"),
        (Node("mlp_1", -2, None, 0.0), InputError, "features 0 to 23"),
        (Node("resid_1", 3, None, 0.0), MissingSubmodule, "no dictionary sits at 'resid_1'"),
    ],
)
def test_nodes_that_cannot_be_ablated_everywhere_are_refused(
    node: Node, error: type[Exception], message: str
) -> None:
    model = make_model("gpt_neox")
    with (
        pytest.raises(error, match=message),
        ablated(model, random_dictionaries(model, names=["mlp_1"]), [node]),
    ):
        pass


def test_values_by_position_are_refused_for_texts_of_any_length() -> None:
    model = make_model("gpt_neox")
    dictionaries = random_dictionaries(model)
    values = ablation_values(model, dictionaries, make_single(), "mean")
    with (
        pytest.raises(InputError, match="by_position=False"),
        ablated(model, dictionaries, [Node("mlp_1", 3, None, 0.0)], values=values),
    ):
        pass
