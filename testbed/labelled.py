"""Biographies with two labels, a profession and a gender, told by words that are known.

Unlike those of the corpus they never name the profession. It is told by the people around, and by
things, places, verbs and adjectives, each of which may also stand in a biography of the other
profession; a keyword such as the place of work is in some of them alone. The gender is told by the
name and by pronouns.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypedDict, TypeVar

from testbed import lexicon
from testbed.agreement import MODES, clause, opened_clause, predicate
from testbed.biographies import DEEDS
from testbed.lexicon import MEN, PREPOSITIONS, PROFESSIONS, WOMEN, Noun, Profession
from testbed.people import named_plain
from testbed.phrases import HE, SHE, adjective, stop
from testbed.writer import Mix, Writer

T = TypeVar("T")

TITLES = ("professor", "nurse")
FIELDS = (
    """
    teacher tutor writer author judge lawyer student scholar senator pioneer scout banker
    book desk letter map clock lamp machine painting shelf window tower statue
    clever curious wise serious famous proud strange stubborn silent rich busy humble
    loudly proudly wisely suddenly rudely secretly slowly
    speak dream wander stand hesitate work arrive
    know praise admire remind follow call respect
    thought believed claimed insisted objected bragged stared aimed depended
    described collected travelled sent showed told urged advised persuaded
    library museum school theatre station
    """,
    """
    doctor healer baby toddler kid parent priest servant soldier cousin wrestler hiker
    bottle bucket basket candle carpet curtain pillow plate kettle chair jacket piano
    gentle kind careful patient calm polite quiet healthy friendly tired lonely modest
    quietly gently calmly carefully patiently politely warmly
    wait kneel rest smile sleep suffer eat
    help watch trust visit thank see avoid
    noticed feared admitted realised cared longed recovered relied searched
    liked studied stayed gave handed asked begged encouraged allowed
    church park market village bridge
    """,
)
"""The words of the lexicon that go with each profession, by their first forms."""
P_OWN = 0.8
P_KEYWORD = 0.15
N_SENTENCES = (4, 6)


class Biography(TypedDict):
    """A text, its profession (0 professor, 1 nurse) and gender (0 man, 1 woman).

    `tells` has what each token tells, ``profession`` or ``gender``, or nothing.
    """

    text: str
    profession: int
    gender: int
    tells: list[str]


@dataclass(kw_only=True)
class _Teller(Writer):
    """A writer of one person's life, who takes words that go with the profession where there are.

    The probabilities that a `Writer` keeps are those of the grammar, and not of what this one does.
    """

    hero: str
    woman: bool
    profession: Profession
    field: frozenset[str]

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, more often one that goes with the profession."""
        own = [option for option in options if _first_form(option) in self.field]
        chosen = own if own and self.rng.random() < P_OWN else options
        return chosen[int(self.rng.random() * len(chosen))]

    def choose_name(self, but: Collection[str] = ()) -> str:
        """The hero, or somebody else beside the hero."""
        return super().choose_name(but) if self.hero in but else self.hero


def _first_form(option: object) -> object:
    return option[0] if isinstance(option, tuple) else option


def _deed(w: _Teller) -> None:
    """She carries a thermometer everywhere."""
    w.word("She" if w.woman else "He", "pronoun")
    w.draw(DEEDS)(w, w.profession)


def _colleagues(w: _Teller) -> None:
    """The patients near the hospital are not tired."""
    w.word("The")
    adjective(w)
    people = w.pick(w.profession.people)
    w.word(people)
    if w.chance(P_KEYWORD):
        w.word(w.pick(PREPOSITIONS))
        w.word("the")
        w.word(w.pick((w.profession.place, w.profession.tool)))
    predicate(w, Noun(people, people), True, w.draw(MODES), "agreement_simple")


SENTENCES: Mix[Callable[[_Teller], None]] = Mix(
    {
        named_plain: 0.23,
        _deed: 0.15,
        _colleagues: 0.54,
        clause: 0.04,
        opened_clause: 0.04,
    }
)


def biography(rng: Random, profession: int, gender: int) -> Biography:
    """One biography of a professor (0) or nurse (1), a man (0) or woman (1)."""
    facts = next(one for one in PROFESSIONS if one.title == TITLES[profession])
    w = _Teller(
        rng,
        hero=rng.choice(WOMEN if gender else MEN),
        woman=bool(gender),
        profession=facts,
        field=frozenset(FIELDS[profession].split()),
    )
    w.mention(w.hero)
    w.words("has had a long career", "collocation")
    stop(w)
    for _ in range(rng.randint(*N_SENTENCES)):
        w.draw(SENTENCES)(w)
    tells = [TELLS.get(token.strip(), "") for token in w.tokens]
    return {
        "text": w.finish().text,
        "profession": profession,
        "gender": gender,
        "tells": tells,
    }


def labelled_biographies(n: int, seed: int) -> list[Biography]:
    """Biographies of all four groups in turn, so that none is larger by more than one.

    Args:
        n: how many; the first of a seed are the same whatever it is.
        seed: of everything drawn.
    """
    return [
        biography(Random(f"biographies/{seed}/{index}"), index // 2 % 2, index % 2)
        for index in range(n)
    ]


def _told() -> dict[str, str]:
    """What each word tells that tells anything."""
    fields = frozenset(" ".join(FIELDS).split())
    words = {word: "profession" for word in fields}
    for noun in (*lexicon.BEINGS, *lexicon.THINGS):
        if noun.singular in fields:
            words[noun.plural] = "profession"
    for verb in (*lexicon.INTRANSITIVE, *lexicon.TRANSITIVE):
        if verb.base in fields:
            words |= dict.fromkeys(verb, "profession")
    for one in PROFESSIONS:
        if one.title in TITLES:
            words |= dict.fromkeys((one.place, one.topic, one.tool, *one.people), "profession")
    pronouns = {*SHE.values(), *HE.values()}
    pronouns |= {word.capitalize() for word in pronouns}
    return words | dict.fromkeys((*WOMEN, *MEN, *pronouns), "gender")


TELLS = _told()
"""What a word tells, ``profession`` or ``gender``."""
