"""Tables of an experiment that nobody ran, with as many circuits and nodes as wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from assets.engine.recipe import Recipe
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import (
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    LABELS,
    VOCABULARY,
    BehaviourSource,
    Key,
    behaviours,
    card_contexts,
    cards,
    circuit,
    clusters,
    evaluation,
    examples,
)
from assets.tables.schemas import TABLES
from core.types import Submodule
from pipelines.experiment import read_experiment

HOSTILE = (
    "<b>bold</b>", "</script>", "<!--", "&lt;", "\n", "\u202eabc", "\u200f", "\u2028",
    "\u27e80xE2\u27e9", "'\"", " cat", " the", "{{ 7 }}", "\x1b[1m",
)  # fmt: skip
N_CARDS = 64
"""Features of each dictionary that have a card, the first; the last of them is never active."""
WEIGHTS = "0123456789abcdef"
THRESHOLDS = (0.001, 0.01, 0.1, 1.0)


class MadeUp:
    """Writes the tables; everything follows from the seed.

    Args:
        folder: for the YAML file and its artifacts.
        n_clusters: circuits of clusters.
        n_layers: of the model that there is not.
        n_features: of each dictionary.
    """

    def __init__(
        self, folder: Path, *, n_clusters: int = 4, n_layers: int = 2, n_features: int = N_CARDS
    ) -> None:
        self.rng = Random(0)
        self.n_features = n_features
        settings = {
            "model": {"source": "./model", "n_layers": n_layers},
            "corpus": {"source": "./corpus.jsonl"},
            "dictionaries": {"source": "train", "n_features": n_features},
            "filter": {"n_samples": max(24, n_clusters)},
            "clustering": {"k": n_clusters, "max_clusters": n_clusters},
            "tasks": {"pairs": {"simple": {"train": "./a.json", "test": "./b.json"}}},
            "artifacts": "./artifacts",
        }
        path = folder / "made_up.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.experiment: Experiment = read_experiment(path)
        self.store = ArtifactStore(self.experiment.artifacts)
        self.summary: list[dict[str, Any]] = []

    def write(self, key: Key, rows: Sequence[Mapping[str, Any]]) -> None:
        """One table; columns that a row does not name are null."""
        nothing = dict.fromkeys(TABLES[key.table].schema.names)
        table = TABLES[key.table].build([{**nothing, **row} for row in rows])
        self.store.write(key, table, Recipe(key.stage, {}, {}, ""))

    def all(self, *, n_nodes: int = 24, n_edges: int = 48) -> Experiment:
        """Every table that the explorer reads."""
        self.dictionaries()
        self.write(VOCABULARY, [{"token": i, "text": text} for i, text in enumerate(HOSTILE)])
        for source, names in (("clusters", self.experiment.clusters), ("tasks", ["simple"])):
            for name in names:
                self.circuit(source, name, self.nodes(n_nodes, source == "tasks"), n_edges)
            self.behaviours(source, names)
        self.write(EVALUATION_SUMMARY, self.summary)
        self.cards()
        return self.experiment

    def dictionaries(self, weights: str = WEIGHTS) -> None:
        """The dictionary set."""
        figures = {"variance_explained", "l1", "l0", "alive", "ce", "ce_hat", "ce_zero"}
        figures |= {"ce_difference", "ce_recovered", "error_norm", "in_series", "n_confident"}
        self.write(
            DICTIONARY_SET,
            [
                {
                    "submodule": submodule,
                    "activation": "relu",
                    "n_features": self.n_features,
                    "width": 16,
                    "weights": weights,
                    "n_tokens": 1000,
                    **dict.fromkeys(figures, 1.0),
                }
                for submodule in self.experiment.submodules
            ],
        )

    def behaviours(self, source: BehaviourSource, names: Sequence[str]) -> None:
        """What each circuit is about, and its examples."""
        pairs = source == "tasks"
        self.write(
            behaviours(source),
            [
                {
                    "name": name,
                    "metric": "logit_difference" if pairs else "log_prob",
                    "by_position": pairs,
                    "size": 10 + i % 90,
                    "n_found": 4,
                    "n_evaluated": 2,
                    "n_dropped": 0,
                    "held_out": True,
                    "about": f"a text of {name} and <i>its</i> [answer]",
                    "label": "known",
                    "tokens": ["<b>", " cat", "\n"] if pairs else None,
                    "digest": "0",
                }
                for i, name in enumerate(names)
            ],
        )
        self.write(
            examples(source),
            [
                {
                    "name": name,
                    "number": i,
                    "found": i < 4,
                    "evaluated": i >= 4,
                    "clean": [self.rng.randrange(len(HOSTILE)) for _ in range(12)],
                    "answer": self.rng.randrange(len(HOSTILE)),
                    "patch": [3, 4, 5] if pairs else None,
                    "patch_answer": 1 if pairs else None,
                }
                for name in names
                for i in range(6)
            ],
        )
        if source == "clusters":
            self.write(
                clusters(),
                [
                    {
                        "cluster": i,
                        "size": 10,
                        "n_documents": 5,
                        "n_answers": 2,
                        "answer_entropy": 0.5,
                        "coherence": 0.8,
                        "typical": [0],
                        "example": "a text",
                    }
                    for i in range(len(names))
                ],
            )

    def nodes(self, n: int, by_position: bool = False) -> list[dict[str, Any]]:
        """Different nodes in causal order, a tenth of them errors."""
        drawn = set()
        while len(drawn) < n:
            submodule = self.rng.choice(self.experiment.submodules)
            feature = -1 if self.rng.random() < 0.1 else self.rng.randrange(self.n_features)
            drawn.add((submodule, feature, self.rng.randrange(3) if by_position else None))
        ordered = sorted(drawn, key=lambda one: (Submodule.parse(one[0]).order, *map(str, one)))
        return [
            {
                "node": i,
                "submodule": submodule,
                "feature": feature,
                "pos": pos,
                "effect": self.rng.choice((-1, 1)) * (0.1 + self.rng.expovariate(2)),
            }
            for i, (submodule, feature, pos) in enumerate(ordered)
        ]

    def circuit(
        self,
        source: BehaviourSource,
        name: str,
        nodes: Sequence[Mapping[str, Any]],
        n_edges: int = 0,
        *,
        is_empty: bool = False,
    ) -> None:
        """One circuit with its edges and its evaluations; an empty cluster's has no head."""
        ends = [(a["node"], b["node"]) for a, b in self._ordered_pairs(nodes, n_edges)]
        edges = [{"upstream": a, "downstream": b, "weight": self.rng.gauss(0, 1)} for a, b in ends]
        edges += [
            {"upstream": node["node"], "downstream": None, "weight": node["effect"]}
            for node in nodes
            if node["submodule"] == self.experiment.submodules[-1]
        ]
        head = {
            "name": name,
            "n_nodes": len(nodes),
            "n_edges": len(edges),
            "n_examples": 4,
            "metric_clean": 0.5,
            "metric_patch": -0.5 if source == "tasks" else None,
            "gaps": "{}",
            "gap": 0.125,
            "stability": 0.5,
            "settings": json.dumps({"metric": "m", "model": "none", "node_threshold": 0.1}),
            "tokens": ["<b>", " cat", "\n"] if source == "tasks" else None,
        }
        self.write(circuit(source, name, "effects"), nodes)
        self.write(circuit(source, name, "nodes"), nodes)
        self.write(circuit(source, name, "edges"), edges)
        self.write(circuit(source, name), [] if is_empty else [head])
        self._judge(source, name, len(nodes), len(edges), is_empty)

    def _ordered_pairs(
        self, nodes: Sequence[Mapping[str, Any]], n: int
    ) -> set[tuple[Any, ...]] | list[Any]:
        found = {}
        for _ in range(3 * n if len(nodes) > 1 else 0):
            a, b = sorted(self.rng.sample(range(len(nodes)), 2))
            if nodes[a]["submodule"] != nodes[b]["submodule"] and len(found) < n:
                found[a, b] = nodes[a], nodes[b]
        return list(found.values())

    def _judge(
        self, source: BehaviourSource, name: str, n_nodes: int, n_edges: int, is_empty: bool
    ) -> None:
        rows = [
            {
                "name": name,
                "error_nodes": policy,
                "threshold": threshold,
                "ablation": "zero",
                "start_layer": 0,
                "n_examples": 2,
                "held_out": True,
                "n_nodes": n_nodes if threshold is None else int(n_nodes * (1 - threshold)),
                **dict.fromkeys(("m_full", "m_empty", "m_circuit", "m_complement"), 1.0),
                "faithfulness": 0.9 if threshold is None else 1 - threshold,
                "faithfulness_low": -1.0,
                "faithfulness_high": 1.0,
                "completeness": 0.1,
            }
            for policy in ("circuit", "drop")
            for threshold in (None, *THRESHOLDS)
        ]
        # From another layer on it was judged at its own size alone, and is not shown.
        rows.append({**rows[0], "start_layer": 1, "n_nodes": 1, "faithfulness": -7.0})
        self.write(evaluation(source, name), [] if is_empty else rows)
        self.summary += [
            {
                "source": source,
                "name": name,
                "size": 10,
                "about": f"a text of {name} and <i>its</i> [answer]",
                "label": None,
                "metric": "log_odds",
                "start_layer": row["start_layer"],
                "error_nodes": row["error_nodes"],
                "n_judged": row["n_nodes"],
                "n_nodes": n_nodes,
                "n_edges": n_edges,
                "gap": 0.125,
                "stability": 0.5,
                "n_examples": 2,
                "held_out": True,
                "m_full": 1.0,
                "m_empty": 0.0,
                "faithfulness": self.rng.random(),
                "faithfulness_low": 0.0,
                "faithfulness_high": 1.0,
                "completeness": 0.1,
                "area": self.rng.random(),
                "at_100": None,
                "nodes_half": 1,
                "nodes_nine_tenths": None,
            }
            for row in rows
            if row["threshold"] is None and not is_empty
        ]

    def cards(self, n_features: int = N_CARDS, n_contexts: int = 6) -> None:
        """A card for every feature and for a few neurons of every submodule, and some labels."""
        labels = []
        for submodule in self.experiment.submodules:
            which = [("features", i, "circuits" if i < 40 else "random") for i in range(n_features)]
            which += [("neurons", i, "random") for i in range(8)]
            self.write(
                cards(submodule),
                [self._card(submodule, *one, is_active=one[1] != 63) for one in which],
            )
            self.write(
                card_contexts(submodule),
                [
                    self._context(basis, feature, rank)
                    for basis, feature, _ in which
                    if feature != 63
                    for rank in range(n_contexts)
                ],
            )
            labels += [
                {
                    "submodule": submodule,
                    "basis": "features",
                    "feature": feature,
                    "text": f"fires on <i>{feature}</i>",
                    "by": "rule",
                    "shown": True,
                    "stale": False,
                    "weights": WEIGHTS,
                    "score": 0.5,
                }
                for feature in range(0, n_features, 2)
            ]
        self.write(LABELS, labels)

    def _card(
        self, submodule: str, basis: str, feature: int, chosen: str, *, is_active: bool
    ) -> dict[str, Any]:
        n_active = 100 if is_active else 0
        return {
            "submodule": submodule,
            "basis": basis,
            "feature": feature,
            "chosen": chosen,
            "weights": WEIGHTS if basis == "features" else None,
            "density": n_active / 1e4,
            "n_active": n_active,
            "n_contexts": n_active // 2,
            "max_activation": 2.0 if is_active else 0.0,
            "mean_activation": 1.0 if is_active else 0.0,
            "histogram_edges": [0.0, 1.0, 2.0],
            "histogram_counts": [30, 20] if is_active else [0, 0],
            "promoted": [0, 1, 2],
            "promoted_values": [0.3, 0.2, 0.1],
            "suppressed": [3, 4, 5],
            "suppressed_values": [-0.3, -0.2, -0.1],
            "moved": [6, 7],
            "moved_values": [0.2, -0.1],
        }

    def _context(self, basis: str, feature: int, rank: int) -> dict[str, Any]:
        tokens = [self.rng.randrange(len(HOSTILE)) for _ in range(24)]
        return {
            "basis": basis,
            "feature": feature,
            "quantile": None if rank < 4 else 3 - rank % 4,
            "rank": rank,
            "document": rank,
            "window": rank,
            "pos": 12,
            "start": 0,
            "tokens": tokens,
            "activations": [max(0.0, self.rng.gauss(0, 1)) for _ in tokens],
        }
