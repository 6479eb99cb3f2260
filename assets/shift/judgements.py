"""Which features of the classifier's circuit are about the attribute: every judge's word on each.

The judge that the experiment names decides what is ablated; the others show how far that depends
on who is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from assets.circuits.stages import read_labels
from assets.corpus.text import harmless
from assets.corpus.vocabulary import read_texts
from assets.engine.recipe import Source
from assets.engine.stage import Made, Metadata, TableStage, Work
from assets.engine.store import together
from assets.features.annotations import Annotation, read_annotations
from assets.features.endpoint import Asking
from assets.features.labels import annotation_sources
from assets.plots import records
from assets.settings import Experiment, Judge
from assets.shift.judges import (
    Feature,
    Verdicts,
    by_endpoint,
    by_people,
    by_rule,
    by_truth,
    by_words,
    excerpts_of,
    question,
)
from assets.shift.texts import TRAIN
from assets.tables.conversions import Frame, frame
from assets.tables.places import (
    CLASSIFIER,
    DICTIONARY_SET,
    JUDGEMENTS,
    LABELLED_TEXTS,
    VOCABULARY,
    card_contexts,
    cards,
    circuit,
)
from assets.tables.schemas import TABLES

NODES = circuit("classifiers", CLASSIFIER, "nodes")
CIRCUIT = f"classifiers/{CLASSIFIER}"
"""What annotations call the classifier's circuit."""

JUDGES: tuple[Judge, ...] = get_args(Judge)
_SHOWN = 40


@dataclass(frozen=True)
class Judging:
    """Who is asked, and what they go by; see `assets.settings.JudgementSettings`.

    Attributes:
        judge: whose word counts.
        words: that tell each attribute.
        label, attribute: what the two are called.
        submodules: with cards; none where no cards are made.
        asking: of a language model, where one is asked.
        annotations: files of people's.
    """

    judge: Judge
    words: tuple[tuple[str, ...], tuple[str, ...]]
    label: str
    attribute: str
    submodules: tuple[str, ...]
    asking: Asking | None
    annotations: tuple[Source, ...]


def _reads(experiment: Experiment) -> Judging:
    settings = experiment.settings
    assert settings.classifier is not None, "stages of a classifier exist only with one"
    data, how = settings.classifier.data, settings.classifier.judgements
    with_cards = () if settings.cards is None else tuple(experiment.submodules)
    endpoint = settings.labels.endpoint if with_cards else None
    return Judging(
        judge=how.judge,
        words=how.words,
        label=data.label_column,
        attribute=data.attribute_column,
        submodules=with_cards,
        asking=None if endpoint is None else Asking(with_cards, **endpoint.model_dump()),
        annotations=annotation_sources(experiment),
    )


def make_judgements(work: Work, how: Judging) -> Made:
    """Every judge's word on every feature that the judge can say something of."""
    features = circuit_features(work)
    given, notes = _from_people(work, how, features)
    texts = work.store.read(LABELLED_TEXTS).to_pylist()
    given["truth"] = by_truth(work, features, [row for row in texts if row["set"] == TRAIN])
    if how.submodules:
        given |= _from_cards(work, how, features, notes)
    rows = [
        {
            "submodule": submodule,
            "feature": feature,
            "judge": judge,
            "used": judge == how.judge,
            "irrelevant": verdicts[submodule, feature].irrelevant,
            "reason": harmless(verdicts[submodule, feature].reason),
        }
        for judge, verdicts in given.items()
        for submodule, feature in features
        if (submodule, feature) in verdicts
    ]
    n_judged = sum(row["used"] for row in rows)
    if n_judged < len(features):
        work.say(
            f"{how.judge} has judged {n_judged} of {len(features)} features of the classifier's "
            f"circuit; the others are kept ({_way_out(work, how)})"
        )
    return Made(TABLES["judgements"].build(rows), {"n_features": len(features), **notes})


def _way_out(work: Work, how: Judging) -> str:
    if how.judge == "person":
        base, _, name = work.explorer.rpartition("/")
        return f"judge them at {base}/{name}/annotate/{CIRCUIT}, or set classifier.judgements.judge"
    return "set classifier.judgements.judge to another one"


def circuit_features(work: Work) -> list[Feature]:
    """The features of the classifier's circuit, the largest effects first."""
    from core.types import ERROR

    rows = work.store.read(NODES, ["submodule", "feature", "effect"]).to_pylist()
    rows.sort(key=lambda row: -abs(row["effect"]))
    return [(row["submodule"], row["feature"]) for row in rows if row["feature"] != ERROR]


def _from_people(
    work: Work, how: Judging, features: Sequence[Feature]
) -> tuple[dict[Judge, Verdicts], dict[str, Any]]:
    """What people say, and how much of it is of no feature here."""
    rows = work.store.read(DICTIONARY_SET, ["submodule", "weights"]).to_pylist()
    weights = {row["submodule"]: row["weights"] for row in rows}
    said: list[Annotation] = []
    notes = {"other_dictionaries": 0, "not_in_circuit": 0}
    for source in how.annotations:
        for one in read_annotations(Path(source.place)).rows:
            if one.relevant is None or one.circuit not in (None, CIRCUIT):
                continue
            if one.weights not in (None, weights.get(one.submodule)):
                notes["other_dictionaries"] += 1
            elif one.basis != "features" or (one.submodule, one.feature) not in features:
                notes["not_in_circuit"] += 1
            else:
                said.append(one)
    if any(notes.values()):
        work.say(
            f"left out: {notes['other_dictionaries']} judgements of features of other "
            f"dictionaries, {notes['not_in_circuit']} of features that are not in the "
            "classifier's circuit"
        )
    return {"person": by_people(said, CIRCUIT)}, notes


def _from_cards(
    work: Work, how: Judging, features: Sequence[Feature], notes: dict[str, Any]
) -> dict[Judge, Verdicts]:
    """What is said by those who look at cards."""
    texts = read_texts(work.store)
    excerpts = excerpts_of(work.store, texts, features)
    given: dict[Judge, Verdicts] = {}
    if all(how.words):
        given = {"words": by_words(excerpts, how.words), "rule": by_rule(excerpts, how.words)}
    if how.asking is not None:
        asked = question(how.label, how.attribute)
        with_card = [feature for feature in features if feature in excerpts]
        answers = by_endpoint(work, how.asking, texts, with_card, asked)
        if answers.missing:
            work.say(
                f"{answers.missing} of {len(with_card)} features were not judged by "
                f"{how.asking.model}; the last: {answers.why}"
            )
        given["endpoint"] = answers.verdicts
        notes["not_answered"] = answers.missing
    return given


# -- how far they agree ---------------------------------------------------------------------------


def by_judge(judgements: Frame) -> Frame:
    """What each judge says of each feature: a row for each feature, a column for each judge."""
    return judgements.pivot(index=["submodule", "feature"], columns="judge", values="irrelevant")


def agreement(judgements: Frame) -> Iterator[dict[str, Any]]:
    """For every two judges, how many features both have judged, and how many of them alike."""
    said = by_judge(judgements)
    for one, other in combinations([judge for judge in JUDGES if judge in said], 2):
        both = said[[one, other]].dropna()
        yield {
            "judge": one,
            "other": other,
            "both": len(both),
            "same": int((both[one] == both[other]).sum()),
        }


def show_judgements(work: Work, how: Judging) -> Metadata:
    """How many features each judge finds irrelevant, how far they agree, and who says what."""
    table, notes = frame(work.store.read(JUDGEMENTS)), work.store.notes(JUDGEMENTS)
    labels = read_labels(work.store)
    used = table[table["used"]]
    n_judged, n_irrelevant = Counter(table["judge"]), Counter(table["judge"][table["irrelevant"]])
    return {
        "judge": how.judge,
        "features": notes["n_features"],
        "judged": len(used),
        "irrelevant": int(used["irrelevant"].sum()),
        "left out": notes["other_dictionaries"] + notes["not_in_circuit"],
        "judges": records(
            {"judge": judge, "judged": n, "irrelevant": n_irrelevant[judge]}
            for judge, n in n_judged.items()
        ),
        "agreement": records(agreement(table)),
        "what is said": records(
            {
                "feature": (name := f"{row.submodule}/{row.feature}"),
                "irrelevant": bool(row.irrelevant),
                "reason": row.reason,
                "label": labels.get(name, ""),
            }
            for row in used.head(_SHOWN).itertuples()
        ),
    }


def _inputs(work: Work, how: Judging) -> Mapping[str, str]:
    content = work.store.content
    fixed = [NODES, LABELLED_TEXTS, DICTIONARY_SET, *([VOCABULARY] if how.submodules else [])]
    of_cards = [content(key(s)) for s in how.submodules for key in (cards, card_contexts)]
    return {
        **{key.path: content(key) for key in fixed},
        **({"cards": together(of_cards)} if of_cards else {}),
    }


def _deps(how: Judging) -> Sequence[str]:
    with_cards = ["vocabulary", "cards"] if how.submodules else []
    return [NODES.stage, "labelled_texts", "dictionary_set", *with_cards]


JUDGEMENTS_STAGE = TableStage(
    name="judgements",
    group="classifier",
    description=(
        "Which features of the classifier's circuit are about the attribute and not about the "
        "label, by every judge that can be asked."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=JUDGEMENTS,
    deps=_deps,
    needs=lambda _how: ("model", "dictionaries"),
    on_request=lambda how: how.asking is not None,  # answers may cost money
    files="annotation_files",
    reads=_reads,
    inputs=_inputs,
    make=make_judgements,
    show=show_judgements,
)
