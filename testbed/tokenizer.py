"""The test bed's tokenizer: a word with the space before it is one token, as in GPT-2's style."""

import json
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from testbed import lexicon, phrases

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
MARKS = (".", ",", ":", "?", "\n", ' "', '"', " (", ")", " [", "]")
# Words the grammar's functions write themselves.
_STRUCTURE = """
that not been to because was had and or nor both either neither than from between but these those
this friend of a us them me you works as has long career remember want decide hope need promise
agree refuse visited left reached burned vanished fell remained disappeared rotted spends days at
the likes talk about carries everywhere with friends say is never then She He Her His
"""
_OPENING = "The My Our Your Both Either Neither When While After"


def vocabulary() -> list[str]:
    """Every token the grammar can write, specials first."""
    openers = [*chain(*lexicon.OPENERS.values()), *lexicon.HEADERS, *lexicon.QUESTIONS]
    series = (lexicon.WEEKDAYS, lexicon.MONTHS, lexicon.NUMBERS, lexicon.NUMERALS)
    series = [*chain(*series, lexicon.ORDINALS, lexicon.LETTERS)]
    initial = {*lexicon.NAMES, *_OPENING.split(), *(phrase.split()[0] for phrase in openers)}
    # What may follow a bracket or a new line.
    initial |= {*series, *phrases.DETERMINERS.outcomes, "a"}
    inner = {*series, *lexicon.NAMES, *_STRUCTURE.split(), *_OPENING.split(), *_lexical_words()}
    inner.update(chain(*(phrase.split() for phrase in (*openers, *lexicon.CLOSERS))))
    words = sorted({*initial, *(" " + word for word in inner), *MARKS})
    return [END_OF_TEXT, UNKNOWN, *words]


def _lexical_words() -> set[str]:
    words: set[str] = set(phrases.DETERMINERS.outcomes)
    for noun in (*lexicon.BEINGS, *lexicon.THINGS):
        words |= {noun.singular, noun.plural}
        if noun.habit:
            words |= {noun.habit, lexicon.with_s(noun.habit)}
    for verb in lexicon.INTRANSITIVE:
        words.update(verb)
    for verb in lexicon.TRANSITIVE:
        words |= {verb.base, verb.third, verb.participle, verb.ing}
    for verb in lexicon.INFINITIVE_PRESENT:
        words |= {verb, lexicon.with_s(verb)}
    for one in lexicon.PROFESSIONS:
        words |= {one.title, one.place, one.topic, one.tool, *one.people}
    for pronouns in (phrases.SHE, phrases.HE):
        words |= set(pronouns.values()) - {"him"}
    lists = (
        lexicon.ADJECTIVES, lexicon.COMPARATIVES, lexicon.MANNERS, lexicon.STANCES,
        lexicon.PREPOSITIONS, lexicon.PLACES, lexicon.SURNAMES, lexicon.INFINITIVE_PAST,
        lexicon.OBJECT_INFINITIVE, lexicon.THAT_VERBS, lexicon.QUOTE_VERBS,
        lexicon.POSSESSIVE_VERBS, lexicon.REFLEXIVE_VERBS, lexicon.MEETING_VERBS,
        lexicon.BUYING_VERBS, lexicon.LIKING_VERBS, lexicon.STAYING_VERBS, lexicon.GIVING_VERBS,
        lexicon.VERB_PREPOSITIONS.keys(), lexicon.VERB_PREPOSITIONS.values(),
    )  # fmt: skip
    return words.union(*lists, *lexicon.AUXILIARIES.values())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `vocabulary()`."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?[A-Za-z]+| ?[0-9]+|\n| ?[^\sA-Za-z0-9]"), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def save_tokenizer(folder: Path) -> None:
    """Write it as `AutoTokenizer.from_pretrained` reads it, in transformers 4 as in 5."""
    build_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Transformers 5 writes a class that 4 does not know; both know this one.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
