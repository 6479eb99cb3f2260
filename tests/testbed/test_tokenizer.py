from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from testbed.evaluate import MODEL
from testbed.grammar import documents
from testbed.tokenizer import END_OF_TEXT, UNKNOWN, save_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_a_text_tokenizes_as_the_grammar_wrote_it(tokenizer: PreTrainedTokenizerBase) -> None:
    for document in documents(300, 5):
        ids = tokenizer(document.text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == document.tokens


def test_tokens_decode_to_the_text_they_came_from(tokenizer: PreTrainedTokenizerBase) -> None:
    for document in documents(100, 6):
        assert tokenizer.decode(tokenizer(document.text)["input_ids"]) == document.text


def test_the_vocabulary_holds_every_token_once() -> None:
    words = vocabulary()
    assert len(set(words)) == len(words) <= 1600
    written = {token for document in documents(1500, 8) for token in document.tokens}
    assert written <= set(words)
    # Nothing is left over: what a short sample lacks is only rare.
    assert len(set(words) - written) < 0.03 * len(words)


def test_words_outside_the_grammar_are_unknown_and_the_end_is_one_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("The xylophone")["input_ids"]) == [
        "The",
        UNKNOWN,
    ]
    assert tokenizer(END_OF_TEXT)["input_ids"] == [tokenizer.eos_token_id]


def test_the_committed_tokenizer_is_the_grammars(tmp_path: Path) -> None:
    assert AutoTokenizer.from_pretrained(MODEL).get_vocab() == {
        token: index for index, token in enumerate(vocabulary())
    }
