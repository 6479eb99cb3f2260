"""Stage 6: how good estimates of effects are (Figure 8): against interventions, and as rankings.

Attribution is the slope at clean: what a node would do alone, if the model were linear. Integrated
gradients share out what a whole submodule does together. Both are held against the exact effect of
one node at a time (eq. 2) on nodes of every size, and circuits of equal size are chosen by either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from assets.circuits.behaviours import Behaviour
from assets.circuits.each import stage_of_each
from assets.circuits.pairs import task_settings
from assets.circuits.stages import estimator_of
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Stage, Work
from assets.evaluations.summary import finite
from assets.plots import picture, records, scatters
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import BehaviourSource, approximation
from assets.tables.schemas import TABLES
from core.estimators import Attribution, IntegratedGradients
from core.options import Ablation

if TYPE_CHECKING:
    from core.types import Node

ANSWERS = {
    "attribution": "single effect: what the node does alone, if the metric were linear in it",
    "integrated": "joint share: its part in what all nodes of the submodule do together",
}
"""What each estimate says of a node, by its column."""


@dataclass(frozen=True)
class Comparing:
    """How estimates are compared; see `assets.settings.ApproximationSettings`."""

    n_examples: int
    n_sampled: int
    seed: int
    sizes: tuple[int, ...]
    integrated: IntegratedGradients
    ablation: Ablation
    start_layer: int


@dataclass(frozen=True)
class Drawn:
    """A node whose exact effect is measured, and why it was drawn."""

    node: Node
    drawn: str


def draw_nodes(sizes: Mapping[Node, float], n: int, seed: int) -> list[Drawn]:
    """Nodes of every size: the strongest half of `n`, and one of each of as many strata below.

    Args:
        sizes: of the nodes of one submodule.
        n: how many at most.
    """
    ordered = sorted(sizes, key=lambda node: (-sizes[node], node.feature, node.pos or 0))
    strongest, rest = ordered[: math.ceil(n / 2)], ordered[math.ceil(n / 2) :]
    random, n_strata = Random(seed), min(n // 2, len(rest))
    bounds = [len(rest) * i // n_strata for i in range(n_strata + 1)] if n_strata else []
    strata = [rest[low:high] for low, high in pairwise(bounds)]
    return [
        *(Drawn(node, "strongest") for node in strongest),
        *(Drawn(random.choice(stratum), "random") for stratum in strata),
    ]


def fit(exact: Sequence[float], estimate: Sequence[float]) -> dict[str, float]:
    """How an estimate follows exact effects of the same nodes.

    Returns:
        ``pearson``, ``spearman``: NaN where one of both does not vary. ``slope``: the estimate over
        the exact effect, by least squares through zero. ``sign``: share of the nodes with an exact
        effect for which the estimate has its sign.
    """
    import numpy as np
    import pandas as pd

    x, y = np.asarray(exact, float), np.asarray(estimate, float)
    both = pd.DataFrame({"x": x, "y": y})
    moving = x != 0
    return {
        "pearson": float(both.corr("pearson").loc["x", "y"]),
        "spearman": float(both.corr("spearman").loc["x", "y"]),
        "slope": float(x @ y / (x @ x)) if moving.any() else math.nan,
        "sign": float((np.sign(x) == np.sign(y))[moving].mean()) if moving.any() else math.nan,
    }


def _compare_one(
    source: BehaviourSource, of_name: Mapping[str, Behaviour], work: Work, job: Job[Comparing]
) -> tuple[Made, str]:
    """The tables of one behaviour, and how near the estimates come, in words."""
    behaviour = of_name[job.key]
    if not behaviour.chosen("found"):
        return _made(source, job.key, [], [], []), "empty"
    estimated = _estimate(work, behaviour, job.settings)
    nodes = _measure(work, behaviour, job.settings, estimated)
    rows = [{"name": job.key, **row} for row in nodes]
    fits = [{"name": job.key, **row} for row in _fits(nodes, estimated)]
    ranked = [{"name": job.key, **row} for row in _rank(work, behaviour, job.settings, estimated)]
    middle = {
        column: median(
            finite([r["spearman"] for r in fits if r["estimator"] == column]) or [math.nan]
        )
        for column in ANSWERS
    }
    said = ", ".join(f"{column} {value:.2f}" for column, value in middle.items())
    made = _made(source, job.key, rows, fits, ranked)
    return made, f"rank correlation with {len(rows)} exact effects by {said}"


def _made(source: BehaviourSource, name: str, rows: Any, fits: Any, ranked: Any) -> Made:
    return Made(
        TABLES["approximations"].build(rows),
        beside={
            approximation(source, name, "fits"): TABLES["approximation_fits"].build(fits),
            approximation(source, name, "rankings"): TABLES["approximation_rankings"].build(ranked),
        },
    )


@dataclass(frozen=True)
class _Estimated:
    """What an estimator says of every node, on the same examples, and its gap by submodule."""

    effects: Mapping[Node, float]
    gaps: Mapping[str, float]


def _examples(behaviour: Behaviour, how: Comparing) -> Any:
    import torch

    inputs = behaviour.inputs("found")
    return inputs.select(torch.arange(min(inputs.n_examples, how.n_examples)))


def _estimate(work: Work, behaviour: Behaviour, how: Comparing) -> dict[str, _Estimated]:
    """Both estimates of every node; nodes are named without their effects."""
    from core.circuit import attribute

    estimated = {}
    for column, estimator in (("attribution", Attribution()), ("integrated", how.integrated)):
        found = attribute(
            work.load.model(),
            work.load.dictionaries(),
            _examples(behaviour, how),
            estimator=estimator,
            by_position=behaviour.by_position,
            budget_bytes=work.budget_bytes,
        ).circuit(node_threshold=0.0, edge_threshold=0.0, edges=False)
        effects = {node._replace(effect=0.0, stderr=None): node.effect for node in found.nodes}
        estimated[column] = _Estimated(effects, found.gaps)
    return estimated


def _measure(
    work: Work, behaviour: Behaviour, how: Comparing, estimated: Mapping[str, _Estimated]
) -> list[dict[str, Any]]:
    """The exact effects of nodes of every submodule, beside what was estimated."""
    from core.exact import patched_effects

    sizes: dict[str, dict[Node, float]] = {name: {} for name in work.load.dictionaries()}
    for of_one in estimated.values():
        for node, effect in of_one.effects.items():
            of_submodule = sizes[node.submodule]
            of_submodule[node] = of_submodule.get(node, 0.0) + abs(effect)
    drawn = [
        one
        for of_submodule in sizes.values()
        for one in draw_nodes(of_submodule, how.n_sampled, how.seed)
    ]
    exact = patched_effects(
        work.load.model(),
        work.load.dictionaries(),
        _examples(behaviour, how),
        [one.node for one in drawn],
        budget_bytes=work.budget_bytes,
    ).double()
    return [
        {
            "submodule": one.node.submodule,
            "feature": one.node.feature,
            "pos": one.node.pos,
            "drawn": one.drawn,
            "exact": effect,
            **{column: e.effects.get(one.node, 0.0) for column, e in estimated.items()},
        }
        for one, effect in zip(drawn, exact.mean(1).tolist(), strict=True)
    ]


def _fits(
    nodes: Sequence[Mapping[str, Any]], estimated: Mapping[str, _Estimated]
) -> Iterator[dict[str, Any]]:
    """How each estimate follows the exact effects, by submodule."""
    for submodule in dict.fromkeys(node["submodule"] for node in nodes):
        own = [node for node in nodes if node["submodule"] == submodule]
        exact = [node["exact"] for node in own]
        for column, of_one in estimated.items():
            yield {
                "submodule": submodule,
                "estimator": column,
                "answers": ANSWERS[column],
                "n_nodes": len(own),
                **fit(exact, [node[column] for node in own]),
                "gap": of_one.gaps[submodule],
            }


def _rank(
    work: Work, behaviour: Behaviour, how: Comparing, estimated: Mapping[str, _Estimated]
) -> Iterator[dict[str, Any]]:
    """How faithful the nodes with the largest effects are, chosen by each estimate."""
    from core.evaluate import Evaluator

    if not behaviour.chosen("evaluated"):
        return
    evaluator = Evaluator(
        work.load.model(),
        work.load.dictionaries(),
        behaviour.inputs("evaluated"),
        ablation=how.ablation,
        start_layer=how.start_layer,
        budget_bytes=work.budget_bytes,
    )
    for column, of_one in estimated.items():
        able = [n for n in of_one.effects if n.submodule in evaluator.dictionaries]
        able.sort(key=lambda node: -abs(of_one.effects[node]))
        for size in how.sizes:
            found = evaluator.evaluate(able[:size])
            yield {
                "estimator": column,
                "n_nodes": found.n_nodes,
                "faithfulness": found.faithfulness,
                "held_out": behaviour.held_out,
            }


def show_approximation_of(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """What each estimate answers, how well, a picture like Figure 8, and circuits by each."""
    nodes = frame(work.store.read(approximation(source, name)))
    if nodes.empty:
        return {"empty": True}
    fits = frame(work.store.read(approximation(source, name, "fits")))
    ranked = frame(work.store.read(approximation(source, name, "rankings")))
    shown: dict[str, Any] = {f"{column} is of a": says for column, says in ANSWERS.items()}
    columns = ["submodule", "estimator", "n_nodes", "pearson", "slope", "spearman", "sign", "gap"]
    return {
        **shown,
        "estimates against exact effects": picture(scatters(_panels(nodes), "exact effect")),
        "fits": records(fits[columns].to_dict("records")),
        "faithfulness of the largest": records(ranked.drop(columns="name").to_dict("records")),
    }


def _panels(nodes: Frame) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Points of each estimate, by submodule."""
    return {
        str(submodule): {
            column: (of_one["exact"].tolist(), of_one[column].tolist()) for column in ANSWERS
        }
        for submodule, of_one in nodes.groupby("submodule", sort=False)
    }


def _approximation_stage(
    source: BehaviourSource,
    *,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], Comparing],
) -> PartitionedStage[Comparing]:
    """The stage that compares estimates of the effects of the behaviours of one source."""
    return stage_of_each(
        source,
        approximation,
        _compare_one,
        "estimates",
        description="How good estimated effects are: nodes of every submodule patched one at a "
        "time, against attribution and integrated gradients (Figure 8), and how faithful circuits "
        "of the same size are that either chooses.",
        beside=["approximation_fits", "approximation_rankings"],
        partitions=partitions,
        reads=reads,
        show=show_approximation_of,
    )


def _comparing(
    experiment: Experiment, integrated: IntegratedGradients, ablation: Ablation, start_layer: int
) -> Comparing:
    how = experiment.settings.evaluations.approximations
    assert how is not None, "these stages exist only with settings"
    drawn = (how.n_examples, how.n_sampled, how.seed, how.sizes)
    return Comparing(*drawn, integrated, ablation, start_layer)


def _reads_cluster(experiment: Experiment, _name: str) -> Comparing:
    own, judged = estimator_of(experiment.settings.circuits), experiment.settings.evaluations
    # Where circuits are found by another estimator, integrated gradients are the default ones.
    integrated = own if isinstance(own, IntegratedGradients) else IntegratedGradients()
    return _comparing(experiment, integrated, judged.ablation, judged.start_layer)


def _reads_task(experiment: Experiment, _name: str) -> Comparing:
    tasks = task_settings(experiment)
    return _comparing(experiment, IntegratedGradients(tasks.steps), "mean", tasks.start_layer)


CIRCUIT_APPROXIMATIONS_STAGE = _approximation_stage(
    "clusters", partitions=lambda experiment: experiment.examined, reads=_reads_cluster
)

TASK_APPROXIMATIONS_STAGE = _approximation_stage(
    "tasks",
    partitions=lambda experiment: list(task_settings(experiment).pairs),
    reads=_reads_task,
)


def approximation_stages(experiment: Experiment) -> list[Stage]:
    """The stages that compare estimates; none where the experiment leaves them out."""
    if experiment.settings.evaluations.approximations is None:
        return []
    stages: list[Stage] = []
    if experiment.examined:
        stages.append(CIRCUIT_APPROXIMATIONS_STAGE)
    if experiment.settings.tasks is not None:
        stages.append(TASK_APPROXIMATIONS_STAGE)
    return stages
