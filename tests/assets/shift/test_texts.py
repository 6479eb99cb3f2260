"""Labelled texts: three sets of equal groups, from any data with a label and an attribute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from assets.checks import sets_are_balanced, texts_are_read_whole
from assets.engine.recipe import Recipe
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError, LabelledTextSettings
from assets.shift.texts import AMBIGUOUS, GROUPS, LABELLED_TEXTS_STAGE, TEST, TRAIN
from assets.tables.places import LABELLED_TEXTS
from tests.tiny_experiment import tiny_experiment

ANIMALS = ("cat", "dog")
ORDINARY = ("near", "old", "sees", "see", "is", "are", "runs", "run")
Rows = Sequence[Mapping[str, Any]]


def rows(n: int, labels: Sequence[Any] = ANIMALS, attributes: Sequence[Any] = (0, 1)) -> Rows:
    """`n` texts of each group, no two alike; a text of attribute 1 is about many animals."""
    tails = [" ".join(three) for three in product(ORDINARY, repeat=3)]
    return [
        {
            "words": f"the {ANIMALS[label]}{'s' * attribute} {tails[i]}",
            "animal": labels[label],
            "many": attributes[attribute],
        }
        for i in range(n)
        for label, attribute in GROUPS
    ]


def experiment(folder: Path, data: Rows | None, **changed: Any) -> Experiment:
    if data is not None:
        (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, data)), encoding="utf-8")
    section = {
        "source": "./texts.jsonl",
        "text_column": "words",
        "label_column": "animal",
        "attribute_column": "many",
        "labels": list(ANIMALS),
        "n_ambiguous": 20,
        "n_balanced_train": 40,
        "n_balanced_test": 40,
        **changed,
    }
    return tiny_experiment(folder, classifier={"data": section})


def made(one: Experiment) -> list[dict[str, Any]]:
    LABELLED_TEXTS_STAGE.run(one)
    return ArtifactStore(one.artifacts).read(LABELLED_TEXTS).to_pylist()


def sizes(table: Rows) -> dict[str, dict[tuple[int, int], int]]:
    found: dict[str, Counter[tuple[int, int]]] = {}
    for row in table:
        found.setdefault(row["set"], Counter())[row["label"], row["attribute"]] += 1
    return {name: dict(counts) for name, counts in found.items()}


def test_the_three_sets_have_equal_groups_and_share_no_text(tmp_path: Path) -> None:
    table = made(experiment(tmp_path, rows(40)))
    assert sizes(table) == {
        AMBIGUOUS: {(0, 0): 10, (1, 1): 10},
        TRAIN: dict.fromkeys(GROUPS, 10),
        TEST: dict.fromkeys(GROUPS, 10),
    }
    assert len({row["text"] for row in table}) == len(table)
    for row in table:
        assert row["text"].split()[1] == ANIMALS[row["label"]] + "s" * row["attribute"]
        assert len(row["tokens"]) == len(row["text"].split())


def test_sizes_shrink_together_where_a_group_has_too_few(tmp_path: Path) -> None:
    """10 of (0, 1), of which 20 are wanted: everything balanced is halved; ambiguous is not."""
    few = [row for row in rows(40) if (row["animal"], row["many"]) != ("cat", 1)]
    few += [row for row in rows(10) if (row["animal"], row["many"]) == ("cat", 1)]
    assert sizes(made(experiment(tmp_path, few))) == {
        AMBIGUOUS: {(0, 0): 10, (1, 1): 10},
        TRAIN: dict.fromkeys(GROUPS, 5),
        TEST: dict.fromkeys(GROUPS, 5),
    }


def test_the_seed_decides_which_texts_are_drawn(tmp_path: Path) -> None:
    def drawn(**changed: Any) -> list[str]:
        return [row["id"] for row in made(experiment(tmp_path, rows(60), **changed))]

    assert drawn() == drawn(seed=0)
    assert drawn() != drawn(seed=1)


@pytest.mark.parametrize(
    ("labels", "attributes"),
    [((21, 13), (0, 1)), (("professor", "nurse"), ("M", "F"))],
    ids=["integers", "strings"],
)
def test_a_data_set_is_read_in_the_hubs_own_layout(
    tmp_path: Path, labels: tuple[Any, Any], attributes: tuple[Any, Any]
) -> None:
    """As Bias in Bios lies on the hub: a Parquet file for each split, professions among others."""
    columns = {"words": "hard_text", "animal": "profession", "many": "gender"}
    every = [{columns[k]: v for k, v in row.items()} for row in rows(60, labels, attributes)]
    other = {"hard_text": "a bird", "profession": type(labels[0])(7), "gender": attributes[0]}
    (tmp_path / "bios" / "data").mkdir(parents=True)
    for split, part in (("train", [*every[:120], other]), ("test", every[100:])):
        file = tmp_path / "bios" / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(part), file)
    one = experiment(
        tmp_path,
        None,
        source="./bios",
        test_split="test",
        text_column="hard_text",
        label_column="profession",
        attribute_column="gender",
        labels=list(labels),
        attributes=list(attributes),
    )
    table = made(one)
    assert sizes(table)[TEST] == dict.fromkeys(GROUPS, 10)
    train = {row["hard_text"] for row in every[:120]}
    for row in table:
        assert (row["text"] in train) == (row["set"] != TEST)
        assert row["text"] != other["hard_text"]


def test_a_changed_file_below_the_folder_makes_the_texts_stale(tmp_path: Path) -> None:
    file = tmp_path / "bios" / "data" / "train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(map(json.dumps, rows(40))), encoding="utf-8")
    one = experiment(tmp_path, None, source="./bios")
    assert LABELLED_TEXTS_STAGE.run(one)
    assert not LABELLED_TEXTS_STAGE.run(one)
    file.write_text("\n".join(map(json.dumps, rows(41))), encoding="utf-8")
    assert LABELLED_TEXTS_STAGE.run(one)


def test_what_tokens_tell_is_kept_with_them(tmp_path: Path) -> None:
    tells = ["", "animal", "many", "", ""]
    (row, *_) = made(
        experiment(tmp_path, [{**r, "t": tells} for r in rows(40)], tells_column="t", n_positions=4)
    )
    assert row["tells"] == ["", "label", "attribute", ""]
    assert len(row["tokens"]) == 4


def test_long_texts_are_cut_to_the_models_positions_and_it_is_said(tmp_path: Path) -> None:
    long = [{**row, "words": row["words"] + " run" * 40} for row in rows(40)]
    said: list[str] = []
    one = experiment(tmp_path, long)
    LABELLED_TEXTS_STAGE.run(one, said.append)
    table = ArtifactStore(one.artifacts).read(LABELLED_TEXTS).to_pylist()
    assert {len(row["tokens"]) for row in table} == {32}
    assert table[0]["text"].endswith("run run")
    assert any("100 of 100 labelled texts are cut to their first 32 tokens" in s for s in said)


def test_sets_that_are_not_balanced_are_noticed(tmp_path: Path) -> None:
    one = experiment(tmp_path, rows(40))
    LABELLED_TEXTS_STAGE.run(one)
    store = ArtifactStore(one.artifacts)
    assert sets_are_balanced(one, store).passed
    assert texts_are_read_whole(one, store).passed
    table = store.read(LABELLED_TEXTS)
    damaged = pa.concat_tables([table.slice(1), table.slice(5, 1)])
    store.write(LABELLED_TEXTS, damaged, Recipe("labelled_texts", {}, {}, ""))
    found = sets_are_balanced(one, store)
    assert not found.passed
    assert found.says == "Sets with groups of different sizes: ambiguous; 1 texts are there twice."


def without(data: Rows, **group: Any) -> Rows:
    return [row for row in data if any(row[key] != value for key, value in group.items())]


@pytest.mark.parametrize(
    ("data", "changed", "told"),
    [
        (rows(9), {"label_column": "kind"}, "has no column 'kind', only animal, many, words"),
        (rows(9), {"labels": ["cat", "cow"]}, r"no row has 'cow' .* 'cat' \(18\), 'dog' \(18\)"),
        (rows(9), {"attributes": ["0", "1"]}, r"no row has '0' in .* 0 \(18\)"),
        (without(rows(9), animal="dog"), {}, "no row has 'dog'"),
        (without(rows(9), animal="dog", many=0), {}, r"no text of [^()]* with many 0"),
        (rows(1), {}, "1 of cat/0, .* are too few for the sets"),
        (rows(9), {"test_split": "test"}, "one file and has no splits"),
        ([{**r, "t": ["", ""]} for r in rows(9)], {"tells_column": "t"}, "another tokenizer"),
        ([{**r, "t": ["x"]} for r in rows(9)], {"tells_column": "t"}, "'animal', 'many' or ''"),
    ],
)  # fmt: skip
def test_what_makes_no_sets_is_said_with_the_way_out(
    tmp_path: Path, data: Rows, changed: Mapping[str, Any], told: str
) -> None:
    one = experiment(tmp_path, data, **changed)
    with pytest.raises(ExperimentError, match=told):
        LABELLED_TEXTS_STAGE.run(one)


def test_a_file_that_is_not_there_is_named_with_the_setting(tmp_path: Path) -> None:
    one = experiment(tmp_path, None)
    with pytest.raises(ExperimentError, match=r"classifier\.data: .*texts\.jsonl' does not exist"):
        LABELLED_TEXTS_STAGE.run(one)


def test_half_of_a_surrogate_pair_does_not_stop_the_texts(tmp_path: Path) -> None:
    table = made(experiment(tmp_path, [{**r, "words": r["words"] + " \ud800"} for r in rows(40)]))
    assert all(row["text"].endswith(" \ufffd") for row in table)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "bios").mkdir()
    (tmp_path / "bios" / "train.jsonl").write_text('{"words": "a"}')
    one = experiment(tmp_path, None, source="./bios", split="dev")
    with pytest.raises(ExperimentError, match=r"classifier.data: split dev of .* could not"):
        LABELLED_TEXTS_STAGE.run(one)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"labels": (1, 1)}, "both are 1"),
        ({"n_balanced_test": 3}, "one of 4 groups without a text"),
        ({"attribute_column": "animal"}, "is the column of labels"),
    ],
)
def test_settings_that_clash_are_refused(changed: Mapping[str, Any], told: str) -> None:
    section = {"source": "a", "label_column": "animal", "attribute_column": "many"}
    with pytest.raises(ValidationError, match=told):
        LabelledTextSettings(**{**section, "labels": (0, 1), **changed})
