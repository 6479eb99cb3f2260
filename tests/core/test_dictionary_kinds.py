"""What every kind of dictionary promises: its parts add up, its slope is autograd's."""

import pytest
import torch

from core.dictionaries import (
    Dictionary,
    Gated,
    JumpReLU,
    ReLU,
    TopK,
    check_widths,
    identity_dictionary,
)
from core.effects import node_effects
from core.errors import MissingSubmodule, NotFinite, WidthMismatch
from core.estimators import Attribution
from tests.core.tiny import KINDS, D, make_model, make_pairs, random_dictionary

N_TOKENS = 40


def activations(n: int = N_TOKENS) -> torch.Tensor:
    return torch.randn(1, n, D, dtype=torch.float64)


def neurons() -> Dictionary:
    return identity_dictionary(D, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_error_add_up_to_what_was_encoded(kind: str) -> None:
    dictionary, x = random_dictionary(D, 0, kind=kind), activations()
    act = dictionary.split(x)
    features = act.features.to_dense()
    torch.testing.assert_close(features, dictionary.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(dictionary.decode(features) + act.error, x, rtol=0, atol=1e-12)
    assert 0 < len(act.features.value) < features.numel() / 2
    assert float(act.error.abs().mean()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_some_features_alone_are_encoded_as_among_all(kind: str) -> None:
    dictionary, x = random_dictionary(D, 0, kind=kind), activations()
    index = torch.tensor([5, 2, 17])
    torch.testing.assert_close(
        dictionary.encode(x, index), dictionary.encode(x)[..., index], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_is_autograds_derivative_of_the_feature(kind: str) -> None:
    """At a generic point, where no pre-activation lies on a threshold."""
    dictionary = random_dictionary(D, 0, kind=kind)
    pre = torch.randn(N_TOKENS, dictionary.n_features, dtype=torch.float64, requires_grad=True)
    value = dictionary.activation(pre)
    (derivative,) = torch.autograd.grad(value.sum(), pre)
    slope = dictionary.slope(value.detach(), torch.arange(dictionary.n_features))
    torch.testing.assert_close(slope, derivative, rtol=0, atol=1e-14)
    assert 0 < int((slope != 0).sum()) < slope.numel()


def test_relu_is_the_papers_formula() -> None:
    dictionary, x = random_dictionary(D, 0), activations()
    pre = (x - dictionary.bias) @ dictionary.encoder.T + dictionary.encoder_bias
    torch.testing.assert_close(dictionary.encode(x), pre.clamp(min=0), rtol=0, atol=1e-13)
    features = dictionary.encode(x)
    decoded = features @ dictionary.decoder + dictionary.bias
    torch.testing.assert_close(dictionary.decode(features), decoded, rtol=0, atol=0)


def test_topk_keeps_the_k_largest_positive_pre_activations() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, 5.0, 4.0], [-1.0, -2.0, 1.0, -3.0, -4.0]])
    expected = [[3.0, 0.0, 0.0, 5.0, 4.0], [0.0, 0.0, 1.0, 0.0, 0.0]]
    assert TopK(3)(pre).tolist() == expected
    assert TopK(50)(pre).tolist() == pre.clamp(min=0).tolist()


def test_jumprelu_passes_what_exceeds_its_threshold_as_it_is() -> None:
    pre = torch.tensor([0.5, 1.0, 1.5, -2.0])
    assert JumpReLU(torch.ones(4))(pre).tolist() == [0.0, 0.0, 1.5, 0.0]
    assert JumpReLU(torch.tensor([9.0, 0.0]))(pre[1:3], torch.tensor([1, 1])).tolist() == [1, 1.5]


def test_gated_features_open_by_their_gate_and_measure_by_their_magnitude() -> None:
    gated = Gated(torch.tensor([0.0, -1.0]), torch.tensor([2.0, 2.0]), torch.tensor([0.5, 0.5]))
    # Pre-activation 0.75: the first gate is open (0.75), the second closed (-0.25).
    assert gated(torch.tensor([0.75, 0.75])).tolist() == [2.0, 0.0]
    # An open gate over a negative magnitude gives nothing either.
    shut = Gated(torch.tensor([5.0]), torch.tensor([2.0]), torch.tensor([0.5]))
    assert shut(torch.tensor([-1.0])).tolist() == [0.0]


def test_the_identitys_features_are_the_neurons_and_its_error_is_zero() -> None:
    x = activations()
    act = neurons().split(x)
    torch.testing.assert_close(act.features.to_dense(), x, rtol=0, atol=0)
    assert not act.error.any()


def test_effects_of_identity_features_are_the_neurons_own() -> None:
    model, inputs = make_model("gpt2"), make_pairs()
    assert inputs.patch is not None
    dictionaries = dict.fromkeys(model.submodules, neurons())
    effects = node_effects(model, dictionaries, inputs, estimator=Attribution())
    clean, patch = model.record(inputs.clean).outputs, model.record(inputs.patch).outputs
    for name, found in effects.submodules.items():
        assert not found.error.any()
        own = found.gradient * (patch[name] - clean[name])
        torch.testing.assert_close(found.features.to_dense(), own, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_type_and_back_is_the_same_dictionary(kind: str) -> None:
    dictionary = random_dictionary(D, 0, kind=kind)
    narrow = dictionary.to(dtype=torch.float32)
    assert {t.dtype for t in narrow.tensors().values()} == {torch.float32}
    assert type(narrow.activation) is type(dictionary.activation)
    x = activations()
    # A generic point: rounding does not flip a feature.
    torch.testing.assert_close(
        narrow.encode(x).double(), dictionary.encode(x), rtol=1e-4, atol=1e-4
    )


def test_sparse_decoding_is_dense_decoding() -> None:
    dictionary = random_dictionary(D, 0)
    x = activations()
    x[0, 3] = dictionary.input_bias - 50 * dictionary.encoder.sum(0)  # few features, if any
    sparse = dictionary.encode_sparse(x)
    dense = dictionary.decode(dictionary.encode(x))
    torch.testing.assert_close(dictionary.decode_sparse(sparse), dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        dictionary.decode_sparse(sparse, bias=False), dense - dictionary.bias, rtol=0, atol=1e-12
    )


def test_encoding_in_parts_is_encoding_at_once() -> None:
    dictionary, x = random_dictionary(D, 0), activations(1200)
    torch.testing.assert_close(
        dictionary.encode_sparse(x).to_dense(), dictionary.encode(x), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(bad: float) -> None:
    x = activations()
    x[0, 3, 4] = bad
    with pytest.raises(NotFinite, match=r"NaN or infinity"):
        random_dictionary(D, 0).encode_sparse(x)


def test_a_transposed_matrix_is_refused() -> None:
    zero = torch.zeros(D)
    with pytest.raises(WidthMismatch, match=r"decoder must be.*transposed"):
        Dictionary(torch.ones(24, D), torch.zeros(24), torch.ones(D, 24), zero, zero, ReLU())


def test_widths_are_checked_against_the_models() -> None:
    model = make_model("llama", True)
    wide, narrow = random_dictionary(16, 0), random_dictionary(D, 0)
    check_widths({"attn_0": wide, "mlp_0": narrow}, model.width)
    with pytest.raises(WidthMismatch, match=r"'attn_0' reads vectors of width 12.*width 16"):
        check_widths({"attn_0": narrow}, model.width)
    with pytest.raises(MissingSubmodule, match=r"'attn_9'.*layers 0 to 1"):
        check_widths({"attn_9": narrow}, model.width)
