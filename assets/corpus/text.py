"""Text in, token contexts out: documents from the hub or from files, cut to their first tokens.

Sources, told apart by name:

    roneneldan/TinyStories      a dataset on the Hugging Face hub, streamed
    corpus.jsonl, .jsonl.zst    one JSON object per line
    corpus.txt                  one document per file, or per `separator`
    corpus.parquet              one document per row
    a folder                    all such files in it, by name; no hidden ones

As in the paper (App. B), a document gives one context: its first `n_positions` tokens. Whatever
is left out or changed on the way is counted in a `Reading`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from assets.corpus.rows import Reading, Row, read_rows
from core.errors import InputError

_TOKENIZE_AT_ONCE = 256
_NAMES = {bool: "true or false", float: "a number", dict: "an object", list: "a list"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~&$])")


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        index: its place among the documents of the corpus, from 0.
        text: the text.
        labels: what determines each of its tokens, where the corpus says so (the test bed does).
        where: file and line it was read from, for messages.
    """

    index: int
    text: str
    labels: tuple[str, ...] | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Context:
    """The first tokens of one document.

    Attributes:
        document: the document's index in the corpus.
        tokens: token ids, at least two.
        labels: one for each token; empty for a token the tokenizer added.
    """

    document: int
    tokens: list[int]
    labels: tuple[str, ...] | None = None


def harmless(text: str, *, markdown: bool = False) -> str:
    r"""Text of a corpus on one line, with nothing in it that acts on a terminal.

    Line ends become ``↵``, other control characters their symbols (``␛``), and whatever else
    is not seen (marks of direction, zero-width characters, lone surrogates) escapes such as
    ``\u202e``. Letters of all scripts, signs and spaces stay as they are.

    Args:
        markdown: put a backslash before what Markdown or HTML would take for markup.
    """
    shown = "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else _symbol(char)
        for char in text
    )
    return _MARKDOWN.sub(r"\\\1", shown) if markdown else shown


def _symbol(char: str) -> str:
    if char == "\n":
        return "\u21b5"
    if char == "\x7f":
        return "\u2421"
    if char < " ":
        return chr(0x2400 + ord(char))
    return char.encode("unicode_escape").decode("ascii")


def read_documents(
    source: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    split: str = "train",
    revision: str | None = None,
    n_documents: int | None = None,
    separator: str | None = None,
    reading: Reading | None = None,
) -> Iterator[Document]:
    """The documents of a corpus, in order, those without any text left out.

    Args:
        source: a file, a folder of files or a dataset on the hub (see the module's docstring).
        text_column: field of JSON lines, Parquet files and hub datasets that holds the text.
        label_column: field with one label for each token, or None.
        split, revision: of a hub dataset.
        n_documents: stop after so many.
        separator: what stands between the documents of a text file, e.g. ``<|endoftext|>``;
            None where each file is one document.
        reading: counts what is left out and what is changed, while the documents are taken.

    Raises:
        InputError: the source is missing or not of the kind its name says, a line is not UTF-8
            or not JSON, a column is missing or of another type, or there is not one document
            with text. Says which file, line and byte.
    """
    reading = reading or Reading()
    columns = [text_column] if label_column is None else [text_column, label_column]
    rows = read_rows(
        str(source),
        columns,
        split=split,
        revision=revision,
        separator=separator,
        reading=reading,
    )
    found = False
    for document in islice(_documents(rows, text_column, label_column, reading), n_documents):
        found = True
        reading.n_read += 1
        yield document
    if not found:
        left_out = ", ".join(f"{n} x {reason}" for reason, n in reading.skipped.items())
        raise InputError(
            f"the corpus '{source}' holds no text at all: nothing to read"
            f"{f' (left out: {left_out})' if left_out else ''}."
        )


def _documents(
    rows: Iterable[Row], text_column: str, label_column: str | None, reading: Reading
) -> Iterator[Document]:
    index = 0
    for row in rows:
        text = _cell(row, text_column)
        if text is None:
            reading.skip("text is null", row.where)
            continue
        if not isinstance(text, str):
            kind = _NAMES.get(type(text), type(text).__name__)
            raise InputError(
                f"{row.where}: '{text_column}' holds {kind}, not text. Set text_column to a "
                "field of text; rows in which it is null are left out."
            )
        if not text.strip():
            reading.skip("text is blank", row.where)
            continue
        labels = None if label_column is None else _labels_of(row, label_column)
        whole = without_surrogates(text)
        if whole != text:
            reading.replace("lone surrogates, now U+FFFD", row.where)
        yield Document(index, whole, labels, row.where)
        index += 1


def _labels_of(row: Row, column: str) -> tuple[str, ...]:
    labels = _cell(row, column)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(
            f"{row.where}: '{column}' is not a list of texts, one label for each token: mend the "
            "row, or name no column of labels."
        )
    return tuple(map(without_surrogates, labels))


def _cell(row: Row, column: str) -> Any:
    if column not in row.values:
        names = ", ".join(sorted(harmless(str(name)) for name in row.values))
        raise InputError(
            f"{row.where} has no column '{column}', only {names}: set text_column (or "
            "labels_column) to one of these."
        )
    return row.values[column]


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    n_positions: int = 128,
    bos: bool = False,
    n_vocab: int | None = None,
    reading: Reading | None = None,
) -> Iterator[Context]:
    """The first tokens of each document.

    Documents of fewer than two tokens are left out: there is nothing to predict in them.

    Args:
        documents: as `read_documents` gives them.
        tokenizer: a Hugging Face tokenizer.
        n_positions: tokens kept of each document, BOS included.
        bos: put the tokenizer's BOS token first.
        n_vocab: size of the model's vocabulary, to refuse another model's tokenizer at once.
        reading: counts the documents left out.

    Raises:
        InputError: no BOS token although asked for, a token id the model does not have, labels
            that are not one per token, or no document of two tokens.
    """
    if bos and tokenizer.bos_token_id is None:
        raise InputError("the tokenizer has no BOS token: set bos to false.")
    prefix = [tokenizer.bos_token_id] if bos else []
    reading = reading or Reading()
    found = False
    documents = iter(documents)
    while group := list(islice(documents, _TOKENIZE_AT_ONCE)):
        texts = [document.text for document in group]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for document, own in zip(group, ids, strict=True):
            tokens = (prefix + own)[:n_positions]
            if len(tokens) < 2:
                reading.skip("fewer than two tokens", _place(document))
                continue
            _check_vocabulary(tokens, n_vocab)
            found = True
            labels = _labels(document, len(own), len(prefix))
            yield Context(document.index, tokens, None if labels is None else labels[:n_positions])
    if not found:
        raise InputError(
            "no document has two tokens or more, so there is no next token to predict anywhere: "
            "is the corpus empty, or cut up too finely by its separator?"
        )


def _place(document: Document) -> str:
    return document.where or f"document {document.index}"


def _labels(document: Document, n_tokens: int, n_prefix: int) -> tuple[str, ...] | None:
    if document.labels is None:
        return None
    if len(document.labels) != n_tokens:
        raise InputError(
            f"{_place(document)} has {len(document.labels)} labels but {n_tokens} tokens: its "
            "labels were made for another tokenizer."
        )
    return ("",) * n_prefix + document.labels


def _check_vocabulary(tokens: list[int], n_vocab: int | None) -> None:
    if n_vocab is not None and max(tokens) >= n_vocab:
        raise InputError(
            f"token id {max(tokens)} does not exist in the model's vocabulary of {n_vocab}: the "
            "text was tokenized with another model's tokenizer."
        )
