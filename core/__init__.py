"""Sparse feature circuits in plain torch: load a model and dictionaries, find a circuit, read it.

    >>> model = core.load_model("EleutherAI/pythia-70m-deduped")
    >>> inputs = core.tokenize_pairs(tokenizer, rows).inputs
    >>> circuit = core.find_circuit(model, dictionaries, inputs, node_threshold=0.1, ...)
    >>> print(core.describe_circuit(circuit))

The public names below are all a notebook needs; `docs/core.md` is a complete example. They are
imported when first used, so that `import core.errors` does not bring torch along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.ablate import ablated
    from core.circuit import attribute, find_circuit
    from core.dictionaries import Dictionary, identity_dictionary
    from core.edges import edge_effects
    from core.effects import node_effects
    from core.estimators import Attribution, Enough, Exact, IntegratedGradients
    from core.evaluate import Evaluator, evaluate_circuit
    from core.inputs import Inputs, tokenize_pairs, tokenize_single
    from core.models import LanguageModel, load_model, load_tokenizer
    from core.pictures.describe import describe_circuit
    from core.pictures.draw import draw_circuit
    from core.probe import Probe, pooled_vectors, train_probe
    from core.readout import Readout
    from core.types import Circuit, Edge, Node

_WHERE = {
    "Attribution": "core.estimators",
    "Circuit": "core.types",
    "Dictionary": "core.dictionaries",
    "Edge": "core.types",
    "Enough": "core.estimators",
    "Evaluator": "core.evaluate",
    "Exact": "core.estimators",
    "Inputs": "core.inputs",
    "IntegratedGradients": "core.estimators",
    "LanguageModel": "core.models",
    "Node": "core.types",
    "Probe": "core.probe",
    "Readout": "core.readout",
    "ablated": "core.ablate",
    "attribute": "core.circuit",
    "describe_circuit": "core.pictures.describe",
    "draw_circuit": "core.pictures.draw",
    "edge_effects": "core.edges",
    "evaluate_circuit": "core.evaluate",
    "find_circuit": "core.circuit",
    "identity_dictionary": "core.dictionaries",
    "load_model": "core.models",
    "load_tokenizer": "core.models",
    "node_effects": "core.effects",
    "pooled_vectors": "core.probe",
    "tokenize_pairs": "core.inputs",
    "tokenize_single": "core.inputs",
    "train_probe": "core.probe",
}

__all__ = [
    "Attribution",
    "Circuit",
    "Dictionary",
    "Edge",
    "Enough",
    "Evaluator",
    "Exact",
    "Inputs",
    "IntegratedGradients",
    "LanguageModel",
    "Node",
    "Probe",
    "Readout",
    "ablated",
    "attribute",
    "describe_circuit",
    "draw_circuit",
    "edge_effects",
    "evaluate_circuit",
    "find_circuit",
    "identity_dictionary",
    "load_model",
    "load_tokenizer",
    "node_effects",
    "pooled_vectors",
    "tokenize_pairs",
    "tokenize_single",
    "train_probe",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'core' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)
