"""Rules of few words that predict where a feature is active, and how well they do.

A rule reads one thing at a token (which token it is, the one before, how the word ends, the first
token of the sentence, ...: `KINDS`) and picks the tokens at which that is one of a set of values.
How well it predicts is the correlation between "picked" and the activation, over tokens. For each
kind the best set is a beginning of the values ordered by mean activation; which kind is best is
decided crosswise between two halves of the text, and then the set is chosen from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.cards.collect import Active

Array = np.ndarray

KINDS = (
    "token", "form", "ending_1", "ending_2", "ending_3", "previous", "second", "third",
    "pair", "phrase", "next", "opener", "position",
)  # fmt: skip
"""What rules read, simple things first: of two that predict alike the earlier is taken."""

_FORMS = ("lower-case words", "capitalised words", "words in capitals", "numbers", "punctuation")
_MOST_VALUES = 40
_NOTHING = -1
_WORTH = 0.01  # of correlation: what a kind that comes later must gain
_SHOWN = 3


@dataclass(frozen=True)
class Rule:
    """Picks the tokens at which what `kind` reads is one of `values`.

    Attributes:
        kind: one of `KINDS`.
        values: as `Keys` numbers them, those with most activation first.
    """

    kind: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """How well a rule predicts one feature.

    Attributes:
        correlation: between picked (1 or 0) and the activation; NaN where either never varies.
        precision: share of the picked tokens on which the feature is active; NaN if none is picked.
        recall: share of the summed activation that is on picked tokens; NaN if there is none.
        n_active: tokens on which the feature is active.
    """

    correlation: float
    precision: float
    recall: float
    n_active: int


class Keys:
    """What rules read at each token, as numbers.

    Args:
        texts: of every token id, within a sentence: with the space before a word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        words = [text.strip() for text in self.texts]
        self._form = np.array([_form(word) for word in words])
        self._endings: dict[str, list[str]] = {}
        self._ending: dict[str, Array] = {}
        for n in (1, 2, 3):
            # Of words alone: three letters more than the ending, or it says little.
            ends = [w[-n:].lower() if w.isalpha() and len(w) > n + 1 else "" for w in words]
            known = sorted(set(ends) - {""})
            number = {end: i for i, end in enumerate(known)} | {"": _NOTHING}
            self._endings[f"ending_{n}"] = known
            self._ending[f"ending_{n}"] = np.array([number[end] for end in ends])
        self._ends_sentence = np.array([word in (".", "?", "!", "") for word in words])

    def read(self, contexts: Sequence[Sequence[int]]) -> dict[str, Array]:
        """What each kind reads at every token of these contexts, one after the other.

        Returns:
            By kind, ``(n,)`` long; -1 where there is nothing, such as before the first token.
        """
        lengths = np.array([len(tokens) for tokens in contexts])
        token = np.array([t for tokens in contexts for t in tokens], dtype=np.int64)
        position = np.arange(len(token)) - np.repeat(lengths.cumsum() - lengths, lengths)
        left = np.repeat(lengths, lengths) - position

        def shifted(by: int) -> Array:
            inside = position >= by if by > 0 else left > -by
            return np.where(inside, np.roll(token, by), _NOTHING)

        previous, second = shifted(1), shifted(2)
        n = len(self.texts)
        starts = (position == 0) | np.where(previous >= 0, self._ends_sentence[previous], True)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(token)), 0))
        return {
            "token": token,
            "form": self._form[token],
            **{kind: ending[token] for kind, ending in self._ending.items()},
            "previous": previous,
            "second": second,
            "third": shifted(3),
            "pair": np.where(previous >= 0, previous * n + token, _NOTHING),
            "phrase": np.where(second >= 0, second * n + previous, _NOTHING),
            "next": shifted(-1),
            # At the first token itself it would be the token.
            "opener": np.where(starts, _NOTHING, token[first]),
            "position": position,
        }

    def words(self, rule: Rule) -> list[str]:
        """The rule's values in words: tokens as they are, forms, endings, positions."""
        if rule.kind == "form":
            return [_FORMS[value] for value in rule.values]
        if rule.kind in self._endings:
            return [self._endings[rule.kind][value] for value in rule.values]
        if rule.kind == "position":
            return [str(value) for value in sorted(rule.values)]
        if rule.kind in ("pair", "phrase"):
            n = len(self.texts)
            return [self.texts[v // n] + self.texts[v % n] for v in rule.values]
        return [self.texts[value] for value in rule.values]

    def describe(self, rule: Rule) -> str:
        """The rule in a few words: ``after "to", "not" and 3 more``."""
        words = self.words(rule)
        if rule.kind == "form":
            return listed(words)
        if rule.kind == "position":
            return _positions(sorted(rule.values))
        if rule.kind in self._endings:
            return f"words in {listed([f'-{word}' for word in words])}"
        text = listed([quoted(word) for word in words])
        return _WORDING[rule.kind].format(text)


_WORDING: Mapping[str, str] = {
    "token": "{}",
    "previous": "after {}",
    "second": "two tokens after {}",
    "third": "three tokens after {}",
    "pair": "{}",
    "phrase": "after {}",
    "next": "before {}",
    "opener": "in sentences that begin with {}",
}


def quoted(text: str) -> str:
    """A token in a sentence: without the space before it, which most have."""
    return f'"{text.strip(" ") or text}"'


def listed(words: Sequence[str]) -> str:
    """The first of some words, and how many more there are."""
    words = list(dict.fromkeys(words))
    more = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _positions(values: Sequence[int]) -> str:
    if list(values) == [0]:
        return "at the first token"
    if len(values) > 1 and values[-1] - values[0] == len(values) - 1:
        return f"at positions {values[0]} to {values[-1]}"
    return f"at positions {listed([str(value) for value in values])}"


def _form(word: str) -> int:
    """Index into `_FORMS`; -1 for bytes, spaces and nothing at all."""
    if not word:
        return _NOTHING
    if word[0].isalpha():
        return 2 if word.isupper() and len(word) > 1 else 1 if word[0].isupper() else 0
    if word[0].isnumeric():
        return 3
    return _NOTHING if "\\x" in word else 4


@dataclass(frozen=True)
class Examples:
    """The text that rules are made from.

    Attributes:
        keys: what each kind reads at every token, from `Keys.read`.
        half: ``(n_tokens,)``, 0 or 1: which half of the text each token is in.
        unit, place, value: ``(n,)`` each, tokens of the units' own contexts, active or not.
        shared: ``(m,)``, places of tokens that are looked at for every unit.
        active: where units are active among the shared ones.
        n_units: units.
    """

    keys: Mapping[str, Array]
    half: Array
    unit: Array
    place: Array
    value: Array
    shared: Array
    active: Active
    n_units: int


@dataclass(frozen=True)
class _Totals:
    """Of tokens of each unit and half, ``(n_units, 2)``: how many, their activation, its square."""

    n: Array
    activation: Array
    square: Array


def find_rules(examples: Examples) -> list[Rule | None]:
    """The rule that predicts each unit best; None where no rule predicts anything.

    A unit is predicted on the other half of the text than its values come from, both ways.
    """
    totals = _totals(examples)
    best = np.full(examples.n_units, 0.0)
    rules: list[Rule | None] = [None] * examples.n_units
    for kind in KINDS:
        crossed, chosen = _fit(examples, kind, totals)
        for unit in (crossed > best + _WORTH).nonzero()[0].tolist():
            if len(chosen[unit]):
                best[unit] = crossed[unit]
                rules[unit] = Rule(kind, tuple(chosen[unit].tolist()))
    return rules


def _totals(e: Examples) -> _Totals:
    n_shared = np.bincount(e.half[e.shared], minlength=2)
    unit = np.concatenate([e.unit, e.active.unit])
    half = np.concatenate([e.half[e.place], e.half[e.active.place]])
    value = np.concatenate([e.value, e.active.value]).astype(float)
    shape, place = (e.n_units, 2), unit * 2 + half
    own = np.bincount(e.unit * 2 + e.half[e.place], minlength=2 * e.n_units).reshape(shape)
    return _Totals(
        n=own + n_shared,
        activation=np.bincount(place, value, 2 * e.n_units).reshape(shape),
        square=np.bincount(place, value**2, 2 * e.n_units).reshape(shape),
    )


def _fit(e: Examples, kind: str, totals: _Totals) -> tuple[Array, list[Array]]:
    """How well each unit is predicted crosswise, and the values chosen from both halves."""
    keys = e.keys[kind]
    n_keys = int(keys.max(initial=0)) + 2
    own, shared = e.unit * n_keys + keys[e.place] + 1, e.active.unit * n_keys
    shared = shared + keys[e.active.place] + 1
    busy = e.value > 0
    # Only values at which the unit is ever active can be chosen.
    pairs = np.unique(np.concatenate([own[busy], shared]))
    pairs = pairs[pairs % n_keys > 0]
    unit, key = pairs // n_keys, pairs % n_keys - 1
    if not len(pairs):
        return np.zeros(e.n_units), [np.empty(0, int)] * e.n_units
    n = _count(pairs, own, e.half[e.place]) + _shared_counts(e, keys, n_keys)[key + 1]
    activation = _count(pairs, own, e.half[e.place], e.value)
    activation += _count(pairs, shared, e.half[e.active.place], e.active.value)

    crossed = np.zeros(e.n_units)
    for half in (0, 1):
        order, ends = _best_sets(unit, n[:, [half]], activation[:, [half]], totals, [half])
        crossed += _correlation_of(order, ends, unit, n, activation, totals, 1 - half) / 2
    order, ends = _best_sets(unit, n, activation, totals, [0, 1])
    begins = np.searchsorted(unit, np.arange(e.n_units))
    values = [key[order[begins[u] : ends[u]]] for u in range(e.n_units)]
    total = activation.sum(1)
    return crossed, [
        v[np.argsort(-total[order[begins[u] : ends[u]]], kind="stable")]
        for u, v in enumerate(values)
    ]


def _count(pairs: Array, found: Array, half: Array, weight: Array | None = None) -> Array:
    """Entries of each pair in each half, ``(pair, 2)``, or the sum of their weights."""
    place = np.searchsorted(pairs, found)
    known = place < len(pairs)
    known[known] = pairs[place[known]] == found[known]
    weights = None if weight is None else weight[known].astype(float)
    counted = np.bincount(place[known] * 2 + half[known], weights, 2 * len(pairs))
    return counted.reshape(-1, 2).astype(float)


def _shared_counts(e: Examples, keys: Array, n_keys: int) -> Array:
    """How often each value is read among the shared tokens, ``(value, 2)`` from -1 on."""
    found = (keys[e.shared] + 1) * 2 + e.half[e.shared]
    return np.bincount(found, minlength=2 * n_keys).reshape(-1, 2)


def _best_sets(
    unit: Array, n: Array, activation: Array, totals: _Totals, halves: list[int]
) -> tuple[Array, Array]:
    """An order of the pairs, unit by unit, and where each unit's best set ends in it.

    Args:
        unit: ``(pair,)``, ascending.
        n, activation: ``(pair, halves)``.
    """
    n, activation = n.sum(1), activation.sum(1)
    # One token more than there are: what was seen once is believed by half.
    order = np.lexsort((-activation / (n + 1), unit))
    correlation = _correlations(
        _running(n[order], unit), _running(activation[order], unit), unit, totals, halves
    )
    n_units = len(totals.n)
    begins = np.searchsorted(unit, np.arange(n_units))
    rank = np.arange(len(unit)) - begins[unit]
    correlation[(rank >= _MOST_VALUES) | (activation[order] <= 0)] = 0
    # The first of the largest of each unit.
    by_size = np.lexsort((rank, -correlation, unit))
    ends = begins.copy()
    has = np.searchsorted(unit, np.arange(n_units), side="right") > begins
    best = by_size[begins[has]]
    ends[has] = np.where(correlation[best] > 0, best + 1, begins[has])
    return order, ends


def _running(values: Array, unit: Array) -> Array:
    """Sums up to and with each entry, within its unit."""
    sums = values.cumsum()
    begins = np.searchsorted(unit, unit)
    return sums - np.where(begins > 0, sums[begins - 1], 0)


def _correlations(
    n: Array, activation: Array, unit: Array, totals: _Totals, halves: list[int]
) -> Array:
    """Of the sets with `n` tokens and that much activation, each of a unit."""
    total, mass, square = (
        part[:, halves].sum(1)[unit] for part in (totals.n, totals.activation, totals.square)
    )
    return correlation(n, activation, total, mass, square)


def correlation(n: Array, activation: Array, total: Array, mass: Array, square: Array) -> Array:
    """Between belonging to a set and activation; 0 where either never varies.

    Args:
        n, activation: tokens in the set, and the activation on them.
        total, mass, square: all tokens, all activation, and the sum of its squares.
    """
    total = np.maximum(total, 1)
    share, mean = n / total, mass / total
    covariance = activation / total - share * mean
    variance = (share - share**2) * (square / total - mean**2)
    usable = variance > 1e-12 * np.maximum(square / total, 1e-30)
    return np.where(usable, covariance / np.sqrt(np.where(usable, variance, 1)), 0.0)


def _correlation_of(
    order: Array,
    ends: Array,
    unit: Array,
    n: Array,
    activation: Array,
    totals: _Totals,
    half: int,
) -> Array:
    """Of each unit's set, on one half of the text."""
    n_units = len(totals.n)
    begins = np.searchsorted(unit, np.arange(n_units))
    sums = [np.concatenate([[0], part[order, half].cumsum()]) for part in (n, activation)]
    n, activation = (part[ends] - part[begins] for part in sums)
    return _correlations(n, activation, np.arange(n_units), totals, [half])


def score_rules(
    rules: Sequence[Rule | None], keys: Mapping[str, Array], active: Active
) -> list[Score]:
    """How well each unit's rule predicts its activation on other text.

    Args:
        rules: one for each unit; None picks nothing.
        keys: what each kind reads at every token.
        active: where units are active there.
    """
    n_tokens = len(keys["token"])
    by_key = {kind: np.argsort(keys[kind], kind="stable") for kind in KINDS}
    by_unit = np.argsort(active.unit, kind="stable")
    ends = np.searchsorted(active.unit[by_unit], np.arange(len(rules) + 1))
    scores = []
    dense = np.zeros(n_tokens)
    for unit, rule in enumerate(rules):
        own = by_unit[ends[unit] : ends[unit + 1]]
        place, value = active.place[own], active.value[own].astype(float)
        dense[place] = value
        picked = picks(rule, keys, by_key)
        on_picked = dense[picked]
        sums = (value.sum(), np.square(value).sum())
        found = correlation(
            np.array(len(picked)), on_picked.sum(), np.array(n_tokens), *map(np.asarray, sums)
        )
        scores.append(
            Score(
                correlation=float(found) if len(own) else np.nan,
                precision=float((on_picked > 0).mean()) if len(picked) else np.nan,
                recall=float(on_picked.sum() / sums[0]) if sums[0] else np.nan,
                n_active=len(own),
            )
        )
        dense[place] = 0
    return scores


def picks(rule: Rule | None, keys: Mapping[str, Array], by_key: Mapping[str, Array]) -> Array:
    """Places of the tokens that a rule picks; `by_key` sorts each kind's keys."""
    if rule is None:
        return np.empty(0, int)
    order = by_key[rule.kind]
    found = keys[rule.kind][order]
    values = np.array(rule.values)
    starts, stops = np.searchsorted(found, values), np.searchsorted(found, values, side="right")
    return np.concatenate([order[a:b] for a, b in zip(starts, stops, strict=True)])
