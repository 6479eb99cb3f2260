"""What must hold of each stage's table, as Dagster asset checks.

Blocking checks keep everything downstream from running on something broken.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import dagster as dg
import numpy as np

from assets.corpus.contexts import read_lengths
from assets.discovery.stages import vector_values
from assets.engine.stage import Work
from assets.evaluations.stages import finite
from assets.settings import Experiment


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        passed: whether it holds.
        says: one sentence, shown in the UI.
        figures: the numbers behind it.
    """

    passed: bool
    says: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name, asset: what the UI calls it and the asset it belongs to.
        description: what holds, as a sentence.
        look: reads the tables.
        blocking: nothing downstream runs when it fails.
        warns: a failure is a warning, not an error.
    """

    name: str
    asset: str
    description: str
    look: Callable[[Work], Outcome]
    blocking: bool = False
    warns: bool = False


def contexts_have_text(work: Work) -> Outcome:
    """There are contexts, and none is a single token."""
    lengths = read_lengths(work.store)
    short = int((lengths < 2).sum())
    return Outcome(
        len(lengths) > 0 and not short,
        f"{len(lengths)} contexts, {short} of them shorter than two tokens.",
        {"contexts": len(lengths), "tokens": int(lengths.sum())},
    )


def cache_is_whole(work: Work) -> Outcome:
    """Every submodule has the same tokens in the cache."""
    rows = work.store.read("activation_cache").to_pylist()
    counts = {row["n_rows"] for row in rows}
    missing = set(work.experiment.submodules) - {row["submodule"] for row in rows}
    return Outcome(
        len(counts) == 1 and not missing and min(counts) > 0,
        f"{len(rows)} submodules of {sorted(counts)} tokens; missing: {sorted(missing) or 'none'}.",
    )


def weights_are_finite(work: Work) -> Outcome:
    """Every dictionary written so far has finite directions and biases."""
    written = [s for s in work.experiment.submodules if work.store.footer(f"saes/{s}")]
    broken = []
    for submodule in written:
        table = work.store.read(f"saes/{submodule}", ["encoder_norm", "decoder_norm"])
        if not all(math.isfinite(v) for column in table.columns for v in column.to_pylist()):
            broken.append(submodule)
    return Outcome(not broken, f"{len(written)} dictionaries; not finite: {broken or 'none'}.")


def set_is_usable(work: Work) -> Outcome:
    """Every dictionary explains something with some features, and all numbers are finite."""
    rows = work.store.read("dictionary_set").to_pylist()
    broken = [row["submodule"] for row in rows if not _usable(row)]
    missing = set(work.experiment.submodules) - {row["submodule"] for row in rows}
    says = f"{len(rows)} dictionaries; unusable: {broken or 'none'}."
    if broken:
        says += " They reconstruct worse than the mean would, or never fire: train them longer."
    return Outcome(not broken and not missing, says, {"unusable": len(broken)})


def _usable(row: Mapping[str, Any]) -> bool:
    return (
        math.isfinite(row["ce_hat"])
        and row["variance_explained"] > 0  # False for NaN too
        and 0 < row["l0"] <= row["n_features"]
    )


def samples_pass_the_filter(work: Work) -> Outcome:
    """Every sample's loss is below the threshold and its context is there."""
    table = work.store.read("filtered_tokens", ["loss", "context"])
    losses, most = table["loss"].to_numpy(), work.experiment.settings.filter.max_loss
    bad = int((~(losses < most)).sum())
    lengths = table["context"].combine_chunks().value_lengths()
    empty = int((lengths.to_numpy() == 0).sum())
    return Outcome(
        len(losses) > 0 and not bad and not empty,
        f"{len(losses)} samples, {bad} with a loss of {most} or more, {empty} without context.",
        {"samples": len(losses)},
    )


def vectors_are_finite(work: Work) -> Outcome:
    """Every sample has a vector, finite and not zero everywhere."""
    rows = broken = zero = 0
    for values, offsets in vector_values(work):
        rows += len(offsets) - 1
        broken += int((_per_row(~np.isfinite(values), offsets) > 0).sum())
        zero += int((_per_row(values != 0, offsets) == 0).sum())
    return Outcome(not broken and not zero, f"{rows} vectors, {broken} not finite, {zero} zero.")


def _per_row(holds: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many values of each row it holds for."""
    before = np.concatenate([[0], holds.cumsum()])
    return np.diff(before[offsets])


def every_sample_is_assigned(work: Work) -> Outcome:
    """Each sample is in one cluster, and the largest cluster has more than one."""
    labels = work.store.read("cluster_assignments")["cluster"].to_pylist()
    samples = work.store.n_rows("filtered_tokens")
    shared = max(Counter(labels).values(), default=0)
    return Outcome(
        len(labels) == samples and min(labels, default=-1) >= 0 and shared > 1,
        f"{len(labels)} of {samples} samples assigned; the largest cluster has {shared}.",
        {"clusters": len(set(labels))},
    )


def clusters_add_up(work: Work) -> Outcome:
    """The sizes of all clusters add up to the samples."""
    sizes = work.store.read("clusters", ["size"])["size"].to_pylist()
    samples = work.store.n_rows("cluster_assignments")
    return Outcome(sum(sizes) == samples, f"{sum(sizes)} samples in clusters, of {samples}.")


def circuits_have_nodes(work: Work) -> Outcome:
    """Most clusters with samples have a circuit with nodes."""
    heads = [
        work.store.read(f"circuits/{key}/circuit").to_pylist()
        for key in work.experiment.clusters
        if work.store.footer(f"circuits/{key}/circuit")
    ]
    found = [rows[0] for rows in heads if rows]
    without = sum(row["n_nodes"] == 0 for row in found)
    return Outcome(
        bool(found) and without <= len(found) / 2,
        f"{len(found)} circuits, {without} without any node: a lower circuits.node_threshold "
        "keeps more.",
        {"circuits": len(found), "empty clusters": len(heads) - len(found)},
    )


def evaluations_are_numbers(work: Work) -> Outcome:
    """Faithfulness is a number for most circuits."""
    values = [
        row["faithfulness"]
        for key in work.experiment.clusters
        if work.store.footer(f"circuit_evaluations/{key}")
        for row in work.store.read(f"circuit_evaluations/{key}").to_pylist()
    ]
    usable = len(finite(values))
    return Outcome(
        usable > len(values) / 2,
        f"{usable} of {len(values)} evaluations are numbers; the others explain nothing because "
        "ablating every node leaves the metric as it is.",
    )


def circuits_are_faithful(work: Work) -> Outcome:
    """The median circuit is as faithful as the experiment expects."""
    settings = work.experiment.settings.evaluations
    rows = work.store.read("evaluation_summary").to_pylist()
    values = finite([r["faithfulness"] for r in rows if r["errors"] == settings.errors[0]])
    middle = median(values) if values else math.nan
    return Outcome(
        middle >= settings.min_faithfulness,
        f"Median faithfulness {middle:.2f} over {len(values)} circuits; at least "
        f"{settings.min_faithfulness} is expected (evaluations.min_faithfulness).",
        {"median faithfulness": middle} if values else {},
    )


def pairs_are_predicted(work: Work) -> Outcome:
    """The model prefers the clean answer on clean inputs and the patch answer on patch inputs."""
    rows = work.store.read("agreement_circuits").to_pylist()
    wrong = [row["name"] for row in rows if not row["metric_clean"] < 0 < row["metric_patch"]]
    return Outcome(
        bool(rows) and not wrong,
        f"{len(rows)} structures; answered wrongly on average: {wrong or 'none'}.",
    )


def curves_rise(work: Work) -> Outcome:
    """With nearly every node kept, circuits of pairs are more faithful than with none."""
    rows = work.store.read("agreement_evaluations").to_pylist()
    largest: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["errors"] == work.experiment.settings.evaluations.errors[0]:
            best = largest.get(row["name"])
            if best is None or row["n_nodes"] > best["n_nodes"]:
                largest[row["name"]] = row
    low = [name for name, row in largest.items() if not row["faithfulness"] > 0]
    return Outcome(
        bool(largest) and not low, f"{len(largest)} structures; not faithful: {low or 'none'}."
    )


_CHECKS = (
    Check("contexts_have_text", "contexts", "Every context has two tokens or more.",
          contexts_have_text, blocking=True),
    Check("cache_is_whole", "activation_cache", "All submodules hold the same tokens.",
          cache_is_whole, blocking=True),
    Check("weights_are_finite", "saes", "No weight is NaN or infinite.", weights_are_finite),
    Check("set_is_usable", "dictionary_set", "Each dictionary reconstructs and fires.",
          set_is_usable, blocking=True),
    Check("samples_pass_the_filter", "filtered_tokens", "Losses are below the threshold.",
          samples_pass_the_filter),
    Check("vectors_are_finite", "cluster_vectors", "Every vector can be compared.",
          vectors_are_finite, warns=True),
    Check("every_sample_is_assigned", "cluster_assignments", "Every sample has its cluster.",
          every_sample_is_assigned, blocking=True),
    Check("clusters_add_up", "clusters", "Sizes add up to the samples.", clusters_add_up),
    Check("circuits_have_nodes", "circuits", "At most half of the circuits have no node.",
          circuits_have_nodes, warns=True),
    Check("evaluations_are_numbers", "circuit_evaluations", "Most can be judged.",
          evaluations_are_numbers, warns=True),
    Check("circuits_are_faithful", "evaluation_summary", "The median circuit is faithful enough.",
          circuits_are_faithful, warns=True),
    Check("pairs_are_predicted", "agreement_circuits", "The model answers the pairs rightly.",
          pairs_are_predicted, warns=True),
    Check("curves_rise", "agreement_evaluations", "Large circuits are faithful.",
          curves_rise, warns=True),
)  # fmt: skip


def asset_check(check: Check, experiment: Experiment) -> dg.AssetChecksDefinition:
    """A check as Dagster runs it."""
    severity = dg.AssetCheckSeverity.WARN if check.warns else dg.AssetCheckSeverity.ERROR

    @dg.asset_check(
        asset=dg.AssetKey([experiment.name, check.asset]),
        name=check.name,
        description=check.description,
        blocking=check.blocking,
    )
    def run(_context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        found = check.look(Work.on(experiment))
        return dg.AssetCheckResult(
            passed=found.passed,
            severity=severity,
            description=found.says,
            metadata=dict(found.figures),
        )

    return run


def broken_checks(work: Work, asset: str) -> list[str]:
    """What the blocking checks of an asset say that fail now."""
    blocking = [check for check in _CHECKS if check.asset == asset and check.blocking]
    found = {check.name: check.look(work) for check in blocking}
    return [f"{name}: {what.says}" for name, what in found.items() if not what.passed]


def checks_of(experiment: Experiment, assets: Sequence[str]) -> list[dg.AssetChecksDefinition]:
    """The checks of those assets that the experiment has."""
    return [asset_check(check, experiment) for check in _CHECKS if check.asset in assets]
