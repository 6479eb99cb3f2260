"""What SHIFT and its controls take out of a model."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assets.shift.edits import (
    Units,
    edits_of,
    effects_of_zeroing,
    strongest,
    without_attribute,
)
from assets.shift.probe import TextSet
from core.dictionaries import identity_dictionary
from core.effects import node_effects
from core.estimators import Attribution
from core.probe import Probe
from core.readout import Readout
from tests.core.tiny import make_model, random_dictionaries, random_tokens
from tests.tiny_experiment import _tokenizer

CIRCUIT = [("embed", 1), ("embed", 2), ("embed", 3), ("mlp_0", 1), ("mlp_0", 4), ("resid_0", 2)]
UNITS = Units(
    circuit=CIRCUIT,
    active=[*CIRCUIT, *(("attn_0", i) for i in range(9))],
    irrelevant=[("embed", 1), ("embed", 3), ("mlp_0", 4)],
)
SKYLINES: dict[Any, Any] = {"neurons": [(("mlp_0", 11), 0.5)], "features": [(("mlp_0", 4), 0.4)]}


def test_controls_take_as_many_units_as_are_judged() -> None:
    edits = list(edits_of(UNITS, SKYLINES, range(3), n_draws=3, errors=False))
    of = {(edit.method, *edit.seeds): edit for edit in edits}
    assert of["shift", 0, 1, 2].units == UNITS.irrelevant
    assert of["embedding_only", 0, 1, 2].units == [("embed", 1), ("embed", 3)]
    assert of["neuron_skyline", 0, 1, 2].basis == "neurons"
    judged = Counter(submodule for submodule, _ in UNITS.irrelevant)
    for seed in range(3):
        active = of["random_active", seed].units
        assert {submodule for submodule, _ in active} == {"attn_0"}
        permuted = of["permuted_judgements", seed].units
        assert Counter(submodule for submodule, _ in permuted) == judged
        for method in ("random_of_circuit", "permuted_judgements"):
            assert set(of[method, seed].units) <= set(CIRCUIT)
        for method in ("random_active", "random_of_circuit", "permuted_judgements"):
            assert len(set(of[method, seed].units)) == 3
            assert of[method, seed].is_control
    assert len({tuple(of["random_active", seed].units) for seed in range(3)}) == 3
    assert len(edits) == 5 + 3 * 3


def test_seeds_take_the_draws_of_controls_in_turn() -> None:
    edits = edits_of(UNITS, SKYLINES, range(5), n_draws=2, errors=False)
    drawn = [tuple(edit.seeds) for edit in edits if edit.method == "random_of_circuit"]
    assert drawn == [(0, 2, 4), (1, 3)]


def test_error_nodes_go_with_the_features_and_with_their_controls_alone() -> None:
    for edit in edits_of(UNITS, SKYLINES, range(2), n_draws=2, errors=True):
        alone = edit.method.endswith("skyline") or edit.deletes_tokens
        assert edit.with_errors != alone


def texts(tells: list[list[str] | None]) -> TextSet:
    zero = torch.zeros(2, dtype=torch.long)
    tokenizer = _tokenizer()
    tokens = [tokenizer(text)["input_ids"] for text in ("the cats see a cat", "cat")]
    return TextSet([0, 1], tokens, tells, zero, zero)  # pyright: ignore[reportArgumentType]


def test_tokens_that_tell_the_attribute_are_deleted() -> None:
    work: Any = SimpleNamespace(load=SimpleNamespace(tokenizer=_tokenizer))
    read = _tokenizer().decode
    told = texts([["", "attribute", "", "", "label"], ["attribute"]])
    left = without_attribute(work, told, ())
    assert left is not None
    # A text of which nothing would be left keeps its first token.
    assert [read(tokens) for tokens in left] == ["the see a cat", "cat"]
    by_words = without_attribute(work, texts([None, None]), ("Cats", "dogs"))
    assert by_words is not None
    assert [read(tokens) for tokens in by_words] == ["the see a cat", "cat"]
    assert without_attribute(work, texts([None, None]), ()) is None


def test_effects_of_zeroing_are_those_of_attribution_for_features_and_neurons() -> None:
    model = make_model("gpt2")
    names = ["embed", "attn_0", "resid_0"]
    features = random_dictionaries(model, names=names)
    neurons = {n: identity_dictionary(model.width(n), dtype=torch.float64) for n in names}
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    weight = torch.arange(12.0).double() - 5
    inputs = Probe(weight, 0.1).inputs(
        random_tokens(3, 4, 2), torch.tensor([0, 1, 1]), Readout("resid_0", "mean"), mask
    )
    found = effects_of_zeroing(
        model, {"features": features, "neurons": neurons}, inputs, budget_bytes=1 << 30
    )
    for basis, dictionaries in {"features": features, "neurons": neurons}.items():
        effects = node_effects(model, dictionaries, inputs, estimator=Attribution())
        for name in names:
            expected = effects[name].features.to_dense().sum((0, 1)) / 3
            ours = found[basis][name]  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_the_strongest_units_raise_the_metric_most() -> None:
    effects = {"embed": torch.tensor([0.5, -9.0, 0.0]), "mlp_0": torch.tensor([2.0, 0.1])}
    found = strongest(effects, 3)
    assert [unit for unit, _ in found] == [("mlp_0", 0), ("embed", 0), ("mlp_0", 1)]
    assert [effect for _, effect in found] == pytest.approx([2.0, 0.5, 0.1])
