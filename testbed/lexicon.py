"""The words of the test bed's English and their forms.

Every list is written so that a word tells the grammar's state: two classes that can stand in the
same place share no word. That is what makes the probabilities in `testbed.writer` exact, and
`tests/testbed/test_grammar.py` holds it. Words that may follow "a" start with a consonant.
"""

from typing import NamedTuple


def _words(text: str) -> list[str]:
    return text.split()


class Noun(NamedTuple):
    """A countable noun; `habit` is what such a being does ("bakers bake"), "" for things."""

    singular: str
    plural: str
    habit: str = ""

    def form(self, plural: bool) -> str:
        """The plural or the singular."""
        return self.plural if plural else self.singular


class Verb(NamedTuple):
    """The five forms of a verb."""

    base: str
    third: str
    past: str
    participle: str
    ing: str

    def present(self, plural: bool) -> str:
        """The form that agrees with a plural or a singular subject of the third person."""
        return self.base if plural else self.third


class Profession(NamedTuple):
    """What a biography says of a profession; no word but the title's is shared between two."""

    title: str
    place: str
    topic: str
    tool: str
    people: tuple[str, str, str]


def with_s(word: str) -> str:
    """The plural of a regular noun, or the third person of a regular verb."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith(("s", "sh", "ch", "x")):
        return word + "es"
    return word + "s"


_IRREGULAR_PLURALS = {"wolf": "wolves", "thief": "thieves", "shelf": "shelves", "knife": "knives"}


def _plural(noun: str) -> str:
    return _IRREGULAR_PLURALS.get(noun, with_s(noun))


_BEINGS = """
teacher:teach tutor:teach baker:bake chef:cook butler:serve servant:serve singer:sing tenor:sing
dancer:dance ballerina:dance driver:drive chauffeur:drive pilot:fly pigeon:fly sparrow:fly
swimmer:swim dolphin:swim runner:run sprinter:run writer:write author:write painter:paint
farmer:dig gardener:dig miner:dig hunter:hunt ranger:hunt judge:rule king:rule queen:rule
lawyer:argue senator:argue doctor:heal healer:heal soldier:march guard:march sailor:sail
captain:sail builder:build mason:build plumber:repair mechanic:repair thief:steal robber:steal
actor:perform clown:perform student:study scholar:study monk:pray priest:pray dog:bark puppy:bark
cat:purr kitten:purr horse:gallop pony:gallop lion:roar tiger:roar wolf:howl hound:howl
boxer:fight wrestler:fight knight:fight tailor:sew weaver:sew merchant:trade trader:trade
banker:invest broker:invest scout:explore pioneer:explore baby:cry toddler:cry uncle:gossip
aunt:gossip cousin:gossip boy:play girl:play kid:play parent:worry mother:worry father:worry
brother:quarrel sister:quarrel athlete:compete gymnast:compete climber:climb hiker:climb
magician:vanish ghost:vanish
"""
BEINGS = tuple(
    Noun(noun, _plural(noun), habit)
    for noun, habit in (entry.split(":") for entry in _BEINGS.split())
)
_THINGS = """
car truck bike desk table chair lamp book clock window door mirror basket bottle box bucket
candle carpet coin curtain drum fence flag flute garden gate guitar hammer hat jacket kettle key
knife ladder letter machine map painting piano pillow plate ring rope shelf shoe statue suitcase
tent tower wagon wall
"""
THINGS = tuple(Noun(noun, _plural(noun)) for noun in _THINGS.split())

_INTRANSITIVE = """
walk walks walked walked walking / wait waits waited waited waiting /
sleep sleeps slept slept sleeping / smile smiles smiled smiled smiling /
laugh laughs laughed laughed laughing / jump jumps jumped jumped jumping /
shout shouts shouted shouted shouting / sit sits sat sat sitting /
stand stands stood stood standing / kneel kneels knelt knelt kneeling /
dream dreams dreamed dreamed dreaming / rest rests rested rested resting /
wander wanders wandered wandered wandering / tremble trembles trembled trembled trembling /
yawn yawns yawned yawned yawning / whistle whistles whistled whistled whistling /
hide hides hid hidden hiding / arrive arrives arrived arrived arriving /
leave leaves left left leaving / return returns returned returned returning /
speak speaks spoke spoken speaking / listen listens listened listened listening /
suffer suffers suffered suffered suffering / eat eats ate eaten eating /
drink drinks drank drunk drinking / fall falls fell fallen falling /
sneeze sneezes sneezed sneezed sneezing / stumble stumbles stumbled stumbled stumbling /
hesitate hesitates hesitated hesitated hesitating / work works worked worked working
"""
_TRANSITIVE = """
like likes liked liked liking / admire admires admired admired admiring /
know knows knew known knowing / watch watches watched watched watching /
follow follows followed followed following / help helps helped helped helping /
avoid avoids avoided avoided avoiding / fear fears feared feared fearing /
trust trusts trusted trusted trusting / visit visits visited visited visiting /
see sees saw seen seeing / meet meets met met meeting / call calls called called calling /
chase chases chased chased chasing / praise praises praised praised praising /
respect respects respected respected respecting / remind reminds reminded reminded reminding /
hate hates hated hated hating / pay pays paid paid paying / thank thanks thanked thanked thanking
"""


def _verbs(text: str) -> tuple[Verb, ...]:
    return tuple(Verb(*entry.split()) for entry in text.split("/"))


INTRANSITIVE = _verbs(_INTRANSITIVE)
TRANSITIVE = _verbs(_TRANSITIVE)
# Verbs that take a bare infinitive with "to", finite in a clause with a noun as its subject.
INFINITIVE_PRESENT = ("want", "hope", "need", "try", "plan", "intend", "prefer", "tend")
# Past verbs after a name; each class settles what must come next.
INFINITIVE_PAST = _words(
    "remembered wanted tried decided hoped needed promised agreed refused failed managed forgot"
)
OBJECT_INFINITIVE = _words(
    "asked told urged invited begged ordered allowed persuaded encouraged advised taught forced"
)
THAT_VERBS = _words("thought believed claimed admitted noticed realised insisted feared")
QUOTE_VERBS = _words("said whispered replied answered added declared")
POSSESSIVE_VERBS = _words("lost found broke cleaned sold painted fixed packed")
REFLEXIVE_VERBS = _words("hurt blamed introduced prepared excused enjoyed surprised defended")
MEETING_VERBS = _words("met saw followed visited greeted recognised helped watched")
BUYING_VERBS = _words("bought borrowed chose brought carried")
LIKING_VERBS = _words("liked collected described drew studied")
STAYING_VERBS = _words("stayed travelled practised camped fasted")
GIVING_VERBS = _words("gave handed sent showed offered")
VERB_PREPOSITIONS = {
    "relied": "on", "depended": "on", "cared": "for", "searched": "for", "longed": "for",
    "stared": "at", "glanced": "at", "aimed": "at", "belonged": "to", "objected": "to",
    "clung": "to", "escaped": "from", "benefited": "from", "recovered": "from",
    "complained": "about", "bragged": "about", "participated": "in", "succeeded": "in",
    "consisted": "of", "approved": "of", "collided": "with", "struggled": "with",
}  # fmt: skip

AUXILIARIES = {
    "past": ("was", "were"),
    "present": ("is", "are"),
    "perfect": ("has", "have"),
    "negative": ("does", "do"),
}

ADJECTIVES = _words("""
tall short young big small quiet loud gentle brave proud humble famous poor rich lazy busy calm
careful clever curious friendly funny healthy hungry kind lonely lucky modest nervous patient
polite rude serious silent simple strange strong stubborn thin tired wise
""")
COMPARATIVES = _words("""
older taller younger stronger weaker richer poorer kinder wiser braver smarter happier
""")
MANNERS = _words("""
quickly slowly quietly loudly gently bravely proudly calmly carefully happily sadly badly
nervously patiently politely rudely secretly suddenly warmly wisely
""")
STANCES = _words("really certainly probably clearly surely truly definitely obviously")
PREPOSITIONS = _words("""
near behind beside under above below opposite around inside outside beyond against
""")
PLACES = _words("""
market park station school church library museum theatre harbour village castle beach forest
river bridge shop
""")

WOMEN = _words("""
Alice Mary Anna Emma Clara Julia Laura Sarah Emily Helen Diana Grace Irene Janet Karen Linda Maria
Nancy Olivia Paula Rachel Susan Teresa Ursula Vera Wendy Yvonne Zoe Amelia Bella Carol Daisy Edith
Fiona Gloria Hannah Isabel Jane Kate Lucy
""")
MEN = _words("""
John Peter Paul David Daniel Simon Thomas Walter Victor Steven Robert Richard Philip Oscar Oliver
Norman Nathan Michael Martin Louis Leonard Kevin Joseph James Jacob Isaac Hugo Henry Harold George
Frank Felix Edward Edgar Dennis Charles Bruno Arthur Andrew Albert
""")
NAMES = (*WOMEN, *MEN)
IS_WOMAN = {name: name in WOMEN for name in NAMES}
SURNAMES = _words("""
Carter Reed Foster Hughes Bennett Collins Parker Turner Walker Bailey Cooper Morgan Murphy Rivera
Howard Ward Cox Diaz Gray Watson Brooks Kelly Sanders Price Wood Barnes Ross Jenkins Perry Powell
Long Patterson Flores Butler Ford Hamilton Graham Murray Freeman Wells
""")

PROFESSIONS = tuple(
    Profession(title, place, topic, tool, (one, two, three))
    for title, place, topic, tool, one, two, three in (
        entry.split()
        for entry in (
            "professor university physics chalkboard freshmen lecturers researchers",
            "nurse hospital medicine thermometer patients orderlies midwives",
            "dentist clinic teeth drill sufferers hygienists technicians",
            "poet cafe verse notebook readers editors dreamers",
            "journalist newsroom politics recorder witnesses politicians informants",
            "accountant office taxes calculator clients managers auditors",
            "architect studio buildings ruler engineers contractors planners",
            "violinist auditorium symphonies bow conductors composers cellists",
        )
    )
)

WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("""
January February March April May June July August September October November December
""")
NUMBERS = _words("""
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
""")
ORDINALS = _words("first second third fourth fifth sixth seventh eighth ninth tenth")
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMERALS = [str(number) for number in range(1, 31)]

# A phrase that opens a sentence and settles the verb of the clause after it.
OPENERS = {
    "past": (
        "Yesterday", "Last week", "Last year", "Long ago", "Once upon a time", "In those days",
    ),
    "present": (
        "Now", "Today", "At present", "Right now", "At the moment", "For the time being",
    ),
    "perfect": (
        "So far", "Until now", "Lately", "Ever since", "In recent years", "Over the years",
    ),
    "negative": (
        "Frankly", "Honestly", "In truth", "On the other hand", "As a matter of fact",
        "In spite of everything",
    ),
    "habit": (
        "Usually", "Normally", "As a rule", "Every so often", "From time to time",
        "More often than not",
    ),
}  # fmt: skip
# A phrase that closes a sentence.
CLOSERS = (
    "in the middle of the night", "in the blink of an eye", "in broad daylight", "in plain sight",
    "from head to toe", "from start to finish", "over and over again", "once and for all",
    "sooner or later", "side by side", "little by little", "hand in hand", "all of a sudden",
    "for no good reason", "for better or worse", "without a second thought",
    "at the drop of a hat", "at the end of the day", "safe and sound", "day and night",
    "more or less", "like cats and dogs", "by word of mouth",
)  # fmt: skip
HEADERS = (
    "Repeat after me", "Please count with me", "Please say it again", "Here is the list",
    "Here is the order", "Write this down",
)  # fmt: skip
QUESTIONS = ("Did", "Why did", "How did", "Where did", "Would", "Could")
