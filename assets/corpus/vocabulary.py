"""Stage 1: what every token of the tokenizer looks like, so that pages need no tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from assets.engine.stage import Made, Metadata, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore
from assets.tables.places import VOCABULARY
from assets.tables.schemas import TABLES

TokenText = Callable[[int], str]


def token_text(tokenizer: Any) -> TokenText:
    r"""What a token adds to a text.

    The space before it, which decoding it alone would drop, is kept; bytes that are no whole
    character are spelled, as in ``\xf0\x9f``.
    """

    @cache
    def text(token: int) -> str:
        decoded = str(tokenizer.decode([token]))
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if "\ufffd" in decoded:
            return _spelled(piece) or decoded
        spaced = piece.startswith(("\u2581", "\u0120")) and not decoded.startswith(" ")
        return f" {decoded}" if spaced else decoded

    return text


def _spelled(piece: str) -> str | None:
    """A vocabulary entry that stands for bytes, as text where they are; None for another one."""
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece's byte fallback
        data = bytes.fromhex(match[1])
    elif all(char in _BYTES for char in piece):
        data = bytes(_BYTES[char] for char in piece)
    else:
        return None
    return data.decode(errors="backslashreplace")


def _byte_letters() -> dict[str, int]:
    """The characters by which byte-level BPE writes the 256 bytes (as GPT-2 does)."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_letters()


def make_vocabulary(work: Work, _settings: tuple[()]) -> Made:
    """The text of every id up to the largest."""
    tokenizer = work.load.tokenizer()
    text, known = token_text(tokenizer), set(tokenizer.get_vocab().values())
    rows = [
        # Some vocabularies have holes.
        {"token": token, "text": text(token) if token in known else unknown(token)}
        for token in range(max(known, default=-1) + 1)
    ]
    return Made(TABLES["vocabulary"].build(rows))


def unknown(token: int) -> str:
    """What stands for an id that the tokenizer does not know; models often have a few more."""
    return f"⟨{token}⟩"


def read_texts(store: ArtifactStore, n_tokens: int = 0) -> list[str]:
    """The text of every token id, of `n_tokens` at least."""
    texts = store.read(VOCABULARY, ["text"])["text"].to_pylist()
    return texts + [unknown(token) for token in range(len(texts), n_tokens)]


def show_vocabulary(work: Work, _settings: tuple[()]) -> Metadata:
    """How many there are."""
    return {"tokens": work.store.n_rows(VOCABULARY)}


VOCABULARY_STAGE = TableStage(
    name="vocabulary",
    group="corpus",
    description="Every token of the tokenizer as text.",
    kinds=frozenset({"huggingface", "parquet"}),
    key=VOCABULARY,
    deps=always(),
    needs=always("tokenizer"),
    reads=lambda _experiment: (),
    inputs=contents(),
    make=make_vocabulary,
    show=show_vocabulary,
)
