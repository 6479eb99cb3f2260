"""Stage 6: how much of its behaviour each circuit explains, at every size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from assets.circuits.behaviours import Behaviour, classifier_settings
from assets.circuits.each import is_shown_whole, stage_of_each
from assets.circuits.pairs import task_settings
from assets.circuits.stages import load_circuit
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Stage, Work
from assets.evaluations.approximations import approximation_stages
from assets.evaluations.baselines import baseline_stages
from assets.evaluations.fresh import judged_from
from assets.evaluations.overlap import CIRCUIT_OVERLAP_STAGE
from assets.evaluations.summary import EVALUATION_SUMMARY_STAGE
from assets.evaluations.transfer import CIRCUIT_TRANSFER_STAGE
from assets.plots import records
from assets.settings import EvaluationSettings, Experiment
from assets.tables.conversions import frame, read_nodes
from assets.tables.places import CLASSIFIER, BehaviourSource, circuit, evaluation
from assets.tables.schemas import TABLES
from core.errors import InputError
from core.options import Ablation, ErrorNodes

if TYPE_CHECKING:
    from core.evaluate import Evaluation
    from core.types import Circuit


@dataclass(frozen=True)
class Judging:
    """How circuits are judged; see `assets.settings.EvaluationSettings`."""

    ablation: Ablation
    error_nodes: tuple[ErrorNodes, ...]
    start_layer: int
    thresholds: tuple[float, ...]
    other_start_layers: tuple[int, ...] = ()


def thresholds(how: EvaluationSettings) -> tuple[float, ...]:
    """The thresholds of a curve, neighbours in equal ratios."""
    low, ratio = how.lowest_threshold, how.highest_threshold / how.lowest_threshold
    return tuple(low * ratio ** (i / (how.n_thresholds - 1)) for i in range(how.n_thresholds))


def _evaluate_one(
    source: BehaviourSource, of_name: Mapping[str, Behaviour], work: Work, job: Job[Judging]
) -> tuple[Made, str]:
    """The table of one circuit, and how faithful it is in words."""
    found = load_circuit(work.store, source, job.key)
    try:
        rows = [] if found is None else list(_judge(source, work, of_name[job.key], found, job))
    except InputError as error:
        raise InputError(f"{job.key} cannot be judged: {error}") from error
    said = f"faithfulness {rows[0]['faithfulness']:.2f}" if rows else why_not(found)
    return Made(TABLES["circuit_evaluations"].build(rows)), said


def _judge(
    source: BehaviourSource, work: Work, behaviour: Behaviour, found: Circuit, job: Job[Judging]
) -> Iterator[dict[str, Any]]:
    """The circuit itself and then circuits of every size, under each policy for error nodes.

    From layers other than the first start layer on, the circuit itself alone.
    """
    from core.evaluate import Evaluator

    if not behaviour.chosen("evaluated"):
        return
    how = job.settings
    effects = read_nodes(work.store.read(circuit(source, job.key, "effects")))
    for start_layer in (how.start_layer, *how.other_start_layers):
        evaluator = Evaluator(
            work.load.model(),
            work.load.dictionaries(),
            behaviour.inputs("evaluated"),
            ablation=how.ablation,
            start_layer=start_layer,
            budget_bytes=work.budget_bytes,
        )
        for error_nodes in how.error_nodes:
            common = {
                "name": job.key,
                "error_nodes": error_nodes,
                "ablation": how.ablation,
                "start_layer": start_layer,
                "held_out": behaviour.held_out,
            }
            own = evaluator.evaluate(found, error_nodes)
            yield {**common, "threshold": None, **_columns(own)}
            points = how.thresholds if start_layer == how.start_layer else ()
            curve = evaluator.curve(effects, points, error_nodes)
            for threshold, point in zip(points, curve, strict=True):
                yield {**common, "threshold": threshold, **_columns(point)}


def why_not(found: Circuit | None) -> str:
    """Why a behaviour's circuit is not judged."""
    return "empty" if found is None else "not judged: its cluster holds one distinct sample"


def _columns(point: Evaluation) -> dict[str, Any]:
    return asdict(point)


def show_evaluation_of(source: BehaviourSource, work: Work, name: str) -> Metadata:
    """Faithfulness and completeness of the circuit; of the first also its curve."""
    table = frame(work.store.read(evaluation(source, name)))
    if table.empty:
        return {"not judged": why_not(load_circuit(work.store, source, name))}
    shown: dict[str, Any] = {}
    for own in table[table["threshold"].isna()].to_dict("records"):
        of = f"from layer {own['start_layer']}, error nodes: {own['error_nodes']}"
        for column in ("faithfulness", "completeness"):
            if math.isfinite(own[column]):
                shown[f"{column} ({of})"] = float(own[column])
        if math.isfinite(own["faithfulness_low"]):
            interval = f"{own['faithfulness_low']:.2f} to {own['faithfulness_high']:.2f}"
            shown[f"95% of draws of {own['n_examples']} examples ({of})"] = interval
    if is_shown_whole(source, name):
        columns = ["start_layer", "error_nodes", "n_nodes", "faithfulness"]
        shown["curve"] = records(table.dropna(subset="threshold")[columns].to_dict("records"))
    return shown


def _evaluation_stage(
    source: BehaviourSource,
    description: str,
    *,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], Judging],
) -> PartitionedStage[Judging]:
    """The stage that judges the circuits of the behaviours of one source."""
    return stage_of_each(
        source,
        evaluation,
        _evaluate_one,
        "evaluation",
        description=description,
        partitions=partitions,
        deps=[circuit(source, "").stage],
        reads=reads,
        inputs=judged_from,
        show=show_evaluation_of,
    )


def _reads_cluster(experiment: Experiment, _name: str) -> Judging:
    how = experiment.settings.evaluations
    return Judging(
        how.ablation, how.error_nodes, how.start_layer, thresholds(how), how.other_start_layers
    )


def _reads_task(experiment: Experiment, _name: str) -> Judging:
    how = experiment.settings.evaluations
    start_layer = task_settings(experiment).start_layer
    return Judging("mean", how.error_nodes, start_layer, thresholds(how))


CIRCUIT_EVALUATIONS_STAGE = _evaluation_stage(
    "clusters",
    "Faithfulness and completeness of each cluster's circuit, at every size: what of the model's "
    "behaviour is left when everything outside the circuit, or the circuit itself, is ablated.",
    partitions=lambda experiment: experiment.clusters,
    reads=_reads_cluster,
)

TASK_EVALUATIONS_STAGE = _evaluation_stage(
    "tasks",
    "Faithfulness and completeness of each task's circuit, at every size, on pairs that were not "
    "used to find it.",
    partitions=lambda experiment: list(task_settings(experiment).pairs),
    reads=_reads_task,
)


def _reads_classifier(experiment: Experiment, _name: str) -> Judging:
    how = experiment.settings.evaluations
    start_layer = classifier_settings(experiment).circuit.start_layer
    return Judging("zero", how.error_nodes, start_layer, thresholds(how))


CLASSIFIER_EVALUATIONS_STAGE = _evaluation_stage(
    "classifiers",
    "Faithfulness and completeness of the classifier's circuit, at every size, on texts that were "
    "not used to find it.",
    partitions=lambda _experiment: [CLASSIFIER],
    reads=_reads_classifier,
)


def evaluation_stages(experiment: Experiment) -> list[Stage]:
    """The stages that judge circuits, those that compare them, and those over all of them."""
    stages: list[Stage] = [CIRCUIT_EVALUATIONS_STAGE]
    if experiment.settings.tasks is not None:
        stages.append(TASK_EVALUATIONS_STAGE)
    if experiment.settings.classifier is not None:
        stages.append(CLASSIFIER_EVALUATIONS_STAGE)
    return [
        *stages,
        *baseline_stages(experiment),
        *approximation_stages(experiment),
        EVALUATION_SUMMARY_STAGE,
        CIRCUIT_OVERLAP_STAGE,
        CIRCUIT_TRANSFER_STAGE,
    ]
