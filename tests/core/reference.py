"""A second, plain way to every number: forward hooks on the Hugging Face model, and autograd.

Nothing of `core.models.replay`, `core.effects` or `core.edges` is used: a run is the whole model's
own forward pass, in which hooks replace submodules' outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.inputs import Inputs
from core.models import LanguageModel

Change = Callable[[Tensor], Tensor]

# For each architecture: the layers, what attention adds, what the MLP adds, the projection.
_NORMED = ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA = ("model.layers", "self_attn", "mlp", "self_attn.o_proj")
_PHI = ("model.layers", "self_attn", "mlp", "self_attn.dense")
PLACES = {
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense"),
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj"),
    "gpt_neo": ("transformer.h", "attn", "mlp", "attn.attention.out_proj"),
    "gptj": ("transformer.h", "attn", "mlp", "attn.out_proj"),
    "falcon": ("transformer.h", "self_attention", "mlp", "self_attention.dense"),
    "phi": _PHI,
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "phi3", "stablelm"), _LLAMA),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _LLAMA),
    "gemma2": (*_NORMED, "self_attn.o_proj"),
    "gemma3_text": (*_NORMED, "self_attn.o_proj"),
}


@dataclass
class Run:
    """One forward pass: its metric ``(batch,)``, and every submodule's value as it was used."""

    metric: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    values: dict[str, Tensor] = field(default_factory=dict)


class Reference:
    """The Hugging Face model under a `LanguageModel`, run with submodules replaced."""

    def __init__(self, model: LanguageModel) -> None:
        self.hf, self.attn_input = model.hf, model.attn_input
        layers, self.attn, self.mlp, self.projection = PLACES[model.config.model_type]
        self.layers = list(attrgetter(layers)(self.hf))
        # GPT-2 and GPT-Neo add positions after `embed`; elsewhere the first layer is given it.
        positions = model.config.model_type in ("gpt2", "gpt_neo")
        wte = self.hf.transformer.wte if positions else None
        self.embed = wte

    def run(self, inputs: Inputs, changes: Mapping[str, Change] | None = None) -> Run:
        """The clean inputs' run, with each named submodule's value x replaced by changes(x)."""
        return self.run_tokens(inputs.clean, inputs, changes or {})

    def run_tokens(self, tokens: Tensor, inputs: Inputs, changes: Mapping[str, Change]) -> Run:
        """Likewise for other tokens; attention mask and metric are those of `inputs`."""
        out = Run()
        mask = inputs.mask.long()
        with self._hooks(out, changes):
            out.logits = self.hf(tokens, attention_mask=mask, use_cache=False).logits
        site, columns = inputs.readout.site, inputs.metric.tokens
        values = out.logits if site == "logits" else out.values[site]
        pooled = []
        for value, mask, i in zip(values, inputs.mask, range(len(tokens)), strict=True):
            real = value[mask]
            vector = real[-1] if inputs.readout.pooling == "last" else real.mean(0)
            pooled.append(vector if columns is None else vector[columns[i]])
        out.metric = inputs.metric(torch.stack(pooled))
        return out

    @contextmanager
    def _hooks(self, out: Run, changes: Mapping[str, Change]) -> Iterator[None]:
        def used(name: str, x: Tensor) -> Tensor:
            out.values[name] = changes[name](x) if name in changes else x
            # Falcon adds to what its MLP puts out, in place.
            return out.values[name].clone()

        def after(name: str) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> Any:
                if isinstance(output, tuple):
                    return (used(name, output[0]), *output[1:])
                return used(name, output)

            return hook

        def before(name: str) -> Any:
            return lambda _module, args: (used(name, args[0]), *args[1:])

        handles = []
        if self.embed is None:
            handles.append(self.layers[0].register_forward_pre_hook(before("embed")))
        else:
            handles.append(self.embed.register_forward_hook(after("embed")))
        for i, layer in enumerate(self.layers):
            part = {name: attrgetter(name)(layer) for name in (self.attn, self.mlp)}
            if self.attn_input:
                projection = attrgetter(self.projection)(layer)
                handles.append(projection.register_forward_pre_hook(before(f"attn_{i}")))
            else:
                handles.append(part[self.attn].register_forward_hook(after(f"attn_{i}")))
            handles.append(part[self.mlp].register_forward_hook(after(f"mlp_{i}")))
            handles.append(layer.register_forward_hook(after(f"resid_{i}")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class Leaves:
    """A submodule's features and error as leaves of the graph (eq. 7), once its splice has run."""

    dictionary: Dictionary
    detach_error: bool = True
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    error: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, x: Tensor) -> Tensor:
        """decode(f) + eps, the gradient reaching f, eps and, unchanged, x (App. A.3)."""
        features = self.dictionary.encode(x)
        error = x - self.dictionary.decode(features)
        if not self.detach_error:
            # The mistake: x = decode(f) + (x - decode(f)), in which f cancels.
            self.features = features.detach().requires_grad_()
            return (
                self.dictionary.decode(self.features) + x - (self.dictionary.decode(self.features))
            )
        self.features = features.detach().requires_grad_()
        self.error = error.detach().requires_grad_()
        return self.dictionary.decode(self.features) + self.error + (x - x.detach())


def splice(dictionaries: Mapping[str, Dictionary], *, detach_error: bool = True) -> dict[str, Any]:
    """Leaves for every dictionary, to be given as changes to a `Reference.run`."""
    return {name: Leaves(d, detach_error) for name, d in dictionaries.items()}


def patch_values(reference: Reference, inputs: Inputs, dictionaries: Mapping[str, Dictionary]):
    """Every submodule's patch-side features and error: the patch run's, or zeros."""
    values = {}
    with torch.no_grad():
        tokens = inputs.clean if inputs.patch is None else inputs.patch
        run = reference.run_tokens(tokens, inputs, {})
        for name, dictionary in dictionaries.items():
            x = run.values[name]
            features = dictionary.encode(x)
            error = x - dictionary.decode(features)
            if inputs.patch is None:
                features, error = torch.zeros_like(features), torch.zeros_like(error)
            values[name] = (features, error)
    return values


def between(upstream: str, downstream: str) -> set[str]:
    """Submodules of one layer that a path from `upstream` to `downstream` might pass: to be cut."""
    kind, _, layer = downstream.partition("_")
    inner = {"attn": [], "mlp": [f"attn_{layer}"], "resid": [f"attn_{layer}", f"mlp_{layer}"]}
    return {name for name in inner[kind] if name != upstream}
