"""The examples that make labelled texts of stories, and contrastive pairs of their pronouns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assets.settings import LabelledTextSettings
from pipelines.experiment import read_experiment

EXAMPLES = Path(__file__).parents[1] / "experiments" / "examples"
FILLER = "and then there was a very big surprise for all of the good friends " * 2
HOME = f"He sat in the kitchen with his cup {FILLER}."
OUTSIDE = f"She ran to the river with her dog {FILLER}."


def written(folder: Path, *stories: str) -> list[dict[str, str]]:
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    script = EXAMPLES / "labelled_stories.py"
    command = [sys.executable, script, folder / "stories.txt", folder / "out" / "places.jsonl"]
    subprocess.run(command, check=True, capture_output=True)
    lines = (folder / "out" / "places.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_passage_is_kept_where_it_tells_one_place_and_one_hero(tmp_path: Path) -> None:
    both_places = HOME.replace("cup", "tree")
    both_heroes = OUTSIDE.replace("dog", "dog and him")
    neither = HOME.replace("kitchen", "story")
    rows = written(tmp_path, f"{HOME} {OUTSIDE}", both_places, both_heroes, neither)
    assert [(row["place"], row["hero"]) for row in rows] == [("home", "he"), ("outside", "she")]
    assert rows[0]["text"] == " ".join(HOME.split())


def test_the_experiment_reads_what_the_script_writes(tmp_path: Path) -> None:
    classifier = read_experiment(EXAMPLES / "stories260k_shift.yaml").settings.classifier
    assert classifier is not None
    data: LabelledTextSettings = classifier.data
    (row, *_) = written(tmp_path, HOME)
    assert row.keys() == {data.text_column, data.label_column, data.attribute_column}
    assert row[data.label_column] == data.labels[0]
    assert row[data.attribute_column] == data.attributes[0]


def test_pairs_are_what_their_script_writes_and_none_is_in_two_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "story_pairs.py", tmp_path], check=True)
    tasks = read_experiment(EXAMPLES / "stories260k.yaml").settings.tasks
    assert tasks is not None
    assert tasks.pairs.keys() == {"pronoun", "number"}
    prefixes = []
    for file in sorted((EXAMPLES / "pairs").iterdir()):
        text = file.read_text(encoding="utf-8")
        assert text == (tmp_path / file.name).read_text(encoding="utf-8")
        pairs = [json.loads(line) for line in text.splitlines()]
        prefixes += [tuple(sorted((p["clean_prefix"], p["patch_prefix"]))) for p in pairs]
    assert len(prefixes) == len(set(prefixes)) == 2 * 240


@pytest.mark.parametrize("task", ["pronoun", "number"])
def test_both_sides_of_a_pair_ask_for_their_own_pronoun(task: str) -> None:
    text = (EXAMPLES / "pairs" / f"{task}_test.json").read_text(encoding="utf-8")
    for pair in map(json.loads, text.splitlines()):
        for side in ("clean", "patch"):
            hero, answer = pair[f"{side}_prefix"], pair[f"{side}_answer"]
            if " and " in hero:
                assert answer == " They"
            else:
                woman = any(word in hero for word in ("girl", "Sue", "Mia", "Amy"))
                assert answer == (" She" if woman else " He")
