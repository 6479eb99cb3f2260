"""Contexts on disk behave like a list of them, and are never all in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from assets.corpus.contexts import (
    Contexts,
    contexts_pieces,
    contexts_table,
    read_contexts,
    read_lengths,
    telling,
)
from assets.corpus.stages import CONTEXTS_STAGE
from assets.corpus.text import Context
from assets.corpus.writing import write_cache
from assets.engine.recipe import Recipe
from assets.engine.store import ArtifactStore, content_hash
from assets.settings import ExperimentError
from assets.tables.conversions import samples_table
from assets.tables.places import CONTEXTS
from core.discovery import Sample
from core.training import ModelRows
from tests.assets.corpus.toy_model import WIDTHS, ToyModel
from tests.core.tiny import make_model
from tests.tiny_experiment import tiny_experiment

RECIPE = Recipe("contexts", {}, {}, "1")
NAMES = ["embed", "resid_1"]


def _contexts(n: int = 11) -> list[Context]:
    """Contexts of 2 to 7 tokens, every third with labels."""
    rng = Random(0)
    found = []
    for i in range(n):
        tokens = [rng.randrange(12) for _ in range(rng.randint(2, 7))]
        found.append(Context(2 * i, tokens, tuple(f"l{t}" for t in tokens) if i % 3 == 0 else None))
    return found


def _write(folder: Path, contexts: list[Context], n: int = 4) -> ArtifactStore:
    store = ArtifactStore(folder)
    store.write(CONTEXTS, contexts_pieces(contexts, n), RECIPE)
    return store


@pytest.fixture
def known() -> list[Context]:
    return _contexts()


@pytest.fixture
def store(tmp_path: Path, known: list[Context]) -> ArtifactStore:
    return _write(tmp_path, known)


@pytest.fixture
def found(store: ArtifactStore) -> Contexts:
    return read_contexts(store)


def _reads(found: Contexts) -> list[int]:
    """The row groups that are read from now on, in a list that grows."""
    file, seen = found._source._file, []
    own: Callable[[int], pa.Table] = file.read_row_group

    def read_row_group(index: int) -> pa.Table:
        seen.append(index)
        return own(index)

    file.read_row_group = read_row_group
    return seen


def test_contexts_come_back_in_order_one_by_one_and_from_the_end(
    found: Contexts, known: list[Context]
) -> None:
    assert list(found) == known
    assert [found[i] for i in range(len(found))] == known
    assert [found[-i] for i in range(1, 12)] == known[::-1]
    assert list(found.tokens) == [context.tokens for context in known]
    assert list(found.labels) == [context.labels for context in known]
    assert list(found) != [*known[:-1], Context(99, [1, 2])]


@pytest.mark.parametrize(
    "part",
    [slice(3, 9), slice(-4, None), slice(None, -4), slice(1, None, 3), slice(None, None, -1)],
)
def test_slices_are_those_of_the_list_and_may_be_cut_again(
    found: Contexts, known: list[Context], part: slice
) -> None:
    assert list(found[part]) == known[part]
    assert len(found[part]) == len(known[part])
    assert list(found[part][1:3]) == known[part][1:3]
    assert list(found[part].tokens[1:]) == [context.tokens for context in known[part][1:]]


@pytest.mark.parametrize("index", [11, -12])
def test_there_is_nothing_beyond_the_ends(found: Contexts, index: int) -> None:
    with pytest.raises(IndexError):
        found[index]
    with pytest.raises(IndexError):
        found[2:5][3]


def test_an_empty_slice_is_false_like_an_empty_list(found: Contexts) -> None:
    assert not found[:0]
    assert (found[:0] or found) is found


def test_lengths_and_slices_read_nothing_and_a_pass_reads_each_row_group_once(
    found: Contexts,
) -> None:
    seen = _reads(found)
    assert (len(found), len(found[2:9]), len(found.tokens[::2])) == (11, 7, 6)
    assert seen == []
    assert len(list(found)) == 11
    assert seen == [0, 1, 2]


def test_only_the_row_groups_read_last_are_held(tmp_path: Path) -> None:
    found = read_contexts(_write(tmp_path, _contexts(40)))
    seen = _reads(found)
    assert list(found) == list(found)
    assert seen == [*range(10), *range(10)]


def test_lengths_are_those_of_the_tokens(store: ArtifactStore, known: list[Context]) -> None:
    assert read_lengths(store).tolist() == [len(context.tokens) for context in known]


def test_a_corpus_that_was_not_read_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="materialize contexts first"):
        read_contexts(ArtifactStore(tmp_path))


@pytest.mark.parametrize("n", [1, 3, 4, 100])
def test_the_hash_is_that_of_the_whole_table_whatever_the_row_groups(
    tmp_path: Path, known: list[Context], n: int
) -> None:
    store = _write(tmp_path, known, n)
    assert store.open(CONTEXTS).metadata.num_row_groups == -(-11 // n)
    content = store.content(CONTEXTS)
    assert content == content_hash(contexts_table(known)) == content_hash(store.read(CONTEXTS))
    other = _write(tmp_path, [*known[:-1], Context(20, known[-1].tokens[::-1])], n)
    assert other.content(CONTEXTS) != content


def test_samples_take_their_labels_from_the_file(found: Contexts, known: list[Context]) -> None:
    samples = [Sample(2 * w, w, 1, (1,), 2, 0.1) for w in (0, 1, 9)]
    labels = samples_table(samples, found.labels)["label"].to_pylist()
    expected = [known[w].labels for w in (0, 1, 9)]
    assert labels == [own and own[1] for own in expected]
    assert labels[0] is not None


def test_a_cache_of_the_file_is_that_of_the_list(
    tmp_path: Path, found: Contexts, known: list[Context]
) -> None:
    def manifest(name: str, contexts: Contexts | list[Context]) -> str:
        model = ToyModel()
        options = {"model_fingerprint": "toy", "contexts_per_shard": 3, "batch_contexts": 2}
        found = write_cache(tmp_path / name, model, contexts, list(WIDTHS), **options)  # pyright: ignore
        return found.to_json()

    assert manifest("file", found) == manifest("list", known)
    assert manifest("part", found[1:]) != manifest("list", known)


def test_training_from_the_file_is_training_from_the_list(
    found: Contexts, known: list[Context]
) -> None:
    model = make_model("gpt_neox")
    lists = [context.tokens for context in known[:-2]]
    ours = ModelRows(model, found[:-2].tokens, NAMES, contexts_per_unit=2)
    theirs = ModelRows(model, lists, NAMES, contexts_per_unit=2)
    assert (ours.fingerprint, ours.unit_rows) == (theirs.fingerprint, theirs.unit_rows)
    for unit in (4, 0, 2):
        (values, document), (expected, documents) = ours.load(unit), theirs.load(unit)
        assert document.equal(documents)
        assert all(values[name].equal(expected[name]) for name in NAMES)
    assert (
        ModelRows(model, found.tokens, NAMES, contexts_per_unit=2).fingerprint != ours.fingerprint
    )


def test_what_was_left_out_or_changed_is_in_the_footer(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, corpus={"labels_column": None})
    texts = ["the cat", " ", None, "a \ud800 dog", "dog", "the dogs"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    said: list[str] = []
    assert CONTEXTS_STAGE.run(experiment, said.append)
    store = ArtifactStore(experiment.artifacts)
    assert store.n_rows(CONTEXTS) == 3
    assert store.notes(CONTEXTS)["read"] == {
        "n_read": 4,
        "skipped": {"text is blank": 1, "text is null": 1, "fewer than two tokens": 1},
        "replaced": {"lone surrogates, now U+FFFD": 1},
        "notes": [],
    }
    assert len(said) == 5  # why it is made, and a line for each of these


def test_progress_is_told_every_so_many_contexts(known: list[Context]) -> None:
    told: list[str] = []
    assert list(telling(known, told.append, every=5)) == known
    first = sum(len(context.tokens) for context in known[:5])
    assert told[0] == f"5 contexts read, {first} tokens"
    assert len(told) == 2


# -- memory ---------------------------------------------------------------------------------------

TOKENS = list(range(1000, 1008))


def _many(n: int) -> Iterator[Context]:
    return (Context(i, TOKENS) for i in range(n))


def _arrow_peak(work: Iterable[object]) -> int:
    """The most bytes of Arrow buffers held at any step of `work`."""
    before = pa.total_allocated_bytes()
    return max(pa.total_allocated_bytes() - before for _ in work)


def test_200_000_contexts_are_written_and_read_without_holding_them(tmp_path: Path) -> None:
    store, held = ArtifactStore(tmp_path), []
    before = pa.total_allocated_bytes()

    def pieces() -> Iterator[pa.Table]:
        for piece in contexts_pieces(_many(200_000)):
            held.append(pa.total_allocated_bytes() - before)
            yield piece

    store.write(CONTEXTS, pieces(), RECIPE)
    assert len(held) == 391
    assert max(held) < 2 << 20
    assert _arrow_peak(read_contexts(store).tokens) < 2 << 20
    # As one table they break the bound.
    assert _arrow_peak(contexts_pieces(_many(200_000), 200_000)) > 4 << 20


def _python_peak(work: Callable[[], object]) -> int:
    """The most bytes of Python objects and numpy arrays that `work` held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_python_objects_are_made_for_one_row_group_at_a_time(tmp_path: Path) -> None:
    store, n = ArtifactStore(tmp_path), 20_000
    write = _python_peak(lambda: store.write(CONTEXTS, contexts_pieces(_many(n)), RECIPE))
    read = _python_peak(lambda: sum(map(len, read_contexts(store).tokens)))
    assert max(write, read) < 2 << 20
    assert _python_peak(lambda: list(contexts_pieces(_many(n), n))) > 4 << 20
