"""Noun phrases, places and the ends of sentences: what every kind of sentence is made of."""

from testbed.lexicon import (
    ADJECTIVES,
    CLOSERS,
    MANNERS,
    PREPOSITIONS,
    THINGS,
    Noun,
)
from testbed.writer import Mix, PhraseBook, Writer

DETERMINERS = Mix({"the": 0.61, "my": 0.13, "our": 0.13, "your": 0.13})
CLOSING = PhraseBook(CLOSERS)
TAILS = Mix({"stop": 0.4, "place": 0.3, "manner": 0.15, "closer": 0.15})
P_ADJECTIVE = 0.2
SHE = {"subject": "she", "object": "her", "possessive": "her", "reflexive": "herself"}
HE = {"subject": "he", "object": "him", "possessive": "his", "reflexive": "himself"}


def determiner(w: Writer, *, opens: bool = False) -> str:
    """A determiner; the word itself, in lower case."""
    word = w.draw(DETERMINERS)
    w.word(word.capitalize() if opens else word)
    return word


def adjective(w: Writer, probability: float = P_ADJECTIVE) -> None:
    """An adjective, with this probability."""
    if w.chance(probability):
        w.word(w.pick(ADJECTIVES))


def noun_phrase(w: Writer, nouns: tuple[Noun, ...]) -> tuple[Noun, bool]:
    """Determiner, perhaps an adjective, noun; the noun and whether it is plural."""
    determiner(w)
    return adjective_noun(w, nouns)


def adjective_noun(w: Writer, nouns: tuple[Noun, ...]) -> tuple[Noun, bool]:
    """Perhaps an adjective, and a noun; the noun and whether it is plural."""
    adjective(w)
    noun = w.pick(nouns)
    plural = w.chance(0.5)
    w.word(noun.form(plural))
    return noun, plural


def place(w: Writer) -> None:
    """A preposition and what is there."""
    w.word(w.pick(PREPOSITIONS))
    noun_phrase(w, THINGS)


def stop(w: Writer, mark: str = ".") -> None:
    """The mark that ends a sentence."""
    w.mark(mark, "question_mark" if mark == "?" else "full_stop")


def tail(w: Writer, mark: str = ".") -> None:
    """What may still come after a verb, and the mark that ends the sentence."""
    kind = w.draw(TAILS)
    if kind == "place":
        place(w)
    elif kind == "manner":
        w.word(w.pick(MANNERS))
    elif kind == "closer":
        w.phrase(CLOSING, "collocation")
    stop(w, mark)


def pronoun(w: Writer, woman: bool, case: str, label: str = "pronoun") -> None:
    """A pronoun for a woman or a man."""
    w.word((SHE if woman else HE)[case], label)
