"""Every table of the pipeline, column by column; `assets.tables.conversions` goes to core's nouns.

One row per thing; nothing is encoded in a file's name. ``python -m assets.tables.schemas`` prints
``docs/tables.md``, which a test compares with what is committed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


def _column(name: str, kind: pa.DataType, description: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"description": description})


@dataclass(frozen=True)
class Table:
    """What one table holds.

    Attributes:
        name: its name, the last part of its key in the store.
        place: where it lies in the artifacts folder.
        row: what one row is.
        schema: its columns, each with a description.
    """

    name: str
    place: str
    row: str
    schema: pa.Schema

    def build(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """The table of these rows; raises `KeyError` where a column is missing in one."""
        rows = list(rows)
        columns = [
            pa.array([row[column.name] for row in rows], column.type) for column in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


_BYTE = pa.int8()
_INT, _LONG, _FLOAT, _DOUBLE = pa.int32(), pa.int64(), pa.float32(), pa.float64()
_TEXT, _BOOL = pa.string(), pa.bool_()
_INTS, _FLOATS, _TEXTS = pa.list_(_INT), pa.list_(_FLOAT), pa.list_(_TEXT)
_LONGS, _DOUBLES = pa.list_(_LONG), pa.list_(_DOUBLE)

_SUBMODULE = _column("submodule", _TEXT, "embed, attn_L, mlp_L or resid_L")
_SAMPLE = _column("sample", _INT, "number of the sample, from 0")
_NAME = _column("name", _TEXT, "cluster or task, as the experiment names it; probe")
_METRIC = _column(
    "metric", _TEXT, "circuits.metric, logit_difference (pairs) or probe_margin (classifiers)"
)
_START_LAYER = _column("start_layer", _INT, "first layer whose nodes are ablated")
_BASIS = _column("basis", _TEXT, "features of the dictionary, or neurons of the submodule itself")
_NODE = (
    _SUBMODULE,
    _column("feature", _INT, "number of the feature; -1 for the error node"),
    _column("pos", _INT, "position; null where summed over positions", null=True),
)
_FEATURE = _column("feature", _INT, "number of the feature or neuron, from 0")
_WEIGHTS = _column(
    "weights", _TEXT, "hash of the dictionary's weights; null for neurons", null=True
)
_ERROR_NODES = _column("error_nodes", _TEXT, "policy for error nodes")
_ESTIMATE = _column("estimator", _TEXT, "attribution or integrated")
_CLUSTER = _column("cluster", _INT, "number of the cluster, from 0, the largest first")

_VARIANT = _column("variant", _TEXT, "what the nodes are, see evaluations.variants")
_N_POSSIBLE = _column(
    "n_possible",
    _INT,
    "nodes that could be kept: those that are not zero somewhere in the examples",
)

_INTERVAL = (
    _column(
        "faithfulness_low",
        _DOUBLE,
        "lower end of its 95% interval over draws of the examples (bootstrap); NaN of one example",
    ),
    _column("faithfulness_high", _DOUBLE, "upper end"),
)

# What every evaluation of a circuit says.
_EVALUATED = (
    _column("m_full", _DOUBLE, "mean metric of the model"),
    _column("m_empty", _DOUBLE, "with every node ablated"),
    _column("m_circuit", _DOUBLE, "with all but the circuit ablated"),
    _column("m_complement", _DOUBLE, "with only the circuit ablated"),
    _column("faithfulness", _DOUBLE, "(m_circuit - m_empty) / (m_full - m_empty)"),
    *_INTERVAL,
    _column("completeness", _DOUBLE, "the same for m_complement; small is good"),
)

# What a circuit rests on.
_FOUND = (
    _column(
        "gap",
        _DOUBLE,
        "mean absolute completeness gap where it is largest; NaN for exact effects",
    ),
    _column("unmet", _DOUBLE, "share of integrals short of their tolerance", null=True),
    _column(
        "stability",
        _DOUBLE,
        "Jaccard index of circuits from either half of the examples",
        null=True,
    ),
)
_STANDINGS = (
    _column(
        "n_core",
        _INT,
        "nodes that nine of ten draws of as many examples would keep; null for one example",
        null=True,
    ),
    _column("n_contingent", _INT, "nodes that are kept in some draws only", null=True),
    _column("n_noise", _INT, "nodes within half a standard error of the threshold", null=True),
)
_STDERR = _column("stderr", _DOUBLE, "standard error over examples", null=True)
_INCLUSION = _column(
    "inclusion",
    _DOUBLE,
    "how likely it is kept with as many other examples, if its mean is normally distributed",
    null=True,
)

# What every clustering says about itself.
_CLUSTERING = (
    _column("representation", _TEXT, "what a sample is", null=True),
    _column("reduction", _TEXT, "last or sum over positions", null=True),
    _column("algorithm", _TEXT, "spectral or kmeans", null=True),
    _column("n_clusters", _INT, "clusters that hold any sample"),
    _column("n_shared", _INT, "clusters that hold more than one document"),
    _column("answer_entropy", _DOUBLE, "entropy of a cluster's answers, in nats, mean by sample"),
    _column("coherence", _DOUBLE, "mean cosine between members, mean by sample", null=True),
)

_ALL = (
    Table(
        "contexts",
        "contexts.parquet",
        "one context: the first tokens of one document",
        pa.schema(
            [
                _column("document", _INT, "number of the document in the corpus, from 0"),
                _column("tokens", _INTS, "token ids"),
                _column(
                    "labels",
                    _TEXTS,
                    "what determines each token, where the corpus says; else null",
                    null=True,
                ),
            ]
        ),
    ),
    Table(
        "activation_cache",
        "activation_cache.parquet; the activations in activation_cache/",
        "one submodule whose activations are on disk",
        pa.schema(
            [
                _SUBMODULE,
                _column("width", _INT, "numbers per token"),
                _column("n_rows", _LONG, "tokens"),
                _column("n_documents", _INT, "documents they come from"),
                _column("n_shards", _INT, "files"),
                _column("fingerprint", _TEXT, "hash of the whole cache"),
            ]
        ),
    ),
    Table(
        "saes",
        "saes/SUBMODULE.parquet; the weights in saes/SUBMODULE.safetensors",
        "one feature of one dictionary",
        pa.schema(
            [
                _column("feature", _INT, "number of the feature, from 0"),
                _column("encoder_norm", _FLOAT, "length of its encoder direction"),
                _column("decoder_norm", _FLOAT, "length of its decoder direction"),
                _column("encoder_bias", _FLOAT, "bias of its pre-activation"),
            ]
        ),
    ),
    Table(
        "dictionary_set",
        "dictionary_set.parquet",
        "one dictionary of the set in use",
        pa.schema(
            [
                _SUBMODULE,
                _column("activation", _TEXT, "relu, topk, jumprelu, gated or linear"),
                _column("n_features", _INT, "features"),
                _column("width", _INT, "width of the submodule"),
                _column("weights", _TEXT, "hash of the weights"),
                _column("variance_explained", _DOUBLE, "1 - Var(x - x_hat) / Var(x)"),
                _column("l1", _DOUBLE, "mean sum of feature activations per token"),
                _column("l0", _DOUBLE, "mean number of active features per token"),
                _column("alive", _DOUBLE, "share of features active on some measured token"),
                _column("ce", _DOUBLE, "cross-entropy of the model, in nats"),
                _column("ce_hat", _DOUBLE, "with the submodule replaced by x_hat"),
                _column("ce_zero", _DOUBLE, "with the submodule replaced by zero"),
                _column("ce_difference", _DOUBLE, "ce_hat - ce"),
                _column("ce_recovered", _DOUBLE, "(ce_hat - ce_zero) / (ce - ce_zero)"),
                _column("error_norm", _DOUBLE, "mean |x - x_hat| / |x| at confident tokens"),
                _column(
                    "in_series",
                    _DOUBLE,
                    "faithfulness at confident tokens with this and every earlier dictionary in "
                    "place and no errors: of all features, in the last row; NaN for embed",
                ),
                _column("n_tokens", _LONG, "tokens measured"),
                _column(
                    "n_confident", _LONG, "of which the model predicts the next within .1 nats"
                ),
            ]
        ),
    ),
    Table(
        "feature_densities",
        "feature_densities.parquet",
        "one feature of one dictionary",
        pa.schema(
            [
                _SUBMODULE,
                _column("feature", _INT, "number of the feature, from 0"),
                _column("density", _FLOAT, "share of measured tokens on which it is active"),
            ]
        ),
    ),
    Table(
        "import_checks",
        "import_checks.parquet",
        "one thing that the file of an imported dictionary says of it",
        pa.schema(
            [
                _SUBMODULE,
                _column(
                    "claim",
                    _TEXT,
                    "width, features, kind, k, head, exporter, hook, layer, model, bos, "
                    "measured k, measured l0 or variance explained",
                ),
                _column("said", _TEXT, "what the file says; empty where it says nothing"),
                _column("found", _TEXT, "the weights', the experiment's or the measured value"),
                _column(
                    "verdict",
                    _TEXT,
                    "ok, warn, or unchecked where nothing compares; refused files have no row",
                ),
                _column("message", _TEXT, "why it is not ok"),
            ]
        ),
    ),
    Table(
        "filtered_tokens",
        "filtered_tokens.parquet",
        "one sample: a token that the model predicts, and what stands before it",
        pa.schema(
            [
                _SAMPLE,
                _column("document", _INT, "document it comes from"),
                _column("window", _INT, "row of the contexts table"),
                _column("pos", _INT, "position of the answer in that context"),
                _column("context", _INTS, "token ids before the answer"),
                _column("answer", _INT, "token id of the answer"),
                _column("loss", _DOUBLE, "cross-entropy of the answer, in nats"),
                _column("label", _TEXT, "what determines the answer, if known", null=True),
            ]
        ),
    ),
    Table(
        "cluster_vectors",
        "clusterings/NAME/vectors.parquet; NAME is chosen, or a comparison's",
        "one sample as the clustering sees it",
        pa.schema(
            [
                _SAMPLE,
                _column("index", _INTS, "dimensions that are not zero; null if all", null=True),
                _column("value", _FLOATS, "value at each of them"),
            ]
        ),
    ),
    Table(
        "cluster_assignments",
        "clusterings/NAME/assignments.parquet",
        "one sample",
        pa.schema(
            [
                _SAMPLE,
                _CLUSTER,
                _column(
                    "similarity", _DOUBLE, "mean cosine with the rest of its cluster", null=True
                ),
            ]
        ),
    ),
    Table(
        "clusters",
        "clusterings/NAME/clusters.parquet; a page for each in clusterings/NAME/pages/",
        "one cluster",
        pa.schema(
            [
                _CLUSTER,
                _column("size", _INT, "samples"),
                _column("n_documents", _INT, "documents they come from"),
                _column("n_answers", _INT, "different answers"),
                _column("answer_entropy", _DOUBLE, "entropy of the answers, in nats"),
                _column("coherence", _DOUBLE, "mean cosine between members", null=True),
                _column("typical", _INTS, "most typical samples, best first"),
                _column("example", _TEXT, "the end of the most typical context and its answer"),
                _column("behaviour", _TEXT, "most frequent label, if labels are known", null=True),
                _column("share", _DOUBLE, "share of the cluster that has it", null=True),
            ]
        ),
    ),
    Table(
        "clustering_score",
        "clusterings/NAME/score.parquet",
        "one clustering that is compared with the chosen one",
        pa.schema(_CLUSTERING),
    ),
    Table(
        "clustering_comparison",
        "clustering_comparison.parquet",
        "one clustering: the chosen one, those compared with it, one cluster per answer token",
        pa.schema(
            [
                _column("name", _TEXT, "chosen, the name of a comparison, or answer token"),
                *_CLUSTERING,
                _column("ami", _DOUBLE, "adjusted mutual information with the labels", null=True),
                _column("ami_with_answer", _DOUBLE, "with pairs of label and answer", null=True),
                _column(
                    "ami_within_answers",
                    _DOUBLE,
                    "with the labels, among samples of one answer that several labels share; "
                    "null where none does",
                    null=True,
                ),
                _column("purity", _DOUBLE, "share of samples of their cluster's label", null=True),
                _column("ami_with_chosen", _DOUBLE, "the same with the chosen clustering"),
            ]
        ),
    ),
    Table(
        "clustering_behaviours",
        "clustering_behaviours.parquet",
        "one cluster of one clustering that holds samples of a known behaviour",
        pa.schema(
            [
                _column("name", _TEXT, "as in clustering_comparison"),
                _column("behaviour", _TEXT, "label of the samples"),
                _column("cluster", _INT, "number of the cluster; token id for answer token"),
                _column("n", _INT, "samples of the behaviour in the cluster"),
                _column("of_behaviour", _DOUBLE, "as a share of the behaviour's samples"),
                _column("of_cluster", _DOUBLE, "as a share of the cluster's samples"),
            ]
        ),
    ),
    Table(
        "behaviours",
        "behaviours/SOURCE.parquet; SOURCE is clusters, tasks or classifiers",
        "one behaviour: what a circuit explains",
        pa.schema(
            [
                _NAME,
                _METRIC,
                _column("by_position", _BOOL, "each position of a node is a node of its own"),
                _column("size", _INT, "samples of the cluster, pairs or texts used"),
                _column("n_found", _INT, "examples a circuit is found from"),
                _column("n_evaluated", _INT, "examples it is judged on"),
                _column("n_dropped", _INT, "samples that repeat, or pairs left out: dropped_pairs"),
                _column("held_out", _BOOL, "no example is used for both"),
                _column("about", _TEXT, "an example and its answer"),
                _column("label", _TEXT, "what is known to be behind it", null=True),
                _column("tokens", _TEXTS, "column labels, by position only", null=True),
                _column("site", _TEXT, "submodule that a probe reads, else null", null=True),
                _column("pooling", _TEXT, "mean over tokens, or the last", null=True),
                _column("weight", _DOUBLES, "the probe's weights", null=True),
                _column("bias", _DOUBLE, "and its bias", null=True),
                _column("digest", _TEXT, "hash of metric, positions, examples and probe"),
            ]
        ),
    ),
    Table(
        "examples",
        "behaviours/SOURCE_examples.parquet",
        "one example of one behaviour",
        pa.schema(
            [
                _NAME,
                _column("number", _INT, "number of the sample, pair of its file, or text"),
                _column("found", _BOOL, "the circuit is found from it"),
                _column("evaluated", _BOOL, "the circuit is judged on it"),
                _column("clean", _INTS, "token ids before the answer, as used"),
                _column("answer", _INT, "token id of the answer, or the class of a text"),
                _column("patch", _INTS, "the other side of a pair", null=True),
                _column("patch_answer", _INT, "and its answer", null=True),
            ]
        ),
    ),
    Table(
        "dropped_pairs",
        "behaviours/dropped_pairs.parquet",
        "one pair of a task's files that is not used",
        pa.schema(
            [
                _NAME,
                _column("side", _TEXT, "train, or test for the file that circuits are judged on"),
                _column("line", _INT, "line of that file, from 1"),
                _column("reason", _TEXT, "why it is left out"),
            ]
        ),
    ),
    Table(
        "circuit",
        "circuits/SOURCE/NAME/circuit.parquet",
        "the circuit itself (none for an empty cluster)",
        pa.schema(
            [
                _NAME,
                _column("metric", _TEXT, "what it explains, with its units", null=True),
                _column("n_nodes", _INT, "nodes"),
                _column("n_edges", _INT, "edges"),
                _column("n_examples", _INT, "examples its effects are means over"),
                _column("metric_clean", _DOUBLE, "mean metric on the clean inputs"),
                _column("metric_patch", _DOUBLE, "mean metric on the patch inputs", null=True),
                _column("gaps", _TEXT, "JSON: mean absolute completeness gap by submodule"),
                *_FOUND,
                _column("settings", _TEXT, "JSON: model, metric, estimator, thresholds"),
                _column("tokens", _TEXTS, "column labels, by position only", null=True),
            ]
        ),
    ),
    Table(
        "nodes",
        "circuits/SOURCE/NAME/nodes.parquet; beside it effects.parquet, the same of every node "
        "with an effect above 1e-4",
        "one node of the circuit",
        pa.schema(
            [
                _column("node", _INT, "number of the node in the circuit, from 0"),
                *_NODE,
                _column("effect", _DOUBLE, "aggregated indirect effect, in the metric's units"),
                _STDERR,
                _INCLUSION,
            ]
        ),
    ),
    Table(
        "edges",
        "circuits/SOURCE/NAME/edges.parquet; beside it edge_effects.parquet, the same of every "
        "edge between its nodes with a weight above 1e-4",
        "one edge of the circuit",
        pa.schema(
            [
                _column("upstream", _INT, "node it leaves"),
                _column("downstream", _INT, "node it enters; null for the metric", null=True),
                _column("weight", _DOUBLE, "aggregated effect, in the metric's units"),
                _STDERR,
                _INCLUSION,
            ]
        ),
    ),
    Table(
        "circuit_evaluations",
        "evaluations/SOURCE/NAME.parquet",
        "a circuit, or one of another size, judged under one policy for error nodes",
        pa.schema(
            [
                _NAME,
                _ERROR_NODES,
                _column(
                    "threshold",
                    _DOUBLE,
                    "nodes with a larger effect are the circuit; null for the circuit as found",
                    null=True,
                ),
                _column("ablation", _TEXT, "what other nodes are set to"),
                _START_LAYER,
                _column("n_examples", _INT, "examples it is judged on"),
                _column("held_out", _BOOL, "none of them was used to find it"),
                _column("n_nodes", _INT, "nodes left in"),
                *_EVALUATED,
            ]
        ),
    ),
    Table(
        "approximations",
        "approximations/SOURCE/NAME/nodes.parquet",
        "one node, patched alone, beside what estimators say of it",
        pa.schema(
            [
                _NAME,
                _SUBMODULE,
                _column("feature", _INT, "number of the feature; -1 for the error"),
                _column("pos", _INT, "position; null where patched at all", null=True),
                _column("drawn", _TEXT, "strongest, or at random among those of about its size"),
                _column("exact", _DOUBLE, "mean change of the metric when it is patched (eq. 2)"),
                _column("attribution", _DOUBLE, "its estimate by attribution patching (eq. 3)"),
                _column("integrated", _DOUBLE, "by integrated gradients (eq. 4)"),
            ]
        ),
    ),
    Table(
        "approximation_fits",
        "approximations/SOURCE/NAME/fits.parquet",
        "how one estimator follows exact effects at one submodule",
        pa.schema(
            [
                _NAME,
                _SUBMODULE,
                _ESTIMATE,
                _column("answers", _TEXT, "single effect or joint share"),
                _column("n_nodes", _INT, "nodes compared"),
                _column("pearson", _DOUBLE, "correlation with exact effects; NaN without spread"),
                _column("spearman", _DOUBLE, "correlation of ranks, likewise"),
                _column("slope", _DOUBLE, "estimate over exact, least squares through zero"),
                _column("sign", _DOUBLE, "share of nodes of which it has the sign"),
                _column("gap", _DOUBLE, "mean absolute completeness gap of the submodule"),
            ]
        ),
    ),
    Table(
        "approximation_rankings",
        "approximations/SOURCE/NAME/rankings.parquet",
        "the nodes with the largest effects by one estimator, judged as a circuit",
        pa.schema(
            [
                _NAME,
                _ESTIMATE,
                _column("n_nodes", _INT, "nodes left in"),
                _column("faithfulness", _DOUBLE, "of these nodes"),
                _column("held_out", _BOOL, "judged on other examples than found from"),
            ]
        ),
    ),
    Table(
        "edge_evaluations",
        "edges/SOURCE/NAME/evaluations.parquet",
        "a circuit's nodes judged with some of the edges between them",
        pa.schema(
            [
                _NAME,
                _column(
                    "kept",
                    _TEXT,
                    "which edges: strongest, a share of those between nodes; random, as many of "
                    "them; weakest, all but the strongest share; circuit, those of the circuit; "
                    "nodes, no edge is ablated, the nodes are judged as circuit_evaluations does. "
                    "Edges into the metric are kept in all but circuit",
                ),
                _column("share", _DOUBLE, "that share; null for circuit and nodes", null=True),
                _column(
                    "threshold",
                    _DOUBLE,
                    "least |weight| among the strongest share, or that of the circuit's edges; "
                    "null where there is none",
                    null=True,
                ),
                _column("n_edges", _INT, "edges that are kept, of those that can be ablated"),
                _column("n_possible", _INT, "edges that can be ablated"),
                _column("n_nodes", _INT, "nodes that can be ablated"),
                _column("ablation", _TEXT, "what other nodes are set to"),
                _START_LAYER,
                _column("n_examples", _INT, "examples it is judged on"),
                _column("held_out", _BOOL, "none of them was used to find it"),
                _column("m_full", _DOUBLE, "mean metric of the model"),
                _column("m_empty", _DOUBLE, "with every node ablated"),
                _column("m_edges", _DOUBLE, "with the nodes and these edges kept"),
                _column("faithfulness", _DOUBLE, "(m_edges - m_empty) / (m_full - m_empty)"),
            ]
        ),
    ),
    Table(
        "edge_interventions",
        "edges/SOURCE/NAME/interventions.parquet",
        "one edge of the circuit measured by intervention along its direct path",
        pa.schema(
            [
                _NAME,
                _column("upstream", _INT, "node it leaves"),
                _column("downstream", _INT, "node it enters"),
                _column("kind", _TEXT, "kinds of submodules that it joins: resid -> mlp"),
                _column("from_error", _BOOL, "it leaves an error node"),
                _column("into_error", _BOOL, "it enters an error node"),
                _column("n_examples", _INT, "the circuit's first examples, of which all are means"),
                _column("weight", _DOUBLE, "its weight on these, in the metric's units"),
                _column(
                    "path",
                    _DOUBLE,
                    "the same, but what the patched upstream node changes of the downstream one is "
                    "computed along the direct path and not by its derivative",
                ),
                _column("effect", _DOUBLE, "what that change alone does to the metric"),
            ]
        ),
    ),
    Table(
        "baselines",
        "baselines/SOURCE/NAME/baselines.parquet",
        "a circuit of one size, of one kind of nodes",
        pa.schema(
            [
                _NAME,
                _VARIANT,
                _column("draw", _INT, "of random_nodes; null for others", null=True),
                _START_LAYER,
                _column(
                    "fraction",
                    _DOUBLE,
                    "share of n_possible that was asked for (MIB); null for sizes in equal ratios",
                    null=True,
                ),
                _column("of_circuit", _BOOL, "as many nodes as the circuit has"),
                _N_POSSIBLE,
                _column("n_nodes", _INT, "nodes left in: the strongest, or those drawn first"),
                _column("ablation", _TEXT, "what other nodes are set to"),
                _column("n_examples", _INT, "examples it is judged on"),
                *_EVALUATED,
            ]
        ),
    ),
    Table(
        "baseline_scores",
        "baselines/SOURCE/NAME/baseline_scores.parquet",
        "one kind of nodes, over all sizes",
        pa.schema(
            [
                _NAME,
                _VARIANT,
                _START_LAYER,
                _N_POSSIBLE,
                *(
                    _column(
                        f"nodes_{words}",
                        _DOUBLE,
                        f"nodes for faithfulness {share}, between points of the curve; null where "
                        "none reaches it",
                        null=True,
                    )
                    for words, share in (("half", 0.5), ("eight_tenths", 0.8), ("nine_tenths", 0.9))
                ),
                _column("area", _DOUBLE, "area under faithfulness against the kept share"),
                _column("cpr", _DOUBLE, "the same at MIB's fractions alone"),
                _column("cmd", _DOUBLE, "area between that curve and 1"),
            ]
        ),
    ),
    Table(
        "node_losses",
        "baselines/SOURCE/NAME/node_losses.parquet",
        "a node of the circuit, taken out by itself",
        pa.schema(
            [
                _NAME,
                _START_LAYER,
                *_NODE,
                _column("effect", _DOUBLE, "its effect, in the metric's units"),
                _column(
                    "loss",
                    _DOUBLE,
                    "faithfulness of the circuit less that of the circuit without the node",
                ),
            ]
        ),
    ),
    Table(
        "evaluation_summary",
        "evaluation_summary.parquet",
        "one circuit judged from one layer on, under one policy for error nodes",
        pa.schema(
            [
                _column("source", _TEXT, "clusters or tasks"),
                _NAME,
                _column("size", _INT, "samples of the cluster, pairs or texts used"),
                _column("about", _TEXT, "an example and its answer"),
                _column("label", _TEXT, "what is known to be behind it", null=True),
                _METRIC,
                _START_LAYER,
                _ERROR_NODES,
                _column("n_judged", _INT, "nodes that could be ablated here"),
                _column("n_nodes", _INT, "nodes of the circuit"),
                _column("n_edges", _INT, "edges of the circuit"),
                *_FOUND,
                *_STANDINGS,
                _column("n_examples", _INT, "examples it is judged on"),
                _column("held_out", _BOOL, "none of them was used to find it"),
                _column("m_full", _DOUBLE, "mean metric of the model"),
                _column("m_empty", _DOUBLE, "with every node ablated"),
                _column("faithfulness", _DOUBLE, "faithfulness of the circuit"),
                *_INTERVAL,
                _column("completeness", _DOUBLE, "faithfulness of its complement"),
                _column(
                    "area",
                    _DOUBLE,
                    "area under faithfulness against the kept share of nodes with an effect; NaN "
                    "from other start layers than the first",
                ),
                _column(
                    "at_100",
                    _DOUBLE,
                    "faithfulness of the 100 strongest nodes, or of all where fewer have an "
                    "effect, between points of the curve; null from other start layers than the "
                    "first, and where the curve begins above 100",
                    null=True,
                ),
                _column("nodes_half", _INT, "fewest nodes with faithfulness .5", null=True),
                _column("nodes_nine_tenths", _INT, "fewest nodes with faithfulness .9", null=True),
                _column(
                    "half_by_features",
                    _DOUBLE,
                    "nodes for faithfulness .5, between points of the curve; null where not "
                    "compared or never reached, as below",
                    null=True,
                ),
                _column("half_by_neurons", _DOUBLE, "the same for neurons", null=True),
                _column("neurons_per_feature", _DOUBLE, "the second over the first", null=True),
            ]
        ),
    ),
    Table(
        "circuit_overlap",
        "circuit_overlap.parquet",
        "two circuits and one kind of part: what they share of it",
        pa.schema(
            [
                _column("source", _TEXT, "clusters or tasks, where the first comes from"),
                _NAME,
                _column("other_source", _TEXT, "where the other comes from"),
                _column("other", _TEXT, "its cluster or task"),
                _column("part", _TEXT, "nodes, features (nodes that are no errors) or edges"),
                _column(
                    "by_position",
                    _BOOL,
                    "positions count, for tasks of as many tokens; else parts are summed over them",
                ),
                _column("n", _INT, "parts of the first"),
                _column("n_other", _INT, "parts of the other"),
                _column("n_shared", _INT, "parts that both hold"),
                _column("jaccard", _DOUBLE, "n_shared / (n + n_other - n_shared)"),
                _column(
                    "weighted",
                    _DOUBLE,
                    "the same of |effect| or |weight|, as shares of either circuit's sum: sum of "
                    "the smaller / sum of the larger",
                ),
                _column("contained", _DOUBLE, "n_shared / n"),
                _column("other_contained", _DOUBLE, "n_shared / n_other"),
            ]
        ),
    ),
    Table(
        "circuit_transfer",
        "circuit_transfer.parquet",
        "one behaviour and one circuit, its own or another's, judged on its examples",
        pa.schema(
            [
                _column("source", _TEXT, "clusters or tasks, where both come from"),
                _column("name", _TEXT, "cluster or task whose examples it is judged on"),
                _column("circuit", _TEXT, "cluster or task whose circuit it is"),
                _column(
                    "by_position",
                    _BOOL,
                    "nodes are kept at their positions alone, for tasks of as many tokens; else "
                    "everywhere",
                ),
                _ERROR_NODES,
                _START_LAYER,
                _column("n_nodes", _INT, "nodes that are kept, as far as dictionaries have them"),
                _column("faithfulness", _DOUBLE, "as in circuit_evaluations"),
            ]
        ),
    ),
    Table(
        "vocabulary",
        "vocabulary.parquet",
        "one token of the tokenizer",
        pa.schema(
            [
                _column("token", _INT, "its id"),
                _column(
                    "text",
                    _TEXT,
                    "its text within a sentence, with the space before it; lone bytes as \\xe2",
                ),
            ]
        ),
    ),
    Table(
        "feature_circuits",
        "feature_circuits.parquet",
        "one feature and one circuit that holds it (at one position, if by position)",
        pa.schema(
            [
                _SUBMODULE,
                _column("feature", _INT, "number of the feature, from 0"),
                _column("source", _TEXT, "clusters or tasks"),
                _NAME,
                _column("pos", _INT, "position; null where summed over positions", null=True),
                _column("effect", _DOUBLE, "its indirect effect there, in the metric's units"),
                _column("rank", _INT, "its place by |effect| in that circuit, from 0"),
                _column("upstream", _TEXTS, "nodes of the strongest edges into it: mlp_2/9"),
                _column("upstream_weights", _DOUBLES, "weights of these edges"),
                _column("downstream", _TEXTS, "nodes of the strongest edges out of it; metric"),
                _column("downstream_weights", _DOUBLES, "weights of these edges"),
            ]
        ),
    ),
    Table(
        "feature_cards",
        "cards/SUBMODULE.parquet",
        "the card of one feature or neuron: when it is active, and what that does",
        pa.schema(
            [
                _SUBMODULE,
                _BASIS,
                _FEATURE,
                _column("chosen", _TEXT, "why it has a card: circuits, random or all"),
                _WEIGHTS,
                _column("density", _FLOAT, "share of tokens on which it is active"),
                _column("n_active", _LONG, "tokens on which it is active"),
                _column("n_contexts", _LONG, "contexts in which it is active"),
                _column("max_activation", _FLOAT, "its largest activation; 0 if never active"),
                _column("mean_activation", _FLOAT, "mean over the tokens on which it is active"),
                _column("histogram_edges", _FLOATS, "edges of bins, from 0 to a power of two"),
                _column(
                    "histogram_counts",
                    _LONGS,
                    "contexts by their largest activation, where that is not zero",
                ),
                _column("promoted", _INTS, "tokens whose logits its decoder row raises most"),
                _column("promoted_values", _FLOATS, "by how much, per unit of activation"),
                _column("suppressed", _INTS, "tokens whose logits it lowers most"),
                _column("suppressed_values", _FLOATS, "by how much, per unit of activation"),
                _column(
                    "moved",
                    _INTS,
                    "tokens whose log-probability changes most when it is ablated at its strongest "
                    "tokens; null where not measured",
                    null=True,
                ),
                _column("moved_values", _FLOATS, "log P with it minus without, in nats", null=True),
            ]
        ),
    ),
    Table(
        "card_contexts",
        "cards/SUBMODULE_contexts.parquet",
        "one piece of text on a card, with the activation of each of its tokens",
        pa.schema(
            [
                _BASIS,
                _FEATURE,
                _column(
                    "quantile",
                    _INT,
                    "fourth of the contexts in which it is active, 0 the weakest; null for the "
                    "strongest of all",
                    null=True,
                ),
                _column("rank", _INT, "place among those of the same quantile, from 0"),
                _column("document", _INT, "document it comes from"),
                _column("window", _INT, "row of the contexts table"),
                _column("pos", _INT, "position of the largest activation in that context"),
                _column("start", _INT, "position of the first token that is shown"),
                _column("tokens", _INTS, "token ids from there on"),
                _column("activations", _FLOATS, "activation at each of them"),
            ]
        ),
    ),
    Table(
        "labels",
        "labels.parquet; what a rule or an endpoint says alone in labels/rules, labels/endpoint",
        "what one source calls one feature or neuron",
        pa.schema(
            [
                _SUBMODULE,
                _BASIS,
                _FEATURE,
                _column("text", _TEXT, "the label"),
                _column("by", _TEXT, "who made it: rule, endpoint NAME, or a person"),
                _column("shown", _BOOL, "it is the label that pages and drawings show"),
                _column(
                    "stale", _BOOL, "it was made for other dictionaries, or for no feature of these"
                ),
                _WEIGHTS,
                _column("at", _TEXT, "when, as the annotation file says", null=True),
                _column("rule", _TEXT, "JSON: the rule that picks tokens", null=True),
                _column(
                    "score",
                    _DOUBLE,
                    "correlation, over tokens of contexts that no card was made from, between what "
                    "the rule picks and the activation; null if never active there",
                    null=True,
                ),
                _column("precision", _DOUBLE, "share of picked tokens where active", null=True),
                _column("recall", _DOUBLE, "share of the activation at picked tokens", null=True),
                _column("n_active", _LONG, "tokens there on which it is active", null=True),
                _column(
                    "behaviour",
                    _TEXT,
                    "the known behaviour that determines the next token at most of its activation",
                    null=True,
                ),
                _column(
                    "names_behaviour",
                    _BOOL,
                    "half of the tokens that the rule picks, or more, are of that behaviour",
                    null=True,
                ),
            ]
        ),
    ),
    Table(
        "probe",
        "classifier/probe.parquet; the weights also in classifier/probe.safetensors",
        "the probe that classifies",
        pa.schema(
            [
                _column("site", _TEXT, "the submodule it reads"),
                _column("pooling", _TEXT, "mean over tokens, or the last"),
                _column("weight", _DOUBLES, "its logit of class 1 is weight . pooled + bias"),
                _column("bias", _DOUBLE, "see weight"),
                _column("loss_before", _DOUBLE, "cross-entropy before the last epoch, nats"),
                _column("loss", _DOUBLE, "cross-entropy of the trained probe, nats"),
            ]
        ),
    ),
    Table(
        "probe_groups",
        "classifier/probe_groups.parquet",
        "one group of one set of texts",
        pa.schema(
            [
                _column("set", _TEXT, "set of labelled_texts"),
                _column("label", _BYTE, "0 or 1"),
                _column("attribute", _BYTE, "0 or 1"),
                _column("n", _INT, "texts"),
                _column("accuracy", _DOUBLE, "share of them that the probe gives their label"),
            ]
        ),
    ),
    Table(
        "shift",
        "classifier/shift.parquet",
        "one way to train or edit the classifier, over all seeds",
        pa.schema(
            [
                _column("method", _TEXT, "what is ablated, or what the probe is trained on"),
                _column(
                    "probe",
                    _TEXT,
                    "trained: before anything is ablated; centred: then its bias moved so that the "
                    "mean logit of the ambiguous texts is zero; retrained: on ablated ones",
                ),
                _column("is_control", _BOOL, "what should not do as well as shift"),
                _column("label_accuracy", _DOUBLE, "of the balanced texts to judge on, mean"),
                _column("label_accuracy_sd", _DOUBLE, "its standard deviation over seeds"),
                _column("attribute_accuracy", _DOUBLE, "share predicted as their attribute, mean"),
                _column("attribute_accuracy_sd", _DOUBLE, "its standard deviation over seeds"),
                _column("worst_group", _DOUBLE, "accuracy of the worst of the four groups, mean"),
                _column("worst_group_sd", _DOUBLE, "its standard deviation over seeds"),
                _column("n_seeds", _INT, "probes, or draws, that this is over"),
                _column("n_circuit", _INT, "features of the circuit"),
                _column("n_judged", _INT, "of these, those judged"),
                _column("n_ablated", _DOUBLE, "units ablated, or tokens deleted of a text, mean"),
                _column("judge", _TEXT, "whose judgements were used"),
            ]
        ),
    ),
    Table(
        "shift_seeds",
        "classifier/shift_seeds.parquet",
        "one seed of one way",
        pa.schema(
            [
                _column("method", _TEXT, "as in shift"),
                _column("probe", _TEXT, "as in shift"),
                _column("seed", _INT, "from 0"),
                _column("label_accuracy", _DOUBLE, "of the balanced texts to judge on"),
                _column("attribute_accuracy", _DOUBLE, "share predicted as their attribute"),
                _column("worst_group", _DOUBLE, "accuracy of the worst of the four groups"),
                _column("groups", _DOUBLES, "of groups 00, 01, 10, 11 (label, attribute)"),
                _column("n_ablated", _DOUBLE, "units ablated, or tokens deleted of a text"),
            ]
        ),
    ),
    Table(
        "ablated_features",
        "classifier/ablated_features.parquet",
        "one unit that shift or a skyline ablates",
        pa.schema(
            [
                _column("method", _TEXT, "as in shift"),
                _SUBMODULE,
                _BASIS,
                _FEATURE,
                _column("effect", _DOUBLE, "on the label's margin; of skylines, the attribute's"),
            ]
        ),
    ),
    Table(
        "labelled_texts",
        "labelled_texts.parquet",
        "one text with a label and an attribute",
        pa.schema(
            [
                _column("id", _TEXT, "hash of the text"),
                _column("set", _TEXT, "ambiguous, balanced_train or balanced_test"),
                _column("label", _BYTE, "0 or 1: which of classifier.data.labels"),
                _column("attribute", _BYTE, "0 or 1: which of classifier.data.attributes"),
                _column("tokens", _INTS, "token ids, cut to what the model reads"),
                _column(
                    "tells",
                    _TEXTS,
                    "what each token tells, label, attribute or nothing, where the data say; else "
                    "null",
                    null=True,
                ),
                _column("text", _TEXT, "the whole text"),
            ]
        ),
    ),
    Table(
        "judgements",
        "classifier/judgements.parquet",
        "what one judge says of one feature of the classifier's circuit",
        pa.schema(
            [
                _SUBMODULE,
                _column("feature", _INT, "number of the feature, from 0"),
                _column("judge", _TEXT, "truth, words, rule, person or endpoint"),
                _column("used", _BOOL, "it is the judge that the experiment names"),
                _column(
                    "irrelevant",
                    _BOOL,
                    "the feature is about the attribute and not about the label",
                ),
                _column("reason", _TEXT, "what the judge goes by"),
            ]
        ),
    ),
    Table(
        "report",
        "report.parquet; the page beside it in report.html",
        "one section of the page",
        pa.schema(
            [
                _column("section", _TEXT, "its place in the page: report.html#section"),
                _column("title", _TEXT, "its heading"),
                _column("blocks", _INT, "tables, pictures and paragraphs in it"),
            ]
        ),
    ),
)

TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}


def describe_tables() -> str:
    """The page docs/tables.md."""
    lines = [
        "# Tables",
        "",
        "Every table the pipeline writes: `python -m assets.tables.schemas` prints this page.",
        "All are Parquet, below `artifacts/EXPERIMENT/`. The footer of each holds, under `sfc.*`",
        "keys, its recipe (`stage`, hashes of its `inputs`, `settings`, a digest of the `code`),",
        "the `fingerprint` of that, a hash of its own values (`content`), the `layout` number of",
        "the folder, and the `files` written with it, with their sizes and `hashes`.",
        "[What makes a table stale](dagster.md#what-a-table-is-made-from). When, where and with",
        "what each was made, and which makings its inputs are of, lies beside them in",
        "[`lineage.jsonl`](lineage.md).",
    ]
    for table in _ALL:
        lines += ["", f"## {table.name}", "", f"`{table.place}`", "", f"One row: {table.row}.", ""]
        lines += ["| column | type | null | what it is |", "|---|---|---|---|"]
        for column in table.schema:
            description = (column.metadata or {})[b"description"].decode().replace("|", "\\|")
            kind = str(column.type).replace("element: ", "").replace("item: ", "")
            null = "yes" if column.nullable else ""
            lines.append(f"| {column.name} | {kind} | {null} | {description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(describe_tables())
