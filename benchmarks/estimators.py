"""Which estimate of effects ranks nodes best for its passes: gradients as they are, or by rules?

    python -m benchmarks.estimators experiments/testbed.yaml                # tasks and 6 clusters
    python -m benchmarks.estimators experiments/examples/stories260k.yaml   # clusters alone
    ... --clusters 6 --examples 8      # how many clusters, and examples circuits are found from
    ... --exact                         # also rank by exact effects (eq. 2): tasks only, minutes
    ... --note                          # also append dated rows to benchmarks/README.md
    ... --fits                          # only what the tables of *_approximations say, by submodule

Rules change what a gradient is, not what the model computes (layer-wise relevance propagation in
gradient form; with all of them, relevance patching). Circuits of the nodes with the largest
effects, chosen by each way, are judged on examples that they were not found from.

    frozen attention  attention patterns are constants: gradients go through values alone
    frozen norms      what a norm divides by is a constant
    relp              both, and a nonlinearity is the constant f(x) / x (identity rule), and either
                      factor of a product of two has half of the gradient (half rule)

A pass is one run of the model forward and backward. The clean end of all submodules together takes
one; N points between clean and patch take N for each submodule, from there on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from assets.circuits.behaviours import Behaviour, read_behaviours
from assets.circuits.pairs import task_settings
from assets.engine.stage import Work
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import BehaviourSource, approximation
from benchmarks.clusters import spread
from benchmarks.record import append_row, machine
from core.circuit import attribute
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.evaluate import Evaluator
from core.models import LanguageModel
from core.types import Node, causal_order
from pipelines.experiment import read_experiment

Rules = Literal["plain", "frozen attention", "frozen norms", "relp"]
SIZES = (25, 50, 100, 200)
POINTS: tuple[Estimator, ...] = (Attribution(), IntegratedGradients(1), IntegratedGradients(4))
"""Where each kind of gradient is taken; plain ones also at ten points."""


# -- gradients by rules ---------------------------------------------------------------------------


def constant_ratio(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """f with its gradient replaced by the constant f(x) / x, the identity rule."""

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = f(x)
            ratio = torch.where(x == 0, torch.zeros_like(x), value / x)
        return value + ratio * (x - x.detach())

    return forward


def half_product(a: Tensor, b: Tensor) -> Tensor:
    """a b, of which either factor has half of the gradient."""
    linear = (a * b.detach() + a.detach() * b) / 2
    return (a * b).detach() + linear - linear.detach()


def frozen_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """A norm's forward with a constant denominator."""
    plain = norm.forward

    def forward(x: Tensor) -> Tensor:
        is_layer_norm = isinstance(norm, nn.LayerNorm)
        centred = x - x.mean(-1, keepdim=True) if is_layer_norm else x
        with torch.no_grad():
            eps = norm.eps if is_layer_norm else norm.variance_epsilon
            scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
            value = plain(x)
        linear = centred * scale * norm.weight
        return value + linear - linear.detach()

    return forward


def gated_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    """The forward of a gated MLP by the half rule."""
    act = constant_ratio(mlp.act_fn.forward)
    return lambda x: mlp.down_proj(half_product(act(mlp.gate_proj(x)), mlp.up_proj(x)))


@contextmanager
def replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """The module with another forward."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def frozen_attention(implementation: str) -> Iterator[None]:
    """Attention whose patterns are constants: queries and keys have no gradient."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain: Any = ALL_ATTENTION_FUNCTIONS[implementation]

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Any:
        return plain(module, q.detach(), k.detach(), v, *args, **options)

    ALL_ATTENTION_FUNCTIONS[implementation] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[implementation] = plain


@contextmanager
def by_rules(model: LanguageModel, rules: Rules) -> Iterator[None]:
    """The model with its gradients by these rules; its values stay what they are.

    Raises:
        SystemExit: rules for the model's MLP or norms are not written down here.
    """
    with ExitStack() as stack:
        if rules in ("frozen attention", "relp"):
            stack.enter_context(frozen_attention(model.config._attn_implementation))
        norms = [m for m in model.hf.modules() if type(m).__name__.endswith("Norm")]
        if rules in ("frozen norms", "relp"):
            for norm in norms:
                stack.enter_context(replaced(norm, frozen_norm(norm)))
        if rules == "relp":
            for layer in model.layers:
                mlp = layer.mlp
                if hasattr(mlp, "gate_proj"):
                    stack.enter_context(replaced(mlp, gated_mlp(mlp)))
                elif hasattr(mlp, "act"):
                    rule = constant_ratio(mlp.act.forward)
                    stack.enter_context(replaced(mlp.act, rule))
                else:
                    raise SystemExit(f"no rules for a {type(mlp).__name__} are written down here.")
        yield


# -- circuits by each -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to estimate effects."""

    rules: Rules
    estimator: Estimator


@dataclass(frozen=True)
class Subject:
    """A behaviour, and how its circuits are judged."""

    behaviour: Behaviour
    evaluator: Evaluator


@dataclass(frozen=True)
class Measured:
    """One way on one behaviour: faithfulness by size, CPU seconds, and where the gap is largest."""

    faithfulness: Sequence[float]
    seconds: float
    gap: float


def subjects(experiment: Experiment, work: Work, n_clusters: int) -> dict[str, list[Subject]]:
    """Behaviours of the experiment's tasks, and of clusters of every size, that can be judged."""
    chosen: dict[str, list[Subject]] = {}
    judged = experiment.settings.evaluations
    numbers = spread(list(range(len(experiment.clusters))), n_clusters)
    found = read_behaviours(work.store, "clusters", [experiment.clusters[i] for i in numbers])
    if experiment.settings.tasks is not None:
        tasks = task_settings(experiment)
        of_name = read_behaviours(work.store, "tasks", tasks.pairs)
        chosen["tasks"] = [_subject(work, b, "mean", tasks.start_layer) for b in of_name.values()]
    able = [b for b in found.values() if b.chosen("evaluated")]
    chosen["clusters"] = [_subject(work, b, judged.ablation, judged.start_layer) for b in able]
    return chosen


def _subject(work: Work, behaviour: Behaviour, ablation: Any, start_layer: int) -> Subject:
    evaluator = Evaluator(
        work.load.model(),
        work.load.dictionaries(),
        behaviour.inputs("evaluated"),
        ablation=ablation,
        start_layer=start_layer,
    )
    return Subject(behaviour, evaluator)


def measure(work: Work, subject: Subject, way: Way, n_examples: int) -> Measured:
    """Find circuits one way, and judge them."""
    behaviour, evaluator = subject.behaviour, subject.evaluator
    inputs = behaviour.inputs("found")
    inputs = inputs.select(torch.arange(min(n_examples, inputs.n_examples)))
    model = work.load.model()
    began = time.process_time()
    with by_rules(model, way.rules):
        found = attribute(
            model,
            work.load.dictionaries(),
            inputs,
            estimator=way.estimator,
            by_position=behaviour.by_position,
        )
    seconds = time.process_time() - began
    circuit = found.circuit(node_threshold=0.0, edge_threshold=0.0, edges=False)
    able = [node for node in circuit.nodes if node.submodule in evaluator.dictionaries]
    able.sort(key=_strongest_first)
    faithfulness = [evaluator.evaluate(able[:size]).faithfulness for size in SIZES]
    return Measured(faithfulness, seconds, max(found.effects.gaps.values()))


def _strongest_first(node: Node) -> float:
    return -abs(node.effect)


def passes_of(estimator: Estimator, model: LanguageModel, names: Sequence[str]) -> float:
    """Passes that gradients take, in whole runs of the model; NaN where there are none."""
    if isinstance(estimator, Attribution):
        return 1.0
    if not isinstance(estimator, IntegratedGradients):
        return float("nan")
    layers = [0 if name == "embed" else int(name.rpartition("_")[2]) + 1 for name in names]
    return estimator.steps * sum(1 - layer / model.n_layers for layer in layers)


def row(way: Way, passes: float, found: Sequence[Measured]) -> dict[str, str]:
    """Means over behaviours, as a line of a table."""
    shares = [mean(one.faithfulness[i] for one in found) for i in range(len(SIZES))]
    points = getattr(way.estimator, "steps", 0)
    return {
        "gradients": way.rules,
        "points": f"midpoint, {points}"
        if points
        else way.estimator.label.replace("attribution", "clean"),
        "passes": f"{passes:.0f}",
        f"faithfulness, {' / '.join(map(str, SIZES))} nodes": " / ".join(
            f"{share:.3f}" for share in shares
        ),
        "mean of these": f"{mean(shares):.3f}",
        "largest gap": f"{mean(one.gap for one in found):.2g}",
        "CPU s": f"{mean(one.seconds for one in found):.2f}",
    }


def fits(experiment: Experiment, work: Work) -> Iterator[str]:
    """How estimates follow exact effects by submodule, medians over behaviours, as tables."""
    sources: dict[BehaviourSource, Sequence[str]] = {"clusters": experiment.examined}
    if experiment.settings.tasks is not None:
        sources = {"tasks": list(task_settings(experiment).pairs), **sources}
    for source, names in sources.items():
        tables = {t: [approximation(source, n, t) for n in names] for t in ("fits", "rankings")}
        of_nodes, ranked = (
            pd.concat([frame(work.store.read(key)) for key in keys]) for keys in tables.values()
        )
        by = of_nodes.groupby(["submodule", "estimator"], sort=False)
        columns = ["pearson", "slope", "spearman", "sign", "gap"]
        middle: Frame = by[columns].median()
        yield f"{source}: {', '.join(names)}\n{middle.unstack().round(2).to_string()}"
        by = ranked.groupby(["estimator", "n_nodes"], sort=False)
        shares: Frame = by["faithfulness"].mean()
        yield f"mean faithfulness\n{shares.unstack().round(2).to_string()}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--clusters", type=int, default=6)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--note", action="store_true")
    parser.add_argument("--fits", action="store_true")
    return parser.parse_args()


def main() -> None:
    """The command."""
    options = parse()
    experiment = read_experiment(options.experiment)
    work = Work.on(experiment)
    if options.fits:
        print(*fits(experiment, work), sep="\n\n")
        return
    model, names = work.load.model(), causal_order(work.load.dictionaries())
    ways = [Way(rules, points) for points in POINTS for rules in get_args(Rules)]
    ways.append(Way("plain", IntegratedGradients(10)))
    for source, of_source in subjects(experiment, work, options.clusters).items():
        print(f"{experiment.name}, {source}: {', '.join(s.behaviour.name for s in of_source)}")
        also = [Way("plain", Exact())] if options.exact and source == "tasks" else []
        for way in ways + also:
            found = [measure(work, subject, way, options.examples) for subject in of_source]
            line = row(way, passes_of(way.estimator, model, names), found)
            print("; ".join(f"{name}: {value}" for name, value in line.items()), flush=True)
            if options.note:
                heading = f"Estimators: {experiment.name}, {source}"
                append_row(heading, {**machine(), "behaviours": str(len(found)), **line})


if __name__ == "__main__":
    main()
