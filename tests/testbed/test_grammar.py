from collections import Counter, defaultdict
from itertools import islice
from math import exp
from random import Random

import pytest

from testbed.agreement import OPENING, OPENING_MODES
from testbed.grammar import BEHAVIOURS, LABELS, document, documents
from testbed.lexicon import AUXILIARIES, BEINGS, IS_WOMAN, MONTHS, WEEKDAYS
from testbed.writer import DETERMINED, FREE, Document, Mix, PhraseBook, Writer


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(documents(1500, 7))


def tokens_of(sample: list[Document], label: str) -> list[tuple[list[str], str]]:
    """Each token of a label, with what came before it."""
    return [
        (document.tokens[:position], token)
        for document in sample
        for position, token in enumerate(document.tokens)
        if document.labels[position] == label
    ]


def test_a_seed_gives_the_same_documents_again() -> None:
    assert list(documents(20, 3)) == list(documents(20, 3))
    assert list(documents(20, 3)) != list(documents(20, 4))


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    assert list(documents(5, 3)) == list(islice(documents(50, 3), 5))


def test_the_first_document_of_seed_0_is_known() -> None:
    opening = "My guard walks. When Dennis and Steven visited the park,"
    assert next(documents(1, 0)).text.startswith(opening)


def test_every_token_has_a_known_label_and_a_probability(sample: list[Document]) -> None:
    for one in sample:
        assert len(one.tokens) == len(one.labels) == len(one.logprobs)
        assert set(one.labels) <= set(LABELS)
        assert max(one.logprobs) <= 0


def test_documents_are_100_to_210_tokens_long(sample: list[Document]) -> None:
    lengths = [len(one.tokens) for one in sample]
    assert min(lengths) >= 100
    assert max(lengths) <= 210


def test_the_labelled_tokens_are_those_the_grammar_is_sure_of(sample: list[Document]) -> None:
    for one in sample:
        for label, logprob in zip(one.labels, one.logprobs, strict=True):
            assert (label != FREE) == (logprob > DETERMINED)


def test_every_behaviour_is_common_enough_to_study(sample: list[Document]) -> None:
    counts = Counter(label for one in sample for label in one.labels[:128])
    assert min(counts[name] for name in BEHAVIOURS) >= 0.15 * len(sample)
    assert counts[FREE] > 0.4 * counts.total()


def test_a_prefix_always_gives_a_token_the_same_probability() -> None:
    """What makes the probabilities exact: no text has two derivations."""
    seen: dict[tuple[str, ...], set[float]] = defaultdict(set)
    for one in documents(2500, 11):
        for end in range(1, 25):
            seen[tuple(one.tokens[:end])].add(round(one.logprobs[end - 1], 9))
    repeated = Counter(len(probabilities) for probabilities in seen.values())
    assert repeated[1] == len(seen)


def test_next_token_frequencies_are_the_probabilities_stated() -> None:
    n = 2000
    starts = [document(Random(seed)) for seed in range(n)]
    counts = Counter(one.tokens[0] for one in starts)
    stated = {one.tokens[0]: exp(one.logprobs[0]) for one in starts}
    for token, count in counts.most_common(5):
        deviation = (stated[token] * (1 - stated[token]) / n) ** 0.5
        assert abs(count / n - stated[token]) < 4 * deviation


def test_the_number_of_the_verb_is_not_the_nearest_nouns(sample: list[Document]) -> None:
    plurals = {f" {noun.plural}" for noun in BEINGS}
    singulars = {f" {noun.singular}" for noun in BEINGS}
    plural_verbs = {f" {plural}" for _, plural in AUXILIARIES.values()}
    agreeing = []
    for before, verb in tokens_of(sample, "agreement_across_rc"):
        nearest = next(token for token in reversed(before) if token in plurals | singulars)
        agreeing.append((nearest in plurals) == (verb in plural_verbs))
    assert 0.4 < sum(agreeing) / len(agreeing) < 0.6


@pytest.mark.parametrize(
    ("label", "series"), [("succession_weekdays", WEEKDAYS), ("succession_months", MONTHS)]
)
def test_succession_gives_the_next_item(
    sample: list[Document], label: str, series: list[str]
) -> None:
    found = tokens_of(sample, label)
    assert len(found) > 100
    for before, token in found:
        last = next(one.strip() for one in reversed(before) if one.strip() in series)
        assert series.index(token.strip()) == (series.index(last) + 1) % len(series)


def test_reflexives_follow_the_last_name(sample: list[Document]) -> None:
    for before, token in tokens_of(sample, "reflexive"):
        name = next(one.strip() for one in reversed(before) if one.strip() in IS_WOMAN)
        assert token == (" herself" if IS_WOMAN[name] else " himself")


def test_the_receiver_of_a_gift_is_the_one_who_does_not_give(sample: list[Document]) -> None:
    for before, token in tokens_of(sample, "indirect_object"):
        start = max(i for i, one in enumerate(before) if one.strip() in ("When", "While", "After"))
        names = [one.strip() for one in before[start:] if one.strip() in IS_WOMAN]
        assert len(names) == 3
        assert token.strip() in names[:2]
        assert token.strip() != names[2]


def test_quotes_and_brackets_close_what_was_opened(sample: list[Document]) -> None:
    for one in sample:
        text = one.text
        assert text.count(' "') * 2 == text.count('"')
        assert text.count("(") == text.count(")")
        assert text.count("[") == text.count("]")


def test_a_mix_draws_as_often_as_its_weights_say() -> None:
    w = Writer(Random(0))
    mix = Mix({"rare": 1, "common": 3})
    drawn = Counter(w.draw(mix) for _ in range(4000))
    assert abs(drawn["rare"] / 4000 - 0.25) < 0.03


def test_a_phrase_has_the_probability_of_its_words_in_turn() -> None:
    book = PhraseBook(["a b", "a c", "d"])
    assert [exp(sum(one)) for one in book.logprobs] == pytest.approx([1 / 3] * 3)
    assert [exp(one) for one in book.logprobs[0]] == pytest.approx([2 / 3, 1 / 2])


def test_every_opener_settles_a_mode() -> None:
    assert len(OPENING.phrases) == len(OPENING_MODES)
