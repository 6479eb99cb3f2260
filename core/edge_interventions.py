"""What single edges do by intervention, to hold against their weights (eqs 5 and 6).

For an edge i -> j node i takes its patch value in the clean run, and the direct path alone sees it:

    u'     = u + change of i                                what the upstream submodule puts out
    y'     = F(u')                                          what the downstream one would
    path   = g_j . (node j of y' - node j of y)             the weight, but F is not made linear
    effect = m(y + node j of y' - node j of y) - m(y)       j alone takes that, and the run goes on

F is the path of `core.edges`: what lies between, the other submodules of the layer, stays clean.
Where path and weight differ, the derivative of F at the clean input does not say what F does:
features switch on and off. Where path and effect differ, g_j, the mean gradient, is not what j does
alone: integrated gradients share out a joint change among all nodes of a submodule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.circuit import examples_per_batch
from core.dictionaries import Dictionary
from core.edges import edge_effects, edge_kinds
from core.effects import Effects, node_effects
from core.errors import InputError, MissingSubmodule, NotFinite, ShapeMismatch
from core.estimators import Estimator, IntegratedGradients, check_gradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.replay import Resumed
from core.options import check_list
from core.types import Edge, Node, Submodule

_Kind = tuple[str, str]


@dataclass(frozen=True)
class EdgeInterventions:
    """Three measures of each edge, means over examples in the metric's units, in float64.

    Attributes:
        weight: ``(edge,)``, on these examples, as `core.edges.edge_effects` gives it.
        path: ``(edge,)``, what the patched upstream node changes of the downstream one by the
            direct path, times the downstream node's mean gradient.
        effect: ``(edge,)``, what that change alone does to the metric.
    """

    weight: Tensor
    path: Tensor
    effect: Tensor


def edge_interventions(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    nodes: Sequence[Node],
    edges: Sequence[Edge],
    *,
    estimator: Estimator = IntegratedGradients(),
    budget_bytes: int = 2 << 30,
) -> EdgeInterventions:
    """Weights of some edges, and the interventions that these stand for.

    Args:
        dictionaries: those the circuit was found with.
        inputs: pairs, or single inputs (to zero).
        nodes: what `edges` count: all at positions, or none.
        edges: not into the metric, where there is nothing but the node's own effect.
        estimator: of the gradients; one that has them.
        budget_bytes: memory for activations in flight.

    Raises:
        InputError: an edge that no direct path joins, or that is into the metric; an estimator
            without gradients.
        ShapeMismatch: nodes at positions, and examples of different lengths.
        MissingSubmodule, WidthMismatch: a dictionary is missing, or of another model.
        NotFinite: activations or a metric are NaN or infinite.
        OutOfBudget: not even one example fits the budget.
    """
    reached = inputs.readout.reached_by(model.submodules, model)
    ends = _checked(set(edge_kinds(model, dict.fromkeys(reached))), dictionaries, nodes, edges)
    check_gradients(estimator)
    by_position = any(node.pos is not None for pair in ends for node in pair)
    if by_position and not bool(inputs.mask.all()):
        raise ShapeMismatch(
            "nodes at positions need examples of one length, and these are padded: measure edges "
            "on the inputs that the circuit was found from."
        )
    names = {node.submodule for pair in ends for node in pair}
    involved = {name: dictionaries[name] for name in sorted(names)}
    totals = torch.zeros(3, len(ends), dtype=torch.float64)
    if not ends:
        return EdgeInterventions(*totals)
    size = examples_per_batch(model, involved, inputs.clean.shape[1], budget_bytes)
    for batch in inputs.batches(size):
        effects = node_effects(
            model, involved, batch, estimator=estimator, budget_bytes=budget_bytes
        )
        batch = batch.to(model.device)
        runs = Resumed(model, effects.clean_run, batch.metric, batch.last, batch.readout)
        totals[0] += _weights(model, involved, effects, ends, by_position, budget_bytes)
        clean = _Clean(runs, involved, effects)
        for i, pair in enumerate(ends):
            totals[1:, i] += torch.tensor(clean.intervene(*pair), dtype=torch.float64)
    if not bool(totals.isfinite().all()):
        raise NotFinite(
            "the metric is NaN or infinite with an edge's nodes changed: check the answers and "
            "the model's dtype."
        )
    return EdgeInterventions(*(totals / inputs.n_examples))


def _checked(
    kinds: set[_Kind],
    dictionaries: Mapping[str, Dictionary],
    nodes: Sequence[Node],
    edges: Sequence[Edge],
) -> list[tuple[Node, Node]]:
    """Both ends of each edge."""
    check_list("nodes", nodes, Node)
    check_list("edges", edges, Edge)
    ends = []
    for edge in edges:
        if edge.downstream is None:
            raise InputError(
                f"edge {edge.upstream} -> metric is no path between two nodes: its weight is the "
                "node's own effect (core.exact.exact_effects measures that)."
            )
        if not all(0 <= end < len(nodes) for end in (edge.upstream, edge.downstream)):
            raise InputError(
                f"edge {edge.upstream} -> {edge.downstream} counts {len(nodes)} nodes from 0: are "
                "these the nodes of its circuit?"
            )
        up, down = nodes[edge.upstream], nodes[edge.downstream]
        if lacking := {up.submodule, down.submodule} - dictionaries.keys():
            raise MissingSubmodule(
                f"there is no dictionary at {', '.join(sorted(lacking))}: give those that the "
                "circuit was found with."
            )
        if (up.submodule, down.submodule) not in kinds:
            raise InputError(f"no direct path joins {up.name} and {down.name}: see core.edges.")
        ends.append((up, down))
    return ends


def _weights(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    effects: Effects,
    ends: Sequence[tuple[Node, Node]],
    by_position: bool,
    budget_bytes: int,
) -> Tensor:
    """The weight of each edge, summed over examples."""

    def key(node: Node) -> int:
        n_features = dictionaries[node.submodule].n_features
        feature = n_features if node.is_error else node.feature
        return feature + (node.pos or 0) * (n_features + 1)  # as core.edges numbers nodes

    keys = [(key(up), key(down)) for up, down in ends]
    keep: dict[str, set[int]] = {name: set() for name in dictionaries}
    for pair, of_pair in zip(ends, keys, strict=True):
        for node, number in zip(pair, of_pair, strict=True):
            keep[node.submodule].add(number)
    found = edge_effects(
        model,
        dictionaries,
        effects,
        keep={name: torch.tensor(sorted(numbers)) for name, numbers in keep.items()},
        by_position=by_position,
        budget_bytes=budget_bytes,
    )
    weights = {
        (kind, *of_pair): weight
        for kind, e in found.items()
        for *of_pair, weight in zip(
            e.upstream.tolist(), e.downstream.tolist(), e.weight.tolist(), strict=True
        )
    }
    places = [
        ((up.submodule, down.submodule), *of_pair)
        for (up, down), of_pair in zip(ends, keys, strict=True)
    ]
    return torch.tensor([weights.get(place, 0.0) for place in places], dtype=torch.float64)


@dataclass(frozen=True)
class _Clean:
    """The clean run of some examples, and what patching changes of it."""

    runs: Resumed
    dictionaries: Mapping[str, Dictionary]
    effects: Effects

    @torch.no_grad()
    def intervene(self, up: Node, down: Node) -> tuple[float, float]:
        """Path and effect of an edge, summed over examples."""
        name, dictionary = down.submodule, self.dictionaries[down.submodule]
        before = self.runs.recording.outputs[name]
        after = self._through(up.submodule, name, self._patched(up))
        wide = dictionary.decoder.dtype
        change = _part(dictionary, down, after.to(wide)) - _part(dictionary, down, before.to(wide))
        change = change * self._where(down)
        metric = self.runs.metric_with(name, before + change.to(before.dtype))
        path = (change * self.effects[name].gradient).double().sum()
        return float(path), float((metric - self.effects.metric_clean).double().sum())

    def _where(self, node: Node) -> Tensor:
        """1 at tokens where a node is, ``(batch, pos, 1)``."""
        where = self.effects.mask.clone()
        if node.pos is not None:
            where[:, torch.arange(where.shape[1], device=where.device) != node.pos] = False
        return where[..., None]

    def _patched(self, node: Node) -> Tensor:
        """What a node's submodule puts out with the node at its patch value."""
        dictionary, change = self.dictionaries[node.submodule], self.effects[node.submodule].change
        added = change.error
        if not node.is_error:
            own = change.features.where(change.features.feature == node.feature)
            size = own.value.new_zeros(added.shape[:2].numel())
            size[own.token] = own.value
            added = size.view(*added.shape[:2], 1) * dictionary.decoder[node.feature]
        clean = self.runs.recording.outputs[node.submodule]
        return clean + (added * self._where(node)).to(clean.dtype)

    def _through(self, up: str, down: str, value: Tensor) -> Tensor:
        """What `down` puts out where the direct path alone sees another output of `up`."""
        model, recording = self.runs.model, self.runs.recording
        kind, layer = Submodule.parse(down)
        attn, mlp, stream = f"attn_{layer}", f"mlp_{layer}", recording.stream_before(layer)
        if up == "embed":
            stream = value + recording.position
        elif up not in (attn, mlp):
            stream = value
        if kind == "attn":
            return model.attn(layer, stream, recording.context[layer])
        if kind == "resid" or not model.parallel:
            written = value if up == attn else recording.outputs[attn]
            stream = model.after_attn(layer, stream, written)
        if kind == "mlp":
            return model.mlp(layer, stream)
        return stream + (value if up == mlp else recording.outputs[mlp])


def _part(dictionary: Dictionary, node: Node, y: Tensor) -> Tensor:
    """What a node contributes to its submodule's output y, ``(batch, pos, d)``."""
    if node.is_error:
        return y - dictionary.reconstruct(y)
    index = torch.tensor([node.feature], device=y.device)
    return dictionary.encode(y, index) * dictionary.decoder[node.feature]
