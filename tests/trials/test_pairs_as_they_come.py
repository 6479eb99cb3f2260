"""Files of pairs as they come, and tokenizers that put a piece before every text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assets.circuits.pairs import read_pairs
from assets.settings import ExperimentError
from core.errors import AnswerError, InputError
from core.inputs import tokenize_pairs, tokenize_single
from core.models import load_tokenizer

ROOT = Path(__file__).resolve().parents[3] / "shared"
PAIR = {"clean_prefix": "The cat", "patch_prefix": "The dog", "clean_answer": "s"}
PAIR["patch_answer"] = "d"


def _lines(*rows: Any, ascii_only: bool = True) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)


INPUTS = {
    "null.json": _lines(PAIR, PAIR, PAIR | {"clean_answer": None}),
    "list.json": _lines(PAIR, PAIR, PAIR | {"clean_answer": ["s", "t"]}),
    "u2028.json": _lines(PAIR | {"patch_prefix": "The\u2028dog"}, PAIR, ascii_only=False),
    "same_t.json": _lines(
        PAIR | {"patch_prefix": "The cat", "clean_answer": " is", "patch_answer": " are"}
    ),
}


@pytest.fixture(params=["generated", "shared"])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The path of an input, written here or where it lies."""
    if request.param == "shared":
        if not (ROOT / "trials/pairs").is_dir():
            pytest.skip("needs ../shared/trials")
        return lambda name: str(ROOT / "trials/pairs" / name)

    def write(name: str) -> str:
        (tmp_path / name).write_text(INPUTS[name], encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(("name", "value"), [("null.json", "null"), ("list.json", r'\["s", "t"\]')])
def test_an_answer_that_is_no_text_is_refused_with_file_and_line(
    trial: Callable[[str], str], name: str, value: str
) -> None:
    path = trial(name)
    with pytest.raises(ExperimentError, match=f"clean_answer must be text, not {value}") as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"line 3 of '{path}'")


def test_only_a_line_feed_ends_a_line(trial: Callable[[str], str]) -> None:
    pairs = read_pairs(trial("u2028.json"))
    assert [(pair.number, pair.line) for pair in pairs] == [(0, 1), (1, 2)]
    assert "\u2028" in "".join(text for pair in pairs for text in pair.content)


def test_a_pair_of_one_prefix_is_dropped(trial: Callable[[str], str]) -> None:
    (pair,) = read_pairs(trial("same_t.json"))
    # It runs, and every effect is zero.
    with pytest.raises(InputError, match=r"\(1 x both prefixes are the same\)"):
        tokenize_pairs(word_level(), [pair.texts])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"clean_prefix": "caf\xe9"}', "is not UTF-8 at byte 22"),
        (b'{"clean_prefix": "a"}', "has no patch_prefix"),
        (b"[1]", "is not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (_lines(PAIR | {"patch_answer": "\ud83d"}).encode(), "patch_answer must be text"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_file_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "pairs.json"
    # A byte order mark and Windows' line ends are read.
    path.write_bytes(b"\xef\xbb\xbf" + _lines(PAIR).encode() + b"\r\n" + content)
    with pytest.raises(ExperimentError, match=message) as caught:
        read_pairs(str(path))
    assert str(caught.value).startswith(f"line 2 of '{path}'")


# -- answers -------------------------------------------------------------------------------------


def word_level() -> Any:
    """Whole words, and one token for all others, whose name transformers is not told."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unknown>", "The", "cat", "cats", "dog", "is", "are"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece() -> Any:
    """Llama 2's way: a space before every text, spaces are part of the next piece."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "\u2581The", "\u2581cat", "\u2581is", "\u2581are", "s", "\u2581s", "\u2581"]
    letters = sorted({letter for piece in pieces[1:] for letter in piece} - {*pieces})
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    scores += [(letter, -20.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_word_that_is_unknown_is_no_answer() -> None:
    row = {"clean_prefix": "The cat", "patch_prefix": "The cats"}
    tokenizer = word_level()
    # Both would be token 0, and the metric 0 whatever the model does.
    with pytest.raises(InputError, match="1 x an answer is unknown to the tokenizer"):
        tokenize_pairs(tokenizer, [row | {"clean_answer": " runs", "patch_answer": " run"}])
    with pytest.raises(AnswerError, match=r"' runs' after 'The cat' .* unknown to the tokenizer"):
        tokenize_single(tokenizer, ["The cat"], [" runs"])
    known = row | {"clean_answer": " is", "patch_answer": " are"}
    assert tokenize_pairs(tokenizer, [known]).kept == [0]
    with pytest.raises(InputError, match="differ in a word that is unknown"):
        tokenize_pairs(tokenizer, [known | {"patch_prefix": "The zebra"}])


def test_an_answer_is_read_as_it_continues_its_text() -> None:
    tokenizer = sentence_piece()
    assert len(tokenizer(" is", add_special_tokens=False)["input_ids"]) == 2  # never one alone
    single = tokenize_single(tokenizer, ["The cat", "The cat"], [" is", "s"])
    assert single.clean.tolist() == [[1, 2], [1, 2]]
    # Alone, "s" would be the piece that begins a new word, 6.
    assert single.metric.answers.tolist() == [[3], [5]]
    row = {"clean_prefix": "The cat", "clean_answer": " is"}
    pairs = tokenize_pairs(tokenizer, [row | {"patch_prefix": "The is", "patch_answer": " are"}])
    assert pairs.inputs.metric.answers.tolist() == [[3, 4]]


@pytest.mark.skipif(not (ROOT / "models").is_dir(), reason="needs ../shared/models")
def test_pairs_are_usable_with_stories260k() -> None:
    tokenizer = load_tokenizer(str(ROOT / "models/stories260K"))
    rows = [
        {
            "clean_prefix": "One day she",
            "patch_prefix": "One day they",
            "clean_answer": " was",
            "patch_answer": " had",
        }
    ]
    pairs = tokenize_pairs(tokenizer, rows, bos=tokenizer.bos_token_id)
    assert pairs.kept == [0]
    answers = pairs.inputs.metric.answers[0].tolist()
    assert tokenizer.convert_ids_to_tokens(answers) == ["\u2581was", "\u2581had"]


@pytest.mark.skipif(not (ROOT / "agreement").is_dir(), reason="needs ../shared/agreement")
@pytest.mark.parametrize(
    ("name", "n_kept", "n_rows"),
    [("simple_train", 413, 480), ("nounpp_test", 414, 480), ("within_rc_test", 2400, 2400)],
)
def test_the_authors_pairs_are_usable_with_pythias_tokenizer(
    name: str, n_kept: int, n_rows: int
) -> None:
    tokenizer = load_tokenizer(str(ROOT / "models/gpt-neox-20b-tokenizer"))
    pairs = read_pairs(str(ROOT / f"agreement/{name}.json"))
    tokenized = tokenize_pairs(tokenizer, [pair.texts for pair in pairs])
    assert (len(tokenized.kept), len(pairs)) == (n_kept, n_rows)
    assert {pair.reason for pair in tokenized.dropped} <= {"the prefixes differ in length"}
