"""Text in pictures and terminals: how wide it is, and how it is cut to the room it has.

An SVG file cannot ask which font its reader has, so widths are those of DejaVu Sans, the widest of
the fonts a browser falls back to: text that fits here fits in Helvetica, Arial and Liberation Sans.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

ELLIPSIS = "…"
_BOLD = 1.14
_DEFAULT = 0.64

# Advance widths in ems, characters of like width together.
_WIDTHS = {
    character: width
    for characters, width in (
        ("'ijlI|", 0.34),
        (" .,:;·!/\\()[]", 0.4),
        ("-ftr", 0.42),
        ('"*_cksvxyzεJ?', 0.6),
        ("ABCDEFGHKLNPRSTUVXYZ", 0.77),
        ("&OQ", 0.79),
        ("+=<>~^→wµ", 0.84),
        ("mMW%@…—", 1.0),
    )
    for character in characters
}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of `text` in pixels at `size` pixels to the em, never less than a browser draws."""
    ems = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            ems += 1.0
        else:
            ems += _WIDTHS.get(character, _DEFAULT if character < "\u0250" else 0.9)
    return ems * size * (_BOLD if bold else 1.0)


def fit(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """`text`, or as much of it as fits in `width` pixels and an ellipsis."""
    if text_width(text, size, bold=bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        cut = text[:middle].rstrip() + ELLIPSIS
        low, high = (
            (middle, high) if text_width(cut, size, bold=bold) <= width else (low, middle - 1)
        )
    return text[:low].rstrip() + ELLIPSIS


def flow(
    parts: Sequence[str],
    width: float,
    size: float,
    *,
    joiner: str = " ",
    n_lines: int | None = None,
    bold: bool = False,
) -> list[str]:
    """Parts joined into lines of `width` pixels, broken only between parts.

    With `n_lines`, what is too much for them ends in an ellipsis; so does a part too long for a
    line.
    """
    lines: list[str] = []
    rest = list(parts)
    while rest and (n_lines is None or len(lines) < n_lines - 1):
        n_parts = 1
        while n_parts < len(rest) and (
            text_width(joiner.join(rest[: n_parts + 1]), size, bold=bold) <= width
        ):
            n_parts += 1
        lines.append(fit(joiner.join(rest[:n_parts]), width, size, bold=bold))
        rest = rest[n_parts:]
    return [*lines, fit(joiner.join(rest), width, size, bold=bold)] if rest else lines


def wrap(
    text: str, width: float, size: float, *, n_lines: int | None = None, bold: bool = False
) -> list[str]:
    """`text` broken between words into lines of `width` pixels, as `flow` does."""
    return flow(text.split(), width, size, n_lines=n_lines, bold=bold)


def printable(text: str) -> str:
    """`text` without characters that a picture or a terminal cannot show.

    A line break becomes ↵, a tab →; other control characters, lone surrogates and code points that
    XML forbids become �; marks that only steer the direction or joining of text are dropped.
    """
    text = text.replace("\n", "↵").replace("\t", "→")
    kinds = ((character, unicodedata.category(character)) for character in text)
    return "".join(
        "�" if kind in ("Cc", "Cs", "Cn", "Co") else character
        for character, kind in kinds
        if kind != "Cf"
    )


def token_text(token: str) -> str:
    """A token as a column's heading: without the space before it, ␣ if it is only space."""
    return printable(token.strip(" ")) or "␣"
