"""An artifacts folder at an address, ``s3://bucket/prefix``, worked on in a copy of it here.

Stages read and write files of a local folder, the copy. What is read is fetched into it first,
where the copy is not in step; what was written is put back whole, files before the table that tells
of them. So nothing half-written counts at the address, whenever a process is killed, and a copy
can be removed at any time.

A file in step has the time of its object, to the second; its nanoseconds are a digest of the
object's version. Names are relative to the address and to the copy.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import RLock
from typing import IO, Any, NamedTuple

import pyarrow as pa

from assets.engine.code import ROOT
from assets.settings import ExperimentError

COPIES = ROOT / "artifacts" / ".copies"
"""Where copies lie: SCHEME/BUCKET/PREFIX."""

_SMALL = 1 << 20
"""Larger objects are fetched for their values alone; a footer is read at the address."""
_AT_ONCE = 256
_REST, _SHARE = 1.0, 20
"""What is there is looked up again after a second, or twenty times what the last look took."""

_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs"}
"""Extras of this project by the package that they bring."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_NO_CREDENTIALS = ("Credential", "ProfileNotFound", "GoogleAuthError", "RefreshError")
"""Parts of the names of what clients raise where credentials are missing."""


class Version(NamedTuple):
    """Which version of an object there is.

    Attributes:
        n_bytes: its size.
        time: when it was written, in nanoseconds; below the second a digest of the version.
    """

    n_bytes: int
    time: int


def copy_of(address: str) -> Path:
    """The folder that an address is worked on in.

    Raises:
        ExperimentError: the address is of no known kind, or the package that reaches it is missing.
    """
    from fsspec.registry import known_implementations

    scheme, _, rest = address.partition("://")
    if scheme not in known_implementations:
        raise ExperimentError(
            f"nothing is known to reach {scheme}:// with: give a folder, s3://BUCKET/PREFIX or "
            "gs://BUCKET/PREFIX."
        )
    package = known_implementations[scheme]["class"].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        extra = _EXTRAS.get(package)
        how = f"this project with the extra '{extra}' (pip install -e .[{extra}])"
        raise ExperimentError(
            f"{address} needs the package {package}, which is not installed: install "
            f"{how if extra else package}, or give a folder."
        )
    return COPIES.joinpath(scheme, *filter(None, rest.split("/")))


@cache
def remote_of(folder: Path) -> Remote | None:
    """What a folder is the copy of; None for one that stands for itself."""
    if not folder.is_relative_to(COPIES):
        return None
    scheme, *rest = folder.relative_to(COPIES).parts
    return Remote(f"{scheme}://{'/'.join(rest)}", folder)


class Remote:
    """Objects at an address, and the copy of them.

    Whatever cannot be done is told as an `ExperimentError` that says why and what to do.

    Args:
        address: such as ``s3://bucket/prefix``.
        folder: of the copy.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self._objects: dict[str, Version] = {}
        self._look_at, self._written = 0.0, False
        self._lock = RLock()

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system, and the root there; in a forked process one of its own."""
        from fsspec.core import url_to_fs

        try:
            yield url_to_fs(self.address, use_listings_cache=False)
        except pa.ArrowException:  # of what was read, not of reading it
            raise
        except Exception as error:  # clients raise whatever they like
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._told(error) from error

    def _told(self, error: Exception) -> ExperimentError:
        scheme, name = self.address.partition("://")[0], type(error).__name__
        kept = "Nothing half-written counts; running again goes on from what is whole."
        if any(part in name for part in _NO_CREDENTIALS):
            where = _CREDENTIALS.get(scheme, "those that its client reads")
            why = f"there are no credentials for it ({error}). Set {where}."
        elif isinstance(error, PermissionError):
            why = (
                f"it refuses these credentials ({error}). They need the rights to list, read, "
                "write and delete below that prefix."
            )
        elif isinstance(error, FileNotFoundError):
            why = f"it is not there ({error}). Make the bucket first, or correct artifacts:. {kept}"
        else:
            why = f"it cannot be reached ({name}: {error}). {kept}"
        return ExperimentError(f"artifacts at {self.address}: {why}")

    def check_writable(self) -> None:
        """Write something and remove it, unless this process wrote there before."""
        if not self._written:
            probe = f".probe-{uuid.uuid4().hex}"
            self.write(probe, b"probe")
            self.remove(probe)

    # -- what there is --

    def objects(self, *, now: bool = False) -> Mapping[str, Version]:
        """What there is; as it was a short time ago, unless it must be now."""
        with self._lock:
            began = time.monotonic()
            if now or began >= self._look_at:
                with self._reached() as (fs, root):
                    found = fs.find(root, detail=True)
                names = {path: path[len(root) :].lstrip("/") for path in found}
                self._objects = {names[path]: _version(info) for path, info in found.items()}
                ended = time.monotonic()
                self._look_at = ended + max(_REST, _SHARE * (ended - began))
            return self._objects

    def _in_step(self, name: str, version: Version) -> bool:
        """Whether the copy has this version, or a later one that is about to be put."""
        try:
            status = os.stat(self.folder / name)
        except OSError:
            return False
        same = (status.st_size, status.st_mtime_ns) == version
        return same or status.st_mtime_ns // 10**9 > version.time // 10**9

    # -- here and there --

    def fetch(self, names: Sequence[str], *, small: bool = False) -> None:
        """Bring the copies of these objects in step, as far as there are such objects.

        Args:
            small: only those that are fetched for their footers already.
        """
        from core.atomic import replacing

        with self._lock:
            objects = self.objects()
            there = {name: objects[name] for name in names if name in objects}
            late = [
                name
                for name, version in there.items()
                if not (small and version.n_bytes > _SMALL) and not self._in_step(name, version)
            ]
            for i in range(0, len(late), _AT_ONCE):
                block = late[i : i + _AT_ONCE]
                with ExitStack() as stack:
                    files = [stack.enter_context(replacing(self.folder / name)) for name in block]
                    with self._reached() as (fs, root):
                        fs.get([f"{root}/{name}" for name in block], list(map(str, files)))
                    for name, file in zip(block, files, strict=True):
                        _mark(file, there[name])

    def fetch_below(self, folder: str) -> None:
        """Bring everything below a folder in step."""
        self.fetch([name for name in self.objects() if name.startswith(f"{folder}/")])

    @contextmanager
    def opened(self, name: str) -> Iterator[Path | IO[bytes]]:
        """An object to read the end of: its copy, or where it is large the object itself.

        Raises:
            FileNotFoundError: there is none.
        """
        version = self.objects().get(name)
        if version is None:
            raise FileNotFoundError(f"{self.address}/{name}")
        if version.n_bytes > _SMALL and not self._in_step(name, version):
            with self._reached() as (fs, root), fs.open(f"{root}/{name}", "rb") as file:
                yield file
        else:
            self.fetch([name])
            yield self.folder / name

    def put(self, file: Path, name: str | None = None) -> None:
        """Put a file at the address whole, unless that version is there; then they are in step.

        Args:
            file: of the copy, or one that takes the place `name` there later.
            name: where it goes; where it lies in the copy if not given.
        """
        name = name or file.relative_to(self.folder).as_posix()
        with self._lock:
            status = file.stat()
            if self._objects.get(name) == (status.st_size, status.st_mtime_ns):
                return
            with self._reached() as (fs, root):
                fs.put_file(str(file), f"{root}/{name}")
                version = _version(fs.info(f"{root}/{name}"))
            _mark(file, version)
            self._objects[name] = version

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._lock, self._reached() as (fs, root):
            self._objects.pop(name, None)
            try:
                fs.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    # -- small objects without a copy --

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of those of these objects that are there."""
        with self._reached() as (fs, root):
            paths = [f"{root}/{name}" for name in names]
            found = fs.cat_ranges(paths, None, None, on_error="return")
            contents = dict(zip(names, found, strict=True))
            for content in found:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {name: content for name, content in contents.items() if isinstance(content, bytes)}

    def write(self, name: str, content: bytes, *, new: bool = False) -> bool:
        """Write an object whole; whether that was done.

        Args:
            new: only if there is none, which the store decides for all who ask at once.
        """
        with self._reached() as (fs, root):
            try:
                fs.pipe_file(f"{root}/{name}", content, mode="create" if new else "overwrite")
            except Exception:  # each store says in its own way that there is one
                if new and fs.exists(f"{root}/{name}"):
                    return False
                raise
        self._written = True
        return True


def _mark(file: Path, version: Version) -> None:
    """Note on a file of the copy which version it is."""
    os.utime(file, ns=(version.time, version.time))


def _version(info: Mapping[str, Any]) -> Version:
    """The version that a file system's entry is of."""
    named = ("ETag", "etag", "generation", "ino", "created", "size")
    told = repr([str(info.get(name)) for name in named]).encode()
    below = int.from_bytes(hashlib.sha256(told).digest()[:8], "big") % 10**9
    return Version(int(info["size"]), _seconds(info) * 10**9 + below)


def _seconds(info: Mapping[str, Any]) -> int:
    named = ("LastModified", "last_modified", "updated", "mtime", "created")
    when = next((info[name] for name in named if info.get(name)), 0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return int(when.timestamp() if isinstance(when, datetime) else when)
