"""Stage 7: what features are called: by a rule made from their cards, by a model, by people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.corpus.text import harmless
from assets.corpus.vocabulary import read_texts
from assets.engine.recipe import Source
from assets.engine.stage import Made, Metadata, Stage, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore, together
from assets.features.annotations import Annotation, read_annotations
from assets.features.cards import (
    BASES,
    CARDS_STAGE,
    card_settings,
    card_texts,
    units_of,
    unseen_texts,
)
from assets.features.circuits import FEATURE_CIRCUITS_STAGE
from assets.features.endpoint import ENDPOINT_LABELS_STAGE
from assets.plots import records
from assets.settings import Experiment
from assets.tables.conversions import frame, label_texts
from assets.tables.places import (
    CONTEXTS,
    DICTIONARY_SET,
    ENDPOINT_LABELS,
    FEATURE_CIRCUITS,
    LABELS,
    RULE_LABELS,
    VOCABULARY,
    card_contexts,
    cards,
)
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.cards.collect import Active
    from core.cards.rules import Examples, Keys, Read, Rule, Score

FREE = "free"
"""What a corpus calls tokens that nothing determines."""

_N_PROMOTED = 3
_LEAST_SHARE = 0.5
_SHOWN, _SHOWN_NODES = 12, 3
_EMPTY: Mapping[str, Any] = {
    column.name: None for column in TABLES["labels"].schema if column.nullable
}


# -- by rules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelling:
    """Which cards get a label, and on which text it is made and scored."""

    submodules: tuple[str, ...]
    n_contexts: int
    n_held_out: int
    n_background: int
    seed: int


def _reads(experiment: Experiment) -> Labelling:
    how = card_settings(experiment)
    return Labelling(
        tuple(experiment.submodules),
        how.n_contexts,
        how.n_held_out,
        experiment.settings.labels.n_background,
        how.seed,
    )


def _inputs(work: Work, how: Labelling) -> Mapping[str, str]:
    content = work.store.content
    return {
        **{key.path: content(key) for key in (CONTEXTS, VOCABULARY, DICTIONARY_SET)},
        "cards": together(
            content(key(name)) for name in how.submodules for key in (cards, card_contexts)
        ),
    }


@dataclass(frozen=True)
class _Text:
    """Contexts with what rules read at every token, and where units are active, by name.

    `behaviours` has the known behaviour of the token after each, where there is one.
    """

    keys: Mapping[str, Read]
    active: Mapping[str, Active]
    behaviours: np.ndarray


def make_rule_labels(work: Work, how: Labelling) -> Made:
    """A rule for each card, and how well it predicts what no card was made from."""
    from core.cards.rules import Keys

    store = work.store
    features: dict[str, list[int]] = {}
    heads: dict[str, list[dict[str, Any]]] = {}
    for submodule in how.submodules:
        columns = ["basis", "feature", "weights", "promoted", "n_active"]
        rows = store.read(cards(submodule), columns).to_pylist()
        for basis in BASES:
            heads[f"{submodule}/{basis}"] = [row for row in rows if row["basis"] == basis]
    features = {name: [row["feature"] for row in rows] for name, rows in heads.items()}
    texts = read_texts(store, work.load.model().n_vocab)
    keys = Keys(texts)
    seen = list(card_texts(store, how.n_contexts, how.n_held_out))
    rng = np.random.default_rng(how.seed)
    background = sorted(rng.permutation(len(seen))[: how.n_background].tolist())
    unseen = list(unseen_texts(store, how.n_contexts, how.n_held_out))
    made_on = _text(work, keys, [seen[row] for row in background], features)
    held_out = _text(work, keys, unseen, features)
    whole = keys.read([context.tokens for context in seen])
    begins = np.concatenate([[0], np.cumsum([len(context.tokens) for context in seen])])
    shared = np.concatenate(
        [np.empty(0, int), *(np.arange(*begins[row : row + 2].tolist()) for row in background)]
    )
    half = np.repeat(np.arange(len(seen)) % 2, np.diff(begins))

    def rows_of(work: Work, submodule: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for basis in BASES:
            name = f"{submodule}/{basis}"
            own = _own_tokens(work.store, submodule, basis, features[name], begins)
            examples = _examples(whole, half, own, shared, made_on.active[name], len(heads[name]))
            rows += _rows(submodule, heads[name], examples, held_out, name, keys)
        return rows

    table: list[dict[str, Any]] = []
    every = work.spread(rows_of, how.submodules)
    for submodule, rows in zip(how.submodules, every, strict=True):
        table += rows
        work.say(f"{submodule}: labelled")
    notes = _summary(table)
    if notes:
        work.say(f"labels: {notes}")
    return Made(TABLES["labels"].build(table), notes)


def _text(
    work: Work, keys: Keys, contexts: Sequence[Any], features: Mapping[str, Sequence[int]]
) -> _Text:
    from core.cards.collect import active_at

    tokens = [list(context.tokens) for context in contexts]
    behaviours: list[str | None] = []
    for context in contexts:
        labels = context.labels or [None] * len(context.tokens)
        behaviours += [None if label == FREE else label for label in [*labels[1:], None]]
    return _Text(
        keys=keys.read(tokens),
        active=active_at(work.load.model(), units_of(work, features), tokens),
        behaviours=np.array(behaviours, dtype=object),
    )


def _own_tokens(
    store: ArtifactStore, submodule: str, basis: str, features: Sequence[int], begins: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit, place and activation of every token on the cards, each of them once."""
    columns = ["basis", "feature", "window", "start", "activations"]
    table = store.read(card_contexts(submodule), columns)
    table = table.filter(np.array(table["basis"].to_pylist(), dtype=object) == basis)
    activations = table["activations"].combine_chunks()
    lengths = activations.value_lengths().to_numpy()
    unit_of = np.zeros(max([*features, 0]) + 1, int)
    unit_of[list(features)] = np.arange(len(features))
    first = begins[table["window"].to_numpy()] + table["start"].to_numpy()
    ends = np.cumsum(lengths)
    along = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    unit = np.repeat(unit_of[table["feature"].to_numpy()], lengths)
    return unit, np.repeat(first, lengths) + along, activations.flatten().to_numpy()


def _examples(
    keys: Mapping[str, Read],
    half: np.ndarray,
    own: tuple[np.ndarray, np.ndarray, np.ndarray],
    shared: np.ndarray,
    active: Active,
    n_units: int,
) -> Examples:
    from core.cards.collect import Active
    from core.cards.rules import Examples

    # The background's tokens are counted from its own beginning there.
    placed = Active(active.unit, shared[active.place], active.value)
    return Examples(keys, half, *own, shared, placed, n_units)


def _rows(
    submodule: str,
    heads: Sequence[Mapping[str, Any]],
    examples: Examples,
    held_out: _Text,
    name: str,
    keys: Keys,
) -> Iterator[dict[str, Any]]:
    """Rows of labels, one for each card."""
    from core.cards.rules import find_rules, score_rules

    rules = find_rules(examples)
    scores = score_rules(rules, held_out.keys, held_out.active[name])
    truth = _behaviours(rules, held_out, held_out.active[name], len(heads))
    for head, rule, score, (behaviour, names_it) in zip(heads, rules, scores, truth, strict=True):
        yield {
            **_EMPTY,
            "submodule": submodule,
            "basis": head["basis"],
            "feature": head["feature"],
            "text": _in_words(rule, head, keys),
            "by": "rule",
            "shown": True,
            "stale": False,
            "weights": head["weights"],
            "rule": None
            if rule is None
            else json.dumps({"kind": rule.kind, "values": keys.words(rule)}, ensure_ascii=False),
            **_scored(score),
            "behaviour": behaviour,
            "names_behaviour": names_it,
        }


def _in_words(rule: Rule | None, head: Mapping[str, Any], keys: Keys) -> str:
    from core.cards.rules import listed, quoted

    if not head["n_active"]:
        return "never active on this text"
    promoted = [quoted(keys.texts[token]) for token in head["promoted"][:_N_PROMOTED]]
    what = keys.describe(rule) if rule else "no simple rule"
    return harmless(f"{what}; promotes {listed(promoted)}")


def _scored(score: Score) -> dict[str, Any]:
    known = {
        "score": score.correlation,
        "precision": score.precision,
        "recall": score.recall,
    }
    return {
        **{key: None if np.isnan(value) else value for key, value in known.items()},
        "n_active": score.n_active,
    }


def _behaviours(
    rules: Sequence[Rule | None], text: _Text, active: Active, n_units: int
) -> Iterator[tuple[str | None, bool | None]]:
    """Of each unit the known behaviour behind most of its activation, and whether its rule is it.

    A token is of the behaviour that determines the token after it: that is what the model works
    out there.
    """
    from core.cards.rules import picks

    known = sorted({b for b in text.behaviours if b is not None})
    number = {None: len(known), **{b: i for i, b in enumerate(known)}}
    of_token = np.array([number[b] for b in text.behaviours], dtype=int)
    n = len(known) + 1
    mass = np.bincount(active.unit * n + of_token[active.place], active.value, n_units * n).reshape(
        n_units, n
    )
    for unit, rule in enumerate(rules):
        total, best = mass[unit].sum(), int(mass[unit, :-1].argmax()) if known else 0
        if not known or not total or mass[unit, best] < _LEAST_SHARE * total:
            yield None, None
            continue
        picked = of_token[picks(rule, text.keys)]
        yield known[best], bool(len(picked) and (picked == best).mean() >= _LEAST_SHARE)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures over all labels of features."""
    features = [row for row in rows if row["basis"] == "features"]
    scores = [row["score"] for row in features if row["score"] is not None]
    named = [row["names_behaviour"] for row in features if row["behaviour"] is not None]
    figures: dict[str, float] = {}
    if scores:
        figures["mean score"] = float(np.mean(scores))
        figures["median score"] = float(np.median(scores))
        figures["n_scored"] = len(scores)
    if named:
        figures["named right"] = float(np.mean(named))
        figures["n_of_known_behaviours"] = len(named)
    return figures


def show_rule_labels(work: Work, _how: Labelling) -> Metadata:
    """The figures, and the best and worst labels."""
    notes = work.store.notes(RULE_LABELS)
    table = frame(work.store.read(RULE_LABELS, ["submodule", "feature", "text", "score"]))
    ordered = table.dropna(subset="score").sort_values("score", ascending=False)
    return {
        **{name: notes[name] for name in _FIGURES if name in notes},
        "best": records(ordered.head(_SHOWN).to_dict("records")),
        "worst": records(ordered.tail(_SHOWN).to_dict("records")),
    }


_FIGURES = ("mean score", "median score", "n_scored", "named right", "n_of_known_behaviours")

RULE_LABELS_STAGE = TableStage(
    name="rule_labels",
    group="features",
    description=(
        "What each feature is about, as a rule of few words made from its card and scored on text "
        "that no card was made from."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=RULE_LABELS,
    deps=always("contexts", "vocabulary", "dictionary_set", "cards"),
    needs=always("model", "dictionaries"),
    reads=_reads,
    inputs=_inputs,
    make=make_rule_labels,
    show=show_rule_labels,
)


# -- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """Where labels come from."""

    annotations: tuple[Source, ...]
    endpoint: bool


def annotation_sources(experiment: Experiment) -> tuple[Source, ...]:
    """The files of people's descriptions, the experiment's own last."""
    files = experiment.settings.labels.annotations
    own = experiment.annotations
    return (*(Source(file, experiment.resolve(file)) for file in files), Source(own.name, str(own)))


def _reads_sources(experiment: Experiment) -> Sources:
    return Sources(annotation_sources(experiment), experiment.settings.labels.endpoint is not None)


def make_labels(work: Work, sources: Sources) -> Made:
    """All labels; of each feature a person's is shown, else the endpoint's, else the rule's."""
    rows = work.store.read(RULE_LABELS).to_pylist()
    if sources.endpoint:
        rows += work.store.read(ENDPOINT_LABELS).to_pylist()
    known = {row["submodule"]: row for row in work.store.read(DICTIONARY_SET).to_pylist()}
    left_out = {}
    for source in sources.annotations:
        found = read_annotations(Path(source.place))
        left_out[source.written] = len(found.left_out)
        if found.left_out:
            number, why = next(iter(found.left_out.items()))
            work.say(f"{source.written}: {len(found.left_out)} lines left out; line {number} {why}")
        rows += [_of_person(row, known) for row in found.latest() if row.text]
    by_name: dict[tuple[str, str, int], int] = {}
    for i, row in enumerate(rows):
        row["shown"] = False
        if not row["stale"]:
            by_name[row["submodule"], row["basis"], row["feature"]] = i  # later sources override
    for i in by_name.values():
        rows[i]["shown"] = True
    notes = {
        "left_out": left_out,
        "by": {by: sum(row["by"] == by for row in rows) for by in sorted({r["by"] for r in rows})},
        "stale": sum(row["stale"] for row in rows),
    }
    return Made(TABLES["labels"].build(rows), notes)


def _of_person(annotation: Annotation, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of labels; stale if its feature is not there or of another dictionary."""
    dictionary = known.get(annotation.submodule)
    size = "width" if annotation.basis == "neurons" else "n_features"
    weights = dictionary["weights"] if dictionary and annotation.basis == "features" else None
    is_there = dictionary is not None and annotation.feature < dictionary[size]
    return {
        **_EMPTY,
        "submodule": annotation.submodule,
        "basis": annotation.basis,
        "feature": annotation.feature,
        "text": annotation.text,
        "by": annotation.by,
        "shown": False,
        "stale": not is_there or annotation.weights not in (None, weights),
        "weights": annotation.weights,
        "at": annotation.at,
    }


def _source_inputs(work: Work, sources: Sources) -> Mapping[str, str]:
    keys = [RULE_LABELS, DICTIONARY_SET, *([ENDPOINT_LABELS] if sources.endpoint else [])]
    return contents(*keys)(work, sources)


def _source_deps(sources: Sources) -> Sequence[str]:
    return ["rule_labels", "dictionary_set", *(["endpoint_labels"] if sources.endpoint else [])]


def show_labels(work: Work, _sources: Sources) -> Metadata:
    """How many labels there are, by whom, and the strongest labelled nodes of some circuits."""
    notes = work.store.notes(LABELS)
    table = work.store.read(LABELS)
    rows, texts = table.select(["by", "stale", "shown"]).to_pylist(), label_texts(table)
    strongest: dict[str, list[str]] = {}
    columns = ["name", "rank", "submodule", "feature"]
    for row in work.store.read(FEATURE_CIRCUITS, columns).to_pylist():
        if len(strongest.setdefault(row["name"], [])) < _SHOWN_NODES:
            name = f"{row['submodule']}/{row['feature']}"
            strongest[row["name"]].append(f"{name}: {texts.get(name, '')}")
    return {
        "labels": len(rows),
        "shown": sum(row["shown"] for row in rows),
        "stale": notes["stale"],
        "by": records({"by": by, "labels": n} for by, n in notes["by"].items()),
        "strongest features": records(
            {"circuit": name, "features": "; ".join(nodes)} for name, nodes in strongest.items()
        ),
    }


LABELS_STAGE = TableStage(
    name="labels",
    group="features",
    description=(
        "What features are called: by people where they said so, else by a language model where "
        "one is asked, else by a rule."
    ),
    kinds=frozenset({"parquet"}),
    key=LABELS,
    deps=_source_deps,
    files="annotation_files",
    reads=_reads_sources,
    inputs=_source_inputs,
    make=make_labels,
    show=show_labels,
)


def feature_stages(experiment: Experiment) -> list[Stage]:
    """The stages that say what features mean; without cards the index of circuits alone."""
    if experiment.settings.cards is None:
        return [FEATURE_CIRCUITS_STAGE]
    endpoint = [ENDPOINT_LABELS_STAGE] if experiment.settings.labels.endpoint else []
    return [FEATURE_CIRCUITS_STAGE, CARDS_STAGE, RULE_LABELS_STAGE, *endpoint, LABELS_STAGE]
