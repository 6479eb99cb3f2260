"""Where everything lies in an experiment's artifacts folder, every key once.

    contexts  activation_cache/  saes/SUBMODULE  dictionary_set  feature_densities  import_checks
    filtered_tokens
    clusterings/NAME/{vectors, assignments, clusters, score}, pages in clusterings/NAME/pages/
    clustering_comparison  clustering_behaviours
    behaviours/SOURCE  behaviours/SOURCE_examples  behaviours/dropped_pairs
    circuits/SOURCE/NAME/{effects, edge_effects, edges, nodes, circuit}
    evaluations/SOURCE/NAME  evaluation_summary  circuit_overlap  circuit_transfer
    baselines/SOURCE/NAME/{baseline_scores, node_losses, baselines}
    approximations/SOURCE/NAME/{nodes, fits, rankings}
    edges/SOURCE/NAME/{evaluations, interventions}
    report, the page in report.html
    vocabulary  feature_circuits  cards/SUBMODULE  cards/SUBMODULE_contexts
    labels/rules  labels/endpoint  labels
    labelled_texts  classifier/{probe, probe_groups}, the weights in probe.safetensors
    classifier/{judgements, shift, shift_seeds, ablated_features}, a page in shift.html

NAME of a clustering is `CHOSEN` or a comparison's; SOURCE is where a behaviour comes from, a
cluster of samples, a file of pairs or a classifier; NAME of a circuit is its cluster's, its task's
or `CLASSIFIER`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from assets.settings import CHOSEN

BehaviourSource = Literal["clusters", "tasks", "classifiers"]
"""Where a behaviour comes from: a cluster of samples, a file of contrastive pairs, or a probe that
classifies texts."""
CLASSIFIER = "probe"
"""What the behaviour and the circuit of an experiment's classifier are called."""


class Key(NamedTuple):
    """One table's place.

    Attributes:
        path: below the artifacts folder, without ``.parquet``.
        table: which of `assets.tables.schemas` it is.
        stage: the stage that writes it; only stages that declare this one may read it.
    """

    path: str
    table: str
    stage: str


def _alone(name: str) -> Key:
    return Key(name, name, name)


CONTEXTS = _alone("contexts")
ACTIVATION_CACHE = _alone("activation_cache")
DICTIONARY_SET = _alone("dictionary_set")
FEATURE_DENSITIES = Key("feature_densities", "feature_densities", "dictionary_set")
IMPORT_CHECKS = _alone("import_checks")
FILTERED_TOKENS = _alone("filtered_tokens")
CLUSTERING_COMPARISON = _alone("clustering_comparison")
CLUSTERING_BEHAVIOURS = Key(
    "clustering_behaviours", "clustering_behaviours", "clustering_comparison"
)
EVALUATION_SUMMARY = _alone("evaluation_summary")
CIRCUIT_OVERLAP = _alone("circuit_overlap")
CIRCUIT_TRANSFER = _alone("circuit_transfer")
REPORT = _alone("report")
VOCABULARY = _alone("vocabulary")
FEATURE_CIRCUITS = _alone("feature_circuits")
LABELS = _alone("labels")
LABELLED_TEXTS = _alone("labelled_texts")
PROBE = Key("classifier/probe", "probe", "probe")
PROBE_GROUPS = Key("classifier/probe_groups", "probe_groups", "probe")
JUDGEMENTS = Key("classifier/judgements", "judgements", "judgements")
SHIFT = Key("classifier/shift", "shift", "shift")
SHIFT_SEEDS = Key("classifier/shift_seeds", "shift_seeds", "shift")
ABLATED_FEATURES = Key("classifier/ablated_features", "ablated_features", "shift")
RULE_LABELS = Key("labels/rules", "labels", "rule_labels")
ENDPOINT_LABELS = Key("labels/endpoint", "labels", "endpoint_labels")


def sae(submodule: str) -> Key:
    """The features of a submodule's dictionary; its weights lie beside it, ``.safetensors``."""
    return Key(f"saes/{submodule}", "saes", "saes")


def vectors(clustering: str = CHOSEN) -> Key:
    """The samples as a clustering sees them."""
    owner = "cluster_vectors" if clustering == CHOSEN else "compared_vectors"
    return Key(f"clusterings/{clustering}/vectors", "cluster_vectors", owner)


def assignments(clustering: str = CHOSEN) -> Key:
    """Which cluster each sample belongs to."""
    return _grouped(clustering, "assignments", "cluster_assignments")


def clusters(clustering: str = CHOSEN) -> Key:
    """What is in each cluster."""
    return _grouped(clustering, "clusters", "clusters")


def cluster_pages(clustering: str = CHOSEN) -> Key:
    """The folder of a clustering's pages, to read in a browser."""
    return _grouped(clustering, "pages", "clusters")


def clustering_score(clustering: str) -> Key:
    """What a compared clustering is, and how it looks by itself."""
    return Key(f"clusterings/{clustering}/score", "clustering_score", "compared_clusterings")


def _grouped(clustering: str, part: str, stage: str) -> Key:
    owner = stage if clustering == CHOSEN else "compared_clusterings"
    return Key(f"clusterings/{clustering}/{part}", stage, owner)


_STAGES = {
    "clusters": ("cluster_behaviours", "circuits", "circuit_evaluations"),
    "tasks": ("task_behaviours", "task_circuits", "task_evaluations"),
    "classifiers": ("classifier_behaviours", "classifier_circuits", "classifier_evaluations"),
}


def behaviours(source: BehaviourSource) -> Key:
    """All behaviours of a source."""
    return Key(f"behaviours/{source}", "behaviours", _STAGES[source][0])


def examples(source: BehaviourSource) -> Key:
    """The examples of all of them."""
    return Key(f"behaviours/{source}_examples", "examples", _STAGES[source][0])


DROPPED_PAIRS = Key("behaviours/dropped_pairs", "dropped_pairs", _STAGES["tasks"][0])
"""The pairs of the tasks' files that are not used."""


def circuit(source: BehaviourSource, name: str, table: str = "circuit") -> Key:
    """A circuit's tables: effects and edge_effects (of the columns of nodes and edges), edges,
    nodes, and the circuit itself."""
    columns = {"effects": "nodes", "edge_effects": "edges"}.get(table, table)
    return Key(f"circuits/{source}/{name}/{table}", columns, _STAGES[source][1])


def evaluation(source: BehaviourSource, name: str) -> Key:
    """How a circuit was judged."""
    return Key(f"evaluations/{source}/{name}", "circuit_evaluations", _STAGES[source][2])


def baselines(source: BehaviourSource, name: str, table: str = "baselines") -> Key:
    """A circuit's baselines: scores, losses without each node, and the points of all curves."""
    stage = {"clusters": "circuit_baselines"}.get(source, "task_baselines")
    return Key(f"baselines/{source}/{name}/{table}", table, stage)


_EDGE_STAGES = {
    "clusters": "circuit_edge_evaluations",
    "tasks": "task_edge_evaluations",
    "classifiers": "classifier_edge_evaluations",
}


def edge_evaluation(
    source: BehaviourSource,
    name: str,
    part: Literal["evaluations", "interventions"] = "evaluations",
) -> Key:
    """How the edges of a circuit were judged: some of them kept, and one by one."""
    return Key(f"edges/{source}/{name}/{part}", f"edge_{part}", _EDGE_STAGES[source])


_APPROXIMATIONS = {
    "clusters": "circuit_approximations",
    "tasks": "task_approximations",
    "classifiers": "classifier_approximations",
}


def approximation(source: BehaviourSource, name: str, table: str = "nodes") -> Key:
    """How good estimates of effects are: of single nodes, by submodule (fits), for circuits
    (rankings)."""
    columns = "approximations" if table == "nodes" else f"approximation_{table}"
    return Key(f"approximations/{source}/{name}/{table}", columns, _APPROXIMATIONS[source])


def cards(submodule: str) -> Key:
    """The cards of a submodule's features."""
    return Key(f"cards/{submodule}", "feature_cards", "cards")


def card_contexts(submodule: str) -> Key:
    """The texts on them."""
    return Key(f"cards/{submodule}_contexts", "card_contexts", "cards")
