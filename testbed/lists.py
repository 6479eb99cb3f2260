"""Series in order, in several styles of list."""

from testbed.lexicon import (
    HEADERS,
    LETTERS,
    MONTHS,
    NUMBERS,
    NUMERALS,
    ORDINALS,
    THINGS,
    WEEKDAYS,
)
from testbed.phrases import noun_phrase, stop
from testbed.writer import Mix, PhraseBook, Writer

HEADER = PhraseBook(HEADERS)
SERIES = Mix(
    {
        (tuple(WEEKDAYS), "succession_weekdays"): 0.19,
        (tuple(MONTHS), "succession_months"): 0.19,
        (tuple(NUMBERS), "succession_numbers"): 0.17,
        (tuple(LETTERS), "succession_letters"): 0.17,
        (tuple(NUMERALS), "succession_numerals"): 0.14,
        (tuple(ORDINALS), "succession_ordinals"): 0.14,
    }
)
# "One, two, three", "one then two then three", or one item on each line.
STYLES = Mix({"comma": 0.4, "then": 0.3, "line": 0.3})
P_NUMBERED = 0.25
P_CONTINUE = 0.75
N_ITEMS = 3  # at least


def listed(w: Writer) -> None:
    """A header, and a list of one style."""
    w.phrase(HEADER, "collocation")
    w.mark(":", "opener_comma")
    if w.chance(P_NUMBERED):
        numbered(w)
    else:
        succession(w)
    stop(w)


def succession(w: Writer) -> None:
    """Items of a series from anywhere in it; weekdays and months go round."""
    series, label = w.draw(SERIES)
    cyclic = label in ("succession_weekdays", "succession_months")
    index = w.pick(range(len(series) if cyclic else len(series) - N_ITEMS + 1))
    w.word(series[index])
    style = w.draw(STYLES)
    for count in range(1, len(series)):
        if not cyclic and index + 1 == len(series):
            return
        if count >= N_ITEMS and not w.chance(P_CONTINUE):
            return
        index = (index + 1) % len(series)
        separator(w, style)
        w.word(series[index], label)


def separator(w: Writer, style: str) -> None:
    """What stands between two items in a style."""
    if style == "comma":
        w.mark(",", "list_separator")
    elif style == "then":
        w.word("then", "list_separator")
    else:
        w.mark("\n", "list_separator")


def numbered(w: Writer) -> None:
    """One thing a line, the lines numbered from one."""
    for number in range(1, 8):
        if number > N_ITEMS and not w.chance(P_CONTINUE):
            return
        w.mark("\n", "list_separator")
        w.word(str(number), "succession_numbered_lines")
        w.mark(".", "list_separator")
        noun_phrase(w, THINGS)
