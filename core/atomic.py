"""Files that are either whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import OutOfBudget


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, put in its place at the end.

    The file takes its name only when its bytes are on the disk; on an error it is removed. A
    killed process leaves a hidden ``.NAME.PID.tmp``, which `sweep` removes.

    Raises:
        OutOfBudget: the disk is full; what was at `path` before is still there.
    """
    try:
        with _replacing(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfBudget(
            f"there is no room left to write '{path}' ({error.strerror or error}): nothing of it "
            "was kept, and what was finished before is whole. Make room and run again; the work "
            "goes on from there."
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed writers left in `folder`, or only of the file called `name` there.

    Nobody else may be writing at the time: in the folder, or that file.
    """
    for file in folder.rglob(f".{name}*.tmp"):
        file.unlink(missing_ok=True)
