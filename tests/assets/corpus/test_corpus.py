import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from assets.corpus.rows import Reading
from assets.corpus.text import Document, read_documents, tokenize_documents
from core.errors import InputError

TEXTS = ["one two three", "four five", "six seven eight nine"]


class Words:
    """A tokenizer of words: a token id is the word's length."""

    bos_token_id = 0

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def texts(source, **options) -> list[str]:
    return [document.text for document in read_documents(source, **options)]


def json_lines(column: str = "text") -> str:
    return "".join(json.dumps({column: text, "n": 1}) + "\n" for text in TEXTS)


def write(tmp_path, name: str):
    file = tmp_path / name
    if name.endswith(".jsonl"):
        file.write_text(json_lines())
    elif name.endswith(".zst"):
        frames = [zstandard.compress(line.encode()) for line in json_lines().splitlines(True)]
        file.write_bytes(b"".join(frames))
    elif name.endswith(".txt"):
        file.write_text("\n<|endoftext|>\n".join(TEXTS) + "\n<|endoftext|>\n")
    else:
        pq.write_table(pa.table({"text": TEXTS, "n": [1, 1, 1]}), file)
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt", "a.parquet"])
def test_documents_are_read_from_every_kind_of_file(tmp_path, name):
    options = {"separator": "<|endoftext|>"} if name.endswith(".txt") else {}
    found = list(read_documents(write(tmp_path, name), **options))
    assert found == [Document(i, text) for i, text in enumerate(TEXTS)]


def test_a_text_file_without_separator_is_one_document(tmp_path):
    assert len(texts(write(tmp_path, "a.txt"))) == 1


def test_a_folder_is_read_file_by_file_in_order(tmp_path):
    for name in ("b.parquet", "a.jsonl"):
        write(tmp_path, name)
    (tmp_path / "notes.md").write_text("no corpus")
    documents = list(read_documents(tmp_path))
    assert [document.text for document in documents] == TEXTS + TEXTS
    assert [document.index for document in documents] == list(range(6))


def test_reading_stops_after_n_documents(tmp_path):
    assert texts(write(tmp_path, "a.jsonl"), n_documents=2) == TEXTS[:2]


def test_documents_without_text_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n\n{"text": "some"}\n')
    assert list(read_documents(tmp_path / "a.jsonl")) == [Document(0, "some")]


def test_a_hub_dataset_is_streamed(monkeypatch):
    import datasets

    asked = []

    def load(name, **options):
        asked.append((name, options))
        return ({"story": f"text {i}"} for i in range(10**9))

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_documents("someone/stories", text_column="story", split="test", revision="v1")
    assert [document.text for document in islice(found, 2)] == ["text 0", "text 1"]
    assert asked == [("someone/stories", {"split": "test", "revision": "v1", "streaming": True})]


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch):
    import datasets

    def unreachable(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="without a network, give a local"):
        texts("someone/stories")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_unknown_column_is_refused_with_those_there_are(tmp_path, name):
    with pytest.raises(InputError, match=r"no column 'body', only n, text"):
        texts(write(tmp_path, name), text_column="body")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", "", "no text at all"),
        ("a.txt", " \n", "no text at all"),
        ("a.jsonl", '{"text": "a"}\n{oops\n', "line 2 of .* is not JSON"),
        ("a.jsonl", "[1]\n", "not a JSON object"),
        ("a.jsonl", '{"text": 3}\n', "holds a number, not text"),
        ("a.parquet", "nothing", "not a Parquet file"),
        ("a.csv", "text\na\n", "of no known kind"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        texts(tmp_path / name)


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing", "/missing"])
def test_a_missing_file_is_not_looked_for_on_the_hub(source):
    with pytest.raises(InputError, match="does not exist"):
        texts(source)


def test_a_folder_without_a_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file ending in"):
        texts(tmp_path)


# -- tokens --------------------------------------------------------------------------------------


def contexts(*documents: Document, **options):
    return list(tokenize_documents(documents, Words(), **options))


def test_a_context_is_the_first_tokens_of_its_document():
    (context,) = contexts(Document(7, "a bb ccc dddd"), n_positions=3)
    assert (context.document, context.tokens, context.labels) == (7, [1, 2, 3], None)


def test_bos_counts_as_a_position():
    (context,) = contexts(Document(0, "a bb ccc", ("x", "y", "z")), n_positions=3, bos=True)
    assert context.tokens == [0, 1, 2]
    assert context.labels == ("", "x", "y")


def test_documents_of_one_token_are_left_out_and_counted():
    reading = Reading()
    found = contexts(Document(0, "a"), Document(1, "a bb"), reading=reading)
    assert [context.document for context in found] == [1]
    assert reading.skipped == {"fewer than two tokens": 1}


def test_many_documents_keep_their_order():
    found = contexts(*(Document(i, "a bb") for i in range(600)))
    assert [context.document for context in found] == list(range(600))


@pytest.mark.parametrize(
    ("documents", "options", "reason"),
    [
        ([], {}, "no document has two tokens"),
        ([Document(0, "a"), Document(1, "b")], {}, "no document has two tokens"),
        ([Document(0, "a bbbb")], {"n_vocab": 4}, "token id 4 does not exist"),
        ([Document(0, "a bb", ("x",))], {}, "1 labels but 2 tokens"),
    ],
)
def test_texts_that_give_no_usable_tokens_are_refused(documents, options, reason):
    with pytest.raises(InputError, match=reason):
        contexts(*documents, **options)


def test_bos_without_a_bos_token_is_refused():
    tokenizer = Words()
    tokenizer.bos_token_id = None
    with pytest.raises(InputError, match="no BOS token"):
        list(tokenize_documents([Document(0, "a bb")], tokenizer, bos=True))
