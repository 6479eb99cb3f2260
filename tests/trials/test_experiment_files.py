"""Experiment files that were once misread, or gave a traceback, and what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.settings import ExperimentError
from pipelines.experiment import read_experiment

MODEL = "model: {source: ../testbed/model, n_layers: 4}\n"
CORPUS = "corpus: {source: ../data/testbed/corpus.jsonl}\n"
PAIR = "{train: ../pairs/simple_train.json, test: ../pairs/simple_test.json}"
FILES = {
    "bad_keys": f"1: 2\n{MODEL}",
    "bad_date": "model: {source: ../testbed/model, n_layers: 4, revision: 2020-13-45}\n",
    "infinite": "model: {source: ../testbed/model, n_layers: 4, memory_gb: .inf}\n"
    f"{CORPUS}dictionaries: {{source: train, lr: .inf, seed: -5}}\nclustering: {{k: 1000000000}}\n",
    "outside": f"{MODEL}{CORPUS}dictionaries: {{source: train}}\n"
    f"agreement:\n  pairs:\n    ../../escaped: {PAIR}\n    ../circuits/k00000: {PAIR}\n",
}
NUMBERS = (
    f"model: {{source: ../testbed/model, n_layers: 4, revision: 1234567}}\n{CORPUS}"
    "dictionaries: {source: import, format: gemma_scope, repository: ./saes, "
    'path: "layer_{layer}/average_l0_{l0}", options: {l0: 1e2}}\n'
)
SHARED = Path(__file__).parents[3] / "shared" / "trials" / "yaml"


def _written(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refused(path: Path) -> str:
    with pytest.raises(ExperimentError) as caught:
        read_experiment(path)
    return str(caught.value)


def test_a_key_that_is_no_text_is_named(tmp_path: Path) -> None:
    assert "1" in _refused(_written(tmp_path, "bad_keys", FILES["bad_keys"]))


@pytest.mark.parametrize("where", ["model.memory_gb", "dictionaries.lr", "dictionaries.seed",
                                   "clustering.k"])  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused_one_by_one(tmp_path: Path, where: str) -> None:
    assert where in _refused(_written(tmp_path, "infinite", FILES["infinite"]))


def test_names_that_are_paths_are_refused(tmp_path: Path) -> None:
    told = _refused(_written(tmp_path, "outside", FILES["outside"]))
    assert told.count("letters, digits and underscores") == 2


def test_numbers_are_read_as_they_are_meant(tmp_path: Path) -> None:
    settings = read_experiment(_written(tmp_path, "numbers", NUMBERS)).settings
    assert settings.model.revision == "1234567"
    assert settings.dictionaries.options == {"l0": 100}  # pyright: ignore


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared trials are not there")
@pytest.mark.parametrize("name", ["bad_keys", "bad_date", "infinite", "outside"])
def test_the_trials_are_refused(tmp_path: Path, name: str) -> None:
    text = (SHARED / f"{name}.yaml").read_text(encoding="utf-8")
    assert all(len(line) <= 500 for line in _refused(_written(tmp_path, name, text)).splitlines())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared trials are not there")
def test_the_trial_of_numbers_is_read(tmp_path: Path) -> None:
    text = (SHARED / "numbers.yaml").read_text(encoding="utf-8")
    settings = read_experiment(_written(tmp_path, "numbers", text)).settings
    assert settings.model.revision == "1234567"
    assert settings.dictionaries.options == {"l0": 100}  # pyright: ignore
