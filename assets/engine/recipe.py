"""What a table is made from: the settings its stage declares, its inputs, and the code that runs.

A stage's settings are one frozen value. What counts of it is written out by `plain`; a `Source` in
it, something outside the artifacts folder, counts by its contents and not by where it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LAYOUT = 2
"""Raised when tables move or footers change their meaning; older folders are then not read."""


def digest(value: object) -> str:
    """SHA-256 of a plain value, whatever the order of its keys, as 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@lru_cache(maxsize=512)
def _file_hash(path: Path, _size: int, _changed: int) -> str:
    return hash_file(path)


def hash_place(source: str) -> str:
    """Hash of the contents of a file, or of the files directly in a folder.

    An id of the hub stands for itself, and nothing for a path that leads nowhere.

    A file is read once in a process as long as its size and time of change stay.
    """
    place = Path(source)
    if place.is_dir():
        files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        return digest([(p.name, hash_place(str(p))) for p in files])
    if not place.is_file():
        return "" if place.is_absolute() else source
    status = place.stat()
    return _file_hash(place, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Source:
    """A file, a folder or a hub id outside the artifacts folder.

    Attributes:
        written: as the experiment's file says.
        place: absolute path, or the hub id.
        whole: all that lies there counts; else the stage's inputs say what does.
    """

    written: str
    place: str
    whole: bool = True

    @property
    def content(self) -> str:
        """Hash of what lies there; the id itself for the hub."""
        return hash_place(self.place)


def aside(default: Any) -> Any:
    """A field of a settings value that changes how the work is done and nothing that comes out."""
    return field(default=default, metadata={"aside": True})


def _named(value: Any) -> dict[str, Any]:
    """The fields of a settings value that count."""
    return {f.name: getattr(value, f.name) for f in fields(value) if not f.metadata.get("aside")}


def plain(value: Any) -> Any:
    """A settings value as JSON holds it; a `Source` is left out, `sources` lists it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__, **plain(_named(value))}
    if isinstance(value, BaseModel):
        return plain({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not isinstance(v, Source)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value if not isinstance(item, Source)]
    return value


def sources(value: Any, name: str = "") -> Iterator[tuple[str, Source]]:
    """Every `Source` in a settings value, with the path of names that leads to it."""
    if isinstance(value, Source):
        yield name, value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from sources(_named(value), name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from sources(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from sources(item, f"{name}[{i}]")


@dataclass(frozen=True)
class Recipe:
    """What a table is made from: together these decide its contents.

    Attributes:
        stage: the asset that makes it.
        inputs: hash of the contents of each input, by name: tables, sources, the model.
        settings: the stage's settings value, `plain`.
        code: digest of the code that makes it, see `assets.engine.code`.
    """

    stage: str
    inputs: Mapping[str, str]
    settings: Any
    code: str

    def plain(self) -> dict[str, Any]:
        """What it says, as JSON holds it."""
        inputs = {name: str(value) for name, value in self.inputs.items()}
        return {
            "stage": self.stage,
            "inputs": inputs,
            "settings": self.settings,
            "code": self.code,
        }

    @property
    def fingerprint(self) -> str:
        """The same for the same inputs, settings and code."""
        return digest([LAYOUT, self.stage, dict(self.inputs), self.settings, self.code])
