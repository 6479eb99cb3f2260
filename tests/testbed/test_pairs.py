import pytest

from testbed.lexicon import BEINGS, THINGS
from testbed.pairs import SPLITS, STRUCTURES, Pair, agreement_pairs, nouns_of
from testbed.tokenizer import build_tokenizer

N = 300
NOUNS = {form: noun for noun in (*BEINGS, *THINGS) for form in (noun.singular, noun.plural)}


def nouns_in(pairs: list[Pair]) -> set[str]:
    words = {word for pair in pairs for word in pair["clean_prefix"].split()}
    return {NOUNS[word].singular for word in words if word in NOUNS}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_noun_is_in_both_splits(structure: str) -> None:
    train, test = (nouns_in(agreement_pairs(structure, N, split, 0)) for split in SPLITS)
    assert train
    assert test
    assert not train & test


def test_the_splits_share_out_every_noun() -> None:
    train, test = (nouns_of(split) for split in SPLITS)
    for nouns, one, other in zip((BEINGS, THINGS), train, test, strict=True):
        assert sorted([*one, *other]) == sorted(nouns)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_prefixes_differ_in_the_number_of_one_noun(structure: str) -> None:
    for pair in agreement_pairs(structure, N, "train", 1):
        words = zip(pair["clean_prefix"].split(), pair["patch_prefix"].split(), strict=True)
        [(clean, patch)] = [(one, other) for one, other in words if one != other]
        assert NOUNS[clean] is NOUNS[patch]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_both_answers_are_one_token_and_the_prefixes_equally_long(structure: str) -> None:
    tokenizer = build_tokenizer()
    for pair in agreement_pairs(structure, N, "test", 2):
        clean, patch = (
            tokenizer(pair[f"{side}_prefix"] + pair[f"{side}_answer"])["input_ids"]
            for side in ("clean", "patch")
        )
        assert len(clean) == len(patch)
        assert tokenizer.unk_token_id not in clean + patch
        assert clean[-1] != patch[-1]
        assert tokenizer(pair["clean_prefix"])["input_ids"] == clean[:-1]


def test_the_case_names_the_number_of_each_noun_in_order() -> None:
    for structure in STRUCTURES:
        for pair in agreement_pairs(structure, 50, "train", 3):
            nouns = [word for word in pair["clean_prefix"].split() if word in NOUNS]
            numbers = ["plural" if NOUNS[one].plural == one else "singular" for one in nouns]
            assert pair["case"] == "_".join(numbers)


def test_the_answer_agrees_with_the_inner_noun_within_a_relative_clause() -> None:
    plural = {" are", " were", " have", " do"}
    singular = {" is", " was", " has", " does"}
    for pair in agreement_pairs("within_rc", N, "train", 4):
        if pair["clean_answer"] in plural | singular:
            assert (pair["clean_answer"] in plural) == pair["case"].endswith("plural")


def test_pairs_are_distinct_and_the_same_again() -> None:
    pairs = agreement_pairs("simple", N, "test", 5)
    assert len({(pair["clean_prefix"], pair["clean_answer"]) for pair in pairs}) == N
    assert pairs == agreement_pairs("simple", N, "test", 5)


def test_more_pairs_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="gave"):
        agreement_pairs("simple", 3000, "test", 0)


def test_an_unknown_structure_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="within_rc, across_rc"):
        agreement_pairs("nounpp", 1, "train", 0)
