"""Clauses whose verb agrees with a noun: simple, within and across a relative clause, across a
prepositional phrase.

An opener such as "So far," settles which verb comes, so that its form is all there is to find;
without one the first verb of the clause settles it for the second. The number of every noun is
drawn by itself, so nothing but the subject tells the form.
"""

from testbed.lexicon import (
    ADJECTIVES,
    AUXILIARIES,
    BEINGS,
    INFINITIVE_PRESENT,
    INTRANSITIVE,
    OPENERS,
    PREPOSITIONS,
    STANCES,
    THINGS,
    TRANSITIVE,
    Noun,
    with_s,
)
from testbed.phrases import adjective_noun, determiner, noun_phrase, tail
from testbed.writer import Mix, PhraseBook, Writer

MODES = Mix({"past": 0.2, "present": 0.2, "perfect": 0.2, "negative": 0.2, "lexical": 0.2})
STRUCTURES = Mix({"simple": 0.4, "rc": 0.3, "pp": 0.3})
OPENING = PhraseBook(phrase for phrases in OPENERS.values() for phrase in phrases)
OPENING_MODES = [mode for mode, phrases in OPENERS.items() for _ in phrases]
P_STANCE = 0.12


def opened_clause(w: Writer) -> None:
    """A clause after an opener, which settles its verb."""
    mode = OPENING_MODES[w.phrase(OPENING, "collocation")]
    w.mark(",", "opener_comma")
    clause(w, mode)


def clause(w: Writer, mode: str | None = None) -> None:
    """A subject with one of three structures after it, its verb, and the rest of the sentence."""
    owned, noun, plural = subject(w, opens=mode is None)
    structure = "simple" if owned else w.draw(STRUCTURES)
    label = "agreement_simple"
    if structure == "rc":
        mode = relative_clause(w, mode)
        label = "agreement_across_rc"
    elif structure == "pp":
        w.word(w.pick(PREPOSITIONS))
        noun_phrase(w, THINGS if w.chance(0.5) else BEINGS)
        label = "agreement_across_pp"
    elif w.chance(P_STANCE):
        w.word(w.pick(STANCES))
    predicate(w, noun, plural, mode or w.draw(MODES), label)


def subject(w: Writer, *, opens: bool) -> tuple[bool, Noun, bool]:
    """A noun phrase; whether "my" or the like owns it (it then takes no modifier), its noun and
    whether that is plural."""
    owned = determiner(w, opens=opens) != "the"
    noun, plural = adjective_noun(w, BEINGS)
    return owned, noun, plural


def relative_clause(w: Writer, mode: str | None) -> str | None:
    """The word "that", a subject of its own and a verb with no object; the mode then settled."""
    w.word("that")
    _, plural = noun_phrase(w, BEINGS)
    inner = mode or w.draw(MODES)
    label = "agreement_within_rc"
    if inner in ("habit", "lexical"):
        w.word(w.pick(TRANSITIVE).present(plural), label)
        # Without an opener, a main verb of any kind may follow this one.
        return mode
    auxiliary(w, inner, plural, label)
    verb = w.pick(TRANSITIVE)
    w.word({"perfect": verb.participle, "negative": verb.base}.get(inner, verb.ing))
    return inner


def auxiliary(w: Writer, mode: str, plural: bool, label: str) -> None:
    """An auxiliary in the number of its subject; "do" is always negated."""
    w.word(AUXILIARIES[mode][plural], label)
    if mode == "negative":
        w.word("not", "negation")


def predicate(w: Writer, noun: Noun, plural: bool, mode: str, label: str) -> None:
    """The verb that agrees with the subject, and what follows it to the end of the sentence."""
    if mode == "habit":
        w.word(noun.habit if plural else with_s(noun.habit), label)
    elif mode == "lexical":
        if w.chance(0.4):
            verb = w.pick(INFINITIVE_PRESENT)
            w.word(verb if plural else with_s(verb), label)
            infinitive(w, "infinitive_remember_to")
        else:
            w.word(w.pick(INTRANSITIVE).present(plural), label)
    else:
        auxiliary(w, mode, plural, label)
        complement(w, mode)
    tail(w)


def complement(w: Writer, mode: str) -> None:
    """What follows an auxiliary."""
    if mode == "negative":
        w.word(w.pick(INTRANSITIVE).base)
    elif w.chance(0.5):
        verb = w.pick(INTRANSITIVE)
        w.word(verb.participle if mode == "perfect" else verb.ing)
    else:
        if mode == "perfect":
            w.word("been")
        w.word(w.pick(ADJECTIVES))


def infinitive(w: Writer, label: str) -> None:
    """The word "to" and a verb."""
    w.word("to", label)
    w.word(w.pick(INTRANSITIVE).base)
