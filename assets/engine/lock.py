"""One run at a time works on a stage of an experiment; another waits and says for whom.

A lock is held by the operating system and ends with its process, however that ends. Where artifacts
lie elsewhere, copies on other machines are kept out by an object that names the copy at work. Its
holder renews it; one that was not renewed for `LEASE` seconds is of a process that is gone. Locks
save work from being done twice: tables are written whole, with or without them.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from assets.engine.remote import Remote, remote_of
from assets.settings import ExperimentError

LEASE = 60.0
"""Seconds that a lock among copies lasts without being renewed; clocks may differ by less."""

_LOOK_EVERY = 0.2
_LOOK_ELSEWHERE_EVERY = 2.0


@contextmanager
def alone(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only run that works on `name`; waits while another does.

    Args:
        folder: of the experiment; locks lie in ``.locks`` below it.
        name: the stage.
        say: told who is waited for.
    """
    remote = remote_of(folder)
    among = nullcontext() if remote is None else _alone_among_copies(remote, name, say)
    with _alone_here(folder, name, say), among:
        yield


@contextmanager
def _alone_here(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    path = folder / ".locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        waited = False
        while not _taken(file.fileno()):
            if not waited:
                file.seek(0)
                say(f"{name}: waiting for another run to end: {file.read().strip() or 'unknown'}")
                waited = True
            time.sleep(_LOOK_EVERY)
        file.truncate(0)
        file.write(f"{_this_run()}\n")
        file.flush()
        yield


def _this_run() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}"


@contextmanager
def _alone_among_copies(remote: Remote, name: str, say: Callable[[str], None]) -> Iterator[None]:
    lease, ended = _Lease(remote, name), Event()
    lease.take(say)
    renewing = Thread(target=lease.renew, args=(ended,), daemon=True)
    renewing.start()
    try:
        remote.look_again()  # at what the others wrote meanwhile
        yield
    finally:
        ended.set()
        renewing.join()
        lease.give_back()


class _Lease:
    """The object that keeps other copies from working on `name`."""

    def __init__(self, remote: Remote, name: str) -> None:
        self._remote, self._name, self._place = remote, name, f".locks/{name}"
        self._holder = {"copy": _name_of_copy(remote.folder), "run": _this_run()}

    def _write(self, *, new: bool = False) -> bool:
        note = {**self._holder, "renewed": time.time()}
        return self._remote.write(self._place, json.dumps(note).encode(), new=new)

    def _is_ours(self) -> bool:
        held = _held(self._remote, self._place)
        return held is not None and held["copy"] == self._holder["copy"]

    def take(self, say: Callable[[str], None]) -> None:
        """Wait until it is ours: nobody's, a dead process's of this copy, or a lapsed one."""
        waited = False
        while not self._write(new=True):
            held = _held(self._remote, self._place)
            if held is not None and (self._is_ours() or not _lasts(held)):
                self._write()
            elif held is not None and not waited:
                say(f"{self._name}: waiting for another run to end: {held['run']}")
                waited = True
            time.sleep(_LOOK_ELSEWHERE_EVERY)
            if self._is_ours():  # and not another copy's, which took it over at the same time
                return

    def renew(self, ended: Event) -> None:
        """Renew it now and then until `ended`."""
        while not ended.wait(LEASE / 4):
            with suppress(ExperimentError):  # out of reach for a while: the work may go on
                if self._is_ours():
                    self._write()

    def give_back(self) -> None:
        """Let others have it; it lapses by itself where that cannot be told."""
        with suppress(ExperimentError):
            if self._is_ours():
                self._remote.remove(self._place)


def _held(remote: Remote, place: str) -> dict[str, Any] | None:
    """Who holds a lock among copies; None where nobody does.

    What is no such note, as the lock of a folder that was moved there, is nobody's for good.
    """
    content = remote.read([place]).get(place)
    nobody = {"copy": "", "run": "unknown", "renewed": 0.0}
    try:
        return None if content is None else nobody | json.loads(content)
    except (ValueError, TypeError):
        return nobody


def _lasts(held: dict[str, Any]) -> bool:
    return time.time() - held["renewed"] < LEASE


def _name_of_copy(folder: Path) -> str:
    """A name that no other copy has, on whatever machine."""
    path = folder / ".copy"
    if not path.exists():
        fresh = folder / f".copy-{uuid.uuid4().hex}"
        fresh.write_text(fresh.name, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text(encoding="utf-8")


def is_taken(folder: Path, name: str) -> bool:
    """Whether somebody works on `name` now."""
    remote, path = remote_of(folder), folder / ".locks" / name
    if remote is not None:
        held = _held(remote, f".locks/{name}")
        return held is not None and _lasts(held)
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:  # shared, so that reading rights are enough
        return not _taken(file.fileno(), fcntl.LOCK_SH)


def _taken(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
