"""A kind of dictionary that core has never heard of: everything it takes is in this file."""

from dataclasses import dataclass
from typing import Self

import pytest
import torch
from torch import Tensor

from core.dictionaries import Activation, Dictionary
from core.dictionaries.activations import Index, at
from core.dictionaries.files import fingerprint, load_dictionary, save_dictionary
from core.dictionaries.formats import save_as_dictionary_learning, save_as_saelens
from core.dictionaries.transform import scaled, with_unit_decoder
from core.effects import node_effects
from core.errors import FormatError
from core.estimators import Exact
from core.training import TrainingSettings, train_dictionaries
from core.training.entries import Entries, entries_of
from core.training.kinds import Pass, Squared
from core.training.weights import Weights
from tests.core.reference import Reference, patch_values
from tests.core.test_edges import assert_matches_jacobian
from tests.core.tiny import N_FEATURES, D, make_model, make_pairs, random_dictionary
from tests.core.training.sources import sparse_mixtures


@dataclass(frozen=True)
class Leaky(Activation, name="leaky"):
    """f = pre - knee above the knee, leak times that below.

    Attributes:
        knee: ``(feature,)``.
        leak: between 0 and 1.
    """

    knee: Tensor
    leak: float

    def __call__(self, pre: Tensor, index: Index | None = None) -> Tensor:
        past = pre - at(self.knee, index)
        return torch.where(past > 0, past, self.leak * past)

    def scaled(self, factor: float | Tensor) -> Self:
        return self.with_tensors({"knee": self.knee * factor})

    def slope(self, value: Tensor, index: Index | None = None) -> Tensor:
        return torch.where(value > 0, 1.0, self.leak).to(value.dtype)


class LeakyKind(Squared, name="leaky"):
    """Trained by its squared error alone, from a knee at zero."""

    leak = 0.01

    def entries(self, weights: Weights, pre: Tensor) -> Entries:
        return entries_of(torch.ones_like(pre, dtype=torch.bool))

    def value(self, weights: Weights, entries: Entries, at: Tensor) -> Tensor:
        return torch.where(at > 0, at, self.leak * at)

    def encoder_gradient(
        self, p: Pass, weights: Weights, gradient: Weights, d_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        return p.error.new_zeros(()), torch.where(p.at > 0, d_value, self.leak * d_value)

    def activation(self, weights: Weights, state) -> Activation:
        return Leaky(torch.zeros_like(weights.encoder_bias), self.leak)


def leaky(d: int = D, seed: int = 0) -> Dictionary:
    plain = random_dictionary(d, seed)
    knee = 0.3 * torch.randn(N_FEATURES, generator=torch.Generator().manual_seed(seed)).double()
    return Dictionary(**plain.weights(), activation=Leaky(knee, 0.125))


def rows() -> Tensor:
    return torch.randn(40, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_is_saved_and_loaded(tmp_path):
    save_dictionary(leaky(), tmp_path / "a.safetensors")
    loaded = load_dictionary(tmp_path / "a.safetensors")
    assert fingerprint(loaded) == fingerprint(leaky())
    assert isinstance(loaded.activation, Leaky)
    assert loaded.activation.leak == 0.125


def test_it_moves_to_another_number_type():
    narrow = leaky().to(dtype=torch.float32)
    assert {tensor.dtype for tensor in narrow.tensors().values()} == {torch.float32}
    assert set(narrow.tensors()) == {*narrow.weights(), "activation.knee"}


def test_it_is_scaled():
    x, dictionary = rows(), leaky()
    features = dictionary.encode(x)
    torch.testing.assert_close(scaled(dictionary, 8.0).encode(8 * x), 8 * features)
    shrunk = Dictionary(
        **(dictionary.weights() | {"decoder": dictionary.decoder / 3}),
        activation=dictionary.activation,
    )
    unit = with_unit_decoder(shrunk)
    torch.testing.assert_close(unit.encode(x), features / 3)
    torch.testing.assert_close(unit.decode(unit.encode(x)), shrunk.decode(features))


def test_its_slope_is_autograds():
    pre = rows()[:, :1].expand(-1, N_FEATURES).clone().requires_grad_()
    value = leaky().activation(pre)
    (derivative,) = torch.autograd.grad(value.sum(), pre)
    index = torch.arange(N_FEATURES)
    torch.testing.assert_close(leaky().slope(value.detach(), index), derivative, rtol=0, atol=0)
    assert set(derivative.unique().tolist()) == {0.125, 1.0}


def test_its_exact_effects_are_interventions_on_the_whole_model():
    model, inputs = make_model("gpt2"), make_pairs(2, 3)
    dictionary, reference = leaky(), Reference(make_model("gpt2"))
    effects = node_effects(model, {"resid_0": dictionary}, inputs, estimator=Exact())
    patched, _ = patch_values(reference, inputs, {"resid_0": dictionary})["resid_0"]

    def with_one_feature_patched(x: Tensor) -> Tensor:
        features = dictionary.encode(x)
        change = torch.zeros_like(features)
        change[:, 1, 5] = (patched - features)[:, 1, 5]
        return x + change @ dictionary.decoder

    clean = reference.run(inputs).metric
    found = reference.run(inputs, {"resid_0": with_one_feature_patched}).metric - clean
    effect = effects["resid_0"].features.to_dense()[:, 1, 5]
    assert float(effect.abs().min()) > 1e-6
    torch.testing.assert_close(effect, found.detach(), rtol=0, atol=1e-10)


def test_its_edges_match_the_jacobian():
    model = make_model("gpt2")
    names = ["resid_0", "attn_1", "mlp_1", "resid_1"]
    dictionaries = {name: leaky(seed=seed) for seed, name in enumerate(names)}
    assert_matches_jacobian(model, make_pairs(2, 3), dictionaries)


def test_it_is_trained():
    settings = TrainingSettings(
        kind="leaky",
        n_features=24,
        n_steps=200,
        batch_size=256,
        learning_rate=1e-2,
        warmup_steps=10,
    )
    source = sparse_mixtures()
    for name, trained in train_dictionaries(source, settings).items():
        assert isinstance(trained.dictionary.activation, Leaky)
        x = source.values[name]
        error = x - trained.dictionary.decode(trained.dictionary.encode(x))
        assert 1 - float(error.var(0).sum() / x.var(0).sum()) > 0.8


def test_no_two_kinds_have_one_name():
    with pytest.raises(TypeError, match="'leaky' is Leaky already"):
        type("Leakier", (Leaky,), {}, name="leaky")


@pytest.mark.parametrize("write", [save_as_dictionary_learning, save_as_saelens])
def test_other_projects_formats_say_that_they_cannot_hold_it(tmp_path, write):
    with pytest.raises(FormatError, match="leaky"):
        write(leaky(), tmp_path)
