"""Imported dictionaries: which file is meant is part of what they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.dictionaries.stages import SAES
from assets.engine.loading import Loader
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from assets.tables.places import sae
from core.dictionaries.formats import choose
from core.errors import FormatError
from pipelines.experiment import read_experiment
from tests.tiny_experiment import WIDTH, tiny_experiment, write_experiment

PATH = "layer_{layer}/width_8/average_l0_{l0}/params.npz"


def write_scope(root: Path, layer: int, l0: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = root / f"layer_{layer}/width_8/average_l0_{l0}"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"W_enc": (WIDTH, 8), "b_enc": 8, "W_dec": (8, WIDTH), "b_dec": WIDTH, "threshold": 8}
    tensors = {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    np.savez(folder / "params.npz", **tensors)


@pytest.fixture
def scope(tmp_path: Path) -> Path:
    for l0 in (10, 60, 300):
        write_scope(tmp_path / "scope", 0, l0, seed=l0)
    tiny_experiment(tmp_path)
    return tmp_path / "scope"


def importing(folder: Path, **changed: Any) -> Experiment:
    """An experiment that imports from the scope beside its file."""
    section = {"source": "import", "format": "gemma_scope", "repository": "./scope", "path": PATH}
    path = write_experiment(
        folder, dictionaries=None, imported=section | changed, submodules=["resid_0"]
    )
    path.write_text(path.read_text().replace("imported:", "dictionaries:"))
    return read_experiment(path)


def made_from(experiment: Experiment) -> dict[str, str]:
    return ArtifactStore(experiment.artifacts).notes(sae("resid_0"))["inputs"]


def weights(experiment: Experiment) -> str:
    return ArtifactStore(experiment.artifacts).notes(sae("resid_0"))["weights"]


def test_the_chosen_path_is_in_the_recipe_and_in_the_metadata(scope: Path) -> None:
    experiment = importing(scope.parent, options={"l0": 100})
    assert SAES.run(experiment, ["resid_0"]) == 1
    chosen = "layer_0/width_8/average_l0_60/params.npz"
    assert made_from(experiment)["path"] == chosen
    assert SAES.show(Work.on(experiment), "resid_0")["imported from"] == chosen
    assert SAES.run(experiment, ["resid_0"]) == 0


def test_another_choice_is_another_dictionary(scope: Path) -> None:
    experiment = importing(scope.parent, options={"l0": 100})
    SAES.run(experiment, ["resid_0"])
    first = weights(experiment)
    write_scope(scope, 0, 99, seed=5)  # the same settings, but something nearer is there now
    assert SAES.run(experiment, ["resid_0"]) == 1
    second = weights(experiment)
    assert SAES.run(importing(scope.parent, options={"l0": 299}), ["resid_0"]) == 1
    third = weights(experiment)
    assert len({first, second, third}) == 3


def test_a_file_with_other_contents_is_read_again(scope: Path) -> None:
    experiment = importing(scope.parent, path=PATH.replace("{l0}", "10"))
    assert SAES.run(experiment, ["resid_0"]) == 1
    assert SAES.run(experiment, ["resid_0"]) == 0
    write_scope(scope, 0, 10, seed=6)
    assert SAES.run(experiment, ["resid_0"]) == 1


def test_a_choice_left_open_lists_what_there_is(scope: Path) -> None:
    with pytest.raises(FormatError, match=r"3 places.*average_l0_10/.*options: {l0: 100}"):
        SAES.run(importing(scope.parent), ["resid_0"])


def test_a_kind_may_have_a_repository_of_its_own(scope: Path) -> None:
    write_scope(scope.parent / "other", 0, 7, seed=7)
    experiment = importing(scope.parent, repositories={"resid": "./other"})
    assert SAES.run(experiment, ["resid_0"]) == 1
    assert "average_l0_7/" in made_from(experiment)["path"]
    assert set(made_from(experiment)) == {"path", "contents", "model"}


def test_a_hub_out_of_reach_changes_nothing_about_what_is_there(
    scope: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    files = [str(p.relative_to(scope)) for p in scope.rglob("params.npz")]
    asked: list[str] = []

    def listed(_self: Any, repo_id: str, **_options: Any) -> list[str]:
        asked.append(repo_id)
        return files

    def broken(*_args: Any, **_options: Any) -> Any:
        raise ConnectionError

    choose._hub_files.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_: str(scope))
    hub: dict[str, Any] = {"repository": "some/scope", "options": {"l0": 100}}
    experiment = importing(scope.parent, **hub)
    assert SAES.run(experiment, ["resid_0"]) == 1
    assert asked == ["some/scope"]
    assert made_from(experiment) == {
        "path": "layer_0/width_8/average_l0_60/params.npz",
        "repository": "some/scope",
        "model": Loader(experiment).identity("model"),
    }
    choose._hub_files.cache_clear()
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", broken)
    assert SAES.run(experiment, ["resid_0"]) == 0
    with pytest.raises(FormatError, match="could not be fetched"):
        SAES.run(importing(scope.parent, **(hub | {"options": {"l0": 101}})), ["resid_0"])


def test_a_repository_for_an_unknown_place_is_refused(scope: Path) -> None:
    with pytest.raises(ExperimentError, match=r"dictionaries\.repositories\.atn"):
        importing(scope.parent, repositories={"atn": "./other"})
