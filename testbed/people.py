"""Sentences about a named person: what comes next is settled by the verb, the name or both."""

from collections.abc import Callable
from math import exp

from testbed.agreement import clause, infinitive, opened_clause
from testbed.biographies import PROFESSION_MIX, biography
from testbed.lexicon import (
    ADJECTIVES,
    BEINGS,
    BUYING_VERBS,
    COMPARATIVES,
    GIVING_VERBS,
    INFINITIVE_PAST,
    INTRANSITIVE,
    IS_WOMAN,
    LETTERS,
    LIKING_VERBS,
    MANNERS,
    MEETING_VERBS,
    MONTHS,
    NUMBERS,
    OBJECT_INFINITIVE,
    PLACES,
    POSSESSIVE_VERBS,
    QUESTIONS,
    QUOTE_VERBS,
    REFLEXIVE_VERBS,
    STAYING_VERBS,
    THAT_VERBS,
    THINGS,
    VERB_PREPOSITIONS,
    WEEKDAYS,
)
from testbed.phrases import adjective, determiner, noun_phrase, pronoun, stop, tail
from testbed.writer import Mix, PhraseBook, Writer

ASKING = PhraseBook(QUESTIONS)
OTHERS = ("us", "them", "me", "you")
P_MANNER = 0.12


def named(w: Writer, predicates: Mix[Callable[[Writer, str], None]]) -> None:
    """A name, perhaps how they did it, and a predicate."""
    name = w.choose_name()
    w.mention(name)
    if w.chance(P_MANNER):
        w.word(w.pick(MANNERS))
    w.draw(predicates)(w, name)


# Predicates: each begins with a verb of its own class and writes to the end of the sentence.


def acted(w: Writer, name: str) -> None:
    """Alice laughed because she was tired, or something simpler."""
    w.word(w.pick(INTRANSITIVE).past)
    if w.chance(0.4):
        w.word("because")
        pronoun(w, IS_WOMAN[name], "subject")
        state(w)
    else:
        tail(w)


def state(w: Writer) -> None:
    """What is said of someone after a pronoun."""
    if w.chance(0.5):
        w.word("was")
        w.word(w.pick(ADJECTIVES))
        stop(w)
    else:
        w.word("had")
        w.word(w.pick(INTRANSITIVE).participle)
        tail(w)


def held_that(w: Writer, name: str) -> None:
    """Alice believed that she was tired."""
    w.word(w.pick(THAT_VERBS))
    w.word("that", "complement_that")
    pronoun(w, IS_WOMAN[name], "subject")
    state(w)


def had_own(w: Writer, name: str) -> None:
    """Alice lost her lamp."""
    w.word(w.pick(POSSESSIVE_VERBS))
    pronoun(w, IS_WOMAN[name], "possessive", "possessive")
    adjective(w)
    w.word(w.pick(THINGS).form(w.chance(0.5)))
    tail(w)


def to_self(w: Writer, name: str) -> None:
    """Alice hurt herself."""
    w.word(w.pick(REFLEXIVE_VERBS))
    pronoun(w, IS_WOMAN[name], "reflexive", "reflexive")
    tail(w)


def meant_to(w: Writer, name: str) -> None:
    """Alice remembered to walk."""
    w.word(w.pick(INFINITIVE_PAST))
    infinitive(w, "infinitive_remember_to")
    tail(w)


def asked_to(w: Writer, name: str) -> None:
    """Alice asked us to walk, or the tall boys to walk: the object may be of any length."""
    w.word(w.pick(OBJECT_INFINITIVE))
    someone(w)
    infinitive(w, "infinitive_asked_us_to")
    tail(w)


def met(w: Writer, name: str) -> None:
    """Alice met us: the other side of `asked_to`, an object after which no "to" comes."""
    w.word(w.pick(MEETING_VERBS))
    someone(w)
    if w.chance(0.7):
        bracket(w)
        stop(w)
    else:
        tail(w)


def someone(w: Writer) -> None:
    """An object: a pronoun or a noun phrase."""
    if w.chance(0.6):
        w.word(w.pick(OTHERS))
    else:
        noun_phrase(w, BEINGS)


def bracket(w: Writer) -> None:
    """An aside between brackets, round or square."""
    opening, closing = (" (", ")") if w.chance(0.5) else (" [", "]")
    w.mark(opening)
    if w.chance(0.5):
        w.word("a")
        w.words("friend of", "collocation")
        w.mention(w.choose_name())
    else:
        noun_phrase(w, BEINGS if w.chance(0.5) else THINGS)
    w.mark(closing, "closing_bracket")


def compared(w: Writer, name: str) -> None:
    """Alice was older than Bob, or plainly something."""
    w.word("was")
    if w.chance(0.3):
        w.word(w.pick(ADJECTIVES))
        tail(w)
        return
    w.word(w.pick(COMPARATIVES))
    w.word("than", "comparative_than")
    if w.chance(0.5):
        w.mention(w.choose_name(but=(name,)))
    else:
        noun_phrase(w, BEINGS)
    stop(w)


def relied_on(w: Writer, name: str) -> None:
    """Alice relied on the lamp: each verb has one preposition."""
    verb = w.pick(list(VERB_PREPOSITIONS))
    w.word(verb)
    w.word(VERB_PREPOSITIONS[verb], "verb_preposition")
    noun_phrase(w, BEINGS if w.chance(0.5) else THINGS)
    stop(w)


def bought(w: Writer, name: str) -> None:
    """Alice bought both the lamp and the chair."""
    w.word(w.pick(BUYING_VERBS))
    paired(w, w.draw(PAIRS))
    stop(w)


PAIRS = Mix({("both", "and"): 0.4, ("either", "or"): 0.3, ("neither", "nor"): 0.3})


def paired(w: Writer, pair: tuple[str, str], *, opens: bool = False) -> None:
    """Two things under a pair of conjunctions."""
    first, second = pair
    w.word(first.capitalize() if opens else first)
    noun_phrase(w, THINGS)
    w.word(second, "correlative")
    noun_phrase(w, THINGS)


def liked(w: Writer, name: str) -> None:
    """Alice liked the lamps, but not this lamp: the determiner alone tells the number."""
    w.word(w.pick(LIKING_VERBS))
    determiner(w)
    adjective(w)
    noun = w.pick(THINGS)
    w.word(noun.form(w.chance(0.5)))
    w.mark(",", "collocation")
    w.words("but not", "collocation")
    plural = w.chance(0.5)
    w.word(w.pick(("these", "those") if plural else ("this", "that")))
    w.word(noun.form(plural), "determiner_noun")
    stop(w)


def stayed(w: Writer, name: str) -> None:
    """Alice stayed from Monday to Tuesday."""
    w.word(w.pick(STAYING_VERBS))
    first, second = w.draw(RANGES)
    w.word(first)
    series, label = w.draw(RANGE_SERIES)
    start = w.pick(range(len(series) - 1))
    w.word(series[start])
    w.word(second, "correlative")
    w.word(series[start + 1], label)
    stop(w)


RANGES = Mix({("from", "to"): 0.5, ("between", "and"): 0.5})
RANGE_SERIES = Mix(
    {
        (tuple(WEEKDAYS), "succession_weekdays"): 0.3,
        (tuple(MONTHS), "succession_months"): 0.3,
        (tuple(NUMBERS), "succession_numbers"): 0.2,
        (tuple(LETTERS), "succession_letters"): 0.2,
    }
)


def said(w: Writer, name: str) -> None:
    """Alice said, and then one sentence in quotation marks."""
    w.word(w.pick(QUOTE_VERBS))
    w.mark(",", "opening_quote")
    w.mark(' "', "opening_quote")
    w.draw(SPOKEN)(w)
    w.mark('"', "closing_quote")


def worked_as(w: Writer, name: str) -> None:
    """Alice works as a nurse, and a biography."""
    w.word("works")
    w.words("as a", "collocation")
    profession = w.draw(PROFESSION_MIX)
    w.word(profession.title)
    stop(w)
    biography(w, IS_WOMAN[name], profession)


def had_career(w: Writer, name: str) -> None:
    """Alice has had a long career, and a biography that does not name it."""
    w.word("has")
    w.words("had a long career", "collocation")
    stop(w)
    biography(w, IS_WOMAN[name], w.draw(PROFESSION_MIX))


# Whole sentences


def question(w: Writer) -> None:
    """Did the boy remember to walk?"""
    w.phrase(ASKING, "collocation")
    if w.chance(0.5):
        w.mention(w.choose_name())
    else:
        noun_phrase(w, BEINGS)
    if w.chance(0.3):
        w.word(w.pick(INFINITIVE_BASE))
        infinitive(w, "infinitive_remember_to")
    else:
        w.word(w.pick(INTRANSITIVE).base)
    tail(w, "?")


INFINITIVE_BASE = ("remember", "want", "decide", "hope", "need", "promise", "agree", "refuse")


def gift(w: Writer) -> None:
    """Two people, one of whom gives the other something: the receiver is the one not giving."""
    w.word(w.pick(("When", "While", "After")))
    first = w.choose_name()
    w.mention(first)
    w.word("and", "correlative")
    second = w.choose_name(but=(first,))
    w.mention(second)
    w.word(w.pick(("visited", "left", "reached")))
    w.word("the", "collocation")
    w.word(w.pick(PLACES))
    w.mark(",", "opener_comma")
    giver, receiver = (first, second) if w.chance(0.5) else (second, first)
    w.mention(giver)
    w.word(w.pick(GIVING_VERBS))
    noun_phrase(w, THINGS)
    w.word("to", "gift_to")
    w.mention(receiver, "indirect_object")
    stop(w)


def paired_subject(w: Writer) -> None:
    """A pair as the subject of a past verb."""
    paired(w, w.draw(PAIRS), opens=True)
    w.word(w.pick(("burned", "vanished", "fell", "remained", "disappeared", "rotted")))
    tail(w)


PLAIN: Mix[Callable[[Writer, str], None]] = Mix(
    {
        acted: 0.12,
        held_that: 0.08,
        had_own: 0.09,
        to_self: 0.08,
        meant_to: 0.08,
        asked_to: 0.1,
        met: 0.11,
        compared: 0.11,
        relied_on: 0.08,
        bought: 0.05,
        liked: 0.22,
        stayed: 0.07,
    }
)
# A quotation holds no second one, and a biography is too long for it.
PREDICATES = Mix(
    {
        predicate: 0.79 * exp(logprob)
        for predicate, logprob in zip(PLAIN.outcomes, PLAIN.logprobs, strict=True)
    }
    | {said: 0.14, worked_as: 0.035, had_career: 0.035}
)


def named_plain(w: Writer) -> None:
    """A sentence that may stand in a quotation."""
    named(w, PLAIN)


def named_any(w: Writer) -> None:
    """A sentence about a named person."""
    named(w, PREDICATES)


SPOKEN = Mix({clause: 0.45, opened_clause: 0.2, named_plain: 0.25, question: 0.1})
