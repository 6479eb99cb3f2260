"""Whether a circuit needs its nodes: what it loses without each of them.

Taken out of the circuit C, a node is ablated like everything outside of it. What comes before its
submodule is as in C's own run, so runs begin there, and all nodes of a submodule share batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.ablate import AblationValues, Edit, begin, visiting
from core.evaluate import Evaluator
from core.models.replay import Resumed
from core.types import Node, Submodule


@torch.no_grad()
def losses_without(
    evaluator: Evaluator, circuit: Sequence[Node], removed: Sequence[Node]
) -> list[float]:
    """How much faithfulness a circuit loses without each of some of its nodes.

    Args:
        evaluator: of the inputs that the circuit is judged on.
        circuit: its nodes.
        removed: those of them that are taken out, one at a time; each must be ablatable there.

    Returns:
        Faithfulness of the circuit less that of the circuit without the node, in their order;
        below zero where it is more faithful without. NaN where faithfulness is not defined.

    Raises:
        MissingSubmodule, InputError, ShapeMismatch: see `Evaluator.evaluate`.
    """
    circuit = evaluator.counted(circuit)
    at: dict[str, list[int]] = {}
    for i, node in enumerate(evaluator.counted(removed)):
        at.setdefault(node.submodule, []).append(i)
    edits = evaluator.edits(circuit)
    total = torch.zeros(len(removed), dtype=torch.float64)
    for runs in evaluator.runs():
        inside = _Inside.of(runs, edits)
        for name, indices in at.items():
            nodes = [removed[i] for i in indices]
            total[indices] += inside.changes(
                evaluator.values[name], name, nodes, evaluator.batch
            ).cpu()
    changes = total / evaluator.inputs.n_examples
    return (-changes / evaluator.span).tolist()


@dataclass(frozen=True)
class _Inside:
    """A circuit's own run on some examples.

    Attributes:
        runs: from a recording of what each submodule puts out in the circuit's run.
        edits: by submodule.
        raw: what each submodule that has an edit put out before it was edited.
        metric: ``(batch,)``.
        first: the first layer that was run; nothing before it is seen.
    """

    runs: Resumed
    edits: Mapping[str, Edit]
    raw: Mapping[str, Tensor]
    metric: Tensor
    first: int

    @classmethod
    def of(cls, runs: Resumed, edits: Mapping[str, Edit]) -> _Inside:
        """Run the circuit and keep every value."""
        stream, first, known = begin(runs, edits)
        before = {"embed": stream - runs.recording.position} if first == 0 else {}
        outputs = before or {f"resid_{first - 1}": stream}
        raw: dict[str, Tensor] = {}

        def visit(name: str, x: Tensor) -> Tensor:
            raw[name] = x
            outputs[name] = edits[name](x) if name in edits else x
            return outputs[name]

        model, context = runs.model, runs.recording.context
        for i in range(first, runs.end.layer + 1):
            attn, mlp = (known.get(f"{kind}_{i}") for kind in ("attn", "mlp"))
            stream = model.layer(i, stream, context[i], visit, attn=attn, mlp=mlp)
        metric = runs.read(outputs[runs.end.name])
        own = replace(runs, recording=replace(runs.recording, outputs=outputs))
        return cls(own, edits, raw, metric, first)

    def changes(
        self, values: AblationValues, name: str, nodes: Sequence[Node], rows: int
    ) -> Tensor:
        """What ablating each node of a submodule does to the metric, summed over examples.

        Args:
            values: what the submodule's nodes are ablated to.
            rows: copies of examples in one pass.

        Returns:
            ``(node,)`` in float64.
        """
        if Submodule.parse(name).layer < self.first:
            return torch.zeros(len(nodes), dtype=torch.float64)
        moves = _moves(self.edits[name], values, self.raw[name], nodes)
        n = len(self.metric)
        found = []
        for part in moves.split(max(1, rows // n)):
            copies = torch.arange(n, device=part.device).repeat(len(part))
            value = (self.runs.recording.outputs[name] - part).flatten(0, 1)
            metric = self._metric_with(name, value, copies).view(len(part), n)
            found.append((metric.double() - self.metric.double()).sum(1))
        return torch.cat(found)

    def _metric_with(self, name: str, value: Tensor, copies: Tensor) -> Tensor:
        """The metric with a submodule putting out `value` and the circuit's edits behind it."""
        runs = self.runs.select(copies)
        place, outputs = Submodule.parse(name), runs.recording.outputs
        stream, layer, known = value, place.layer + 1, dict[str, Tensor]()
        if place.kind != "resid":
            stream, layer = runs.recording.stream_before(place.layer), place.layer
            known[name] = value
            # In parallel models the MLP does not read what attention writes.
            if place.kind == "mlp" or runs.model.parallel:
                other = f"{'attn' if place.kind == 'mlp' else 'mlp'}_{place.layer}"
                known[other] = outputs[other]
        behind = {
            other: edit.select(copies)
            for other, edit in self.edits.items()
            if Submodule.parse(other).order > place.order and other not in known
        }
        return runs.finish(stream, layer, visiting(runs, behind), known)


def _moves(edit: Edit, values: AblationValues, x: Tensor, nodes: Sequence[Node]) -> Tensor:
    """What a submodule's output loses when each node is ablated, ``(node, batch, pos, d)``."""
    dictionary = edit.dictionary
    wide = x.to(dictionary.decoder.dtype)
    features = torch.tensor([n.feature for n in nodes if not n.is_error], device=x.device)
    act = dictionary.encode(wide, features.long())
    if values.features is not None:
        act = act - values.features[..., features.long()]
    error = None
    if any(node.is_error for node in nodes):
        error = wide - dictionary.reconstruct(wide)
        error = error if values.error is None else error - values.error
    moves, i = wide.new_zeros(len(nodes), *x.shape), 0
    for k, node in enumerate(nodes):
        where = slice(None) if node.pos is None else slice(node.pos, node.pos + 1)
        if node.is_error:
            assert error is not None
            moves[k, :, where] = error[:, where]
        else:
            moves[k, :, where] = act[:, where, i, None] * dictionary.decoder[node.feature]
            i += 1
    return moves.to(x.dtype)
