"""What was read from a file is read again when, and only when, the file has changed."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from assets.engine import remembered
from assets.engine.remembered import FILE, Remembered


class Reading:
    """Reads a text file, and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.file, self.n = folder / "a.txt", 0

    def __call__(self) -> list[str]:
        self.n += 1
        return self.file.read_text().split()

    def of(self, kept: Remembered) -> list[str]:
        return kept.of("a.txt", "words", self)


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """A file of two words, in a folder that has been worked in; no wait until times tell."""
    monkeypatch.setattr(remembered, "_SETTLED_NS", -1)
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / "a.txt").write_text("one two")
    return Reading(tmp_path)


def test_another_process_need_not_read_again(reading: Reading, tmp_path: Path) -> None:
    assert reading.of(Remembered(tmp_path)) == ["one", "two"]
    assert reading.of(Remembered(tmp_path)) == ["one", "two"]
    assert reading.n == 1


def test_other_bytes_of_the_same_length_and_time_are_read_again(
    reading: Reading, tmp_path: Path
) -> None:
    kept = Remembered(tmp_path)
    reading.of(kept)
    before = reading.file.stat()
    reading.file.write_text("one six")
    os.utime(reading.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reading.of(kept) == ["one", "six"]


def test_a_file_just_written_is_not_remembered(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_SETTLED_NS", 10**12)
    kept = Remembered(tmp_path)
    assert reading.of(kept) == reading.of(kept)
    assert reading.n == 2


def test_a_row_that_was_tampered_with_is_not_believed(reading: Reading, tmp_path: Path) -> None:
    reading.of(Remembered(tmp_path))
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("""UPDATE remembered SET value = '["three"]'""")
    assert reading.of(Remembered(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("damage", [b"no database", b""], ids=["garbage", "empty"])
def test_without_a_whole_database_files_are_read(
    reading: Reading, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / FILE).write_bytes(damage)
    assert reading.of(Remembered(tmp_path)) == ["one", "two"]


def test_a_folder_that_nobody_worked_in_gets_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert Reading(tmp_path).of(Remembered(tmp_path)) == ["one"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
