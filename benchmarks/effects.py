"""How fast are exact node and edge effects, against the paper taken literally?

    python -m benchmarks.effects                 # Pythia-70M's shape, every case
    python -m benchmarks.effects --case zero     # one case
    python -m benchmarks.effects --small         # a small shape, seconds
    python -m benchmarks.effects --note          # also append a dated row to benchmarks/README.md
    python -m benchmarks.effects --case pairs --side bare   # what surrounds the passes, CPU seconds

Random weights of Pythia-70M's shape (6 layers, width 512, vocabulary 50,304) and 19 random
dictionaries 512 -> 32,768 with about 100 active features. Each side runs in a process of its own,
so that peak memory is its own; both get the same weights from the same seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.plain import plain_edges, plain_nodes
from benchmarks.record import append_row, machine, peak_gib, restart_peak, synchronise
from core.budget import plan_passes
from core.dictionaries import Dictionary, ReLU
from core.edges import edge_effects, edge_kinds
from core.effects import Effects, node_effects
from core.estimators import IntegratedGradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.replay import Resumed
from core.types import Submodule, causal_order

BUDGET = 2 << 30


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and its dictionaries."""

    layers: int = 6
    d: int = 512
    heads: int = 8
    vocabulary: int = 50_304
    features: int = 32_768
    active: int = 100


@dataclass(frozen=True)
class Case:
    """What is measured: nodes of a batch, and edges into so many downstream instances."""

    pairs: bool
    batch: int
    pos: int
    instances: int


SIDES = ("ours", "plain", "backward")
"""Each of a case's processes; besides, `--side bare` measures what surrounds the passes."""

CASES = {
    "pairs": Case(pairs=True, batch=10, pos=8, instances=200),
    "zero": Case(pairs=False, batch=4, pos=32, instances=200),
}


def random_model(shape: Shape) -> Any:
    """A GPT-NeoX of random weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.d,
        max_position_embeddings=2048,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def random_dictionary(x: Tensor, shape: Shape) -> Dictionary:
    """A dictionary with `shape.active` active features on average at x, ``(token, d)``."""
    decoder = torch.randn(shape.features, shape.d, device=x.device)
    decoder /= decoder.norm(dim=1, keepdim=True)
    bias = x.mean(0)
    pre = ((x - bias) @ decoder.T).flatten()
    # Between two pre-activations: none is at the gate itself.
    cut = pre.topk(shape.active * len(x) + 1).values[-2:].mean()
    gate = (-cut).expand(shape.features).contiguous()
    return Dictionary(decoder, gate, decoder, bias, bias, ReLU())


def build(
    shape: Shape, case: Case, device: str
) -> tuple[LanguageModel, dict[str, Dictionary], Inputs]:
    """A random model, inputs, and dictionaries with `shape.active` active features on average."""
    model = LanguageModel(random_model(shape).to(device))
    inputs = examples(shape, case, device)
    sample = model.record(inputs.clean)
    dictionaries = {
        name: random_dictionary(sample.outputs[name].flatten(0, 1), shape)
        for name in model.submodules
    }
    return model, dictionaries, inputs


def examples(shape: Shape, case: Case, device: str) -> Inputs:
    """Random tokens; pairs differ at one position, as agreement pairs do."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(shape.vocabulary, (case.batch, case.pos), generator=generator)
    answers = torch.randint(shape.vocabulary, (2, case.batch), generator=generator)
    if not case.pairs:
        return Inputs.single(clean, answers[0]).to(device)
    patch = clean.clone()
    patch[:, 1] = torch.randint(shape.vocabulary, (case.batch,), generator=generator)
    return Inputs.pairs(clean, patch, answers[0], answers[1]).to(device)


def strongest(effects: dict[str, Tensor], clean: dict[str, Tensor], n_instances: int) -> Any:
    """Node keys by submodule: the strongest nodes with `n_instances` active places in all."""
    order = []
    for name, values in effects.items():
        for key in values.abs().topk(min(64, len(values))).indices.tolist():
            order.append((-abs(float(values[key])), name, key))
    keep: dict[str, list[int]] = {}
    total = 0
    for _, name, key in sorted(order):
        places = int(clean[name][key])
        if name == "embed" or not places or total + places > n_instances:
            continue
        keep.setdefault(name, []).append(key)
        total += places
    # Where nothing is downstream of it, the embedding still is upstream.
    keep["embed"] = sorted(int(k) for k in effects["embed"].abs().topk(20).indices)
    return {name: torch.tensor(sorted(keys)) for name, keys in keep.items()}, total


def bare_seconds(model: LanguageModel, inputs: Inputs, steps: int, device: str) -> float:
    """Seconds of the forward and backward passes of ig alone: no dictionary, no endpoints."""
    recording = model.record(inputs.clean, inputs.mask)
    runs = Resumed(model, recording, inputs.metric, inputs.last)
    passes = plan_passes(model, inputs.clean.shape[1], BUDGET)
    n = inputs.n_examples
    per_pass = max(1, min(steps, passes.copies(n)))
    synchronise(device)
    start = time.perf_counter()
    for name in model.submodules:
        for first in range(0, steps, per_pass):
            copies = min(per_pass, steps - first)
            some = runs.select(torch.arange(n, device=device).repeat(copies))
            x = recording.outputs[name].repeat(copies, 1, 1).requires_grad_()
            torch.autograd.grad(some.metric_with(name, x).sum(), x)
    synchronise(device)
    return time.perf_counter() - start


def run_bare(shape: Shape, case: Case, device: str, out: Path) -> dict[str, float]:
    """Integrated gradients by two rules over their bare passes, best of turns taken by all three.

    In CPU seconds, which other work on the machine disturbs less; on a GPU in seconds.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    model, dictionaries, inputs = build(shape, case, device)

    def ours(estimator: IntegratedGradients) -> None:
        node_effects(model, dictionaries, inputs, estimator=estimator, budget_bytes=BUDGET)

    work: dict[str, Callable[[], object]] = {
        "left": lambda: ours(IntegratedGradients(rule="left")),
        "midpoint": lambda: ours(IntegratedGradients()),
        "bare": lambda: bare_seconds(model, inputs, 10, device),
    }
    ours(IntegratedGradients(steps=1))
    best = dict.fromkeys(work, float("inf"))
    for _ in range(3):
        for name, run in work.items():
            start = clock()
            run()
            synchronise(device)
            best[name] = min(best[name], clock() - start)
    return best | {f"{rule} over bare": best[rule] / best["bare"] for rule in ("left", "midpoint")}


def run_ours(shape: Shape, case: Case, device: str, out: Path) -> dict[str, float]:
    """Our side: times, peak memory; effects and edges written for comparison."""
    model, dictionaries, inputs = build(shape, case, device)
    base = restart_peak(device)
    node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=1))
    start = time.perf_counter()
    effects = node_effects(
        model, dictionaries, inputs, estimator=IntegratedGradients(rule="left"), budget_bytes=BUDGET
    )
    synchronise(device)
    nodes = time.perf_counter() - start
    nodes_peak = peak_gib(device)
    bare = bare_seconds(model, inputs, 10, device)
    summed, places = summed_effects(effects)
    keep, instances = strongest(summed, places, case.instances)
    keep = {name: keys.to(device) for name, keys in keep.items()}
    start = time.perf_counter()
    edges = edge_effects(model, dictionaries, effects, keep=keep, budget_bytes=BUDGET)
    synchronise(device)
    edge_seconds = time.perf_counter() - start
    tensors = {f"effects/{name}": value.cpu() for name, value in summed.items()}
    tensors |= {f"keep/{name}": value.cpu() for name, value in keep.items()}
    for (up, down), found in edges.items():
        if up in keep and down in keep:
            dense = torch.zeros(len(keep[down]), len(keep[up]))
            rows = torch.searchsorted(keep[down], found.downstream).cpu()
            columns = torch.searchsorted(keep[up], found.upstream).cpu()
            dense[rows, columns] = found.weight.cpu()
            tensors[f"edges/{up}->{down}"] = dense
    save_file(tensors, out / "ours.safetensors")
    active = sum(len(effects[n].clean.features.value) for n in dictionaries)
    return {
        "nodes": nodes,
        "nodes_gib": nodes_peak - base,
        "edges": edge_seconds,
        "edges_gib": peak_gib(device) - base,
        "bare": bare,
        "instances": instances,
        "active": active / len(dictionaries) / inputs.clean.numel(),
    }


def summed_effects(effects: Effects) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Effects summed over examples and positions, and in how many places each node is active."""
    summed, places = {}, {}
    for name, found in effects.submodules.items():
        width = found.features.shape[2]
        total = found.error.new_zeros(width + 1)
        total.index_add_(0, found.features.feature, found.features.value)
        total[-1] = found.error.sum()
        count = torch.bincount(found.clean.features.feature, minlength=width + 1)
        count[-1] = found.error.numel()
        summed[name], places[name] = total, count
    return summed, places


def run_backward(shape: Shape, case: Case, device: str, out: Path) -> dict[str, float]:
    """The literal side's nodes once more, with gradients of parameters, as the authors' code."""
    model, dictionaries, inputs = build(shape, case, device)
    start = time.perf_counter()
    read = reader(inputs)
    plain_nodes(model.hf, dictionaries, inputs.clean, inputs.patch, read, 10, backward=True)
    synchronise(device)
    return {"nodes": time.perf_counter() - start}


def reader(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """The inputs' metric as a function of all logits at the last token."""
    metric = inputs.metric
    tokens = metric.tokens
    return metric if tokens is None else lambda logits: metric(logits.gather(1, tokens))


def run_plain(shape: Shape, case: Case, device: str, out: Path) -> dict[str, float]:
    """The literal side, on the nodes that ours kept."""
    model, dictionaries, inputs = build(shape, case, device)
    keep = {
        key.removeprefix("keep/"): value.to(device)
        for key, value in load_file(out / "ours.safetensors").items()
        if key.startswith("keep/")
    }
    base = restart_peak(device)
    start = time.perf_counter()
    clean, changes, gradients, effects = plain_nodes(
        model.hf, dictionaries, inputs.clean, inputs.patch, reader(inputs), 10
    )
    synchronise(device)
    nodes = time.perf_counter() - start
    peak = peak_gib(device)
    names = causal_order(keep)
    kinds = [(up, down, _stops(up, down)) for up, down in edge_kinds(model, dict.fromkeys(names))]
    start = time.perf_counter()
    edges = plain_edges(
        model.hf, dictionaries, inputs.clean, kinds, (clean, changes, gradients), keep
    )
    synchronise(device)
    edge_seconds = time.perf_counter() - start
    tensors = {
        f"effects/{n}": torch.cat([f.sum((0, 1)), e.sum()[None]]).detach().cpu()
        for n, (f, e) in effects.items()
    }
    tensors |= {f"edges/{up}->{down}": value for (up, down), value in edges.items()}
    save_file(tensors, out / "plain.safetensors")
    return {
        "nodes": nodes,
        "nodes_gib": peak - base,
        "edges": edge_seconds,
        "edges_gib": peak_gib(device) - base,
    }


def _stops(up: str, down: str) -> tuple[str, ...]:
    """Submodules at which gradients stop on the way from `up` to `down`."""
    up_kind, (down_kind, layer) = Submodule.parse(up).kind, Submodule.parse(down)
    attn, mlp = f"attn_{layer}", f"mlp_{layer}"
    if down_kind == "resid":
        return {"attn": (mlp,), "mlp": ()}.get(up_kind, (attn, mlp))
    return (attn,) if down_kind == "mlp" and up_kind != "attn" else ()


def difference(out: Path) -> tuple[float, float]:
    """Largest difference of effects and of edges, over the largest value of each."""
    ours, plain = load_file(out / "ours.safetensors"), load_file(out / "plain.safetensors")
    worst = {"effects": 0.0, "edges": 0.0}
    largest = {"effects": 0.0, "edges": 0.0}
    for key, value in plain.items():
        kind = key.split("/")[0]
        worst[kind] = max(worst[kind], float((ours[key] - value).abs().max()))
        largest[kind] = max(largest[kind], float(value.abs().max()))
    return worst["effects"] / largest["effects"], worst["edges"] / largest["edges"]


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one case, each in its own process."""
    sides: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.effects", "--case", name, "--side", side]
            command += ["--out", folder, "--device", args.device]
            command += ["--small"] if args.small else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            sides[side] = json.loads(done.stdout.splitlines()[-1])
        nodes_off, edges_off = difference(Path(folder))
    return {
        **sides,
        "nodes_off": nodes_off,
        "edges_off": edges_off,
        "backward_ratio": sides["backward"]["nodes"] / sides["ours"]["nodes"],
        "nodes_ratio": sides["plain"]["nodes"] / sides["ours"]["nodes"],
        "edges_ratio": sides["plain"]["edges"] / sides["ours"]["edges"],
        "over_bare": sides["ours"]["nodes"] / sides["ours"]["bare"],
    }


def show(name: str, case: Case, found: dict[str, Any]) -> str:
    """One case as lines of text."""
    ours, plain = found["ours"], found["plain"]
    kind = "pairs" if case.pairs else "zero ablation"
    return "\n".join(
        [
            f"{name}: {kind}, {case.batch} x {case.pos} tokens, ig 10 (left), "
            f"{ours['active']:.0f} active features per token",
            f"{'':18}{'plain':>10}{'ours':>10}{'ratio':>8}{'plain GiB':>11}{'ours GiB':>10}"
            f"{'difference':>12}",
            f"{'  nodes, s':18}{plain['nodes']:>10.2f}{ours['nodes']:>10.2f}"
            f"{found['nodes_ratio']:>8.1f}{plain['nodes_gib']:>11.2f}{ours['nodes_gib']:>10.2f}"
            f"{found['nodes_off']:>12.1e}",
            f"  edges into {ours['instances']:.0f}, s".ljust(18)
            + f"{plain['edges']:>10.2f}{ours['edges']:>10.3f}{found['edges_ratio']:>8.0f}"
            f"{plain['edges_gib']:>11.2f}{ours['edges_gib']:>10.2f}{found['edges_off']:>12.1e}",
            f"  nodes with .backward(), as the authors: {found['backward']['nodes']:.1f} s, "
            f"ratio {found['backward_ratio']:.1f}",
            f"  ig over its bare passes: {found['over_bare']:.2f} (bare {ours['bare']:.2f} s)",
        ]
    )


def main() -> None:
    """Run the cases and print them."""
    parser = argparse.ArgumentParser(
        description="Node and edge effects against the paper taken literally."
    )
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--note", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--side", choices=[*SIDES, "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = Shape(2, 64, 4, 500, 512, 20) if args.small else Shape()
    if args.side:
        sides = {"ours": run_ours, "plain": run_plain, "backward": run_backward, "bare": run_bare}
        run = sides[args.side]
        print(json.dumps(run(shape, CASES[args.case], args.device, args.out)))
        return
    for name in [args.case] if args.case else CASES:
        found = compare(name, args)
        print(show(name, CASES[name], found), flush=True)
        if args.note:
            append_row("effects", row(name, found))


def row(name: str, found: dict[str, Any]) -> dict[str, str]:
    """One case as a row of benchmarks/README.md."""
    ours, plain = found["ours"], found["plain"]
    return {
        **machine(),
        "case": name,
        "nodes plain, ours, s": f"{plain['nodes']:.1f}, {ours['nodes']:.2f}",
        "ratio": f"{found['nodes_ratio']:.1f}",
        "plain with .backward(), s": f"{found['backward']['nodes']:.1f}",
        "its ratio": f"{found['backward_ratio']:.1f}",
        "edges plain, ours, s": f"{plain['edges']:.1f}, {ours['edges']:.3f}",
        "edges ratio": f"{found['edges_ratio']:.0f}",
        "GiB nodes plain, ours": f"{plain['nodes_gib']:.1f}, {ours['nodes_gib']:.1f}",
        "over bare": f"{found['over_bare']:.2f}",
        "largest difference": f"{max(found['nodes_off'], found['edges_off']):.0e}",
    }


if __name__ == "__main__":
    main()
