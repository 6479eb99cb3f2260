"""Files that are either whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, put in its place at the end.

    The file takes its name only when its bytes are on the disk; on an error it is removed. A
    killed process leaves a hidden ``.NAME.PID.tmp``, which `sweep` removes.
    """
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
