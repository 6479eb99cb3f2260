"""Short biographies in which a profession and a gender are told independently of each other."""

from random import Random
from typing import TypedDict

from testbed.lexicon import MEN, PROFESSIONS, WOMEN, Profession
from testbed.phrases import adjective, pronoun, stop
from testbed.writer import Mix, Writer

PROFESSION_MIX = Mix(dict.fromkeys(PROFESSIONS, 1.0))
TOLD = ("professor", "nurse")
GROUPS = {
    "ambiguous": ((0, 0), (1, 1)),
    "balanced": ((0, 0), (0, 1), (1, 0), (1, 1)),
}
P_FOURTH = 0.5
P_FRIENDS = 0.2


class Biography(TypedDict):
    """A text with its profession (0 professor, 1 nurse) and gender (0 man, 1 woman)."""

    text: str
    profession: int
    gender: int


def biographies(kind: str, n: int, seed: int) -> list[Biography]:
    """Biographies of professors and nurses that do not name the profession (section 4).

    Args:
        kind: "ambiguous", male professors and female nurses only, so that both labels fit; or
            "balanced", the four groups equally often.
        n: how many; a multiple of the number of groups keeps them equal.
        seed: of everything drawn.

    Raises:
        ValueError: the kind is neither.
    """
    if kind not in GROUPS:
        raise ValueError(
            f"There are no {kind!r} biographies: the classifier is trained on 'ambiguous' ones and "
            "judged on 'balanced' ones. Ask for one of the two."
        )
    rng = Random(f"biographies/{kind}/{seed}")
    professions = [next(p for p in PROFESSIONS if p.title == title) for title in TOLD]
    written: list[Biography] = []
    for index in range(n):
        profession, gender = GROUPS[kind][index % len(GROUPS[kind])]
        text = _untitled(Writer(rng), bool(gender), professions[profession])
        written.append({"text": text, "profession": profession, "gender": gender})
    rng.shuffle(written)
    return written


def _untitled(w: Writer, woman: bool, profession: Profession) -> str:
    w.mention(w.pick(WOMEN if woman else MEN))
    w.words("has had a long career", "collocation")
    stop(w)
    biography(w, woman, profession)
    return w.finish().text


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
