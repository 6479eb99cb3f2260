"""One run at a time works on a stage of an experiment; another waits and says for whom.

A lock is held by the operating system and ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_EVERY = 0.2


@contextmanager
def alone(folder: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Be the only run that works on `name`; waits while another does.

    Args:
        folder: of the experiment; locks lie in ``.locks`` below it.
        name: the stage.
        say: told who is waited for.
    """
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
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n")
        file.flush()
        yield


def is_taken(folder: Path, name: str) -> bool:
    """Whether somebody works on `name` now."""
    path = folder / ".locks" / name
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
