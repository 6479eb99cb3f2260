"""Edges of every family against the full Jacobian, taken by autograd through the whole model."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.budget import Passes
from core.dictionaries import Dictionary, Linear, identity_dictionary
from core.edges import EdgeEffects, edge_effects, edge_kinds
from core.effects import Effects, node_effects
from core.estimators import IntegratedGradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import SubmoduleEffects
from tests.core.reference import Change, Leaves, Reference, between
from tests.core.tiny import (
    FAMILY_NAMES,
    KINDS,
    PARALLEL,
    VARIANTS,
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    rounding,
)

Dictionaries = Mapping[str, Dictionary]


def node_values(dictionary: Dictionary, found: SubmoduleEffects, y: Tensor) -> Tensor:
    """z of eq. 5 for every node of a submodule putting out y, ``(batch, pos, feature + 1)``."""
    features = dictionary.encode(y)
    error = y - dictionary.decode(features)
    gradients = found.gradient @ dictionary.decoder.T
    of_error = (found.gradient * error).sum(-1, keepdim=True)
    return torch.cat([gradients * features, of_error], -1)


def node_changes(found: SubmoduleEffects) -> tuple[Tensor, Tensor]:
    """Change of every feature and of the error, dense."""
    return found.change.features.to_dense(), found.change.error


def jacobian_edges(
    model: LanguageModel, inputs: Inputs, dictionaries: Dictionaries, effects: Effects, kind
) -> Tensor:
    """All edges between two submodules, a derivative of each downstream node.

    Everything is kept apart: ``(batch, pos_d, node_d, pos_u, node_u)``.
    """
    upstream, downstream = kind
    leaf = Leaves(dictionaries[upstream])
    cut = {name: Tensor.detach for name in between(upstream, downstream)}
    run = Reference(model).run(inputs, {upstream: leaf, **cut})
    z = node_values(dictionaries[downstream], effects[downstream], run.values[downstream])
    features, error = node_changes(effects[upstream])
    nodes = z.sum(0).flatten()  # examples do not meet
    of_features, of_error = torch.autograd.grad(
        nodes,
        [leaf.features, leaf.error],
        torch.eye(len(nodes), dtype=nodes.dtype),
        is_grads_batched=True,
    )
    of_error = (of_error * error).sum(-1, keepdim=True)
    rows = torch.cat([of_features * features, of_error], -1).transpose(0, 1)
    return rows.unflatten(1, z.shape[1:])


def dense_edges(found: EdgeEffects, n_down: int, n_up: int) -> Tensor:
    dense = found.weight.new_zeros(n_down, n_up)
    dense[found.downstream, found.upstream] = found.weight
    return dense


def assert_matches_jacobian(
    model: LanguageModel, inputs: Inputs, dictionaries: Dictionaries
) -> None:
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    summed = edge_effects(model, dictionaries, effects)
    apart = edge_effects(model, dictionaries, effects, by_position=True)
    assert list(summed) == list(edge_kinds(model, dictionaries))
    for kind in summed:
        brute = jacobian_edges(model, inputs, dictionaries, effects, kind).sum(0)
        n_pos, n_down, _, n_up = brute.shape
        ours = dense_edges(summed[kind], n_down, n_up)
        assert float(brute.abs().max()) > 1e-3
        torch.testing.assert_close(ours, brute.sum((0, 2)), rtol=0, atol=1e-10)
        ours = dense_edges(apart[kind], n_pos * n_down, n_pos * n_up)
        brute = brute.flatten(0, 1).flatten(1, 2)
        torch.testing.assert_close(ours, brute, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_every_edge_matches_the_jacobian_by_brute_force(family: str, attn_input: bool) -> None:
    model = make_model(family, attn_input)
    inputs = make_pairs(2, 3)
    # Layer 1 reads a stream with features of its own; layer 0 only the embedding.
    names = [name for name in model.submodules if name.endswith("1")] + ["resid_0"]
    assert_matches_jacobian(model, inputs, random_dictionaries(model, names=sorted(names)))


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_edges_out_of_the_embedding_match_the_jacobian(family: str) -> None:
    model = make_model(family)
    dictionaries = random_dictionaries(model, names=["embed", "attn_0", "mlp_0", "resid_0"])
    assert_matches_jacobian(model, make_single(2, 3), dictionaries)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_match_the_jacobian_with_dictionaries_of_every_kind(kind: str) -> None:
    model = make_model("gpt_neox_sequential")
    dictionaries = random_dictionaries(model, kind=kind, names=["resid_0", "attn_1", "mlp_1"])
    assert_matches_jacobian(model, make_pairs(2, 3), dictionaries)


def test_edges_between_neurons_match_the_jacobian() -> None:
    model = make_model("gpt2")
    names = ["resid_0", "attn_1", "mlp_1", "resid_1"]
    neurons = {name: identity_dictionary(model.d_model, dtype=torch.float64) for name in names}
    assert_matches_jacobian(model, make_pairs(2, 3), neurons)


def pushed_forward(
    model: LanguageModel, inputs: Inputs, dictionaries: Dictionaries, effects: Effects, kind
) -> Tensor:
    """Derivative of every downstream node along the upstream change, ``(feature + 1,)``."""
    upstream, downstream = kind
    features, error = node_changes(effects[upstream])
    change = features @ dictionaries[upstream].decoder + error
    reference = Reference(model)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        changes: dict[str, Change] = {name: Tensor.detach for name in between(upstream, downstream)}
        changes[upstream] = lambda x: forward_ad.make_dual(x.detach(), change)
        y = reference.run(inputs, changes).values[downstream]
        z = node_values(dictionaries[downstream], effects[downstream], y)
        tangent = forward_ad.unpack_dual(z).tangent
    assert tangent is not None
    return tangent.sum((0, 1))


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_edges_into_a_node_sum_to_its_derivative_along_the_upstream_change(
    family: str, attn_input: bool
) -> None:
    model, inputs = make_model(family, attn_input), make_pairs(3, 5)
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    for kind, found in edge_effects(model, dictionaries, effects).items():
        forward = pushed_forward(model, inputs, dictionaries, effects, kind)
        into = torch.zeros_like(forward).index_add_(0, found.downstream, found.weight)
        torch.testing.assert_close(into, forward, rtol=0, atol=rounding(family))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_attention_feeds_the_mlp_of_its_layer_only_in_sequential_models(family: str) -> None:
    model = make_model(family)
    kinds = set(edge_kinds(model, dict.fromkeys(model.submodules)))
    inside = {(f"attn_{layer}", f"mlp_{layer}") for layer in range(2)}
    parallel = family in PARALLEL
    assert kinds & inside == (set() if parallel else inside)
    assert len(kinds) == (10 if parallel else 12)


def test_a_layer_without_a_dictionary_before_it_has_no_edges_from_there() -> None:
    model = make_model("gpt_neox")
    kinds = set(edge_kinds(model, dict.fromkeys(["attn_0", "mlp_0", "resid_0", "mlp_1"])))
    assert kinds == {("mlp_0", "resid_0"), ("attn_0", "resid_0"), ("resid_0", "mlp_1")}


def test_chosen_nodes_have_the_edges_they_have_among_all() -> None:
    model, inputs = make_model("qwen3"), make_pairs()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    everything = edge_effects(model, dictionaries, effects)
    keep = {name: torch.tensor([1, 5, 7, 11, 24]) for name in dictionaries}
    del keep["mlp_0"]
    chosen = edge_effects(model, dictionaries, effects, keep=keep)
    for kind, found in everything.items():
        dense = dense_edges(found, 25, 25)
        kept = torch.zeros_like(dense, dtype=torch.bool)
        if "mlp_0" not in kind:
            kept[keep[kind[1]][:, None], keep[kind[0]]] = True
        torch.testing.assert_close(
            dense_edges(chosen[kind], 25, 25), dense * kept, rtol=0, atol=1e-12
        )


def test_edges_out_of_and_into_error_nodes_are_not_zero() -> None:
    """Their gradient is easily read after it was cleared."""
    model, inputs = make_model("gpt_neox"), make_pairs()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    for found in edge_effects(model, dictionaries, effects).values():
        dense = dense_edges(found, 25, 25)
        assert float(dense[:, -1].abs().max()) > 1e-3
        assert float(dense[-1].abs().max()) > 1e-3


def test_the_stream_passes_a_feature_on_at_its_own_token_by_its_decoder_and_encoder() -> None:
    """resid to resid is the identity: gradient . W_e[j] . W_d[i] . change, no other position."""
    model, inputs = make_model("llama"), make_pairs()
    dictionaries = random_dictionaries(model, names=["resid_0", "resid_1"])
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    found = edge_effects(model, dictionaries, effects, by_position=True)["resid_0", "resid_1"]
    assert bool((found.upstream // 25 == found.downstream // 25).all())
    up, down = effects["resid_0"], effects["resid_1"]
    u, d = dictionaries["resid_0"], dictionaries["resid_1"]
    gain = (down.gradient @ d.decoder.T) * (down.clean.features.to_dense() > 0)
    weight = torch.einsum(
        "bpj,ji,bpi->pji", gain, d.encoder @ u.decoder.T, up.change.features.to_dense()
    )
    dense = dense_edges(found, 125, 125).unflatten(0, (5, 25)).unflatten(2, (5, 25))
    ours = torch.stack([dense[pos, :24, pos, :24] for pos in range(5)])
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("by_position", [False, True])
def test_edges_do_not_depend_on_how_they_are_cut_into_passes(
    monkeypatch: pytest.MonkeyPatch, by_position: bool, passes: int
) -> None:
    model, inputs = make_model("gpt2", True), make_pairs()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=2))
    whole = edge_effects(model, dictionaries, effects, by_position=by_position)
    monkeypatch.setattr("core.edges._BLOCK", 500)
    monkeypatch.setattr(
        "core.edges.plan_passes", lambda *_args: Passes(passes, torch.device("cpu"))
    )
    cut = edge_effects(model, dictionaries, effects, by_position=by_position)
    width = 125 if by_position else 25
    for kind, found in whole.items():
        torch.testing.assert_close(
            dense_edges(cut[kind], width, width),
            dense_edges(found, width, width),
            rtol=0,
            atol=1e-12,
        )


def test_a_linear_basis_of_lower_rank_leaves_an_error_with_edges() -> None:
    model = make_model("gpt_neox")
    basis = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q[:5]
    zero = torch.zeros(12, dtype=torch.float64)
    linear = Dictionary(basis, zero[:5], basis, zero, zero, Linear())
    dictionaries = dict.fromkeys(["resid_0", "mlp_1", "resid_1"], linear)
    assert_matches_jacobian(model, make_pairs(2, 3), dictionaries)
