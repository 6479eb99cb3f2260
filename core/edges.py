"""Edge effects: how much of a node's effect another node upstream carries (eqs 5 and 6).

For a downstream node j with mean gradient g_j, and z_j its value weighted by that gradient,

    weight(i -> j) = dz_j/du_i . change of u_i,     z_j = g_j f_j   or   <g, eps(y)>,

the Jacobian taken at the clean input along the path that passes no other submodule in between.
For each layer, with `prev` the stream before it:

    upstream        downstream   path
    mlp, attn, prev resid        the identity: no autograd at all
    prev, attn      mlp          norm and MLP, token by token (attn only where it is read)
    prev            attn         norm and attention, all earlier tokens

Cutting the other paths is the subtraction in eq. (6). Every downstream node is a cotangent at its
submodule's output, pulled back through at most one sub-layer and met with W_d[i] . change_i at
each token, so nothing grows with the square of a dictionary's width.

A *node key* numbers the nodes of one submodule: the feature, or n_features for the error; by
position, pos * (n_features + 1) + that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary
from core.effects import Effects, feature_dots
from core.errors import InputError, MissingSubmodule
from core.estimators import check_gradients
from core.models import LanguageModel
from core.shapes import Bool, Float, Int
from core.sparse import add_at
from core.types import Submodule, SubmoduleEffects

_BLOCK = 1 << 22
"""Most numbers held at once for products of cotangents and for sums over tokens."""


@dataclass(frozen=True)
class EdgeEffects:
    """Edge effects between two submodules, one row for each pair of nodes with a non-zero weight.

    Attributes:
        upstream, downstream: node keys.
        weight: summed over positions and examples where those are not apart; divide by
            the number of examples for the mean. In the metric's units.
        squares: of each example's weight squared, summed over examples, in float64.
    """

    upstream: Int[Tensor, " n"]
    downstream: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]


def edge_kinds(model: LanguageModel, names: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(upstream, downstream) submodules joined by edges, among those in `names`."""
    for layer in range(model.n_layers):
        attn, mlp, resid = f"attn_{layer}", f"mlp_{layer}", f"resid_{layer}"
        prev = "embed" if layer == 0 else f"resid_{layer - 1}"
        kinds = [(mlp, resid), (attn, resid), (prev, mlp), (prev, attn), (prev, resid)]
        if not model.parallel:
            kinds.append((attn, mlp))
        yield from ((up, down) for up, down in kinds if up in names and down in names)


def node_keys(
    feature: Int[Tensor, " n"], pos: Int[Tensor, " n"], n_features: int, by_position: bool
) -> Int[Tensor, " n"]:
    """Node keys of features (n_features for the error) at positions."""
    return pos * (n_features + 1) + feature if by_position else feature


class _Nodes:
    """The chosen nodes of one submodule, and where each of them is."""

    def __init__(
        self,
        effects: SubmoduleEffects,
        dictionary: Dictionary,
        mask: Bool[Tensor, "batch pos"],
        keep: Int[Tensor, " n"] | None,
        by_position: bool,
    ) -> None:
        self.effects, self.dictionary, self.mask = effects, dictionary, mask
        self.by_position = by_position
        self.n_pos = mask.shape[1]
        self.real = mask.flatten().nonzero().flatten()
        self.keys = self._all_keys() if keep is None else keep.sort().values

    def key_of(self, token: Tensor, feature: Tensor) -> Tensor:
        """Node keys of features at tokens."""
        return node_keys(feature, token % self.n_pos, self.dictionary.n_features, self.by_position)

    def _all_keys(self) -> Tensor:
        places = [
            (act.features.token, act.features.feature)
            for act in (self.effects.clean, self.effects.change)
        ]
        places.append((self.real, torch.full_like(self.real, self.dictionary.n_features)))
        return torch.cat([self.key_of(*place) for place in places]).unique()

    def find(
        self, token: Int[Tensor, " n"], feature: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
        """Which of the given places belong to a chosen node, and to which (index into keys)."""
        if not len(self.keys):
            nothing = token[:0]
            return nothing, nothing
        key = self.key_of(token, feature)
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        chosen = (self.keys[at] == key).nonzero().flatten()
        return chosen, at[chosen]

    def errors(self) -> tuple[Tensor, Tensor]:
        """Tokens and node indices of the chosen error nodes."""
        feature = torch.full_like(self.real, self.dictionary.n_features)
        chosen, node = self.find(self.real, feature)
        return self.real[chosen], node


@dataclass(frozen=True)
class _Rows:
    """Vectors at tokens, each belonging to a node; sorted by token."""

    token: Int[Tensor, " n"]
    node: Int[Tensor, " n"]
    vector: Float[Tensor, "n d"]

    @classmethod
    def sorted(cls, token: Tensor, node: Tensor, vector: Tensor) -> _Rows:
        order = token.argsort(stable=True)
        return cls(token[order], node[order], vector[order])

    def part(self, rows: slice | Tensor) -> _Rows:
        return _Rows(self.token[rows], self.node[rows], self.vector[rows])


def _downstream_places(nodes: _Nodes) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and clean value of every place a chosen downstream feature may act."""
    features = nodes.effects.clean.features
    if not nodes.dictionary.activation.acts_at_zero:
        return features.token, features.feature, features.value
    # Such features, neurons for one, act at every token.
    wanted = (nodes.keys % (nodes.dictionary.n_features + 1)).unique()
    wanted = wanted[wanted < nodes.dictionary.n_features]
    token = nodes.real.repeat_interleave(len(wanted))
    feature = wanted.repeat(len(nodes.real))
    value = features.to_dense().flatten(0, 1)[token, feature]
    return token, feature, value


def cotangents(nodes: _Nodes) -> _Rows:
    """dz_j/dy at every token where a chosen downstream node acts.

    For a feature, g_j . slope_j . encoder row; for the error, g less what the dictionary's own
    features pass of it: g - W_e^T (slope . W_d g), over active features only.
    """
    effects, dictionary = nodes.effects, nodes.dictionary
    token, feature, value = _downstream_places(nodes)
    chosen, node = nodes.find(token, feature)
    token, feature, value = token[chosen], feature[chosen], value[chosen]
    flat = effects.gradient.flatten(0, 1)
    gain = torch.linalg.vecdot(dictionary.decoder[feature], flat[token])
    gain = gain * dictionary.slope(value, feature)
    vector = gain[:, None] * dictionary.encoder[feature]
    live = (gain != 0).nonzero().flatten()
    error_token, error_node = nodes.errors()
    passed = torch.zeros_like(flat)
    if len(error_token):
        passed = _passed_by_features(effects, dictionary, flat)
    return _Rows.sorted(
        torch.cat([token[live], error_token]),
        torch.cat([node[live], error_node]),
        torch.cat([vector[live], (flat - passed)[error_token]]),
    )


def _passed_by_features(
    effects: SubmoduleEffects, dictionary: Dictionary, flat: Float[Tensor, "token d"]
) -> Float[Tensor, "token d"]:
    """W_e^T (slope . W_d g) at every token."""
    active = effects.clean.features
    if dictionary.activation.acts_at_zero:
        slope = dictionary.activation.slope(active.to_dense().flatten(0, 1))
        return (slope * (flat @ dictionary.decoder.T)) @ dictionary.encoder
    gain = feature_dots(dictionary, active, effects.gradient)
    gain = gain * dictionary.slope(active.value, active.feature)
    counts = torch.bincount(active.token, minlength=len(flat))
    return F.embedding_bag(
        active.feature,
        dictionary.encoder,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=gain,
    )


def _changes(nodes: _Nodes) -> _Rows:
    """What the change of each chosen upstream node adds to its submodule's output, by token."""
    change, dictionary = nodes.effects.change, nodes.dictionary
    features = change.features
    chosen, node = nodes.find(features.token, features.feature)
    token = features.token[chosen]
    vector = features.value[chosen, None] * dictionary.decoder[features.feature[chosen]]
    error_token, error_node = nodes.errors()
    return _Rows.sorted(
        torch.cat([token, error_token]),
        torch.cat([node, error_node]),
        torch.cat([vector, change.error.flatten(0, 1)[error_token]]),
    )


def _by_token(rows: _Rows, tokens: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Rows laid out by token: vectors ``(token, most, d)`` and nodes, `n_nodes` where none is."""
    at = torch.searchsorted(tokens, rows.token)
    counts = torch.bincount(at, minlength=len(tokens))
    slot = torch.arange(len(at), device=at.device) - (counts.cumsum(0) - counts)[at]
    most = int(counts.max())
    vector = rows.vector.new_zeros(len(tokens), most, rows.vector.shape[1])
    node = torch.full((len(tokens), most), n_nodes, device=at.device)
    vector[at, slot] = rows.vector
    node[at, slot] = rows.node
    return vector, node


class _Sums:
    """Sums over tokens of products of downstream and upstream rows, for each pair.

    Downstream rows are of a node in one example, so that sums of different examples stay apart.
    """

    def __init__(self, n_down: int, n_up: int, like: Tensor) -> None:
        self.n_down, self.n_up = n_down, n_up
        # One more of each: where padding adds its zeros.
        self.total = like.new_zeros((n_down + 1) * (n_up + 1))

    def meet(self, down: _Rows, up: _Rows) -> None:
        """Add every product of a downstream and an upstream row at the same token."""
        shared = torch.unique(down.token[torch.isin(down.token, up.token)])
        if not len(shared):
            return
        down = down.part(torch.isin(down.token, shared))
        up = up.part(torch.isin(up.token, shared))
        n_down = torch.bincount(torch.searchsorted(shared, down.token))
        n_up = torch.bincount(torch.searchsorted(shared, up.token))
        d = up.vector.shape[1]
        # Tokens alike in size together, so that padding wastes little.
        order = (n_down * int(n_up.max()) + n_up).argsort()
        start = 0
        while start < len(order):
            stop = self._block_end(n_down[order], n_up[order], d, start)
            tokens = shared[order[start:stop]].sort().values
            self._meet_block(down, up, tokens)
            start = stop

    @staticmethod
    def _block_end(n_down: Tensor, n_up: Tensor, d: int, start: int) -> int:
        """How far a block of tokens may reach from `start` within the block's size."""
        most_down = n_down[start:].cummax(0).values
        most_up = n_up[start:].cummax(0).values
        n_tokens = torch.arange(1, len(most_down) + 1, device=most_down.device)
        size = n_tokens * ((most_down + most_up) * d + most_down * most_up)
        return start + max(1, int((size <= _BLOCK).sum()))

    def _meet_block(self, down: _Rows, up: _Rows, tokens: Tensor) -> None:
        down_vector, down_node = _by_token(
            down.part(torch.isin(down.token, tokens)), tokens, self.n_down
        )
        up_vector, up_node = _by_token(up.part(torch.isin(up.token, tokens)), tokens, self.n_up)
        product = torch.bmm(down_vector, up_vector.mT)
        index = down_node[:, :, None] * (self.n_up + 1) + up_node[:, None, :]
        add_at(self.total, index.flatten(), product.flatten())

    def triplets(self, node: Tensor, down_keys: Tensor, up_keys: Tensor) -> EdgeEffects:
        """The sums that are not zero, over examples.

        Args:
            node: ``(n_down,)``, an index into `down_keys` for each downstream sum.
        """
        of_example = self.total.view(self.n_down + 1, self.n_up + 1)[:-1, :-1]
        nodes, at = node.unique(return_inverse=True)
        total = add_at(of_example.new_zeros(len(nodes), self.n_up), at, of_example)
        wide = of_example.double().square()
        squares = add_at(wide.new_zeros(len(nodes), self.n_up), at, wide)
        down, up = squares.nonzero(as_tuple=True)
        keys = up_keys[up], down_keys[nodes[down]]
        return EdgeEffects(*keys, total[down, up], squares[down, up])


class _Pullbacks:
    """Cotangents taken back from a submodule's output to what its layer read."""

    def __init__(self, model: LanguageModel, effects: Effects, passes: Passes) -> None:
        self.model, self.run, self.passes = model, effects.clean_run, passes
        self.n_pos = effects.mask.shape[1]

    def through_mlp(self, layer: int, down: _Rows) -> _Rows:
        """Back through norm and MLP of a layer, each row at its own token."""
        stream = self.run.stream_before(layer)
        if not self.model.parallel:
            stream = self.model.after_attn(layer, stream, self.run.outputs[f"attn_{layer}"])
        flat = stream.flatten(0, 1)
        parts = []
        per_pass = self.passes.rows * self.n_pos
        for start in range(0, len(down.token), per_pass):
            part = down.part(slice(start, start + per_pass))
            x = flat[part.token].requires_grad_()
            y = self.model.mlp(layer, x)
            parts.append(torch.autograd.grad(y, x, part.vector.to(y.dtype))[0])
        return _Rows(down.token, down.node, torch.cat(parts).to(down.vector.dtype))

    def through_attention(self, layer: int, down: _Rows) -> Iterator[_Rows]:
        """Back through norm and attention of a layer, to all earlier tokens of the example.

        Rows of one node in one example share one pass; by position there is one of each anyway.
        """
        example = down.token // self.n_pos
        most = int(example.max()) + 1
        group, of_row = (down.node * most + example).unique(return_inverse=True)
        # Rows of a group lie in one example and are of one node: the first says which.
        first = torch.full_like(group, len(of_row)).scatter_reduce(
            0, of_row, torch.arange(len(of_row), device=of_row.device), "amin"
        )
        example_of, node_of = example[first], down.node[first]
        order = example_of.argsort(stable=True)
        for groups in order.split(self.passes.rows):
            rows = torch.isin(of_row, groups)
            place = torch.empty(len(group), dtype=torch.long, device=groups.device)
            place[groups] = torch.arange(len(groups), device=groups.device)
            y_bar = down.vector.new_zeros(len(groups), self.n_pos, down.vector.shape[1])
            at, pos = place[of_row[rows]], down.token[rows] % self.n_pos
            # A node acts at a token once, so nothing is added to anything.
            y_bar[at, pos] = down.vector[rows]
            examples = example_of[groups]
            x = self.run.stream_before(layer)[examples].requires_grad_()
            context = self.run.context_of(examples)[layer]
            y = self.model.attn(layer, x, context)
            (x_bar,) = torch.autograd.grad(y, x, y_bar.to(y.dtype))
            n_pos = self.n_pos
            token = examples[:, None] * n_pos + torch.arange(n_pos, device=x.device)
            node = node_of[groups][:, None].expand(-1, n_pos)
            vector = x_bar.to(down.vector.dtype).flatten(0, 1)
            live = vector.any(1)
            yield _Rows.sorted(token.flatten()[live], node.flatten()[live], vector[live])

    def through_write(self, name: str, down: _Rows) -> _Rows:
        """Back from the stream to a submodule's value, where it is written through a projection."""
        kind, layer = Submodule.parse(name)
        projected = {"attn": self.model.attn_input, "mlp": self.model.mlp_input}
        if not projected.get(kind, False):
            return down
        x = self.run.outputs[name].flatten(0, 1)[down.token].requires_grad_()
        write = self.model.write_attn if kind == "attn" else self.model.write_mlp
        y = write(layer, x)
        (x_bar,) = torch.autograd.grad(y, x, down.vector.to(y.dtype))
        return _Rows(down.token, down.node, x_bar.to(down.vector.dtype))


def _blocks(down: _Rows, n_up: int, n_pos: int) -> Iterator[tuple[Tensor, _Rows]]:
    """Downstream rows a few nodes at a time, so that the sums of one block stay small.

    Returns:
        The node of each (node, example) of the block, and the rows with these counted from 0 in
        place of nodes.
    """
    example = down.token // n_pos
    most = int(example.max()) + 1 if len(example) else 1
    pair, of_row = (down.node * most + example).unique(return_inverse=True)
    node = pair // most
    size = max(1, _BLOCK // (n_up + 1))
    # Where each node ends; a block ends at the last of these within its size, or at the first.
    ends = torch.cat(
        [(node[1:] != node[:-1]).nonzero().flatten() + 1, node.new_tensor([len(node)])]
    )
    start = 0
    while start < len(node):
        later = ends[ends > start]
        within = later[later <= start + size]
        stop = int(within[-1] if len(within) else later[0])
        part = down.part((of_row >= start) & (of_row < stop))
        inside = of_row[(of_row >= start) & (of_row < stop)] - start
        yield node[start:stop], _Rows(part.token, inside, part.vector)
        start = stop


def _edges_between(
    upstream: str, downstream: str, nodes: Mapping[str, _Nodes], back: _Pullbacks
) -> EdgeEffects:
    """All edges of one kind, summed over tokens and examples where those are not apart."""
    up_nodes, down_nodes = nodes[upstream], nodes[downstream]
    up = _changes(up_nodes)
    rows = cotangents(down_nodes)
    kind, _, layer = downstream.partition("_")
    parts = []
    for node, part in _blocks(rows, len(up_nodes.keys), down_nodes.n_pos):
        sums = _Sums(len(node), len(up_nodes.keys), rows.vector)
        if len(up.token):
            if kind == "attn":
                pulled = back.through_attention(int(layer), part)
            elif kind == "mlp":
                pulled = iter([back.through_mlp(int(layer), part)])
            else:
                pulled = iter([part])
            for piece in pulled:
                sums.meet(back.through_write(upstream, piece), up)
        parts.append(sums.triplets(node, down_nodes.keys, up_nodes.keys))
    if not parts:
        nothing, none = up_nodes.keys[:0], rows.vector.new_zeros(0)
        return EdgeEffects(nothing, nothing, none, none.double())
    columns = [(e.upstream, e.downstream, e.weight, e.squares) for e in parts]
    return EdgeEffects(*(torch.cat(column) for column in zip(*columns, strict=True)))


def edge_effects(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    effects: Effects,
    *,
    keep: Mapping[str, Tensor] | None = None,
    by_position: bool = False,
    budget_bytes: int = 2 << 30,
) -> dict[tuple[str, str], EdgeEffects]:
    """Effects of all six kinds of edges between chosen nodes (eqs 5 and 6).

    Args:
        dictionaries: by submodule name, those that the effects were computed with.
        effects: from `core.effects.node_effects`, by an estimator with gradients.
        keep: node keys by submodule; None for every node that is active or changes.
        by_position: each position of a node is a node of its own; else summed over positions.
        budget_bytes: memory for activations in flight.

    Returns:
        By (upstream, downstream) submodule, sums over examples; zero weights are left out.

    Raises:
        InputError: effects that are not from `node_effects`, or whose estimator has no gradients.
        MissingSubmodule: effects are at a submodule without a dictionary.
        OutOfBudget: not even one example fits the budget.
    """
    if not isinstance(effects, Effects):
        raise InputError(
            f"effects are {type(effects).__name__}, and edges need what core.node_effects gives: "
            "the run that the effects start from is in it."
        )
    check_gradients(effects.estimator)
    if lacking := effects.submodules.keys() - dictionaries.keys():
        raise MissingSubmodule(
            f"there are effects but no dictionary at {', '.join(sorted(lacking))}: give the "
            "dictionaries that the effects were computed with."
        )
    nodes = {}
    for name, at in effects.submodules.items():
        keys = None if keep is None else keep.get(name, torch.zeros(0, dtype=torch.long))
        if keys is not None:
            keys = torch.as_tensor(keys, dtype=torch.long, device=effects.mask.device)
        nodes[name] = _Nodes(at, dictionaries[name], effects.mask, keys, by_position)
    passes = plan_passes(model, effects.mask.shape[1], budget_bytes)
    back = _Pullbacks(model, effects, passes)
    return {
        (up, down): _edges_between(up, down, nodes, back)
        for up, down in edge_kinds(model, effects.submodules)
    }
