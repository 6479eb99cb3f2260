"""Colours of effects: blue for positive, red for negative, deeper the stronger.

The scale is ColorBrewer's RdBu, whose two ends differ for every common kind of colour blindness.
"""

from __future__ import annotations

INK = "#1b1f24"
PALE_INK = "#5b6470"
RULE = "#d5dae0"
BAND = "#f5f6f8"

_POSITIVE = ((255, 255, 255), (146, 197, 222), (33, 102, 172), (5, 48, 97))
_NEGATIVE = ((255, 255, 255), (244, 165, 130), (178, 24, 43), (103, 0, 31))
_FAINTEST = 0.04  # no effect but zero is quite white
_BLUE, _RED, _GREY = "#2166ac", "#b2182b", "#7a828c"


def _channels(depth: float) -> tuple[int, int, int]:
    """Red, green and blue at `depth` in [-1, 1] of the scale."""
    stops = _POSITIVE if depth >= 0 else _NEGATIVE
    place = min(max(abs(depth), _FAINTEST if depth else 0.0), 1.0) * (len(stops) - 1)
    lower = min(int(place), len(stops) - 2)
    share = place - lower
    red, green, blue = (
        round(a + share * (b - a)) for a, b in zip(stops[lower], stops[lower + 1], strict=True)
    )
    return red, green, blue


def fill(depth: float) -> str:
    """Fill at `depth`, effect / max|effect| in [-1, 1]: white at 0, as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*_channels(depth))


def line(value: float) -> str:
    """Colour of outlines and edges by the sign of `value`."""
    return _GREY if value == 0 else _BLUE if value > 0 else _RED


def ink_on(depth: float) -> str:
    """Colour of text on ``fill(depth)``: white or black, whichever contrasts more."""
    luminance = sum(
        share * ((channel / 255 + 0.055) / 1.055) ** 2.4
        for share, channel in zip((0.2126, 0.7152, 0.0722), _channels(depth), strict=True)
    )
    # By WCAG the two contrasts, 1.05 / (l + 0.05) and (l + 0.05) / 0.05, meet at l = 0.179; the
    # better of them is never below 4.5, the least that is easily read.
    return "#ffffff" if luminance < 0.179 else "#000000"
