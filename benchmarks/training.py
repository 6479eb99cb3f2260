"""How fast do all dictionaries train, against one after the other with autograd?

    python -m benchmarks.training                   # every case
    python -m benchmarks.training --case default    # one case
    python -m benchmarks.training --small           # tiny shapes, seconds
    python -m benchmarks.training --note            # also append dated rows to benchmarks/README.md

default: the test bed's model, all its submodules, 128 -> 1,024; each side reads its activations
from the model itself. wide: sparse mixtures of width 512, 512 -> 4,096. Plain is one dictionary
per pass of the model, one torch.optim.Adam each, autograd through everything. Both sides get the
same rows in the same order and the same initial weights; each runs in a process of its own. cache:
the activation cache against NumPy files of the same bytes on the same disk, synced when written
and not held by the system when read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import append_row, machine, peak_gib, synchronise
from core.training import (
    Learner,
    ModelRows,
    RowSource,
    ShuffledBuffer,
    TrainingSettings,
    rows_within,
    train_dictionaries,
)
from core.training.weights import normalise_rows, remove_parallel

CASES = ("default", "wide", "cache")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mixtures:
    """Rows that are sums of a few of some directions: a `RowSource` without a model."""

    widths: Mapping[str, int]
    n_rows: int
    fingerprint: str = "mixtures"

    @property
    def unit_rows(self) -> list[int]:
        """One unit."""
        return [self.n_rows]

    def load(self, unit: int) -> tuple[dict[str, Tensor], Tensor]:
        """All rows, about 40 of 2 d directions in each."""
        values = {}
        for seed, (name, d) in enumerate(self.widths.items()):
            generator = torch.Generator().manual_seed(seed)
            directions = torch.randn(2 * d, d, generator=generator)
            normalise_rows(directions)
            amount = torch.rand(self.n_rows, 2 * d, generator=generator)
            amount *= torch.rand(self.n_rows, 2 * d, generator=generator) < 20 / d
            values[name] = (amount @ directions).half()
        return values, torch.arange(self.n_rows)


def settings_of(case: str, small: bool) -> TrainingSettings:
    """The experiment's own recipe, cut to the steps that are timed."""
    n_features, n_steps = (4096, 300) if case == "wide" else (1024, 600)
    if small:
        n_features, n_steps = 64, 20
    return TrainingSettings(
        n_features=n_features,
        n_steps=n_steps,
        batch_size=256 if small else 1024,
        learning_rate=2e-3,
        sparsity=0.13,
        warmup_steps=n_steps // 10,
        sparsity_warmup_steps=n_steps // 10,
        decay_steps=0,
        resample_every=0,
        buffer_bytes=4 << 30,
    )


def sources_of(case: str, small: bool, device: str) -> tuple[RowSource, list[RowSource]]:
    """What ours reads, and what plain reads for one dictionary after the other."""
    if case == "wide":
        d, n = (32, 2000) if small else (512, 20_000)
        widths = {"resid_0": d, "resid_1": d}
        each = [_Only(Mixtures(widths, n), name) for name in widths]
        return Mixtures(widths, n), list(each)
    from core.models import load_model, load_tokenizer
    from testbed.grammar import documents

    folder = str(ROOT / "testbed" / "model")
    model, tokenizer = load_model(folder, device=device), load_tokenizer(folder)
    texts = [document.text for document in documents(40 if small else 800, 1)]
    contexts = [ids[:128] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    names = model.submodules[:2] if small else model.submodules
    return ModelRows(model, contexts, names), [ModelRows(model, contexts, [n]) for n in names]


class _Only:
    """One submodule of a source."""

    def __init__(self, source: RowSource, name: str) -> None:
        self.source, self.name = source, name
        self.widths = {name: source.widths[name]}
        self.fingerprint, self.unit_rows = source.fingerprint, source.unit_rows

    def load(self, unit: int) -> tuple[dict[str, Tensor], Tensor]:
        values, document = self.source.load(unit)
        return {self.name: values[self.name]}, document


def batches_of(source: RowSource, settings: TrainingSettings) -> Iterator[dict[str, Tensor]]:
    buffer = ShuffledBuffer(
        source,
        batch_size=settings.batch_size,
        buffer_rows=rows_within(settings.buffer_bytes, source.widths),
        seed=settings.seed,
    )
    return islice(buffer.batches(), settings.n_steps)


def plain_training(name: str, batches: Iterator[Tensor], settings: TrainingSettings) -> list[float]:
    """One dictionary by autograd (App. B), from the same start as ours; the loss of each step."""
    losses: list[float] = []
    first = next(batches)
    learner = Learner(name, first.shape[1], settings, first.device)
    learner.start(first)
    start, scale = learner.weights, learner.state["scale"]
    encoder, decoder, encoder_bias, bias = weights = [
        part.clone().requires_grad_()
        for part in (start.encoder, start.decoder, start.encoder_bias, start.bias)
    ]
    optimiser = torch.optim.Adam(weights)
    for step, rows in enumerate(chain([first], batches)):
        x = rows.float() * scale
        f = torch.relu((x - bias) @ encoder.T + encoder_bias)
        error = f @ decoder + bias - x
        loss = error.norm(dim=1).mean() + settings.sparsity_at(step) * f.sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert decoder.grad is not None
            remove_parallel(decoder.grad, decoder)
            optimiser.param_groups[0]["lr"] = settings.learning_rate_at(step)
            optimiser.step()
            normalise_rows(decoder)
        losses.append(float(loss.detach()))
    return losses


def run_plain(case: str, small: bool, device: str) -> dict[str, Any]:
    """Every dictionary after the other: seconds, peak memory, losses."""
    settings = settings_of(case, small)
    _, sources = sources_of(case, small, device)
    _import_optimiser()
    start = time.perf_counter()
    losses = {}
    for source in sources:
        (name,) = source.widths
        rows = (batch[name].to(device) for batch in batches_of(source, settings))
        losses[name] = plain_training(name, rows, settings)
    return _result(start, losses, settings, device)


def _import_optimiser() -> None:
    """The first step of a torch optimiser imports half of torch: keep that out of the time."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def run_ours(case: str, small: bool, device: str) -> dict[str, Any]:
    """All dictionaries from one read: seconds, peak memory, losses."""
    settings = settings_of(case, small)
    source, _ = sources_of(case, small, device)
    losses: dict[str, list[float]] = {name: [] for name in source.widths}

    def keep(_step: int, reports: Mapping[str, Any]) -> None:
        for name, report in reports.items():
            losses[name].append(report.loss)

    start = time.perf_counter()
    train_dictionaries(source, settings, device=torch.device(device), on_step=keep)
    return _result(start, losses, settings, device)


def _result(
    start: float, losses: Mapping[str, list[float]], settings: TrainingSettings, device: str
) -> dict[str, Any]:
    synchronise(device)
    seconds = time.perf_counter() - start
    n_tokens = settings.n_steps * settings.batch_size
    return {
        "seconds": seconds,
        "rate": n_tokens * len(losses) / seconds,
        "gib": peak_gib(device),
        "n_dictionaries": len(losses),
        "losses": losses,
    }


def loss_difference(ours: Mapping[str, list[float]], plain: Mapping[str, list[float]]) -> float:
    """Largest relative difference of the two loss curves, each a mean over ten steps."""

    def smooth(losses: list[float]) -> np.ndarray:
        return np.convolve(losses, np.ones(10) / 10, mode="valid")

    return max(float(np.abs(smooth(ours[name]) / smooth(plain[name]) - 1).max()) for name in plain)


def compare(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one case, each in its own process."""
    sides = {}
    for side in ("ours", "plain"):
        command = [sys.executable, "-m", "benchmarks.training", "--case", case, "--side", side]
        command += ["--device", args.device]
        command += ["--small"] if args.small else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        sides[side] = json.loads(done.stdout.splitlines()[-1])
    ours, plain = sides["ours"], sides["plain"]
    return {
        "n_dictionaries": ours["n_dictionaries"],
        "ours": ours,
        "plain": plain,
        "ratio": ours["rate"] / plain["rate"],
        "difference": loss_difference(ours["losses"], plain["losses"]),
    }


# -- the cache -----------------------------------------------------------------------------------


class Outputs:
    """Stands for a model whose outputs cost nothing, so that only the disk is timed."""

    def __init__(self, d: int, n_submodules: int) -> None:
        self.submodules = [f"resid_{i}" for i in range(n_submodules)]
        self.d = d
        generator = torch.Generator().manual_seed(0)
        self.outputs = torch.randn(64, 128, d, generator=generator)

    def width(self, name: str) -> int:
        return self.d

    def record(self, tokens: Tensor, mask: Tensor) -> Any:
        outputs = {name: self.outputs[: len(tokens)] for name in self.submodules}
        return type("Recording", (), {"outputs": outputs, "mask": mask})


def measure_cache(small: bool) -> dict[str, float]:
    """MB/s of activations written and read, as Parquet and as raw NumPy files.

    Both are synced to the disk when written, and read after the system has let go of them.
    """
    from assets.corpus.text import Context
    from assets.corpus.writing import open_cache, write_cache

    model: Any = Outputs(64 if small else 512, 4)
    contexts = [Context(i, [1] * 128) for i in range(64 if small else 2048)]
    n_bytes = 2 * 128 * len(contexts) * model.d * len(model.submodules)
    found = {}

    def rate(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = work()
        found[name] = n_bytes / 1e6 / (time.perf_counter() - start)
        return out

    def save(file: Path, array: np.ndarray) -> None:
        with file.open("wb") as stream:
            np.save(stream, array)
            stream.flush()
            os.fsync(stream.fileno())

    def write(place: str, some: list[Context]) -> None:
        write_cache(folder / place, model, some, model.submodules, model_fingerprint="")

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = Path(name)
        write("warm", contexts[:64])
        rate("written", lambda: write("c", contexts))
        cache = open_cache(folder / "c")
        units = range(len(cache.unit_rows))
        arrays = [value.numpy() for unit in units for value in cache.load(unit)[0].values()]
        files = [folder / f"{i}.npy" for i in range(len(arrays))]
        rate("raw_written", lambda: [save(*pair) for pair in zip(files, arrays, strict=True)])
        _let_go([*files, *folder.rglob("*.parquet")])
        rate("read", lambda: [cache.load(unit) for unit in units])
        rate("raw_read", lambda: [np.load(file) for file in files])
    return found


def _let_go(files: Iterable[Path]) -> None:
    """Drop files that are on the disk from the system's memory."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cache_row(found: Mapping[str, float]) -> dict[str, str]:
    """The cache's speeds as cells."""
    return {
        "written, MB/s": f"{found['written']:.0f}",
        "of raw": f"{found['written'] / found['raw_written']:.2f}",
        "read, MB/s": f"{found['read']:.0f}",
        "of raw read": f"{found['read'] / found['raw_read']:.2f}",
        "raw written, read, MB/s": f"{found['raw_written']:.0f}, {found['raw_read']:.0f}",
    }


def training_row(case: str, found: Mapping[str, Any]) -> dict[str, str]:
    """One comparison as cells."""
    ours, plain = found["ours"], found["plain"]
    return {
        "case": case,
        "dictionaries": str(found["n_dictionaries"]),
        "plain, tokens x dictionaries / s": f"{plain['rate']:,.0f}",
        "ours": f"{ours['rate']:,.0f}",
        "ratio": f"{found['ratio']:.1f}",
        "plain, GiB": f"{plain['gib']:.2f}",
        "ours, GiB": f"{ours['gib']:.2f}",
        "largest loss difference": f"{found['difference']:.1e}",
    }


def main() -> None:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(description="Training all dictionaries against one by one.")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--note", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = run_ours if args.side == "ours" else run_plain
        print(json.dumps(run(args.case, args.small, args.device)))
        return
    for case in [args.case] if args.case else CASES:
        if case == "cache":
            section, cells = "cache", cache_row(measure_cache(args.small))
        else:
            section, cells = "training", training_row(case, compare(case, args))
        print(f"{case}: " + ", ".join(f"{key} {value}" for key, value in cells.items()), flush=True)
        if args.note:
            append_row(section, {**machine(), **cells})


if __name__ == "__main__":
    main()
