"""What pages look like: templates, and how figures and tokens are written in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from assets.corpus.text import harmless
from core.pictures.wording import signed

HERE = Path(__file__).parent
SHADES = 8
"""Steps of the shading of tokens by activation."""


@cache
def environment() -> jinja2.Environment:
    """The templates, every value in them escaped."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "figure": figure,
        "share": share,
        "count": count,
        "signed": lambda value: signed(value).replace("-", "\u2212"),
        "harmless": harmless,
        "shade": shade,
        "island": island,
        "address": lambda part: quote(str(part), safe="/"),
    }
    templates.globals |= {"link": link}
    return templates


def figure(value: float | None) -> str:
    """A figure with two decimals, or a dash."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    # Adding zero makes minus zero plain.
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212")


def share(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    return f"{value:.1%}" if 0 < abs(value) < 0.1 else f"{value:.0%}"


def count(value: float | None) -> str:
    """A whole number, or a dash."""
    return "\u2013" if value is None else f"{value:,.0f}"


def shade(activation: float, largest: float) -> int:
    """Which of the steps, from 0 for none to `SHADES` for the largest."""
    if not (largest > 0 and activation > 0):
        return 0
    return max(1, min(SHADES, math.ceil(SHADES * activation / largest)))


def island(value: object) -> Markup:
    """Data for a script, as JSON that no HTML parser could take for markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def link(path: str, state: Mapping[str, object] | None = None, **changed: object) -> str:
    """An address with the state in its query; values that are empty are left out."""
    kept = {
        key: value for key, value in {**(state or {}), **changed}.items() if value not in ("", None)
    }
    return quote(path, safe="/") + (f"?{urlencode(kept)}" if kept else "")


def bars(
    counts: Sequence[float], width: float = 160.0, height: float = 36.0
) -> list[tuple[float, ...]]:
    """A histogram's bars, ``(x, y, width, height)``, up to the last that is not empty; heights as
    square roots, to see the small."""
    shown = list(counts)
    while shown and not shown[-1]:
        shown.pop()
    most = max(shown, default=0)
    if not most:
        return []
    step = width / len(shown)
    heights = [height * math.sqrt(n / most) for n in shown]
    return [(i * step, height - h, max(step - 1, 0.5), h) for i, h in enumerate(heights)]
