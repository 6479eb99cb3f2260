"""Exact effects by intervention (eq. 2): of every node, or of chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from core.ablate import check_nodes
from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary
from core.endpoints import Endpoints, endpoints
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.replay import Resumed
from core.shapes import Float, Int
from core.types import Node, SubmoduleEffects


@torch.no_grad()
def exact_effects(
    runs: Resumed,
    name: str,
    dictionary: Dictionary,
    ends: Endpoints,
    metric_clean: Float[Tensor, " batch"],
    passes: Passes,
) -> SubmoduleEffects:
    """Exact indirect effect of every node of a submodule (eq. 2): one run for each.

    Returns:
        Effects as `integrated_gradients` gives them; ``gradient`` is zero, there is none.
    """
    n_pos = ends.clean.shape[1]

    def effects_of(
        token: Int[Tensor, " n"], moves: Callable[[slice], Tensor]
    ) -> Float[Tensor, " n"]:
        moved_by = torch.empty(len(token), dtype=metric_clean.dtype, device=token.device)
        for start in range(0, len(token), passes.rows):
            part = slice(start, start + passes.rows)
            example, pos = token[part] // n_pos, token[part] % n_pos
            x = ends.clean[example]
            x[torch.arange(len(example), device=x.device), pos] += moves(part).to(x.dtype)
            moved_by[part] = runs.select(example).metric_with(name, x) - metric_clean[example]
        return moved_by

    change = ends.change
    f = change.features
    of_features = effects_of(
        f.token, lambda part: f.value[part, None] * dictionary.decoder[f.feature[part]]
    )
    errors = change.error.flatten(0, 1)
    moved = errors.any(1).nonzero().flatten()
    of_errors = errors.new_zeros(len(errors))
    of_errors[moved] = effects_of(moved, lambda part: errors[moved[part]]).to(errors.dtype)
    dtype = dictionary.decoder.dtype
    not_measured = torch.full_like(metric_clean, float("nan"))
    return SubmoduleEffects(
        f.with_value(of_features.to(dtype)),
        of_errors.view(change.error.shape[:2]),
        torch.zeros_like(change.error),
        change,
        ends.act,
        not_measured,
        not_measured,
    )


@torch.no_grad()
def patched_effects(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    nodes: Sequence[Node],
    *,
    budget_bytes: int = 2 << 30,
) -> Float[Tensor, "node batch"]:
    """What patching each of some nodes alone does to the metric of each example (eq. 2).

        IE(a) = m(x_clean with a = a_patch) - m(x_clean)

    A node with a position is patched there, one without at every position of the run at once: that
    is what ablating it does. `exact_effects` patches such nodes at one position at a time.

    Args:
        nodes: of these dictionaries; their effects are not looked at.

    Returns:
        In the metric's units; 0 in examples in which the node does not change.

    Raises:
        MissingSubmodule: a node of a submodule without a dictionary.
        InputError: a feature or position that there is not.
        OutOfBudget: not even one example fits the budget.
    """
    inputs = inputs.to(model.device)
    n_features = {name: dictionary.n_features for name, dictionary in dictionaries.items()}
    check_nodes(nodes, n_features, inputs.clean.shape[1])
    passes = plan_passes(model, inputs.clean.shape[1], budget_bytes)
    runs = Resumed.record(model, inputs)
    patch = None
    if inputs.patch is not None:
        patch = model.record(inputs.patch, inputs.mask)
    metric_clean = runs.as_recorded()
    effects = metric_clean.new_zeros(len(nodes), inputs.n_examples)
    for name in dict.fromkeys(node.submodule for node in nodes):
        of_name = [i for i, node in enumerate(nodes) if node.submodule == name]
        other = None if patch is None else patch.outputs[name]
        ends = endpoints(dictionaries[name], runs.recording.outputs[name], other, inputs.mask)
        moves = {i: _move(nodes[i], dictionaries[name], ends) for i in of_name}
        node, example = _moved(moves)
        for part in torch.arange(len(node), device=node.device).split(passes.rows):
            rows = example[part]
            move = torch.stack(
                [moves[i][row] for i, row in zip(node[part].tolist(), rows.tolist(), strict=True)]
            )
            x = ends.clean[rows] + move.to(ends.clean.dtype)
            changed = runs.select(rows).metric_with(name, x) - metric_clean[rows]
            effects[node[part], rows] = changed
    return effects


def _moved(moves: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """In which examples each node changes: nodes and examples, ``(n,)`` each."""
    pairs = [(i, move.flatten(1).any(1).nonzero().flatten()) for i, move in moves.items()]
    node = torch.cat([torch.full_like(rows, i) for i, rows in pairs])
    return node, torch.cat([rows for _, rows in pairs])


def _move(node: Node, dictionary: Dictionary, ends: Endpoints) -> Float[Tensor, "batch pos d"]:
    """How patching a node moves its submodule's output."""
    error = ends.change.error
    if node.is_error:
        move = error
    else:
        f = ends.change.features
        f = f.where(f.feature == node.feature)
        move = torch.zeros_like(error).flatten(0, 1)
        move[f.token] = f.value[:, None] * dictionary.decoder[node.feature]
        move = move.view_as(error)
    if node.pos is None:
        return move
    there = torch.arange(move.shape[1], device=move.device) == node.pos
    return move * there[:, None]
