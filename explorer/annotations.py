"""What people say of features: one JSON object a line, appended and never changed.

The file lies beside the experiment's (`Experiment.annotations`; its keys are in docs/features.md).
Each line is written at once under a lock, so that two people lose nothing of each other's. Besides
descriptions and ratings the file holds groups of alike features that are drawn as one node:

    {"circuit": "clusters/k00003", "group": ["mlp_2/901", "mlp_2/734"], "together": true, ...}
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assets.settings import ExperimentError

LONGEST = 4000
"""Characters of a description."""


class NotSaved(ExperimentError):
    """An annotation could not be written; nothing of it is in the file."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What one person says of one feature or neuron.

    Attributes:
        submodule, feature, basis: which.
        weights: hash of the dictionary it was said of; None for neurons.
        text: a description; may be empty.
        interpretability, complexity: 0 to 100 (App. D), or None.
        relevant: whether it bears on the task of `circuit`, for SHIFT; None where not said.
        by, at: who, and when.
        circuit: the circuit whose features were gone through, ``tasks/simple``.
        chosen: why it was among them: circuits or random.
        blind: its name was hidden.
    """

    submodule: str
    feature: int
    basis: str = "features"
    weights: str | None = None
    text: str = ""
    interpretability: float | None = None
    complexity: float | None = None
    relevant: bool | None = None
    by: str = ""
    at: str = ""
    circuit: str | None = None
    chosen: str | None = None
    blind: bool = False

    @property
    def name(self) -> str:
        """``mlp_2/901``."""
        return f"{self.submodule}/{self.feature}"


def now() -> str:
    """The time, as annotations say it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class AnnotationFile:
    """One experiment's annotations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[object, list[dict[str, Any]], int] | None = None

    def save(self, annotation: Annotation) -> None:
        """Append an annotation; raises `NotSaved`."""
        self.append(asdict(annotation))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one line, whole or not at all.

        Raises:
            NotSaved: the file cannot be written.
        """
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file).st_size
                # What someone else left without an end of line must not run into this one.
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line
                n_written = os.write(file, line)
                if n_written != len(line):
                    os.ftruncate(file, size)
                    raise OSError(None, "there is no room left")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise NotSaved(
                f"nothing was saved: {self.path} cannot be written "
                f"({error.strerror or error}). Make room or change its rights, and save again."
            ) from None

    def rows(self) -> list[dict[str, Any]]:
        """Every line that is a JSON object, oldest first."""
        return self._current()[1]

    @property
    def n_irregular(self) -> int:
        """Lines that are not."""
        return self._current()[2]

    @property
    def problem(self) -> str:
        """Why the file cannot be read; empty where it can be, or is not there yet."""
        try:
            self.path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self.path} cannot be read ({error.strerror}): its annotations are not shown."
        return ""

    def _current(self) -> tuple[object, list[dict[str, Any]], int]:
        try:
            status = self.path.stat()
            stamp = status.st_mtime_ns, status.st_size
            if self._read is not None and self._read[0] == stamp:
                return self._read
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return None, [], 0
        rows, n_irregular = [], 0
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif line.strip():
                n_irregular += 1
        self._read = stamp, rows, n_irregular
        return self._read

    def annotations(self) -> list[Annotation]:
        """The last that each person said of each feature, oldest first."""
        last: dict[tuple[object, ...], Annotation] = {}
        for one in self._annotations():
            place = one.basis, one.submodule, one.feature, one.by
            last.pop(place, None)
            last[place] = one
        return list(last.values())

    def _annotations(self) -> Iterator[Annotation]:
        for row in self.rows():
            known = {key: row[key] for key in Annotation.__dataclass_fields__ if key in row}
            sound = isinstance(row.get("submodule"), str) and isinstance(row.get("feature"), int)
            if sound and all(_of_its_type(key, value) for key, value in known.items()):
                yield Annotation(**known)

    def groups(self, circuit: str) -> list[tuple[str, ...]]:
        """The groups of features kept for a circuit, each by its members."""
        groups: list[tuple[str, ...]] = []
        for row in self.rows():
            members = row.get("group")
            if row.get("circuit") != circuit or not isinstance(members, list):
                continue
            # A feature is in one group at a time: in that of the last word said.
            taken = {str(member) for member in members}
            groups = [group for group in groups if not taken & set(group)]
            if row.get("together"):
                groups.append(tuple(sorted(taken)))
        return [group for group in groups if len(group) > 1]


_TYPES: Mapping[str, tuple[type, ...]] = {
    "submodule": (str,),
    "feature": (int,),
    "interpretability": (int, float, type(None)),
    "complexity": (int, float, type(None)),
    "relevant": (bool, type(None)),
    "blind": (bool,),
    "text": (str,),
    "basis": (str,),
    "by": (str,),
    "at": (str,),
}


def _of_its_type(key: str, value: object) -> bool:
    return isinstance(value, _TYPES.get(key, (str, type(None))))
