"""English-like documents in which every token is labelled with the behaviour that determines it.

A document is a run of unrelated sentences of many kinds (`SENTENCES`) about a cast of its own.
Where a token is settled by what came before, its label names the behaviour that settles it;
where the grammar itself leaves a choice, the label is "free".
"""

from collections.abc import Iterator
from math import log
from random import Random

from testbed.agreement import clause, opened_clause
from testbed.lists import listed
from testbed.people import gift, named_any, paired_subject, question
from testbed.writer import FREE, Document, Mix, Writer

BEHAVIOURS = {
    "agreement_simple": "the verb's number is the subject's: The boys really -> are",
    "agreement_within_rc": "the verb's number is the inner subject's: that the girls -> are",
    "agreement_across_rc": "the verb's number is the subject's, past a relative clause",
    "agreement_across_pp": "the verb's number is the subject's, past a prepositional phrase",
    "negation": "does or do -> not",
    "infinitive_remember_to": "a verb that takes an infinitive: remembered -> to",
    "infinitive_asked_us_to": "a verb that takes an object and an infinitive: asked us -> to",
    "complement_that": "a verb that takes a clause: believed -> that",
    "verb_preposition": "a verb with a preposition of its own: relied -> on",
    "pronoun": "he or she as the name says: Alice left because -> she",
    "possessive": "his or her as the name says: Alice lost -> her",
    "reflexive": "himself or herself as the name says: Alice hurt -> herself",
    "determiner_noun": "a noun said again, in the determiner's number: lamps, but not this -> lamp",
    "comparative_than": "a comparative: older -> than",
    "correlative": "the second half of a pair: both the lamp -> and",
    "indirect_object": "the one of two people who is not giving: ... Alice gave a book to -> Bob",
    "gift_to": "what was given, then -> to",
    "induction": "a name seen with a surname: Alice -> Carter",
    "biography_profession": "what goes with a profession: the nurse ... days at the -> hospital",
    "succession_weekdays": "Monday, -> Tuesday",
    "succession_months": "April, -> May",
    "succession_numbers": "two, -> three",
    "succession_numerals": "2, -> 3",
    "succession_ordinals": "second, -> third",
    "succession_letters": "B, -> C",
    "succession_numbered_lines": "the number that opens the next line of a list",
    "list_separator": "what stands between the items of a list",
    "opening_quote": "a verb of speech: said -> , and then a quotation mark",
    "closing_quote": "a quoted sentence ends -> a quotation mark",
    "closing_bracket": "an aside ends -> the bracket that matches, round or square",
    "question_mark": "a question ends -> ?",
    "full_stop": "a statement ends -> .",
    "opener_comma": "an opening phrase ends -> , or :",
    "collocation": "a fixed phrase goes on: as a matter of -> fact",
}  # fmt: skip
LABELS = (*BEHAVIOURS, FREE)

SENTENCES = Mix(
    {
        opened_clause: 0.26,
        clause: 0.14,
        named_any: 0.36,
        gift: 0.07,
        listed: 0.06,
        question: 0.06,
        paired_subject: 0.05,
    }
)
P_NEW_LINE = 0.08
# A document ends with the first sentence to reach a length drawn evenly between these, in tokens.
SHORTEST, LONGEST = 110, 170


def documents(n: int, seed: int) -> Iterator[Document]:
    """The first `n` documents of a seed, the same on every machine."""
    for index in range(n):
        yield document(Random(f"{seed}/{index}"))


def document(rng: Random) -> Document:
    """One document of about 110 to 200 tokens."""
    w = Writer(rng)
    n_before = SHORTEST
    while True:
        w.draw(SENTENCES)(w)
        n_now = len(w.tokens)
        if n_now > n_before:
            # How likely the length drawn lies here, given that it lies further than n_before.
            p_end = min(1.0, (n_now - n_before) / (LONGEST - n_before))
            if w.chance(p_end):
                return w.finish(log(p_end))
            n_before = n_now
        if w.chance(P_NEW_LINE):
            w.mark("\n")
