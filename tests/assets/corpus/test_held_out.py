"""Contexts kept back are not those that dictionaries train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from assets.corpus.contexts import contexts_table
from assets.corpus.stages import held_out_tokens, training_contexts
from assets.corpus.text import Context
from assets.engine.recipe import Recipe
from assets.engine.store import ArtifactStore
from assets.tables.places import CONTEXTS


def _store(folder: Path, tokens: Sequence[list[int]]) -> ArtifactStore:
    store = ArtifactStore(folder)
    rows = contexts_table(Context(i, own) for i, own in enumerate(tokens))
    store.write(CONTEXTS, rows, Recipe("contexts", {}, None, "1"))
    return store


@pytest.mark.parametrize(
    ("repeated", "measured", "n_left_out"),
    [
        ([], [[18, 1], [19, 1]], 0),
        ([18], [[19, 1]], 1),
        ([18, 19], [[0, 1], [0, 1]], 0),  # nothing else is left to measure on
    ],
)
def test_what_is_also_trained_on_is_left_out_and_counted(
    tmp_path: Path, repeated: list[int], measured: list[list[int]], n_left_out: int
) -> None:
    tokens = [[0 if i in repeated else i, 1] for i in range(20)]
    store = _store(tmp_path, tokens)
    assert len(training_contexts(store, 2)) == 18
    assert held_out_tokens(store, 2) == (measured, n_left_out)
