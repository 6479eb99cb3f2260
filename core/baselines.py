"""What circuits of features are held against (Figure 3): neurons, and random directions.

Each baseline is a model and dictionaries like any other, so that effects, circuits and their
evaluation are one code path for all of them: neurons are features of identity dictionaries, which
leave no error; an MLP's hidden neurons are the submodule of a model that is read before its down
projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from core.circuit import attribute
from core.dictionaries import Dictionary, identity_dictionary
from core.dictionaries.random import random_dictionary
from core.estimators import Estimator
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import Node


@dataclass(frozen=True)
class Basis:
    """What circuits are made of.

    Attributes:
        model: where the dictionaries sit.
        dictionaries: by submodule name; their features and errors are the nodes.
    """

    model: LanguageModel
    dictionaries: Mapping[str, Dictionary]

    def measure(
        self,
        inputs: Inputs,
        *,
        estimator: Estimator,
        by_position: bool = False,
        budget_bytes: int = 2 << 30,
    ) -> list[Node]:
        """Every node with an effect on the inputs.

        Raises:
            ShapeMismatch, NotFinite, OutOfBudget: see `core.circuit.attribute`.
        """
        effects = attribute(
            self.model,
            self.dictionaries,
            inputs,
            estimator=estimator,
            by_position=by_position,
            budget_bytes=budget_bytes,
        )
        every = effects.circuit(node_threshold=0.0, edge_threshold=0.0, edges=False)
        return list(every.nodes)


def neurons(model: LanguageModel, names: Iterable[str]) -> Basis:
    """The coordinates of these submodules' outputs."""
    return Basis(model, {name: _identity(model, name) for name in names})


def mlp_neurons(model: LanguageModel) -> Basis:
    """The hidden neurons of every MLP, and nothing else: attention stays as it is.

    With all of them ablated, MLPs put out what their down projection makes of the neurons' means,
    or of zeros.

    Raises:
        MissingSubmodule: the hidden neurons of some MLP are not known, as those of experts.
    """
    hidden = model.at_hidden()
    names = [name for name in hidden.submodules if name.startswith("mlp")]
    return Basis(hidden, {name: _identity(hidden, name) for name in names})


def _identity(model: LanguageModel, name: str) -> Dictionary:
    dtype = torch.promote_types(model.dtype, torch.float32)
    return identity_dictionary(model.width(name), device=model.device, dtype=dtype)


def random_directions(
    model: LanguageModel, dictionaries: Mapping[str, Dictionary], inputs: Inputs, *, seed: int = 0
) -> Basis:
    """Random directions instead of each dictionary's, see `random_dictionary`.

    Args:
        inputs: on whose clean side sparsity and scale are taken.
        seed: of the directions; each submodule has its own.
    """
    inputs = inputs.to(model.device)
    outputs = model.record(inputs.clean, inputs.mask).outputs
    return Basis(
        model,
        {
            name: random_dictionary(dictionary, outputs[name][inputs.mask], seed=1_000 * seed + i)
            for i, (name, dictionary) in enumerate(dictionaries.items())
        },
    )
