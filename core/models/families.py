"""Where each family of models is read and written: one `Family` per architecture.

A decoder layer is, for every family here,

    mid = h + attn(h)                 attn(h) = post_attn(attention(pre_attn(h)))
    out = mid + mlp(mid or h)         mlp(h)  = post_mlp(mlp(pre_mlp(h)))

with the MLP reading ``h`` in parallel models and ``mid`` in sequential ones. A family names the
modules that play these parts. `LanguageModel` checks the description against the model's own
logits when it loads, so a wrong one cannot go unnoticed. To add a family, append an entry to
`FAMILIES`; `docs/extend.md` walks through an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import UnknownFamily


def _never(config: Any) -> bool:
    return False


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
        parallel: whether MLP and attention read the same stream, given the configuration.
    """

    model_types: tuple[str, ...]
    layers: str
    final_norm: str
    pre_attn: str
    attn: str
    out_proj: str
    pre_mlp: str
    mlp: str = "mlp"
    position: str | None = None
    post_attn: str | None = None
    post_mlp: str | None = None
    parallel: Callable[[Any], bool] = _never


FAMILIES: list[Family] = [
    Family(
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        pre_attn="input_layernorm",
        attn="attention",
        out_proj="dense",
        pre_mlp="post_attention_layernorm",
        parallel=lambda config: bool(config.use_parallel_residual),
    ),
    Family(
        model_types=("gpt2",),
        layers="transformer.h",
        final_norm="transformer.ln_f",
        position="transformer.wpe",
        pre_attn="ln_1",
        attn="attn",
        out_proj="c_proj",
        pre_mlp="ln_2",
    ),
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        layers="model.layers",
        final_norm="model.norm",
        pre_attn="input_layernorm",
        attn="self_attn",
        out_proj="o_proj",
        pre_mlp="post_attention_layernorm",
    ),
    Family(
        model_types=("gemma2", "gemma3_text"),
        layers="model.layers",
        final_norm="model.norm",
        pre_attn="input_layernorm",
        attn="self_attn",
        out_proj="o_proj",
        post_attn="post_attention_layernorm",
        pre_mlp="pre_feedforward_layernorm",
        post_mlp="post_feedforward_layernorm",
    ),
]


def family_of(config: Any) -> Family:
    """The family that describes a model's configuration.

    Raises:
        UnknownFamily: none does; the message says what to add.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UnknownFamily(
        f"no adapter describes model type '{config.model_type}' (known: {known}). Append to "
        f"FAMILIES in core/models/families.py: Family(model_types=('{config.model_type}',), "
        "layers='model.layers', final_norm='model.norm', pre_attn=..., attn=..., out_proj=..., "
        "pre_mlp=..., mlp=...), with the module names that print(model) shows."
    )
