"""What a feature does to the model's predictions: by its decoder row, and by its ablation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.cards.collect import Excerpts, Units
from core.inputs import pad
from core.models import LanguageModel, Recording
from core.types import Submodule

_BYTES_AT_ONCE = 1 << 27
_CONTEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class Tokens:
    """Tokens and a number for each, ``(n, k)``, the largest first."""

    token: Tensor
    value: Tensor


@torch.no_grad()
def readout(model: LanguageModel, streams: Tensor) -> Tensor:
    """How logits change with the final residual stream, on average, ``(vocabulary, d_model)``.

    The final norm is not linear: its derivative at each of some streams is taken, and their mean.
    A soft cap of the logits, which changes no order, is left out.

    Args:
        streams: ``(n, d_model)``, final residual streams, before the norm.
    """
    with torch.enable_grad():
        norm: Tensor = torch.func.vmap(torch.func.jacrev(model.final_norm))(streams).mean(0)
    return model.unembedding.weight @ norm.detach()


@torch.no_grad()
def promoted(model: LanguageModel, units: Units, reads: Tensor, k: int) -> tuple[Tokens, Tokens]:
    """The tokens whose logits each feature's decoder row raises most, and lowers most.

    Args:
        reads: what `readout` gives.
        k: how many tokens.

    Returns:
        Both with changes of the logit per unit of activation.
    """
    rows = units.dictionary.decoder[units.features].to(reads.dtype)
    kind, layer = Submodule.parse(units.submodule)
    if (kind == "attn" and model.attn_input) or (kind == "mlp" and model.mlp_input):
        # Read where a projection reads.
        write = model.write_attn if kind == "attn" else model.write_mlp
        rows = write(layer, rows) - write(layer, torch.zeros_like(rows))
    k = min(k, len(reads))
    n_at_once = max(1, _BYTES_AT_ONCE // (4 * len(reads)))
    up, down = [], []
    for part in rows.split(n_at_once):
        logits = part @ reads.T
        up.append(logits.topk(k, 1))
        down.append(logits.topk(k, 1, largest=False))
    return _joined(up, k), _joined(down, k)


def _joined(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> Tokens:
    empty = torch.zeros(0, k)
    values = torch.cat([value for value, _ in parts] or [empty])
    tokens = torch.cat([token for _, token in parts] or [empty.long()])
    return Tokens(tokens.cpu(), values.float().cpu())


@torch.no_grad()
def log_probs_without(
    model: LanguageModel,
    recording: Recording,
    submodule: str,
    example: Tensor,
    pos: Tensor,
    change: Tensor,
) -> Tensor:
    """Log-probabilities of the next token with something taken from a submodule at one token.

    What comes after the token does not see it, and nothing before it changes: of later layers
    attention alone runs over all tokens, the rest at this one.

    Args:
        recording: of the clean run.
        example, pos: ``(n,)``, which token of which recorded example.
        change: ``(n, d)``, what is taken from the submodule's output there.

    Returns:
        ``(n, vocabulary)``.
    """
    kind, layer = Submodule.parse(submodule)
    outputs, some = recording.outputs, torch.arange(len(example), device=pos.device)

    def at(value: Tensor) -> Tensor:
        return value[example, pos]

    if kind == "embed":
        stream, layer = at(recording.stream_before(0)) - change, -1
    elif kind == "resid":
        stream = at(outputs[submodule]) - change
    else:
        values = {"attn": at(outputs[f"attn_{layer}"]), "mlp": None}
        if kind == "mlp" or model.parallel:
            values["mlp"] = at(outputs[f"mlp_{layer}"])
        values[kind] = values[kind] - change
        stream = model.layer(layer, at(recording.stream_before(layer)), {}, **values)
    for i in range(layer + 1, model.n_layers):
        whole = recording.stream_before(i)[example]
        whole[some, pos] = stream
        attn = model.attn(i, whole, recording.context_of(example)[i])[some, pos]
        stream = model.layer(i, stream, {}, attn=attn)
    return model.logits(stream).float().log_softmax(-1)


@dataclass(frozen=True)
class _Ablations:
    """What is ablated where, ``(n,)`` each: unit, row of its context, position and activation."""

    name: str
    unit: Tensor
    row: Tensor
    pos: Tensor
    value: Tensor


@torch.no_grad()
def moved(
    model: LanguageModel,
    wanted: Mapping[str, Units],
    excerpts: Mapping[str, Excerpts],
    contexts: Sequence[Sequence[int]],
    *,
    n_ablated: int = 2,
    k: int = 10,
    budget_bytes: int = 1 << 30,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tokens]:
    """The tokens whose log-probability changes most when a feature is ablated where it is strong.

    Of a feature's strongest contexts those are taken in which it comes after the fewest tokens:
    they cost least. In each it is set to zero at its strongest token, and what changes
    is the prediction of the token after it.

    Args:
        wanted: features by any name.
        excerpts: of each, from `core.cards.collect.collect`.
        contexts: those that were collected from.
        n_ablated: contexts of each feature.
        k: tokens of each feature.
        budget_bytes: memory for the sums over the vocabulary.

    Returns:
        By name, ``(n, k)``: log P with the feature minus without it, in nats, the largest change
        first; zeros for a feature that is never active.
    """
    k = min(k, model.n_vocab)
    n_bytes = {name: 4 * model.n_vocab * len(units.features) for name, units in wanted.items()}
    changes: dict[str, Tokens] = {}
    for names in _groups(n_bytes, budget_bytes):
        plans = [_ablations(name, excerpts[name], n_ablated) for name in names]
        sums = {name: torch.zeros(len(wanted[name].features), model.n_vocab) for name in names}
        for n_done, n_rows in _ablate_all(model, wanted, plans, contexts, sums):
            if progress is not None:
                progress(f"cards: features ablated in {n_done:,} of {n_rows:,} contexts")
        for plan in plans:
            n = torch.bincount(plan.unit, minlength=len(sums[plan.name])).clamp(min=1)
            mean = sums.pop(plan.name) / n[:, None]
            token = mean.abs().topk(k, 1).indices
            changes[plan.name] = Tokens(token, mean.gather(1, token))
    return changes


def _groups(n_bytes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Names in turn, as many together as fit."""
    names: list[str] = []
    for name, size in n_bytes.items():
        if names and sum(n_bytes[other] for other in names) + size > budget:
            yield names
            names = []
        names.append(name)
    if names:
        yield names


def _ablations(name: str, excerpts: Excerpts, n: int) -> _Ablations:
    """Of each unit's strongest contexts the `n` in which it comes after the fewest tokens."""
    strong = (excerpts.quantile < 0).nonzero().flatten()
    order = excerpts.pos[strong].argsort(stable=True)
    order = order[excerpts.unit[strong[order]].argsort(stable=True)]
    unit = excerpts.unit[strong[order]]
    place = torch.arange(len(unit)) - torch.searchsorted(unit, unit)
    chosen = strong[order[place < n]]
    columns = (excerpts.unit, excerpts.row, excerpts.pos, excerpts.peak)
    return _Ablations(name, *(column[chosen] for column in columns))


def _ablate_all(
    model: LanguageModel,
    wanted: Mapping[str, Units],
    plans: Sequence[_Ablations],
    contexts: Sequence[Sequence[int]],
    sums: Mapping[str, Tensor],
) -> Iterator[tuple[int, int]]:
    """Add up the changes of all features in `sums`; each context is run once, as far as needed."""
    needed = torch.zeros(len(contexts), dtype=torch.long)
    for plan in plans:
        needed.scatter_reduce_(0, plan.row, plan.pos + 1, "amax")
    rows = needed.nonzero().flatten()
    rows = rows[needed[rows].argsort(stable=True)]
    for start in range(0, len(rows), _CONTEXTS_AT_ONCE):
        part = rows[start : start + _CONTEXTS_AT_ONCE]
        recording = model.record(*pad([contexts[row][: int(needed[row])] for row in part.tolist()]))
        example_of = torch.full((len(contexts),), -1)
        example_of[part] = torch.arange(len(part))
        for plan in plans:
            units, here = wanted[plan.name], (example_of[plan.row] >= 0).nonzero().flatten()
            for some in () if not len(here) else here.split(_n_at_once(model, recording)):
                where = example_of[plan.row[some]], plan.pos[some]
                change = _change(model, recording, units, plan, some, where)
                sums[plan.name].index_add_(0, plan.unit[some], change.cpu())
        yield min(start + _CONTEXTS_AT_ONCE, len(rows)), len(rows)


def _n_at_once(model: LanguageModel, recording: Recording) -> int:
    """How many features are ablated in one run."""
    each = 4 * max(4 * recording.mask.shape[1] * model.d_model, 2 * model.n_vocab)
    return max(1, _BYTES_AT_ONCE // each)


def _change(
    model: LanguageModel,
    recording: Recording,
    units: Units,
    plan: _Ablations,
    some: Tensor,
    where: tuple[Tensor, Tensor],
) -> Tensor:
    """log P with each feature minus without it, ``(n, vocabulary)``."""
    device = model.device
    example, pos = (index.to(device) for index in where)
    rows = units.dictionary.decoder[units.features[plan.unit[some]].to(device)]
    taken = (rows * plan.value[some].to(device, rows.dtype)[:, None]).to(model.dtype)
    final = recording.outputs[f"resid_{model.n_layers - 1}"][example, pos]
    clean = model.logits(final).float().log_softmax(-1)
    without = log_probs_without(model, recording, units.submodule, example, pos, taken)
    return clean - without
