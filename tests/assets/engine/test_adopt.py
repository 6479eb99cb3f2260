"""What other code made can be kept, if nothing but the code differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.corpus.stages import ACTIVATION_CACHE_STAGE, CONTEXTS_STAGE
from assets.dictionaries.stages import SAES
from assets.engine import stage as engine
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import CONTEXTS, sae
from pipelines.experiment import read_experiment
from tests.tiny_experiment import tiny_experiment, write_experiment


@pytest.fixture
def trained(tmp_path: Path) -> Experiment:
    experiment = tiny_experiment(tmp_path)
    CONTEXTS_STAGE.run(experiment)
    ACTIVATION_CACHE_STAGE.run(experiment)
    SAES.run(experiment, experiment.submodules)
    return experiment


class _Other:
    """Code that is not what it was."""

    def digest(self, _entries: Any) -> str:
        return "other"


def test_what_is_adopted_is_not_made_again(
    trained: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, names = ArtifactStore(trained.artifacts), trained.submodules
    before = {name: store.content(sae(name)) for name in names}
    monkeypatch.setattr(engine, "installed", _Other)
    recipes = SAES.recipes(trained, names)
    assert not any(store.is_current(sae(name), recipes[name]) for name in names)
    assert SAES.adopt(trained) == names
    assert SAES.run(trained, names) == 0
    assert {name: store.content(sae(name)) for name in names} == before
    assert SAES.adopt(trained) == []


def test_a_table_keeps_its_rows_and_notes_when_it_is_adopted(
    trained: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(trained.artifacts)
    rows, notes = store.read(CONTEXTS), store.notes(CONTEXTS)["read"]
    monkeypatch.setattr(engine, "installed", _Other)
    assert CONTEXTS_STAGE.adopt(trained) == ["contexts"]
    assert store.read(CONTEXTS) == rows
    assert store.notes(CONTEXTS)["read"] == notes
    assert not CONTEXTS_STAGE.run(trained)


def test_a_changed_setting_is_not_adopted(
    trained: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "installed", _Other)
    write_experiment(trained.path.parent, dictionaries={"lr": 0.01})
    assert SAES.adopt(read_experiment(trained.path)) == []


def test_what_is_not_whole_is_not_adopted(
    trained: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ArtifactStore(trained.artifacts).path(sae("embed"), ".safetensors").unlink()
    monkeypatch.setattr(engine, "installed", _Other)
    assert SAES.adopt(trained) == [name for name in trained.submodules if name != "embed"]
