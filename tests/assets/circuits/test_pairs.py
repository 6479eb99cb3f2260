"""Contrastive pairs from files: what is read, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.circuits.behaviours import read_behaviours
from assets.circuits.pairs import TASK_BEHAVIOURS_STAGE, read_pairs, without
from assets.engine.store import ArtifactStore
from assets.settings import ExperimentError
from assets.tables.places import behaviours
from tests.tiny_experiment import tiny_experiment, write_pairs

PAIR = {
    "clean_prefix": "the cat",
    "patch_prefix": "the cats",
    "clean_answer": " is",
    "patch_answer": " are",
}


def test_held_out_pairs_that_were_trained_on_are_left_out() -> None:
    other = PAIR | {"clean_prefix": "the dog"}
    assert without([PAIR, other], [dict(PAIR, case="singular")]) == [other]


@pytest.mark.parametrize("text", ["not json", json.dumps({"clean_prefix": "the cat"})])
def test_a_file_that_holds_no_pairs_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(ExperimentError, match=r"pairs\.json"):
        read_pairs(str(tmp_path / "pairs.json"))


def test_a_missing_file_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_pairs(str(tmp_path / "pairs.json"))


def test_by_position_the_pairs_of_the_most_frequent_length_are_kept(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    assert TASK_BEHAVIOURS_STAGE.run(experiment)
    found = read_behaviours(ArtifactStore(experiment.artifacts), "tasks", ["simple"])["simple"]
    # Two of the four pairs of each file have two tokens, the others three.
    assert [len(example.clean) for example in found.examples] == [2, 2, 2, 2]
    assert [example.found for example in found.examples] == [True, True, False, False]
    assert (found.size, found.n_dropped, found.held_out) == (4, 4, True)
    assert found.tokens == ("the", "cat")
    assert found.about == "the cat [is, not are]"


def test_what_is_wrong_with_all_files_is_said_at_once_before_any_table(tmp_path: Path) -> None:
    pairs = {
        "simple": {"train": "./train.json", "test": "./test.json"},
        "gone": {"train": "./gone.json", "test": "./test.json"},
        "same": {"train": "./train.json", "test": "./train.json"},
    }
    experiment = tiny_experiment(tmp_path, tasks={"pairs": pairs})
    with pytest.raises(ExperimentError) as caught:
        TASK_BEHAVIOURS_STAGE.run(experiment)
    gone, same = str(caught.value).splitlines()
    assert gone.startswith(f"tasks.pairs.gone: pairs in {tmp_path / 'gone.json'} cannot be read")
    assert same.startswith(f"tasks.pairs.same: {tmp_path / 'train.json'} has no pairs that are not")
    assert ArtifactStore(experiment.artifacts).footer(behaviours("tasks")) is None
    write_pairs(tmp_path / "gone.json", ("bird", "birds"))
    with pytest.raises(ExperimentError, match=r"^tasks\.pairs\.same"):
        TASK_BEHAVIOURS_STAGE.run(experiment)
