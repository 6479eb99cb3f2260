"""The example that makes labelled texts of stories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
