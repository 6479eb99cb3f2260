"""Dated rows of benchmarks/README.md: what ran, on which commit, on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

README = Path(__file__).parent / "README.md"


def machine() -> dict[str, str]:
    """Date, commit and machine of this run."""
    import torch

    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or "unknown",
        "machine": f"{name}, {os.cpu_count()} cores",
    }


def append_row(section: str, row: dict[str, str]) -> None:
    """Add a row to the table under ``## section``, making both where they are missing."""
    lines = README.read_text().splitlines() if README.exists() else ["# Benchmarks", ""]
    heading = f"## {section}"
    cells = "| " + " | ".join(row.values()) + " |"
    header = ["| " + " | ".join(row) + " |", "|" + " --- |" * len(row)]
    if heading not in lines:
        lines += ["", heading, "", *header, cells]
    else:
        start = lines.index(heading)
        ends = [i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")]
        end = ends[0] if ends else len(lines)
        table = [i for i in range(start, end) if lines[i].startswith("|")]
        if table:
            lines.insert(table[-1] + 1, cells)
        else:
            lines[end:end] = ["", *header, cells]
    README.write_text("\n".join(lines) + "\n")
