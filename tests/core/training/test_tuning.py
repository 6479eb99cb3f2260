"""Tuning in series: what it improves, what it leaves, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.circuit import attribute
from core.dictionaries import Dictionary, ReLU, TopK
from core.errors import InputError, WidthMismatch
from core.estimators import IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import Inputs, pad
from core.models import LanguageModel, Recording
from core.training import TuningSettings, tune_in_series
from core.training.tuning import _FEWEST, _Set
from tests.core.tiny import D, make_model, random_dictionary, random_tokens

CONTEXTS = random_tokens(30, 9, 4).tolist()
QUICK = TuningSettings(n_steps=30, learning_rate=0.02, sparsity=0.001, n_contexts=8, n_positions=8)


def trained(model: LanguageModel) -> dict[str, Dictionary]:
    """Dictionaries good enough to tune: a signed basis each, with a bias that silences."""
    eye = torch.eye(D, dtype=torch.float64)
    basis, zero = torch.cat([eye, -eye]), torch.zeros(D, dtype=torch.float64)
    silent = torch.full((2 * D,), -0.2, dtype=torch.float64)
    return {name: Dictionary(basis, silent, basis, zero, zero, ReLU()) for name in model.submodules}


def in_series(model: LanguageModel, dictionaries: dict[str, Dictionary]) -> Tensor:
    """Logits of a run through all dictionaries but the embedding's."""
    recording = model.record(*pad(CONTEXTS))

    def visit(name: str, x: Tensor) -> Tensor:
        dictionary = dictionaries[name]
        return x if name == "embed" else dictionary.decode(dictionary.encode(x))

    stream = recording.stream_before(0)
    for layer in range(model.n_layers):
        stream = model.layer(layer, stream, recording.context[layer], visit)
    return model.logits(stream)


def divergence(model: LanguageModel, dictionaries: dict[str, Dictionary]) -> float:
    recording = model.record(*pad(CONTEXTS))
    own = model.logits(recording.outputs["resid_1"]).log_softmax(-1)
    found = in_series(model, dictionaries).log_softmax(-1)
    return float((own.exp() * (own - found)).sum(-1).mean())


def unfaithful(model: LanguageModel, dictionaries: dict[str, Dictionary], n: int) -> float:
    """How far the log odds of likely tokens are moved where `n` features are kept and no error."""
    tokens, mask = pad(CONTEXTS[::3])
    answers = model.logits(model.record(tokens, mask).outputs["resid_1"])[:, -1].argmax(-1)
    moved = []
    for i in range(len(tokens)):
        inputs = Inputs.single(tokens[i : i + 1], answers[i : i + 1])
        every = attribute(model, dictionaries, inputs, estimator=IntegratedGradients(4))
        nodes = every.circuit(node_threshold=0.0, edge_threshold=0.0, edges=False).nodes
        largest = sorted(nodes, key=lambda node: -abs(node.effect))[:n]
        judged = Evaluator(model, dictionaries, inputs).evaluate(largest, "drop")
        moved.append(abs(judged.m_full - judged.m_circuit))
    return sum(moved) / len(moved)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_the_run_in_series_comes_nearer_the_model(family: str) -> None:
    model = make_model(family)
    before = trained(model)
    after = tune_in_series(model, before, CONTEXTS, replace(QUICK, in_part=0.0))
    assert divergence(model, after) < divergence(model, before) / 2
    for name, dictionary in after.items():
        assert torch.equal(dictionary.bias, dictionary.input_bias)
        lengths = dictionary.decoder.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)
        same = torch.equal(dictionary.encoder, before[name].encoder)
        assert same == (name == "embed")


def test_small_circuits_become_faithful_without_errors() -> None:
    model = make_model("gpt_neox")
    before = trained(model)
    after = tune_in_series(model, before, CONTEXTS, QUICK)
    assert unfaithful(model, after, 20) < 0.6 * unfaithful(model, before, 20)


def test_topk_dictionaries_keep_their_k() -> None:
    model = make_model("gpt_neox")
    before = {
        name: replace(d, encoder_bias=torch.zeros_like(d.encoder_bias), activation=TopK(3))
        for name, d in trained(model).items()
    }
    after = tune_in_series(model, before, CONTEXTS, replace(QUICK, in_part=0.0, sparsity=0.0))
    assert divergence(model, after) < divergence(model, before) / 2
    assert {d.activation for d in after.values()} == {TopK(3)}


def in_training(model: LanguageModel, settings: TuningSettings) -> tuple[_Set, Recording]:
    set_ = _Set(model, trained(model), settings, torch.Generator().manual_seed(0))
    recording = model.record(*pad(CONTEXTS))
    set_.step(0, recording)
    return set_, recording


@pytest.mark.parametrize("passes_on", [False, True])
def test_a_loss_of_its_own_moves_no_dictionary_before_unless_told(passes_on: bool) -> None:
    model = make_model("gpt_neox")
    set_, recording = in_training(model, replace(QUICK, passes_on=passes_on))
    kept, _ = set_._circuits(recording)
    _, losses = set_._run(recording, kept)
    names = list(set_.tuned)
    of_last = [set_.tuned[name].encoder for name in names]
    gradients = torch.autograd.grad(losses[-1], of_last, allow_unused=True)
    moved = [name for name, g in zip(names, gradients, strict=True) if g is not None]
    assert moved == (names if passes_on else names[-1:])


def test_a_context_in_part_keeps_what_matters_to_one_prediction() -> None:
    model = make_model("gpt_neox")
    set_, recording = in_training(model, replace(QUICK, in_part=0.5))
    kept, weight = set_._circuits(recording)
    half = len(CONTEXTS) // 2
    n_kept = torch.cat(list(kept.values()), 2).sum((1, 2))
    n_features = sum(d.n_features for d in set_.tuned.values())
    assert bool((n_kept[half:] == n_features).all())
    assert bool((n_kept[:half] >= _FEWEST).all())
    assert int(n_kept[:half].min()) < n_features
    torch.testing.assert_close(weight[:half].sum(), torch.tensor(1.0))
    torch.testing.assert_close(weight[half:].sum(), torch.tensor(1.0))
    assert bool(((weight[:half] > 0).sum(1) == 1).all())


def test_with_all_errors_and_features_a_run_is_the_model() -> None:
    model = make_model("gpt_neox")
    set_, recording = in_training(model, replace(QUICK, in_part=1.0, with_errors=1.0))
    kept = {name: torch.ones(1, 1, 1, dtype=torch.bool) for name in set_.tuned}
    stream, _ = set_._run(recording, kept)
    torch.testing.assert_close(stream.double(), recording.outputs["resid_1"], rtol=1e-4, atol=1e-4)


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
    gated = random_dictionary(D, 1, kind="gated")
    with pytest.raises(InputError, match="mlp_0 is of kind gated"):
        tune_in_series(model, {"mlp_0": gated}, CONTEXTS)
    with pytest.raises(InputError, match="no contexts to tune on"):
        tune_in_series(model, trained(model), [])
    with pytest.raises(WidthMismatch):
        tune_in_series(model, {"mlp_0": random_dictionary(D + 1, 1)}, CONTEXTS)
    only_embed = {"embed": trained(model)["embed"]}
    assert tune_in_series(model, only_embed, CONTEXTS) == only_embed
