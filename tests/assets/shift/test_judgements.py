"""Who says which features are about the attribute, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from assets.checks import features_are_judged
from assets.engine.recipe import Recipe
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.features.annotations import Annotation
from assets.settings import Experiment, JudgementSettings
from assets.shift.judgements import (
    CIRCUIT,
    JUDGEMENTS_STAGE,
    NODES,
    agreement,
    circuit_features,
    make_judgements,
)
from assets.shift.judges import (
    Excerpt,
    by_endpoint,
    by_people,
    by_rule,
    by_truth,
    by_words,
    differences,
    question,
    words_of,
)
from assets.shift.texts import LABELLED_TEXTS_STAGE, TRAIN
from assets.tables.conversions import frame
from assets.tables.places import DICTIONARY_SET, JUDGEMENTS, LABELLED_TEXTS, cards
from assets.tables.schemas import TABLES
from core.types import ERROR
from pipelines.experiment import read_experiment
from tests.assets.features.test_features import _answer, endpoint
from tests.assets.shift.test_texts import rows

WORDS = (("cat", "dog"), ("cats", "dogs"))
FEATURE = "resid_0", 3


# -- what each goes by ----------------------------------------------------------------------------


def excerpt(text: str, *activations: float) -> Excerpt:
    return Excerpt(text.split(), np.array(activations))


def test_a_piece_of_a_word_is_of_that_word() -> None:
    assert words_of([" S", "he", " ran", ".", "", "\n"]) == ["she", "she", "ran", "", "", ""]


def test_words_ask_for_half_of_the_activation_on_listed_words() -> None:
    contexts = [excerpt("the cat runs", 0.0, 3.0, 1.0), excerpt("old dogs run", 2.0, 2.0, 0.0)]
    verdict = by_words({FEATURE: contexts}, WORDS)[FEATURE]
    assert verdict.irrelevant
    assert verdict.reason == "62% of its activation on its card lies on listed words"
    assert not by_words({FEATURE: contexts}, (("bird",), ("birds",)))[FEATURE].irrelevant


def test_the_rule_asks_whether_contexts_tell_the_same_attribute() -> None:
    """The nearest word up to the largest activation counts, however far before; none after it."""
    cat = excerpt("the cat is old", 0.0, 0.0, 0.0, 1.0)
    dogs = excerpt("cat and dogs run", 0.0, 0.0, 0.0, 1.0)
    late = excerpt("old is the cat", 1.0, 0.0, 0.0, 0.0)
    features = {
        ("embed", 0): [cat, cat, cat],
        ("embed", 1): [cat, cat, dogs],
        ("embed", 2): [cat, late],
        ("embed", 3): [cat, Excerpt(dogs.words, dogs.activations / 100)],
    }
    verdicts = by_rule(features, WORDS)
    assert [verdict.irrelevant for verdict in verdicts.values()] == [True, False, False, True]
    assert "67% of that the same one" in verdicts["embed", 1].reason
    assert "50% of its card tells the attribute" in verdicts["embed", 2].reason


def test_a_difference_between_groups_is_in_standard_deviations() -> None:
    pooled = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    # Means 4 and 2 of the first, whose standard deviation is 3.5 ** 0.5; the second never varies.
    found = differences(pooled, np.array([0, 0, 1, 1]))
    assert found == pytest.approx([2 / 3.5**0.5, 0.0])


def said(by: str, relevant: bool | None, **values: Any) -> Annotation:
    return Annotation(*FEATURE[:1], "features", FEATURE[1], "", by, relevant=relevant, **values)


@pytest.mark.parametrize(
    ("words", "irrelevant"),
    [
        ([said("ann", False)], True),
        ([said("ann", False), said("bob", True)], False),
        ([said("ann", False), said("bob", True), said("cy", False)], True),
        ([said("ann", True), said("ann", False)], True),
        ([said("ann", False), said("ann", None)], True),
        ([said("ann", False, circuit=CIRCUIT), said("ann", True, circuit="tasks/a")], True),
    ],
    ids=["one", "even", "majority", "the last word", "a description", "of another circuit"],
)
def test_what_most_people_said_last_counts(words: list[Annotation], irrelevant: bool) -> None:
    assert by_people(words, CIRCUIT)[FEATURE].irrelevant == irrelevant


def test_nobody_who_speaks_of_other_circuits_alone_judges() -> None:
    assert by_people([said("ann", False, circuit="tasks/simple")], CIRCUIT) == {}


# -- on a finished experiment ---------------------------------------------------------------------


@pytest.fixture
def judged(copied: Experiment) -> Experiment:
    """The tiny experiment with labelled texts, and a circuit of features that have cards."""
    (copied.path.parent / "texts.jsonl").write_text("\n".join(map(json.dumps, rows(60))))
    data = {
        "source": "./texts.jsonl",
        "text_column": "words",
        "label_column": "animal",
        "attribute_column": "many",
        "labels": ["cat", "dog"],
        "n_ambiguous": 8,
        "n_balanced_train": 160,
        "n_balanced_test": 8,
    }
    classifier = {"data": data, "judgements": {"judge": "person", "words": list(map(list, WORDS))}}
    settings = yaml.safe_load(copied.path.read_text(encoding="utf-8"))
    copied.path.write_text(yaml.safe_dump({**settings, "classifier": classifier}))
    one = read_experiment(copied.path)
    LABELLED_TEXTS_STAGE.run(one)
    store = ArtifactStore(one.artifacts)
    nodes = [
        {"submodule": submodule, "feature": feature, "effect": effect}
        for submodule in ("embed", "resid_0")
        for effect, feature in enumerate([ERROR, *carded(store, submodule)], start=1)
    ]
    empty = dict.fromkeys(TABLES["nodes"].schema.names)
    table = TABLES["nodes"].build([{**empty, "node": i, **node} for i, node in enumerate(nodes)])
    store.write(NODES, table, Recipe(NODES.stage, {}, {}, ""))
    return one


def carded(store: ArtifactStore, submodule: str) -> list[int]:
    found = store.read(cards(submodule)).to_pylist()
    return [row["feature"] for row in found if row["basis"] == "features" and row["n_active"]][:6]


def annotate(one: Experiment, *annotations: dict[str, Any]) -> None:
    lines = [json.dumps({"by": "ann", "text": "", **row}) for row in annotations]
    one.annotations.write_text("\n".join(lines), encoding="utf-8")


def test_the_truth_is_what_a_features_mean_activation_differs_by(judged: Experiment) -> None:
    """Against activations of all features, pooled and compared text by text."""
    work = Work.on(judged)
    texts = [r for r in work.store.read(LABELLED_TEXTS).to_pylist() if r["set"] == TRAIN]
    features = circuit_features(work)
    dictionaries, model = work.load.dictionaries(), work.load.model()
    verdicts = by_truth(work, features, texts)
    values: dict[str, list[Any]] = {submodule: [] for submodule, _ in features}
    for row in texts:
        outputs = model.record(torch.tensor([row["tokens"]])).outputs
        for submodule, own in values.items():
            own.append(dictionaries[submodule].encode(outputs[submodule][0]).mean(0))
    assert set(verdicts) == set(features)
    for submodule, feature in features:
        x = torch.stack(values[submodule])[:, feature].double()
        by = {
            key: (x[of == 1].mean() - x[of == 0].mean()).abs() / x.std(unbiased=False)
            for key in ("label", "attribute")
            if (of := torch.tensor([row[key] for row in texts])) is not None
        }
        expected = by["attribute"] > max(float(by["label"]), 3 * 2 / len(texts) ** 0.5)
        assert verdicts[submodule, feature].irrelevant == bool(expected)
    assert len({verdict.irrelevant for verdict in verdicts.values()}) == 2


def test_every_judge_is_asked_and_the_named_one_is_used(judged: Experiment) -> None:
    first = circuit_features(Work.on(judged))[0]
    annotate(judged, {"submodule": first[0], "feature": first[1], "relevant": False})
    heard: list[str] = []
    JUDGEMENTS_STAGE.run(judged, heard.append)
    work = Work.on(judged)
    table = frame(work.store.read(JUDGEMENTS))
    assert set(table["judge"]) == {"truth", "words", "rule", "person"}
    assert set(table["judge"][table["used"]]) == {"person"}
    n = len(circuit_features(work))
    assert dict(table["judge"].value_counts()) == {"truth": n, "words": n, "rule": n, "person": 1}
    assert any(f"person has judged 1 of {n} features" in one for one in heard)
    pairs = {(row["judge"], row["other"]): row for row in agreement(table)}
    assert pairs["truth", "person"]["both"] == 1
    assert len(pairs) == 6
    shown = JUDGEMENTS_STAGE.show(work, JUDGEMENTS_STAGE.reads(judged))
    assert (shown["features"], shown["judged"], shown["irrelevant"]) == (n, 1, 1)


def test_judgements_of_other_dictionaries_and_of_no_feature_are_left_out_and_said(
    judged: Experiment,
) -> None:
    work = Work.on(judged)
    submodule, feature = circuit_features(work)[0]
    weights = {r["submodule"]: r["weights"] for r in work.store.read(DICTIONARY_SET).to_pylist()}
    row = {"submodule": submodule, "feature": feature, "relevant": False}
    annotate(
        judged,
        {**row, "weights": "f" * 16},
        {**row, "feature": 10**6},
        {**row, "basis": "neurons"},
        {**row, "by": "bob", "weights": weights[submodule]},
    )
    heard: list[str] = []
    made = make_judgements(replace(work, say=heard.append), JUDGEMENTS_STAGE.reads(judged))
    assert "1 judgements of features of other dictionaries, 2 of features" in " ".join(heard)
    of_people = [r for r in made.table.to_pylist() if r["judge"] == "person"]  # pyright: ignore
    assert [(r["feature"], r["reason"]) for r in of_people] == [(feature, "irrelevant: bob")]


def test_a_judge_who_has_not_judged_or_finds_all_alike_is_warned_of(judged: Experiment) -> None:
    JUDGEMENTS_STAGE.run(judged)
    store = ArtifactStore(judged.artifacts)
    nobody = features_are_judged(judged, store)
    assert not nobody.passed
    assert nobody.says.startswith("person has judged 0 of")
    classifier = judged.settings.classifier
    assert classifier is not None
    how = classifier.model_copy(update={"judgements": JudgementSettings(judge="truth")})
    changed = judged.settings.model_copy(update={"classifier": how})
    truth = features_are_judged(replace(judged, settings=changed), store)
    assert truth.passed
    assert truth.says.endswith("and agrees with the truth on 100%.")


def test_another_judgement_is_taken_up_by_the_next_run(judged: Experiment) -> None:
    assert JUDGEMENTS_STAGE.run(judged)
    assert not JUDGEMENTS_STAGE.run(judged)
    submodule, feature = circuit_features(Work.on(judged))[0]
    annotate(judged, {"submodule": submodule, "feature": feature, "relevant": False})
    assert JUDGEMENTS_STAGE.run(judged)


# -- a language model -----------------------------------------------------------------------------


def asked_of(one: Experiment, answer: bytes) -> Any:
    work = Work.on(one)
    features = circuit_features(work)
    with endpoint(answer) as (asking, asked):
        return by_endpoint(work, asking, [""] * 50, features, question("job", "sex")), asked


@pytest.mark.parametrize(("answer", "irrelevant"), [("Yes, names", True), ("no: verbs", False)])
def test_a_model_that_says_yes_or_no_judges(
    judged: Experiment, answer: str, irrelevant: bool
) -> None:
    answers, asked = asked_of(judged, _answer(answer))
    assert {v.irrelevant for v in answers.verdicts.values()} == {irrelevant}
    assert {v.reason for v in answers.verdicts.values()} == {answer}
    assert answers.missing == 0
    assert "about sex and not about job" in asked[0][2]["messages"][0]["content"]


@pytest.mark.parametrize("answer", [b"<html>", _answer("It is hard to say"), _answer("yesterday")])
def test_a_model_that_answers_nonsense_is_asked_three_times_and_left(
    judged: Experiment, answer: bytes
) -> None:
    answers, asked = asked_of(judged, answer)
    assert not answers.verdicts
    assert len(asked) == 3
    assert answers.missing == len(circuit_features(Work.on(judged)))


def test_without_an_answer_the_other_judges_are_heard(judged: Experiment) -> None:
    how = JUDGEMENTS_STAGE.reads(judged)
    heard: list[str] = []
    with endpoint(b"") as (asking, _):
        asking = replace(asking, timeout=0.2)
        work = replace(Work.on(judged), say=heard.append)
        made = make_judgements(work, replace(how, asking=asking))
    judges = {row["judge"] for row in made.table.to_pylist()}  # pyright: ignore
    assert judges == {"truth", "words", "rule"}
    assert any("features were not judged by tiny; the last:" in one for one in heard)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"judge": "rule"}, "rule judges by them"),
        ({"words": [["he"], ["He", "she"]]}, "tell both attributes: he"),
    ],
)
def test_a_judge_without_words_is_refused(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        JudgementSettings(**section)
