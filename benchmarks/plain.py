"""Node and edge effects as the paper writes them, with nothing saved: what `core` is compared with.

Each integration step decodes the whole dictionary and runs the whole model (eq. 4); each downstream
node at each token takes one backward pass of its own (eqs 5 and 6), through dense dictionaries.
GPT-NeoX only, unpadded sequences of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.types import Submodule

Dense = dict[str, tuple[Tensor, Tensor]]


def _module(hf: Any, name: str) -> Any:
    kind, layer = Submodule.parse(name)
    if kind == "embed":
        return hf.gpt_neox.embed_in
    block = hf.gpt_neox.layers[layer]
    return {"attn": block.attention, "mlp": block.mlp, "resid": block}[kind] if layer >= 0 else None


def _run(hf: Any, tokens: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """Logits with submodules' outputs edited through forward hooks."""

    def hook(edit: Callable[[Tensor], Tensor]) -> Any:
        def inner(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        return inner

    with ExitStack() as stack:
        for name, edit in edits.items():
            handle = _module(hf, name).register_forward_hook(hook(edit))
            stack.callback(handle.remove)
        return hf(tokens, use_cache=False).logits


def features_and_errors(
    hf: Any, dictionaries: Mapping[str, Dictionary], tokens: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Dense features ``(batch, pos, feature)`` and errors ``(batch, pos, d)`` by submodule."""
    found: Dense = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            features = dictionaries[name].encode(x)
            found[name] = (features, x - dictionaries[name].decode(features))
            return x

        return edit

    with torch.no_grad():
        _run(hf, tokens, {name: keep(name) for name in dictionaries})
    return found


def plain_nodes(
    hf: Any,
    dictionaries: Mapping[str, Dictionary],
    tokens: Tensor,
    patch: Tensor | None,
    metric: Callable[[Tensor], Tensor],
    steps: int,
    *,
    backward: bool = False,
) -> tuple[Dense, Dense, Dense, Dense]:
    """Clean features and errors, their changes, mean gradients and effects, by left Riemann sums.

    Args:
        metric: of the last token's logits, ``(batch, vocabulary)`` to ``(batch,)``.
        backward: call ``m.sum().backward()`` on a model and dictionaries as they are loaded, whose
            parameters then get gradients too, as the authors' code does.
    """
    if backward:
        hf.requires_grad_(True)
        for dictionary in dictionaries.values():
            dictionary.decoder.requires_grad_(True)
    clean = features_and_errors(hf, dictionaries, tokens)
    if patch is None:
        other = {n: (torch.zeros_like(f), torch.zeros_like(e)) for n, (f, e) in clean.items()}
    else:
        other = features_and_errors(hf, dictionaries, patch)
    changes, gradients, effects = {}, {}, {}
    for name, (f_clean, e_clean) in clean.items():
        f_change, e_change = other[name][0] - f_clean, other[name][1] - e_clean
        f_mean, e_mean = torch.zeros_like(f_clean), torch.zeros_like(e_clean)
        for k in range(steps):
            f = (f_clean + k / steps * f_change).requires_grad_()
            e = (e_clean + k / steps * e_change).requires_grad_()
            edit = {name: lambda _x, n=name, f=f, e=e: dictionaries[n].decode(f) + e}
            m = metric(_run(hf, tokens, edit)[:, -1])
            f_grad, e_grad = _gradients(m.sum(), f, e, backward)
            f_mean += f_grad / steps
            e_mean += e_grad / steps
        changes[name] = (f_change, e_change)
        gradients[name] = (f_mean, e_mean)
        effects[name] = (f_mean * f_change, (e_mean * e_change).sum(-1))
    return clean, changes, gradients, effects


def _gradients(m: Tensor, f: Tensor, e: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    if not backward:
        f_grad, e_grad = torch.autograd.grad(m, [f, e])
        return f_grad, e_grad
    m.backward()
    assert f.grad is not None
    assert e.grad is not None
    return f.grad, e.grad


def plain_edges(
    hf: Any,
    dictionaries: Mapping[str, Dictionary],
    tokens: Tensor,
    kinds: list[tuple[str, str, tuple[str, ...]]],
    found: tuple[Dense, Dense, Dense],
    keep: Mapping[str, Tensor],
) -> dict[tuple[str, str], Tensor]:
    """Edge weights between kept nodes, summed over positions and examples.

    Args:
        kinds: (upstream, downstream, submodules at which gradients stop).
        found: clean features and errors, changes, mean gradients, from `plain_nodes`.
        keep: kept node keys by submodule; n_features is the error.

    Returns:
        By (upstream, downstream), ``(downstream nodes, upstream nodes)``.
    """
    clean, changes, gradients = found
    weights = {}
    for up, down, stops in kinds:
        f_up, e_up = (value.detach().requires_grad_() for value in clean[up])
        outputs: dict[str, Tensor] = {}
        edits: dict[str, Callable[[Tensor], Tensor]] = {stop: Tensor.detach for stop in stops}
        edits[up] = lambda _x, up=up, f=f_up, e=e_up: dictionaries[up].decode(f) + e
        edits[down] = lambda y, down=down, seen=outputs: seen.setdefault(down, y)
        _run(hf, tokens, edits)
        y = outputs[down]
        features = dictionaries[down].encode(y)
        error = y - dictionaries[down].decode(features)
        f_gradient, e_gradient = gradients[down]
        f_change, e_change = changes[up]
        n_up = f_up.shape[-1]
        total = f_up.new_zeros(len(keep[down]), len(keep[up]), requires_grad=False)
        for row, key in enumerate(keep[down].tolist()):
            is_error = key == features.shape[-1]
            if is_error:
                z = (error * e_gradient).sum(-1)
            else:
                z = features[..., key] * f_gradient[..., key]
            live = z.new_ones(z.shape) if is_error else (features[..., key] > 0)
            for b, s in live.nonzero().tolist():
                f_grad, e_grad = torch.autograd.grad(z[b, s], [f_up, e_up], retain_graph=True)
                per_feature = (f_grad * f_change).sum((0, 1))
                per_error = (e_grad * e_change).sum()
                everything = torch.cat([per_feature, per_error[None]])
                total[row] += everything[keep[up].clamp(max=n_up)]
        weights[up, down] = total
    return weights
