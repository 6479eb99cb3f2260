"""What was made, when and with what: a line in ``lineage.jsonl`` for each table that is written.

A table's footer holds nothing but its recipe, so that it has the same bytes whenever and wherever
it is made. What differs from one making to the next, and which makings its inputs are of, is here.
Lines are only ever added: what a table was made from is known after its inputs were made again. A
line carries a digest of itself, by which later ones name it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from assets.engine.code import ROOT
from assets.engine.recipe import digest
from assets.engine.remote import remote_of
from assets.settings import Experiment

FILE = "lineage.jsonl"
_OBJECTS = ".lineage/"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "pyarrow", "dagster")
"""Whose versions are recorded."""

Record = Mapping[str, Any]


class Origin(NamedTuple):
    """A table as it was when something was made from it."""

    path: str
    content: str
    fingerprint: str


def _record_of(line: bytes) -> tuple[str, Record] | None:
    """A record and its digest; None where they are not as they were written."""
    try:
        record = json.loads(line)
        name = record.pop("id")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return (name, record) if name == digest(record) else None


class Lineage:
    """The records of one artifacts folder.

    Of a folder that lies elsewhere each record is an object of its own there, ``.lineage/ID.json``:
    nothing can be added to an object. The file of the copy then holds those it has seen. A file
    there is of a folder that was moved, and read as well.

    Attributes:
        file: where they lie.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / FILE
        self._remote = remote_of(root)
        self._looked_at: object = None
        self._fetched: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._damaged: list[int] = []
        self._of_id: dict[str, Record] = {}
        self._last: dict[tuple[str, str], str] = {}
        self._texts: dict[str, str] = {}
        self._n_lines, self._end, self._inode = 0, 0, 0

    def _read(self) -> None:
        """What was added since the last look, here and elsewhere."""
        self._read_file()
        if self._remote is not None and self._looked_at is not (there := self._remote.objects()):
            self._looked_at = there
            names = {n for n in there if n == FILE or n.startswith(_OBJECTS)} - self._fetched
            new = sorted(
                (n for n in names if Path(n).stem not in self._of_id), key=lambda n: there[n].time
            )
            self._fetched |= names
            for name, lines in (self._remote.read(new) if new else {}).items():
                if new_lines := self._unknown(lines) if name == FILE else lines:
                    self._append(new_lines)
            self._read_file()

    def _unknown(self, lines: bytes) -> bytes:
        """Those of these lines that hold a record which was not read yet."""
        read = ((line, _record_of(line)) for line in lines.splitlines())
        new = (line for line, of in read if of is not None and of[0] not in self._of_id)
        return b"".join(line + b"\n" for line in new)

    def _read_file(self) -> None:
        try:
            status = self.file.stat()
        except OSError:
            self._forget()
            return
        if status.st_ino != self._inode or status.st_size < self._end:
            self._forget()
            self._inode = status.st_ino
        if status.st_size == self._end:
            return
        with self.file.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # still being written, or its writer was killed
                    break
                self._n_lines += 1
                self._end += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        found = _record_of(line)
        if found is None:
            self._damaged.append(self._n_lines)
            return
        name, record = found
        self._of_id[name] = record
        if "text" in record:
            self._texts[record["file"]] = record["text"]
        for path in record.get("tables", ()):
            self._last[path, record["fingerprint"]] = name

    def check(self) -> list[int]:
        """Read everything anew; numbers of the lines, from 1, that are not as they were written."""
        self._forget()
        self._read()
        unfinished = self.file.is_file() and self.file.stat().st_size > self._end
        return [*self._damaged, *([self._n_lines + 1] if unfinished else [])]

    def get(self, name: str | None) -> Record | None:
        """The record with this digest; None where it is damaged or gone."""
        if name not in self._of_id:
            self._read()
        return self._of_id.get(name or "")

    def name(self, path: str, fingerprint: str) -> str | None:
        """Digest of the record of the last making of a table by a recipe; None if there is none."""
        self._read()
        return self._last.get((path, fingerprint))

    def add(self, record: Record) -> str:
        """Add a record whole; its digest."""
        plain = json.loads(json.dumps(record, default=str))
        name = digest(plain)
        line = json.dumps({"id": name, **plain}, separators=(",", ":")).encode() + b"\n"
        self._append(line)
        if self._remote is not None:
            self._remote.write(f"{_OBJECTS}{name}.json", line)
        return name

    def _append(self, line: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line  # a writer was killed
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def add_table(self, record: Record, inputs: Mapping[str, Sequence[Origin]]) -> str:
        """Add the record of a table, with the records of what it was made from; its digest.

        Args:
            record: ``path``, ``content`` and recipe of the table; ``tables``, the contents of all
                that were written with it by their paths; ``made``.
            inputs: tables behind each input.
        """
        origins = {
            name: [[o.path, o.content, self.name(o.path, o.fingerprint)] for o in every]
            for name, every in inputs.items()
            if every
        }
        return self.add({**record, "from": origins})

    def keep_text(self, experiment: Experiment) -> None:
        """Keep the text of the experiment's file by its digest, once, if it still has that."""
        if self.text(file_digest(experiment)) is not None or not experiment.path.is_file():
            return
        content = experiment.path.read_bytes()
        if hashlib.sha256(content).hexdigest() == experiment.digest:
            self.add({"file": file_digest(experiment), "text": content.decode()})

    def text(self, file: str) -> str | None:
        """The text of an experiment's file by its digest; None where it was not kept."""
        self._read()
        return self._texts.get(file)


@lru_cache(maxsize=8)
def lineage_of(root: Path) -> Lineage:
    """The records of an artifacts folder; read once in a process, and then what was added."""
    return Lineage(root)


# -- circumstances ---------------------------------------------------------------------------------


def file_digest(experiment: Experiment) -> str:
    """Digest of the experiment's file as it was read."""
    return experiment.digest[:16]


def circumstances(
    experiment: Experiment, sources: Mapping[str, Any], device: str | None, began: float
) -> Callable[[], dict[str, Any]]:
    """When, where and with what something is made; asked for as it ends.

    Args:
        experiment: whose file says how.
        sources: what the experiment's file says of inputs outside the artifacts folder, by name.
        device: of the model, as the experiment names it; None where no model is loaded.
        began: `time.perf_counter` when the work on it began.
    """

    def ended() -> dict[str, Any]:
        return {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - began, 3),
            "experiment": experiment.name,
            "file": file_digest(experiment),
            "sources": sources,
            **_device(device),
            "with": {**_versions(), "machine": _MACHINE, "project": _commit()},
        }

    return ended


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


_MACHINE = f"{platform.system()} {platform.machine()}"


def _device(device: str | None) -> dict[str, Any]:
    """The device that the model is on, and torch's threads, where torch is at work."""
    torch = sys.modules.get("torch")
    if torch is None or device is None:
        return {}
    from core.models import pick_device

    chosen = pick_device(device)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)
    return {"device": name, "threads": torch.get_num_threads()}


@cache
def _commit() -> str | None:
    """The commit of this checkout, ``-dirty`` where files differ from it; None outside of git."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
