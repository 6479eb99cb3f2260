"""A stage opens what it declares and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from assets.circuits.pairs import TASK_BEHAVIOURS_STAGE
from assets.discovery.tokens import FILTERED_TOKENS_STAGE
from assets.engine.loading import Loader, Need
from assets.engine.stage import always
from assets.engine.store import Undeclared
from assets.settings import Experiment
from tests.tiny_experiment import tiny_experiment

LOADS: dict[Need, Callable[[Loader], object]] = {
    "model": Loader.model,
    "tokenizer": Loader.tokenizer,
    "dictionaries": Loader.dictionaries,
}


@pytest.mark.parametrize("need", LOADS)
def test_a_loader_refuses_what_is_not_declared(finished: Experiment, need: Need) -> None:
    others = [other for other in LOADS if other != need]
    with pytest.raises(Undeclared, match=f"loads the {need} without declaring it"):
        LOADS[need](Loader(finished).only(others))
    assert LOADS[need](Loader(finished)) is not None


def test_a_tokenizer_is_known_by_all_its_files_and_by_what_it_makes_of_texts(
    copied: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied.path.parent / "model"

    def identity() -> str | None:
        return Loader(copied).identity("tokenizer")

    known = [identity()]
    (folder / "README.md").write_text("not the tokenizer's")
    assert identity() == known[0]
    for name in ("vocab.json", "merges.txt", "spiece.model", "special_tokens_map.json"):
        (folder / name).write_text("{}")
        known.append(identity())
    # The same files, read in another way by another version of a class.
    monkeypatch.setattr("core.models.load.probe_ids", lambda tokenizer: [[1, 2, 3]])
    known.append(identity())
    assert len(set(known)) == 6


def test_which_reading_of_a_tokenizer_is_meant_is_part_of_it(copied: Experiment) -> None:
    model = copied.settings.model.model_copy(update={"tokenizer": "file"})
    other = replace(copied, settings=copied.settings.model_copy(update={"model": model}))
    assert Loader(other).identity("tokenizer") != Loader(copied).identity("tokenizer")
    assert Loader(other).as_written("tokenizer") != Loader(copied).as_written("tokenizer")


def test_dictionaries_need_the_model_for_its_device(finished: Experiment) -> None:
    with pytest.raises(Undeclared, match="loads the model"):
        Loader(finished).only(["dictionaries"]).dictionaries()
    loaded = Loader(finished).only(["dictionaries", "model"]).dictionaries()
    assert list(loaded) == finished.submodules


def test_a_stage_cannot_read_a_table_that_is_no_dep(finished: Experiment) -> None:
    stage = replace(FILTERED_TOKENS_STAGE, deps=always("saes"), inputs=lambda _w, _s: {"a": "b"})
    with pytest.raises(Undeclared, match="contexts, which is not among"):
        stage.run(finished)


def test_a_stage_cannot_write_a_table_of_another(finished: Experiment) -> None:
    stage = replace(FILTERED_TOKENS_STAGE, name="another")
    with pytest.raises(Undeclared, match="filtered_tokens, which is not among"):
        stage.run(finished)


def test_a_stage_cannot_load_what_it_does_not_need(finished: Experiment) -> None:
    stage = replace(TASK_BEHAVIOURS_STAGE, needs=always())
    with pytest.raises(Undeclared, match="loads the tokenizer"):
        stage.run(finished)


def _slow_tokenizer(folder: Path, merges: str) -> None:
    """A GPT-2 tokenizer of the files that older models come with, and no tokenizer.json."""
    folder.mkdir(exist_ok=True)
    vocabulary = ["<|endoftext|>", "a", "b", "c", "ab", "bc", "\u0120"]
    (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def test_every_file_of_a_tokenizer_counts(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, model={"source": "./slow"})
    tokens = {}
    for merges in ("a b", "b c"):
        _slow_tokenizer(tmp_path / "slow", merges)
        (tmp_path / "slow" / "model.safetensors").write_bytes(b"")
        loader = Loader(experiment)
        tokens[loader.identity("tokenizer")] = tuple(loader.tokenizer()("abc")["input_ids"])
    assert len(tokens) == 2
    assert len(set(tokens.values())) == 2
    before = Loader(experiment).identity("tokenizer")
    (tmp_path / "slow" / "model.safetensors").write_bytes(b"other weights")
    assert Loader(experiment).identity("tokenizer") == before
