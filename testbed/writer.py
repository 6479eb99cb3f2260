"""Writing a document token by token while keeping the probability of every choice.

The grammar is written so that a prefix of the text settles every choice made so far. The
probability of a token is then the product of the choices made since the token before it, and
minus its logarithm is exactly what a perfect reader of the grammar would lose on it, in nats.
"""

import random
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import log
from typing import Generic, TypeVar

from testbed.lexicon import NAMES, SURNAMES

T = TypeVar("T")

FREE = "free"
# A token less likely than this under the grammar has entropy of its own and is labelled free;
# -log 0.74 is just above 0.3 nats, the loosest filter of the paper's cluster search.
DETERMINED = log(0.74)
P_SURNAME = 0.4
P_SAME_CAST = 0.5


@dataclass(frozen=True, slots=True)
class Document:
    """A text with, for each token, what determines it.

    Attributes:
        tokens: the tokens; joined they are the text.
        labels: the behaviour that determines each token, or "free".
        logprobs: log-probability of each token given those before it, under the grammar, in nats.
        log_end: log-probability that the document ends where it does, in nats.
    """

    tokens: list[str]
    labels: list[str]
    logprobs: list[float]
    log_end: float = 0.0

    @property
    def text(self) -> str:
        """The tokens joined."""
        return "".join(self.tokens)


class Mix(Generic[T]):
    """A fixed distribution to draw from."""

    def __init__(self, weights: Mapping[T, float]) -> None:
        total = sum(weights.values())
        self.outcomes = list(weights)
        self.logprobs = [log(weight / total) for weight in weights.values()]
        self.cumulative = list(accumulate(weight / total for weight in weights.values()))
        self.cumulative[-1] = 1.0


class PhraseBook:
    """Phrases drawn uniformly, with the probability of each word given the words before it."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.phrases = [tuple(phrase.split()) for phrase in phrases]
        starts = Counter(
            phrase[:length] for phrase in self.phrases for length in range(len(phrase) + 1)
        )
        self.logprobs = [
            [log(starts[phrase[: i + 1]] / starts[phrase[:i]]) for i in range(len(phrase))]
            for phrase in self.phrases
        ]


@dataclass(slots=True)
class Writer:
    """A document in the making: its tokens, the people in it, and what is left to account for."""

    rng: random.Random
    tokens: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    # first name -> surname, or "" for someone who goes by the first name alone
    cast: dict[str, str] = field(default_factory=dict)
    pending: float = 0.0  # log-probability of the choices the next token will show
    glued: bool = True  # the next word takes no leading space

    # Choices

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        self.pending -= log(len(options))
        return options[int(self.rng.random() * len(options))]

    def draw(self, mix: Mix[T]) -> T:
        """One outcome of a fixed distribution."""
        index = bisect(mix.cumulative, self.rng.random())
        self.pending += mix.logprobs[index]
        return mix.outcomes[index]

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        happens = self.rng.random() < probability
        if 0 < probability < 1:
            self.pending += log(probability if happens else 1 - probability)
        return happens

    # Tokens

    def word(self, word: str, label: str = FREE) -> None:
        """Write a word, with a space before it unless it opens a text, quote, bracket or line."""
        self._write(word if self.glued else " " + word, label)

    def words(self, words: str, label: str) -> None:
        """Write fixed wording."""
        for word in words.split():
            self.word(word, label)

    def mark(self, mark: str, label: str = FREE) -> None:
        """Write punctuation as it stands; what follows an opening mark takes no space."""
        self._write(mark, label)
        self.glued = mark in (' "', " (", " [", "\n")

    def phrase(self, book: PhraseBook, label: str) -> int:
        """Write a phrase of the book; its index."""
        index = int(self.rng.random() * len(book.phrases))
        for word, logprob in zip(book.phrases[index], book.logprobs[index], strict=True):
            self.pending += logprob
            self.word(word, label)
        return index

    def _write(self, token: str, label: str) -> None:
        self.tokens.append(token)
        self.logprobs.append(self.pending)
        self.labels.append(label if self.pending > DETERMINED else FREE)
        self.pending = 0.0
        self.glued = False

    # People

    def choose_name(self, but: Collection[str] = ()) -> str:
        """Someone of the cast or anyone at all, half and half, leaving some names out."""
        known = [name for name in self.cast if name not in but]
        p_known = P_SAME_CAST if known else 0.0
        if self.rng.random() < p_known:
            name = known[int(self.rng.random() * len(known))]
        else:
            anyone = [name for name in NAMES if name not in but] if but else NAMES
            name = anyone[int(self.rng.random() * len(anyone))]
        probability = (1 - p_known) / (len(NAMES) - len(but))
        if name in known:
            probability += p_known / len(known)
        self.pending += log(probability)
        return name

    def mention(self, name: str, label: str = FREE) -> None:
        """Write a name; who was introduced with a surname keeps it through the document."""
        self.word(name, label)
        if name not in self.cast:
            self.cast[name] = self.pick(SURNAMES) if self.chance(P_SURNAME) else ""
            if self.cast[name]:
                self.word(self.cast[name])
        elif self.cast[name]:
            self.word(self.cast[name], "induction")

    def finish(self, log_end: float = 0.0) -> Document:
        """The document written."""
        return Document(self.tokens, self.labels, self.logprobs, log_end)
