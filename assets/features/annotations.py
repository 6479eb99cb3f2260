"""Files of people's descriptions of features: JSON lines, appended and never changed.

Rows of this project (`docs/features.md`) and those of the paper's authors are read alike; what
cannot be read is left out and said, and never stops a run: files are written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_NAME = re.compile(r"(embed|(?:attn|mlp|resid)_\d+)/(\d+)")
_BASES = ("features", "neurons")
LONGEST = 1_000
"""Characters of a description."""


@dataclass(frozen=True)
class Annotation:
    """What one person says of one feature or neuron.

    Attributes:
        submodule, basis, feature: which.
        text: the description; empty where there are only ratings.
        by: who.
        at: when, as the file says.
        weights: hash of the dictionary that was looked at; None where the file does not say.
        interpretability, complexity: 0 to 100 (App. D).
        relevant: whether it bears on the task, for SHIFT.
        circuit: the circuit whose features were gone through, ``tasks/simple``.
        chosen: why it was among them: circuits or random.
        blind: its name was hidden.
    """

    submodule: str
    basis: str
    feature: int
    text: str
    by: str
    at: str | None = None
    weights: str | None = None
    interpretability: float | None = None
    complexity: float | None = None
    relevant: bool | None = None
    circuit: str | None = None
    chosen: str | None = None
    blind: bool = False

    @property
    def name(self) -> str:
        """``mlp_2/59``."""
        return f"{self.submodule}/{self.feature}"


@dataclass(frozen=True)
class Annotations:
    """What a file says.

    Attributes:
        rows: in the order of the file.
        left_out: number of each line that cannot be used, from 1, and why.
    """

    rows: list[Annotation]
    left_out: dict[int, str]

    def latest(self) -> list[Annotation]:
        """What each person said last about each feature; what a later row leaves open stays."""
        last: dict[tuple[str, str, int, str], Annotation] = {}
        for row in self.rows:
            key = row.submodule, row.basis, row.feature, row.by
            if (before := last.pop(key, None)) is not None:
                said = {k: v for k, v in asdict(row).items() if v not in (None, "")}
                row = replace(before, **said)
            last[key] = row
        return list(last.values())


class _Unusable(Exception):
    """Why a line cannot be used."""


def read_annotations(path: Path) -> Annotations:
    """The annotations of a file; nothing where there is no file.

    Raises:
        OSError: it cannot be opened.
    """
    rows: list[Annotation] = []
    left_out: dict[int, str] = {}
    if not path.exists():
        return Annotations(rows, left_out)
    text = path.read_bytes().decode("utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _loaded(line)
            if "group" not in row:  # features that are drawn as one say nothing of any
                rows.append(_annotation(row, path.stem))
        except _Unusable as error:
            left_out[number] = str(error)
    return Annotations(rows, left_out)


def _loaded(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unusable("is no JSON") from None
    if not isinstance(row, dict):
        raise _Unusable("is no JSON object")
    return row


def _annotation(row: Mapping[str, Any], source: str) -> Annotation:
    if "Name" in row or "Component" in row:
        return _of_the_authors(row, source)
    name = _NAME.fullmatch(f"{row.get('submodule')}/{row.get('feature')}")
    if name is None:
        raise _Unusable("names no submodule and feature")
    basis = row.get("basis", "features")
    if basis not in _BASES:
        raise _Unusable("basis is neither features nor neurons")
    by = row.get("by")
    if not isinstance(by, str) or not by.strip():
        raise _Unusable("does not say by whom")
    relevant = row.get("relevant")
    if relevant is not None and not isinstance(relevant, bool):
        raise _Unusable("relevant is neither true nor false")
    return Annotation(
        submodule=name[1],
        basis=basis,
        feature=int(name[2]),
        text=_text(row.get("text")),
        by=by.strip()[:LONGEST],
        at=_text(row.get("at")) or None,
        weights=_text(row.get("weights")) or None,
        interpretability=_rating(row, "interpretability"),
        complexity=_rating(row, "complexity"),
        relevant=relevant,
        circuit=_text(row.get("circuit")) or None,
        chosen=_text(row.get("chosen")) or None,
        blind=row.get("blind") is True,
    )


def _of_the_authors(row: Mapping[str, Any], source: str) -> Annotation:
    """A row of theirs; where it has no name, component, layer and feature say it."""
    layer = row.get("Layer")
    place = row.get("Component") if layer in (None, "") else f"{row.get('Component')}_{layer}"
    name = _NAME.fullmatch(str(row.get("Name", f"{place}/{row.get('Feature')}")))
    if name is None:
        raise _Unusable("names no feature")
    text = _text(row.get("Annotation"))
    if not text:
        raise _Unusable("has no description")
    return Annotation(name[1], "features", int(name[2]), text, by=source)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Unusable("a text is no text")
    # A lone surrogate could not be written.
    return value.encode("utf-8", "replace").decode().strip()[:LONGEST]


def _rating(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _Unusable(f"{key} is no number from 0 to 100")
    return float(value)
