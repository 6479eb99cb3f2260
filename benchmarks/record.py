"""Dated rows of benchmarks/README.md: what ran, on which commit, on which machine."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
    """Add a row to the table with its columns under ``## section``, making what is missing."""
    lines = README.read_text().splitlines() if README.exists() else ["# Benchmarks", ""]
    heading = f"## {section}"
    cells = "| " + " | ".join(row.values()) + " |"
    header = ["| " + " | ".join(row) + " |", "|" + " --- |" * len(row)]
    if heading not in lines:
        lines += ["", heading]
    start = lines.index(heading)
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    if header[0] in lines[start:end]:
        at = lines.index(header[0], start)
        while at < end and lines[at].startswith("|"):
            at += 1
        lines.insert(at, cells)
    else:
        while not lines[end - 1]:
            end -= 1
        lines[end:end] = ["", *header, cells]
    README.write_text("\n".join(lines) + "\n")


def synchronise(device: str | torch.device) -> None:
    """Wait for what a GPU still has to do; the CPU is never behind."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: str | torch.device) -> float:
    """Most memory so far: of the GPU since `restart_peak`, or of this process."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def restart_peak(device: str | torch.device) -> float:
    """What `peak_gib` counts from: on a GPU what is held now, of a process its most so far."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return peak_gib(device)
