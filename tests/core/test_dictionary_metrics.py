"""Metrics against sums written out by hand, and against the model's own forward pass."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from core.dictionaries import identity_dictionary
from core.dictionaries.quality import logits_with, measure_dictionaries, measure_dictionary
from core.errors import InputError, WidthMismatch
from tests.core.tiny import FAMILY_NAMES, D, make_model, random_dictionaries, random_tokens

TOKENS = random_tokens(6, 8, 3)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)
MASK[1, 5:] = False
MASK[4, 3:] = False


def cross_entropy(logits: torch.Tensor) -> float:
    """Mean over every real token that a real token precedes."""
    losses = [
        F.cross_entropy(logits[i, j - 1], TOKENS[i, j])
        for i in range(6)
        for j in range(1, 8)
        if MASK[i, j]
    ]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_models_own_output_in_place_gives_its_own_logits(family):
    model = make_model(family)
    recording = model.record(TOKENS)
    expected = model.hf(TOKENS, use_cache=False).logits
    for name in model.submodules:
        logits = logits_with(model, recording, name, recording.outputs[name])
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["attn_0", "mlp_1", "resid_0"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_another_value_in_place_acts_as_a_hook_would(family, name):
    model = make_model(family)
    recording = model.record(TOKENS)
    value = recording.outputs[name] + 0.3
    kind, layer = name.split("_")
    block = model.layers[int(layer)]
    module = {"attn": model._attention(int(layer)), "mlp": block.mlp, "resid": block}[kind]

    def replace(_module, _args, output):
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = module.register_forward_hook(replace)
    try:
        expected = model.hf(TOKENS, use_cache=False).logits
    finally:
        handle.remove()
    torch.testing.assert_close(logits_with(model, recording, name, value), expected)


def test_metrics_are_the_sums_of_appendix_b3():
    model = make_model("llama")
    dictionaries = random_dictionaries(model)
    found = measure_dictionaries(model, dictionaries, TOKENS, MASK, batch_contexts=4)
    recording = model.record(TOKENS, MASK)
    assert list(found) == model.submodules
    for name, m in found.items():
        x = recording.outputs[name][MASK]
        f = dictionaries[name].encode(x)
        error = x - dictionaries[name].decode(f)
        explained = 1 - error.var(0, correction=0).sum() / x.var(0, correction=0).sum()
        value = recording.outputs[name].clone()
        value[MASK] = x - error
        ce_hat = cross_entropy(logits_with(model, recording, name, value))
        zero = torch.zeros_like(value)
        ce_zero = cross_entropy(logits_with(model, recording, name, zero))
        ce = cross_entropy(model.logits(recording.outputs["resid_1"]))
        assert m.n_tokens == int(MASK.sum())
        assert m.variance_explained == pytest.approx(float(explained))
        assert m.l1 == pytest.approx(float(f.sum(1).mean()))
        assert m.l0 == pytest.approx(float((f > 0).double().sum(1).mean()))
        assert m.alive == pytest.approx(float((f > 0).any(0).double().mean()))
        torch.testing.assert_close(m.density.double(), (f > 0).double().mean(0))
        assert (m.ce, m.ce_hat, m.ce_zero) == pytest.approx((ce, ce_hat, ce_zero), rel=1e-5)
        assert m.ce_recovered == pytest.approx((ce_hat - ce_zero) / (ce - ce_zero), rel=1e-3)
        assert m.ce_difference == pytest.approx(ce_hat - ce, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])  # parallel, and one after the other
def test_in_series_is_a_run_through_every_dictionary_so_far(family, monkeypatch):
    monkeypatch.setattr("core.dictionaries.quality.CONFIDENT", 3.0)
    model = make_model(family)
    dictionaries = random_dictionaries(model)
    found = measure_dictionaries(model, dictionaries, TOKENS, MASK, batch_contexts=4)
    recording = model.record(TOKENS, MASK)

    def losses(change):
        stream = recording.stream_before(0)
        for layer in range(model.n_layers):
            stream = model.layer(layer, stream, recording.context[layer], change)
        logits = model.logits(stream).float()
        return F.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:], reduction="none")

    clean = losses(lambda _name, x: x)
    at = MASK[:, :-1] & MASK[:, 1:] & (clean < 3)
    empty = losses(lambda name, x: dictionaries[name].bias.expand_as(x))[at].mean()
    assert 0 < at.sum() == found["embed"].n_confident < 30
    assert math.isnan(found["embed"].in_series)
    names = model.submodules[1:]
    for name, m in found.items():
        x, dictionary = recording.outputs[name][:, :-1][at], dictionaries[name]
        norms = dictionary.split(x[None]).error[0].norm(dim=1) / x.norm(dim=1)
        assert m.error_norm == pytest.approx(float(norms.mean()))
        if name == "embed":
            continue
        placed = names[: names.index(name) + 1]

        def reconstructed(name, x, placed=placed):
            return dictionaries[name].decode(dictionaries[name].encode(x)) if name in placed else x

        series = losses(reconstructed)[at].mean()
        expected = (series - empty) / (clean[at].mean() - empty)
        assert m.in_series == pytest.approx(float(expected), rel=1e-4)


def test_without_a_confident_token_their_metrics_are_not_defined(monkeypatch):
    monkeypatch.setattr("core.dictionaries.quality.CONFIDENT", 0.0)
    model = make_model("gpt_neox")
    m = measure_dictionary(model, "resid_1", identity_dictionary(D, dtype=torch.float64), TOKENS)
    assert m.n_confident == 0
    assert math.isnan(m.error_norm)
    assert math.isnan(m.in_series)


def test_a_perfect_dictionary_explains_everything(monkeypatch):
    monkeypatch.setattr("core.dictionaries.quality.CONFIDENT", 3.0)
    model = make_model("gpt_neox")
    identity = identity_dictionary(D, dtype=torch.float64)
    m = measure_dictionary(model, "resid_1", identity, TOKENS)
    assert (m.error_norm, m.in_series) == (pytest.approx(0), pytest.approx(1))
    assert m.variance_explained == pytest.approx(1.0)
    assert m.ce_recovered == pytest.approx(1.0)
    assert m.alive == 1.0


def test_a_dictionary_that_gives_zero_recovers_nothing():
    model = make_model("gpt_neox")
    identity = identity_dictionary(D, dtype=torch.float64)
    nothing = dataclasses.replace(identity, decoder=0 * identity.decoder)
    m = measure_dictionary(model, "mlp_0", nothing, TOKENS)
    assert m.variance_explained == pytest.approx(0.0)
    assert m.ce_recovered == pytest.approx(0.0)


def test_progress_gives_each_submodules_numbers():
    model, lines = make_model("gpt_neox"), []
    dictionaries = random_dictionaries(model, names=["resid_0", "embed"])
    measure_dictionaries(model, dictionaries, TOKENS, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == ["embed", "resid_0"]


def test_a_dictionary_of_another_width_is_refused():
    with pytest.raises(WidthMismatch):
        measure_dictionary(make_model("gpt_neox"), "embed", identity_dictionary(D + 1), TOKENS)


def test_contexts_of_one_token_are_refused():
    identity = identity_dictionary(D, dtype=torch.float64)
    with pytest.raises(InputError, match="nothing to predict"):
        measure_dictionary(make_model("gpt_neox"), "embed", identity, TOKENS[:, :1])
