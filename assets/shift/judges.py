"""Who says which features of a classifier are about the attribute, and what each goes by.

A judge gives a `Verdict` on each feature that it can judge, and none on others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.features.annotations import Annotation
from assets.features.cards import units_of
from assets.features.endpoint import CARD_SAYS, Asking, NoAnswer, ask, card_text
from assets.tables.places import card_contexts

if TYPE_CHECKING:
    from core.cards.collect import Active

Feature = tuple[str, int]
"""Submodule and number."""

STANDARD_ERRORS = 3.0
"""A difference between groups is one where it is this many standard errors from zero."""
LEAST_SHARE = 0.5
"""`words`: the share of a feature's activation that must lie on words of the attribute."""
LEAST_KNOWN, LEAST_AGREEING = 0.6, 0.85
"""`rule`: the share of contexts that must tell an attribute, and of those the share that must tell
the same one, contexts weighed by their largest activation."""
PATIENCE = 3
"""Answers that may be missing in turn before the first one."""


@dataclass(frozen=True)
class Verdict:
    """Whether a feature is about the attribute and not about the label, and why."""

    irrelevant: bool
    reason: str


Verdicts = dict[Feature, Verdict]


# -- truth ----------------------------------------------------------------------------------------


def by_truth(
    work: Work, features: Iterable[Feature], texts: Sequence[Mapping[str, Any]]
) -> Verdicts:
    """Which of attribute and label a feature's mean activation differs by, over balanced texts.

    There the two are independent of each other, so that a difference between attributes is due to
    the attribute alone. It is measured in standard deviations over texts, and must be three
    standard errors from zero and larger than the difference between labels.

    Args:
        work: loads the model and the dictionaries.
        features: those that are judged.
        texts: rows of balanced labelled texts.
    """
    from core.cards.collect import active_at

    of_submodule: dict[str, list[int]] = {}
    for submodule, feature in features:
        of_submodule.setdefault(submodule, []).append(feature)
    units = units_of(work, {f"{name}/features": own for name, own in of_submodule.items()})
    active = active_at(work.load.model(), units, [row["tokens"] for row in texts])
    lengths = np.array([len(row["tokens"]) for row in texts])
    label, attribute = (np.array([row[key] for row in texts]) for key in ("label", "attribute"))
    found: Verdicts = {}
    for submodule, own in of_submodule.items():
        pooled = mean_activations(active[f"{submodule}/features"], lengths, len(own))
        by_label, by_attribute = (differences(pooled, of) for of in (label, attribute))
        least = STANDARD_ERRORS * 2 / np.sqrt(len(texts))
        for feature, of_label, of_attribute in zip(own, by_label, by_attribute, strict=True):
            found[submodule, feature] = Verdict(
                bool(abs(of_attribute) > max(abs(of_label), least)),
                f"differs by {of_attribute:+.2f} standard deviations between attributes, by "
                f"{of_label:+.2f} between labels",
            )
    return found


def mean_activations(active: Active, lengths: np.ndarray, n_units: int) -> np.ndarray:
    """Each unit's mean activation over the tokens of each text, ``(text, unit)``."""
    text = np.repeat(np.arange(len(lengths)), lengths)[active.place]
    sums = np.bincount(
        text * n_units + active.unit, weights=active.value, minlength=len(lengths) * n_units
    )
    return sums.reshape(len(lengths), n_units) / lengths[:, None]


def differences(pooled: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of group 1 minus that of group 0, in standard deviations over texts; ``(unit,)``."""
    difference = pooled[group == 1].mean(0) - pooled[group == 0].mean(0)
    spread = pooled.std(0)
    return np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)


# -- cards ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excerpt:
    """One of the contexts on a card.

    Attributes:
        words: the word that each token is part of, in lower case; empty for punctuation.
        activations: at each token.
    """

    words: list[str]
    activations: np.ndarray


def excerpts_of(
    store: ArtifactStore, texts: Sequence[str], features: Iterable[Feature]
) -> dict[Feature, list[Excerpt]]:
    """The contexts on the cards of features, those of every strength.

    Args:
        store: with the cards.
        texts: of every token id.
        features: whose contexts are wanted.
    """
    wanted = set(features)
    found: dict[Feature, list[Excerpt]] = {}
    for submodule in dict.fromkeys(submodule for submodule, _ in wanted):
        for row in store.read(card_contexts(submodule)).to_pylist():
            feature = submodule, row["feature"]
            if feature not in wanted or row["basis"] != "features":
                continue
            words = words_of([texts[int(token)] for token in row["tokens"]])
            found.setdefault(feature, []).append(Excerpt(words, np.array(row["activations"])))
    return found


def words_of(pieces: Sequence[str]) -> list[str]:
    """The word that each piece of a text ends in, in lower case; empty for punctuation."""
    text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
    words = [""] * len(text)
    for match in re.finditer(r"\w+", text):
        words[match.start() : match.end()] = [match[0].lower()] * len(match[0])
    return [words[end - 1] if piece else "" for piece, end in zip(pieces, ends, strict=True)]


def by_words(
    excerpts: Mapping[Feature, Sequence[Excerpt]], words: tuple[Sequence[str], Sequence[str]]
) -> Verdicts:
    """Whether half of a feature's activation, in the contexts on its card, lies on listed words."""
    listed = {word.lower() for of_one in words for word in of_one}
    found: Verdicts = {}
    for feature, own in excerpts.items():
        whole = sum(float(one.activations.sum()) for one in own)
        on_listed = sum(
            float(value)
            for one in own
            for word, value in zip(one.words, one.activations, strict=True)
            if word in listed
        )
        share = on_listed / whole if whole else 0.0
        found[feature] = Verdict(
            share >= LEAST_SHARE, f"{share:.0%} of its activation on its card lies on listed words"
        )
    return found


def by_rule(
    excerpts: Mapping[Feature, Sequence[Excerpt]], words: tuple[Sequence[str], Sequence[str]]
) -> Verdicts:
    """Whether nearly all contexts on a feature's card tell the same attribute.

    A context tells that of the listed word nearest to its largest activation, at or before it.
    What is active for another reason is so in contexts of both attributes.
    """
    tells = {word.lower(): i for i, of_one in enumerate(words) for word in of_one}
    found: Verdicts = {}
    for feature, own in excerpts.items():
        weights = {0: 0.0, 1: 0.0, None: 0.0}
        for one in own:
            weights[_told(one, tells)] += float(one.activations.max())
        known = weights[0] + weights[1]
        share = known / (known + weights[None]) if own else 0.0
        agreeing = max(weights[0], weights[1]) / known if known else 0.0
        found[feature] = Verdict(
            share >= LEAST_KNOWN and agreeing >= LEAST_AGREEING,
            f"{share:.0%} of its card tells the attribute, {agreeing:.0%} of that the same one",
        )
    return found


def _told(excerpt: Excerpt, tells: Mapping[str, int]) -> int | None:
    """Which attribute the nearest listed word up to the largest activation tells."""
    peak = int(excerpt.activations.argmax())
    before = reversed(excerpt.words[: peak + 1])
    return next((tells[word] for word in before if word in tells), None)


# -- people and models ----------------------------------------------------------------------------


def by_people(said: Iterable[Annotation], circuit: str) -> Verdicts:
    """What most people say of features of this circuit; where they are even, it is kept.

    Args:
        said: in the order in which it was; the last word of a person on a feature counts.
        circuit: what annotations call it.
    """
    of_feature: dict[Feature, dict[str, bool]] = {}
    for one in said:
        if one.relevant is not None and one.circuit in (None, circuit):
            of_feature.setdefault((one.submodule, one.feature), {})[one.by] = not one.relevant
    found: Verdicts = {}
    for feature, words in of_feature.items():
        against = [by for by, irrelevant in words.items() if irrelevant]
        kept = [by for by in words if by not in against]
        parts = [("irrelevant", against), ("relevant", kept)]
        reason = "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)
        found[feature] = Verdict(len(against) > len(kept), reason)
    return found


@dataclass
class Asked:
    """What a language model answered; `missing` answers did not come, the last because of `why`."""

    verdicts: Verdicts
    missing: int = 0
    why: str = ""


def question(label: str, attribute: str) -> str:
    """What a language model is asked about a card."""
    return CARD_SAYS + (
        f"A classifier should go by {label} and not by {attribute}. Is this feature about "
        f"{attribute} and not about {label}? Begin with yes or no, and say why in at most twelve "
        "words."
    )


def by_endpoint(
    work: Work, asking: Asking, texts: Sequence[str], features: Sequence[Feature], asked: str
) -> Asked:
    """What a language model says of each card; what is not answered is left out and counted."""
    answers = Asked({})
    for n, (submodule, feature) in enumerate(features, start=1):
        try:
            _, card = card_text(work.store, texts, submodule, feature)
            answer = ask(asking, card, asked)
            word = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
            if word is None:
                raise NoAnswer("neither yes nor no")
        except NoAnswer as error:
            answers.missing, answers.why = answers.missing + 1, str(error)
            if answers.missing == PATIENCE and not answers.verdicts:
                answers.missing += len(features) - n
                break
            continue
        answers.verdicts[submodule, feature] = Verdict(word[1].lower() == "yes", answer)
        work.say(f"judged: {n} of {len(features)} features")
    return answers
