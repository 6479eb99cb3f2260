"""How much of a behaviour a circuit explains: faithfulness and completeness (section 3.2).

    faithfulness = (m(C) - m(empty)) / (m(M) - m(empty))
    completeness = (m(not C) - m(empty)) / (m(M) - m(empty))

m(C) is the metric with every node outside the circuit ablated, m(not C) with every node of the
circuit ablated, m(empty) with all nodes ablated, m(M) that of the model as it is; each is a mean
over examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from core.ablate import Edit, Part, ablation_values, keep_edit, parts_of, run_edited
from core.circuit import examples_per_batch
from core.dictionaries import Dictionary, check_widths
from core.errors import InputError, MissingSubmodule, NotFinite, ShapeMismatch
from core.inputs import Inputs, check_answers
from core.models import LanguageModel
from core.types import Circuit, Node, Submodule

ERROR_POLICIES = ("circuit", "drop", "drop_but_resid", "remove", "keep")


@dataclass(frozen=True)
class Evaluation:
    """One circuit's faithfulness and completeness, and the four metrics they come from.

    ``n_nodes`` counts the circuit's nodes that could be ablated here: not those of `embed`, of
    layers before the start layer, or dropped by the error policy.
    ``faithfulness`` and ``completeness`` are NaN where ablating everything leaves the metric as
    it is: there is then nothing to explain.
    """

    n_nodes: int
    n_examples: int
    m_full: float
    m_empty: float
    m_circuit: float
    m_complement: float
    faithfulness: float
    completeness: float


def _check_source(inputs: Inputs, source: Inputs, ablation: str) -> None:
    """Raise `ShapeMismatch` if ablation values from `source` cannot stand in `inputs`."""
    if ablation == "resample" and source.clean.shape != inputs.clean.shape:
        raise ShapeMismatch(
            f"resample ablation gives each example the values of another, but there are "
            f"{tuple(inputs.clean.shape)} tokens and values from {tuple(source.clean.shape)}."
        )
    by_position = ablation == "mean" and bool(source.mask.all())
    if by_position and (
        source.clean.shape[1] != inputs.clean.shape[1] or not bool(inputs.mask.all())
    ):
        raise ShapeMismatch(
            f"values from inputs that all have {source.clean.shape[1]} tokens are means at each "
            f"position, but the inputs evaluated have up to {inputs.clean.shape[1]}: take the "
            "values from inputs of the same length, or ablate to zero."
        )


class Evaluator:
    """Evaluates many circuits on the same inputs; what does not depend on the circuit runs once.

    Args:
        model, dictionaries: what the circuits were found with.
        inputs: examples to evaluate on, not those the circuit was found on.
        ablation: ``mean``, ``zero`` or ``resample``, see `core.ablate.ablation_values`.
        errors: ``circuit``: error nodes as the circuit has them; ``drop``: none of them is in
            the circuit; ``drop_but_resid``: only the residual stream's; ``remove``, ``keep``: all
            ablated, or all kept, in the circuit's run and in its complement's.
        start_layer: submodules of earlier layers are left alone (2 for Pythia in the paper).
        values_from: inputs the ablation values are taken from; `inputs` where None.
        budget_bytes: memory for activations in flight.

    Raises:
        InputError: unknown ablation or policy, or a start layer the model does not have.
        ShapeMismatch: values are taken from inputs of another shape.
        WidthMismatch, MissingSubmodule: a dictionary does not fit the model.
        NotFinite: the metric is NaN or infinite.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[str, Dictionary],
        inputs: Inputs,
        *,
        ablation: str = "mean",
        errors: str = "circuit",
        start_layer: int = 0,
        values_from: Inputs | None = None,
        seed: int = 0,
        budget_bytes: int = 2 << 30,
    ) -> None:
        if errors not in ERROR_POLICIES:
            raise InputError(f"errors '{errors}' is not one of {', '.join(ERROR_POLICIES)}.")
        if start_layer >= model.n_layers:
            raise InputError(
                f"start layer {start_layer}, but the model's last layer is {model.n_layers - 1}: "
                "nothing would be ablated."
            )
        check_widths(dictionaries, model.width)
        check_answers(inputs, model.n_vocab)
        source = inputs if values_from is None else values_from
        _check_source(inputs, source, ablation)
        self.model, self.errors = model, errors
        self.n_features = {name: d.n_features for name, d in dictionaries.items()}
        self.dictionaries = {
            name: dictionary
            for name, dictionary in dictionaries.items()
            if name != "embed" and Submodule.parse(name).layer >= start_layer
        }
        if not self.dictionaries:
            raise InputError(
                "no dictionary sits at or after the start layer, so nothing can be ablated."
            )
        self.inputs = inputs.to(model.device)
        self.values = ablation_values(model, self.dictionaries, source, ablation, seed=seed)
        self.per_example = ablation == "resample"
        self.batch = examples_per_batch(model, dictionaries, inputs.clean.shape[1], budget_bytes)
        self.m_full = self._mean({})
        self.m_empty = self._mean(self._edits(self._parts(()), complement=False))
        if not (math.isfinite(self.m_full) and math.isfinite(self.m_empty)):
            raise NotFinite(
                f"the metric is {self.m_full} for the whole model and {self.m_empty} with all "
                "nodes ablated: NaN or infinity says nothing about a circuit. Check the answers "
                "and the model's dtype."
            )

    def _parts(self, nodes: Sequence[Node]) -> dict[str, Part]:
        dtype = next(iter(self.dictionaries.values())).decoder.dtype
        n_pos = self.inputs.clean.shape[1]
        return parts_of(list(nodes), list(self.dictionaries), n_pos, self.model.device, dtype)

    def _run(self, nodes: Sequence[Node], *, complement: bool) -> float:
        """Mean metric with only `nodes`, or only what is not among them, kept."""
        parts = self._parts(nodes)
        if self.errors in ("remove", "keep"):
            # An edit moves the error into a circuit's run, and out of a complement's.
            error = 1.0 if (self.errors == "remove") == complement else 0.0
            parts = {n: Part(part.features, part.where, error) for n, part in parts.items()}
        return self._mean(self._edits(parts, complement=complement))

    def _counted(self, circuit: Circuit | Sequence[Node]) -> list[Node]:
        """The nodes that runs can keep: none that is never ablated, none that `errors` drops."""
        if isinstance(circuit, Circuit):
            self._check_length(circuit)
        nodes = circuit.nodes if isinstance(circuit, Circuit) else circuit
        self._check_nodes(nodes)
        return [
            node
            for node in nodes
            if node.submodule in self.dictionaries
            and not (node.is_error and self._drops_error(node.submodule))
        ]

    def _check_length(self, circuit: Circuit) -> None:
        """Raise if a circuit by position was found on inputs of another length, where it says."""
        n_pos = self.inputs.clean.shape[1]
        if circuit.by_position and circuit.tokens and len(circuit.tokens) != n_pos:
            raise ShapeMismatch(
                f"the circuit's nodes are by position on inputs of {len(circuit.tokens)} tokens, "
                f"and these have {n_pos}: evaluate on inputs of the circuit's length."
            )

    def _check_nodes(self, nodes: Sequence[Node]) -> None:
        """Raise if a node is not one of these dictionaries and inputs."""
        n_pos = self.inputs.clean.shape[1]
        for node in nodes:
            width = self.n_features.get(node.submodule)
            if width is None:
                raise MissingSubmodule(
                    f"the circuit has node {node.name}, but no dictionary sits at "
                    f"'{node.submodule}': evaluate with the dictionaries it was found with."
                )
            if node.feature >= width:
                raise InputError(
                    f"the circuit has node {node.name}, but that dictionary has features 0 to "
                    f"{width - 1}: the circuit was found with other dictionaries."
                )
            if node.pos is not None and node.pos >= n_pos:
                raise InputError(
                    f"the circuit has node {node.name} at position {node.pos}, but the inputs "
                    f"have {n_pos} positions: evaluate on inputs of the circuit's length."
                )
        if any(node.pos is not None for node in nodes) and not bool(self.inputs.mask.all()):
            raise ShapeMismatch(
                "the circuit's nodes are by position, and these inputs are padded: positions "
                "would not mean the same in each. Evaluate on inputs of one length."
            )

    def _drops_error(self, name: str) -> bool:
        if self.errors == "drop_but_resid":
            return not name.startswith("resid")
        return self.errors == "drop"

    def _edits(self, parts: Mapping[str, Part], *, complement: bool) -> dict[str, Edit]:
        return {
            name: keep_edit(self.dictionaries[name], self.values[name], part, complement=complement)
            for name, part in parts.items()
        }

    def _mean(self, edits: Mapping[str, Edit]) -> float:
        """Mean metric over all examples of a run with edits."""
        # Resampled values belong to one example each: those runs are not split.
        size = self.inputs.n_examples if self.per_example else self.batch
        found = [run_edited(self.model, batch, edits) for batch in self.inputs.batches(size)]
        return float(torch.cat(found).double().mean())

    def evaluate(self, circuit: Circuit | Sequence[Node]) -> Evaluation:
        """Faithfulness and completeness of a circuit, or of a bare set of nodes.

        Raises:
            MissingSubmodule, InputError, ShapeMismatch: a node is none of these dictionaries, or
                at no position of these inputs.
        """
        nodes = self._counted(circuit)
        m_circuit = self._run(nodes, complement=False)
        m_complement = self._run(nodes, complement=True)
        span = self.m_full - self.m_empty
        scale = max(abs(self.m_full), abs(self.m_empty), 1.0)
        defined = abs(span) > 1e-6 * scale
        return Evaluation(
            n_nodes=len(nodes),
            n_examples=self.inputs.n_examples,
            m_full=self.m_full,
            m_empty=self.m_empty,
            m_circuit=m_circuit,
            m_complement=m_complement,
            faithfulness=(m_circuit - self.m_empty) / span if defined else float("nan"),
            completeness=(m_complement - self.m_empty) / span if defined else float("nan"),
        )


def evaluate_circuit(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    circuit: Circuit | Sequence[Node],
    inputs: Inputs,
    *,
    ablation: str = "mean",
    errors: str = "circuit",
    start_layer: int = 0,
) -> Evaluation:
    """Faithfulness and completeness of one circuit; see `Evaluator` for many on the same inputs."""
    evaluator = Evaluator(
        model, dictionaries, inputs, ablation=ablation, errors=errors, start_layer=start_layer
    )
    return evaluator.evaluate(circuit)
