"""How much of a behaviour a circuit explains: faithfulness and completeness (section 3.2).

    faithfulness = (m(C) - m(empty)) / (m(M) - m(empty))
    completeness = (m(not C) - m(empty)) / (m(M) - m(empty))

m(C) is the metric with every node outside the circuit ablated, m(not C) with every node of the
circuit ablated, m(empty) with all nodes ablated, m(M) that of the model as it is; each is a mean
over examples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from core.ablate import (
    Edit,
    Part,
    ablation_values,
    check_nodes,
    keep_edit,
    parts_of,
    run_edited,
    start_of,
)
from core.circuit import examples_per_batch
from core.dictionaries import Dictionary, check_widths
from core.errors import InputError, NotFinite, ShapeMismatch
from core.inputs import Inputs, check_answers
from core.intervals import draw_shares, interval
from core.models import LanguageModel
from core.models.replay import Resumed
from core.node_table import NodeTable
from core.options import ERROR_NODES, Ablation, ErrorNodes, check_list, check_option
from core.types import ERROR, Circuit, Node, Submodule


@dataclass(frozen=True)
class Evaluation:
    """One circuit's faithfulness and completeness, and the four metrics they come from.

    ``n_nodes`` counts the circuit's nodes that could be ablated here: not those of `embed`, of
    layers before the start layer, or error nodes that are dropped.
    ``faithfulness`` and ``completeness`` are NaN where ablating everything leaves the metric as
    it is: there is then nothing to explain. ``faithfulness_low`` and ``faithfulness_high`` are the
    ends of its 95% interval over draws of the examples, see `core.intervals`.
    """

    n_nodes: int
    n_examples: int
    m_full: float
    m_empty: float
    m_circuit: float
    m_complement: float
    faithfulness: float
    completeness: float
    faithfulness_low: float
    faithfulness_high: float


def _check_source(inputs: Inputs, source: Inputs, ablation: Ablation) -> None:
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
        ablation: ``mean``, ``zero`` or ``resample``, see `core.ablate.ablation_values`; None for
            ``mean`` where the inputs are pairs and ``zero`` where they are single.
        start_layer: submodules of earlier layers are left alone (2 for Pythia in the paper).
        values_from: inputs the ablation values are taken from; `inputs` where None.
        seed: of resampling, and of the draws behind intervals.
        budget_bytes: memory for activations in flight, and for what runs begin with: kept from
            the clean runs where it fits, else recorded again for each evaluation.

    Raises:
        InputError: unknown ablation, or a start layer the model does not have.
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
        ablation: Ablation | None = None,
        start_layer: int = 0,
        values_from: Inputs | None = None,
        seed: int = 0,
        budget_bytes: int = 2 << 30,
    ) -> None:
        end = inputs.readout.end(model.n_layers)
        if start_layer > end.layer:
            raise InputError(
                f"start layer {start_layer}, but the last layer that the metric reads is "
                f"{end.layer}: nothing would be ablated."
            )
        check_widths(dictionaries, model.width)
        check_answers(inputs, model.n_vocab)
        source = inputs if values_from is None else values_from
        if ablation is None:
            ablation = "zero" if inputs.patch is None else "mean"
        _check_source(inputs, source, ablation)
        self.model, self.ablation = model, ablation
        self.n_features = {name: d.n_features for name, d in dictionaries.items()}
        self.dictionaries = {
            name: dictionaries[name]
            for name in inputs.readout.reached_by(dictionaries, model)
            if name != "embed" and Submodule.parse(name).layer >= start_layer
        }
        if not self.dictionaries:
            raise InputError(
                "no dictionary sits at or after the start layer and no later than the metric "
                f"reads ({inputs.readout.name}), so nothing can be ablated."
            )
        self.inputs = inputs.to(model.device)
        self.values = ablation_values(model, self.dictionaries, source, ablation, seed=seed)
        # Resampled values belong to one example each: those runs are not split.
        self.batch = (
            inputs.n_examples
            if ablation == "resample"
            else examples_per_batch(model, dictionaries, inputs.clean.shape[1], budget_bytes)
        )
        self._shares = draw_shares(inputs.n_examples, seed=seed)
        self._metrics: dict[tuple[bytes, bool], Tensor] = {}
        self._last: tuple[bytes, dict[str, Part]] = b"", {}
        self._starts, self._full = self._record_starts(budget_bytes // 4)
        self._empty = self._run((), complement=False)
        self.m_full, self.m_empty = float(self._full.mean()), float(self._empty.mean())
        if not (math.isfinite(self.m_full) and math.isfinite(self.m_empty)):
            raise NotFinite(
                f"the metric is {self.m_full} for the whole model and {self.m_empty} with all "
                "nodes ablated: NaN or infinity says nothing about a circuit. Check the answers "
                "and the model's dtype."
            )

    def runs(self) -> Iterable[Resumed]:
        """Each batch of examples, recorded as far as edited runs begin with it."""
        return self._starts or self._recordings()

    def _recordings(self) -> Iterator[Resumed]:
        for batch in self.inputs.batches(self.batch):
            yield Resumed.record(self.model, batch)

    @torch.no_grad()
    def _record_starts(self, most_bytes: int) -> tuple[list[Resumed], Tensor]:
        """What runs begin with, if it takes no more than `most_bytes`, and each example's m(M)."""
        n_examples, n_pos = self.inputs.clean.shape
        names = start_of(self.dictionaries, self.model.parallel)
        width = sum(self.model.width(name) for name in names)
        each = n_pos * (width + n_pos) * self.model.dtype.itemsize
        fits = n_examples * each <= most_bytes
        starts, metrics = [], []
        for runs in self._recordings():
            outputs = runs.recording.outputs
            metrics.append(runs.as_recorded())
            if fits:
                first = {name: outputs[name] for name in names}
                starts.append(replace(runs, recording=replace(runs.recording, outputs=first)))
        return starts, _joined(metrics)

    def _run(self, nodes: Sequence[Node], *, complement: bool) -> Tensor:
        """Each example's metric with `nodes` kept, or all but `nodes`; each set runs once."""
        set_of = self._key(NodeTable.of(nodes))
        key = set_of, complement
        if key not in self._metrics:
            if self._last[0] != set_of:
                self._last = set_of, self._parts(nodes)
            edits = self._edits(self._last[1], complement=complement)
            self._metrics[key] = _joined([run_edited(batch, edits) for batch in self.runs()])
        return self._metrics[key]

    def _key(self, nodes: NodeTable) -> bytes:
        """The same for the same set of nodes, whatever their order."""
        order = {name: i for i, name in enumerate(self.n_features)}
        place = np.array([order[name] for name in nodes.names], dtype=int)[nodes.submodule]
        place = place * (self.inputs.clean.shape[1] + 1) + nodes.pos + 1
        node = place * (max(self.n_features.values()) + 1) + nodes.feature + 1
        return hashlib.sha256(np.unique(node).tobytes()).digest()

    def edits(self, nodes: Sequence[Node], *, complement: bool = False) -> dict[str, Edit]:
        """What becomes of every submodule with `nodes` kept, or all but `nodes`."""
        return self._edits(self._parts(nodes), complement=complement)

    def _parts(self, nodes: Sequence[Node]) -> dict[str, Part]:
        dtype = next(iter(self.dictionaries.values())).decoder.dtype
        n_pos = self.inputs.clean.shape[1]
        return parts_of(nodes, self.dictionaries, n_pos, self.model.device, dtype)

    def _edits(self, parts: Mapping[str, Part], *, complement: bool) -> dict[str, Edit]:
        return {
            name: keep_edit(self.dictionaries[name], self.values[name], part, complement=complement)
            for name, part in parts.items()
        }

    def counted(
        self, circuit: Circuit | Sequence[Node], error_nodes: ErrorNodes = "circuit"
    ) -> NodeTable:
        """The nodes that runs can keep: none never ablated, none that `error_nodes` drops.

        Raises:
            MissingSubmodule, InputError, ShapeMismatch: see `evaluate`.
        """
        if isinstance(circuit, Circuit):
            self._check_length(circuit)
        nodes = NodeTable.of(circuit.nodes if isinstance(circuit, Circuit) else circuit)
        self._check_nodes(nodes)
        runs = np.array([name in self.dictionaries for name in nodes.names], dtype=bool)
        drops = np.array([_drops(name, error_nodes) for name in nodes.names], dtype=bool)
        at = nodes.submodule
        return nodes.where(runs[at] & ~(nodes.is_error & drops[at]))

    def _check_length(self, circuit: Circuit) -> None:
        """Raise if a circuit by position was found on inputs of another length, where it says."""
        n_pos = self.inputs.clean.shape[1]
        if circuit.by_position and circuit.tokens and len(circuit.tokens) != n_pos:
            raise ShapeMismatch(
                f"the circuit's nodes are by position on inputs of {len(circuit.tokens)} tokens, "
                f"and these have {n_pos}: evaluate on inputs of the circuit's length."
            )

    def _check_nodes(self, nodes: NodeTable) -> None:
        """Raise if a node is not one of these dictionaries and inputs."""
        check_nodes(nodes, self.n_features, self.inputs.clean.shape[1])
        if nodes.is_placed.any() and not bool(self.inputs.mask.all()):
            raise ShapeMismatch(
                "the circuit's nodes are by position, and these inputs are padded: positions "
                "would not mean the same in each. Evaluate on inputs of one length."
            )

    def evaluate(
        self,
        circuit: Circuit | Sequence[Node],
        error_nodes: ErrorNodes = "circuit",
        *,
        complement: bool = True,
    ) -> Evaluation:
        """Faithfulness and completeness of a circuit, or of a bare set of nodes.

        Args:
            error_nodes: ``circuit``: as the circuit has them; ``drop``: none of them is in the
                circuit; ``drop_but_resid``: only the residual stream's; ``remove``, ``keep``: all
                ablated, or all kept, in the circuit's run and in its complement's.
            complement: run it too; without that, completeness is NaN.

        Raises:
            MissingSubmodule, InputError, ShapeMismatch: a node is none of these dictionaries, or
                at no position of these inputs; or an unknown choice of error nodes.
        """
        check_option("error_nodes", error_nodes, ERROR_NODES)
        nodes = self.counted(circuit, error_nodes)
        staying: Sequence[Node] = nodes
        leaving: Sequence[Node] = nodes
        if error_nodes in ("remove", "keep"):
            features = list(nodes.where(~nodes.is_error))
            errors = [Node(name, ERROR, None, 0.0) for name in self.dictionaries]
            staying = features + (errors if error_nodes == "keep" else [])
            leaving = features + (errors if error_nodes == "remove" else [])
        circuit_metrics = self._run(staying, complement=False)
        m_circuit = float(circuit_metrics.mean())
        m_complement = (
            float(self._run(leaving, complement=True).mean()) if complement else float("nan")
        )
        low, high = self._interval(circuit_metrics)
        return Evaluation(
            n_nodes=len(nodes),
            n_examples=self.inputs.n_examples,
            m_full=self.m_full,
            m_empty=self.m_empty,
            m_circuit=m_circuit,
            m_complement=m_complement,
            faithfulness=self.share(m_circuit),
            completeness=self.share(m_complement),
            faithfulness_low=low,
            faithfulness_high=high,
        )

    @property
    def span(self) -> float:
        """m(M) - m(empty), what there is to explain; NaN where that is nothing but rounding."""
        span, scale = self.m_full - self.m_empty, max(abs(self.m_full), abs(self.m_empty), 1.0)
        return span if abs(span) > 1e-6 * scale else float("nan")

    def share(self, metric: float) -> float:
        """How much of the behaviour is in a run: (m - m(empty)) / span."""
        return (metric - self.m_empty) / self.span

    def _interval(self, metrics: Tensor) -> tuple[float, float]:
        """The interval of faithfulness, the ratio of means, over draws of the examples."""
        if math.isnan(self.span):
            return float("nan"), float("nan")
        kept, whole = metrics - self._empty, self._full - self._empty
        return interval(self._shares, lambda shares: (shares @ kept) / (shares @ whole))

    def curve(
        self,
        nodes: Circuit | Sequence[Node],
        thresholds: Iterable[float],
        error_nodes: ErrorNodes = "circuit",
    ) -> list[Evaluation]:
        """Evaluations of the nodes whose absolute effect exceeds each threshold, in its order.

        Thresholds that leave the same nodes are run once.

        Args:
            nodes: with their effects, above a threshold as low as any of these.
            thresholds: in the metric's units.
            error_nodes: see `evaluate`.

        Raises:
            MissingSubmodule, InputError, ShapeMismatch: see `evaluate`.
        """
        if isinstance(nodes, Circuit):
            self._check_length(nodes)
            nodes = nodes.nodes
        check_list("nodes", nodes, Node)
        thresholds = list(thresholds) if isinstance(thresholds, Iterable) else thresholds
        check_list("thresholds", thresholds)
        return [
            self.evaluate([n for n in nodes if abs(n.effect) > threshold], error_nodes)
            for threshold in thresholds
        ]


def _joined(metrics: Sequence[Tensor]) -> Tensor:
    """Metrics of batches, ``(example,)`` in float64."""
    return torch.cat(list(metrics)).double().cpu()


def _drops(submodule: str, error_nodes: ErrorNodes) -> bool:
    """Whether that submodule's error node is in no circuit."""
    if error_nodes == "drop_but_resid":
        return not submodule.startswith("resid")
    return error_nodes == "drop"


def area(fractions: Sequence[float], faithfulness: Sequence[float]) -> float:
    """Area under the faithfulness curve (CPR of Mueller et al. 2025, MIB).

    The axis is the kept fraction of nodes, linear; between the given points the curve is straight,
    and outside of them nothing is counted. With points from 0 to 1 a circuit that is faithful
    whatever its size has area 1.

    Args:
        fractions: nodes kept over nodes that could be, in any order.
        faithfulness: at each fraction.

    Raises:
        InputError: fewer than two points, not one value for each, or a fraction outside [0, 1].
    """
    if len(fractions) != len(faithfulness) or len(fractions) < 2:
        raise InputError(
            f"{len(fractions)} fractions and {len(faithfulness)} values of faithfulness: a curve "
            "needs two points or more, with one of each."
        )
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise InputError(
            "a fraction of nodes is outside [0, 1]: divide by the number of nodes that could be "
            "kept, not by that of another circuit."
        )
    points = sorted(zip(fractions, faithfulness, strict=True), key=lambda point: point[0])
    return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points))


def evaluate_circuit(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    circuit: Circuit | Sequence[Node],
    inputs: Inputs,
    *,
    ablation: Ablation | None = None,
    error_nodes: ErrorNodes = "circuit",
    start_layer: int = 0,
) -> Evaluation:
    """Faithfulness and completeness of one circuit; see `Evaluator` for many on the same inputs.

    Args:
        ablation: None for ``mean`` where the inputs are pairs and ``zero`` where they are single.
        error_nodes: see `Evaluator.evaluate`.
    """
    evaluator = Evaluator(model, dictionaries, inputs, ablation=ablation, start_layer=start_layer)
    return evaluator.evaluate(circuit, error_nodes)
