"""Contrastive pairs from files: what is read, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.checks import pairs_are_of_one_length
from assets.circuits.behaviours import read_behaviours
from assets.circuits.pairs import TASK_BEHAVIOURS_STAGE, read_pairs
from assets.engine.store import ArtifactStore
from assets.settings import ExperimentError
from assets.tables.places import DROPPED_PAIRS, behaviours
from tests.tiny_experiment import tiny_experiment, write_pairs


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
    dropped = ArtifactStore(experiment.artifacts).read(DROPPED_PAIRS).to_pylist()
    assert [(row["side"], row["line"]) for row in dropped] == [
        ("train", 3),
        ("train", 4),
        ("test", 3),
        ("test", 4),
    ]
    assert {row["reason"] for row in dropped} == {
        "of another length than most, and positions are kept apart"
    }
    assert found.tokens == ("the", "cat")
    assert found.about == "the cat [is, not are]"


def test_a_mean_of_all_positions_is_warned_of_before_any_circuit(tmp_path: Path) -> None:
    for by_position in (True, False):
        experiment = tiny_experiment(tmp_path, tasks={"by_position": by_position})
        TASK_BEHAVIOURS_STAGE.run(experiment)
        found = pairs_are_of_one_length(experiment, ArtifactStore(experiment.artifacts))
        assert found.passed is by_position
    assert "simple (2 to 3). What is ablated gets the mean over all positions" in found.says
    assert "Set tasks.by_position: true" in found.says


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


def test_every_dropped_pair_is_listed_with_its_line_and_reason(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, tasks={"by_position": False})
    pair = {"clean_prefix": "the cat", "clean_answer": " is"}
    pair |= {"patch_prefix": "the cats", "patch_answer": " are"}
    train = [
        pair,
        pair | {"clean_answer": " zebra"},
        pair | {"patch_answer": " is"},
        pair | {"patch_prefix": "the zebra"},
        pair | {"patch_prefix": "the cat"},
    ]
    test = [pair | {"case": "singular"}, pair | {"clean_prefix": "a cat", "patch_prefix": "a cats"}]
    (tmp_path / "train.json").write_text("\n\n".join(map(json.dumps, train)))
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, test)))
    said: list[str] = []
    assert TASK_BEHAVIOURS_STAGE.run(experiment, said.append)
    store = ArtifactStore(experiment.artifacts)
    expected = [
        ("train", 3, "an answer is unknown to the tokenizer"),
        ("train", 5, "both answers are the same"),
        ("train", 7, "the prefixes differ in a word that is unknown to the tokenizer"),
        ("train", 9, "both prefixes are the same"),
        ("test", 1, "in the training file too"),
    ]
    dropped = store.read(DROPPED_PAIRS).to_pylist()
    assert [(row["side"], row["line"], row["reason"]) for row in dropped] == expected
    assert {row["name"] for row in dropped} == {"simple"}
    (line,) = [text for text in said if "left out" in text]
    assert line.startswith("simple: 5 pairs are left out: 1 x an answer is unknown")
    found = read_behaviours(store, "tasks", ["simple"])["simple"]
    # Numbers are those in the file.
    assert [(e.number, e.found) for e in found.examples] == [(0, True), (1, False)]
    assert found.n_dropped == len(expected)
    shown = TASK_BEHAVIOURS_STAGE.shown(experiment)["dropped_pairs"].records
    assert sum(record.data["pairs"] for record in shown) == len(expected)
