"""Contrastive pairs for subject-verb agreement, in the form of the paper's authors (App. D.1).

The nouns of the training pairs and of the test pairs are disjoint, subjects and attractors alike.
"""

from random import Random
from typing import TypedDict

from testbed.lexicon import (
    AUXILIARIES,
    BEINGS,
    INFINITIVE_PRESENT,
    INTRANSITIVE,
    PREPOSITIONS,
    THINGS,
    TRANSITIVE,
    Noun,
    with_s,
)

STRUCTURES = ("simple", "within_rc", "across_rc", "across_pp")
SPLITS = ("train", "test")
# One noun in three is kept for testing.
_TEST_EVERY = 3
# (singular form, plural form). Inside a relative clause the lexical verb is a transitive one.
_AUXILIARIES = [*AUXILIARIES.values()]
_MAIN_VERBS = [(verb.third, verb.base) for verb in INTRANSITIVE]
_MAIN_VERBS += [(with_s(verb), verb) for verb in INFINITIVE_PRESENT]
_INNER_VERBS = [(verb.third, verb.base) for verb in TRANSITIVE]
P_AUXILIARY = 0.6


class Pair(TypedDict):
    """Two prefixes that differ in the number of one noun, and the verb form each asks for.

    `case` is the number of each noun of the clean prefix, in order: "singular_plural".
    """

    clean_prefix: str
    patch_prefix: str
    clean_answer: str
    patch_answer: str
    case: str


def agreement_pairs(structure: str, n: int, split: str, seed: int) -> list[Pair]:
    """Distinct contrastive pairs of one structure.

    Args:
        structure: "simple", "within_rc", "across_rc" or "across_pp".
        n: how many.
        split: "train" or "test"; no noun is in both.
        seed: of everything drawn.

    Raises:
        ValueError: no such structure or split, or fewer than `n` distinct pairs exist.
    """
    if structure not in STRUCTURES or split not in SPLITS:
        raise ValueError(
            f"There are no {split!r} pairs of {structure!r}: the structures are "
            f"{', '.join(STRUCTURES)} and the splits {', '.join(SPLITS)}."
        )
    rng = Random(f"pairs/{structure}/{split}/{seed}")
    beings, things = nouns_of(split)
    found: dict[tuple[str, str], Pair] = {}
    for _ in range(20 * n + 100):
        if len(found) == n:
            break
        pair = _pair(rng, structure, beings, things)
        found[pair["clean_prefix"], pair["clean_answer"]] = pair
    if len(found) < n:
        raise ValueError(
            f"{n} distinct {split} pairs of {structure!r} were asked for, and its nouns and verbs "
            f"gave {len(found)}. Ask for fewer, or add nouns to testbed/lexicon.py."
        )
    return list(found.values())


def nouns_of(split: str) -> tuple[list[Noun], list[Noun]]:
    """The beings and the things a split's pairs are made of."""
    return _share(BEINGS, split), _share(THINGS, split)


def _share(nouns: tuple[Noun, ...], split: str) -> list[Noun]:
    kept = [index % _TEST_EVERY == 0 for index in range(len(nouns))]
    return [noun for noun, test in zip(nouns, kept, strict=True) if test == (split == "test")]


def _pair(rng: Random, structure: str, beings: list[Noun], things: list[Noun]) -> Pair:
    plural = rng.random() < 0.5  # the noun the verb agrees with, in the clean prefix
    first = rng.choice(beings)
    if structure == "simple":
        clean, patch = (f"The {first.form(number)}" for number in (plural, not plural))
        return _filled(rng, clean, patch, plural, _MAIN_VERBS, _case(plural))
    other = rng.random() < 0.5  # the number of the noun it does not agree with
    if structure == "within_rc":
        second = rng.choice([noun for noun in beings if noun is not first])
        clean, patch = (
            f"The {first.form(other)} that the {second.form(number)}"
            for number in (plural, not plural)
        )
        return _filled(rng, clean, patch, plural, _INNER_VERBS, _case(other, plural))
    if structure == "across_rc":
        second = rng.choice([noun for noun in beings if noun is not first])
        rest = f" that the {second.form(other)} {rng.choice(TRANSITIVE).present(other)}"
    else:
        rest = f" {rng.choice(PREPOSITIONS)} the {rng.choice(things).form(other)}"
    clean, patch = (f"The {first.form(number)}{rest}" for number in (plural, not plural))
    return _filled(rng, clean, patch, plural, _MAIN_VERBS, _case(plural, other))


def _filled(
    rng: Random, clean: str, patch: str, plural: bool, lexical: list[tuple[str, str]], case: str
) -> Pair:
    verb = rng.choice(_AUXILIARIES if rng.random() < P_AUXILIARY else lexical)
    return {
        "clean_prefix": clean,
        "patch_prefix": patch,
        "clean_answer": f" {verb[plural]}",
        "patch_answer": f" {verb[not plural]}",
        "case": case,
    }


def _case(*plural: bool) -> str:
    return "_".join("plural" if one else "singular" for one in plural)
