"""What do cards of every feature cost, in time, memory and bytes?

    python -m benchmarks.cards                  # Pythia-70M's shape, 19 dictionaries of 32,768
    python -m benchmarks.cards --contexts 256   # more text: only the pass over the corpus grows
    python -m benchmarks.cards --vocabulary 4096  # promoted tokens cost as many logits
    python -m benchmarks.cards --small          # a small shape, seconds
    python -m benchmarks.cards --note           # also append a dated row to benchmarks/README.md

Random weights of Pythia-70M's shape and random dictionaries with about 100 active features (encoder
and decoder share their rows), on random tokens. One feature in a thousand is ablated, about as many
as circuits hold. Tables are built and written as the stage does it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

from assets.features.cards import excerpts_table, heads_table
from benchmarks.effects import CASES, Shape, build
from benchmarks.record import append_row, machine
from core.cards.collect import Units, collect
from core.cards.meaning import moved, promoted, readout

N_POS = 128
SMALL = Shape(layers=2, d=64, heads=4, vocabulary=1_000, features=512, active=20)


def measure(shape: Shape, n_contexts: int, folder: Path) -> dict[str, str]:
    """One row of the table."""
    model, dictionaries, _ = build(shape, CASES["zero"], "cpu")
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(shape.vocabulary, (n_contexts, N_POS), generator=generator).tolist()
    every = torch.arange(shape.features)
    wanted = {name: Units(name, one, every) for name, one in dictionaries.items()}
    began = time.perf_counter()
    collected = collect(model, wanted, contexts)
    passed = time.perf_counter()
    some = torch.arange(0, shape.features, 1_000)
    part = {n: Units(n, u.dictionary, u.features[some]) for n, u in wanted.items()}
    excerpts = {name: one.excerpts.of(some) for name, one in collected.items()}
    changes = moved(model, part, excerpts, contexts)
    ablated = time.perf_counter()
    reads = readout(model, torch.randn(64, shape.d, generator=generator))
    n_bytes = 0
    for name, units in wanted.items():
        one = collected.pop(name)
        both = promoted(model, units, reads, 10)
        common = {"submodule": name, "basis": "features", "weights": "random"}
        why = ["all"] * shape.features
        heads = heads_table(common, units, why, one, both, (some, changes[name]))
        texts = excerpts_table("features", units, one.excerpts, contexts, range(n_contexts))
        for table in (heads, texts):
            pq.write_table(table, folder / "cards.parquet", compression="zstd")
            n_bytes += (folder / "cards.parquet").stat().st_size
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    n_tokens = n_contexts * N_POS
    return {
        **machine(),
        "threads": str(torch.get_num_threads()),
        "features": f"{len(wanted)} x {shape.features:,}",
        "vocabulary": f"{shape.vocabulary:,}",
        "tokens": f"{n_tokens:,}",
        "pass over the corpus, s": f"{passed - began:.0f}",
        "tokens / s": f"{n_tokens / (passed - began):.0f}",
        "ablations, s": f"{ablated - passed:.0f}",
        "promoted tokens and tables, s": f"{ended - ablated:.0f}",
        "peak memory, GiB": f"{peak:.1f}",
        "of it weights": f"{_weights(wanted):.1f}",
        "tables, MiB": f"{n_bytes / 2**20:.0f}",
    }


def _weights(wanted: dict[str, Units]) -> float:
    tensors = [t for units in wanted.values() for t in units.dictionary.tensors().values()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values()) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cards", description=__doc__)
    parser.add_argument("--contexts", type=int, default=64, help="contexts of 128 tokens")
    parser.add_argument("--vocabulary", type=int, default=Shape.vocabulary, help="tokens")
    parser.add_argument("--small", action="store_true", help="a small shape")
    parser.add_argument("--note", action="store_true", help="append a row to benchmarks/README.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = SMALL if options.small else Shape(vocabulary=options.vocabulary)
        row = measure(shape, options.contexts, Path(folder))
    for name, value in row.items():
        print(f"{name:<32}{value}")
    if options.note:
        append_row("Cards", row)


if __name__ == "__main__":
    main()
