"""Text in, token contexts out: documents from the hub or from files, cut to their first tokens.

Sources, told apart by name:

    roneneldan/TinyStories      a dataset on the Hugging Face hub, streamed
    corpus.jsonl, .jsonl.zst    one JSON object per line
    corpus.txt                  one document per file, or per `separator`
    corpus.parquet              one document per row
    a folder                    all such files in it, by name

As in the paper (App. B), a document gives one context: its first `n_positions` tokens.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.zst", ".txt", ".parquet")
_TOKENIZE_AT_ONCE = 256


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        index: its place in the corpus, from 0.
        text: the text.
        labels: what determines each of its tokens, where the corpus says so (the test bed does).
    """

    index: int
    text: str
    labels: tuple[str, ...] | None = None


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


def read_documents(
    source: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    split: str = "train",
    revision: str | None = None,
    n_documents: int | None = None,
    separator: str | None = None,
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

    Raises:
        InputError: the source is missing or of no known kind, a line is not JSON, a column is
            missing, or there is not one document with text.
    """
    columns = (text_column, label_column)
    rows = _rows(str(source), columns, split=split, revision=revision, separator=separator)
    found = False
    for document in islice(_documents(rows, columns, source), n_documents):
        found = True
        yield document
    if not found:
        raise InputError(f"the corpus '{source}' holds no text at all: nothing to read.")


def _documents(
    rows: Iterator[Mapping[str, Any]], columns: tuple[str, str | None], source: str | Path
) -> Iterator[Document]:
    index = 0
    for row in rows:
        text, labels = _cell(row, columns[0], source), None
        if not isinstance(text, str):
            raise InputError(
                f"column '{columns[0]}' of '{source}' holds {type(text).__name__}, not text."
            )
        if columns[1] is not None:
            labels = tuple(_cell(row, columns[1], source))
        if text.strip():
            yield Document(index, text, labels)
            index += 1


def _cell(row: Mapping[str, Any], column: str, source: str | Path) -> Any:
    if column not in row:
        raise InputError(
            f"'{source}' has no column '{column}', only {', '.join(sorted(map(str, row)))}: "
            "set text_column (or label_column) to one of these."
        )
    return row[column]


def _rows(
    source: str,
    columns: tuple[str, str | None],
    *,
    split: str,
    revision: str | None,
    separator: str | None,
) -> Iterator[Mapping[str, Any]]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise InputError(f"folder '{source}' has no file ending in {', '.join(SUFFIXES)}.")
    elif path.is_file():
        files = [path]
    elif source.endswith(SUFFIXES) or source.startswith((".", "/", "~")):
        raise InputError(f"corpus '{source}' does not exist.")
    else:
        yield from _hub_rows(source, split, revision)
        return
    for file in files:
        yield from _file_rows(file, columns, separator)


def _file_rows(
    file: Path, columns: tuple[str, str | None], separator: str | None
) -> Iterator[Mapping[str, Any]]:
    if file.name.endswith(".parquet"):
        yield from _parquet_rows(file, [c for c in columns if c is not None])
    elif file.name.endswith(".txt"):
        text = file.read_text(encoding="utf-8")
        for part in text.split(separator) if separator else [text]:
            yield {columns[0]: part.strip()}
    elif file.name.endswith(".jsonl"):
        with file.open(encoding="utf-8") as lines:
            yield from _json_rows(lines, file)
    elif file.name.endswith(".jsonl.zst"):
        with _decompressed(file) as lines:
            yield from _json_rows(lines, file)
    else:
        raise InputError(f"'{file}' is of no known kind: {', '.join(SUFFIXES)}.")


def _json_rows(lines: Iterable[str], file: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"line {number} of '{file}' is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} of '{file}' is not a JSON object.")
        yield row


def _decompressed(file: Path) -> io.TextIOWrapper:
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"'{file}' is compressed and zstandard is not installed: install this project with "
            "the extra 'hub', or decompress the file."
        ) from error
    # A .zst file may hold several frames, as those written by parallel compressors do.
    reader = zstandard.ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True)
    return io.TextIOWrapper(reader, encoding="utf-8")


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"'{file}' is not a Parquet file: {error}.") from error
    with parquet:
        known = parquet.schema_arrow.names
        # A missing column is reported from the first row, with the others' names.
        wanted = columns if set(columns) <= set(known) else known
        for batch in parquet.iter_batches(columns=wanted, batch_size=1024):
            yield from batch.to_pylist()


def _hub_rows(source: str, split: str, revision: str | None) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        rows = iter(load_dataset(source, split=split, revision=revision, streaming=True))
        first = next(rows, None)
    except Exception as error:  # datasets raises whatever its file systems raise
        raise InputError(
            f"the dataset '{source}' could not be read from the Hugging Face hub: "
            f"{type(error).__name__}: {error}. Check its name, split and the network; without a "
            "network, give a local .jsonl, .txt or .parquet file."
        ) from error
    if first is not None:
        yield first
        yield from rows


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    n_positions: int = 128,
    bos: bool = False,
    n_vocab: int | None = None,
) -> Iterator[Context]:
    """The first tokens of each document.

    Documents of fewer than two tokens are left out: there is nothing to predict in them.

    Args:
        documents: as `read_documents` gives them.
        tokenizer: a Hugging Face tokenizer.
        n_positions: tokens kept of each document, BOS included.
        bos: put the tokenizer's BOS token first.
        n_vocab: size of the model's vocabulary, to refuse another model's tokenizer at once.

    Raises:
        InputError: no BOS token although asked for, a token id the model does not have, labels
            that are not one per token, or no document of two tokens.
    """
    if bos and tokenizer.bos_token_id is None:
        raise InputError("the tokenizer has no BOS token: set bos to false.")
    prefix = [tokenizer.bos_token_id] if bos else []
    found = False
    documents = iter(documents)
    while group := list(islice(documents, _TOKENIZE_AT_ONCE)):
        texts = [document.text for document in group]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for document, own in zip(group, ids, strict=True):
            tokens = (prefix + own)[:n_positions]
            if len(tokens) < 2:
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


def _labels(document: Document, n_tokens: int, n_prefix: int) -> tuple[str, ...] | None:
    if document.labels is None:
        return None
    if len(document.labels) != n_tokens:
        raise InputError(
            f"document {document.index} has {len(document.labels)} labels but {n_tokens} tokens: "
            "its labels were made for another tokenizer."
        )
    return ("",) * n_prefix + document.labels


def _check_vocabulary(tokens: list[int], n_vocab: int | None) -> None:
    if n_vocab is not None and max(tokens) >= n_vocab:
        raise InputError(
            f"token id {max(tokens)} does not exist in the model's vocabulary of {n_vocab}: the "
            "text was tokenized with another model's tokenizer."
        )
