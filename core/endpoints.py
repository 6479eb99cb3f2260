"""Where a submodule starts and ends between clean and patch: its output, features and error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.shapes import Bool, Float
from core.sparse import add_at
from core.types import SparseAct, SparseFeatures


def sparse_difference(a: SparseFeatures, b: SparseFeatures) -> SparseFeatures:
    """a - b where it is not zero."""
    width = a.shape[2]
    keys = torch.cat([a.token * width + a.feature, b.token * width + b.feature])
    unique, inverse = keys.unique(return_inverse=True)
    value = add_at(a.value.new_zeros(len(unique)), inverse, torch.cat([a.value, -b.value]))
    differs = value != 0
    unique = unique[differs]
    return SparseFeatures(unique // width, unique % width, value[differs], a.shape)


@dataclass(frozen=True)
class Endpoints:
    """Where a submodule's line starts and ends.

    Attributes:
        clean, patch: the submodule's output; equal at padding.
        act: features and error at clean.
        change: features and error, patch minus clean; zero at padding.
    """

    clean: Float[Tensor, "batch pos d"]
    patch: Float[Tensor, "batch pos d"]
    act: SparseAct
    change: SparseAct


def _at_tokens(act: SparseAct, token: Tensor, shape: tuple[int, int]) -> SparseAct:
    """What was split at some tokens, ``(1, n)``, as features and errors of a batch, zero elsewhere.

    Args:
        token: ``(n,)``, ascending: which token of the batch each is.
        shape: of the batch, (batch, pos).
    """
    (_, _, n_features), d = act.features.shape, act.error.shape[2]
    f = act.features
    features = SparseFeatures(token[f.token], f.feature, f.value, (*shape, n_features))
    error = act.error.new_zeros(shape[0] * shape[1], d)
    error[token] = act.error[0]
    return SparseAct(features, error.view(*shape, d))


def _part(act: SparseAct, first: int, last: int) -> SparseAct:
    """The tokens from `first` to before `last` of one long example."""
    f = act.features
    begin, end = torch.searchsorted(f.token, f.token.new_tensor([first, last])).tolist()
    features = SparseFeatures(
        f.token[begin:end] - first,
        f.feature[begin:end],
        f.value[begin:end],
        (1, last - first, f.shape[2]),
    )
    return SparseAct(features, act.error[:, first:last])


def endpoints(
    dictionary: Dictionary,
    clean: Float[Tensor, "batch pos d"],
    patch: Float[Tensor, "batch pos d"] | None,
    mask: Bool[Tensor, "batch pos"],
) -> Endpoints:
    """Both ends of the line at one submodule; patch None is zero ablation, x_patch = bias.

    Both are encoded in one go: real tokens of the clean side, and those of the patch side that
    differ. The change is exactly zero elsewhere.
    """
    batch, n_pos, d = clean.shape
    other = dictionary.bias.to(clean.dtype) if patch is None else patch
    patched = torch.where(mask[..., None], other, clean)
    real = mask.flatten().nonzero().flatten()
    moved = (patched != clean).any(-1).flatten().nonzero().flatten()
    if patch is None:
        moved = moved[:0]
    x = torch.cat([clean.reshape(-1, d)[real], patched.reshape(-1, d)[moved]])
    both, n = dictionary.split(x[None]), len(real)
    act = _at_tokens(_part(both, 0, n), real, (batch, n_pos))
    if patch is None:
        change = SparseAct(act.features.with_value(-act.features.value), -act.error)
        return Endpoints(clean, patched, act, change)
    after = _at_tokens(_part(both, n, len(x)), moved, (batch, n_pos))
    before = act.features.where(torch.isin(act.features.token, moved))
    error = after.error - act.error
    unmoved = torch.ones(batch * n_pos, dtype=torch.bool, device=mask.device)
    unmoved[moved] = False
    error = error.masked_fill(unmoved.view(batch, n_pos, 1), 0.0)
    change = SparseAct(sparse_difference(after.features, before), error)
    return Endpoints(clean, patched, act, change)
