"""How fast are the curves of all variants, against running each point from scratch?

    python -m benchmarks.evaluations             # the default model's shape, 15 sizes, 40 pairs
    python -m benchmarks.evaluations --small     # a small shape, seconds
    python -m benchmarks.evaluations --note      # also append a dated row to benchmarks/README.md

Random weights and random dictionaries (1,024 features, about 30 active), pairs of eight tokens,
nodes by position, mean ablation, every variant of `evaluations.variants` with one draw of random
nodes. From scratch means as section 3.2 has it, by hooks on the whole model: for every point the
patch side is run for the means, and the model as it is, with every node ablated, with the circuit
and with its complement, through dense dictionaries. Both get the same nodes; what these rest on,
effects by attribution, is measured before either is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.effects import Case, Shape, build
from benchmarks.record import append_row, machine
from core.baselines import Basis, mlp_neurons, neurons, random_directions
from core.dictionaries import Dictionary
from core.estimators import Attribution
from core.evaluate import Evaluator
from core.inputs import Inputs
from core.models import LanguageModel
from core.options import VARIANTS, ErrorNodes, Variant
from core.sweep import active_nodes, ranked, shuffled, sizes_up_to, sweep
from core.types import Node, Submodule

DEFAULT = Shape(layers=4, d=128, heads=4, vocabulary=1_000, features=1_024, active=30)
SMALL = Shape(layers=2, d=32, heads=2, vocabulary=100, features=128, active=10)
POLICIES: Mapping[Variant, ErrorNodes] = {"no_errors": "drop", "residual_errors": "drop_but_resid"}

Metrics = tuple[float, float, float, float]


class Curve(NamedTuple):
    """One variant: what its nodes are, their order, and how many are kept at each point."""

    variant: Variant
    basis: Basis
    ranking: Sequence[Node]
    sizes: list[int]


def curves(
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], inputs: Inputs, n_sizes: int
) -> list[Curve]:
    """Every variant with its nodes ranked."""
    features, drawn = Basis(model, dictionaries), random_directions(model, dictionaries, inputs)
    bases: dict[Variant, Basis] = dict.fromkeys(VARIANTS, features)
    bases["neurons"], bases["mlp_neurons"] = neurons(model, dictionaries), mlp_neurons(model)
    bases["random_decoder"] = drawn
    found = []
    for variant, basis in bases.items():
        active = active_nodes(basis.model, basis.dictionaries, inputs, by_position=True)
        evaluator = Evaluator(basis.model, basis.dictionaries, inputs)
        if variant == "random_nodes":
            ranking = shuffled(evaluator.counted(active), 0)
        else:
            nodes = basis.measure(inputs, estimator=Attribution(), by_position=True)
            ranking = ranked(evaluator, nodes, active, POLICIES.get(variant, "circuit"))
        found.append(Curve(variant, basis, ranking, sizes_up_to(len(ranking), n_sizes)))
    return found


def together(every: Sequence[Curve], inputs: Inputs) -> list[Metrics]:
    """All points as the stage makes them: an evaluator for each basis."""
    evaluators: dict[int, Evaluator] = {}
    metrics = []
    for curve in every:
        basis = curve.basis
        if id(basis) not in evaluators:
            evaluators[id(basis)] = Evaluator(basis.model, basis.dictionaries, inputs)
        policy = POLICIES.get(curve.variant, "circuit")
        points = sweep(evaluators[id(basis)], curve.ranking, curve.sizes, policy, fractions=())
        for _, _, e in points:
            metrics.append((e.m_full, e.m_empty, e.m_circuit, e.m_complement))
    return metrics


def from_scratch(every: Sequence[Curve], inputs: Inputs) -> list[Metrics]:
    """Each point by itself."""
    return [
        plain_point(curve.basis, inputs, curve.ranking[:size])
        for curve in every
        for size in curve.sizes
    ]


@torch.no_grad()
def plain_point(basis: Basis, inputs: Inputs, nodes: Sequence[Node]) -> Metrics:
    """The four metrics of one circuit, each from a run of the whole model with hooks."""
    assert inputs.patch is not None
    n_pos, names = inputs.clean.shape[1], [name for name in basis.dictionaries if name != "embed"]
    means: dict[str, tuple[Tensor, Tensor]] = {}

    def keep_means(name: str) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            features = basis.dictionaries[name].encode(x)
            error = x - basis.dictionaries[name].decode(features)
            means[name] = features.mean(0), error.mean(0)
            return x

        return edit

    _metric(basis, inputs, inputs.patch, {name: keep_means(name) for name in names})
    kept = {
        name: torch.zeros(n_pos, basis.dictionaries[name].n_features + 1, dtype=torch.bool)
        for name in names
    }
    for node in nodes:
        kept[node.submodule][node.pos, node.feature] = True  # -1 is the error, the last column

    def ablating(name: str, keep: Tensor) -> Callable[[Tensor], Tensor]:
        dictionary, (feature_mean, error_mean) = basis.dictionaries[name], means[name]

        def edit(x: Tensor) -> Tensor:
            features = dictionary.encode(x)
            error = torch.where(keep[:, -1:], x - dictionary.decode(features), error_mean)
            return dictionary.decode(torch.where(keep[:, :-1], features, feature_mean)) + error

        return edit

    def with_only(keep: Mapping[str, Tensor]) -> float:
        return _metric(
            basis, inputs, inputs.clean, {name: ablating(name, keep[name]) for name in names}
        )

    return (
        _metric(basis, inputs, inputs.clean, {}),
        with_only({name: torch.zeros_like(keep) for name, keep in kept.items()}),
        with_only(kept),
        with_only({name: ~keep for name, keep in kept.items()}),
    )


def _metric(
    basis: Basis, inputs: Inputs, tokens: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]
) -> float:
    """The mean metric of a run whose submodules are edited by hooks."""
    layers = basis.model.hf.gpt_neox.layers
    with ExitStack() as stack:
        for name, edit in edits.items():
            kind, layer = Submodule.parse(name)
            block = layers[layer]
            if kind == "mlp" and basis.model.mlp_input:
                handle = block.mlp.dense_4h_to_h.register_forward_pre_hook(_on_input(edit))
            else:
                module = {"attn": block.attention, "mlp": block.mlp, "resid": block}[kind]
                handle = module.register_forward_hook(_on_output(edit))
            stack.callback(handle.remove)
        logits = basis.model.hf(tokens, use_cache=False).logits[:, -1]
    columns = inputs.metric.tokens
    return float(inputs.metric(logits if columns is None else logits.gather(1, columns)).mean())


def _on_input(edit: Callable[[Tensor], Tensor]) -> Any:
    return lambda _module, args: (edit(args[0]),)


def _on_output(edit: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


def measure(shape: Shape, n_sizes: int, n_pairs: int) -> dict[str, str]:
    """One row of the table."""
    case = Case(pairs=True, batch=n_pairs, pos=8, instances=0)
    model, dictionaries, inputs = build(shape, case, "cpu")
    every = curves(model, dictionaries, inputs, n_sizes)
    began = time.perf_counter()
    ours = together(every, inputs)
    middle = time.perf_counter()
    plain = from_scratch(every, inputs)
    ended = time.perf_counter()
    span = torch.tensor([abs(full - empty) for full, empty, *_ in plain])
    apart = (torch.tensor(ours) - torch.tensor(plain)).abs().max(1).values / span
    return {
        **machine(),
        "threads": str(torch.get_num_threads()),
        "variants": str(len(every)),
        "points": str(len(plain)),
        "pairs": str(n_pairs),
        "all together, s": f"{middle - began:.1f}",
        "each from scratch, s": f"{ended - middle:.1f}",
        "faster": f"{(ended - middle) / (middle - began):.1f}x",
        "largest difference, of what there is to explain": f"{float(apart.max()):.1e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluations", description=__doc__)
    parser.add_argument("--sizes", type=int, default=15, help="circuits of each variant")
    parser.add_argument("--pairs", type=int, default=40, help="examples they are judged on")
    parser.add_argument("--small", action="store_true", help="a small shape")
    parser.add_argument("--note", action="store_true", help="append a row to benchmarks/README.md")
    options = parser.parse_args()
    row = measure(SMALL if options.small else DEFAULT, options.sizes, options.pairs)
    for name, value in row.items():
        print(f"{name:<50}{value}")
    if options.note:
        append_row("Evaluations", row)


if __name__ == "__main__":
    main()
