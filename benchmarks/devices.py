"""How fast are circuits and training on a GPU, and in how much of its memory?

    python -m benchmarks.devices                    # CUDA where there is one, else the CPU
    python -m benchmarks.devices --device cuda:1    # that one
    python -m benchmarks.devices --small            # a small shape, seconds
    python -m benchmarks.devices --note             # also write a dated row to benchmarks/README.md

Pythia-70M's shape with random weights, 19 dictionaries 512 -> 32,768 with 100 active features per
token. A circuit: effects by integrated gradients and edges, of single inputs of 128 tokens, ablated
to zero. Training: two dictionaries at once on rows that lie in memory, so that the optimiser is
what is measured. The first circuit and the first steps are not counted: kernels are chosen then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch

from benchmarks.effects import Case, Shape, build
from benchmarks.record import append_row, machine, peak_gib, restart_peak, synchronise
from benchmarks.training import Mixtures
from core.circuit import attribute
from core.estimators import IntegratedGradients
from core.models.load import pick_device
from core.training import TrainingSettings, train_dictionaries

SMALL = Shape(layers=2, d=64, heads=4, vocabulary=500, features=512, active=20)
_SUBMODULES = ("mlp_0", "resid_0")
_NOT_COUNTED = 2


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def circuits(shape: Shape, device: torch.device, n_examples: int, n_pos: int) -> dict[str, str]:
    """Seconds of a circuit, circuits per hour, and memory."""
    case = Case(pairs=False, batch=n_examples, pos=n_pos, instances=0)
    model, dictionaries, inputs = build(shape, case, str(device))

    def find() -> None:
        effects = attribute(model, dictionaries, inputs, estimator=IntegratedGradients(10, "left"))
        strongest = sorted(float(v.abs().max()) for v in effects.effects.nodes.values())
        half = strongest[len(strongest) // 2] / 2
        effects.circuit(node_threshold=half, edge_threshold=half)

    find()
    seconds = _seconds(device, find)
    return {
        "examples": f"{n_examples} x {n_pos}",
        "circuit, s": f"{seconds:.2f}",
        "circuits / hour": f"{3600 / seconds:,.0f}",
        "GiB, circuits": f"{peak_gib(device):.2f}",
    }


def training(shape: Shape, device: torch.device, n_steps: int, batch: int) -> dict[str, str]:
    """Tokens times dictionaries per second, and memory."""
    times: list[float] = []

    def note(_step: int, _reports: Mapping[str, object]) -> None:
        synchronise(device)
        times.append(time.perf_counter())

    settings = TrainingSettings(
        n_features=shape.features,
        n_steps=n_steps,
        batch_size=batch,
        learning_rate=1e-4,
        warmup_steps=1,
        resample_every=0,
        buffer_bytes=4 * 4 * batch * shape.d * len(_SUBMODULES),
    )
    restart_peak(device)
    rows = Mixtures(dict.fromkeys(_SUBMODULES, shape.d), 4 * batch)
    train_dictionaries(rows, settings, device=device, on_step=note)
    steps = [b - a for a, b in pairwise(times)][_NOT_COUNTED:]
    rate = batch * len(_SUBMODULES) * len(steps) / sum(steps)
    return {
        "training, tokens x dictionaries / s": f"{rate:,.0f}",
        "GiB, training": f"{peak_gib(device):.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="a small shape")
    parser.add_argument("--note", action="store_true", help="append a row to benchmarks/README.md")
    options = parser.parse_args()
    device = pick_device(options.device)
    shape, n_pos, batch = (SMALL, 16, 256) if options.small else (Shape(), 128, 4096)
    row = {
        **machine(),
        "device": str(device),
        **circuits(shape, device, options.examples, n_pos),
        **training(shape, device, 12, batch),
    }
    for name, value in row.items():
        print(f"{name:<36}{value}")
    if options.note:
        append_row("Devices", row)


if __name__ == "__main__":
    main()
