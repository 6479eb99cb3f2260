"""Corpus files as they come: each is read, refused with its place, or counted as it is changed.

The contents are written anew for each test; where a folder of the same inputs lies beside the
checkout, those very files are tried as well.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from assets.corpus.rows import Reading
from assets.corpus.text import Document, harmless, read_documents, tokenize_documents
from core.errors import InputError

TRIALS = Path(__file__).resolve().parents[3] / "shared/trials/text"
INPUTS = {
    "bom.jsonl": b'\xef\xbb\xbf{"text": "Tom went home."}\n',
    "latin1.jsonl": b'{"text": "caf\xe9 au lait"}\n',
    "nulltext.jsonl": b'{"text": "Tom went home."}\n{"text": null}\n',
    "plain.jsonl.zst": b'{"text": "Tom"}\n',
    "surrogate.jsonl": b'{"text": "a \\ud83d b once upon a time"}\n{"text": "Tom went home."}\n',
}


@pytest.fixture(params=["generated", "shared"])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """The path of an input, written here or where it lies."""
    if request.param == "shared":
        if not TRIALS.is_dir():
            pytest.skip("needs ../shared/trials")
        return TRIALS.joinpath

    def write(name: str) -> Path:
        (tmp_path / name).write_bytes(INPUTS[name])
        return tmp_path / name

    return write


def read(source: Path, **options) -> tuple[list[str], Reading]:
    reading = Reading()
    documents = read_documents(source, reading=reading, **options)
    return [document.text for document in documents], reading


def refused(source: Path, **options) -> str:
    """The message with which a source is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read(source, **options)
    assert str(source) in str(caught.value)
    return str(caught.value)


def a_file(folder: Path, content: bytes | str, name: str = "a.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


# -- the five inputs -----------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_text(trial) -> None:
    texts, reading = read(trial("bom.jsonl"))
    assert texts == ["Tom went home."]
    assert reading.counts() == {"n_read": 1, "skipped": {}, "replaced": {}, "notes": []}


def test_latin_1_is_refused_with_line_byte_and_encoding(trial) -> None:
    message = refused(trial("latin1.jsonl"))
    assert message.startswith("line 1 of ")
    assert "not UTF-8 at byte 14 (0xe9)" in message
    assert "iconv -f ISO-8859-1 -t UTF-8" in message


def test_a_row_without_text_is_skipped_and_counted(trial) -> None:
    texts, reading = read(trial("nulltext.jsonl"))
    assert texts == ["Tom went home."]
    assert reading.skipped == {"text is null": 1}
    assert reading.n_read == 1


def test_half_a_surrogate_pair_is_replaced_and_counted(trial) -> None:
    texts, reading = read(trial("surrogate.jsonl"))
    assert texts == ["a \ufffd b once upon a time", "Tom went home."]
    assert reading.replaced == {"lone surrogates, now U+FFFD": 1}
    assert "".join(texts).encode()


def test_a_name_that_promises_zstandard_is_held_to_it(trial) -> None:
    assert "is not zstandard data" in refused(trial("plain.jsonl.zst"))


# -- JSON lines ----------------------------------------------------------------------------------


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    lines = json.dumps({"text": text}, ensure_ascii=False) + "\r\n" + json.dumps({"text": "last"})
    assert read(a_file(tmp_path, lines))[0] == [text, "last"]
    packed = a_file(tmp_path, zstandard.compress(lines.encode()), "a.jsonl.zst")
    assert read(packed)[0] == [text, "last"]


def test_whole_surrogate_pairs_stay(tmp_path: Path) -> None:
    texts, reading = read(a_file(tmp_path, '{"text": "\\ud83d\\ude00"}'))
    assert (texts, reading.replaced) == (["\U0001f600"], {})


def test_files_put_one_after_another_keep_no_byte_order_mark(tmp_path: Path) -> None:
    content = INPUTS["bom.jsonl"] * 2
    assert read(a_file(tmp_path, content))[0] == ["Tom went home."] * 2


def test_a_number_of_any_length_beside_the_text_is_no_matter(tmp_path: Path) -> None:
    assert read(a_file(tmp_path, f'{{"text": "a", "n": {"9" * 5000}}}'))[0] == ["a"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": "b"', "not JSON: .* at character 14"),
        (b'[{"text": "b"}]', "not a JSON object"),
        (b'{"text": ["b"]}', "holds a list, not text"),
        (b'{"text": true}', "holds true or false, not text"),
        (b'{"text": 1e9}', "holds a number, not text"),
        (b'{"body": "b"}', "no column 'text', only body"),
        (b'{"text": "\x93quoted\x94 words of some length"}', "looks like windows-1252"),
        (b'{"text": "\xc3\xa9t\xc3\xa9 and then \xff"}', "rest of the line is UTF-8"),
        ('{"text": "Привет всем"}'.encode("cp1251"), "encoding cannot be told"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read(a_file(tmp_path, b'{"text": "a"}\n\n' + line + b"\n"))
    assert f"line 3 of '{tmp_path / 'a.jsonl'}'" in str(caught.value)


@pytest.mark.parametrize("labels", ['"xy"', "7", "null", "[1, 2]", '["x", null]', '{"x": "y"}'])
def test_labels_are_a_list_of_texts_or_refused(tmp_path: Path, labels: str) -> None:
    file = a_file(tmp_path, f'{{"text": "a b", "labels": {labels}}}\n')
    message = refused(file, label_column="labels")
    assert message.startswith("line 1 of ")
    assert "'labels' is not a list of texts" in message


def test_labels_for_another_tokenizer_are_refused_with_their_line(tmp_path: Path) -> None:
    class Words:
        bos_token_id = None

        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[1] * len(text.split()) for text in texts]}

    lines = '{"text": " ", "labels": []}\n{"text": "a b", "labels": ["x"]}\n'
    documents = read_documents(a_file(tmp_path, lines), label_column="labels")
    with pytest.raises(InputError, match=r"line 2 of .* has 1 labels but 2 tokens"):
        list(tokenize_documents(documents, Words()))


def test_blank_texts_are_counted_and_take_no_number(tmp_path: Path) -> None:
    reading = Reading()
    file = a_file(tmp_path, '{"text": " "}\n{"text": null}\n{"text": ""}\n{"text": "some"}\n')
    assert list(read_documents(file, reading=reading)) == [Document(0, "some")]
    assert reading.skipped == {"text is blank": 2, "text is null": 1}


def test_a_corpus_of_nothing_but_null_says_what_was_left_out(tmp_path: Path) -> None:
    message = refused(a_file(tmp_path, '{"text": null}\n' * 3))
    assert "no text at all" in message
    assert "3 x text is null" in message


def test_each_reason_is_told_once_with_its_place(tmp_path: Path) -> None:
    told: list[str] = []
    file = a_file(tmp_path, '{"text": "a"}\n' + '{"text": null}\n' * 3)
    list(read_documents(file, reading=Reading(say=told.append)))
    (only,) = told
    assert only.startswith(f"line 2 of '{file}' is left out: text is null")


# -- compressed, misnamed and cut files -----------------------------------------------------------


def test_a_compressed_file_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": os.urandom(40).hex()}) + "\n" for _ in range(5000))
    whole = zstandard.compress(lines.encode())
    assert len(read(a_file(tmp_path, whole, "whole.jsonl.zst"))[0]) == 5000
    cut = a_file(tmp_path, whole[:-100], "cut.jsonl.zst")
    assert "ends in the middle of its zstandard data" in refused(cut)
    assert len(read(cut, n_documents=10)[0]) == 10  # what is there can still be used


def test_frames_that_are_skipped_and_several_frames_are_one_text(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00head"
    frames = [zstandard.compress(part) for part in (b'{"text": ', b'"a"}\n{"text": "b"}\n')]
    file = a_file(tmp_path, skipped + b"".join(frames), "a.jsonl.zst")
    assert read(file)[0] == ["a", "b"]


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    file = a_file(tmp_path, zstandard.compress(b'{"text": "a"}\n') + b"rubbish", "a.jsonl.zst")
    assert "damaged" in refused(file)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", zstandard.compress(b"{}"), "but zstandard data: name it .jsonl.zst"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "but gzip data: unpack it with gunzip"),
        ("a.txt", b"PAR1....", "but a Parquet file: name it .parquet"),
        ("a.txt", "one".encode("utf-16"), "but UTF-16 text: convert it with iconv"),
        ("a.parquet", b'{"text": "a"}\n', "is not a Parquet file: give it the suffix"),
        ("a.parquet", b"PAR1 and no more", "not a Parquet file that can be read"),
    ],
)
def test_a_file_is_held_to_its_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    assert reason in refused(a_file(tmp_path, content, name))


# -- Parquet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([["a"], ["b"]]), "list<"),
    ],
)
def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path, column, kind: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert f"holds {kind}" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_parquet_text_is_read(tmp_path: Path, kind) -> None:
    pq.write_table(pa.table({"text": pa.array(["a", None], kind)}), tmp_path / "a.parquet")
    texts, reading = read(tmp_path / "a.parquet")
    assert (texts, reading.skipped) == (["a"], {"text is null": 1})


def test_parquet_text_that_is_not_utf_8_is_refused_with_its_rows(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, data])
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert "not UTF-8 between rows 1 and 1024" in refused(tmp_path / "a.parquet")


# -- text files and folders -----------------------------------------------------------------------


def test_a_text_file_that_becomes_one_document_says_so_at_once(tmp_path: Path) -> None:
    told: list[str] = []
    file = a_file(tmp_path, "\ufeffone\ntwo\n", "a.txt")
    documents = read_documents(file, reading=Reading(say=told.append))
    assert next(documents).text == "one\ntwo"
    (note,) = told
    assert "one document" in note
    assert "set separator" in note


def test_a_separator_that_does_not_occur_is_told(tmp_path: Path) -> None:
    texts, reading = read(a_file(tmp_path, "one\n\ntwo", "a.txt"), separator="<|endoftext|>")
    assert texts == ["one\n\ntwo"]
    assert ["does not occur" in note for note in reading.notes.values()] == [True]


def test_separators_across_blocks_and_line_ends_of_windows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("assets.corpus.rows._BLOCK", 3)
    texts, reading = read(a_file(tmp_path, "one\r\n\r\ntwo\r\n\r\n", "a.txt"), separator="\n\n")
    assert texts == ["one", "two"]
    assert (reading.skipped, reading.notes) == ({}, {})


def test_a_text_file_in_latin_1_is_refused_with_line_and_byte(tmp_path: Path) -> None:
    file = a_file(tmp_path, b"one\ntwo\nun caf\xe9 au lait\n", "a.txt")
    message = refused(file, separator="---")
    assert message.startswith("line 3 of ")
    assert "byte 7 (0xe9)" in message


def test_a_folder_leaves_out_hidden_empty_and_other_files_and_counts_them(tmp_path: Path) -> None:
    a_file(tmp_path, "Mac OS X rubbish \xff", "._a.jsonl")
    a_file(tmp_path, '{"text": "hidden"}', ".b.jsonl")
    a_file(tmp_path, "", "c.parquet")
    a_file(tmp_path, "notes", "notes.md")
    a_file(tmp_path, '{"text": "seen"}', "D.JSONL")
    texts, reading = read(tmp_path)
    assert texts == ["seen"]
    assert reading.skipped == {"hidden file": 2, "empty file": 1, "file of another kind": 1}


def test_a_file_that_cannot_be_opened_stops_before_the_first_row(tmp_path: Path) -> None:
    a_file(tmp_path, '{"text": "a"}')
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    documents = read_documents(tmp_path)
    with pytest.raises(InputError, match=r"b\.jsonl' cannot be read: No such file"):
        next(documents)


def test_a_folder_with_a_suffix_is_no_file(tmp_path: Path) -> None:
    a_file(tmp_path, '{"text": "a"}')
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "b.jsonl/inside").touch()
    with pytest.raises(InputError, match=r"b\.jsonl' cannot be read: Is a directory"):
        read(tmp_path)


def test_a_hub_that_breaks_off_says_after_which_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows():
        yield {"text": "a"}
        raise ConnectionError("reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
    with pytest.raises(InputError, match="after row 1: ConnectionError: reset"):
        list(read_documents("someone/stories"))


# -- text on a terminal and in Markdown -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, as it is: é ש 中\u3000😀", "plain, as it is: é ש 中\u3000😀"),
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("one\r\n\ttwo\x7f", "one␍↵␉two␡"),
        ("\x9b2J \u202eabc\u200b \u2028", r"\x9b2J \u202eabc\u200b \u2028"),
        ("\ud83d", r"\ud83d"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_nothing_in_a_harmless_text_acts_on_a_terminal(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert shown.encode()


def test_a_harmless_text_is_no_markdown() -> None:
    text = "# *a* [b](c) <i> `d` | ![e](f) 1. \\ ~~g~~ &lt; $h$"
    escaped = harmless(text, markdown=True)
    assert escaped == (
        r"\# \*a\* \[b\]\(c\) \<i\> \`d\` \| \!\[e\]\(f\) 1\. \\ \~\~g\~\~ \&lt; \$h\$"
    )
