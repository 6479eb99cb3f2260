"""What was read from files, kept for the next process: thousands of footers are not read again.

A plan asks every table what it was made from, and checks ask every circuit for a few figures. Both
are kept in one SQLite file, each with the state that its file was in (inode, size, times). A file
in another state is read again, so nothing here decides anything: without this file, or where it is
damaged or cannot be written, everything is read as it lies.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from assets.engine.recipe import digest

FILE = f".locks/remembered-{socket.gethostname()}"
"""Of each machine its own: several must not share SQLite's files, nor have they the same inodes."""
_SETTLED_NS = 50_000_000
"""A file changed more lately than this could change again without its times telling."""
_TABLE = """CREATE TABLE IF NOT EXISTS remembered
    (file TEXT, what TEXT, state TEXT, value TEXT, seal TEXT, PRIMARY KEY (file, what))
    WITHOUT ROWID"""


class Remembered:
    """What is known of the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._file = folder / FILE
        self._lock = Lock()
        self._opened: tuple[int, sqlite3.Connection | None] = (0, None)

    def of(self, file: str, what: str, read: Callable[[], Any]) -> Any:
        """`read()`, or what it gave when the file was as it is now.

        Args:
            file: its path below the folder.
            what: which of the things that are known of it.
            read: gives a plain JSON value of what lies in the file; what it raises is not kept.
        """
        state = _state(f"{self._folder}/{file}")
        if state is None:
            return read()
        with self._lock:
            found = self._found(file, what, state)
        if found is not None:
            return json.loads(found)
        value = read()
        if state == _state(f"{self._folder}/{file}"):
            with self._lock:
                self._keep(file, what, state, json.dumps(value))
        return value

    def _connection(self) -> sqlite3.Connection | None:
        """Of this process: one that was forked must not go on with its parent's."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> sqlite3.Connection | None:
        if not self._file.parent.is_dir():  # nothing was ever made here
            return None
        with suppress(sqlite3.Error):
            opened = sqlite3.connect(
                self._file, timeout=5, isolation_level=None, check_same_thread=False
            )
            # Rows that a crash leaves half-written are found by their seals.
            opened.execute("PRAGMA journal_mode=WAL")
            opened.execute("PRAGMA synchronous=OFF")
            opened.execute(_TABLE)
            return opened
        return None

    def _found(self, file: str, what: str, state: str) -> str | None:
        connection = self._connection()
        if connection is None:
            return None
        with suppress(sqlite3.Error):
            query = "SELECT state, value, seal FROM remembered WHERE file = ? AND what = ?"
            row = connection.execute(query, (file, what)).fetchone()
            if row and row[0] == state and row[2] == digest([file, what, *row[:2]]):
                return row[1]
        return None

    def _keep(self, file: str, what: str, state: str, value: str) -> None:
        connection = self._connection()
        if connection is not None:
            row = (file, what, state, value, digest([file, what, state, value]))
            with suppress(sqlite3.Error):
                connection.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?, ?, ?, ?)", row)


def _state(file: str) -> str | None:
    """What changes whenever the file does; None where that cannot be told, or there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    if time.time_ns() - found.st_ctime_ns < _SETTLED_NS:
        return None
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


@lru_cache(maxsize=8)
def remembered_of(folder: Path) -> Remembered:
    """What is known of a folder, by this process."""
    return Remembered(folder)
