"""Where each family of models is read and written: one `Family` per architecture.

A decoder layer is, for every family here,

    mid = h + attn(h)                 attn(h) = post_attn(attention(pre_attn(h)))
    out = mid + mlp(mid or h)         mlp(h)  = post_mlp(mlp(pre_mlp(h)))

with the MLP reading ``h`` in parallel models and ``mid`` in sequential ones. A family names the
modules that play these parts. `LanguageModel` checks the description against the model's own run
when it loads, so a wrong one cannot go unnoticed. To add a family, append an entry to `FAMILIES`;
`docs/extend.md` walks through an example. `UNFIT` says of well-known architectures why no such
description fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from core.errors import AdapterMismatch, UnknownFamily


def _never(_config: Any) -> bool:
    return False


def _always(_config: Any) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """Module names of one architecture, as attribute paths.

    Attributes:
        model_types: values of ``config.model_type`` this describes.
        layers: path of the layer list from the causal LM.
        final_norm: path of the last norm from the causal LM.
        position: path of a learned position embedding added to the token embedding, or None.
        pre_attn, attn, out_proj: from a layer, from a layer, and from the attention module.
        post_attn: norm applied to the attention's output before it is added, or None.
        pre_mlp, mlp, post_mlp: likewise.
        down_proj: what reads the hidden neurons, from the MLP; None where it has none. Only the
            ``mlp_neurons`` of discovery need it.
        parallel: whether MLP and attention read the same stream, given the configuration.
        when: which configurations of these types this describes; the first that does counts.
        in_place: the layer adds to the MLP's output in place, so that a copy is recorded.
    """

    model_types: tuple[str, ...]
    layers: str
    final_norm: str
    pre_attn: str
    attn: str
    out_proj: str
    pre_mlp: str
    mlp: str = "mlp"
    down_proj: str | None = None
    position: str | None = None
    post_attn: str | None = None
    post_mlp: str | None = None
    parallel: Callable[[Any], bool] = _never
    when: Callable[[Any], bool] = _always
    in_place: bool = False


_LLAMA = Family(
    model_types=(
        *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("phi3", "gemma"),
    ),
    layers="model.layers",
    final_norm="model.norm",
    pre_attn="input_layernorm",
    attn="self_attn",
    out_proj="o_proj",
    pre_mlp="post_attention_layernorm",
    down_proj="down_proj",
)
_GPT2 = Family(
    model_types=("gpt2",),
    layers="transformer.h",
    final_norm="transformer.ln_f",
    position="transformer.wpe",
    pre_attn="ln_1",
    attn="attn",
    out_proj="c_proj",
    pre_mlp="ln_2",
    down_proj="c_proj",
)
_FALCON = Family(
    model_types=("falcon",),
    layers="transformer.h",
    final_norm="transformer.ln_f",
    pre_attn="input_layernorm",
    attn="self_attention",
    out_proj="dense",
    pre_mlp="post_attention_layernorm",
    down_proj="dense_4h_to_h",
    in_place=True,
)

FAMILIES: list[Family] = [
    Family(
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        pre_attn="input_layernorm",
        attn="attention",
        out_proj="dense",
        pre_mlp="post_attention_layernorm",
        down_proj="dense_4h_to_h",
        parallel=lambda config: bool(config.use_parallel_residual),
    ),
    _GPT2,
    replace(_GPT2, model_types=("gpt_neo",), out_proj="attention.out_proj"),
    # One norm for attention and MLP.
    replace(
        _GPT2,
        model_types=("gptj",),
        position=None,
        out_proj="out_proj",
        pre_mlp="ln_1",
        down_proj="fc_out",
        parallel=_always,
    ),
    _LLAMA,
    replace(
        _LLAMA,
        model_types=("stablelm",),
        pre_mlp="input_layernorm",
        parallel=_always,
        when=lambda config: config.use_parallel_residual,
    ),
    replace(_LLAMA, model_types=("stablelm",)),
    replace(
        _LLAMA,
        model_types=("phi",),
        final_norm="model.final_layernorm",
        out_proj="dense",
        pre_mlp="input_layernorm",
        down_proj="fc2",
        parallel=_always,
    ),
    # Of 40B: a norm for each. Of 7B, and 11B: one for both. Of RW: one after the other.
    replace(
        _FALCON,
        pre_attn="ln_attn",
        pre_mlp="ln_mlp",
        parallel=_always,
        when=lambda c: c.new_decoder_architecture and c.num_ln_in_parallel_attn in (None, 2),
    ),
    replace(
        _FALCON,
        pre_mlp="input_layernorm",
        parallel=_always,
        when=lambda config: config.new_decoder_architecture or config.parallel_attn,
    ),
    _FALCON,
    Family(
        model_types=("gemma2", "gemma3_text"),
        layers="model.layers",
        final_norm="model.norm",
        pre_attn="input_layernorm",
        attn="self_attn",
        out_proj="o_proj",
        post_attn="post_attention_layernorm",
        pre_mlp="pre_feedforward_layernorm",
        down_proj="down_proj",
        post_mlp="post_feedforward_layernorm",
    ),
]


UNFIT = {
    "bloom": "its attention and its MLP are given the residual stream and add it themselves, so "
    "what they add is no module's output",
    "opt": "its MLP is two matrices of the layer, so no module puts out what it adds",
    "olmo2": "attention and MLP read the residual stream as it is, without a norm before them",
}
"""Why an architecture cannot be described so, by ``config.model_type``."""


def family_of(config: Any) -> Family:
    """The family that describes a model's configuration.

    Raises:
        AdapterMismatch: its layers are known to be put together differently.
        UnknownFamily: none does; the message says what to add.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types and family.when(config):
            return family
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.model_types))
    if config.model_type in UNFIT:
        raise AdapterMismatch(
            f"models of type '{config.model_type}' cannot be read: {UNFIT[config.model_type]}. "
            f"Choose a model of another type: {known}."
        )
    raise UnknownFamily(
        f"no adapter describes model type '{config.model_type}' (known: {known}). Append to "
        f"FAMILIES in core/models/families.py: Family(model_types=('{config.model_type}',), "
        "layers='model.layers', final_norm='model.norm', pre_attn=..., attn=..., out_proj=..., "
        "pre_mlp=..., mlp=...), with the module names that print(model) shows."
    )
