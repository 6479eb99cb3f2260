"""Choosing one of several published dictionaries: the sparsity is part of Gemma Scope's paths.

``layer_20/width_16k/average_l0_71/params.npz``: how many features are active on average (L0) is
another number in every layer, and every layer has several such folders. The second release says
``l0_small``, ``l0_medium``, ``l0_big`` instead; the number is in the config.json there.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

from core.dictionaries.formats.places import (
    FILE_SUFFIXES,
    NUMBER,
    fetch,
    filled,
    local_root,
    placeholders,
    read_json,
    unreachable,
)
from core.errors import FormatError

_L0 = rf"{NUMBER}|small|medium|big"
_FREE = re.compile(r"\{l0\}|\*+")
_SHOWN = 20


def is_open(path: str) -> bool:
    """Whether `path` leaves something to be chosen: ``{l0}``, or ``*`` for any part of a name."""
    return _FREE.search(path) is not None


def resolved_path(
    source: str,
    path: str,
    *,
    submodule: str | None = None,
    revision: str | None = None,
    l0: float | None = None,
) -> str:
    """`path` with everything filled in, as it is written in the source.

    Args:
        source: a local folder, or a hub id.
        path: as in `read_from`; ``{l0}`` stands for a number (or small, medium, big) and ``*``
            for any part of a name, within one folder level; neither goes on with a number that is
            filled in: ``layer_{layer}*`` of layer 1 is not layer_10.
        submodule: fills ``{submodule}``, ``{kind}``, ``{layer}`` and ``{site}``.
        revision: branch, tag or commit on the hub.
        l0: take the place whose L0 (what ``{l0}`` stands for; with ``*`` alone, the number after
            ``l0_``) is nearest to this, the smaller of two as near.

    Raises:
        FormatError: no place fits, or several do and `l0` does not decide between them; the
            message lists them. Or the hub is out of reach.
    """
    template, path = path, filled(path, submodule)
    if not is_open(path):
        return path
    path = PurePosixPath(path.strip("/")).as_posix()
    pattern = _pattern(PurePosixPath(template.strip("/")).as_posix(), placeholders(submodule))
    l0_of = _fitting(source, path, pattern, revision)
    if not l0_of:
        raise FormatError(f"'{source}' has nothing that fits '{path}'.")
    if len(l0_of) == 1:
        return next(iter(l0_of))
    if l0 is None:
        raise FormatError(
            f"'{source}' has {len(l0_of)} places that fit '{path}': {_listed(l0_of)}. Write one of "
            "them out, or give the option l0 (options: {l0: 100}) to take the nearest."
        )
    return _nearest(_with_numbers(l0_of, source, revision), _number(l0), path)


def _number(l0: Any) -> float:
    if isinstance(l0, bool) or not isinstance(l0, int | float):
        raise FormatError(f"the option l0 is {l0!r}: it must be a number of features.")
    return l0


def _nearest(l0_of: dict[str, float | None], l0: float, path: str) -> str:
    ranked = sorted((abs(value - l0), value, place) for place, value in _numbered(l0_of, path))
    best = [place for distance, value, place in ranked if (distance, value) == ranked[0][:2]]
    if len(best) > 1:
        raise FormatError(
            f"several places that fit '{path}' have the same L0: {_listed(dict.fromkeys(best))}. "
            "Write out what is meant instead of *."
        )
    return best[0]


def _numbered(l0_of: dict[str, float | None], path: str) -> list[tuple[str, float]]:
    numbered = [(place, value) for place, value in l0_of.items() if value is not None]
    if len(numbered) < len(l0_of):
        without = [place for place, value in l0_of.items() if value is None]
        raise FormatError(
            f"l0 cannot choose among the places that fit '{path}': "
            f"{_listed(dict.fromkeys(without))} say no L0. Write {{l0}} where the number stands."
        )
    return numbered


def _listed(places: dict[str, Any]) -> str:
    shown = sorted(places)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(places) > _SHOWN else "")


def _fitting(
    source: str, path: str, pattern: re.Pattern[str], revision: str | None
) -> dict[str, float | None]:
    """Places in the source that fit, and the L0 that each says; None: no number."""
    l0_of = {}
    for place in _candidates(source, path, revision):
        match = pattern.fullmatch(place)
        if match is not None:
            said = match.groupdict().get("l0") or _after_l0(place)
            l0_of[place] = float(said) if said and re.fullmatch(NUMBER, said) else None
    return l0_of


def _with_numbers(
    l0_of: Mapping[str, float | None], source: str, revision: str | None
) -> dict[str, float | None]:
    """The same, with the number from config.json where a place says a word."""
    return {
        place: _l0_beside(source, place, revision) if value is None else value
        for place, value in l0_of.items()
    }


def _l0_beside(source: str, place: str, revision: str | None) -> float | None:
    folder = PurePosixPath(place)
    folder = folder.parent if place.endswith(FILE_SUFFIXES) else folder
    try:
        said = read_json(fetch(source, (folder / "config.json").as_posix(), revision)).get("l0")
    except FormatError:
        return None  # no such file: the place says no L0
    return None if isinstance(said, bool) or not isinstance(said, int | float) else float(said)


def _pattern(template: str, values: Mapping[str, Any]) -> re.Pattern[str]:
    pieces = [("", "text"), *_pieces(template, values), ("", "text")]
    text, named = "", False
    for i, (piece, kind) in enumerate(pieces):
        if piece == "{l0}" and kind == "open":
            text += "(?P=l0)" if named else f"(?P<l0>{_L0})"
            named = True
        elif kind == "open":
            text += "[^/]*"
        elif kind == "filled":
            before, after = pieces[i - 1][1] == "open", pieces[i + 1][1] == "open"
            text += r"(?<!\d)" if before and piece[:1].isdigit() else ""
            text += re.escape(piece) + (r"(?!\d)" if after and piece[-1:].isdigit() else "")
        else:
            text += re.escape(piece)
    return re.compile(text)


def _pieces(template: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parts of a path, each with whether it is text as written, filled in, or left open."""
    for literal, name, spec, _ in Formatter().parse(template):
        for part in re.split(r"(\*+)", literal):
            if part:
                yield part, "open" if part.startswith("*") else "text"
        if name == "l0":
            yield "{l0}", "open"
        elif name is not None:
            yield format(values[name], spec or ""), "filled"


def _after_l0(place: str) -> str | None:
    match = re.search(rf"l0_({_L0})(?![a-z])", place)
    return match and match[1]


def _candidates(source: str, path: str, revision: str | None) -> set[str]:
    root = local_root(source)
    if root is not None:
        pattern = "*".join(glob.escape(part) for part in _FREE.split(path))
        return {place.relative_to(root).as_posix() for place in root.glob(pattern)}
    depth = len(PurePosixPath(path).parts)
    parts = (PurePosixPath(file).parts for file in _hub_files(source, revision))
    return {"/".join(names[:depth]) for names in parts if len(names) >= depth}


@lru_cache(maxsize=16)
def _hub_files(source: str, revision: str | None) -> tuple[str, ...]:
    """Every file of a hub repository; asked once in a process."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return tuple(HfApi().list_repo_files(source, revision=revision))
    except OfflineModeIsEnabled as error:
        # Whoever switched the hub off means what the cache holds.
        try:
            root = snapshot_download(source, revision=revision, local_files_only=True)
        except Exception:
            raise unreachable(source, error) from error
        files = (place for place in Path(root).rglob("*") if place.is_file())
        return tuple(place.relative_to(root).as_posix() for place in files)
    except Exception as error:  # the hub's client raises its transport's errors as they come
        raise unreachable(source, error) from error
