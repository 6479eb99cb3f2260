"""Behaviours of clusters: which samples a circuit is found from, and which it is judged on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from assets.circuits.behaviours import (
    Behaviour,
    Drawing,
    Example,
    behaviours_made,
    make_cluster_behaviours,
    read_behaviours,
    split_samples,
)
from assets.engine.recipe import Recipe
from assets.engine.stage import Made, Work
from assets.settings import ExperimentError
from assets.tables.conversions import samples_table
from assets.tables.places import (
    FILTERED_TOKENS,
    BehaviourSource,
    Key,
    assignments,
    behaviours,
    clusters,
    examples,
)
from assets.tables.schemas import TABLES
from core.discovery import Sample
from pipelines.experiment import read_experiment
from tests.tiny_experiment import write_experiment

PAIRS = (Example(0, True, False, (1, 2), 3, (1, 4), 5), Example(2, False, True, (6,), 3, (7,), 5))
BEHAVIOUR = Behaviour(
    "simple", "logit_difference", True, PAIRS, 2, 1, "the cat [is]", "simple", ("the", "cat")
)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work.on(read_experiment(write_experiment(tmp_path)))


def _write(work: Work, key: Key, made: Made, inputs: dict[str, str] | None = None) -> None:
    """A table and those beside it, as a stage writes them."""
    for place, beside in {key: made.table, **made.beside}.items():
        work.store.write(place, beside, Recipe(key.stage, inputs or {}, None, "1"))  # pyright: ignore


def _samples(numbers: Iterable[int], per_document: int = 1) -> dict[int, Sample]:
    """Samples that differ, so many of each document."""
    return {i: Sample(i // per_document, i, 1, (i,), 1, 0.1) for i in numbers}


def test_a_third_of_a_cluster_at_most_is_kept_back() -> None:
    chosen = split_samples(_samples(range(9)), n_found=100, n_evaluated=100)
    assert (len(chosen.found), len(chosen.evaluated)) == (6, 3)
    assert not set(chosen.found) & set(chosen.evaluated)


def test_large_clusters_give_just_what_is_asked_for() -> None:
    chosen = split_samples(_samples(range(1000)), n_found=5, n_evaluated=4)
    assert (len(chosen.found), len(chosen.evaluated)) == (5, 4)


def test_a_cluster_of_two_is_judged_on_what_it_was_found_from() -> None:
    chosen = split_samples(_samples([7, 9]), n_found=5, n_evaluated=5)
    assert list(chosen.found) == list(chosen.evaluated) == [7, 9]


def test_the_choice_does_not_depend_on_the_order_of_members() -> None:
    forward = split_samples(_samples(range(30)), n_found=6, n_evaluated=6)
    backward = split_samples(_samples(range(29, -1, -1)), n_found=6, n_evaluated=6)
    assert forward == backward


@pytest.mark.parametrize("per_document", [2, 3, 7])
def test_no_document_is_on_both_sides(per_document: int) -> None:
    samples = _samples(range(40), per_document)
    chosen = split_samples(samples, n_found=8, n_evaluated=8)
    found = {samples[i].document for i in chosen.found}
    judged = {samples[i].document for i in chosen.evaluated}
    assert found
    assert judged
    assert not found & judged


def test_samples_that_repeat_are_used_once_and_counted() -> None:
    same = {i: Sample(i, i, 2, (9, 5), 1, 0.1) for i in range(6)}
    chosen = split_samples({**same, 6: Sample(6, 6, 1, (4,), 1, 0.1)}, n_found=8, n_evaluated=8)
    assert list(chosen.found) == list(chosen.evaluated) == [0, 6]
    assert chosen.n_repeated == 5


def test_contexts_that_are_alike_where_they_are_used_repeat() -> None:
    alike = {i: Sample(i, i, 2, (i, 5), 1, 0.1) for i in range(6)}
    assert split_samples(alike, n_found=9, n_evaluated=9, max_length=1).n_repeated == 5
    assert split_samples(alike, n_found=9, n_evaluated=9).n_repeated == 0


def test_a_cluster_of_one_document_keeps_none_back() -> None:
    chosen = split_samples(_samples(range(9), 9), n_found=4, n_evaluated=4)
    assert chosen.found == chosen.evaluated


def _cluster(number: int) -> dict[str, object]:
    blank = {**dict.fromkeys(TABLES["clusters"].schema.names, 1), "typical": [0]}
    return {**blank, "cluster": number, "example": f"example {number}", "behaviour": "noun"}


def _discovered(work: Work) -> None:
    """Three samples in two clusters."""
    samples = [Sample(i, i, 3, (1, 2, 3), 5 + i, 0.1) for i in range(3)]
    labels = [("other", "other", "other", "noun")] * 3
    _write(work, FILTERED_TOKENS, Made(samples_table(samples, labels)))
    rows = [{"sample": i, "cluster": c, "similarity": 0.5} for i, c in enumerate((0, 1, 0))]
    _write(work, assignments(), Made(TABLES["cluster_assignments"].build(rows)))
    of_these = {assignments().path: work.store.content(assignments())}
    heads = TABLES["clusters"].build(_cluster(number) for number in (0, 1))
    _write(work, clusters(), Made(heads), of_these)


@pytest.mark.parametrize(("max_length", "kept"), [(2, (2, 3)), (9, (1, 2, 3)), (None, (1, 2, 3))])
def test_contexts_keep_their_end(work: Work, max_length: int | None, kept: tuple[int, ...]) -> None:
    _discovered(work)
    names = ("k00000", "k00001", "k00002")
    made = make_cluster_behaviours(work, Drawing(names, "log_odds", 4, 4, max_length))
    _write(work, behaviours("clusters"), made)
    found = read_behaviours(work.store, "clusters", names)
    own = [(e.number, e.found, e.evaluated, e.clean, e.answer) for e in found["k00000"].examples]
    assert own == [(0, True, True, kept, 5), (2, True, True, kept, 7)]
    assert [found[name].size for name in names] == [2, 1, 0]
    assert (found["k00001"].about, found["k00001"].label) == ("example 1", "noun")
    assert not found["k00002"].examples


def test_summaries_of_another_clustering_are_refused(work: Work) -> None:
    _discovered(work)
    rows = [{"sample": i, "cluster": c, "similarity": 0.5} for i, c in enumerate((0, 0, 1))]
    _write(work, assignments(), Made(TABLES["cluster_assignments"].build(rows)))
    with pytest.raises(ExperimentError, match=r"earlier clustering.*Materialize clusters first"):
        make_cluster_behaviours(work, Drawing(("k00000",), "log_odds", 4, 4, None))


@pytest.mark.parametrize("source", ["clusters", "tasks"])
def test_a_behaviour_comes_back_from_its_tables(work: Work, source: BehaviourSource) -> None:
    empty = Behaviour("k00001", "log_prob", False, [], 0, 0, "")
    made = behaviours_made(source, [BEHAVIOUR, empty])
    _write(work, behaviours(source), made)
    found = read_behaviours(work.store, source, ["simple", "k00001"])
    assert found["simple"].digest == BEHAVIOUR.digest != found["k00001"].digest
    assert tuple(found["simple"].examples) == PAIRS
    assert (found["simple"].tokens, found["k00001"].tokens) == (("the", "cat"), None)
    assert work.store.read(examples(source)).num_rows == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "log_prob"},
        {"by_position": False},
        {"examples": PAIRS[:1]},
        {"examples": (PAIRS[0], replace(PAIRS[1], answer=4))},
        {"examples": (PAIRS[0], replace(PAIRS[1], evaluated=False))},
    ],
)
def test_what_shapes_a_circuit_is_in_the_digest(changed: dict[str, object]) -> None:
    assert replace(BEHAVIOUR, **changed).digest != BEHAVIOUR.digest  # pyright: ignore
    assert replace(BEHAVIOUR, about="", label=None, size=9).digest == BEHAVIOUR.digest


def test_the_words_at_each_position_are_part_of_what_a_circuit_is_made_from() -> None:
    one = Behaviour("t", "logit_difference", True, [], 0, 0, "", tokens=("a", "b"))
    assert replace(one, tokens=("a", "c")).digest != one.digest
    assert replace(one, about="another", label="another", size=3).digest == one.digest
