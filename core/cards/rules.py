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
_MOST_VALUES = 200
_CELLS = 1 << 22
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


@dataclass(frozen=True)
class Read:
    """What one kind of rule reads at every token, each value numbered.

    Attributes:
        values: ``(n_values,)``, ascending.
        number: ``(n_tokens,)``, index into `values` of what is read there.
        order: ``(n_tokens,)``, places of tokens by value.
        begins: ``(n_values + 1,)``, where each value's places begin in `order`.
    """

    values: Array
    number: Array
    order: Array
    begins: Array

    @classmethod
    def of(cls, keys: Array) -> Read:
        """What is read at each token, ``(n_tokens,)``."""
        values, number = np.unique(keys, return_inverse=True)
        begins = np.concatenate([[0], np.bincount(number, minlength=len(values)).cumsum()])
        return cls(values, number, np.argsort(number, kind="stable"), begins)

    def places(self, values: Sequence[int]) -> Array:
        """Tokens at which one of some values is read."""
        wanted = np.array(values, dtype=self.values.dtype)
        number = np.flatnonzero(np.isin(self.values, wanted))
        parts = (self.order[self.begins[i] : self.begins[i + 1]] for i in number)
        return np.concatenate([np.empty(0, int), *parts])


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

    def read(self, contexts: Sequence[Sequence[int]]) -> dict[str, Read]:
        """What each kind reads at every token of these contexts, one after the other.

        Nothing is read, -1, where there is nothing, such as before the first token.
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
        read = {
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
        return {kind: Read.of(keys) for kind, keys in read.items()}

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
        if rule.kind == "token":
            return f"the token {text}" if len(words) == 1 else f"tokens such as {text}"
        return _WORDING[rule.kind].format(text)


_WORDING: Mapping[str, str] = {
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
        unit, place, value: ``(n,)`` each, tokens of the units' own contexts, active or not; by
            unit, ascending.
        shared: ``(m,)``, places of tokens that are looked at for every unit.
        active: where units are active among the shared ones.
        n_units: units.
    """

    keys: Mapping[str, Read]
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


@dataclass(frozen=True)
class _Pairs:
    """Units and values at which they are active, by unit; ``(pair, 2)`` counts by half.

    Attributes:
        unit, key: ``(pair,)``.
        n, activation: tokens with that value, and the activation on them.
    """

    unit: Array
    key: Array
    n: Array
    activation: Array


def find_rules(examples: Examples) -> list[Rule | None]:
    """The rule that predicts each unit best; None where no rule predicts anything.

    A unit is predicted on the other half of the text than its values come from, both ways; one that
    is active in one half alone, on the text itself.
    """
    totals = _totals(examples)
    one_sided = (totals.activation > 0).sum(1) == 1
    best = np.zeros(examples.n_units)
    rules: list[Rule | None] = [None] * examples.n_units
    for kind in KINDS:
        pairs = _pairs(examples, kind)
        if not len(pairs.unit):
            continue
        crossed = (_crossed(pairs, totals, [0], [1]) + _crossed(pairs, totals, [1], [0])) / 2
        crossed[one_sided] = _crossed(pairs, totals, [0, 1], [0, 1])[one_sided]
        better = crossed > best + _WORTH
        if not better.any():
            continue
        order, begins, ends = _best_sets(pairs, totals, [0, 1])
        activation = pairs.activation.sum(1)[order]
        for unit in (better & (ends > begins)).nonzero()[0].tolist():
            own = slice(begins[unit], ends[unit])
            values = pairs.key[order[own]][np.argsort(-activation[own], kind="stable")]
            best[unit], rules[unit] = crossed[unit], Rule(kind, tuple(values.tolist()))
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


def _pairs(e: Examples, kind: str) -> _Pairs:
    """How often each unit meets each value, and how active it is there."""
    read = e.keys[kind]
    # Only values at which some unit is active count; they are numbered from 0, the others are -1.
    is_used = np.zeros(len(read.values), dtype=bool)
    is_used[read.number[e.place[e.value > 0]]] = True
    is_used[read.number[e.active.place]] = True
    is_used &= read.values != _NOTHING
    values = read.values[is_used]
    numbered = np.where(is_used, is_used.cumsum() - 1, _NOTHING)
    table = _Table(e, numbered[read.number] if len(values) else np.full(len(e.half), _NOTHING))
    active = e.active
    n_shared = table.count(np.zeros(len(e.shared), int), e.shared, None, 0, (1, len(values), 2))[0]
    parts = []
    # So many units at a time that a table of units and values is small.
    n_at_once = max(1, _CELLS // (2 * max(1, len(values))))
    for first in range(0, e.n_units, n_at_once):
        last = min(first + n_at_once, e.n_units)
        own = slice(*np.searchsorted(e.unit, [first, last]).tolist())
        some = slice(*np.searchsorted(active.unit, [first, last]).tolist())
        shape = (last - first, len(values), 2)
        activation = table.count(e.unit[own], e.place[own], e.value[own], first, shape)
        activation += table.count(
            active.unit[some], active.place[some], active.value[some], first, shape
        )
        unit, key = np.nonzero(activation.any(axis=2))
        n = table.count(e.unit[own], e.place[own], None, first, shape)[unit, key] + n_shared[key]
        parts.append((unit + first, values[key], n, activation[unit, key]))
    if not parts:
        return _Pairs(np.empty(0, int), np.empty(0, int), np.empty((0, 2)), np.empty((0, 2)))
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Table:
    """Counts by unit, value and half; `number` has what is read at each token, -1 if of no use."""

    examples: Examples
    number: Array

    def count(
        self, unit: Array, place: Array, weight: Array | None, first: int, shape: tuple[int, ...]
    ) -> Array:
        """Tokens, or the sum of their weights, in `shape`, whose units begin at `first`."""
        key = self.number[place]
        used = key >= 0
        cell = ((unit[used] - first) * shape[1] + key[used]) * 2
        cell += self.examples.half[place[used]]
        weights = None if weight is None else weight[used].astype(float)
        return np.bincount(cell, weights, int(np.prod(shape))).astype(float).reshape(shape)


def _best_sets(pairs: _Pairs, totals: _Totals, halves: list[int]) -> tuple[Array, Array, Array]:
    """An order of the pairs, unit by unit, and where each unit's best set begins and ends in it."""
    n, activation = pairs.n[:, halves].sum(1), pairs.activation[:, halves].sum(1)
    # One token more than there are: what was seen once is believed by half.
    mean = activation / (n + 1)
    order = np.argsort(pairs.unit - mean / (1.01 * mean.max() + 1e-30), kind="stable")
    unit, n, activation = pairs.unit[order], n[order], activation[order]
    begins, stops = _bounds(unit, len(totals.n))
    sums = [_running(part, begins[unit]) for part in (n, activation)]
    found = _correlations(sums[0], sums[1], unit, totals, halves)
    rank = np.arange(len(unit)) - begins[unit]
    found[(rank >= _MOST_VALUES) | (activation <= 0)] = 0
    ends = begins.copy()
    has = stops > begins
    largest = np.zeros(len(begins))
    largest[has] = np.maximum.reduceat(found, begins[has])
    at_largest = np.flatnonzero((found == largest[unit]) & (found > 0))
    # Of several, the first: written last.
    ends[unit[at_largest[::-1]]] = at_largest[::-1] + 1
    return order, begins, ends


def _bounds(unit: Array, n_units: int) -> tuple[Array, Array]:
    """Where the entries of each unit begin and end."""
    units = np.arange(n_units)
    return np.searchsorted(unit, units), np.searchsorted(unit, units, side="right")


def _running(values: Array, begins: Array) -> Array:
    """Sums up to and with each entry, from where its unit begins."""
    sums = np.concatenate([[0], values.cumsum()])
    return sums[1:] - sums[begins]


def _crossed(pairs: _Pairs, totals: _Totals, halves: list[int], others: list[int]) -> Array:
    """How well the best set of some halves predicts others, for each unit."""
    order, begins, ends = _best_sets(pairs, totals, halves)
    n, activation = (
        np.concatenate([[0], part[order][:, others].sum(1).cumsum()])
        for part in (pairs.n, pairs.activation)
    )
    units = np.arange(len(begins))
    return _correlations(
        n[ends] - n[begins], activation[ends] - activation[begins], units, totals, others
    )


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


def score_rules(
    rules: Sequence[Rule | None], keys: Mapping[str, Read], active: Active
) -> list[Score]:
    """How well each unit's rule predicts its activation on other text.

    Args:
        rules: one for each unit; None picks nothing.
        keys: what each kind reads at every token there.
        active: where units are active there.
    """
    n_tokens = len(keys["token"].number)
    ends = np.searchsorted(active.unit, np.arange(len(rules) + 1))
    scores = []
    dense = np.zeros(n_tokens)
    for unit, rule in enumerate(rules):
        own = slice(ends[unit], ends[unit + 1])
        place, value = active.place[own], active.value[own].astype(float)
        dense[place] = value
        on_picked = dense[picks(rule, keys)]
        dense[place] = 0
        n, total = len(on_picked), value.sum()
        sums = n, on_picked.sum(), n_tokens, total, np.square(value).sum()
        found = correlation(*(np.array(part) for part in sums))
        scores.append(
            Score(
                correlation=float(found) if len(place) else np.nan,
                precision=float((on_picked > 0).mean()) if n else np.nan,
                recall=float(on_picked.sum() / total) if total else np.nan,
                n_active=len(place),
            )
        )
    return scores


def picks(rule: Rule | None, keys: Mapping[str, Read]) -> Array:
    """Places of the tokens that a rule picks."""
    return np.empty(0, int) if rule is None else keys[rule.kind].places(rule.values)
