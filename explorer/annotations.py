"""What people say of features: one JSON object a line, appended and never changed.

The file lies beside the experiment's (`Experiment.annotations`; its keys are in docs/features.md).
Each line is written at once under a lock, so that two people lose nothing of each other's. Besides
descriptions and ratings the file holds groups of alike features that are drawn as one node:

    {"circuit": "clusters/k00003", "group": ["mlp_2/59", "resid_2/185"], "together": true, ...}
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assets.features.annotations import Annotation, read_annotations
from assets.settings import ExperimentError


class NotSaved(ExperimentError):
    """An annotation could not be written; nothing of it is in the file."""


def now() -> str:
    """The time, as annotations say it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class _Read:
    """A file as it was when it had this stamp."""

    stamp: object
    latest: list[Annotation]
    groups: list[dict[str, Any]]
    n_left_out: int
    problem: str = ""


_NOTHING = _Read(None, [], [], 0)


class AnnotationFile:
    """One experiment's annotations."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: _Read | None = None

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

    def annotations(self) -> list[Annotation]:
        """What each person said last of each feature, oldest first."""
        return self._current().latest

    @property
    def n_left_out(self) -> int:
        """Lines that cannot be used; they stay in the file."""
        return self._current().n_left_out

    @property
    def problem(self) -> str:
        """Why the file cannot be read; empty where it can be, or is not there yet."""
        return self._current().problem

    def _current(self) -> _Read:
        try:
            status = self.path.stat()
        except OSError:
            return _NOTHING
        stamp = status.st_mtime_ns, status.st_size
        if self._read is None or self._read.stamp != stamp:
            try:
                found = read_annotations(self.path)
                lines = self.path.read_bytes().splitlines()
            except OSError as error:
                told = f"{self.path} cannot be read ({error.strerror}): nothing of it is shown."
                return replace(_NOTHING, problem=told)
            groups = [row for line in lines if (row := _group(line)) is not None]
            self._read = _Read(stamp, found.latest(), groups, len(found.left_out))
        return self._read

    def groups(self, circuit: str) -> list[tuple[str, ...]]:
        """The groups of features kept for a circuit, each by its members."""
        groups: list[tuple[str, ...]] = []
        for row in self._current().groups:
            if row.get("circuit") != circuit:
                continue
            # A feature is in one group at a time: in that of the last word said.
            taken = {str(member) for member in row["group"]}
            groups = [group for group in groups if not taken & set(group)]
            if row.get("together"):
                groups.append(tuple(sorted(taken)))
        return [group for group in groups if len(group) > 1]


def _group(line: bytes) -> dict[str, Any] | None:
    """What a line says of a group; None where it says something else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("group"), list) else None
