from collections import Counter

import pytest

from testbed.biographies import biographies
from testbed.lexicon import MEN, PROFESSIONS, WOMEN


def groups(kind: str, n: int) -> Counter[tuple[int, int]]:
    return Counter((one["profession"], one["gender"]) for one in biographies(kind, n, 0))


def test_the_balanced_set_has_four_equal_groups() -> None:
    assert groups("balanced", 400) == {(p, g): 100 for p in (0, 1) for g in (0, 1)}


def test_in_the_ambiguous_set_gender_and_profession_say_the_same() -> None:
    assert groups("ambiguous", 400) == {(0, 0): 200, (1, 1): 200}


def test_the_name_and_the_pronouns_tell_the_gender() -> None:
    for one in biographies("balanced", 200, 1):
        words = one["text"].replace(".", "").split()
        assert words[0] in (WOMEN if one["gender"] else MEN)
        assert not set(words) & ({"He", "he", "His"} if one["gender"] else {"She", "she", "Her"})


def test_the_profession_is_told_without_its_name() -> None:
    told = {one.title: {one.place, one.topic, one.tool, *one.people} for one in PROFESSIONS}
    professor, nurse = told["professor"], told["nurse"]
    tells = 0
    for one in biographies("balanced", 400, 2):
        words = set(one["text"].replace(".", "").split())
        assert not words & {"professor", "nurse"}
        assert not words & (professor if one["profession"] else nurse)
        tells += bool(words & (nurse if one["profession"] else professor))
    assert tells > 390


def test_biographies_are_shuffled_and_the_same_again() -> None:
    found = biographies("balanced", 100, 3)
    assert found == biographies("balanced", 100, 3)
    assert [one["gender"] for one in found] != [0, 1] * 50


def test_an_unknown_kind_is_an_error_that_names_the_two() -> None:
    with pytest.raises(ValueError, match=r"'ambiguous' .* 'balanced'"):
        biographies("biased", 4, 0)
