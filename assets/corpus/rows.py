"""Rows of a corpus, from files or from the hub, each with the place where it stands.

Every file is opened and its first bytes looked at before the first row is given, so that a file
of another kind is refused at once and not after hours. Text is UTF-8, with or without a byte
order mark; in JSON lines only a line feed ends a line, in Parquet the column must be of text.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from core.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.zst", ".txt", ".parquet")
_BLOCK = 1 << 20  # characters of a text file read at once
_COMPRESSED_BLOCK = 1 << 16  # bytes of a compressed file read at once
_N_PARQUET_ROWS = 1024
# Python refuses integers of more than 4300 digits; no number of a row is ever used.
_JSON = json.JSONDecoder(parse_int=float)

_SKIPPABLE = tuple(bytes((0x50 + i, 0x2A, 0x4D, 0x18)) for i in range(16))
_STARTS = {  # the first bytes of a file, what it is then, and the way out where it should not be
    "zstandard data": ((b"\x28\xb5\x2f\xfd", *_SKIPPABLE), "name it .jsonl.zst"),
    "gzip data": ((b"\x1f\x8b",), "unpack it with gunzip"),
    "a Parquet file": ((b"PAR1",), "name it .parquet"),
    "UTF-16 text": ((b"\xff\xfe", b"\xfe\xff"), "convert it with iconv -f UTF-16 -t UTF-8"),
}
_OF_KIND = {".jsonl.zst": "zstandard data", ".parquet": "a Parquet file"}


class Row(NamedTuple):
    """One row of a corpus, and its place, such as ``line 3 of 'a.jsonl'``; lines have a number."""

    values: Mapping[str, Any]
    where: str
    line: int | None = None


@dataclass
class Reading:
    """What became of a corpus, counted while it is read.

    Attributes:
        say: told of each reason the first time it occurs, with the place, and of each note.
        n_read: documents given.
        skipped: rows, files or documents left out, by reason.
        replaced: documents whose text was changed, by reason.
        notes: what a reader should know of the corpus, by topic.
    """

    say: Callable[[str], None] = lambda text: None
    n_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    notes: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        """Count something that is left out."""
        self._count(self.skipped, reason, f"{where} is left out: {reason}")

    def replace(self, reason: str, where: str) -> None:
        """Count a document whose text was changed."""
        self._count(self.replaced, reason, f"{where} was changed: {reason}")

    def note(self, topic: str, text: str) -> None:
        """Say something once for each topic."""
        if topic not in self.notes:
            self.notes[topic] = text
            self.say(text)

    def counts(self) -> dict[str, Any]:
        """All of it as plain values, for a table's footer or a page."""
        return {
            "n_read": self.n_read,
            "skipped": dict(self.skipped),
            "replaced": dict(self.replaced),
            "notes": list(self.notes.values()),
        }

    def _count(self, counter: Counter[str], reason: str, text: str) -> None:
        counter[reason] += 1
        if counter[reason] == 1:
            self.say(f"{text} (further ones are only counted)")


def read_rows(
    source: str,
    columns: Sequence[str],
    *,
    split: str,
    revision: str | None,
    separator: str | None,
    reading: Reading,
) -> Iterator[Row]:
    """The rows of a corpus, in order; those of a folder file by file, by name.

    Args:
        source: a file, a folder of files or a dataset on the hub.
        columns: those that are wanted, the text's first; rows may hold others.
        split, revision: of a hub dataset.
        separator: what stands between the documents of a text file; None where each file is one.
        reading: counts what is left out.

    Raises:
        InputError: the source is missing, cannot be read or is not what its name says.
    """
    path = Path(source).expanduser()
    file = path
    try:
        if not path.exists() and not path.is_symlink():
            if source.lower().endswith(SUFFIXES) or source.startswith((".", "/", "~")):
                raise InputError(f"corpus '{source}' does not exist.")
            yield from data_set_rows(source, split, revision)
            return
        files = _files_of(path, reading)
        for file in files:
            _check_start(file)
        _note_whole_files(files, separator, reading)
        for file in files:
            yield from _file_rows(file, columns, separator, reading)
    except OSError as error:
        raise InputError(
            f"'{error.filename or file}' cannot be read: {error.strerror or error}. Make it "
            "readable, or take it out of the corpus."
        ) from error


def _kind(file: Path) -> str | None:
    """The suffix by which a file is read; None where it is no corpus file."""
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)


def _files_of(path: Path, reading: Reading) -> list[Path]:
    """The corpus files of a folder by name, or the file itself; empty ones are left out."""
    if path.is_dir():
        files = []
        for file in sorted(path.iterdir()):
            if file.name.startswith("."):  # such as the ._ files that macOS adds
                reading.skip("hidden file", f"'{file}'")
            elif _kind(file) is None:
                reading.skip("file of another kind", f"'{file}'")
            else:
                files.append(file)
        if not files:
            raise InputError(f"folder '{path}' has no file ending in {', '.join(SUFFIXES)}.")
    else:
        files = [path]
        if _kind(path) is None:
            raise InputError(f"'{path}' is of no known kind: {', '.join(SUFFIXES)}.")
    empty = [file for file in files if file.stat().st_size == 0]
    for file in empty:
        reading.skip("empty file", f"'{file}'")
    return [file for file in files if file not in empty]


def _check_start(file: Path) -> None:
    """Refuse a file whose first bytes are not those of its kind."""
    with file.open("rb") as data:
        start = data.read(4)
    wanted = _OF_KIND.get(_kind(file) or "")
    actual = next((what for what, (starts, _) in _STARTS.items() if start.startswith(starts)), None)
    if actual == wanted:
        return
    way_out = _STARTS[actual][1] if actual else "give it the suffix of what it holds"
    raise InputError(
        f"'{file}' is not {wanted or 'UTF-8 text'}{f' but {actual}' if actual else ''}: {way_out}."
    )


def _note_whole_files(files: Sequence[Path], separator: str | None, reading: Reading) -> None:
    texts = [file for file in files if _kind(file) == ".txt"]
    if texts and not separator:
        reading.note(
            "whole files",
            f"Each text file is one document ({len(texts)} in all, the first '{texts[0]}'), of "
            "which only the first tokens are used: set separator to what stands between "
            "documents, such as <|endoftext|>, if a file holds several.",
        )


def _file_rows(
    file: Path, columns: Sequence[str], separator: str | None, reading: Reading
) -> Iterator[Row]:
    match _kind(file):
        case ".parquet":
            yield from _parquet_rows(file, columns)
        case ".txt":
            yield from _text_rows(file, columns[0], separator, reading)
        case ".jsonl":
            with file.open("rb") as lines:
                yield from json_rows(lines, file)
        case _:
            yield from json_rows(_decompressed_lines(file), file)


# -- text files ----------------------------------------------------------------------------------


def _text_rows(file: Path, column: str, separator: str | None, reading: Reading) -> Iterator[Row]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as text:
            for number, part in enumerate(_parts(text, separator), start=1):
                yield Row({column: part.strip()}, f"document {number} of '{file}'")
    except UnicodeDecodeError:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                _decoded(line, f"line {number} of '{file}'")
        raise
    if separator and number == 1:
        reading.note(
            "separator",
            f"The separator {separator!r} does not occur in '{file}': the file is one document.",
        )


def _parts(text: TextIO, separator: str | None) -> Iterator[str]:
    """A text cut at its separators; nothing is given for a blank end."""
    if not separator:
        yield text.read()
        return
    rest = ""
    # A part longer than a block is joined to blocks as long as itself: the time stays linear.
    while block := text.read(max(_BLOCK, len(rest))):
        *parts, rest = (rest + block).split(separator)
        yield from parts
    if rest.strip():
        yield rest


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 at byte {error.start + 1} (0x{line[error.start]:02x}). "
            f"{_encoding(line)}"
        ) from error


def _encoding(line: bytes) -> str:
    """What a line that is not UTF-8 may be, and what to do."""
    if any(not char.isascii() and char != "\ufffd" for char in line.decode(errors="replace")):
        return "The rest of the line is UTF-8: the file is damaged here, restore or mend it."
    n_high = sum(byte >= 0x80 for byte in line)
    control = any(0x80 <= byte < 0xA0 for byte in line)
    # Western text is mostly ASCII; 0x80 to 0x9f are control characters in Latin-1.
    encoding = "windows-1252" if control else "ISO-8859-1"
    if n_high > len(line) / 4 or "\ufffd" in line.decode(encoding, errors="replace"):
        return "Its encoding cannot be told from this line: find out and convert the file to UTF-8."
    name = encoding if control else f"Latin-1 ({encoding})"
    return f"It looks like {name}: convert the file with iconv -f {encoding} -t UTF-8."


# -- JSON lines ----------------------------------------------------------------------------------


def json_rows(lines: Iterable[bytes], file: Path) -> Iterator[Row]:
    """The objects on the lines of a file, blank lines left out; `file` is for messages.

    Raises:
        InputError: a line is not UTF-8 or not a JSON object; says which line and byte.
    """
    for number, line in enumerate(lines, start=1):
        # Files put one after another have a byte order mark in the middle.
        line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            where = f"line {number} of '{file}'"
            yield Row(_object(_decoded(line, where), where), where, number)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = _JSON.decode(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON: {error.msg} at character {error.pos + 1}. Write one JSON object "
            "on each line."
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{where} is nested too deeply to be read: leave out all fields but the text."
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object: write one on each line.")
    return row


def _decompressed_lines(file: Path) -> Iterator[bytes]:
    """The lines of a zstandard file of one frame or several, as parallel compressors write them.

    zstandard's own reader ends without a word where a file is cut off; this one does not.
    """
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"'{file}' is compressed and zstandard is not installed: install this project with "
            "the extra 'hub', or decompress the file."
        ) from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, rest = None, b""
    with file.open("rb") as data:
        try:
            while block := data.read(_COMPRESSED_BLOCK):
                while block:
                    frame = frame or decompressor.decompressobj()
                    *lines, rest = (rest + frame.decompress(block)).split(b"\n")
                    yield from lines
                    block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        except zstandard.ZstdError as error:
            raise InputError(
                f"'{file}' is damaged or not zstandard data throughout ({error}): restore it."
            ) from error
    if frame is not None:
        raise InputError(
            f"'{file}' ends in the middle of its zstandard data: it was cut off, copy it again."
        )
    if rest:
        yield rest


# -- Parquet and the hub -------------------------------------------------------------------------


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_read = 0
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check_text_column(schema, columns[0], file)
            # A missing column is reported from the first row, with the others' names.
            wanted = columns if set(columns) <= set(schema.names) else schema.names
            for batch in parquet.iter_batches(columns=list(wanted), batch_size=_N_PARQUET_ROWS):
                for number, values in enumerate(batch.to_pylist(), start=n_read + 1):
                    yield Row(values, f"row {number} of '{file}'")
                n_read += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"'{file}' is not a Parquet file that can be read, after row {n_read}: {error}. "
            "Restore it or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{file}' holds text that is not UTF-8 between rows {n_read + 1} and "
            f"{n_read + _N_PARQUET_ROWS}: write it again from text in UTF-8."
        ) from error


def _check_text_column(schema: Any, column: str, file: Path) -> None:
    import pyarrow as pa

    if column not in schema.names:
        return
    kind = schema.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if plain not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
        raise InputError(
            f"column '{column}' of '{file}' holds {kind}, not text: set text_column to a column "
            "of text, or write this one as text."
        )


_ON_THE_HUB = (
    "Check its name, split and the network; without a network, give a local .jsonl, .txt or "
    ".parquet file."
)


def data_set_rows(
    source: str, split: str, revision: str | None = None, way_out: str = _ON_THE_HUB
) -> Iterator[Row]:
    """The rows of a split of a data set on the hub, or of a folder that is laid out as there.

    Args:
        way_out: what to do where it cannot be read, for the message.

    Raises:
        InputError: it cannot be read.
    """
    from datasets import load_dataset

    number = 0
    try:
        rows = load_dataset(source, split=split, revision=revision, streaming=True)
        for number, values in enumerate(rows, start=1):
            yield Row(values, f"row {number} of split {split} of '{source}'")
    except Exception as error:  # datasets raises whatever its file systems raise
        raise InputError(
            f"split {split} of the data set '{source}' could not be read after row {number}: "
            f"{type(error).__name__}: {error}. {way_out}"
        ) from error
