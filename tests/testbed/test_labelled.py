from collections import Counter
from itertools import product

import pytest

from testbed.labelled import Biography, labelled_biographies
from testbed.lexicon import MEN, PROFESSIONS, WOMEN
from testbed.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def written() -> list[Biography]:
    return labelled_biographies(400, 0)


def words(one: Biography) -> list[str]:
    return one["text"].replace(".", "").replace(",", "").split()


def test_the_four_groups_are_equally_large(written: list[Biography]) -> None:
    groups = Counter((one["profession"], one["gender"]) for one in written)
    assert groups == dict.fromkeys(product((0, 1), (0, 1)), 100)


def test_more_biographies_begin_with_the_fewer_and_none_is_there_twice(
    written: list[Biography],
) -> None:
    assert labelled_biographies(20, 0) == written[:20]
    assert labelled_biographies(20, 1) != written[:20]
    assert len({one["text"] for one in written}) == len(written)


def test_the_name_and_the_pronouns_that_open_sentences_tell_the_gender(
    written: list[Biography],
) -> None:
    for one in written:
        assert words(one)[0] in (WOMEN if one["gender"] else MEN)
        assert not set(words(one)) & ({"He", "His"} if one["gender"] else {"She", "Her"})


def test_the_profession_is_told_without_its_name(written: list[Biography]) -> None:
    own = {p.title: {p.place, p.topic, p.tool, *p.people} for p in PROFESSIONS}
    for one in written:
        others = own["professor" if one["profession"] else "nurse"]
        assert not set(words(one)) & {"professor", "nurse", *others}


def test_a_keyword_is_in_many_biographies_and_not_in_all(written: list[Biography]) -> None:
    of_title = {p.title: {p.place, p.topic, p.tool} for p in PROFESSIONS}
    keywords = of_title["professor"] | of_title["nurse"]
    share = sum(bool(set(words(one)) & keywords) for one in written) / len(written)
    assert 0.5 < share < 0.8


def test_what_tells_is_known_for_each_token_of_the_model(written: list[Biography]) -> None:
    for one in written[:50]:
        tokens = TOKENIZER.tokenize(one["text"])
        assert len(tokens) == len(one["tells"])
        assert TOKENIZER.unk_token not in tokens
        assert one["tells"][0] == "gender"
        assert "profession" in one["tells"]


def test_most_words_that_tell_a_profession_tell_the_right_one(written: list[Biography]) -> None:
    """Each word counts for the profession it is found with more often; so do 4 of 5 of the rest."""
    counts = [Counter[str](), Counter[str]()]
    for one in written[:200]:
        counts[one["profession"]].update(told(one))
    right = [
        counts[one["profession"]][word] > counts[1 - one["profession"]][word]
        for one in written[200:]
        for word in told(one)
    ]
    assert 0.8 < sum(right) / len(right) < 1


def told(one: Biography) -> list[str]:
    tokens = TOKENIZER.tokenize(one["text"])
    return [t for t, tells in zip(tokens, one["tells"], strict=True) if tells == "profession"]
