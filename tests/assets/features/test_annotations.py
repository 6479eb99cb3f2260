"""People's descriptions: as this project writes them, and as the paper's authors did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.features.annotations import Annotation, read_annotations

AUTHORS = Path(__file__).parents[4] / "shared" / "annotations"


def _file(folder: Path, *rows: object) -> Path:
    path = folder / "some.annotations.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_what_a_person_said_last_counts_and_what_was_left_open_stays(tmp_path: Path) -> None:
    row = {"submodule": "mlp_2", "feature": 9, "by": "Ada"}
    path = _file(
        tmp_path,
        {**row, "text": "nouns", "interpretability": 80, "weights": "ab", "at": "t1"},
        {**row, "by": "Bo", "text": "things"},
        {**row, "text": "", "complexity": 5, "relevant": False, "at": "t2"},
    )
    bo, ada = read_annotations(path).latest()
    assert ada == Annotation("mlp_2", "features", 9, "nouns", "Ada", "t2", "ab", 80, 5, False)
    assert (bo.by, bo.text, bo.weights) == ("Bo", "things", None)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"submodule": "mlp_2", "fea', "no JSON"),  # cut short while it was written
        ("[1, 2]", "no JSON object"),
        ({"submodule": "../mlp_2", "feature": 1, "by": "A"}, "names no submodule"),
        ({"submodule": "mlp_2", "feature": -1, "by": "A"}, "names no submodule"),
        ({"submodule": "mlp_2", "feature": 1}, "by whom"),
        ({"submodule": "mlp_2", "feature": 1, "by": "A", "basis": "heads"}, "basis"),
        ({"submodule": "mlp_2", "feature": 1, "by": "A", "interpretability": 101}, "0 to 100"),
        ({"submodule": "mlp_2", "feature": 1, "by": "A", "complexity": True}, "0 to 100"),
        ({"submodule": "mlp_2", "feature": 1, "by": "A", "relevant": "yes"}, "relevant"),
        ({"submodule": "mlp_2", "feature": 1, "by": "A", "text": 3}, "a text is no text"),
        ({"Name": "Name", "Component": "Component", "Annotation": "Annotation"}, "no feature"),
        ({"Name": "embed/1425"}, "no description"),
    ],
)
def test_what_cannot_be_used_is_said_and_stops_nothing(
    row: object, why: str, tmp_path: Path
) -> None:
    good = {"submodule": "embed", "feature": 0, "by": "A", "text": "</script>\u202e"}
    found = read_annotations(_file(tmp_path, good, row))
    assert [a.text for a in found.rows] == ["</script>\u202e"]
    assert why in found.left_out[2]


def test_bytes_that_are_no_text_and_lone_surrogates_become_signs(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    row = '{"submodule": "embed", "feature": 0, "by": "A", "text": "%s"}\n'
    path.write_bytes((row % "\\ud800").encode() + (row % "@").encode().replace(b"@", b"\xff"))
    assert [a.text for a in read_annotations(path).rows] == ["?", "\ufffd"]


def test_no_file_says_nothing(tmp_path: Path) -> None:
    found = read_annotations(tmp_path / "none.jsonl")
    assert (found.rows, found.left_out) == ([], {})


@pytest.mark.skipif(not AUTHORS.is_dir(), reason="needs the authors' files")
@pytest.mark.parametrize(
    ("name", "n_rows", "n_features", "left_out"),
    [("pythia-70m-deduped", 277, 276, {112}), ("gemma-2-2b", 443, None, {368})],
)
def test_the_authors_files_are_read_with_their_irregular_rows(
    name: str, n_rows: int, n_features: int | None, left_out: set[int]
) -> None:
    found = read_annotations(AUTHORS / f"{name}.jsonl")
    assert left_out <= found.left_out.keys()
    assert len(found.rows) == n_rows
    assert n_features is None or len(found.latest()) == n_features
    assert {a.by for a in found.rows} == {name}
