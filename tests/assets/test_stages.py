"""What the stages decide themselves, on three rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from assets.discovery.stages import example

from assets.circuits.pairs import read_pairs, thresholds, without
from assets.circuits.stages import choose_examples, examples_table
from assets.settings import ExperimentError
from core.discovery import Sample
from tests.tiny_experiment import _tokenizer

PAIR = {
    "clean_prefix": "the cat",
    "patch_prefix": "the cats",
    "clean_answer": " is",
    "patch_answer": " are",
}


def test_a_third_of_a_cluster_at_most_is_kept_back() -> None:
    chosen = choose_examples(range(9), n_found=100, n_evaluated=100)
    assert (len(chosen.found), len(chosen.evaluated)) == (6, 3)
    assert not set(chosen.found) & set(chosen.evaluated)


def test_large_clusters_give_just_what_is_asked_for() -> None:
    chosen = choose_examples(range(1000), n_found=5, n_evaluated=4)
    assert (len(chosen.found), len(chosen.evaluated)) == (5, 4)


def test_a_cluster_of_two_is_judged_on_what_it_was_found_from() -> None:
    chosen = choose_examples([7, 9], n_found=5, n_evaluated=5)
    assert list(chosen.found) == list(chosen.evaluated) == [7, 9]


def test_the_choice_does_not_depend_on_the_order_of_members() -> None:
    forward = choose_examples(range(30), n_found=6, n_evaluated=6)
    backward = choose_examples(range(29, -1, -1), n_found=6, n_evaluated=6)
    assert forward == backward


@pytest.mark.parametrize(("max_length", "kept"), [(2, [2, 3]), (9, [1, 2, 3]), (None, [1, 2, 3])])
def test_contexts_keep_their_end(max_length: int | None, kept: list[int]) -> None:
    samples = {4: Sample(0, 0, 3, (1, 2, 3), 5, 0.1)}
    chosen = choose_examples([4], n_found=1, n_evaluated=1)
    rows = examples_table(samples, chosen, max_length).to_pylist()
    assert rows == [{"sample": 4, "found": True, "evaluated": True, "tokens": kept, "answer": 5}]


def test_an_example_is_one_line_with_its_answer_in_brackets() -> None:
    tokenizer = _tokenizer()
    ids = tokenizer("the old cat is")["input_ids"]
    assert example(tokenizer, ids[:-1], ids[-1]) == "…the old cat [is]"


def test_thresholds_are_the_papers() -> None:
    found = thresholds(15)
    assert found[0] == pytest.approx(1e-4)
    assert found[-1] == pytest.approx(1.0)
    assert found[7] == pytest.approx(1e-2)


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
