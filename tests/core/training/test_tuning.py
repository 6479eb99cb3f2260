"""Tuning in series: what it improves, what it leaves, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.dictionaries import Dictionary, ReLU
from core.errors import InputError, WidthMismatch
from core.inputs import pad
from core.models import LanguageModel
from core.training import TuningSettings, tune_in_series
from tests.core.tiny import D, make_model, random_dictionary, random_tokens

CONTEXTS = random_tokens(30, 9, 4).tolist()
QUICK = TuningSettings(n_steps=60, learning_rate=0.02, sparsity=0.001, n_contexts=8, n_positions=8)


def trained(model: LanguageModel) -> dict[str, Dictionary]:
    """Dictionaries good enough to tune: a signed basis each, with a bias that silences."""
    eye = torch.eye(D, dtype=torch.float64)
    basis, zero = torch.cat([eye, -eye]), torch.zeros(D, dtype=torch.float64)
    silent = torch.full((2 * D,), -0.2, dtype=torch.float64)
    return {name: Dictionary(basis, silent, basis, zero, zero, ReLU()) for name in model.submodules}


def in_series(model: LanguageModel, dictionaries: dict[str, Dictionary]) -> Tensor:
    """Logits of a run through all dictionaries but the embedding's."""
    return run(model, dictionaries, 1.0)[0]


def run(
    model: LanguageModel, dictionaries: dict[str, Dictionary], share: float
) -> tuple[Tensor, Tensor]:
    """Logits of a run in which each keeps a share of its features, and their relative errors."""
    recording = model.record(*pad(CONTEXTS))
    generator = torch.Generator().manual_seed(0)

    def visit(name: str, x: Tensor) -> Tensor:
        if name == "embed":
            return x
        features = dictionaries[name].encode(x)
        kept = torch.rand(features.shape[-1], generator=generator) < share
        read.append((x - dictionaries[name].decode(features)).norm() / x.norm())
        return dictionaries[name].decode(features * kept)

    read: list[Tensor] = []
    stream = recording.stream_before(0)
    for layer in range(model.n_layers):
        stream = model.layer(layer, stream, recording.context[layer], visit)
    return model.logits(stream), torch.stack(read)


def divergence(model: LanguageModel, dictionaries: dict[str, Dictionary]) -> float:
    recording = model.record(*pad(CONTEXTS))
    own = model.logits(recording.outputs["resid_1"]).log_softmax(-1)
    found = in_series(model, dictionaries).log_softmax(-1)
    return float((own.exp() * (own - found)).sum(-1).mean())


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_the_run_in_series_comes_nearer_the_model(family: str) -> None:
    model = make_model(family)
    before = trained(model)
    after = tune_in_series(model, before, CONTEXTS, replace(QUICK, dropped=0.0))
    assert divergence(model, after) < divergence(model, before) / 2
    for name, dictionary in after.items():
        assert torch.equal(dictionary.bias, dictionary.input_bias)
        lengths = dictionary.decoder.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)
        same = torch.equal(dictionary.encoder, before[name].encoder)
        assert same == (name == "embed")


def test_dictionaries_stand_a_shrunken_stream() -> None:
    model = make_model("gpt_neox")
    before = trained(model)
    after = tune_in_series(model, before, CONTEXTS, replace(QUICK, dropped=1.0))
    errors = [run(model, dictionaries, 0.5)[1].mean() for dictionaries in (before, after)]
    assert errors[1] < errors[0] / 2


def test_the_seed_decides_all() -> None:
    model = make_model("gpt_neox")
    few = replace(QUICK, n_steps=3)
    after = tune_in_series(model, trained(model), CONTEXTS, few)
    again = tune_in_series(model, trained(model), CONTEXTS, few)
    for name in after:
        assert torch.equal(after[name].encoder, again[name].encoder)
    said: list[str] = []
    tune_in_series(model, trained(model), CONTEXTS, few, progress=said.append)
    assert said[-1].startswith("tuning: step 3 of 3; KL ")


def test_what_cannot_be_tuned_is_refused() -> None:
    model = make_model("gpt_neox")
    topk = random_dictionary(D, 1, kind="topk")
    with pytest.raises(InputError, match="mlp_0 is of kind topk: only relu dictionaries"):
        tune_in_series(model, {"mlp_0": topk}, CONTEXTS)
    with pytest.raises(InputError, match="no contexts to tune on"):
        tune_in_series(model, trained(model), [])
    with pytest.raises(WidthMismatch):
        tune_in_series(model, {"mlp_0": random_dictionary(D + 1, 1)}, CONTEXTS)
    only_embed = {"embed": trained(model)["embed"]}
    assert tune_in_series(model, only_embed, CONTEXTS) == only_embed
