"""Runs with some nodes replaced by their ablation value, in causal order (section 3.2).

At each submodule what the run so far produced, x, is encoded again; nodes outside the circuit are
set to their ablation value, the rest stays as this run computes it. Decoding is affine, so with
`base` the output of a wholly ablated submodule, a_i the ablation values and C the circuit's nodes

    circuit      x' = base + sum over C of (f_i(x) - a_i) W_d[i]   [+ eps(x) - eps_ablated]
    complement   x' = x    - sum over C of (f_i(x) - a_i) W_d[i]   [- eps(x) + eps_ablated]

and only the circuit's own features are encoded, unless an error node asks for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.errors import InputError
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.replay import read_metric
from core.types import ERROR, Node, Submodule

ABLATIONS = ("mean", "zero", "resample")
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AblationValues:
    """What nodes of one submodule are replaced by; leading axes broadcast to ``(batch, pos)``.

    Attributes:
        base: ``(..., d)``, the output of the wholly ablated submodule.
        features: ``(..., feature)``; None stands for zero.
        error: ``(..., d)``; None stands for zero.
    """

    base: Tensor
    features: Tensor | None
    error: Tensor | None


@torch.no_grad()
def ablation_values(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs,
    ablation: str,
    *,
    seed: int = 0,
) -> dict[str, AblationValues]:
    """Ablation values of every submodule that has a dictionary, but `embed`, never ablated.

    Args:
        inputs: the mean is taken over their patch side where they are pairs, else over their
            clean side; at each position where all are of one length, else over all tokens.
        ablation: ``mean``, ``zero``, or ``resample`` (every example takes the values of another
            one's patch side, drawn by `seed`).

    Raises:
        InputError: unknown ablation; or resampling of one example, or of unequal lengths.
    """
    if ablation not in ABLATIONS:
        raise InputError(f"ablation '{ablation}' is not one of {', '.join(ABLATIONS)}.")
    names = [name for name in dictionaries if name != "embed"]
    if ablation == "zero":
        return {name: AblationValues(dictionaries[name].bias, None, None) for name in names}
    inputs = inputs.to(model.device)
    same_length = bool(inputs.mask.all())
    if ablation == "resample" and not (same_length and inputs.n_examples > 1):
        raise InputError(
            "resample ablation gives each example the values of another at the same position: it "
            "needs two examples or more, all of one length. Use mean or zero."
        )
    tokens = inputs.clean if inputs.patch is None else inputs.patch
    outputs = model.record(tokens, inputs.mask).outputs
    values = {}
    for name in names:
        dictionary = dictionaries[name]
        x = outputs[name].to(dictionary.decoder.dtype)
        if ablation == "resample":
            generator = torch.Generator().manual_seed(seed)
            shift = 1 + int(torch.randint(inputs.n_examples - 1, (1,), generator=generator))
            x = x.roll(shift, 0)
            features = dictionary.encode(x)
        else:
            features = _mean_features(dictionary, x, inputs.mask, same_length)
            x = x.mean(0) if same_length else x[inputs.mask].mean(0)
        values[name] = AblationValues(x, features, x - dictionary.decode(features))
    return values


def _mean_features(dictionary: Dictionary, x: Tensor, mask: Tensor, same_length: bool) -> Tensor:
    """Mean features over examples at each position, or over all tokens, without holding them."""
    act = dictionary.encode_sparse(x)
    real = mask.flatten()[act.token]
    token, feature, value = act.token[real], act.feature[real], act.value[real]
    n_pos = x.shape[1] if same_length else 1
    pos = token % n_pos if same_length else torch.zeros_like(token)
    total = value.new_zeros(n_pos * act.shape[2])
    total.index_put_((pos * act.shape[2] + feature,), value, accumulate=True)
    n = x.shape[0] if same_length else int(mask.sum())
    return (total / n).view(n_pos, -1) if same_length else total / n


@dataclass(frozen=True)
class Part:
    """The circuit's nodes at one submodule.

    Attributes:
        features: ``(k,)`` feature indices.
        where: ``(pos, k)``, 1 where a node is in the circuit; None for all positions.
        error: ``(pos, 1)`` likewise for the error, or a plain 0.0 or 1.0 for all positions.
    """

    features: Tensor
    where: Tensor | None
    error: Tensor | float


def parts_of(
    nodes: tuple[Node, ...] | list[Node],
    names: list[str],
    n_pos: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Part]:
    """A circuit's nodes by submodule, laid out for ablated runs of `n_pos` positions."""
    parts = {}
    for name in names:
        here = [node for node in nodes if node.submodule == name]
        features = sorted({node.feature for node in here if node.feature != ERROR})
        column = {feature: i for i, feature in enumerate(features)}
        index = torch.tensor(features, dtype=torch.long, device=device)
        if any(node.pos is not None for node in here):
            where = torch.zeros(n_pos, len(features) + 1, device=device, dtype=dtype)
            for node in here:
                where[node.pos, column.get(node.feature, -1)] = 1
            parts[name] = Part(index, where[:, :-1], where[:, -1:])
        else:
            error = 1.0 if any(node.is_error for node in here) else 0.0
            parts[name] = Part(index, None, error)
    return parts


def _any(error: Tensor | float) -> bool:
    return bool(error.any()) if isinstance(error, Tensor) else error != 0


def keep_edit(
    dictionary: Dictionary, values: AblationValues, part: Part, *, complement: bool
) -> Edit:
    """What a submodule's output becomes when only a circuit, or only its complement, is kept."""
    index, decoder = part.features, dictionary.decoder[part.features]
    zero = torch.zeros((), dtype=decoder.dtype, device=decoder.device)
    ablated = zero if values.features is None else values.features[..., index]
    error_ablated = zero if values.error is None else values.error

    def edit(x: Tensor) -> Tensor:
        wide = x.to(dictionary.decoder.dtype)
        if _any(part.error):
            features = dictionary.encode(wide)
            own = part.error * (wide - dictionary.decode(features) - error_ablated)
            moved = features[..., index] - ablated
        else:
            own = torch.zeros_like(wide)
            moved = dictionary.encode(wide, index) - ablated
        if part.where is not None:
            moved = moved * part.where
        own = own + torch.matmul(moved, decoder)
        kept = wide - own if complement else values.base + own
        return kept.to(x.dtype)

    return edit


@torch.no_grad()
def run_edited(model: LanguageModel, inputs: Inputs, edits: Mapping[str, Edit]) -> Tensor:
    """The metric with submodules' outputs edited as the run meets them, ``(batch,)``.

    Args:
        edits: by submodule name; each takes ``(batch, pos, d)`` and gives the same.
    """
    recording = model.record(inputs.clean, inputs.mask)
    layers = [Submodule.parse(name).layer for name in edits]
    first = min(layers, default=model.n_layers)

    def edited(name: str, x: Tensor) -> Tensor:
        return edits[name](x) if name in edits else x

    if first < 0:
        embed = edited("embed", recording.outputs["embed"])
        stream, first = embed + recording.position, 0
    elif first == model.n_layers:
        stream = recording.outputs[f"resid_{first - 1}"]
    else:
        stream = recording.stream_before(first)
    for layer in range(first, model.n_layers):
        name = f"attn_{layer}"
        attn = edited(name, model.attn(layer, stream, recording.context[layer]))
        middle = stream + model.write(name, attn)
        mlp = model.mlp(layer, stream if model.parallel else middle)
        stream = edited(f"resid_{layer}", middle + edited(f"mlp_{layer}", mlp))
    return read_metric(model, stream, inputs.last, inputs.metric)
