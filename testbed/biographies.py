"""Short biographies in which a profession and a gender are told independently of each other."""

from testbed.lexicon import PROFESSIONS, Profession
from testbed.phrases import adjective, pronoun, stop
from testbed.writer import Mix, Writer

PROFESSION_MIX = Mix(dict.fromkeys(PROFESSIONS, 1.0))
P_FOURTH = 0.5
P_FRIENDS = 0.2


def biography(w: Writer, woman: bool, profession: Profession) -> None:
    """Three or four sentences about someone already introduced."""
    for _ in range(3 + w.chance(P_FOURTH)):
        if w.chance(P_FRIENDS):
            _friends_say(w, woman)
        else:
            w.word("She" if woman else "He", "pronoun")
            w.draw(DEEDS)(w, profession)


def _spends(w: Writer, profession: Profession) -> None:
    w.word("spends")
    w.words("long days at the", "collocation")
    w.word(profession.place, "biography_profession")
    stop(w)


def _talks(w: Writer, profession: Profession) -> None:
    w.word("likes")
    w.word("to", "infinitive_remember_to")
    w.words("talk about", "collocation")
    w.word(profession.topic, "biography_profession")
    stop(w)


def _carries(w: Writer, profession: Profession) -> None:
    w.word("carries")
    w.word("a", "collocation")
    adjective(w)
    w.word(profession.tool, "biography_profession")
    w.words("everywhere", "collocation")
    stop(w)


def _works_with(w: Writer, profession: Profession) -> None:
    w.word("works")
    w.word("with", "verb_preposition")
    adjective(w)
    w.word(w.pick(profession.people))
    stop(w)


def _friends_say(w: Writer, woman: bool) -> None:
    """A sentence that tells the gender alone."""
    w.word("Her" if woman else "His")
    w.words("friends say", "collocation")
    w.word("that", "complement_that")
    pronoun(w, woman, "subject")
    w.words("is never", "collocation")
    adjective(w, 1.0)
    stop(w)


DEEDS = Mix({_spends: 0.27, _talks: 0.27, _carries: 0.27, _works_with: 0.19})
