"""Cards from a model whose activations can be computed all at once, and compared."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.cards.collect import N_BINS, Collected, Showing, Units, active_at, collect
from core.cards.meaning import log_probs_without, moved, promoted, readout
from core.dictionaries import Dictionary, identity_dictionary
from core.dictionaries.activations import ReLU
from core.errors import InputError, WidthMismatch
from core.inputs import pad
from core.models import LanguageModel
from core.models.replay import stream_with
from tests.core.tiny import make_model

SHOWING = Showing(n_strongest=4, n_per_quantile=2, n_before=3, n_after=2)
SUBMODULES = ("embed", "attn_0", "mlp_1", "resid_1")


@pytest.fixture(scope="module", params=["gpt_neox", "llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return make_model(request.param)


def _dictionary(d: int, n: int = 24) -> Dictionary:
    generator = torch.Generator().manual_seed(d)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    zero = torch.zeros(d, dtype=torch.float64)
    return Dictionary(rows, -torch.rand(n, generator=generator).double(), rows, zero, zero, ReLU())


def _contexts(model: LanguageModel, n: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 11, (n,), generator=generator).tolist()
    return [
        torch.randint(model.n_vocab, (length,), generator=generator).tolist() for length in lengths
    ]


def _wanted(model: LanguageModel) -> dict[str, Units]:
    wanted = {
        name: Units(name, _dictionary(model.width(name)), torch.tensor([0, 3, 4, 11]))
        for name in SUBMODULES
    }
    neurons = identity_dictionary(model.width("mlp_1"), dtype=torch.float64)
    return wanted | {"neurons": Units("mlp_1", neurons, torch.tensor([1, 5]))}


def _activations(model: LanguageModel, units: Units, contexts: list[list[int]]) -> list[Tensor]:
    """``(pos, n)`` of each context, one context at a time."""
    found = []
    for tokens in contexts:
        x = model.record(torch.tensor([tokens])).outputs[units.submodule][0]
        found.append(units.dictionary.encode(x)[:, units.features].clamp(min=0).float())
    return found


@pytest.fixture(scope="module")
def collected(model: LanguageModel) -> dict[str, Collected]:
    return collect(model, _wanted(model), _contexts(model), showing=SHOWING)


def test_sums_over_the_corpus_are_those_of_one_context_at_a_time(
    model: LanguageModel, collected: dict[str, Collected]
) -> None:
    contexts = _contexts(model)
    for name, units in _wanted(model).items():
        every, one = _activations(model, units, contexts), collected[name]
        flat, largest = torch.cat(every), torch.stack([a.amax(0) for a in every])
        assert one.n_tokens == len(flat)
        assert torch.equal(one.n_active, (flat > 0).sum(0))
        assert torch.equal(one.n_contexts, (largest > 0).sum(0))
        assert torch.allclose(one.total.float(), flat.sum(0), rtol=1e-4)
        assert torch.allclose(one.largest, largest.amax(0), rtol=1e-4)
        assert torch.equal(one.counts.sum(1), one.n_contexts)
        for unit in range(len(units.features)):
            edges = one.edges[unit]
            if one.largest[unit] > 0:
                assert edges[-1] >= one.largest[unit] > edges[-1] / 2 - 1e-6
                assert math.log2(edges[-1]).is_integer()
                exact = torch.histogram(
                    largest[:, unit][largest[:, unit] > 0], N_BINS, range=(0, float(edges[-1]))
                )
                assert torch.equal(one.counts[unit], exact.hist.long())


def test_the_strongest_contexts_are_shown_with_the_activation_of_each_token(
    model: LanguageModel, collected: dict[str, Collected]
) -> None:
    contexts = _contexts(model)
    for name, units in _wanted(model).items():
        every, e = _activations(model, units, contexts), collected[name].excerpts
        for unit in range(len(units.features)):
            mine = (e.unit == unit) & (e.quantile == -1)
            best = sorted((float(a[:, unit].max()) for a in every), reverse=True)
            best = [value for value in best if value > 0][: SHOWING.n_strongest]
            assert e.activations[mine].amax(1).tolist() == pytest.approx(best, rel=1e-3)
            assert e.rank[mine].tolist() == list(range(len(best)))
        for i in range(len(e.unit)):
            own = every[int(e.row[i])][:, int(e.unit[i])]
            start, length = int(e.start[i]), int(e.length[i])
            assert int(e.pos[i]) == int(own.argmax())
            assert start <= e.pos[i] < start + length <= len(own)
            assert length == min(len(own), SHOWING.width)
            assert e.activations[i, :length].tolist() == pytest.approx(
                own[start : start + length].tolist(), rel=2e-3, abs=1e-4
            )
            assert not e.activations[i, length:].any()


def test_quarters_are_of_rising_activation_and_repeat_nothing(
    collected: dict[str, Collected],
) -> None:
    n_lower = 0
    for one in collected.values():
        e = one.excerpts
        for unit in e.unit.unique():
            mine = e.unit == unit
            rows = e.row[mine].tolist()
            assert len(set(rows)) == len(rows)
            lower = mine & (e.quantile >= 0)
            n_lower += int(lower.sum())
            peaks = e.activations.amax(1)
            for quarter in range(3):
                here, above = lower & (e.quantile == quarter), lower & (e.quantile > quarter)
                if here.any() and above.any():
                    assert peaks[here].max() <= peaks[above].min() + 1e-6
            assert all(
                int((lower & (e.quantile == q)).sum()) <= SHOWING.n_per_quantile for q in range(4)
            )
    assert n_lower > 20


def test_one_text_and_one_document_are_shown_once(model: LanguageModel) -> None:
    contexts = _contexts(model, 6)
    begin = contexts[0][:3]
    # The same text three times, and three documents that only differ where nothing is shown.
    far = [[*begin, *([7] * 8), i] for i in range(3)]
    neurons = identity_dictionary(model.width("embed"), dtype=torch.float64)
    units = {"x": Units("embed", neurons, torch.arange(8))}
    corpus = [contexts[0]] * 3 + contexts + far
    showing = Showing(n_strongest=20, n_per_quantile=0, n_before=2, n_after=2)
    found = collect(model, units, corpus, showing=showing)["x"]
    shown = found.excerpts
    for unit in range(8):
        texts = [
            tuple(corpus[int(r)][int(s) : int(s) + int(n)])
            for r, s, n in zip(
                shown.row[shown.unit == unit],
                shown.start[shown.unit == unit],
                shown.length[shown.unit == unit],
                strict=True,
            )
        ]
        assert len(set(texts)) == len(texts)
    documents = [0] * 3 + [1] * 6 + [2] * 3
    one = collect(model, units, corpus, documents=documents, showing=showing)["x"]
    for unit in range(8):
        rows = one.excerpts.row[one.excerpts.unit == unit].tolist()
        assert len({documents[row] for row in rows}) == len(rows)


def test_a_feature_that_is_never_active_has_an_empty_card(model: LanguageModel) -> None:
    dictionary = _dictionary(model.width("embed"))
    dictionary.encoder_bias[3] = -1e9
    units = {"x": Units("embed", dictionary, torch.tensor([3]))}
    found = collect(model, units, _contexts(model, 4), showing=SHOWING)
    one = found["x"]
    assert (int(one.n_active), float(one.largest), len(one.excerpts.unit)) == (0, 0.0, 0)
    assert not one.counts.any()
    excerpts = {"x": one.excerpts}
    assert not moved(model, units, excerpts, _contexts(model, 4))["x"].value.any()


def test_where_units_are_active_is_what_encoding_says(model: LanguageModel) -> None:
    contexts = _contexts(model)
    for name, units in _wanted(model).items():
        flat = torch.cat(_activations(model, units, contexts))
        found = active_at(model, {name: units}, contexts)[name]
        dense = torch.zeros_like(flat)
        dense[found.place, found.unit] = torch.from_numpy(found.value)
        assert torch.allclose(dense, flat, rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused(model: LanguageModel) -> None:
    units = Units("embed", _dictionary(model.width("embed") + 1), torch.tensor([0]))
    with pytest.raises(WidthMismatch, match="another model"):
        collect(model, {"x": units}, _contexts(model))
    with pytest.raises(InputError, match="no context"):
        collect(model, _wanted(model), [])


# -- what features do -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "submodule", ["embed", "attn_0", "mlp_0", "resid_0", "attn_1", "mlp_1", "resid_1"]
)
def test_one_token_without_a_feature_is_the_whole_run_with_it_taken(
    model: LanguageModel, submodule: str
) -> None:
    contexts = _contexts(model, 5)
    recording = model.record(*pad(contexts))
    example = torch.tensor([0, 3, 3])
    pos = torch.tensor([len(contexts[0]) - 1, 0, 1])
    change = torch.randn(3, model.width(submodule), dtype=torch.float64)
    quick = log_probs_without(model, recording, submodule, example, pos, change)
    for i in range(3):
        value = recording.outputs[submodule].clone()
        value[example[i], pos[i]] -= change[i]
        stream, layer = stream_with(model, recording, submodule, value)
        logits = model.logits(model.run_layers(stream, recording.context, layer))
        slow = logits[example[i], pos[i]].float().log_softmax(-1)
        assert torch.allclose(quick[i], slow, atol=1e-5)


def test_moved_tokens_are_those_of_the_strongest_contexts(
    model: LanguageModel, collected: dict[str, Collected]
) -> None:
    wanted, contexts = _wanted(model), _contexts(model)
    excerpts = {name: one.excerpts for name, one in collected.items()}
    # A small budget: one group of submodules after the other.
    found = moved(model, wanted, excerpts, contexts, n_ablated=2, k=3, budget_bytes=1)
    together = moved(model, wanted, excerpts, contexts, n_ablated=2, k=3)
    for name, units in wanted.items():
        e = excerpts[name]
        assert torch.allclose(found[name].value, together[name].value, atol=1e-5)
        for unit in range(len(units.features)):
            mine = ((e.unit == unit) & (e.quantile < 0)).nonzero().flatten()
            first = mine[e.pos[mine].argsort(stable=True)][:2]
            total: Any = 0
            for i in first:
                recording = model.record(torch.tensor([contexts[int(e.row[i])]]))
                place = torch.tensor([0]), e.pos[i].unsqueeze(0)
                x = recording.outputs[units.submodule][place]
                feature = units.features[unit]
                taken = units.dictionary.encode(x)[:, [int(feature)]].clamp(min=0)
                change = taken * units.dictionary.decoder[feature]
                nothing = torch.zeros_like(change)
                both = (
                    log_probs_without(model, recording, units.submodule, *place, part)
                    for part in (nothing, change)
                )
                clean, without = both
                total = total + (clean - without)[0]
            mean = total / max(1, len(first))
            if len(first):
                # Activations are kept in half precision.
                assert found[name].value[unit].tolist() == pytest.approx(
                    mean[found[name].token[unit]].tolist(), rel=5e-3, abs=1e-3
                )
                assert found[name].value[unit].abs().tolist() == pytest.approx(
                    mean.abs().topk(3).values.tolist(), rel=5e-3, abs=1e-3
                )


def test_promoted_tokens_are_those_whose_logits_rise(model: LanguageModel) -> None:
    streams = 3 * torch.randn(6, model.d_model, dtype=torch.float64)
    reads = readout(model, streams)
    units = Units("mlp_1", _dictionary(model.width("mlp_1")), torch.tensor([2, 9]))
    up, down = promoted(model, units, reads, 4)
    step = 1e-3  # norms of some models go through float32
    for unit, feature in enumerate([2, 9]):
        row = units.dictionary.decoder[feature]
        rise = (model.logits(streams + step * row) - model.logits(streams)).mean(0) / step
        for found, most in ((up, rise.topk(4)), (down, rise.topk(4, largest=False))):
            assert found.value[unit].tolist() == pytest.approx(most.values.tolist(), abs=5e-3)
            assert found.value[unit].tolist() == pytest.approx(
                rise[found.token[unit]].tolist(), abs=5e-3
            )
