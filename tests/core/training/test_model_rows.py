import pytest
import torch

from core.errors import InputError
from core.training import ModelRows, TrainingSettings, context_rows, train_dictionaries
from tests.core.tiny import D, make_model, random_tokens

CONTEXTS = [random_tokens(1, n, n)[0].tolist() for n in (5, 3, 7, 2, 6, 8, 4)]
NAMES = ["embed", "attn_0", "resid_1"]


def test_rows_are_what_the_model_gives_each_context_alone():
    model = make_model("gpt_neox")
    rows = context_rows(model, CONTEXTS, NAMES)
    for name in NAMES:
        alone = [model.record(torch.tensor([context])).outputs[name][0] for context in CONTEXTS]
        torch.testing.assert_close(rows[name], torch.cat(alone).half(), atol=2e-3, rtol=2e-3)


def test_units_hold_their_contexts_rows_and_documents():
    source = ModelRows(make_model("gpt_neox"), CONTEXTS, NAMES, contexts_per_unit=3)
    assert source.unit_rows == [15, 16, 4]
    values, document = source.load(1)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        name: (16, D) for name in NAMES
    }
    assert document.tolist() == [3] * 2 + [4] * 6 + [5] * 8


def test_dictionaries_train_straight_from_the_model():
    source = ModelRows(make_model("gpt_neox"), CONTEXTS, NAMES, contexts_per_unit=3)
    settings = TrainingSettings(n_features=8, n_steps=3, batch_size=8, buffer_bytes=1600)
    found = train_dictionaries(source, settings)
    assert list(found) == NAMES
    assert all(one.dictionary.encoder.shape == (8, D) for one in found.values())


def test_the_fingerprint_depends_on_model_and_contexts_alone():
    model = make_model("gpt_neox")
    fingerprints = {
        ModelRows(model, contexts, names, model_fingerprint=weights).fingerprint
        for contexts in (CONTEXTS, CONTEXTS[1:])
        for names in (NAMES, NAMES[:1])
        for weights in ("one", "other")
    }
    assert len(fingerprints) == 4


def test_no_contexts_are_refused():
    with pytest.raises(InputError, match="no contexts"):
        ModelRows(make_model("gpt_neox"), [], NAMES)
