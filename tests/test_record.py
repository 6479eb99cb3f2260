"""Rows of benchmarks stand under the head that has their columns."""

from pathlib import Path

import pytest

from benchmarks import record


def test_a_row_goes_under_its_own_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    monkeypatch.setattr(record, "README", page)
    record.append_row("one", {"a": "1", "b": "2"})
    page.write_text(page.read_text() + "\n| read | by hand |\n| --- | --- |\n| x | y |\n\n## two\n")
    record.append_row("one", {"a": "3", "b": "4"})
    record.append_row("one", {"a": "5", "b": "6", "c": "7"})
    record.append_row("two", {"a": "8"})
    assert page.read_text() == (
        "# Benchmarks\n\n\n## one\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\n"
        "| read | by hand |\n| --- | --- |\n| x | y |\n\n"
        "| a | b | c |\n| --- | --- | --- |\n| 5 | 6 | 7 |\n\n"
        "## two\n\n| a |\n| --- |\n| 8 |\n"
    )
