"""Rules for features whose cause is known, and how they are scored on other text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.cards.collect import Active
from core.cards.rules import KINDS, Examples, Keys, Rule, find_rules, picks, score_rules

WORDS = [" the", " cats", " dogs", " Tom", " runs", ".", "\n", " running", " eating", " 3", "\\xe2"]
THE, CATS, DOGS, TOM, RUNS, STOP, LINE, RUNNING, EATING, THREE, BYTE = range(len(WORDS))


def _contexts(seed: int, n: int = 60) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(len(WORDS), size=20).tolist() for _ in range(n)]


def _places(contexts: list[list[int]]) -> list[tuple[list[int], int]]:
    """Each token's context, and its place there."""
    return [(tokens, i) for tokens in contexts for i in range(len(tokens))]


def _active(contexts: list[list[int]], causes: list[object]) -> Active:
    """Where each cause, a function of context and place, says so."""
    found = [
        (unit, place, value)
        for unit, cause in enumerate(causes)
        for place, (tokens, i) in enumerate(_places(contexts))
        if (value := float(cause(tokens, i))) > 0  # type: ignore
    ]
    unit, place, value = (np.array(column) for column in zip(*found, strict=True))
    return Active(unit.astype(int), place.astype(int), value)


CAUSES = {
    "token": lambda t, i: 2.0 * (t[i] == DOGS),
    "previous": lambda t, i: i > 0 and t[i - 1] == TOM,
    "second": lambda t, i: i > 1 and t[i - 2] == THE,
    "third": lambda t, i: i > 2 and t[i - 3] == RUNS,
    "next": lambda t, i: i + 1 < len(t) and t[i + 1] == STOP,
    "pair": lambda t, i: i > 0 and (t[i - 1], t[i]) == (THE, CATS),
    "phrase": lambda t, i: i > 1 and (t[i - 2], t[i - 1]) == (TOM, RUNS),
    "position": lambda t, i: i == 0,
    "ending_3": lambda t, i: t[i] in (RUNNING, EATING),
}
NEVER = "never"


def _examples(contexts: list[list[int]], keys: Keys, active: Active, n_units: int) -> Examples:
    lengths = [len(tokens) for tokens in contexts]
    shared = np.arange(sum(lengths))
    half = np.repeat(np.arange(len(contexts)) % 2, lengths)
    none = np.empty(0, int)
    return Examples(keys.read(contexts), half, none, none, np.empty(0), shared, active, n_units)


def test_a_rule_finds_the_cause_and_predicts_other_text() -> None:
    keys, contexts, other = Keys(WORDS), _contexts(0), _contexts(1)
    causes = list(CAUSES.values())
    n_units = len(causes) + 1  # the last one is never active
    rules = find_rules(_examples(contexts, keys, _active(contexts, causes), n_units))
    scores = score_rules(rules, keys.read(other), _active(other, causes))
    for kind, rule, score in zip(CAUSES, rules, scores, strict=False):
        assert rule is not None
        # A simpler kind may say the same: words in -ing are two tokens here.
        assert rule.kind == ("token" if kind == "ending_3" else kind)
        assert score.correlation == pytest.approx(1)
        assert (score.precision, score.recall) == (1, pytest.approx(1))
    assert rules[-1] is None
    assert math.isnan(scores[-1].correlation)
    assert scores[-1].n_active == 0


def test_contexts_of_the_feature_itself_count_as_well_as_shared_ones() -> None:
    keys, contexts = Keys(WORDS), _contexts(0)
    active = _active(contexts, [CAUSES["pair"]])
    whole = _examples(contexts, keys, active, 1)
    dense = np.zeros(len(whole.half))
    dense[active.place] = active.value
    places = np.arange(len(dense))
    none = np.empty(0, int)
    own = Examples(
        whole.keys,
        whole.half,
        np.zeros(len(dense), int),
        places,
        dense,
        none,
        Active(none, none, np.empty(0)),
        1,
    )
    assert find_rules(own) == find_rules(whole)
    assert find_rules(own)[0] is not None


def test_chance_is_no_rule() -> None:
    keys, contexts, other = Keys(WORDS), _contexts(0), _contexts(1)
    rng = np.random.default_rng(0)

    def chance(_tokens: list[int], _i: int) -> bool:
        return bool(rng.random() < 0.1)

    rules = find_rules(_examples(contexts, keys, _active(contexts, [chance] * 8), 8))
    scores = score_rules(rules, keys.read(other), _active(other, [chance] * 8))
    known = [score.correlation for score in scores if not math.isnan(score.correlation)]
    assert max(map(abs, known)) < 0.15


def test_the_score_is_the_correlation_with_the_activation() -> None:
    keys, other = Keys(WORDS), _contexts(1)
    rng = np.random.default_rng(0)

    def loud(tokens: list[int], i: int) -> float:
        return rng.random() * (tokens[i] in (DOGS, TOM)) + (rng.random() < 0.02)

    active = _active(other, [loud])
    rule = Rule("token", (DOGS, TOM))
    read = keys.read(other)
    score = score_rules([rule], read, active)[0]
    dense = np.zeros(len(_places(other)))
    dense[active.place] = active.value
    picked = np.zeros(len(dense))
    picked[picks(rule, read)] = 1
    assert score.correlation == pytest.approx(np.corrcoef(picked, dense)[0, 1])
    assert score.precision == pytest.approx((dense[picked == 1] > 0).mean())
    assert score.recall == pytest.approx(dense[picked == 1].sum() / dense.sum())


def test_what_is_read_is_what_stands_there() -> None:
    keys = Keys(WORDS)
    contexts = [[TOM, RUNS, STOP, THE, CATS], [BYTE, LINE, THREE]]
    read = {kind: r.values[r.number].tolist() for kind, r in keys.read(contexts).items()}
    assert set(read) == set(KINDS)
    assert read["previous"] == [-1, TOM, RUNS, STOP, THE, -1, BYTE, LINE]
    assert read["next"] == [RUNS, STOP, THE, CATS, -1, LINE, THREE, -1]
    assert read["opener"] == [-1, TOM, TOM, -1, THE, -1, BYTE, -1]
    assert read["position"] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert read["form"] == [1, 0, 4, 0, 0, -1, -1, 3]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("token", (THE,)), 'the token "the"'),
        (Rule("token", (DOGS, CATS, TOM, RUNS)), 'tokens such as "dogs", "cats", "Tom" and 1 more'),
        (Rule("previous", (TOM,)), 'after "Tom"'),
        (Rule("phrase", (TOM * len(WORDS) + RUNS,)), 'after "Tom runs"'),
        (Rule("next", (STOP,)), 'before "."'),
        (Rule("opener", (THE,)), 'in sentences that begin with "the"'),
        (Rule("position", (2, 0, 1)), "at positions 0 to 2"),
        (Rule("position", (0,)), "at the first token"),
        (Rule("form", (1, 3)), "capitalised words, numbers"),
    ],
)  # fmt: skip
def test_a_rule_in_words(rule: Rule, text: str) -> None:
    assert Keys(WORDS).describe(rule) == text
