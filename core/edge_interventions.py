"""What one edge does by intervention, to hold against the weight that stands for it (eqs 5 and 6).

For an edge i -> j, at the clean input:

    u'  = u + change of i                   the upstream submodule's output, node i patched
    y'  = F(u')                             the downstream one's, where only the direct path sees u'
    m(y + node j of y' - node j of y) - m(y)     j alone takes the result, and the run goes on

F is the path of `core.edges`: what lies between, the other submodules of the layer, stays clean.
The weight is the same with both steps made linear, the second one's slope averaged on the way to
the patch. Exact in the path, so it says how far a weight can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.budget import plan_passes
from core.dictionaries import Dictionary, check_widths
from core.edges import edge_kinds
from core.effects import Endpoints, endpoints
from core.errors import InputError, MissingSubmodule, NotFinite
from core.inputs import Inputs, check_answers
from core.models import LanguageModel
from core.models.replay import Resumed
from core.options import check_list
from core.types import Edge, Node, Submodule


@torch.no_grad()
def edge_interventions(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    nodes: Sequence[Node],
    edges: Sequence[Edge],
    *,
    budget_bytes: int = 2 << 30,
) -> Tensor:
    """The effect of each edge by intervention, a mean over examples.

    Args:
        dictionaries: those the weights were computed with.
        inputs: the examples the weights are means over; pairs, or single inputs (to zero).
        nodes: what `edges` count.
        edges: not into the metric, where there is nothing but the node's own effect.
        budget_bytes: memory for activations in flight.

    Returns:
        ``(edge,)`` in the metric's units, in float64.

    Raises:
        InputError: an edge that no direct path joins, or that is into the metric.
        MissingSubmodule, WidthMismatch: a dictionary is missing, or of another model.
        NotFinite: a metric is NaN or infinite.
        OutOfBudget: not even one example fits the budget.
    """
    check_widths(dictionaries, model.width)
    check_answers(inputs, model.n_vocab)
    reached = inputs.readout.reached_by(model.submodules, model)
    kinds = set(edge_kinds(model, dict.fromkeys(reached)))
    ends = _checked(kinds, dictionaries, nodes, edges)
    inputs = inputs.to(model.device)
    passes = plan_passes(model, inputs.clean.shape[1], budget_bytes)
    total = torch.zeros(len(edges), dtype=torch.float64)
    for batch in inputs.batches(passes.rows):
        clean = _Clean.of(model, dictionaries, batch, {node.submodule for e in ends for node in e})
        for i, (up, down) in enumerate(ends):
            total[i] += clean.intervene(up, down)
    if not bool(total.isfinite().all()):
        raise NotFinite(
            "the metric is NaN or infinite with an edge's nodes changed: check the answers and "
            "the model's dtype."
        )
    return total / inputs.n_examples


def _checked(
    kinds: set[tuple[str, str]],
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
                "node's own effect (core.effects.exact_effects measures that)."
            )
        if not 0 <= min(edge[:2]) <= max(edge[:2]) < len(nodes):
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


@dataclass(frozen=True)
class _Clean:
    """The clean run of some examples, and what patching changes of it.

    Attributes:
        runs: resumed from the clean recording.
        metric: ``(batch,)``, clean.
        ends: by submodule, its clean state and its change.
    """

    runs: Resumed
    dictionaries: Mapping[str, Dictionary]
    mask: Tensor
    metric: Tensor
    ends: Mapping[str, Endpoints]

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        dictionaries: Mapping[str, Dictionary],
        inputs: Inputs,
        names: set[str],
    ) -> _Clean:
        runs, patch = Resumed.record(model, inputs), None
        clean = runs.recording.outputs
        if inputs.patch is not None:
            other = replace(inputs, clean=inputs.patch, patch=None)
            patch = Resumed.record(model, other).recording.outputs
        ends = {
            name: endpoints(
                dictionaries[name],
                clean[name],
                None if patch is None else patch[name],
                inputs.mask,
            )
            for name in sorted(names)
        }
        return cls(runs, dictionaries, inputs.mask, runs.as_recorded(), ends)

    def intervene(self, up: Node, down: Node) -> float:
        """The change of the metric, summed over examples."""
        name, dictionary = down.submodule, self.dictionaries[down.submodule]
        before = self.ends[name].clean
        after = self._through(up.submodule, name, self._patched(up))
        wide = dictionary.decoder.dtype
        change = _part(dictionary, down, after.to(wide)) - _part(dictionary, down, before.to(wide))
        change = change * self._where(down)
        metric = self.runs.metric_with(name, before + change.to(before.dtype))
        return float((metric - self.metric).double().sum())

    def _where(self, node: Node) -> Tensor:
        """1 at tokens where a node is, ``(batch, pos, 1)``."""
        where = self.mask.clone()
        if node.pos is not None:
            where[:, torch.arange(where.shape[1], device=where.device) != node.pos] = False
        return where[..., None]

    def _patched(self, node: Node) -> Tensor:
        """The upstream submodule's output with this node at its patch value."""
        dictionary, ends = self.dictionaries[node.submodule], self.ends[node.submodule]
        if node.is_error:
            change = ends.change.error
        else:
            features = ends.change.features
            own = features.where(features.feature == node.feature)
            size = own.value.new_zeros(self.mask.numel())
            size[own.token] = own.value
            change = size.view(*self.mask.shape, 1) * dictionary.decoder[node.feature]
        return ends.clean + (change * self._where(node)).to(ends.clean.dtype)

    def _through(self, up: str, down: str, value: Tensor) -> Tensor:
        """The downstream output where the direct path alone sees another upstream output."""
        model, recording = self.runs.model, self.runs.recording
        kind, layer = Submodule.parse(down)
        attn, mlp, stream = f"attn_{layer}", f"mlp_{layer}", recording.stream_before(layer)
        if up == "embed":
            stream = value + recording.position
        elif up not in (attn, mlp):
            stream = value
        if kind == "attn":
            return model.attn(layer, stream, recording.context[layer])
        middle = stream
        if kind == "resid" or not model.parallel:
            written = value if up == attn else recording.outputs[attn]
            middle = model.after_attn(layer, stream, written)
        if kind == "mlp":
            return model.mlp(layer, middle)
        return middle + (value if up == mlp else recording.outputs[mlp])


def _part(dictionary: Dictionary, node: Node, y: Tensor) -> Tensor:
    """What a node contributes to its submodule's output y, ``(batch, pos, d)``."""
    if node.is_error:
        return y - dictionary.decode(dictionary.encode(y))
    index = torch.tensor([node.feature], device=y.device)
    return dictionary.encode(y, index) * dictionary.decoder[node.feature]
