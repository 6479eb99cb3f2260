"""What must hold of each stage's table, as Dagster asset checks.

Blocking checks keep everything downstream from running on something broken.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import dagster as dg
import numpy as np

from assets.corpus.contexts import read_lengths
from assets.discovery.clusterings import vector_values
from assets.engine.recipe import digest
from assets.engine.store import ArtifactStore
from assets.evaluations.edges import ENDS, agreement, measured_edges
from assets.evaluations.summary import compared_of, finite, names_of
from assets.settings import CheckSettings, Experiment, ExperimentError, TrainSettings
from assets.tables.conversions import Frame, frame
from assets.tables.places import (
    ACTIVATION_CACHE,
    CIRCUIT_OVERLAP,
    CIRCUIT_TRANSFER,
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    FILTERED_TOKENS,
    IMPORT_CHECKS,
    JUDGEMENTS,
    LABELLED_TEXTS,
    LABELS,
    PROBE,
    RULE_LABELS,
    SHIFT,
    BehaviourSource,
    approximation,
    assignments,
    baselines,
    cards,
    circuit,
    clusters,
    edge_evaluation,
    evaluation,
    examples,
    sae,
)
from assets.tables.schemas import TABLES

_SHOWN = 10
_MOST_UNMET = 0.05
_ROUNDING = 1e-3
"""Faithfulness of float32 runs that take different ways to the same numbers."""
_LEAST_AGREEMENT = 0.75
_MOST_MOVED = 0.01
_HEAD = ["n_nodes", "n_examples", "gap", "unmet", "stability"]
"""Columns of a circuit that its checks ask for, together."""
_OF_ONE_SUBMODULE = frozenset({"submodule", "path", "contents"})
"""Settings and inputs in which imported dictionaries of one set differ."""


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
    look: Callable[[Experiment, ArtifactStore], Outcome]
    blocking: bool = False
    warns: bool = False


def contexts_have_text(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """There are contexts, and hardly any is a single token."""
    lengths = read_lengths(store)
    short, most = int((lengths < 2).sum()), experiment.settings.checks.max_short_contexts
    return Outcome(
        len(lengths) > 0 and short <= most * len(lengths),
        f"{len(lengths)} contexts, {short} of them shorter than two tokens; at most a share of "
        f"{most:g} may be (checks.max_short_contexts).",
        {"contexts": len(lengths), "tokens": int(lengths.sum())},
    )


def cache_is_whole(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every submodule has the same tokens in the cache."""
    rows = store.read(ACTIVATION_CACHE).to_pylist()
    counts = {row["n_rows"] for row in rows}
    missing = set(experiment.submodules) - {row["submodule"] for row in rows}
    return Outcome(
        len(counts) == 1 and not missing and min(counts) > 0,
        f"{len(rows)} submodules of {sorted(counts)} tokens; missing: {sorted(missing) or 'none'}.",
    )


def weights_are_finite(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every dictionary written so far has finite directions and biases."""
    written = [s for s in experiment.submodules if store.footer(sae(s))]
    broken = []
    for submodule in written:
        table = store.read(sae(submodule), ["encoder_norm", "decoder_norm"])
        if not all(math.isfinite(v) for column in table.columns for v in column.to_pylist()):
            broken.append(submodule)
    return Outcome(not broken, f"{len(written)} dictionaries; not finite: {broken or 'none'}.")


def set_is_usable(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every dictionary explains something with some features, and all numbers are finite."""
    rows = store.read(DICTIONARY_SET).to_pylist()
    limits = experiment.settings.checks
    why = {row["submodule"]: reasons for row in rows if (reasons := _unusable(row, limits))}
    missing = sorted(set(experiment.submodules) - {row["submodule"] for row in rows})
    says = f"{len(rows)} dictionaries; missing: {missing or 'none'}; unusable: "
    says += "; ".join(f"{name} ({', '.join(reasons)})" for name, reasons in why.items()) or "none"
    if why:
        says += ". Train them longer, take others, leave these submodules out, or lower the limits"
    return Outcome(not why and not missing, f"{says}.", {"unusable": len(why)})


def _unusable(row: Mapping[str, Any], limits: CheckSettings) -> list[str]:
    """What a dictionary falls short of, with the setting that says so."""
    least, l0 = limits.min_variance_explained, row["l0"]
    holds = {
        "cross-entropy with it in place is not finite": math.isfinite(row["ce_hat"]),
        # A comparison with NaN is False.
        f"variance explained {row['variance_explained']:.3g}, not above "
        f"checks.min_variance_explained: {least}": (
            least is None or row["variance_explained"] > least
        ),
        f"L0 {l0:.3g}, not above checks.min_l0: {limits.min_l0:g}": l0 > limits.min_l0,
        f"L0 {l0:.3g} of {row['n_features']} features": l0 <= row["n_features"],
        f"{row['alive']:.3g} alive, below checks.min_alive: {limits.min_alive:g}": (
            row["alive"] >= limits.min_alive
        ),
    }
    return [reason for reason, held in holds.items() if not held]


def set_is_made_alike(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """All dictionaries were made by the same settings and code, from the same inputs.

    Active features per token may differ, as the experiment says.
    """
    wanted = experiment.settings.dictionaries
    groups: dict[str, list[str]] = {}
    for submodule in experiment.submodules:
        if (footer := store.footer(sae(submodule))) is not None:
            notes = footer.notes
            settings = {k: v for k, v in notes["settings"].items() if k not in _OF_ONE_SUBMODULE}
            if isinstance(wanted, TrainSettings) and settings.get("k") == wanted.k_of(submodule):
                del settings["k"]
            inputs = {k: v for k, v in notes["inputs"].items() if k not in _OF_ONE_SUBMODULE}
            groups.setdefault(digest([settings, inputs, notes["code"]]), []).append(submodule)
    parts = sorted(groups.values(), key=len)
    few = "; ".join(", ".join(part[:_SHOWN]) for part in parts[:-1])
    return Outcome(
        len(groups) == 1,
        f"{sum(map(len, parts))} dictionaries, made in {len(groups)} ways"
        + (f"; unlike the most: {few}. Materialize saes for all submodules." if few else "."),
        {"ways": len(groups)},
    )


def l0_is_near_k(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Dictionaries trained for k active features per token have about as many on held-out text."""
    factor = experiment.settings.checks.l0_factor
    pairs = {
        row["submodule"]: (row["l0"], wanted)
        for row in store.read(DICTIONARY_SET, ["submodule", "l0"]).to_pylist()
        if store.footer(sae(row["submodule"]))
        and (wanted := store.notes(sae(row["submodule"])).get("wanted_l0"))
    }
    far = [
        f"{name} {l0:.1f} for {wanted}"
        for name, (l0, wanted) in pairs.items()
        if not wanted / factor <= l0 <= wanted * factor
    ]
    return Outcome(
        not far,
        f"{len(pairs)} dictionaries trained for a number of features; L0 off by more than a factor "
        f"of {factor:g} (checks.l0_factor): {', '.join(far) or 'none'}.",
        {"far": len(far)},
    )


def imports_are_as_said(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """What the files of imported dictionaries say of them holds."""
    rows = store.read(IMPORT_CHECKS).to_pylist()
    differing = [row for row in rows if row["verdict"] == "warn"]
    unchecked = sum(row["verdict"] == "unchecked" for row in rows)
    told = [f"{r['submodule']} {r['claim']}: {r['message']}" for r in differing[:_SHOWN]]
    return Outcome(
        not differing,
        f"{len(rows)} claims, {unchecked} that nothing compares with, {len(differing)} that do not "
        f"hold{': ' if told else '.'}{' '.join(told)}",
        {"claims": len(rows), "differing": len(differing), "unchecked": unchecked},
    )


def samples_pass_the_filter(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every sample's loss is below the threshold and its context is there."""
    table = store.read(FILTERED_TOKENS, ["loss", "context"])
    losses, most = table["loss"].to_numpy(), experiment.settings.filter.max_loss
    bad = int((~(losses < most)).sum())
    lengths = table["context"].combine_chunks().value_lengths()
    empty = int((lengths.to_numpy() == 0).sum())
    return Outcome(
        len(losses) > 0 and not bad and not empty,
        f"{len(losses)} samples, {bad} with a loss of {most} or more, {empty} without context.",
        {"samples": len(losses)},
    )


def vectors_are_finite(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every sample has a vector, finite and not zero everywhere."""
    rows = broken = zero = 0
    for values, offsets in vector_values(store):
        rows += len(offsets) - 1
        broken += int((_per_row(~np.isfinite(values), offsets) > 0).sum())
        zero += int((_per_row(values != 0, offsets) == 0).sum())
    return Outcome(not broken and not zero, f"{rows} vectors, {broken} not finite, {zero} zero.")


def _per_row(holds: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many values of each row it holds for."""
    before = np.concatenate([[0], holds.cumsum()])
    return np.diff(before[offsets])


def every_sample_is_assigned(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Each sample is in one cluster, and the largest cluster has enough."""
    labels = store.read(assignments())["cluster"].to_pylist()
    samples = store.n_rows(FILTERED_TOKENS)
    shared = max(Counter(labels).values(), default=0)
    least = experiment.settings.checks.min_largest_cluster
    return Outcome(
        len(labels) == samples and min(labels, default=-1) >= 0 and shared >= least,
        f"{len(labels)} of {samples} samples assigned; the largest cluster has {shared}, of "
        f"{least} that it must have (checks.min_largest_cluster).",
        {"clusters": len(set(labels))},
    )


def clusters_add_up(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The sizes of all clusters add up to the samples."""
    sizes = store.read(clusters(), ["size"])["size"].to_pylist()
    samples = store.n_rows(assignments())
    return Outcome(sum(sizes) == samples, f"{sum(sizes)} samples in clusters, of {samples}.")


def _circuits_have_nodes(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """Most behaviours with examples have a circuit with nodes."""
    keys = [circuit(source, name) for name in names_of(experiment)[source]]
    heads = [store.rows(key, _HEAD) for key in keys if store.footer(key)]
    sizes = [rows[0]["n_nodes"] for rows in heads if rows]
    without = sizes.count(0)
    return Outcome(
        bool(sizes) and without <= len(sizes) / 2,
        f"{len(sizes)} circuits, {without} without any node: a lower node_threshold keeps more.",
        {"circuits": len(sizes), "empty clusters": len(heads) - len(sizes)},
    )


def _integrals_converged(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """Effects sum to what ablating or patching a whole submodule does, as far as was asked for."""
    keys = {name: circuit(source, name) for name in names_of(experiment)[source]}
    heads = {name: rows[0] for name, key in keys.items() if (rows := store.rows(key, _HEAD))}
    gaps = {name: head["gap"] for name, head in heads.items() if math.isfinite(head["gap"])}
    if not gaps:
        return Outcome(True, "No effects by integrated gradients or attribution.")
    worst = max(gaps, key=lambda name: gaps[name])
    short = [name for name, head in heads.items() if (head["unmet"] or 0) > _MOST_UNMET]
    says = (
        f"The largest mean completeness gap of a submodule is {gaps[worst]:.2g} ({worst}), in the "
        f"middle of {len(gaps)} circuits {float(np.median(list(gaps.values()))):.2g}"
    )
    if short:
        says += (
            f"; {len(short)} have more than {_MOST_UNMET:.0%} of their integrals short of the "
            f"tolerance: {', '.join(short[:_SHOWN])}. Raise circuits.tolerance or circuits.steps"
        )
    return Outcome(not short, f"{says}.", {"largest gap": gaps[worst], "short": len(short)})


def _evaluations_are_numbers(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """Faithfulness is a number for most circuits."""
    keys = [evaluation(source, name) for name in names_of(experiment)[source]]
    rows = [row for key in keys for row in store.rows(key, ["threshold", "faithfulness"])]
    values = [row["faithfulness"] for row in rows if row["threshold"] is None]
    usable = len(finite(values))
    return Outcome(
        usable > len(values) / 2,
        f"{usable} of {len(values)} evaluations are numbers; the others explain nothing because "
        "ablating every node leaves the metric as it is.",
    )


def _middle(values: Sequence[float]) -> float:
    """The median of those that are numbers; NaN if none is."""
    return median(finite(values) or [math.nan])


def _estimates_follow(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """Integrated gradients put nodes in much the order of their exact effects."""
    how = experiment.settings.evaluations.approximations
    assert how is not None, "checked where it is made"
    names = experiment.examined if source == "clusters" else names_of(experiment)[source]
    keys = [approximation(source, name, "fits") for name in names]
    columns = ["estimator", "spearman", "slope"]
    rows = [r for key in keys if store.footer(key) for r in store.read(key, columns).to_pylist()]
    middle = {
        (of, column): _middle([row[column] for row in rows if row["estimator"] == of])
        for of in ("integrated", "attribution")
        for column in ("spearman", "slope")
    }
    correlation = middle["integrated", "spearman"]
    return Outcome(
        not correlation < how.min_correlation,
        f"In the middle of {len(rows) // 2} submodules and behaviours, ranks of integrated "
        f"gradients correlate with exact effects by {correlation:.2f} (slope "
        f"{middle['integrated', 'slope']:.2f}), those of attribution by "
        f"{middle['attribution', 'spearman']:.2f} (slope {middle['attribution', 'slope']:.2f}).",
    )


def circuits_are_stable(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Most circuits of clusters agree between halves of their examples as much as was asked for."""
    wanted = experiment.settings.circuits.stability
    keys = [circuit("clusters", name) for name in names_of(experiment)["clusters"]]
    rows = [row for key in keys for row in store.rows(key, _HEAD)]
    found = [row["stability"] for row in rows if row["stability"] is not None]
    single = len(rows) - len(found)
    middle = float(np.median(found)) if found else math.nan
    stable = sum(stability >= (wanted or 0) for stability in found)
    return Outcome(
        wanted is None or stable >= len(rows) / 2,
        f"{stable} of {len(rows)} circuits agree between two halves of their examples to "
        f"{wanted or 0:g} or more (circuits.stability), the median circuit to {middle:.2f}; "
        f"{single} are of one example. Larger clusters, or a higher node_threshold, agree more.",
        {"stable": stable, "median stability": middle} if found else {},
    )


def circuits_are_faithful(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The median circuit of a cluster is as faithful as the experiment expects."""
    settings = experiment.settings.evaluations
    table = frame(store.read(EVALUATION_SUMMARY))
    judged = (table["source"] == "clusters") & (table["error_nodes"] == settings.error_nodes[0])
    judged &= table["start_layer"] == settings.start_layer
    values = table[judged]["faithfulness"].dropna()
    middle = float(values.median()) if len(values) else math.nan
    return Outcome(
        middle >= settings.min_faithfulness,
        f"Median faithfulness {middle:.2f} over {len(values)} circuits; at least "
        f"{settings.min_faithfulness} is expected (evaluations.min_faithfulness).",
        {"median faithfulness": middle} if len(values) else {},
    )


def summary_is_current(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every circuit was found from the examples that its behaviour has now."""
    n_stale = store.notes(EVALUATION_SUMMARY)["n_stale"]
    return Outcome(
        n_stale == 0,
        f"{n_stale} circuits or evaluations are of earlier examples or dictionaries and left out: "
        "materialize circuits and circuit_evaluations (task_circuits and task_evaluations for "
        "tasks).",
    )


def pairs_are_of_one_length(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The pairs of a task have as many tokens, so that ablated nodes get their position's mean."""
    lengths: dict[str, set[int]] = {}
    for row in store.read(examples("tasks"), ["name", "evaluated", "clean"]).to_pylist():
        if row["evaluated"]:
            lengths.setdefault(row["name"], set()).add(len(row["clean"]))
    several = [f"{n} ({min(of)} to {max(of)})" for n, of in lengths.items() if len(of) > 1]
    return Outcome(
        not several,
        f"{len(lengths)} tasks; pairs of several lengths in tokens: {', '.join(several) or 'none'}."
        + (
            " What is ablated gets the mean over all positions there, also at the first, which "
            "attention rests on: no circuit, however good, may keep much of the behaviour. Set "
            "tasks.by_position: true, which keeps the pairs of the most frequent length, or give "
            "files of one template."
            if several
            else ""
        ),
    )


def pairs_are_predicted(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The model prefers the clean answer on clean inputs and the patch answer on patch inputs."""
    names = names_of(experiment)["tasks"]
    keys = {name: circuit("tasks", name) for name in names if store.footer(circuit("tasks", name))}
    heads = {name: store.read(key).to_pylist()[0] for name, key in keys.items()}
    wrong = [name for name, h in heads.items() if not h["metric_clean"] < 0 < h["metric_patch"]]
    return Outcome(
        bool(heads) and not wrong,
        f"{len(heads)} tasks; answered wrongly on average: {wrong or 'none'}.",
    )


def _edges_are_nodes(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """With every possible edge the nodes do what they do where no edge is ablated."""
    off = {}
    for name in _examined(source, experiment):
        if store.footer(edge_evaluation(source, name)) is None:
            continue
        table = frame(store.read(edge_evaluation(source, name)))
        whole = table[(table["kept"] == "strongest") & (table["share"] == 1)]["faithfulness"]
        nodes = table[table["kept"] == "nodes"]["faithfulness"]
        if len(nodes):
            off[name] = abs(float(whole.iloc[0]) - float(nodes.iloc[0]))
    # Where nothing is to be explained faithfulness is NaN either way.
    far = [name for name, difference in off.items() if difference > _ROUNDING]
    return Outcome(
        not far,
        f"{len(off)} circuits; with every edge in place the faithfulness of the nodes differs by "
        f"at most {max(finite(list(off.values())), default=0.0):.1g}, more than rounding: "
        f"{far or 'none'}.",
    )


def _weights_predict(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """Weights rank edges between features as interventions do."""
    least = experiment.settings.evaluations.min_edge_correlation
    table = measured_edges(store, source, _examined(source, experiment))
    parts = {ends: table["at_error"] == at for at, ends in ENDS.items()}
    rank = {
        (of, by): agreement(table[rows], by)["spearman"]
        for of, rows in parts.items()
        for by in ("path", "effect")
    }
    lowest = rank["between features", "path"]
    says = "; ".join(
        f"{of} {rank[of, 'path']:.2f} with the direct path and {rank[of, 'effect']:.2f} with the "
        f"effect on the metric ({int(rows.sum())} edges)"
        for of, rows in parts.items()
    )
    return Outcome(
        not lowest < least,
        f"Rank correlation of weights {says}. At least {least:g} is expected of the first "
        "(evaluations.min_edge_correlation).",
        {"rank correlation": lowest} if math.isfinite(lowest) else {},
    )


def _examined(source: BehaviourSource, experiment: Experiment) -> Sequence[str]:
    return experiment.examined if source == "clusters" else names_of(experiment)[source]


def curves_rise(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """With nearly every node kept, circuits of tasks are more faithful than with none."""
    first, low = experiment.settings.evaluations.error_nodes[0], []
    names = [
        name for name in names_of(experiment)["tasks"] if store.footer(evaluation("tasks", name))
    ]
    for name in names:
        table = frame(store.read(evaluation("tasks", name)))
        curve = table[(table["error_nodes"] == first) & table["threshold"].notna()]
        if not curve.sort_values("n_nodes")["faithfulness"].iloc[-1] > 0:
            low.append(name)
    return Outcome(bool(names) and not low, f"{len(names)} tasks; not faithful: {low or 'none'}.")


def _whole_and_empty(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """All nodes together have faithfulness 1, none has 0 and leaves 1 to its complement."""
    most, worst, where = experiment.settings.evaluations.rounding, 0.0, ""
    points = _points(source, experiment, store)
    exact = points[points["variant"].isin(_EXACT)]
    whole = (exact[exact["fraction"] == 1]["faithfulness"] - 1).abs()
    empty = exact[(exact["n_nodes"] == 0) & exact["fraction"].isna()]
    off = {
        "all nodes": whole,
        "no node": empty["faithfulness"].abs(),
        "the complement of none": (empty["completeness"] - 1).abs(),
    }
    for what, distances in off.items():
        if len(distances.dropna()) and distances.max() >= worst:
            at = points.loc[distances.idxmax()]
            worst, where = float(distances.max()), f"{what} of {at['name']}, {at['variant']}"
    return Outcome(
        len(whole) > 0 and worst <= most,
        f"{len(whole)} curves; faithfulness is furthest from 1, or 0, for {where or 'nothing'}: "
        f"{worst:.2g}, of {most:g} that rounding may do (evaluations.rounding).",
        {"furthest": worst},
    )


_EXACT = ("features", "neurons", "mlp_neurons", "random_nodes", "random_decoder")
"""Variants whose nodes together are the whole model."""


def _random_below_circuit(
    source: BehaviourSource, experiment: Experiment, store: ArtifactStore
) -> Outcome:
    """As many random nodes are less faithful than the circuit, from its first start layer on."""
    margin = experiment.settings.evaluations.random_margin
    points = _points(source, experiment, store)
    first = points["start_layer"] == points.groupby("name")["start_layer"].transform("first")
    own = points[points["of_circuit"] & first]
    table = own.groupby(["name", "variant"])["faithfulness"].mean().unstack("variant")
    if not {"features", "random_nodes"} <= set(table):
        return Outcome(True, "Circuits are not compared with random nodes (evaluations.variants).")
    above = (table["features"] - table["random_nodes"]).dropna()
    near = above[above < margin].index.tolist()
    return Outcome(
        len(above) > 0 and not near,
        f"{len(above)} circuits; as many random nodes come nearer than {margin:g} "
        f"(evaluations.random_margin) to: {', '.join(near[:_SHOWN]) or 'none'}.",
        {"smallest margin": float(above.min())} if len(above) else {},
    )


def _points(source: BehaviourSource, experiment: Experiment, store: ArtifactStore) -> Frame:
    """The points of all curves of baselines that are there."""
    keys = [baselines(source, name) for name in compared_of(experiment).get(source, ())]
    table = TABLES["baselines"].build(
        row for key in keys if store.footer(key) for row in store.read(key).to_pylist()
    )
    return frame(table)


def circuits_differ(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """No two clusters have nearly the same circuit."""
    most = experiment.settings.evaluations.max_overlap
    table = frame(store.read(CIRCUIT_OVERLAP))
    of_clusters = (table["source"] == "clusters") & (table["other_source"] == "clusters")
    pairs = table[of_clusters & (table["part"] == "nodes")]
    alike = pairs[pairs["weighted"] > most].sort_values("weighted", ascending=False)
    told = [f"{r['name']} and {r['other']} {r['weighted']:.2f}" for r in alike.to_dict("records")]
    return Outcome(
        not told,
        f"{len(pairs)} pairs of circuits of clusters; sharing more than {most:g} of their effect "
        f"(evaluations.max_overlap): {', '.join(told[:_SHOWN]) or 'none'}. Alike circuits are one "
        "behaviour in two clusters: ask for fewer clusters.",
        {"alike": len(told)},
    )


def own_circuits_explain_most(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Most behaviours are explained better by their own circuit than by the median other one."""
    table = frame(store.read(CIRCUIT_TRANSFER))
    table = table[~table["by_position"]].dropna(subset="faithfulness")
    own = table[table["name"] == table["circuit"]].set_index(["source", "name"])["faithfulness"]
    others = table[table["name"] != table["circuit"]].groupby(["source", "name"])["faithfulness"]
    compared = (own - others.median()).dropna()
    worse = [name for (_, name), ahead in compared.items() if not ahead > 0]
    return Outcome(
        len(worse) <= len(compared) / 2,
        f"{len(compared)} behaviours judged with circuits of others; explained no better by their "
        f"own than by the median other: {', '.join(worse[:_SHOWN]) or 'none'}.",
        {"behaviours": len(compared), "no better": len(worse)},
    )


def circuit_features_fire(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every feature of a circuit is active somewhere in the text that cards are made from."""
    keys = [cards(name) for name in experiment.submodules]
    columns = ["submodule", "feature", "chosen", "n_active"]
    rows = [r for key in keys if store.footer(key) for r in store.read(key, columns).to_pylist()]
    of_circuits = [row for row in rows if row["chosen"] == "circuits"]
    silent = [f"{r['submodule']}/{r['feature']}" for r in of_circuits if not r["n_active"]]
    return Outcome(
        not silent,
        f"{len(rows)} cards, {len(of_circuits)} of features of circuits; never active: "
        f"{', '.join(silent[:_SHOWN]) or 'none'}.",
        {"cards": len(rows), "never active": len(silent)},
    )


def labels_predict(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The median rule predicts where its feature is active in text that no card was made from."""
    rows = store.read(RULE_LABELS, ["basis", "score"]).to_pylist()
    found = [row["score"] for row in rows if row["basis"] == "features"]
    scores = finite([score for score in found if score is not None])
    middle = median(scores) if scores else math.nan
    return Outcome(
        middle > 0,
        f"{len(rows)} labels; median correlation of {len(scores)} features' rules with their "
        f"activation {middle:.2f}: above 0 it says something.",
        {"median score": middle} if scores else {},
    )


def annotations_are_used(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Every line of people's files can be used, for the dictionaries there are now."""
    notes = store.notes(LABELS)
    left_out = {name: n for name, n in notes["left_out"].items() if n}
    return Outcome(
        not left_out and not notes["stale"],
        f"{notes['stale']} labels are of other dictionaries or of no feature, and not shown; "
        f"lines that cannot be used: {left_out or 'none'}.",
        {"stale": notes["stale"]},
    )


def sets_are_balanced(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """In each set of labelled texts the groups are equally large, and no text is in two sets."""
    table = frame(store.read(LABELLED_TEXTS, ["id", "set", "label", "attribute"]))
    sizes = table.groupby(["set", "label", "attribute"]).size()
    uneven = sorted({name for name, own in sizes.groupby("set") if own.nunique() > 1})
    n_twice = int(table["id"].duplicated().sum())
    return Outcome(
        not uneven and not n_twice,
        f"Sets with groups of different sizes: {', '.join(uneven) or 'none'}; {n_twice} texts are "
        "there twice.",
        {"texts": len(table), "twice": n_twice},
    )


def texts_are_read_whole(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """At most half of the labelled texts are cut."""
    notes, n = store.notes(LABELLED_TEXTS), store.n_rows(LABELLED_TEXTS)
    n_cut, most = notes["n_cut"], notes["n_positions"]
    return Outcome(
        n_cut <= n / 2,
        f"{n_cut} of {n} labelled texts are longer than the {most} tokens that are read of each.",
        {"cut": n_cut, "texts": n},
    )


def features_are_judged(experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The judge that counts has judged every feature, not all alike, and much as the truth has."""
    how = experiment.settings.classifier
    judge = how.judgements.judge if how else ""
    table = frame(store.read(JUDGEMENTS, ["submodule", "feature", "judge", "irrelevant"]))
    own, truth = (
        table[table["judge"] == one].set_index(["submodule", "feature"])["irrelevant"]
        for one in (judge, "truth")
    )
    n, n_irrelevant = store.notes(JUDGEMENTS)["n_features"], int(own.sum())
    agrees = float((own == truth.loc[own.index]).mean()) if len(own) else math.nan
    return Outcome(
        len(own) == n and 0 < n_irrelevant < n and agrees >= _LEAST_AGREEMENT,
        f"{judge} has judged {len(own)} of {n} features, {n_irrelevant} of them irrelevant"
        + (f", and agrees with the truth on {agrees:.0%}." if len(own) else "."),
        {"features": n, "judged": len(own), "irrelevant": n_irrelevant},
    )


def probe_has_settled(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """The probe's last epoch hardly moved its loss, and it is better than no probe."""
    (row,) = store.read(PROBE, ["loss_before", "loss"]).to_pylist()
    moved = abs(row["loss_before"] - row["loss"])
    return Outcome(
        moved <= _MOST_MOVED and row["loss"] < math.log(2),
        f"Loss {row['loss']:.3f} nats, {row['loss_before']:.3f} before the last epoch; it should "
        f"move by no more than {_MOST_MOVED} (classifier.probe.epochs) and be below that of "
        "guessing, 0.693.",
        {"loss": row["loss"], "moved": moved},
    )


def judging_matters(_experiment: Experiment, store: ArtifactStore) -> Outcome:
    """Retrained on the model without the judged features, the probe beats every control."""
    columns = ["method", "probe", "is_control", "worst_group"]
    rows = [r for r in store.read(SHIFT, columns).to_pylist() if r["probe"] == "retrained"]
    (own,) = (row["worst_group"] for row in rows if row["method"] == "shift")
    controls = {row["method"]: row["worst_group"] for row in rows if row["is_control"]}
    best = max(controls, key=lambda name: controls[name])
    return Outcome(
        own > controls[best],
        f"Worst group {own:.1%} with the judged features ablated and the probe retrained; of the "
        f"controls {best} comes nearest, {controls[best]:.1%}.",
        {"worst group": own, "best control": controls[best]},
    )


_CHECKS = (
    Check("contexts_have_text", "contexts", "Every context has two tokens or more.",
          contexts_have_text, blocking=True),
    Check("cache_is_whole", "activation_cache", "All submodules hold the same tokens.",
          cache_is_whole, blocking=True),
    Check("weights_are_finite", "saes", "No weight is NaN or infinite.", weights_are_finite),
    Check("set_is_usable", "dictionary_set", "Each dictionary reconstructs and fires.",
          set_is_usable, blocking=True),
    Check("set_is_made_alike", "dictionary_set", "All are of one setting, input and code.",
          set_is_made_alike),
    Check("l0_is_near_k", "dictionary_set", "L0 is what training was for.",
          l0_is_near_k, warns=True),
    Check("imports_are_as_said", "import_checks", "Files of dictionaries are right about them.",
          imports_are_as_said, warns=True),
    Check("samples_pass_the_filter", "filtered_tokens", "Losses are below the threshold.",
          samples_pass_the_filter),
    Check("vectors_are_finite", "cluster_vectors", "Every vector can be compared.",
          vectors_are_finite, warns=True),
    Check("every_sample_is_assigned", "cluster_assignments", "Every sample has its cluster.",
          every_sample_is_assigned, blocking=True),
    Check("clusters_add_up", "clusters", "Sizes add up to the samples.", clusters_add_up),
    Check("pairs_are_of_one_length", "task_behaviours", "Positions can be told apart.",
          pairs_are_of_one_length, warns=True),
    Check("circuits_have_nodes", "circuits", "At most half of the circuits have no node.",
          partial(_circuits_have_nodes, "clusters"), warns=True),
    Check("circuits_have_nodes", "task_circuits", "At most half of the circuits have no node.",
          partial(_circuits_have_nodes, "tasks"), warns=True),
    Check("integrals_converged", "circuits", "Effects sum to what they should.",
          partial(_integrals_converged, "clusters"), warns=True),
    Check("integrals_converged", "task_circuits", "Effects sum to what they should.",
          partial(_integrals_converged, "tasks"), warns=True),
    Check("circuits_are_stable", "circuits", "Other examples would give much the same circuits.",
          circuits_are_stable, warns=True),
    Check("pairs_are_predicted", "task_circuits", "The model answers the pairs rightly.",
          pairs_are_predicted, warns=True),
    Check("evaluations_are_numbers", "circuit_evaluations", "Most can be judged.",
          partial(_evaluations_are_numbers, "clusters"), warns=True),
    Check("evaluations_are_numbers", "task_evaluations", "Most can be judged.",
          partial(_evaluations_are_numbers, "tasks"), warns=True),
    Check("edges_are_nodes", "circuit_edge_evaluations", "All edges kept is all nodes kept.",
          partial(_edges_are_nodes, "clusters")),
    Check("edges_are_nodes", "task_edge_evaluations", "All edges kept is all nodes kept.",
          partial(_edges_are_nodes, "tasks")),
    Check("weights_predict", "circuit_edge_evaluations", "Weights rank edges as interventions do.",
          partial(_weights_predict, "clusters"), warns=True),
    Check("weights_predict", "task_edge_evaluations", "Weights rank edges as interventions do.",
          partial(_weights_predict, "tasks"), warns=True),
    Check("estimates_follow", "circuit_approximations", "Estimates order nodes as patching does.",
          partial(_estimates_follow, "clusters"), warns=True),
    Check("estimates_follow", "task_approximations", "Estimates order nodes as patching does.",
          partial(_estimates_follow, "tasks"), warns=True),
    Check("curves_rise", "task_evaluations", "Large circuits are faithful.",
          curves_rise, warns=True),
    Check("whole_and_empty", "circuit_baselines", "All nodes give 1, and none gives 0.",
          partial(_whole_and_empty, "clusters"), warns=True),
    Check("whole_and_empty", "task_baselines", "All nodes give 1, and none gives 0.",
          partial(_whole_and_empty, "tasks"), warns=True),
    Check("random_below_circuit", "circuit_baselines", "Random nodes are no circuit.",
          partial(_random_below_circuit, "clusters"), warns=True),
    Check("random_below_circuit", "task_baselines", "Random nodes are no circuit.",
          partial(_random_below_circuit, "tasks"), warns=True),
    Check("circuits_are_faithful", "evaluation_summary", "The median circuit is faithful enough.",
          circuits_are_faithful, warns=True),
    Check("circuits_differ", "circuit_overlap", "No two clusters have the same circuit.",
          circuits_differ, warns=True),
    Check("own_circuits_explain_most", "circuit_transfer", "Circuits explain their own behaviour.",
          own_circuits_explain_most, warns=True),
    Check("circuit_features_fire", "cards", "No feature of a circuit is silent.",
          circuit_features_fire, warns=True),
    Check("labels_predict", "rule_labels", "Rules predict text that they were not made from.",
          labels_predict, warns=True),
    Check("summary_is_current", "evaluation_summary", "No circuit is of earlier examples.",
          summary_is_current, warns=True),
    Check("annotations_are_used", "labels", "People's labels are of these dictionaries.",
          annotations_are_used, warns=True),
    Check("sets_are_balanced", "labelled_texts", "Groups are equal, and no text is there twice.",
          sets_are_balanced, blocking=True),
    Check("texts_are_read_whole", "labelled_texts", "Most labelled texts are not cut.",
          texts_are_read_whole, warns=True),
    Check("probe_has_settled", "probe", "Training went on long enough.",
          probe_has_settled, warns=True),
    Check("circuits_have_nodes", "classifier_circuits", "The circuit has nodes.",
          partial(_circuits_have_nodes, "classifiers"), warns=True),
    Check("integrals_converged", "classifier_circuits", "Effects sum to what they should.",
          partial(_integrals_converged, "classifiers"), warns=True),
    Check("evaluations_are_numbers", "classifier_evaluations", "It can be judged.",
          partial(_evaluations_are_numbers, "classifiers"), warns=True),
    Check("judging_matters", "shift", "Judged features do better than controls.",
          judging_matters, warns=True),
    Check("features_are_judged", "judgements", "The judge has judged, much as the truth has.",
          features_are_judged, warns=True),
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
        found = check.look(experiment, ArtifactStore(experiment.artifacts))
        return dg.AssetCheckResult(
            passed=found.passed,
            severity=severity,
            description=found.says,
            metadata=dict(found.figures),
        )

    return run


def outcomes(
    experiment: Experiment, store: ArtifactStore, assets: Sequence[str]
) -> list[tuple[Check, Outcome]]:
    """What the checks of these assets find now; those whose table is not there are left out."""
    found = []
    for check in _CHECKS:
        if check.asset in assets:
            with suppress(ExperimentError):
                found.append((check, check.look(experiment, store)))
    return found


def broken_checks(experiment: Experiment, asset: str) -> list[str]:
    """What the blocking checks of an asset say that fail now."""
    blocking = [check for check in _CHECKS if check.asset == asset and check.blocking]
    store = ArtifactStore(experiment.artifacts)
    found = {check.name: check.look(experiment, store) for check in blocking}
    return [f"{name}: {what.says}" for name, what in found.items() if not what.passed]


def checks_of(experiment: Experiment, assets: Sequence[str]) -> list[dg.AssetChecksDefinition]:
    """The checks of those assets that the experiment has."""
    return [asset_check(check, experiment) for check in _CHECKS if check.asset in assets]
