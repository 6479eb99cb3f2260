"""Runs with edges ablated: every node reads an input of its own, in which only its edges are kept.

A node j of a circuit is computed from what its submodule would put out with everything upstream
at its ablation value a, plus the changes of the nodes from which an edge into j is kept, each as it
came out of this same run:

    x_j = F(base + sum over kept i -> j of (f_i - a_i) W_d[i]),      f_j = f_j(x_j)

F is the direct path of eq. (6), as in `core.edges`: the sum of the layer into the stream, norm and
MLP, or norm and attention. What a node changes on its way through another submodule is not in x_j,
unless that submodule's own nodes pass it on. What the metric reads, the last
stream for logits, has those nodes in place that have a kept edge into it.

With every possible edge kept all nodes of a submodule read the same, and the run is the one that
`core.evaluate` makes of the nodes; with none it is the run with all nodes ablated. What is never
ablated (`embed`, layers before the start layer, submodules without a dictionary) passes all that
it reads on to all that read it: edges out of it and into it are not edges that could be ablated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.ablate import AblationValues, start_of
from core.dictionaries import Dictionary
from core.models.replay import Resumed
from core.readout import at_last
from core.types import Node, Submodule

METRIC = "metric"
"""What stands for the metric where an edge's downstream submodule is named."""


@dataclass(frozen=True)
class NodesAt:
    """The circuit's nodes at one submodule, k different features among them.

    Attributes:
        number: ``(n,)``, their places in the circuit, ascending.
        feature: ``(n,)``, 0 for the error.
        column: ``(n,)``, which of the k features; k for the error.
        pos: ``(n,)``; None where nodes are at all positions.
        features: ``(k,)``, ascending.
    """

    number: Tensor
    feature: Tensor
    column: Tensor
    pos: Tensor | None
    features: Tensor

    @classmethod
    def of(cls, numbered: Sequence[tuple[int, Node]], device: torch.device) -> NodesAt:
        """Of the nodes of one submodule with their places in the circuit."""
        distinct = sorted({node.feature for _, node in numbered if not node.is_error})
        column = {feature: i for i, feature in enumerate(distinct)}

        def row(values: Iterable[int]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.long, device=device)

        by_position = any(node.pos is not None for _, node in numbered)
        return cls(
            number=row(number for number, _ in numbered),
            feature=row(0 if node.is_error else node.feature for _, node in numbered),
            column=row(column.get(node.feature, len(distinct)) for _, node in numbered),
            pos=row(node.pos or 0 for _, node in numbered) if by_position else None,
            features=row(distinct),
        )

    def part(self, rows: Tensor) -> NodesAt:
        """Some of the nodes; `features` stay all, for columns count among them."""
        pos = None if self.pos is None else self.pos[rows]
        return NodesAt(self.number[rows], self.feature[rows], self.column[rows], pos, self.features)

    def groups(self, chosen: Tensor, most: int) -> Iterator[Tensor]:
        """Rows of the `chosen` nodes, ``(n,)`` bool, a few at a time; features and errors apart."""
        is_error = self.column == len(self.features)
        for alike in (chosen & ~is_error, chosen & is_error):
            yield from (rows for rows in alike.nonzero().flatten().split(most) if len(rows))

    def where(self, value: Tensor) -> Tensor:
        """Values at tokens as the nodes read them.

        Args:
            value: ``(batch, pos, ...)``.

        Returns:
            ``(batch, n, ...)`` at each node's position, or ``(batch, pos, 1, ...)``.
        """
        return value[:, :, None] if self.pos is None else value[:, self.place(value)]

    def place(self, value: Tensor) -> Tensor | slice:
        """Where the nodes stand on the positions of ``(batch, pos, ...)``."""
        if self.pos is None:
            return slice(None)
        # Where the last token alone is left, there are no others.
        return self.pos.clamp(max=value.shape[1] - 1)


@dataclass(frozen=True)
class Wiring:
    """A set of kept edges between nodes.

    Attributes:
        nodes: by submodule, in causal order; those of all submodules that can be ablated.
        seen: by kind, what each downstream node sees of the upstream submodule: ``(n, k + 1)``,
            ``(n, pos, k + 1)`` into attention by position, ``(k + 1,)`` into the metric; 1 where
            an edge is kept, the error last.
        read: by submodule, ``(n,)`` bool, the nodes from which something leads on to the metric.
    """

    nodes: Mapping[str, NodesAt]
    seen: Mapping[tuple[str, str], Tensor]
    read: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Changed:
    """One submodule in a run: ablated, and what its nodes change of that.

    Attributes:
        base: ``(batch, pos, d)``, its output wholly ablated.
        rows: ``(k, d)``, the decoder rows of the circuit's features.
        off, error_off: ``(batch, pos, k)`` and ``(batch, pos, d)``, the ablation values.
        change, error: of the same shapes, what the run made of these less that.
    """

    base: Tensor
    rows: Tensor
    off: Tensor
    error_off: Tensor
    change: Tensor
    error: Tensor

    def seen(self, kept: Tensor, where: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
        """The output with only some nodes' changes in it.

        Args:
            kept: ``(..., k + 1)``, 1 where a node's change is seen; the error's is last.
            where: the layout of the result, as `NodesAt.where`; `kept` is laid out already.
        """
        features = (where(self.change) * kept[..., :-1]) @ self.rows
        return where(self.base) + features + where(self.error) * kept[..., -1:]

    def whole(self) -> Tensor:
        """The output with every node's change, ``(batch, pos, d)``."""
        return self.base + self.change @ self.rows + self.error

    def at_last(self, last: Tensor) -> _Changed:
        """The same at each example's last token alone, ``(batch, 1, ...)``."""
        tensors = ("base", "off", "error_off", "change", "error")
        return replace(self, **{n: at_last(getattr(self, n), last)[:, None] for n in tensors})


@torch.no_grad()
def run_wired(
    runs: Resumed,
    wiring: Wiring,
    dictionaries: Mapping[str, Dictionary],
    values: Mapping[str, AblationValues],
    copies: int,
) -> Tensor:
    """The metric with a set of edges kept, ``(batch,)``.

    Args:
        runs: from a recording of the inputs, of whose outputs those are read that `start_of` names.
        dictionaries, values: by submodule, of at least those that have nodes in `wiring`.
        copies: of examples that fit in one pass.
    """
    return _Run(runs, wiring, dictionaries, values, copies).metric()


class _Run:
    """One batch of examples, run through the layers with a set of edges kept."""

    def __init__(
        self,
        runs: Resumed,
        wiring: Wiring,
        dictionaries: Mapping[str, Dictionary],
        values: Mapping[str, AblationValues],
        copies: int,
    ) -> None:
        self.runs, self.model, self.wiring = runs, runs.model, wiring
        self.dictionaries, self.values = dictionaries, values
        self.n_examples, self.n_pos = runs.recording.mask.shape
        self.at_once = max(1, copies // self.n_examples)
        # What each submodule puts out: a tensor where nothing of it is ablated.
        self.out: dict[str, Tensor | _Changed] = {}

    def metric(self) -> Tensor:
        """``(batch,)``."""
        model, recording = self.model, self.runs.recording
        end, first = self.runs.end, next(iter(self.wiring.nodes))
        layer = Submodule.parse(first).layer
        self.out[_before(layer)] = recording.stream_before(layer)
        for name in start_of([first], model.parallel)[1:]:
            if name not in self.wiring.nodes:
                self.out[name] = recording.outputs[name]
        for i in range(layer, end.layer + 1):
            self._submodule(f"attn_{i}")
            if i == self.runs.narrow_layer:
                self.out = {name: self._at_last(out) for name, out in self.out.items()}
            if (end.kind, end.layer) != ("attn", i):
                self._submodule(f"mlp_{i}")
            if end.layer > i or end.kind == "resid":
                self._submodule(f"resid_{i}")
        out = self.out[end.name]
        if isinstance(out, _Changed):
            out = out.seen(self.wiring.seen[end.name, METRIC]).to(model.dtype)
        if self.runs.narrow_layer is None:
            return self.runs.read(out)
        return self.runs.read_last(out[:, 0])

    def _at_last(self, out: Tensor | _Changed) -> Tensor | _Changed:
        last = self.runs.last
        return out.at_last(last) if isinstance(out, _Changed) else at_last(out, last)[:, None]

    def _submodule(self, name: str) -> None:
        """What a submodule puts out, from what is upstream of it."""
        if name in self.out:
            return
        if name not in self.wiring.nodes:
            self.out[name] = self._through(name, self._whole)
            return
        nodes, dictionary = self.wiring.nodes[name], self.dictionaries[name]
        changed = self._ablated(name, nodes, dictionary)
        self.out[name] = changed
        chosen = self.wiring.read[name]
        if self._at_end(name) and nodes.pos is not None:
            chosen = chosen & (nodes.pos == self.n_pos - 1)
        for rows in nodes.groups(chosen, self.at_once):
            part = nodes.part(rows)
            self._read(changed, dictionary, part, self._inputs(name, part, rows))

    def _whole(self, name: str) -> Tensor:
        out = self.out[name]
        return out.whole().to(self.model.dtype) if isinstance(out, _Changed) else out

    def _ablated(self, name: str, nodes: NodesAt, dictionary: Dictionary) -> _Changed:
        """A submodule of which nothing is changed yet."""
        values, like = self.values[name], dictionary.decoder
        n_pos = 1 if self._at_end(name) else self.n_pos

        def laid_out(value: Tensor | None, width: int) -> Tensor:
            if value is None:
                return like.new_zeros(self.n_examples, n_pos, width)
            if value.ndim > 1 and n_pos == 1:
                at = self.runs.last
                value = (value[at] if value.ndim == 2 else at_last(value, at))[:, None]
            return value.expand(self.n_examples, n_pos, width).clone()

        d, k = like.shape[1], len(nodes.features)
        off = None if values.features is None else values.features[..., nodes.features]
        return _Changed(
            base=laid_out(values.base.to(like.dtype), d),
            rows=like[nodes.features],
            off=laid_out(off, k),
            error_off=laid_out(values.error, d),
            change=like.new_zeros(self.n_examples, n_pos, k),
            error=like.new_zeros(self.n_examples, n_pos, d),
        )

    def _at_end(self, name: str) -> bool:
        """Whether the last token alone is run."""
        kind, layer = Submodule.parse(name)
        return layer == self.runs.narrow_layer and kind != "attn"

    def _inputs(self, name: str, part: NodesAt, rows: Tensor) -> Tensor:
        """What the submodule would put out for each of its nodes `rows`.

        ``(batch, pos, n or 1, d)``, or ``(batch, n, d)`` at each node's position.
        """
        seen = {up: kept[rows] for (up, down), kept in self.wiring.seen.items() if down == name}
        if not any(isinstance(self.out[up], _Changed) for up in seen):
            return part.where(self._through(name, self._whole))
        into_attention = name.startswith("attn")

        def see(up: str) -> Tensor:
            out, where = self.out[up], part.where
            if into_attention:  # a stream of its own for each node: (n, batch, pos, d)
                where = _one_more
            if not isinstance(out, _Changed):
                return where(out)
            kept = seen[up]
            if into_attention:
                kept = kept[:, None] if kept.ndim == 3 else kept[:, None, None]
            return out.seen(kept, where).to(self.model.dtype)

        out = self._through(name, see)
        if not into_attention:
            return out
        if part.pos is None:
            return out.permute(1, 2, 0, 3)
        return out[torch.arange(len(rows), device=out.device), :, part.pos].transpose(0, 1)

    def _through(self, name: str, see: Callable[[str], Tensor]) -> Tensor:
        """A submodule's output, given what it sees of each submodule on a direct path to it.

        Args:
            see: ``(..., d)``; into attention ``([n,] batch, pos, d)``.
        """
        model, (kind, layer) = self.model, Submodule.parse(name)
        stream = see(_before(layer))
        if kind == "attn":
            copies = torch.arange(self.n_examples, device=stream.device)
            copies = copies.repeat(stream.shape[:-3].numel())
            context = self.runs.recording.context_of(copies)[layer]
            out = model.attn(layer, stream.reshape(-1, *stream.shape[-2:]), context)
            return out.view(*stream.shape[:-1], -1)
        if kind == "resid" or not model.parallel:
            stream = model.after_attn(layer, stream, see(f"attn_{layer}"))
        if kind == "resid":
            return stream + see(f"mlp_{layer}")
        return model.mlp(layer, stream.flatten(0, -2)).view(*stream.shape[:-1], -1)

    @staticmethod
    def _read(changed: _Changed, dictionary: Dictionary, part: NodesAt, x: Tensor) -> None:
        """Nodes that are all features or all errors, each from its own input."""
        x, place = x.to(dictionary.decoder.dtype), part.place(changed.change)
        if int(part.column[0]) == len(part.features):
            left = x - dictionary.reconstruct(x)
            left = left if part.pos is not None else left[:, :, 0]
            changed.error[:, place] = left - changed.error_off[:, place]
        else:
            at = (slice(None), place, part.column)
            changed.change[at] = _own_features(dictionary, x, part.feature) - changed.off[at]


def _before(layer: int) -> str:
    """The submodule that puts out the stream before a layer."""
    return "embed" if layer == 0 else f"resid_{layer - 1}"


def _one_more(value: Tensor) -> Tensor:
    return value[None]


def _own_features(dictionary: Dictionary, x: Tensor, feature: Tensor) -> Tensor:
    """Of each input one feature.

    Args:
        x: ``(..., n or 1, d)``.
        feature: ``(n,)``.

    Returns:
        ``(..., n)``.
    """
    if x.shape[-2] == 1:
        return dictionary.encode(x[..., 0, :], feature)
    if dictionary.activation.elementwise:
        pre = ((x - dictionary.input_bias) * dictionary.encoder[feature]).sum(-1)
        return dictionary.activation(pre + dictionary.encoder_bias[feature], feature)
    each = zip(x.unbind(-2), feature.tolist(), strict=True)
    return torch.stack([dictionary.encode(one)[..., f] for one, f in each], -1)
