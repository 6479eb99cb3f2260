"""Tokens and contexts as text that is harmless wherever it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assets.corpus.text import harmless
from assets.corpus.vocabulary import unknown
from core.errors import CircuitError

Row = Mapping[str, Any]

LONGEST = 64
"""Tokens of a context's end that are shown."""


@dataclass(frozen=True)
class Context:
    """An input and its answer, and the other side of a contrastive pair.

    Attributes:
        before: what stands before the answer, line ends both seen and kept.
        answer: the answer.
        is_cut: there is more before it.
        other: the other side of a pair.
    """

    before: str
    answer: str
    is_cut: bool
    other: Context | None = None


class TokenTexts:
    """What tokens look like.

    Args:
        load: gives a token's text; called once, when the first token is looked at.
    """

    def __init__(self, load: Callable[[], Callable[[int], str]]) -> None:
        self._load = load
        self.problem = ""
        """Why tokens are shown by their numbers; empty where they are not."""
        self._known: dict[int, str] = {}

    @cached_property
    def _text(self) -> Callable[[int], str]:
        try:
            return self._load()
        except (CircuitError, OSError, ValueError) as error:
            self.problem = f"Tokens are shown by their numbers: {error}"
            return unknown

    def raw(self, token: int | str) -> str:
        """A token as it stands in a text; bytes that are no character are spelled.

        An answer that is no token, such as the class of a text, is text already.
        """
        if isinstance(token, str):
            return token
        if token not in self._known:
            self._known[token] = self._text(token)
        return self._known[token]

    def shown(self, token: int) -> str:
        """A token on one line, with nothing in it that cannot be seen."""
        return harmless(self.raw(token))

    def plain(self, example: Row) -> str:
        """The text of an example's input and answer."""
        return "".join(self.raw(token) for token in (*example["clean"], example["answer"]))

    def context(self, example: Row) -> Context:
        """An example as it is shown."""
        other = None
        if example["patch"] is not None:
            other = self._context(example["patch"], example["patch_answer"])
        return self._context(example["clean"], example["answer"], other)

    def _context(
        self, tokens: Sequence[int], answer: int | str, other: Context | None = None
    ) -> Context:
        before = "".join(self.raw(token) for token in tokens[-LONGEST:])
        last = self.raw(answer)
        if last.startswith(" ") and last.strip():  # the space stands before what is marked
            before, last = before + " ", last[1:]
        shown = "\u21b5\n".join(map(harmless, before.split("\n")))
        return Context(shown, harmless(last), len(tokens) > LONGEST, other)
