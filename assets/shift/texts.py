"""Labelled texts: an ambiguous set in which an attribute goes with the label, and balanced ones.

Bias in Bios in its own layout, or any texts with a label and an attribute in columns. A text is in
one set at most, and all groups of a set are equally large.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from assets.corpus.rows import Reading, Row, data_set_rows, read_rows
from assets.corpus.text import harmless, without_surrogates
from assets.engine.outside import files_of
from assets.engine.recipe import Source, digest, hash_place
from assets.engine.stage import Made, Metadata, TableStage, Work, always
from assets.plots import records
from assets.settings import Experiment, ExperimentError
from assets.tables.places import LABELLED_TEXTS
from assets.tables.schemas import TABLES
from core.errors import InputError

Group = tuple[int, int]
"""Label and attribute, each 0 or 1."""

GROUPS: tuple[Group, ...] = tuple(product((0, 1), (0, 1)))
AMBIGUOUS, TRAIN, TEST = "ambiguous", "balanced_train", "balanced_test"
_TELLS_LABEL, _TELLS_ATTRIBUTE = "label", "attribute"
_SHOWN = 200  # characters of a text
_MOST_VALUES = 20
_AS_ON_THE_HUB = (
    "A folder is laid out as on the hub: its files are named after their splits, such as "
    "data/train-00000-of-00001.parquet."
)


@dataclass(frozen=True)
class Texts:
    """Which texts are taken; see `assets.settings.LabelledTextSettings`."""

    source: Source
    split: str
    test_split: str | None
    revision: str | None
    text_column: str
    label_column: str
    attribute_column: str
    tells_column: str | None
    labels: tuple[Any, Any]
    attributes: tuple[Any, Any]
    n_ambiguous: int
    n_balanced_train: int
    n_balanced_test: int
    n_positions: int
    seed: int
    bos: bool


@dataclass(frozen=True)
class Labelled:
    """One text of the data.

    Attributes:
        text: the text.
        group: its label and attribute.
        tells: what each of its tokens tells, where that is known.
        where: file and line it was read from, for messages.
    """

    text: str
    group: Group
    tells: tuple[str, ...] | None
    where: str


def _reads(experiment: Experiment) -> Texts:
    classifier = experiment.settings.classifier
    assert classifier is not None, "stages of a classifier exist only with one"
    data = classifier.data.model_dump()
    written = data.pop("source")
    place = experiment.resolve(written)
    source = Source(written, place, whole=not os.path.isdir(place))
    return Texts(source=source, bos=experiment.settings.corpus.bos, **data)


def _inputs(_work: Work, texts: Texts) -> Mapping[str, str]:
    """The files below a folder; a file and a hub id stand for themselves."""
    place = texts.source.place
    if texts.source.whole:
        return {}
    return {"files": digest([(path, hash_place(path)) for path, _, _ in files_of(place)])}


# -- reading --------------------------------------------------------------------------------------


def read_labelled(texts: Texts, split: str, reading: Reading) -> list[Labelled]:
    """The texts of a split that are of one of the four groups, no text twice.

    Raises:
        InputError: the source is missing or cannot be read.
        ExperimentError: a column or a value is not there, or a group has no text.
    """
    found: dict[str, Labelled] = {}
    values: dict[str, Counter[Any]] = {
        texts.label_column: Counter(),
        texts.attribute_column: Counter(),
    }
    for row in _rows(texts, split, reading):
        own = [_cell(row, column) for column in (texts.label_column, texts.attribute_column)]
        for counter, value in zip(values.values(), own, strict=True):
            counter[_countable(value)] += 1
        text = _text(_cell(row, texts.text_column))
        group = _number(own[0], texts.labels), _number(own[1], texts.attributes)
        if group not in GROUPS:
            continue
        if not text.strip():
            reading.skip("no text", row.where)
        elif text in found:
            reading.skip("the text of an earlier row", row.where)
        else:
            reading.n_read += 1
            found[text] = Labelled(text, group, _tells(texts, row), row.where)
    _check_values(texts, values)
    _check_groups(texts, found.values(), split)
    return list(found.values())


def _rows(texts: Texts, split: str, reading: Reading) -> Iterator[Row]:
    columns = [texts.text_column, texts.label_column, texts.attribute_column]
    columns += [texts.tells_column] if texts.tells_column else []
    place = texts.source.place
    if os.path.isdir(place):
        yield from data_set_rows(place, split, way_out=_AS_ON_THE_HUB)
        return
    if place.lower().endswith(".txt"):
        raise ExperimentError(
            f"classifier.data.source: {texts.source.written} is plain text, which has no column of "
            "labels: write it as JSON lines or Parquet."
        )
    if os.path.exists(place) and texts.test_split is not None:
        raise ExperimentError(
            f"classifier.data.test_split: {texts.source.written} is one file and has no splits: "
            "leave test_split out, or give the folder of a data set."
        )
    yield from read_rows(
        place, columns, split=split, revision=texts.revision, separator=None, reading=reading
    )


def _cell(row: Row, column: str) -> Any:
    if column not in row.values:
        names = ", ".join(sorted(harmless(str(name)) for name in row.values))
        raise ExperimentError(
            f"{row.where} has no column '{column}', only {names}: correct the columns in "
            "classifier.data."
        )
    return row.values[column]


def _text(cell: Any) -> str:
    """A cell as text; empty where it holds none."""
    return without_surrogates(cell) if isinstance(cell, str) else ""


def _countable(value: Any) -> Any:
    """A value to count by; whole numbers of JSON are read as floating ones."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _number(value: Any, of: tuple[Any, Any]) -> int:
    """Which of two values it is; -1 for neither."""
    return next((i for i, one in enumerate(of) if one == value), -1)


def _tells(texts: Texts, row: Row) -> tuple[str, ...] | None:
    if texts.tells_column is None:
        return None
    cell = _cell(row, texts.tells_column)
    words = {texts.label_column: _TELLS_LABEL, texts.attribute_column: _TELLS_ATTRIBUTE}
    if not isinstance(cell, list) or not set(map(str, cell)) <= {*words, ""}:
        raise ExperimentError(
            f"{row.where}: '{texts.tells_column}' must have a word for each token, "
            f"'{texts.label_column}', '{texts.attribute_column}' or '' (tells_column)."
        )
    return tuple(words.get(one, "") for one in cell)


def _check_values(texts: Texts, values: Mapping[str, Counter[Any]]) -> None:
    for key, column, wanted in (
        ("labels", texts.label_column, texts.labels),
        ("attributes", texts.attribute_column, texts.attributes),
    ):
        counted = values[column]
        missing = [one for one in wanted if one not in counted]
        if missing:
            there = ", ".join(f"{v!r} ({n})" for v, n in counted.most_common(_MOST_VALUES))
            raise ExperimentError(
                f"classifier.data.{key}: no row has {missing[0]!r} in column '{column}'; there is "
                f"{harmless(there) or 'no row at all'}. Texts of both classes and both attributes "
                "are needed: name values that are there (numbers without quotes)."
            )


def _check_groups(texts: Texts, found: Iterable[Labelled], split: str) -> None:
    counts = Counter(one.group for one in found)
    read = texts.source.written + ("" if os.path.isfile(texts.source.place) else f" ({split})")
    for label, attribute in GROUPS:
        if not counts[label, attribute]:
            raise ExperimentError(
                f"classifier.data: no text of {read} has "
                f"{texts.label_column} {texts.labels[label]!r} with {texts.attribute_column} "
                f"{texts.attributes[attribute]!r}. Without that group no set is balanced, and "
                "nothing shows what a classifier goes by: take other values, or more texts."
            )


# -- choosing -------------------------------------------------------------------------------------


def chosen(
    texts: Texts, pool: Sequence[Labelled], judged: Sequence[Labelled]
) -> dict[str, list[Labelled]]:
    """The texts of each set, in an order by chance.

    Args:
        texts: how many of each, and the seed.
        pool: texts to learn from.
        judged: those to judge on; empty where they are from the pool too.

    Raises:
        ExperimentError: a group has too few texts for a set to have one of it.
    """
    rng = Random(texts.seed)
    of_group = _grouped(pool, rng)
    sizes = ", ".join(f"{len(of_group[g])} of {_named(texts, g)}" for g in GROUPS)
    agreeing = texts.n_ambiguous // 2
    train, test = texts.n_balanced_train // 4, 0 if judged else texts.n_balanced_test // 4
    share = min(
        1.0, *(len(of_group[g]) / (train + test + agreeing * (g[0] == g[1])) for g in GROUPS)
    )
    train, test = int(train * share), int(test * share)
    left = min(len(of_group[g]) for g in GROUPS if g[0] == g[1]) - train - test
    sets = {
        TEST: _take(of_group, GROUPS, test),
        TRAIN: _take(of_group, GROUPS, train),
        AMBIGUOUS: _take(of_group, [g for g in GROUPS if g[0] == g[1]], min(agreeing, left)),
    }
    if judged:
        of_judged = _grouped(judged, rng)
        most = min(len(of_judged[g]) for g in GROUPS)
        sets[TEST] = _take(of_judged, GROUPS, min(texts.n_balanced_test // 4, most))
    empty = [name for name, members in sets.items() if not members]
    if empty:
        raise ExperimentError(
            f"classifier.data: {sizes} are too few for the sets {', '.join(empty)} to have a text "
            "of each group: give more texts, or make the other sets smaller."
        )
    for members in sets.values():
        rng.shuffle(members)
    return {name: sets[name] for name in (AMBIGUOUS, TRAIN, TEST)}


def _grouped(pool: Iterable[Labelled], rng: Random) -> dict[Group, list[Labelled]]:
    of_group: dict[Group, list[Labelled]] = {group: [] for group in GROUPS}
    for one in pool:
        of_group[one.group].append(one)
    for members in of_group.values():
        rng.shuffle(members)
    return of_group


def _take(
    of_group: Mapping[Group, list[Labelled]], groups: Sequence[Group], n: int
) -> list[Labelled]:
    return [of_group[group].pop() for group in groups for _ in range(n)]


def _named(texts: Texts, group: Group) -> str:
    return f"{texts.labels[group[0]]}/{texts.attributes[group[1]]}"


# -- the stage ------------------------------------------------------------------------------------


def make_labelled_texts(work: Work, texts: Texts) -> Made:
    """Read the texts, draw the three sets, and cut texts to what the model reads."""
    reading = Reading(say=work.say)
    try:
        pool = read_labelled(texts, texts.split, reading)
        judged = _of_test_split(texts, pool, reading)
    except InputError as error:
        raise ExperimentError(f"classifier.data: {error}") from error
    sets = chosen(texts, pool, judged)
    wanted = {
        AMBIGUOUS: texts.n_ambiguous,
        TRAIN: texts.n_balanced_train,
        TEST: texts.n_balanced_test,
    }
    work.say(
        "labelled texts: "
        + ", ".join(f"{len(sets[name])} {name} (of {n} asked for)" for name, n in wanted.items())
    )
    most = min(texts.n_positions, work.load.model().max_positions)
    rows, n_cut = [], 0
    for name, members in sets.items():
        for one, tokens, tells, whole in _tokenized(work, texts, members, most):
            n_cut += whole > most
            rows.append(
                {
                    "id": hashlib.sha256(one.text.encode()).hexdigest()[:16],
                    "set": name,
                    "label": one.group[0],
                    "attribute": one.group[1],
                    "tokens": tokens,
                    "tells": tells,
                    "text": one.text,
                }
            )
    if n_cut:
        work.say(
            f"{n_cut} of {len(rows)} labelled texts are cut to their first {most} tokens "
            "(classifier.data.n_positions, and the positions of the model)"
        )
    notes = {"read": reading.counts(), "n_cut": n_cut, "n_positions": most}
    return Made(TABLES["labelled_texts"].build(rows), notes)


def _of_test_split(texts: Texts, pool: Iterable[Labelled], reading: Reading) -> list[Labelled]:
    """The texts to judge on that are not among those to learn from, where they lie apart."""
    if texts.test_split is None:
        return []
    known, judged = {one.text for one in pool}, list[Labelled]()
    for one in read_labelled(texts, texts.test_split, reading):
        if one.text in known:
            reading.skip(f"the text of a row of {texts.split}", one.where)
        else:
            judged.append(one)
    _check_groups(texts, judged, texts.test_split)
    return judged


def _tokenized(
    work: Work, texts: Texts, members: Sequence[Labelled], most: int
) -> Iterator[tuple[Labelled, list[int], list[str] | None, int]]:
    """Each text with its first tokens, what they tell, and how many there are in all."""
    tokenizer = work.load.tokenizer()
    if texts.bos and tokenizer.bos_token_id is None:
        raise ExperimentError("the tokenizer has no BOS token: set corpus.bos to false.")
    prefix = [tokenizer.bos_token_id] if texts.bos else []
    ids = tokenizer([one.text for one in members], add_special_tokens=False)["input_ids"]
    for one, own in zip(members, ids, strict=True):
        if not own:
            raise ExperimentError(
                f"{one.where}: the tokenizer makes no token of this text: take the row out."
            )
        tells = None
        if one.tells is not None:
            if len(one.tells) != len(own):
                raise ExperimentError(
                    f"{one.where} tells something of {len(one.tells)} tokens but has {len(own)}: "
                    f"'{texts.tells_column}' was made for another tokenizer."
                )
            tells = ([""] * len(prefix) + list(one.tells))[:most]
        tokens = prefix + own
        yield one, tokens[:most], tells, len(tokens)


def show_labelled_texts(work: Work, texts: Texts) -> Metadata:
    """How many texts of each group are in each set, and one of each group."""
    notes = work.store.notes(LABELLED_TEXTS)
    rows = work.store.read(LABELLED_TEXTS, ["set", "label", "attribute", "text"]).to_pylist()
    counts = Counter((row["set"], row["label"], row["attribute"]) for row in rows)
    first = {(row["label"], row["attribute"]): row["text"] for row in reversed(rows)}
    names = {group: _named(texts, group) for group in GROUPS}
    return {
        "texts": len(rows),
        "longer than what is read": notes["n_cut"],
        "groups": records(
            {"set": name, "label/attribute": names[label, attribute], "texts": n}
            for (name, label, attribute), n in sorted(counts.items())
        ),
        "one of each": records(
            {"label/attribute": names[group], "text": harmless(first[group][:_SHOWN])}
            for group in GROUPS
        ),
    }


LABELLED_TEXTS_STAGE = TableStage(
    name="labelled_texts",
    group="classifier",
    description=(
        "Texts to train a classifier on in which an attribute goes with the label, and balanced "
        "ones that show which of the two it goes by."
    ),
    kinds=frozenset({"parquet"}),
    key=LABELLED_TEXTS,
    deps=always(),
    needs=always("model", "tokenizer"),
    files="labelled_files",
    reads=_reads,
    inputs=_inputs,
    make=make_labelled_texts,
    show=show_labelled_texts,
)
